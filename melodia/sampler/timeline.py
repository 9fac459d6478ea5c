"""Tempi and metres along a continuation, and the seconds between two of its ticks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import inf

TEMPO = 120.0
"""Quarter notes a minute where nothing says how many, as in MIDI."""

Mark = tuple[int, float, float]
"""A tempo: the tick from which it holds, the seconds until there, quarter notes a minute."""


class Tempi:
    """Tempi that hold one behind the other, and the seconds along them: a look-up takes the logarithm of their number.

    Args:
        ticks_per_quarter: of the ticks.
        marks: by tick; at least one before the first look-up.

    Attributes:
        marks: those that are kept; the first one holds before its tick as well.

    >>> tempi = Tempi(24, [(0, 0.0, 60.0)])
    >>> tempi.add(48, 120.0)
    >>> tempi.at(96)
    3.0
    >>> tempi.forget(96)
    >>> tempi.marks
    [(48, 2.0, 120.0)]
    """

    def __init__(self, ticks_per_quarter: int, marks: Iterable[Mark] = ()) -> None:
        self._ticks_per_quarter = ticks_per_quarter
        self.marks = list(marks)

    def add(self, tick: int, tempo: float) -> None:
        """A tempo holds from a tick on, at or behind all others; seconds count from the first one that is added."""
        self.marks.append((tick, self.at(tick) if self.marks else 0.0, tempo))

    def at(self, tick: float) -> float:
        """Seconds until a tick."""
        start, before, tempo = self.marks[max(0, bisect_right(self.marks, (tick, inf)) - 1)]
        return before + (tick - start) * 60 / (tempo * self._ticks_per_quarter)

    def forget(self, tick: int) -> None:
        """Let go of what no longer holds at a tick: nobody asks for an earlier one any more."""
        past = bisect_right(self.marks, (tick, inf)) - 1
        if 2 * past >= len(self.marks):  # what stays is moved, so this waits until it is the lesser part
            del self.marks[:past]


class Timeline:
    """The tempi and metres that were written so far.

    Args:
        ticks_per_quarter: of the grid.
        origin: where the music begins, in grid ticks.
        tempo: quarter notes a minute at the origin; None: not known.
        metre: numerator and denominator at the origin; None: not known.

    Attributes:
        tempo: the last one, in quarter notes a minute; None: not known.
        metres: (tick, numerator, denominator), the first at the origin.

    >>> times = Timeline(24, 0, 60.0, (4, 4))
    >>> times.add_tempo(48, 120.0)
    >>> times.seconds(24, 96)
    2.0
    """

    def __init__(
        self, ticks_per_quarter: int, origin: int, tempo: float | None, metre: tuple[int, int] | None
    ) -> None:
        self._ticks_per_quarter = ticks_per_quarter
        self._origin = origin
        self.tempo = tempo
        self._tempi = Tempi(ticks_per_quarter, [(origin, 0.0, TEMPO if tempo is None else tempo)])
        self.metres: list[tuple[int, int, int]] = [] if metre is None else [(origin, *metre)]

    @property
    def tempi(self) -> list[tuple[int, float]]:
        """(tick, quarter notes a minute), the first at the origin."""
        (_, _, first), *later = self._tempi.marks
        return [(self._origin, first), *((tick, tempo) for tick, _, tempo in later)]

    @property
    def played(self) -> tuple[Mark, ...]:
        """The tempi so far, where they have changed: what `play_on` takes."""
        marks = self._tempi.marks
        return tuple(marks) if len(marks) > 1 or marks[0][0] > self._origin else ()

    @property
    def metre(self) -> tuple[int, int] | None:
        """The last one."""
        return self.metres[-1][1:] if self.metres else None

    def fork(self) -> Timeline:
        """An independent copy."""
        twin = Timeline(self._ticks_per_quarter, self._origin, self.tempo, None)
        twin._tempi, twin.metres = Tempi(self._ticks_per_quarter, self._tempi.marks), list(self.metres)
        return twin

    def play_on(self, tick: int, played: Sequence[Mark]) -> None:
        """Other tempi held until a tick; the one at the origin was meant to hold from there."""
        asked, self._tempi = self.tempo, Tempi(self._ticks_per_quarter, played)
        if asked is not None and asked != played[-1][2]:
            self._tempi.add(tick, asked)

    def add_tempo(self, tick: int, tempo: float) -> None:
        """A tempo was written; the first one holds from the origin."""
        if self.tempo is None:
            self._tempi = Tempi(self._ticks_per_quarter, [(self._origin, 0.0, tempo)])
        else:
            self._tempi.add(max(tick, self._origin), tempo)
        self.tempo = tempo

    def add_metre(self, tick: int, metre: tuple[int, int]) -> None:
        """A metre was written; nothing happens where it holds already."""
        if self.metre != metre:
            self.metres.append((max(tick, self._origin), *metre))

    def change_metre(self, line: int, metre: tuple[int, int]) -> None:
        """A metre that the caller asked for begins at a bar line, whatever was written there."""
        if self.metre == metre:
            return
        if self.metres and self.metres[-1][0] >= line:
            self.metres.pop()
        self.metres.append((line, *metre))

    def forget(self, tick: int) -> None:
        """Let go of tempi before a tick that nobody asks for any more, and of all metres but the last."""
        self._tempi.forget(tick)
        del self.metres[:-1]

    def at(self, tick: int) -> float:
        """Seconds from the origin to a tick under the tempi so far."""
        return self._tempi.at(tick)

    def seconds(self, start: int, stop: int) -> float:
        """Time between two ticks under the tempi so far."""
        return self.at(stop) - self.at(start)

    @property
    def ticks_a_second(self) -> float:
        """How far a second leads at the last tempo."""
        return self._ticks_per_quarter * self._tempi.marks[-1][2] / 60
