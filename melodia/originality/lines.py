"""Music as lines of steps that stay the same when it is transposed, played faster or slower, or on another instrument.

A line is what an ear follows: the top and the bottom of each program's notes. A note is on top if no higher one goes on
sounding when it begins, so that an accompaniment under a held note does not break the tune. Between neighbouring notes
of a line stands a step: the interval in semitones, and the time since the note before over the time that one took.
Percussion has no intervals and is left out: a beat belongs to everyone. Letters: N notes, J notes of a line, M bars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from melodia.notes import Notes

GAP = 0
"""Stands between lines; equals nothing, not even itself."""
LARGEST = 13
"""Semitones; larger leaps are written as this one, so that a step fits into a byte."""
RATIOS = (1 / 4, 1 / 3, 1 / 2, 3 / 4, 1.0, 4 / 3, 2.0, 3.0, 4.0)
"""Time over the time before: the class of a step is the nearest of these on a logarithmic scale."""

NEVER = -(1 << 40)  # before every tick
_EDGES = np.sqrt(np.array(RATIOS[:-1]) * np.array(RATIOS[1:]))


@dataclass(frozen=True)
class Line:
    """One line of a piece.

    Attributes:
        onset: ticks, rising [J].
        end: where each note ends [J].
        steps: uint8 [J]: what leads from the note before to this one, 1 to 243; `GAP` for the first two notes, of which
            the one has no note before it and the other no time before it.
    """

    onset: NDArray[np.int64]
    end: NDArray[np.int64]
    steps: NDArray[np.uint8]


def steps_of(onset: NDArray[np.int64], pitch: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The steps of a line [J] -> uint8 [J].

    >>> tune, beats = np.array([60, 62, 64, 60]), np.array([0, 2, 4, 8])
    >>> steps_of(beats, tune).tolist()
    [0, 0, 140, 88]
    >>> steps_of(3 * beats, tune + 5).tolist()
    [0, 0, 140, 88]
    """
    steps = np.full(len(onset), GAP, dtype=np.uint8)
    if len(onset) < 3:
        return steps
    waits = np.diff(onset)
    ratio = np.searchsorted(_EDGES, waits[1:] / waits[:-1])
    interval = np.clip(np.diff(pitch)[1:], -LARGEST, LARGEST) + LARGEST
    steps[2:] = 1 + interval * len(RATIOS) + ratio
    return steps


def interval_of(steps: NDArray[np.uint8] | np.uint8) -> NDArray[np.int64]:
    """The semitones of steps (no `GAP` among them)."""
    return (np.asarray(steps).astype(np.int64) - 1) // len(RATIOS) - LARGEST


def lines_of(notes: Notes, *, whole: bool = False) -> list[Line]:
    """The lines of a piece: top and bottom of each program; the bottom only where it is not the top.

    Args:
        notes: of the piece.
        whole: also the top and the bottom of all programs together, as if one instrument played it all.
    """
    melodic = notes.program >= 0
    programs = np.unique(notes.program[melodic]).tolist()
    picks = [notes.program == program for program in programs]
    if whole and len(programs) > 1:
        picks.append(melodic)
    lines = []
    for pick in picks:
        onset, end, pitch = notes.onset[pick], notes.end[pick], notes.pitch[pick]
        top, heights = _outer(onset, end, pitch)
        bottom, depths = _outer(onset, end, 127 - pitch)
        lines.append(top_line := Line(top[0], top[1], steps_of(top[0], heights)))
        if len(bottom[0]) != len(top[0]) or (127 - depths != heights).any():
            bottom_line = Line(bottom[0], bottom[1], steps_of(bottom[0], 127 - depths))
            # A bass that moves in parallel with the tune (octaves) has the same steps, and says nothing more.
            if not np.array_equal(bottom_line.steps, top_line.steps):
                lines.append(bottom_line)
    return [line for line in lines if len(line.steps) > 2]


def _outer(
    onset: NDArray[np.int64], end: NDArray[np.int64], pitch: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The notes that nothing higher covers: (onset and end [2, J], pitch [J]), by onset."""
    order = np.lexsort((end, pitch, onset))
    onset, end, pitch = onset[order], end[order], pitch[order]
    last = np.flatnonzero(np.append(np.diff(onset) > 0, len(onset) > 0))  # the highest of each onset
    onsets, ends, heights = onset[last], end[last], pitch[last]
    # The last note of each pitch that began before each onset: its beginning and end [pitches, J].
    rows, row = np.unique(pitch, return_inverse=True)
    column = np.searchsorted(onsets, onset, side="right")
    begun, until = (np.full((len(rows), len(onsets) + 1), NEVER) for _ in range(2))
    np.maximum.at(begun, (row, column), onset)
    np.maximum.at(until, (row, column), end)
    begun, until = (np.maximum.accumulate(times, axis=1)[:, :-1] for times in (begun, until))
    # Legato: what is left of a higher note does not cover if it is less than an eighth of it and half of this one.
    rest = until - onsets
    covered = (
        (rows[:, None] > heights) & (rest > 0) & ((2 * rest > ends - onsets) | (8 * rest >= until - begun))
    )
    keep = ~covered.any(axis=0)
    return np.stack([onsets[keep], ends[keep]]), heights[keep]
