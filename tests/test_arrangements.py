"""Arrangements: pieces for other instruments with a groove under them, from which the bundled model learns bands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from sampler_helpers import make_seed
from symusic.core import ScoreTick

from benchmarks import arrangements
from benchmarks.arrangements import BASSES, CHORDS, LEADS, arrange, fits, repeated
from melodia.midi import read_score, write_midi
from melodia.midi.bars import bar_table

BARS = 16
CHORD = [(bar * 4 + beat, 1, pitch, 0) for bar in range(BARS) for beat in (0, 2) for pitch in (48, 55, 64)]
TUNE = [(beat, 1, 72 + beat % 5, 68) for beat in range(4 * BARS)]


def piece(metre: tuple[int, int] = (4, 4)) -> ScoreTick:
    score = make_seed([*CHORD, *TUNE], metre)
    for track in score.tracks:
        for number, note in enumerate(track.notes):
            note.velocity = 60 + number % 7
    return score


def groove(bars: int = 4, metre: tuple[int, int] = (4, 4), tpq: int = 96) -> ScoreTick:
    """Bass drum on one and three, snare on two and four; the hit on the last beat is missing."""
    length = 4 * metre[0] // metre[1] * bars
    return make_seed([(beat, 0.25, 36 + 2 * (beat % 2), -1) for beat in range(length - 1)], metre, tpq=tpq)


def test_the_parts_of_an_arrangement() -> None:
    made = arrange(piece(), groove(), np.random.default_rng(3))
    assert made is not None
    lead, chords, bass, drums = made.tracks
    assert [note.pitch for note in lead.notes] == [note[2] for note in TUNE]
    assert lead.program in LEADS
    assert {note.pitch for note in chords.notes} == {55, 64}
    assert chords.program in CHORDS
    assert {note.pitch for note in bass.notes} == {48}
    assert bass.program in BASSES
    assert drums.is_drum
    assert {note.time % 480 for note in drums.notes} == {0}, "beat on beat, whatever the resolutions"
    assert bar_table(made).end == bar_table(piece()).end
    assert sum(len(track.notes) for track in made.tracks[:3]) == len(CHORD) + len(TUNE)


def test_a_groove_goes_on_to_the_end() -> None:
    bars = bar_table(piece())
    hits = repeated(groove(bars=6), bars, 4 * 4 * 480, 480)
    times = [note.time // 480 for note in hits]
    assert times == list(range(16, 4 * BARS)), (
        "from the fifth bar on, without its own last bar, which is not whole"
    )
    assert [note.pitch for note in hits[:4]] == [36, 38, 36, 38]


def test_metres_that_fit() -> None:
    assert fits(piece(), groove())
    assert fits(piece((2, 4)), groove()), "half a bar of the groove"
    assert fits(piece((2, 2)), groove())
    assert not fits(piece((3, 4)), groove())
    assert not fits(piece((6, 8)), groove(metre=(3, 4))), "as long, but other beats"


def test_what_is_no_material() -> None:
    rng = np.random.default_rng(0)
    flat = piece()
    for track in flat.tracks:
        for note in track.notes:
            note.velocity = 64
    assert arrange(flat, groove(), rng) is None, "nobody set its dynamics"
    assert arrange(make_seed([*TUNE, (0, 1, 38, -1)]), groove(), rng) is None, "it has drums"
    assert arrange(make_seed(TUNE[:16]), groove(), rng) is None, "four bars"
    assert arrange(piece((3, 4)), groove(), rng) is None


def test_the_script(tmp_path: Path) -> None:
    for name, score in (
        ("songs/a", piece()),
        ("songs/b", piece((2, 2))),
        (f"{arrangements.GROOVES}/g", groove()),
    ):
        path = tmp_path / "corpora" / "train" / f"{name}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_midi(score, path)
    (tmp_path / "corpora" / "train" / "songs" / "broken.mid").write_bytes(b"no music")
    script = [sys.executable, arrangements.__file__]
    made = []
    for out in (tmp_path / "out", tmp_path / "again"):
        run = subprocess.run(
            [*script, str(tmp_path / "corpora"), "--out", str(out)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.startswith("2 arrangements in ")
        made.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert list(made[0]) == ["songs-a.mid", "songs-b.mid"]
    assert made[0] == made[1], "the same random seed, the same arrangements"
    score, _ = read_score(tmp_path / "out" / "songs-a.mid")
    assert any(track.is_drum for track in score.tracks)
    run = subprocess.run(
        [*script, str(tmp_path / "no"), "--out", str(tmp_path / "x")], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.startswith("arrangements.py: ")
