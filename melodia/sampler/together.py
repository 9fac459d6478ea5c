"""How a part fits what others play at the same time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from melodia.notes import Notes

OCTAVE = 12

SOUNDS = 0.9
"""A part that plays sounds most of the time, and not always (`python -m benchmarks.accompaniments`)."""


class Together(NamedTuple):
    """What a part has in common with what others play, between two ticks. A share of nothing is 0.

    Attributes:
        sounds: in which share of the time it sounds.
        onsets: of the places at which it begins notes, the share at which others do.
        classes: of the time of its pitch classes beside others, the share in which one of them has the same.
        rubs: the share in which none has, and one has a pitch class a semitone off.
    """

    sounds: float
    onsets: float
    classes: float
    rubs: float


def together(part: Notes, others: Notes, start: int, end: int) -> Together:
    """Compare a part with what others play, between two ticks; percussion counts by its onsets alone.

    >>> from melodia.notes import notes_of_events
    >>> others = notes_of_events([(0, 24, 0, 60), (0, 24, 0, 64)])
    >>> together(notes_of_events([(0, 6, 32, 48), (6, 6, 32, 41)]), others, 0, 24)
    Together(sounds=0.5, onsets=0.5, classes=0.5, rubs=0.5)
    """
    begun, around = (_places(notes, start, end) for notes in (part, others))
    own, heard = (sounding(notes, start, end) for notes in (part, others))
    beside = own & heard.any(1, keepdims=True)
    near = np.roll(heard, 1, 1) | np.roll(heard, -1, 1)
    time = max(1, int(beside.sum()))
    return Together(
        float(own.any(1).mean()),
        float(np.isin(begun, around).mean()) if len(begun) else 0.0,
        float((beside & heard).sum() / time),
        float((beside & near & ~heard).sum() / time),
    )


def fit(part: Notes, others: Notes, start: int, end: int) -> float:
    """How well a part fits what others play, between two ticks; only the order of such numbers means anything.

    The shares of the time in which it sounds, up to `SOUNDS`, and in which it has a pitch class in common, less twice
    that in which it rubs.
    """
    found = together(part, others, start, end)
    return min(found.sounds, SOUNDS) + found.classes - 2 * found.rubs


def _places(notes: Notes, start: int, end: int) -> NDArray[np.int64]:
    return np.unique(notes.onset[(notes.onset >= start) & (notes.onset < end)])


def sounding(notes: Notes, start: int, end: int) -> NDArray[np.bool_]:
    """Which pitch classes sound at each tick between two, bool [end - start, 12]."""
    changes = np.zeros((end - start + 1, OCTAVE), np.int64)
    chosen = (notes.program >= 0) & (notes.onset < end) & (notes.end > start)
    classes = notes.pitch[chosen] % OCTAVE
    np.add.at(changes, (np.maximum(notes.onset[chosen], start) - start, classes), 1)
    np.add.at(changes, (np.minimum(notes.end[chosen], end) - start, classes), -1)
    return changes.cumsum(0)[:-1] > 0
