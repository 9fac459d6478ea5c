"""Music as frames of sounding pitches: files of them, transposition, and where a sequence stood already.

A sequence is a list of frames, a frame the ascending MIDI pitches that sound in it (Boulanger-Lewandowski et al. 2012).
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LOWEST, PITCHES = 21, 88
MAX_NOTES = 32  # of a frame; the four sets have 15 at most
MATCH_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
Frame = tuple[int, ...]
Sequences = list[list[Frame]]


def load(path: Path) -> dict[str, Sequences]:
    """The parts of a set: gzip JSON {"train": [sequence], ...}, a sequence a list of frames.

    Raises:
        ValueError: the file is of another form, or a pitch is not on the keyboard.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            data = json.load(file)
        parts = {
            name: [[tuple(frame) for frame in sequence] for sequence in part] for name, part in data.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a set of frames (gzip JSON {{part: [sequence]}}): {error}"
        ) from error
    for name, part in parts.items():
        for sequence in part:
            for frame in sequence:
                if list(frame) != sorted(set(frame)) or len(frame) > MAX_NOTES:
                    raise ValueError(
                        f"{path}, {name}: a frame is ascending pitches, at most {MAX_NOTES} ({frame})"
                    )
                if frame and not (frame[0] >= LOWEST and frame[-1] < LOWEST + PITCHES):
                    raise ValueError(
                        f"{path}, {name}: pitches are within {LOWEST} and {LOWEST + PITCHES - 1} ({frame})"
                    )
    return parts


def transposed(sequence: list[Frame], shift: int) -> list[Frame]:
    """The sequence moved by semitones; as it is where that would leave the keyboard."""
    moved = [tuple(pitch + shift for pitch in frame) for frame in sequence]
    inside = all(LOWEST <= pitch < LOWEST + PITCHES for frame in moved for pitch in frame)
    return moved if inside else sequence


@dataclass(frozen=True)
class Match:
    """Where the frames before stood already.

    Attributes:
        frame: the number of the frame that followed there.
        length: how many frames are equal, going back from there and from here.
    """

    frame: int
    length: int


def matches(sequence: list[Frame]) -> list[Match | None]:
    """For each frame, the longest run of frames before it that stood earlier already (of equals, the latest).

    >>> matches([(60,), (62,), (60,), (62,)])
    [None, None, None, Match(frame=1, length=1)]
    """
    lengths = np.zeros(0, np.int64)  # of the runs that end at each earlier frame and at the last one
    numbers: dict[Frame, int] = {}
    ids = np.array([numbers.setdefault(frame, len(numbers)) for frame in sequence], np.int64)
    found: list[Match | None] = []
    for t in range(len(ids)):
        if t >= 2:  # runs that end at frame j < t - 1 and at frame t - 1
            grown = np.concatenate(([0], lengths))[: t - 1] + 1
            lengths = np.where(ids[: t - 1] == ids[t - 1], grown, 0)
        best = int(lengths.max()) if lengths.size else 0
        found.append(Match(int(np.flatnonzero(lengths == best)[-1]) + 1, best) if best else None)
    return found


def match_bucket(length: int) -> int:
    """How long a run is, coarsely: 1 to 10."""
    return int(np.searchsorted(MATCH_LENGTHS, length, "right"))
