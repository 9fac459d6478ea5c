"""New notes beside music that stays: it is heard as it is, at its places and in the order of its tokens."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_helpers import make_seed, notes_of, scale, tiny_sampler
from test_sampler_fill import outside

from melodia import engine
from melodia.__main__ import main
from melodia.cli.fill import bar_numbers
from melodia.errors import ConfigError
from melodia.midi import read_score
from melodia.sampler import Sampler
from melodia.sampler.strangers import soloists
from melodia.tokenizer import Tokenizer

TUNE = scale(4, program=40)


def heard(sampler: Sampler, made) -> list[tuple[int, float, int]]:
    """The notes among the new tokens: program, onset in quarter notes behind the join, pitch."""
    vocabulary, before = sampler.vocabulary, sampler.state
    reader = before.tail.reader(vocabulary)
    offset = before.tail.offset - before.context.join
    found = []
    for token in made.tokens.tolist():
        found += reader.feed(token)
    quarter = reader.ticks_per_quarter
    return [(note.program, round((note.onset + offset) / quarter, 6), note.pitch) for note in found]


def order(note: tuple[int, float, int]) -> tuple[float, int]:
    return note[1], note[0] if note[0] >= 0 else 128


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("metre", [(4, 4), (3, 4), (6, 8), (5, 4)])
def test_what_stays_is_heard_at_its_places(seeded: bool, metre: tuple[int, int]) -> None:
    sampler = tiny_sampler()
    tune = make_seed([*scale(4, metre, program=40, length=0.7), *scale(4, metre, program=-1)], metre)
    sampler.prime(make_seed(scale(3, metre), metre) if seeded else None)
    wishes: dict[str, Any] = {} if seeded else {"metre": metre, "tempo": 100}
    for made in sampler.generate_many(4, bars=4, beside=tune, programs=(0, 73), random_seed=2, **wishes):
        notes = heard(sampler, made)
        stays = sorted((program, onset, pitch) for program, onset, pitch, *_ in notes_of(tune))
        assert sorted(note for note in notes if note[0] in (40, -1)) == stays
        for note, after in pairwise(notes):
            if {note[0], after[0]} & {40, -1}:
                assert order(note) <= order(after), "programs come in their order"
        assert {event.program for event in made.events} <= {0, 73}
        assert len(made.events) == sum(note[0] in (0, 73) for note in notes) == made.report.notes > 0
        assert {track.program for track in made.score.tracks} <= {0, 73}
        assert made.report.bars == 4


@pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")
def test_the_engine_and_the_reference_agree() -> None:
    sampler = tiny_sampler()
    reference = Sampler(sampler.model, sampler.tokenizer, backend="reference")
    wishes: dict[str, Any] = {"bars": 4, "beside": make_seed(TUNE), "programs": (0, 73), "branches": 3}
    made = []
    for each in (sampler, reference):
        each.prime(make_seed(scale(2)))
        made.append([one.tokens.tolist() for one in each.generate_many(3, random_seed=4, **wishes)])
    assert made[0] == made[1]


def test_a_stream_accompanies_too() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(2)))
    wishes: dict[str, Any] = {"bars": 3, "beside": make_seed(TUNE), "programs": (0,), "random_seed": 5}
    events = sorted(sampler.stream(**wishes), key=lambda event: (event.onset, event.pitch))
    assert events == sorted(sampler.generate(**wishes).events, key=lambda event: (event.onset, event.pitch))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 63), st.integers(1, 20), st.integers(40, 80), st.sampled_from([-1, 5, 40])),
        min_size=1,
        max_size=40,
    )
)
def test_any_music_stays(notes: list[tuple[int, int, int, int]]) -> None:
    """Unisons that overlap in one program are heard once; all else comes at its place."""
    sampler = tiny_sampler()
    tune = make_seed([(onset / 4, length / 4, pitch, program) for onset, length, pitch, program in notes])
    sampler.prime(None)
    made = sampler.generate(
        bars=4, beside=tune, programs=(0,), metre=(4, 4), tempo=100, random_seed=1, silent_bars=True
    )
    ids = sampler.tokenizer.encode(tune).ids
    wanted = sampler.tokenizer.decode(ids)  # as the tokens say it
    stays = {(program, onset, pitch) for program, onset, pitch, *_ in notes_of(wanted) if onset < 16}
    got = [note for note in heard(sampler, made) if note[0] != 0]
    assert len(got) == len(set(got))
    assert set(got) == stays


def test_new_programs_are_asked_for() -> None:
    """A program that nobody has heard plays in the second bar at the latest."""
    sampler = tiny_sampler()
    sampler.prime(None)
    made = sampler.generate(
        bars=4, beside=make_seed(TUNE), programs=(73,), metre=(4, 4), tempo=90, random_seed=1
    )
    assert min(event.onset_beats for event in made.events) < 8


def test_nobody_rests_longer_than_a_bar_and_as_before() -> None:
    """Notes that stay make no bar full."""
    sampler = tiny_sampler()
    with torch.no_grad():  # a model that would rather not play
        sampler.model.head.bias[list(sampler.vocabulary.ids_of("Program"))] -= 4.0
        sampler.model.head.bias[list(sampler.vocabulary.ids_of("Bar"))] += 6.0
    sampler = Sampler(sampler.model, sampler.tokenizer)
    sampler.prime(None)
    made = sampler.generate(
        bars=12, beside=make_seed(scale(12)), programs=(73,), metre=(4, 4), tempo=90, random_seed=1
    )
    spans = sorted((event.onset_beats, event.onset_beats + event.duration_beats) for event in made.events)
    ends = np.maximum.accumulate([0.0, *(end for _, end in spans)])
    rests = [onset - end for (onset, _), end in zip([*spans, (48.0, 48.0)], ends, strict=True)]
    assert max(rests) < 12, "asked for in the bar behind the first silent one"


def test_soloists() -> None:
    chords = make_seed([*scale(2), (0, 8, 40, 0), *scale(2, program=40), *scale(2, program=73, length=1.5)])
    assert soloists(chords, (0, 40, 73)) == {40}
    assert soloists(chords, (32, 4, -1)) == soloists(None, (32, 4, -1)) == {32}


@pytest.mark.parametrize("programs", [(32, 16), (32,), (32, 73)])
def test_a_soloist_plays_one_note_at_a_time(programs: tuple[int, ...]) -> None:
    sampler = tiny_sampler()
    sampler.prime(None)
    overlaps = dict.fromkeys(programs, 0)
    for made in sampler.generate_many(
        6, bars=4, beside=make_seed(scale(4)), programs=programs, metre=(4, 4), tempo=90, random_seed=1
    ):
        for program in programs:
            spans = sorted(
                (event.onset_beats, event.onset_beats + event.duration_beats)
                for event in made.events
                if event.program == program
            )
            overlaps[program] += sum(after[0] < before[1] - 1e-6 for before, after in pairwise(spans))
    assert {program for program, count in overlaps.items() if count} == set(programs) & {16}


def test_a_part_is_made_anew() -> None:
    sampler = tiny_sampler()
    piece = make_seed([*scale(8), *scale(8, program=40, length=0.55), *scale(8, program=-1)])
    (filling,) = sampler.fill(piece, (3, 4), programs=[0], beside=True, random_seed=1)
    others = [note for note in notes_of(piece) if note[0] != 0]
    assert [note for note in notes_of(filling.score) if note[0] != 0] == others
    assert outside(filling.score, 8, 16) == outside(piece, 8, 16)
    assert filling.notes_before == 8
    assert len(notes_of(filling.score)) == len(notes_of(piece)) - 8 + filling.continuation.report.notes
    (added,) = sampler.fill(piece, (1, 8), programs=(73, 32), beside=True, random_seed=1)
    assert [note for note in notes_of(added.score) if note[0] in (0, 40, -1)] == notes_of(piece)
    assert added.notes_before == 0
    (alone,) = sampler.fill(make_seed(scale(6)), (2, 3), programs=(0,), beside=True, random_seed=1)
    assert outside(alone.score, 4, 12) == outside(make_seed(scale(6)), 4, 12)


def test_what_cannot_be() -> None:
    sampler, tune = tiny_sampler(), make_seed(TUNE)
    with pytest.raises(ConfigError, match="`beside` needs `programs`"):
        sampler.generate(bars=2, beside=tune)
    with pytest.raises(ConfigError, match="`beside` needs `programs`"):
        sampler.fill(tune, (1, 2), beside=True)
    with pytest.raises(ConfigError, match="`programs` 40 already play in the `beside` music"):
        sampler.generate(bars=2, beside=tune, programs=(0, 40), metre=(4, 4), tempo=100)
    with pytest.raises(ConfigError, match="`recall` repeats bars"):
        sampler.generate(bars=2, beside=tune, programs=(0,), recall=0.5)
    with pytest.raises(ConfigError, match="`beside` must be True or False"):
        sampler.fill(tune, (1, 2), beside="yes")  # type: ignore[arg-type]
    for scheme in ("TSD", "PerTok"):
        with pytest.raises(ConfigError, match="needs a model with REMI tokens"):
            tiny_sampler(scheme).generate(bars=2, beside=tune, programs=(0,), metre=(4, 4), tempo=100)
    ids = [Tokenizer().encode(tune).ids]
    pairs = Tokenizer().train_bpe(ids, size=Tokenizer().vocabulary.size + 4)
    with pytest.raises(ConfigError, match="without byte pairs"):
        tiny_sampler(tokenizer=pairs).generate(bars=2, beside=tune, programs=(0,), metre=(4, 4), tempo=100)
    for name, value in (("pitch_range", (60, 84)), ("max_polyphony", 3)):
        with pytest.raises(ConfigError, match=f"`{name}` would also forbid"):
            sampler.generate(bars=2, beside=tune, programs=(0,), **{name: value})
    for said, missing in (({}, "metre"), ({"metre": (4, 4)}, "tempo")):
        with pytest.raises(ConfigError, match=f"without a seed `beside` needs `{missing}`"):
            sampler.generate(bars=2, beside=tune, programs=(0,), **said)


def test_the_command(samples_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    song, out = samples_dir / "soldiers_joy.mid", tmp_path / "a.mid"
    arguments = ["fill", str(song), "--bars", "9-10", "--out", str(out), "--random-seed", "1"]
    assert main([*arguments, "--beside", "--programs", "32", "--branches", "2"]) == 0
    before, after = (notes_of(read_score(path)[0]) for path in (song, out))
    assert [note for note in after if note[0] != 32] == [note for note in before if note[0] != 32]
    assert before != after
    assert main([*arguments, "--beside"]) == 2
    assert "--beside needs --programs" in capsys.readouterr().err
    assert bar_numbers("9-10") == (9, 10)
    assert np.isfinite([note[1] for note in after]).all()
