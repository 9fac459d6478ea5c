"""How fast melodia reads MIDI files, against pretty_midi and symusic.

Every file is read by each reader in turn, several times, and the fastest time of each counts, so that a busy machine
disturbs all of them alike. Only reading is timed: melodia's time includes the repair, the report and the hash.

    python benchmarks/midi_reading.py FOLDER... [--files N] [--repeats R]
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pretty_midi
import symusic

from melodia.errors import MidiError
from melodia.midi import read_score


def seconds_of(read: Callable[[str], Any], path: Path) -> float:
    """Processor seconds that one read takes."""
    start = time.process_time()
    read(str(path))
    return time.process_time() - start


def measure(paths: list[Path], repeats: int) -> tuple[int, int, dict[str, float]]:
    """Files read, notes in them, and the total of the fastest times by reader."""
    readers: dict[str, Callable[[str], Any]] = {
        "pretty_midi": pretty_midi.PrettyMIDI,
        "symusic": symusic.Score,
        "melodia": read_score,
    }
    totals = dict.fromkeys(readers, 0.0)
    files = notes = 0
    for path in paths:
        try:
            count = read_score(path)[1].notes
            times = {name: [seconds_of(read, path)] for name, read in readers.items()}
        except (MidiError, OSError, ValueError, EOFError, RuntimeError, KeyError):
            continue  # one of them does not read it
        for _ in range(repeats - 1):
            for name, read in readers.items():
                times[name].append(seconds_of(read, path))
        for name in readers:
            totals[name] += min(times[name])
        files += 1
        notes += count
    return files, notes, totals


def main() -> None:
    """Print a table with a row per folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument(
        "--files", type=int, default=20, help="files per folder, drawn at random (default 20)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="reads of each file by each reader (default 5)"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        "| folder | files | notes per file | pretty_midi files/s | melodia files/s | ratio | symusic files/s |"
    )
    print("|---|---|---|---|---|---|---|")
    all_files, all_notes, all_totals = 0, 0, {"pretty_midi": 0.0, "symusic": 0.0, "melodia": 0.0}
    for folder in options.folders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".mid", ".midi"))
        random.Random(1).shuffle(paths)
        files, notes, totals = measure(paths[: options.files], options.repeats)
        if files:
            print_row(folder.name, files, notes, totals)
        all_files, all_notes = all_files + files, all_notes + notes
        for name, seconds in totals.items():
            all_totals[name] += seconds
    if all_files and len(options.folders) > 1:
        print_row("**all**", all_files, all_notes, all_totals)


def print_row(name: str, files: int, notes: int, totals: dict[str, float]) -> None:
    """Print a row of the table."""
    rates = {reader: files / seconds for reader, seconds in totals.items()}
    print(
        f"| {name} | {files} | {notes / files:,.0f} | {rates['pretty_midi']:,.1f} | {rates['melodia']:,.1f} "
        f"| {rates['melodia'] / rates['pretty_midi']:.1f} | {rates['symusic']:,.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
