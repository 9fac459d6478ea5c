"""Hostile MIDI files, up to the largest size that is read; run as a script it prints the cost of each.

python tests/midi_hostile.py NAME...   prints NAME, seconds, peak memory in MB, outcome
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from midi_cases import EOT, GOOD, chunk, header, smf, vlq

SIZE = (8 << 20) - 100
NOTE = b"\0\x90\x3c\x40\1\x80\x3c\0"


def track(content: bytes) -> bytes:
    return header() + chunk(content[: SIZE - 22])


def fill(event: bytes, count: int = 1 << 30, end: bytes = NOTE) -> bytes:
    """A track of one event over and over, and a note."""
    count = min(count, (SIZE - 22 - len(end)) // len(event))
    return track(event * count + end)


def parts(tracks: int) -> bytes:
    """A note of each program on each channel of each track, and a controller."""
    notes = (
        bytes([0, 0xC0 | place % 16, place // 16, 0, 0x90 | place % 16, 60, 64, 1, 0x80 | place % 16, 60, 0])
        for place in range(16 * 128)
    )
    return smf(*[b"\0\xb0\x07\x64" + b"".join(notes) + EOT] * tracks)


def random_events() -> bytes:
    rng = random.Random(7)
    return track(b"".join(b"\0\xf4\xf5" + rng.randbytes(20) for _ in range(SIZE // 23)))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "random": lambda: track(random.Random(1).randbytes(SIZE)),
    "random damage": random_events,
    "zeros": lambda: fill(b"\0"),
    "all 0xff": lambda: fill(b"\xff"),
    "all 0x80": lambda: fill(b"\x80"),
    "texts": lambda: fill(b"\0\xff\1\0"),
    "texts at the limit": lambda: fill(b"\0\xff\1\0", 199_000),
    "tempi": lambda: fill(b"\1\xff\x51\3\x07\xa1\x20"),
    "changing tempi at the limit": lambda: fill(b"\1\xff\x51\3\x07\xa1\x20\1\xff\x51\3\x08\xa1\x20", 99_000),
    "changing metres at the limit": lambda: fill(
        b"\1\xff\x58\4\x04\2\x18\x08\1\xff\x58\4\x03\2\x18\x08", 99_000, b"\xff\xff\x7f" + NOTE[1:]
    ),
    "changing keys at the limit": lambda: fill(b"\1\xff\x59\2\1\0\1\xff\x59\2\0\0", 99_000),
    "programs at the limit": lambda: fill(b"\0\xc0\1" + NOTE + b"\0\xc0\2", 99_000),
    "parts": lambda: parts(40),
    "system exclusive": lambda: fill(b"\0\xf0\1\xf7", 199_000),
    "system exclusive without end": lambda: fill(b"\0\xf0\1\1\x05\xf4", 199_000),
    "controllers": lambda: fill(b"\1\xb0\x07\x40", 990_000),
    "controllers of all kinds": lambda: track(
        b"".join(b"\1" + bytes([0xB0 | i % 16, i % 119, i % 128]) for i in range(990_000)) + NOTE
    ),
    "notes at the limit": lambda: fill(NOTE, 249_000),
    "notes over the limit": lambda: fill(NOTE),
    "overlapping notes": lambda: track(b"\1\x90\x3c\x40" * 249_000 + b"\0\x80\x3c\0" * 249_000),
    "doubled notes": lambda: track(b"\0\x90\x3c\x40" * 249_000 + b"\1\x80\x3c\0" * 249_000),
    "stuck notes": lambda: track(b"\1\x90\x3c\x40" * 249_000),
    "stuck notes of all pitches": lambda: track(
        b"".join(b"\1" + bytes([0x90 | i % 16, i % 128, 64]) for i in range(249_000))
    ),
    "gaps": lambda: fill(b"\xff\xff\xff\x7f\x90\x3c\x40\x7f\x80\x3c\0", 240_000),
    "gaps just under the limit": lambda: fill(b"\x87\xbf\x7f\x90\x3c\x40\x7f\x80\x3c\0", 240_000),
    "tiny bars": lambda: (
        header(division=32767)
        + chunk(b"\0\xff\x58\4\1\5\x18\x08" + b"\x8f\xff\x7f\x90\x3c\x40\x7f\x80\x3c\0" * 100_000)
    ),
    "long deltas": lambda: fill(b"\xff\xff\xff\xff\xff\x7f\xb0\x07\x40", 199_000),
    "data bytes above 127": lambda: fill(b"\0\x90\x3c\xc0", 199_000),
    "end marks": lambda: fill(b"\0\xff\x2f\0" + NOTE, 190_000),
    "empty chunks": lambda: header() + chunk(b"") * (SIZE // 8),
    "unknown chunks": lambda: header() + chunk(b"", b"ABCD") * (SIZE // 8 - 10) + GOOD[14:],
    "chunks that lie": lambda: header() + b"MTrk\xff\xff\xff\xff" * (SIZE // 8 - 10) + GOOD[14:],
    "line ends": lambda: header()[:-1] + b"\r\n" * (SIZE // 2),
    "hundred megabytes": lambda: GOOD + bytes(100 << 20),
    "long track name": lambda: fill(b"\0\xff\3" + vlq(4 << 20) + b"x" * (4 << 20)),
}


def peak_megabytes() -> float:
    """The most memory that this process has held.

    From VmHWM where the system has it: ru_maxrss begins with the memory of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def main(names: list[str]) -> None:
    from melodia.errors import MidiError
    from melodia.midi import read_score

    for name in names or list(HOSTILE):
        data = HOSTILE[name]()
        start = time.perf_counter()
        try:
            _, report = read_score(data)
            outcome = f"{report.notes} notes, {report.bars} bars"
        except MidiError as error:
            outcome = f"refused: {error}"
        seconds = time.perf_counter() - start
        peak = peak_megabytes()
        print(f"{name}\t{seconds:.2f}\t{peak:.0f}\t{outcome}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
