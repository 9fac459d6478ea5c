"""Thousands of damaged files: read soundly or refused in one line, never anything else."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_cases import CASES, MORE, header
from midi_hostile import HOSTILE
from midi_mutations import mutate
from test_midi_cases import check_sound

from melodia.errors import MidiError
from melodia.midi import midi_bytes, read_score

# Seconds and megabytes that one file may cost. What is promised is 10 s and 500 MB for the whole process; the
# measured costs are a tenth of the time and a third of the memory.
SECONDS, MEGABYTES = 10.0, 500.0


def survive(data: bytes) -> bool:
    """Read damaged bytes; True if they were read."""
    try:
        score, report = read_score(data)
    except MidiError as error:
        text = str(error)
        assert text.startswith("<bytes>: ")
        assert "\n" not in text
        return False
    check_sound(score)
    assert report.notes == score.note_num() > 0
    assert report.seconds < 60 * 60 * 24 * 10
    json.dumps(report.to_dict())
    assert all(line.isprintable() for line in report.lines())
    return True


def sources(samples_dir: Path) -> list[bytes]:
    found = [case.data for case in (*CASES.values(), *MORE.values()) if 0 < len(case.data) < 10_000]
    return found + [path.read_bytes() for path in sorted(samples_dir.glob("*.mid"))]


def test_mutations(samples_dir):
    rng = random.Random(2024)
    files = sources(samples_dir)
    read = 0
    for turn in range(800):
        data = mutate(rng.choice(files), rng)
        if survive(data):
            read += 1
            if turn % 10 == 0:
                score, report = read_score(data)
                assert read_score(midi_bytes(score))[1].notes == report.notes
    assert read > 500  # most damage leaves something to read


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_tracks(content, lie):
    length = len(content) + (5 if lie else 0)
    survive(header() + b"MTrk" + length.to_bytes(4, "big") + content)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_arbitrary_bytes(data):
    survive(data)


def test_every_cut_of_a_file():
    data = CASES["00-good-reference"].data
    outcomes = [survive(data[:length]) for length in range(len(data) + 1)]
    first = outcomes.index(True)
    assert first == 14 + 8 + 4  # the first note-on is complete
    assert all(outcomes[first:])


def test_every_byte_changed():
    data = CASES["00-good-reference"].data
    lost = 0
    for at in range(len(data)):
        for value in (0x00, 0x7F, 0x80, 0xFF, data[at] ^ 0x10):
            lost += not survive(data[:at] + bytes([value]) + data[at + 1 :])
    assert lost <= 1  # a note-on that becomes an unknown meta event whose length happens to fit


@pytest.mark.slow
def test_many_mutations_of_real_files(data_dir):
    files = [path.read_bytes() for path in sorted((data_dir / "malformed").rglob("*.[mM][iI][dD]"))]
    for archive in sorted((data_dir / "corpora").glob("*.tar.gz")):
        with tarfile.open(archive, "r|gz") as tar:
            found = 0
            for member in tar:
                if member.name.endswith(".mid") and member.size < 60_000:
                    file = tar.extractfile(member)
                    assert file is not None
                    files.append(file.read())
                    found += 1
                    if found == 30:
                        break
    files = [data for data in files if data]
    rng = random.Random(99)
    read = sum(survive(mutate(rng.choice(files), rng)) for _ in range(6_000))
    assert read > 4_500


def cost(names: list[str]) -> dict[str, tuple[float, float, str]]:
    """Seconds, peak megabytes and outcome of hostile files, read one after another in another process."""
    script = Path(__file__).with_name("midi_hostile.py")
    done = subprocess.run(
        [sys.executable, str(script), *names], capture_output=True, text=True, check=True, cwd=script.parent.parent,
        timeout=600,
    )  # fmt: skip
    found = {}
    for line in done.stdout.splitlines():
        name, seconds, megabytes, outcome = line.split("\t")
        found[name] = (float(seconds), float(megabytes), outcome)
    return found


QUICK = [
    "random damage",
    "zeros",
    "texts",
    "notes at the limit",
    "gaps",
    "tiny bars",
    "parts",
    "empty chunks",
    "hundred megabytes",
]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(QUICK, id="quick"),
        pytest.param([name for name in HOSTILE if name not in QUICK], id="others", marks=pytest.mark.slow),
    ],
)
def test_hostile_files_cost_little(names):
    found = cost(names)
    assert list(found) == names
    for name, (seconds, megabytes, _) in found.items():
        assert seconds < SECONDS, name
        assert megabytes < MEGABYTES, name
    if names is QUICK:
        outcomes = {name: outcome for name, (_, _, outcome) in found.items()}
        assert "more than 200,000 events that are neither notes" in outcomes["texts"]
        assert outcomes["notes at the limit"].startswith("249001 notes")
        assert int(outcomes["tiny bars"].split()[2]) <= 20_000
        assert "81,920 parts" in outcomes["parts"]
        assert "more than 10,000 chunks" in outcomes["empty chunks"]
        assert "too large for MIDI (100.0 MiB, limit 8 MiB)" in outcomes["hundred megabytes"]
