"""Whatever the score, its tokens are grammatical, come back the same, and lose no more than the findings say."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grammar_helpers import content, faults, grammar_of, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from miditok_oracle import encode, make_oracle
from symusic import Note, Score, Tempo, TimeSignature, Track

from melodia.errors import MidiError, TokenizerError
from melodia.midi import midi_bytes, read_score
from melodia.tokenizer import SCHEMES
from melodia.tokenizer.config import METRES
from melodia.tokenizer.grid import representable, to_grid


@lru_cache(maxsize=4)
def oracle_of(scheme: str) -> Any:
    return make_oracle(tokenizer_of(scheme).config)


@st.composite
def scores(draw: Any) -> Any:
    """Scores of every resolution, with metres and tempi anywhere; notes may overlap between tracks."""
    quarter = draw(st.sampled_from([1, 7, 24, 96, 120, 384, 480, 960, 1000]))
    score = Score(quarter)
    time = st.integers(0, 12 * quarter)
    for _ in range(draw(st.integers(1, 3))):
        track = Track(program=draw(st.integers(0, 2)), is_drum=draw(st.booleans()))
        for _ in range(draw(st.integers(1, 8))):
            length = draw(
                st.integers(1, 40 * quarter) if draw(st.booleans()) else st.integers(1, 2 * quarter)
            )
            pitch, velocity = draw(st.integers(35, 40)), draw(st.integers(1, 127))
            track.notes.append(Note(draw(time), length, pitch, velocity))
        score.tracks.append(track)
    for tick in sorted(draw(st.sets(time, max_size=4))):
        score.time_signatures.append(
            TimeSignature(tick, draw(st.integers(1, 20)), draw(st.sampled_from([1, 2, 4, 8, 16, 32])))
        )
    for tick in sorted(draw(st.sets(time, max_size=4))):
        score.tempos.append(Tempo(tick, qpm=draw(st.floats(1, 2000))))
    return score


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(SCHEMES), scores())
def test_any_score(scheme: str, score: Any) -> None:
    score = read_score(midi_bytes(score))[0]
    tokenizer = tokenizer_of(scheme)
    encoding = tokenizer.encode(score, bos=True, eos=True)
    assert grammar_of(scheme).accepts(encoding.ids.tolist()) is None
    back = tokenizer.decode(encoding.ids)
    assert faults(back) == []
    again = tokenizer.encode(back)
    assert np.array_equal(again.ids, encoding.ids[1:-1])
    lost = [f for f in again.findings if f.kind in ("repaired", "dropped", "quantised")]
    assert lost == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("metres", [[(4, 4), (1, 2)], [(13, 8), (3, 4)]])
@pytest.mark.parametrize("tick", [4, 5, 6, 15])
def test_a_metre_that_begins_half_a_tick_of_the_grid_later(
    scheme: str, metres: list[tuple[int, int]], tick: int
) -> None:
    """Ten ticks of the score are one of the grid: of two metres at one place the second holds."""
    score = Score(480)
    score.tracks.append(Track())
    score.tracks[0].notes.extend([Note(0, 1, 35, 1), Note(tick, 1, 35, 1), Note(1000, 100, 36, 9)])
    for start, metre in zip((0, tick), metres, strict=True):
        score.time_signatures.append(TimeSignature(start, *metre))
    ids = tokenizer_of(scheme).encode(score, bos=True, eos=True).ids
    assert grammar_of(scheme).accepts(ids.tolist()) is None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([scheme for scheme in SCHEMES if scheme != "PerTok"]), scores())
def test_any_score_is_written_as_miditok_does(scheme: str, score: Any) -> None:
    score = read_score(midi_bytes(score))[0]
    tokenizer = tokenizer_of(scheme)
    theirs = encode(oracle_of(scheme), to_grid(score, tokenizer.config))
    assert np.array_equal(tokenizer.encode(score).ids, theirs)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEMES), scores())
def test_onsets_move_by_half_a_unit_at_most(scheme: str, score: Any) -> None:
    """And what else goes is told: notes in = notes out + merged + dropped."""
    score = read_score(midi_bytes(score))[0]
    config = tokenizer_of(scheme).config
    grid = to_grid(score, config)
    half = 0.5 / config.positions_per_beat + 1e-6
    if scheme == "PerTok":
        half = 1 / (8 * config.positions_per_beat) + 1e-6
    assert grid.moved["onset"].max() <= half
    gone = sum(f.count for f in grid.findings if f.what.startswith(("note doubled", "drum note")))
    assert len(grid.onset) == score.note_num() - gone


@pytest.mark.parametrize("denominator", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("numerator", [1, 2, 3, 4, 6, 7, 12, 15, 24])
def test_a_metre_is_written_by_one_of_its_length(numerator: int, denominator: int) -> None:
    found = representable(numerator, denominator)
    if found is None:
        assert numerator * 16 % denominator or not any(
            top * denominator == numerator * bottom for bottom, tops in METRES.items() for top in tops
        )
    else:
        assert found[0] * denominator == numerator * found[1]
        assert found[0] in METRES[found[1]]
        assert found == (numerator, denominator) or numerator not in METRES.get(denominator, ())


def test_odd_files(data_dir: Path) -> None:
    """Every file that reading accepts is encoded, or refused in one line."""
    encoded = 0
    for path in sorted((data_dir / "malformed").rglob("*.mid"))[::2]:
        try:
            score = read_score(path)[0]
            ids = tokenizer_of("REMI").encode(score).ids
        except (MidiError, TokenizerError):
            continue
        encoded += 1
        if len(ids) < 5_000:
            assert grammar_of("REMI").accepts(ids.tolist()) is None, path
            again = tokenizer_of("REMI").encode(tokenizer_of("REMI").decode(ids)).ids
            assert np.array_equal(again, ids), path
    assert encoded > 5


def test_content_compares_what_it_says() -> None:
    """The helper that other tests trust: another velocity, tempo or metre is another content."""
    tokenizer = tokenizer_of("REMI")
    line = "Bar_None TimeSig_3/4 Position_0 Tempo_100.0 Program_0 Pitch_60 Velocity_63 Duration_1.0.12"
    kept = content(tokenizer.decode([tokenizer.vocabulary.index[t] for t in line.split()]))
    for old, new in (
        ("Velocity_63", "Velocity_67"),
        ("Tempo_100.0", "Tempo_104.0"),
        ("3/4", "4/4"),
        ("n_0", "n_1"),
    ):
        other = [tokenizer.vocabulary.index[t] for t in line.replace(old, new).split()]
        assert content(tokenizer.decode(other)) != kept
