"""The same notes as symusic, an independent reader, on sound files."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import symusic

from melodia.midi import read_score

_NOTE_REPAIRS = (
    "overlapping notes of one pitch cut",
    "notes doubled at one time merged",
    "notes of no length lengthened",
    "note without an end closed",
    "silence shortened",
)


def notes_of(score) -> Counter:
    found: Counter = Counter()
    for track in score.tracks:
        columns = track.notes.numpy()
        rows = (columns[name].tolist() for name in ("time", "duration", "pitch", "velocity"))
        found.update(zip(*rows, [track.is_drum] * len(track.notes), strict=True))
    return found


def compare(data: bytes, name: str) -> bool:
    """Check one file against symusic; False if its notes had to be repaired."""
    score, report = read_score(data)
    theirs = symusic.Score.from_midi(data)
    repaired = sum(finding.count for finding in report.findings if finding.what in _NOTE_REPAIRS)
    ours, other = notes_of(score), notes_of(theirs)
    if not repaired:
        assert ours == other, name
    elif all(finding.what != "silence shortened" for finding in report.findings):
        strikes = Counter((time, pitch, drum) for time, _, pitch, _, drum in ours.elements())
        expected = Counter((time, pitch, drum) for time, _, pitch, _, drum in other.elements())
        closed = sum(finding.count for finding in report.findings if "without an end" in finding.what)
        assert sum((strikes - expected).values()) <= closed, name  # symusic drops notes without an end
        assert sum((expected - strikes).values()) <= repaired, name  # what is missing was reported
    assert score.ticks_per_quarter == theirs.ticks_per_quarter
    return not repaired


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if member.name.lower().endswith(".mid"):
                file = tar.extractfile(member)
                assert file is not None
                yield f"{archive.name}:{member.name}", file.read()


def test_samples(samples_dir):
    paths = sorted(samples_dir.glob("*.mid"))
    if not paths:
        pytest.skip("needs the files of midi_samples")
    for path in paths:
        assert compare(path.read_bytes(), path.name)


def test_some_of_each_corpus(data_dir):
    archives = sorted((data_dir / "corpora").glob("*.tar.gz"))
    assert archives
    for archive in archives:
        clean = sum(compare(data, name) for name, data in islice(members(archive), 8))
        assert clean


@pytest.mark.slow
def test_all_of_each_corpus(data_dir):
    clean = total = 0
    for archive in sorted((data_dir / "corpora").glob("*.tar.gz")):
        for name, data in members(archive):
            clean += compare(data, name)
            total += 1
    assert total > 3000
    assert clean > 0.8 * total
