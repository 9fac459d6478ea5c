"""What parts of each General MIDI family do: `python -m benchmarks.habits CORPORA` counts `melodia.sampler.habits`.

Only pieces for several programs count, and of each part only the bars in which it plays. What begins is the mean over
the parts of a family, lengths are the median of their means. A family with few parts gets the medians of the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from melodia.corpus.discover import find_midi_files
from melodia.errors import MelodiaError
from melodia.midi import bar_table, read_score
from melodia.midi.bars import BarTable
from melodia.notes import Notes, notes_of_score, notes_of_tracks, program_of
from melodia.sampler.bias import RANGE
from melodia.sampler.habits import FEW, Habit, kind_of_place
from melodia.sampler.strangers import plays_alone

GRID = 12
"""Places in a quarter note."""
SHORTEST = 8
"""Bars in which a part plays."""
MOST = 0.75
"""A family of which so many tracks play one note at a time does."""
PLACES = ("bar line", "beat", "half beat", "elsewhere")


class Part(NamedTuple):
    """A program's notes in one piece.

    Attributes:
        program: -1 for the drums.
        pitches: of its notes.
        begins: [4, 2], where others begin while it is free, at each kind of place: how often, and how often it does.
        length: mean, in quarter notes.
    """

    program: int
    pitches: NDArray[np.int64]
    begins: NDArray[np.int64]
    length: float


def parts_of(notes: Notes, lines: BarTable, quarter: int) -> Iterator[Part]:
    """The parts of a piece for several programs that play in enough of its bars."""
    programs = np.unique(notes.program).tolist()
    onset = (notes.onset * GRID + quarter // 2) // quarter
    end = np.maximum(onset + 1, (notes.end * GRID + quarter // 2) // quarter)
    bars = np.array([lines.line(bar) * GRID // quarter for bar in range(len(lines) + 1)])
    size = int(max(bars[-1], end.max())) + 1
    for program in programs if len(programs) > 1 else []:
        own = notes.program == program
        playing = np.unique(np.searchsorted(bars, onset[own], "right") - 1)
        playing = playing[(playing >= 0) & (playing < len(lines))]
        if len(playing) < SHORTEST:
            continue
        change = np.zeros(size + 1, np.int64)
        if program >= 0:
            np.add.at(change, onset[own], 1)
            np.add.at(change, end[own], -1)
        sounds, begins, others = (
            np.cumsum(change)[:size] > 0,
            np.zeros(size, np.bool_),
            np.zeros(size, np.bool_),
        )
        begins[onset[own]], others[onset[~own]] = True, True
        found = np.zeros((len(PLACES), 2), np.int64)
        for bar in playing.tolist():
            here = np.flatnonzero(others[bars[bar] : bars[bar + 1]])
            at = here + bars[bar]
            free = begins[at] | ~sounds[at]
            metre = int(lines.numerators[bar]), int(lines.denominators[bar])
            place = np.array([kind_of_place(tick, metre, GRID) for tick in here.tolist()], np.int64)
            np.add.at(found[:, 0], place[free], 1)
            np.add.at(found[:, 1], place[free], begins[at][free])
        length = float((end - onset)[own].mean()) / GRID
        yield Part(program, notes.pitch[own], found, length)


def habit_of_parts(parts: Sequence[Part], alone: Sequence[bool]) -> Habit:
    """The habits of a family, of its parts, and of whether each of its tracks plays one note at a time."""
    places, begun = np.moveaxis(np.array([part.begins for part in parts]), 2, 0)
    there = places > 0  # parts that are free at none of a kind say nothing of it
    begins = (begun / np.maximum(places, 1)).sum(0) / np.maximum(there.sum(0), 1)
    pitches = np.concatenate([part.pitches for part in parts])
    low, high = np.quantile(pitches, RANGE, method="nearest").astype(int).tolist()
    return Habit(
        low,
        high,
        tuple(np.round(begins, 2).tolist()),
        round(float(np.median([part.length for part in parts])), 2),
        bool(np.mean(alone) >= MOST),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, count, print the table as it stands there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path, metavar="CORPORA")
    options = parser.parse_args(arguments)
    families: dict[int, list[Part]] = {family: [] for family in range(-1, 16)}
    alone: dict[int, list[bool]] = {family: [] for family in range(-1, 16)}
    for found in find_midi_files(options.corpora):
        try:
            score = read_score(found.path)[0]
        except MelodiaError:
            continue
        for part in parts_of(notes_of_score(score), bar_table(score), score.ticks_per_quarter):
            families[family_of(part.program)].append(part)
        for track in score.tracks:  # two violins are two tracks of one program, each for itself alone
            if len(track.notes):
                alone[family_of(program_of(track))].append(plays_alone(notes_of_tracks([track])))
    known = {family: parts for family, parts in families.items() if len(parts) >= FEW}
    habits = {family: habit_of_parts(parts, alone[family]) for family, parts in known.items()}
    columns = [np.array([habit[k] for family, habit in habits.items() if family >= 0]) for k in range(4)]
    low, high, begins, length = (np.median(column, axis=0) for column in columns)
    usual = Habit(int(low), int(high), tuple(begins.round(2).tolist()), round(float(length), 2), False)
    for family, parts in families.items():
        habit = habits.get(family, usual._replace(alone=bool(np.mean(alone[family] or [0]) >= MOST)))
        print(f"    Habit{tuple(habit)},  # {family}: {len(parts)} parts, {len(alone[family])} tracks")


def family_of(program: int) -> int:
    """The General MIDI family of a program, -1 for the drums."""
    return -1 if program < 0 else program // 8


if __name__ == "__main__":
    main()
