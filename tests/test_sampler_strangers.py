"""Programs that join music that stays and have not been heard: whether and when they play, which pitches, how long."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_helpers import make_seed, notes_of, scale, tiny_sampler, tokenizer_of

from melodia import engine
from melodia.grammar import compile_tables
from melodia.midi import read_score
from melodia.notes import notes_of_events, notes_of_score
from melodia.sampler import Sampler
from melodia.sampler.bias import seed_bias
from melodia.sampler.branching import Judge
from melodia.sampler.habits import HABITS, habit_of
from melodia.sampler.kept import Kept
from melodia.sampler.part_bias import ASTRAY, FOREIGN, NEAR, RUB, STEADY, PartBias
from melodia.sampler.request import Request
from melodia.sampler.session import Session
from melodia.sampler.strangers import Strangers
from melodia.sampler.together import sounding, together

SAMPLES = Path(__file__).resolve().parents[1] / "midi_samples"
QUARTER = compile_tables(tokenizer_of("REMI").vocabulary).ticks_per_quarter


def silent_sampler() -> Sampler:
    """One that would not play by itself: it goes nowhere and names no program; and its notes are short."""
    sampler = tiny_sampler()
    vocabulary = sampler.vocabulary
    with torch.no_grad():
        for kind in ("Position", "Program"):
            sampler.model.head.bias[list(vocabulary.ids_of(kind))] -= 30.0
        long = [i for i in vocabulary.ids_of("Duration") if not vocabulary.value(i).startswith("0.")]
        sampler.model.head.bias[long] -= 30.0
    return Sampler(sampler.model, sampler.tokenizer)


def strangers_of(sampler: Sampler, state: Session | None = None, **wishes: Any) -> Any:
    request = Request(**wishes)
    start = sampler.state if state is None else state
    return sampler._lane(
        start, request, kept=Kept.of(request, sampler._classes, sampler.tokenizer, start)
    ).plan.strangers


def kept_of(sampler: Sampler, beside: object, programs: tuple[int, ...]) -> tuple[Kept, Session]:
    request = Request(beside=beside, programs=programs, metre=(4, 4), tempo=100)
    kept = Kept.of(request, sampler._classes, sampler.tokenizer, sampler.state)
    assert kept is not None
    return kept, sampler.state


@pytest.mark.parametrize("program", [32, 48, 0, -1])
def test_a_stranger_plays_where_others_begin(program: int) -> None:
    sampler = silent_sampler()
    sampler.prime(None)
    made = sampler.generate_many(
        8, bars=8, beside=make_seed(scale(8, program=73)), programs=(program,), metre=(4, 4), tempo=90
    )
    onsets = [{round(event.onset_beats, 6) for event in one.events} for one in made]
    assert all(onset == int(onset) for one in onsets for onset in one), "with the quarter notes of the scale"
    shares = np.array(
        [[len([o for o in one if o % 4 == beat]) / 8 for beat in range(4)] for one in onsets]
    ).mean(0)
    at_bar, at_beat, *_ = (0.98, 0.95) if program < 0 else habit_of(program).begins
    assert shares[0] == pytest.approx(at_bar, abs=0.12)
    assert shares[1:] == pytest.approx(at_beat, abs=0.12)
    assert len({frozenset(one) for one in onsets}) > 1, "each continuation has its own random numbers"


def test_who_has_been_heard_is_no_stranger() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed([*scale(4), *scale(4, program=40)]))
    tune = make_seed(scale(4, program=73))
    assert strangers_of(sampler, programs=(0, 32), beside=tune).programs == (32,)
    assert strangers_of(sampler, programs=(0, 32)).programs == (32,)
    assert strangers_of(sampler, programs=(0, 32), any_program=False, bars=2).programs == (32,)
    assert strangers_of(sampler, programs=(32, 33)).programs == (32, 33), "they join each other"
    for programs in ((0, 40), (32,), None):
        assert strangers_of(sampler, programs=programs) is None, (
            "nobody joins, or nobody is there to be joined"
        )
    joined = sampler.generate(bars=4, programs=(0, 32), random_seed=1)
    assert any(event.program == 32 for event in joined.events)
    assert strangers_of(sampler, programs=(0, 32), state=joined.state) is None, "it has been heard by now"


@pytest.mark.parametrize("scheme", ["TSD", "MIDILike", "PerTok"])
def test_without_bar_tokens_nobody_is_asked(scheme: str) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(4)))
    assert strangers_of(sampler, programs=(0, 32)) is None


@pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")
def test_who_joins_a_continuation_is_the_same_in_the_engine_and_the_reference() -> None:
    sampler = tiny_sampler()
    made = []
    for each in (sampler, Sampler(sampler.model, sampler.tokenizer, backend="reference")):
        each.prime(make_seed(scale(2)))
        wishes = {"bars": 4, "programs": (0, 32, -1), "branches": 3, "recall": 0.9}
        made.append([one.tokens.tolist() for one in each.generate_many(2, random_seed=4, **wishes)])
    assert made[0] == made[1]


@pytest.mark.parametrize("cut", [1, 14, 33])
def test_a_stream_that_is_resumed_has_the_same_strangers(cut: int) -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(2)))
    wishes: dict[str, Any] = {"programs": (0, 32), "endless": True, "random_seed": 7}
    stream = sampler.stream(**wishes)
    assert len({event.program for event in itertools.islice(stream, cut)}) == min(cut, 2)
    resumed = sampler.stream(state=stream.state, **wishes)
    first, then = (list(itertools.islice(each, 30)) for each in (stream, resumed))
    assert [(event.pitch, event.duration_beats) for event in first] == [
        (event.pitch, event.duration_beats) for event in then
    ]
    assert stream.state.context.strangers == ((0, 32), (32,))
    assert sampler.generate(bars=2, programs=(0, 32)).state.context.strangers is None


def test_a_saved_session_knows_what_each_part_has_played_last(tmp_path: Path) -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(4)))
    wishes: dict[str, Any] = {"programs": (0, 32), "endless": True, "random_seed": 7}
    stream, whole = (sampler.stream(**wishes) for _ in range(2))
    notes = list(itertools.islice(whole, 90))
    for cut in range(80):
        stream.state.save(tmp_path / "session", force=True)
        loaded = sampler.load_state(tmp_path / "session")
        rows = loaded.grammar.rows
        for program, row in stream.state.grammar.rows.items():
            assert rows[program].tolist() == row.tolist()
        if cut % 8 == 0:
            assert list(itertools.islice(sampler.stream(state=loaded, **wishes), 10)) == notes[cut : cut + 10]
        next(stream)


@pytest.mark.parametrize("wishes", [{"programs": (0, 40, -1)}, {"programs": (73,), "beside": True}])
def test_nobody_becomes_a_stranger_or_ceases_to_be_one_when_a_stream_is_resumed(
    wishes: dict[str, Any],
) -> None:
    sampler = tiny_sampler()
    sampler.prime(None if "beside" not in wishes else make_seed(scale(2)))
    if "beside" in wishes:
        wishes = wishes | {"beside": make_seed(scale(12, program=40)), "bars": 12}
    else:
        wishes = wishes | {"endless": True}
    for cut in (1, 3, 10):
        stream = sampler.stream(random_seed=3, **wishes)
        assert len(list(itertools.islice(stream, cut))) == cut
        here, there = stream._lane.plan.strangers, strangers_of(sampler, stream.state, **wishes)
        assert here.programs == there.programs == ((73,) if "beside" in wishes else (0, 40, -1))


def test_a_part_that_plays_on_behind_is_compared_with_what_it_plays_there() -> None:
    sampler = tiny_sampler()
    tune = make_seed([*scale(8), *[note for note in scale(8, program=40) if note[0] >= 16]])
    made = sampler.fill(tune, (5, 6), random_seed=1, branches=2)[0].continuation
    assert made.report.stretches == 1
    seed, behind = (make_seed(scale(4)), make_seed([*scale(2), *scale(2, program=40)]))
    sampler.prime(seed)
    following = sampler._following(Request(following=behind, branches=2))
    assert Judge(seed, (0, 40, 32), following).known == {0, 40}


@pytest.mark.parametrize("quarters", [8, 6])
def test_nobody_joins_before_the_join(quarters: int) -> None:
    """The last note of the seed begins before it, where others might begin, too."""
    sampler = silent_sampler()
    sampler.prime(make_seed(scale(2)[:quarters]))
    for random_seed in range(3):
        made = sampler.generate(bars=1, programs=(0, 32, -1), random_seed=random_seed)
        assert any(event.program != 0 for event in made.events)
        assert sum(note[1] < quarters for note in notes_of(made.joined_score)) == quarters


def test_nobody_joins_before_the_bars_that_are_filled() -> None:
    sampler = silent_sampler()
    for random_seed in range(3):
        made = sampler.fill(
            make_seed(scale(4)), (3, 4), programs=(32, -1), beside=True, random_seed=random_seed, branches=2
        )
        new = [note for note in notes_of(made[0].score) if note[0] != 0]
        assert new
        assert all(onset >= 8 for _, onset, *_ in new)


@pytest.mark.parametrize("seeded", [False, True])
def test_programs_join_each_other_where_none_of_them_played_before(seeded: bool) -> None:
    sampler = silent_sampler()
    sampler.prime(make_seed(scale(2, program=73)) if seeded else None)
    for random_seed in range(4):
        made = sampler.generate(bars=2, programs=(0, 32, -1), random_seed=random_seed)
        assert {event.program for event in made.events} >= {0, 32}


@pytest.mark.parametrize("scheme", ["REMI", "MIDILike"])
@pytest.mark.parametrize("seeded", [False, True])
def test_drums_that_join_are_those_that_every_player_has(scheme: str, seeded: bool) -> None:
    """Behind music that has drums anything may come: it may be played on another kit."""
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(1)) if seeded else None)
    wishes: dict[str, Any] = {"programs": (0, -1), "bars": 20, "random_seed": 1}
    drums = {event.pitch for event in sampler.generate(**wishes).events if event.program == -1}
    assert len(drums) > 5
    assert drums <= set(range(35, 82))
    sampler.prime(make_seed([*scale(1), (0, 0.5, 22, -1)]))
    drums = {event.pitch for event in sampler.generate(**wishes).events if event.program == -1}
    assert drums - set(range(35, 82))


def test_bars_do_not_repeat_where_programs_join() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(8)))
    made = sampler.generate(bars=8, programs=(0, 32), recall=0.9, random_seed=1)
    assert made.report.recalled == 0
    assert any("no bar repeats: programs join" in line for line in made.report.lines())


def test_a_new_program_keeps_to_the_seeds_range_where_nobody_is_asked() -> None:
    classes = tiny_sampler("TSD")._classes
    seed, request = make_seed(scale(4)), Request(pitch_bias=0.6, programs=(0, 32))
    bias, joined = seed_bias(classes, seed, request), seed_bias(classes, seed, request, joining=(32,))
    assert bias is not None
    assert joined is not None
    ids = [classes.vocabulary.index[f"Pitch_{pitch}"] for pitch in (36, 60, 96)]
    assert bias.of(32).row[ids[1]] > max(bias.of(32).row[ids[0]], bias.of(32).row[ids[2]])
    assert len(set(joined.of(32).row[ids].tolist())) == 1


def test_who_joins_a_continuation_plays_with_the_others() -> None:
    """With the model that comes along: a bass and drums behind a minuet for piano."""
    sampler = Sampler.load(weights="int8" if engine.reason() is None else "fp32", device="cpu")
    sampler.prime(SAMPLES / "petzold_minuet_g_major.mid", seed_bars=8)
    made = sampler.generate(bars=8, programs=(0, 32, -1), random_seed=1, pitch_bias=0.3)
    bars = {p: {int(e.onset_beats // 3) for e in made.events if e.program == p} for p in (0, 32, -1)}
    assert all(len(found) >= 6 for found in bars.values()), bars
    bass = [event for event in made.events if event.program == 32]
    assert np.median([event.pitch for event in bass]) <= habit_of(32).high
    ends = [event.onset_beats + event.duration_beats for event in bass]
    assert all(start.onset_beats >= end - 1e-6 for start, end in zip(bass[1:], ends, strict=False))


def test_nobody_is_asked_where_nobody_begins_or_twice_or_while_playing() -> None:
    sampler = tiny_sampler()
    classes = sampler._classes
    state = sampler.state.grammar.copy()
    state.bar, state.bar_start, state.bar_length, state.place, state.now = 0, 0, 4 * QUARTER, 0, 0
    every = np.ones(classes.vocabulary.size, np.bool_)
    away = classes.vocabulary.index["Bar_None"]
    onsets = np.arange(0, 40 * QUARTER, QUARTER)
    asked = 0
    for tick in onsets.tolist():
        state.now = state.onset = tick
        state.bar_start = tick - tick % (4 * QUARTER)
        strangers = Strangers(classes, (32, -1), (32, -1))
        first = strangers.ask(state, every, away)
        if first is None:
            continue
        asked += 1
        assert set(classes.program_of[first].tolist()) in ({32}, {-1})
        rest = strangers.ask(state, every, away)
        assert rest is None or set(classes.program_of[rest].tolist()) == {-1}
        assert strangers.ask(state, every, away) is None
    assert asked > 30
    state.now = state.bar_start = state.onset = 0
    state.row(32)[40] = 1  # sounds until behind this place
    for seed in range(20):
        playing, other = (Strangers(classes, (p,), (p,), random_seed=seed) for p in (32, 33))
        assert playing.ask(state, every, away) is None
        assert other.ask(state, every, classes.vocabulary.index["Program_33"]) is None, "it comes by itself"
        state.now = 1
        assert other.ask(state, every, away) is None, "nobody begins here"
        state.now = 0


def test_strangers_keep_to_the_time_of_the_others() -> None:
    sampler = tiny_sampler()
    classes, state = sampler._classes, sampler.state.grammar
    state = state.copy()
    state.bar_start = 0

    def ticks_of(programs: tuple[int, ...], onsets: Any) -> Any:
        """The places in a bar that are left."""
        wanted = np.ones(classes.vocabulary.size, np.bool_)
        Strangers(classes, programs, programs, onsets=onsets).narrow(state, wanted)
        return classes.values[classes.position & wanted] * state.unit

    end = 8 * QUARTER
    triplets, straight = (np.arange(0, end, QUARTER // parts) for parts in (3, 4))
    places = {}
    for name, onsets in (("triplets", triplets), ("straight", straight)):
        places[name] = set((12 * (ticks_of((32,), onsets) % QUARTER) // QUARTER).tolist())
    assert places == {"triplets": {0, 4, 6, 8}, "straight": {0, 3, 6, 9}}
    assert set((ticks_of((-1,), straight) % QUARTER).tolist()) == {0, QUARTER // 2}, "drums keep the time"
    free = np.arange(0, 50 * QUARTER, QUARTER + 1)  # played by hand: nowhere in particular
    assert len(ticks_of((32,), free)) == classes.position.sum()


def test_drums_that_join_begin_alone_on_beats_and_halves_only() -> None:
    sampler = tiny_sampler()
    classes, state = sampler._classes, sampler.state.grammar.copy()
    strangers = Strangers(classes, (-1,), (0, -1), onsets=np.arange(0, 8 * QUARTER, QUARTER // 4))
    drums = classes.vocabulary.index["Program_-1"]
    state.bar_start = 0
    for now, onset, free in (
        (QUARTER // 2, 0, True),
        (QUARTER // 4, 0, False),
        (QUARTER // 4, QUARTER // 4, True),
    ):
        state.now, state.onset = now, onset
        wanted = np.ones(classes.vocabulary.size, np.bool_)
        strangers.narrow(state, wanted)
        assert wanted[drums] == free, (now, onset)
        only = classes.program_of == -1
        strangers.narrow(state, only)
        assert only[drums], "somebody must play"


def test_drums_and_those_they_join_keep_to_the_places_of_the_seed() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(16)))
    for seed in range(3):
        events = sampler.generate(bars=8, random_seed=seed, programs=(0, -1)).events
        assert {event.onset_beats % 1 for event in events} <= {0, 0.5}
        assert {event.program for event in events} == {0, -1}


def test_pitches_lean_to_what_sounds_around_them() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed([*scale(4), *scale(4, program=41)]))
    chord = make_seed([(0, 4, 60, 40), (0, 4, 64, 40), (0, 4, 67, 40), (4, 4, 62, 40)])
    kept, session = kept_of(sampler, chord, (0,))
    classes, index = sampler._classes, sampler.vocabulary.index
    base = seed_bias(classes, session.seed, Request(pitch_bias=0.5))
    assert base is not None
    state = session.grammar.copy()
    state.program, state.now = 0, session.context.join
    bias, leaned = PartBias(classes, kept.notes, None), {}
    row = bias.under(base, state, chords=False).of(0).row - base.of(0).row
    for pitch in range(60, 72):
        leaned[pitch] = float(row[index[f"Pitch_{pitch}"]] - row[index["Pitch_60"]])
    wanted = {60: 0, 64: 0, 67: 0, 69: -FOREIGN, 62: -FOREIGN, 70: -FOREIGN}
    wanted |= dict.fromkeys((61, 63, 65, 66, 68, 71), -FOREIGN - RUB)
    assert leaned == pytest.approx(wanted, abs=1e-5)
    assert np.exp(row[[index[f"Pitch_{pitch}"] for pitch in range(60, 72)]]).mean() == pytest.approx(
        1, rel=1e-5
    )
    assert bias.under(base, state, chords=True) is base, "chords that were asked for say it better"
    state.now = session.context.join + 100 * QUARTER
    assert bias.under(base, state, chords=False) is base, "nothing sounds"


def test_a_stranger_stays_near_itself_and_has_its_familys_lengths() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(4)))
    kept, session = kept_of(sampler, make_seed(scale(4, program=40)), (32, 0))
    classes, index = sampler._classes, sampler.vocabulary.index
    base = seed_bias(classes, session.seed, Request(pitch_bias=0.5))
    assert base is not None
    state = session.grammar.copy()
    state.program, state.now = 32, session.context.join + 400 * QUARTER
    bias = PartBias(classes, kept.notes, Strangers(classes, (32,), (32, 0), (32,)))
    row = bias.under(base, state, chords=False).of(32).row - base.of(32).row
    low, high = HABITS[4].low, HABITS[4].high
    outside = [max(low - pitch, 0, pitch - high) for pitch in (low, high, high + 5, 90)]
    leaned = row[[index[f"Pitch_{pitch}"] for pitch in (low, high, high + 5, 90)]]
    assert leaned == pytest.approx(-np.array(outside) / ASTRAY, abs=1e-4), "it has not played"
    lengths = {v: row[index[f"Duration_{v}"]] for v in ("0.6.12", "1.0.12", "4.0.4")}
    usual = HABITS[4].length
    assert lengths == pytest.approx(
        {v: -(np.log(q / usual) ** 2) / 2 for v, q in (("0.6.12", 0.5), ("1.0.12", 1), ("4.0.4", 4))},
        rel=1e-4,
    )
    state.row(32)[40] = state.now
    row = bias.under(base, state, chords=False).of(32).row - base.of(32).row
    for pitch in range(128):
        if f"Pitch_{pitch}" in index:
            assert row[index[f"Pitch_{pitch}"]] == pytest.approx(
                -(max(0, abs(pitch - 40) - NEAR) + max(low - pitch, 0, pitch - high)) / ASTRAY, abs=1e-4
            )
    state.program = 0
    assert bias.under(base, state, chords=False) is base, "of who has been heard the model knows more"


def test_a_stranger_is_as_loud_as_the_music_it_joins() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(4)))
    classes, index = sampler._classes, sampler.vocabulary.index
    loud = {velocity: index[f"Velocity_{velocity}"] for velocity in (31, 79, 95, 127)}
    seed = make_seed(scale(8))
    for number, note in enumerate(seed.tracks[0].notes):
        note.velocity = 60 + 40 * (number % 2)
    session = sampler.state
    state = session.grammar.copy()
    for around, kept in ((seed, None), (make_seed(scale(1)), kept_of(sampler, seed, (32, -1))[0])):
        bias = PartBias.of(classes, around, kept, Strangers(classes, (32, -1), (32, -1)))
        assert bias is not None
        for program in (32, -1):
            state.program, state.now = program, session.context.join + 400 * QUARTER
            opinion = bias.under(None, state, chords=False).of(program)
            for velocity, token in loud.items():
                assert opinion.members[token]
                assert opinion.row[token] == pytest.approx(-(((velocity - 80) / 20) ** 2) / 2, abs=1e-5)
        state.program = 0
        heard = bias.under(None, state, chords=False).of(0)
        assert not heard.members[list(loud.values())].any(), "who was there finds its own"
    bias = PartBias.of(classes, make_seed(scale(8)), None, Strangers(classes, (32,), (32,)))
    assert bias is not None
    state.program = 32
    row = bias.under(None, state, chords=False).of(32).row
    assert row[loud[95]] == pytest.approx(-((15 / STEADY) ** 2) / 2, abs=1e-5)
    silent = PartBias.of(classes, None, None, Strangers(classes, (32,), (32,)))
    assert silent is not None
    assert not silent.under(None, state, chords=False).of(32).row[list(loud.values())].any()


@settings(max_examples=60, deadline=None)
@given(
    *[
        st.lists(
            st.tuples(
                st.integers(0, 40), st.integers(1, 20), st.sampled_from([-1, 0, 5]), st.integers(40, 80)
            ),
            max_size=12,
        )
        for _ in range(2)
    ],
    st.integers(0, 20),
    st.integers(21, 60),
)
def test_what_parts_have_in_common_by_hand(part, others, start: int, end: int) -> None:
    found = together(notes_of_events(part), notes_of_events(others), start, end)

    def at(notes, tick: int) -> set[int]:
        return {
            pitch % 12 for on, length, program, pitch in notes if program >= 0 and on <= tick < on + length
        }

    beside = [(at(part, t), at(others, t)) for t in range(start, end)]
    pairs = [(c, heard) for own, heard in beside if heard for c in own]
    time = max(1, len(pairs))
    assert found.sounds == pytest.approx(np.mean([bool(own) for own, _ in beside]))
    assert found.classes == pytest.approx(sum(c in heard for c, heard in pairs) / time)
    rubs = [c not in heard and bool({(c + 1) % 12, (c - 1) % 12} & heard) for c, heard in pairs]
    assert found.rubs == pytest.approx(sum(rubs) / time)
    begun = {on for on, *_ in part if start <= on < end}
    assert found.onsets == pytest.approx(
        len(begun & {on for on, *_ in others}) / len(begun) if begun else 0.0
    )
    assert sounding(notes_of_events(part), start, end).shape == (end - start, 12)


def test_a_bass_under_a_minuet(samples_dir: Path) -> None:
    """The example of the README, with the model that comes along: a bass that plays in every bar, and fits."""
    score = read_score(samples_dir / "petzold_minuet_g_major.mid")[0]
    (filling,) = Sampler.load(weights="int8" if engine.reason() is None else "fp32", device="cpu").fill(
        score, (1, 8), programs=(32,), beside=True, random_seed=3, branches=2
    )
    assert "4 stretches chosen from 2 branches each" in filling.continuation.report.lines()
    bass = [note for note in notes_of(filling.score) if note[0] == 32]
    assert len({int(note[1] // 3) for note in bass}) == 8
    notes = notes_of_score(filling.score)
    own, others = (notes.select(chosen) for chosen in (notes.program == 32, notes.program != 32))
    found = together(own, others, 0, 24 * filling.score.ticks_per_quarter)
    assert found.sounds > 0.7
    assert found.classes > found.rubs
    assert np.median(own.pitch) <= habit_of(32).high
    assert own.pitch.max() <= 60
