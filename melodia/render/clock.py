"""Seconds, quarter notes and bars of a PrettyMIDI."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melodia.notes import bar_stretches

if TYPE_CHECKING:
    import pretty_midi


@dataclass(frozen=True)
class Bar:
    """A bar: its number (1 is the first), its beginning and length in quarter notes, its time signature."""

    number: int
    start: float
    length: float
    numerator: int
    denominator: int


class Clock:
    """Converts between seconds and quarter notes along the tempo map of a PrettyMIDI.

    >>> import pretty_midi
    >>> clock = Clock(pretty_midi.PrettyMIDI(initial_tempo=120))
    >>> float(clock.quarters(1.5)), float(clock.seconds(3.0))
    (3.0, 1.5)
    """

    def __init__(self, midi: pretty_midi.PrettyMIDI) -> None:
        times, tempi = midi.get_tempo_changes()
        if len(times) == 0:
            times, tempi = np.array([0.0]), np.array([120.0])
        self._times = np.asarray(times, np.float64)
        self._rates = np.maximum(np.asarray(tempi, np.float64), 1e-3) / 60.0  # quarter notes a second
        steps = np.diff(self._times) * self._rates[:-1]
        self._quarters = np.concatenate([[0.0], np.cumsum(steps)]) + self._times[0] * self._rates[0]
        self._resolution = int(midi.resolution)
        self._metres = [
            (round(float(self.quarters(m.time)) * self._resolution), m.numerator, m.denominator)
            for m in midi.time_signature_changes
        ]

    def quarters(self, seconds: ArrayLike) -> NDArray[np.float64]:
        """Seconds to quarter notes from the beginning."""
        seconds = np.asarray(seconds, np.float64)
        index = np.clip(np.searchsorted(self._times, seconds, "right") - 1, 0, None)
        return self._quarters[index] + (seconds - self._times[index]) * self._rates[index]

    def seconds(self, quarters: ArrayLike) -> NDArray[np.float64]:
        """Quarter notes from the beginning to seconds."""
        quarters = np.asarray(quarters, np.float64)
        index = np.clip(np.searchsorted(self._quarters, quarters, "right") - 1, 0, None)
        return self._times[index] + (quarters - self._quarters[index]) / self._rates[index]

    def bars(self, end: float) -> list[Bar]:
        """The bars from the beginning up to `end` (quarter notes), at least one; see `melodia.notes.bar_stretches`."""
        found: list[Bar] = []
        for stretch in bar_stretches(self._metres, round(end * self._resolution), self._resolution):
            lines = np.append(stretch.lines(self._resolution), stretch.end) / self._resolution
            for begin, stop in pairwise(lines.tolist()):
                found.append(Bar(len(found) + 1, begin, stop - begin, stretch.numerator, stretch.denominator))
        return found
