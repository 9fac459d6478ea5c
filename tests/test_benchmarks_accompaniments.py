"""What is counted of parts, and of how parts that were added fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sampler_helpers import make_seed, scale

from benchmarks import accompaniments, habits
from melodia.midi import bar_table, write_midi
from melodia.notes import notes_of_score
from melodia.sampler.habits import HABITS

BARS = accompaniments.BARS


def test_habits_by_hand() -> None:
    """A bass on every bar line that holds for two beats, under quarter notes."""
    bass = [(4.0 * bar, 2.0, 36, 32) for bar in range(8)]
    score = make_seed([*scale(8), *bass, (32.0, 4.0, 60, 0)])
    found = {part.program: part for part in habits.parts_of(notes_of_score(score), bar_table(score), 480)}
    assert set(found) == {0, 32}
    assert found[32].begins.tolist() == [[8, 8], [16, 0], [0, 0], [0, 0]], "on beat 2 it is not free"
    assert found[32].length == 2.0
    assert not list(habits.parts_of(notes_of_score(make_seed(scale(8))), bar_table(make_seed(scale(8))), 480))


def test_the_table_is_printed_as_it_stands_in_the_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habits, "FEW", 1)
    write_midi(make_seed([*scale(8), *scale(8, program=32)]), tmp_path / "a.mid")
    habits.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(HABITS)
    assert lines[5].startswith("    Habit(")
    assert lines[5].endswith("# 4: 1 parts, 1 tracks")


def test_how_a_part_fits_by_hand() -> None:
    tune = scale(BARS)
    unison = make_seed([*tune, *((onset, length, pitch - 12, 32) for onset, length, pitch, _ in tune)])
    rubs = make_seed(
        [*tune, *((onset, length, 61 if pitch % 12 == 0 else 60, 32) for onset, length, pitch, _ in tune)]
    )
    same, other = (accompaniments.fit(score, 32, unison) for score in (unison, rubs))
    assert same["time in the others' classes"] == same["onsets with the others'"] == 1.0
    assert same["classes like the real part's"] == pytest.approx(1.0)
    assert same["onsets a quarter"] == same["bar lines it begins at"] == 1.0
    assert other["time in the others' classes"] < other["time a semitone off them"] > 0.1
    rest = accompaniments.without(unison, 32)
    assert np.unique(notes_of_score(rest).program).tolist() == [0]
