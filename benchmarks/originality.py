"""How well copies are found, and how much is taken for one: the originality index on a corpus.

`python benchmarks/originality.py --train FOLDER... --held-out FOLDER...` builds the index of the training folders,
and prints its size, how many excerpts of held-out pieces share a passage with it (false alarms, as far as those pieces
are nobody's copies), how many planted copies are found, and how long a search takes. A copy is some bars of a
training piece, transposed, at half, the same or double speed, between random notes: its whole texture; its voice (the
program with the fewest notes) on another instrument; the same over a random accompaniment.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from melodia.corpus.discover import find_midi_files
from melodia.errors import MelodiaError
from melodia.evaluation.continuations import notes_and_bars
from melodia.midi import read_score
from melodia.originality import Index, Notes, Training, shared_passages
from melodia.originality.build import CHANCE_BARS, excerpts

COPIES = 150  # planted of each length and manner
LENGTHS = (2, 3, 4, 8)
LEAST_NOTES = 12
OTHER_PROGRAM, ACCOMPANIMENT = 40, 33


def read(folders: list[Path]) -> Iterator[Training]:
    """The pieces of folders of MIDI files, those that cannot be read left out."""
    for folder in folders:
        for found in find_midi_files(folder):
            try:
                yield Training(f"{folder}/{found.relative}", *notes_and_bars(read_score(found.path)[0]))
            except MelodiaError as error:
                print(f"{found.path}: {error}", file=sys.stderr)


def random_notes(
    rng: np.random.Generator, start: int, stop: int, low: int, high: int, program: int, gap: int
) -> Notes:
    """Notes of one length and any pitch, one after the other."""
    onset = np.arange(start, stop, gap)
    return Notes(onset, onset + gap, rng.integers(low, high, len(onset)), np.full(len(onset), program))


def plant(rng: np.random.Generator, piece: Training, bars: int, manner: str) -> tuple[Notes, int] | None:
    """Some bars of a piece between random ones, and the first of them; None where there are too few notes."""
    notes, starts = piece.notes, piece.bar_starts
    if len(starts) < bars + 2:
        return None
    first = int(rng.integers(0, len(starts) - 1 - bars))
    inside = (notes.onset >= starts[first]) & (notes.onset < starts[first + bars]) & (notes.program >= 0)
    if manner != "texture" and inside.any():
        programs, count = np.unique(notes.program[inside], return_counts=True)
        inside &= notes.program == programs[count.argmin()]
    if inside.sum() < LEAST_NOTES:
        return None
    quarter = max(int(starts[1] - starts[0]) // 4, 4)
    speed, before = rng.choice([0.5, 1.0, 2.0]), 16 * quarter
    onset, end = (
        np.rint((times[inside] - starts[first]) * speed).astype(np.int64) + before
        for times in (notes.onset, notes.end)
    )
    pitch = notes.pitch[inside] + int(rng.integers(-5, 7))
    program = notes.program[inside] if manner == "texture" else np.full(len(onset), OTHER_PROGRAM)
    last, eighth = int(end.max()), quarter // 2
    parts = [
        Notes(onset, end, pitch, program),
        random_notes(rng, 0, before, 55, 80, OTHER_PROGRAM, eighth),
        random_notes(rng, last, last + before, 55, 80, OTHER_PROGRAM, eighth),
    ]
    if manner == "voice, accompanied":
        parts.append(random_notes(rng, before, last, 30, 100, ACCOMPANIMENT, max(1, eighth // 2)))
    columns = zip(*((p.onset, p.end, p.pitch, p.program) for p in parts), strict=True)
    return Notes(*(np.concatenate(column) for column in columns)), first


def found(index: Index, pieces: list[Training], bars: int, manner: str, rng: np.random.Generator) -> str:
    """How many planted copies are found, as text."""
    tried = hits = 0
    for place in rng.permutation(len(pieces)).tolist():
        piece = pieces[place]
        planted = plant(rng, piece, bars, manner)
        if planted is None:
            continue
        music, _ = planted
        passages = shared_passages(index, music, np.arange(0, int(music.end.max()) + 1, 1)).passages
        tried += 1
        hits += any(passage.file == piece.name for passage in passages)
        if tried == COPIES:
            break
    return f"{hits / max(tried, 1):.0%} of {tried}"


def main() -> int:
    """Parse, build, search, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    pieces = list(read(arguments.train))
    began = time.process_time()
    built = Index.build(pieces)
    seconds = time.process_time() - began
    notes = sum(int((piece.notes.program >= 0).sum()) for piece in pieces)
    if not notes:
        print("originality: there are no notes in the training folders", file=sys.stderr)
        return 1
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        size = built.save(folder).stat().st_size
        index = Index.open(folder)
        assert index is not None
        print(
            f"{len(pieces):,} pieces, {notes:,} pitched notes: {size / 1e6:.2f} MB, {size / notes:.2f} bytes a note, "
            f"built in {seconds:.1f} s"
        )
        shared, bars, times = [], [], []
        for excerpt in (part for piece in read(arguments.held_out) for part in excerpts(piece)):
            began = time.process_time()
            result = shared_passages(index, excerpt.notes, excerpt.bar_starts)
            times.append(time.process_time() - began)
            shared.append(result.notes)
            bars.append(result.bars)
        if shared:
            over = ", ".join(f"{np.mean(np.array(bars) > n):.1%} more than {n} bars" for n in (1, 2, 3, 4))
            print(
                f"{len(shared):,} held-out excerpts of {CHANCE_BARS} bars: {np.mean(np.array(shared) > 0):.1%} share a "
                f"passage; {over}; most notes {max(shared)}"
            )
            print(
                f"a search: median {1e3 * np.median(times):.1f} ms, longest {1e3 * max(times):.1f} ms of a processor"
            )
        print("| planted copies found | " + " | ".join(f"{bars} bars" for bars in LENGTHS) + " |")
        print("|---|" + "---|" * len(LENGTHS))
        for manner in ("texture", "voice", "voice, accompanied"):
            cells = [found(index, pieces, bars, manner, rng) for bars in LENGTHS]
            print(f"| {manner} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
