"""Bars of a score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick

from melodia.notes import bar_stretches, metres_from_start


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
    return metres_from_start((s.time, s.numerator, s.denominator) for s in score.time_signatures)


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
    return sum(stretch.bars for stretch in bar_stretches(metres, end, ticks_per_quarter))


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

    Raises:
        MidiError: a time signature is none, or there are more than 200,000 bars.

    >>> from melodia.midi import read_score
    >>> table = bar_table(read_score("midi_samples/petzold_minuet_g_major.mid")[0])
    >>> len(table), table.line(1), int(table.numerators[0])
    (32, 1440, 3)
    """
    resolution = score.ticks_per_quarter
    stretches = bar_stretches(metres_of(score), score.end() if end is None else end, resolution)
    counts = [stretch.bars for stretch in stretches]
    return BarTable(
        starts=np.concatenate([stretch.lines(resolution) for stretch in stretches]),
        numerators=np.repeat(np.array([stretch.numerator for stretch in stretches], np.int32), counts),
        denominators=np.repeat(np.array([stretch.denominator for stretch in stretches], np.int32), counts),
        end=stretches[-1].end,
    )
