"""Bars of a score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick


@dataclass(frozen=True)
class BarTable:
    """The bars of a score, N of them, the last one the bar in which the last note ends.

    A new time signature starts a new bar, wherever it stands.

    Attributes:
        starts: int64 [N], tick of each bar line.
        numerators: int32 [N].
        denominators: int32 [N].
        end: tick at which the last bar ends.
    """

    starts: NDArray[np.int64]
    numerators: NDArray[np.int32]
    denominators: NDArray[np.int32]
    end: int

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, bar: int) -> int:
        """Tick of the bar line before bar `bar` (0 to N; N is the end)."""
        return int(self.starts[bar]) if bar < len(self.starts) else self.end

    def index(self, tick: int) -> int:
        """The bar that holds a tick, counted from 0; N if the tick lies at the end or after it."""
        if tick >= self.end:
            return len(self.starts)
        return max(0, int(np.searchsorted(self.starts, tick, "right")) - 1)


def metres_of(score: ScoreTick) -> list[tuple[int, int, int]]:
    """Time signatures as (tick, numerator, denominator), the first at tick 0 (4/4 if there is none)."""
    metres = sorted({s.time: (s.time, s.numerator, s.denominator) for s in score.time_signatures}.values())
    if not metres or metres[0][0] > 0:
        metres.insert(0, (0, 4, 4))
    return metres


def _stretches(
    metres: list[tuple[int, int, int]], ticks_per_quarter: int, end: int
) -> list[tuple[int, int, int, int, int]]:
    """Per metre: start, numerator, denominator, number of bars, end. Only the last bar may be cut."""
    found = []
    for index, (start, top, bottom) in enumerate(metres):
        if start >= end and index > 0:
            break
        last = index + 1 == len(metres) or metres[index + 1][0] >= end
        stop = max(end, start + 1) if last else metres[index + 1][0]
        whole = 4 * ticks_per_quarter * top  # ticks of a bar, times the denominator
        bars = max(1, -(-(stop - start) * bottom // whole))
        found.append((start, top, bottom, bars, start + bars * whole // bottom if last else stop))
    return found


def bar_count(metres: list[tuple[int, int, int]], ticks_per_quarter: int, end: int) -> int:
    """Bars until a tick.

    Args:
        metres: (tick, numerator, denominator), the first at tick 0.
        ticks_per_quarter: resolution.
        end: tick at which the music ends.

    Returns:
        number of bars, at least 1.

    >>> bar_count([(0, 4, 4), (3840, 3, 4)], 480, 3841)
    3
    """
    return sum(bars for _, _, _, bars, _ in _stretches(metres, ticks_per_quarter, end))


def bar_line(metres: list[tuple[int, int, int]], ticks_per_quarter: int, bar: int) -> int:
    """Where a bar begins.

    Args:
        metres: (tick, numerator, denominator), the first at tick 0.
        ticks_per_quarter: resolution.
        bar: counted from 0.

    Returns:
        tick of the bar line before that bar.

    >>> bar_line([(0, 4, 4), (3840, 3, 4)], 480, 3)
    5280
    """
    for index, (start, top, bottom) in enumerate(metres):
        whole = 4 * ticks_per_quarter * top
        if index + 1 < len(metres):
            bars = max(1, -(-(metres[index + 1][0] - start) * bottom // whole))
            if bar >= bars:
                bar -= bars
                continue
        return start + bar * whole // bottom
    raise AssertionError("there is always a first metre")


def bar_table(score: ScoreTick, end: int | None = None) -> BarTable:
    """The bars of a score.

    Args:
        score: in ticks.
        end: tick up to which bars are wanted; the end of the last note if not given.

    Returns:
        the table; it has at least one bar.
    """
    resolution = score.ticks_per_quarter
    stretches = _stretches(metres_of(score), resolution, score.end() if end is None else end)
    starts = [
        start + np.arange(bars, dtype=np.int64) * (4 * resolution * top) // bottom
        for start, top, bottom, bars, _ in stretches
    ]
    counts = [bars for _, _, _, bars, _ in stretches]
    return BarTable(
        starts=np.concatenate(starts),
        numerators=np.repeat(np.array([top for _, top, _, _, _ in stretches], np.int32), counts),
        denominators=np.repeat(np.array([bottom for _, _, bottom, _, _ in stretches], np.int32), counts),
        end=stretches[-1][4],
    )
