"""The figures of benchmarks/continuations.py on music made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sampler_helpers import TPQ, make_seed, scale

from benchmarks import fillings
from benchmarks.continuations import compare, main, table, texture
from melodia.notes import notes_of_score

TUNE = [(beat, 1, pitch, 73) for beat, pitch in enumerate([72, 74, 76, 77, 79, 81, 83, 84] * 4)]
BASS = [(beat, 4, 48, 32) for beat in range(0, 32, 4)]
DRUMS = [(beat, 1, 38, -1) for beat in range(32)]


def test_music_keeps_all_of_itself() -> None:
    piece = make_seed([*TUNE, *BASS, *DRUMS])
    found = compare(piece, piece)
    for name, value in found.items():
        if "drift" in name or name in ("programs, distance", "programs lost", "bars of drums alone"):
            assert value == pytest.approx(0), name
        if name == "velocity spread, ratio":
            assert np.isnan(value), "there is one velocity"
        elif "ratio" in name or name == "seed's key":
            assert value == pytest.approx(1), name
    assert found["drums' share"] == found["drums' share, seed"] == pytest.approx(32 / 72)
    assert found["notes repeated"] == found["notes repeated, seed"] == pytest.approx(8 / 40), (
        "the bass alone stays"
    )


def test_what_is_lost_is_seen() -> None:
    seed = make_seed([*TUNE, *BASS, *DRUMS])
    music = make_seed([*((on, length, pitch - 12, of) for on, length, pitch, of in TUNE[:16]), *DRUMS])
    found = compare(seed, music)
    assert found["top drift"] == pytest.approx(-12)
    assert found["programs lost"] == 1
    assert found["bars of drums alone"] == pytest.approx(0.5)
    assert found["voices, ratio"] == pytest.approx(0.5)
    assert found["drums' share"] == pytest.approx(32 / 48)


def test_notes_outside_their_own_range() -> None:
    seed = make_seed([*TUNE, *BASS, *DRUMS])
    music = make_seed(
        [(0, 1, 86, 73), (1, 1, 87, 73), (2, 1, 70, 73), (0, 4, 50, 32), (4, 4, 72, 32), (0, 1, 90, 0)]
    )
    assert compare(seed, seed)["outside its own range"] == 0
    assert compare(seed, music)["outside its own range"] == pytest.approx(2 / 5)
    assert np.isnan(compare(seed, make_seed(scale(2, program=4)))["outside its own range"])


def test_chords_in_single_lines() -> None:
    seed = make_seed([*TUNE, *BASS, *[(beat, 1, pitch, 0) for beat in range(4) for pitch in (60, 64)]])
    music = make_seed([*TUNE, *BASS, *[(beat, 4, 55, 32) for beat in range(0, 16, 4)]])
    assert compare(seed, seed)["chords in single lines"] == 0
    assert compare(seed, music)["chords in single lines"] == pytest.approx((0 + 0.5) / 2)


def test_a_texture_by_hand() -> None:
    found = texture(make_seed([(0, 4, 60, 0), (0, 2, 64, 0), (2, 2, 62, 0)]))
    assert found.voices == 2
    assert found.part is not None
    assert found.part.chord == 1.5
    assert (found.part.step, found.part.repeated) == (2, 0)
    assert found.notes == 3
    assert found.top.tolist() == [63]
    assert found.bottom.tolist() == [60]
    assert found.pitch.tolist() == [62]


def test_a_table_leaves_out_what_is_undefined() -> None:
    lines = table({"one": [{"x": 1.0}, {"x": float("nan")}, {"x": 2.0}], "other": [{}]})
    assert lines[1].split() == ["x", "1.500", "nan"]


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from melodia.midi import write_midi

    folder = tmp_path / "pieces"
    for name in ("a", "b"):
        (folder / "set" / name).mkdir(parents=True)
        write_midi(make_seed(scale(32)), folder / "set" / name / "NaN.mid")
    main(["--pieces", str(folder), "--count", "2", "--times", "1", "--json", str(tmp_path / "x.json")])
    printed = capsys.readouterr().out
    assert "held-out" in printed
    assert "in the seed's scale" in printed
    assert np.isfinite(float(printed.splitlines()[1].split()[-1]))
    real = json.loads((tmp_path / "x.json").read_text())["real"]
    assert sorted(real) == ["set/a/NaN.mid", "set/b/NaN.mid"]
    assert real["set/a/NaN.mid"]["velocity spread, ratio"] is None


def test_edges_by_hand() -> None:
    notes = notes_of_score(
        make_seed([(0, 4, 48, 0), (2, 1, 60, 0), (3, 1, 64, 0), (4, 1, 67, 0), (4, 2, 52, 0)])
    )
    found = fillings.edge(notes, TPQ, 4 * TPQ)
    assert found["step of the top"] == 3
    assert found["step of the bottom"] == 60 - 52
    assert found["pitch classes alike"] == pytest.approx(0.5)  # C and E, G and E
    assert fillings.edge(notes, TPQ, 0) == {}


def test_fillings_are_measured(samples_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.mid").write_bytes((samples_dir / "petzold_minuet_g_major.mid").read_bytes())
    fillings.main([str(tmp_path), "--times", "1", "--json", str(tmp_path / "a.json")])
    assert "nats a token behind" in capsys.readouterr().out
    columns = json.loads((tmp_path / "a.json").read_text())
    assert set(columns) == {"real", "one draw", "filled"}
    assert all(len(rows) == 1 and rows[0]["nats a token behind"] > 0 for rows in columns.values())
