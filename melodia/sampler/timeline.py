"""Tempi and metres along a continuation, and the seconds between two of its ticks."""

from __future__ import annotations


class Timeline:
    """The tempi and metres that were written so far.

    Args:
        ticks_per_quarter: of the grid.
        origin: where the music begins, in grid ticks.
        tempo: quarter notes a minute at the origin; None: not known.
        metre: numerator and denominator at the origin; None: not known.

    Attributes:
        tempi: (tick, quarter notes a minute), the first at the origin.
        metres: (tick, numerator, denominator), the first at the origin.

    >>> times = Timeline(24, 0, 60.0, (4, 4))
    >>> times.add_tempo(48, 120.0)
    >>> times.seconds(0, 96)
    3.0
    """

    def __init__(
        self, ticks_per_quarter: int, origin: int, tempo: float | None, metre: tuple[int, int] | None
    ) -> None:
        self._ticks_per_quarter = ticks_per_quarter
        self._origin = origin
        self.tempi: list[tuple[int, float]] = [] if tempo is None else [(origin, tempo)]
        self.metres: list[tuple[int, int, int]] = [] if metre is None else [(origin, *metre)]

    @property
    def tempo(self) -> float | None:
        """The last one."""
        return self.tempi[-1][1] if self.tempi else None

    @property
    def metre(self) -> tuple[int, int] | None:
        """The last one."""
        return self.metres[-1][1:] if self.metres else None

    def fork(self) -> Timeline:
        """An independent copy."""
        twin = Timeline(self._ticks_per_quarter, self._origin, None, None)
        twin.tempi, twin.metres = list(self.tempi), list(self.metres)
        return twin

    def add_tempo(self, tick: int, tempo: float) -> None:
        """A tempo was written."""
        self.tempi.append((tick, tempo))

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

    def seconds(self, start: int, stop: int) -> float:
        """Time between two ticks under the tempi so far."""
        total = 0.0
        for i, (tick, tempo) in enumerate(self.tempi):
            until = self.tempi[i + 1][0] if i + 1 < len(self.tempi) else max(stop, tick)
            begin = start if i == 0 else max(start, tick)
            total += max(0, min(until, stop) - begin) / self.ticks_a_second(tempo)
        return total

    def ticks_a_second(self, tempo: float) -> float:
        """How far a second leads at a tempo."""
        return self._ticks_per_quarter * tempo / 60
