"""Music without an end: what its past leaves behind stays as small as it was, and a state goes on with its clock."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from sampler_helpers import make_seed, notes_of, scale, tiny_sampler, tokenizer_of

from melodia.grammar import Grammar, NoteEvent, TokenReader
from melodia.sampler import Request, Sampler
from melodia.sampler.session import Tail
from melodia.sampler.timeline import Tempi, Timeline
from melodia.tokenizer import Tokenizer, TokenizerConfig

SCHEMES = ["REMI", "TSD", "Structured", "MIDILike", "PerTok"]
FREE = {"tempo_changes": True, "metre_changes": True}
DUET = make_seed([*scale(2), *scale(2, program=40)])


# -- the clock ----------------------------------------------------------------------------------------------------


def summed(marks: list[tuple[int, float]], tick: int) -> float:
    """Seconds from the first mark to a tick, 24 ticks a quarter, one tempo behind the other."""
    total = 0.0
    for (start, tempo), (stop, _) in itertools.pairwise([*marks, (tick, 0.0)]):
        if tick > start:
            total += (min(tick, stop) - start) * 60 / (tempo * 24)
    return total


def test_seconds_are_those_of_a_sum() -> None:
    rng = np.random.default_rng(1)
    ticks = [0, *np.sort(rng.integers(0, 4000, 200)).tolist()]  # some of them twice
    marks = [(tick, float(tempo)) for tick, tempo in zip(ticks, rng.uniform(20, 300, 201), strict=True)]
    tempi = Tempi(24)
    for tick, tempo in marks:
        tempi.add(tick, tempo)
    expected = {tick: summed(marks, tick) for tick in range(0, 5000, 7)}
    assert {tick: tempi.at(tick) for tick in expected} == expected
    for now in range(0, 4000, 11):
        tempi.forget(now)
        assert tempi.at(now) == summed(marks, now)
        left = sum(tick > now for tick, _ in marks)
        assert len(tempi.marks) <= 2 * (left + 1)
    assert {tick: tempi.at(tick) for tick in expected if tick >= 4000} == {
        tick: seconds for tick, seconds in expected.items() if tick >= 4000
    }


def test_a_look_up_does_not_slow_down_with_the_changes_before_it() -> None:
    def seconds_of(changes: int) -> float:
        times = Timeline(24, 0, 100.0, (4, 4))
        for change in range(1, changes):
            times.add_tempo(24 * change, 60.0 + change % 60)
        began = time.process_time()
        for _ in range(300):
            times.seconds(12, 24 * changes)
        return time.process_time() - began

    few = min(seconds_of(100) for _ in range(3))
    assert seconds_of(100_000) < 50 * few  # a thousand times as many


def test_the_first_tempo_holds_from_the_origin() -> None:
    times = Timeline(24, 48, None, None)
    assert times.seconds(48, 96) == 1.0  # as MIDI has it where nobody says
    times.add_tempo(60, 60.0)
    times.add_tempo(96, 240.0)
    assert times.tempi == [(48, 60.0), (96, 240.0)]
    assert times.at(144) == 2.0 + 0.5
    later = Timeline(24, 48, 240.0, None)
    later.play_on(120, times.played)
    assert (later.at(144), later.played) == (2.5, times.played)
    asked = Timeline(24, 48, 120.0, None)
    asked.play_on(120, times.played)
    assert asked.at(144) == 2.0 + 0.25 + 0.5, "what is asked for holds from now on"


# -- streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_of_the_past_is_kept(scheme: str) -> None:
    sampler = tiny_sampler(scheme)
    with torch.no_grad():
        sampler.model.head.bias[list(sampler.vocabulary.ids_of("Tempo"))] += 2
    sampler.prime(DUET)
    stream = sampler.stream(endless=True, random_seed=2, **FREE)
    lane, changes, tail = stream._lane, 0, 0
    add = lane.plan.times.add_tempo

    def counted(tick: int, tempo: float) -> None:
        nonlocal changes
        changes += 1
        add(tick, tempo)

    lane.plan.times.add_tempo = counted  # type: ignore[method-assign]
    while lane.count < 8000:
        next(stream)
        tail = max(tail, len(lane._tail_ids))
        assert len(lane.plan.times.tempi) <= 64
        assert len(lane.plan.times.metres) <= 2
    reader = lane._reader
    assert tail <= 4096  # in MIDILike some 1000 to 2000 tokens come while the oldest open note sounds
    assert len(reader.tempi) + len(reader.metres) + len(reader.bar_starts) <= 2048
    assert scheme == "Structured" or changes > 64


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_tempo_begins_where_the_stream_stood(scheme: str) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(4), tempo=100))
    stream = sampler.stream(endless=True, random_seed=8)
    heard = list(itertools.islice(stream, 30))
    state = stream.state
    settings = {"state": state, "tempo": 200, "random_seed": 8}
    faster = list(itertools.islice(sampler.stream(endless=True, **settings), 30))
    plain = list(itertools.islice(stream, 30))
    quarter = sampler._classes.tables.ticks_per_quarter
    now = (state.grammar.now - state.context.origin) / quarter * 60 / 100  # seconds
    for event, before in zip(faster, plain, strict=True):
        assert event.onset_beats == before.onset_beats
        late = max(0.0, before.onset - now)
        assert event.onset == pytest.approx(before.onset - late / 2), "twice as fast from there on"
    made = sampler.generate(bars=2, **settings)
    assert made.report.tempo == 200
    assert [round(tempo.qpm) for tempo in made.score.tempos] == [100, 200]
    assert made.events[0].onset > heard[0].onset


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("wishes", [{"tempo_changes": True}, FREE, {"tempo": 77.0, "metre": (3, 4)}])
def test_a_state_goes_on_with_the_clock_of_its_stream(
    scheme: str, wishes: dict[str, Any], tmp_path: Path
) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(DUET)
    stream = sampler.stream(endless=True, random_seed=8, **wishes)
    while stream._lane.count < 1500:
        next(stream)
    snapshot = stream.state
    rest = list(itertools.islice(stream, 40))
    snapshot.save(tmp_path / "live.safetensors")
    loaded = sampler.load_state(tmp_path / "live.safetensors")
    assert loaded.context == snapshot.context
    for state in (snapshot, loaded):
        again = sampler.stream(state=state, endless=True, random_seed=8, **wishes)
        assert list(itertools.islice(again, 40)) == rest


def test_a_saved_session_knows_how_long_each_program_has_rested(tmp_path: Path) -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed([*scale(4), *scale(4, program=-1), (0, 1, 50, 70)]))
    path = sampler.save_state(tmp_path / "state.safetensors")
    heard = [
        {program: int(row.max()) for program, row in state.grammar.rows.items()}
        for state in (sampler.state, sampler.load_state(path))
    ]
    assert set(heard[0]) == {0, 70, -1}
    assert heard[0][70] < heard[0][0]
    assert heard[1] == heard[0]


def test_a_session_of_the_format_before_can_be_loaded(tmp_path: Path) -> None:
    sampler = tiny_sampler()
    sampler.prime(DUET)
    path = sampler.save_state(tmp_path / "new.safetensors")
    with safetensors.safe_open(str(path), framework="numpy") as file:
        about = json.loads(file.metadata()["melodia"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    assert about["context"].pop("tempi") == []
    about["format_version"] = 2
    del arrays["heard"], about["crc32"]
    safetensors.numpy.save_file(arrays, tmp_path / "old.safetensors", metadata={"melodia": json.dumps(about)})
    assert sampler.load_state(tmp_path / "old.safetensors").context == sampler.load_state(path).context


def test_few_grammars_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melodia.sampler.primed.GRAMMARS", 3)
    sampler = tiny_sampler()
    sampler.prime(DUET)
    for low in range(40, 46):
        sampler._lane(sampler.state, Request(pitch_range=(low, 80)))
    assert sampler._grammar.cache_info().currsize == 3


@pytest.mark.parametrize("wishes", [{}, FREE])
def test_seconds_end_where_nothing_says_the_tempo(wishes: dict[str, Any]) -> None:
    """Neither a seed nor a token: as in MIDI it is 120 quarters a minute."""
    sampler = tiny_sampler("Structured")
    stream = sampler.stream(seconds=5.0, random_seed=2, **wishes)
    heard = list(itertools.islice(stream, 5000))
    assert max(event.onset for event in heard) < 6.0
    made = sampler.generate(seconds=5.0, random_seed=2, **wishes)
    assert (made.report.tempo, made.report.bars, made.report.seconds) == (120, 3, 6.0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_state_between_two_notes_of_one_token(scheme: str, tmp_path: Path) -> None:
    """It knows the notes that were made and not heard yet; saved, too."""
    sampler = with_pairs(scheme)
    sampler.prime(DUET)
    wishes = {"endless": True, "random_seed": 8, "tempo_changes": True}
    whole = list(itertools.islice(sampler.stream(**wishes), 70))
    stream, between = sampler.stream(**wishes), 0
    for place in range(60):
        assert next(stream) == whole[place]
        state = stream.state
        states = (
            [state] if not state.waiting else [state, sampler.load_state(state.save(tmp_path / f"{place}"))]
        )
        between += len(states) > 1
        for each in states:
            on = sampler.stream(state=each, **wishes)
            assert list(itertools.islice(on, 8)) == whole[place + 1 : place + 9]
    assert between > 2


# -- notes that end with a token of their own ---------------------------------------------------------------------


def with_pairs(scheme: str = "MIDILike") -> Sampler:
    base = tokenizer_of(scheme)
    pieces = [base.encode(make_seed(scale(8, program=program))).ids for program in (0, 40)]
    config = TokenizerConfig(scheme=scheme, bpe_vocab_size=base.vocabulary.size + 40)
    sampler = tiny_sampler(tokenizer=Tokenizer(config).train_bpe(pieces))
    with torch.no_grad():
        sampler.model.head.bias[list(sampler.vocabulary.expansions)] += 4
    return sampler


@pytest.mark.parametrize("pairs", [False, True])
def test_a_tail_since_the_oldest_open_note_reads_on(pairs: bool) -> None:
    """From every place, in music of two programs and of changing metre."""
    sampler = with_pairs() if pairs else tiny_sampler("MIDILike")
    vocabulary = sampler.vocabulary
    sampler.prime(DUET)
    made = sampler.generate(bars=6, metre_changes=True, random_seed=3)
    ids = [*sampler.tokenizer.encode(DUET).ids.tolist(), *made.tokens.tolist()]
    assert not pairs or set(ids) & set(vocabulary.expansions)
    grammar = Grammar.compile(vocabulary)
    state, whole = grammar.start(), TokenReader(vocabulary)
    expected = [whole.feed(token) for token in ids]
    shorter = 0
    for place, token in enumerate(ids):
        grammar.advance(state, token)
        if state.ends:
            tail = Tail(0, (), tuple(ids[: place + 1])).since(vocabulary, state.ends[0])
            assert tail.since(vocabulary, state.ends[0]) == tail
            shorter += len(tail.ids) < place
            reader = tail.reader(vocabulary)
            read = [moved(reader.feed(later), tail.offset) for later in ids[place + 1 :][:60]]
            assert read == expected[place + 1 :][:60]
    assert shorter > len(ids) / 2


def moved(notes: list[NoteEvent], ticks: int) -> list[NoteEvent]:
    return [note._replace(onset=note.onset + ticks) for note in notes]


def test_notes_that_a_continuation_cut_do_not_sound_again_in_the_next() -> None:
    sampler = tiny_sampler("MIDILike")
    seed = make_seed(scale(2))
    sampler.prime(seed)
    cut = 0
    for random_seed in range(10):
        first = sampler.generate(bars=2, random_seed=random_seed)
        second = sampler.generate(bars=2, random_seed=random_seed, state=first.state)
        cut += len(first.state.grammar.ends)
        assert min(event.onset_beats for event in second.events) >= 0
        joined = notes_of(second.joined_score)
        assert len(joined) == len(notes_of(seed)) + first.report.notes + second.report.notes
    assert cut > 0
