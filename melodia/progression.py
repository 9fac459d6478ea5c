"""Chords along bars: which one holds where, and how well notes keep to them."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

from melodia.harmony import NO_CHORD, Bars, Chord
from melodia.notes import Notes


class BarGrid(NamedTuple):
    """Bars of one length.

    Attributes:
        line: where the first begins.
        length: of each.
        beats: in each.

    >>> BarGrid(100, 48, 4).place(160)
    (1, 12)
    """

    line: int
    length: int
    beats: int

    def place(self, tick: int) -> tuple[int, int]:
        """The bar of a tick, counted from 0, and the ticks from its beginning; bars before `line` are below 0."""
        return divmod(tick - self.line, self.length)


class Progression:
    """The chords of bars; behind the last of them it begins again.

    Args:
        bars: as `melodia.harmony.parse_chords` gives them.

    Attributes:
        bars: the same.

    >>> from melodia.harmony import parse_chords
    >>> progression, grid = Progression(parse_chords("C | F G")), BarGrid(0, 36, 3)
    >>> [progression.chord(tick, grid).name for tick in (0, 36, 59, 60, 72)]
    ['C', 'F', 'F', 'G', 'C']
    >>> progression.change(40, grid)
    60
    """

    def __init__(self, bars: Bars) -> None:
        self.bars = bars

    @property
    def text(self) -> str:
        """The chords by name, bar by bar.

        >>> from melodia.harmony import parse_chords
        >>> Progression(parse_chords("C | F G7 | N.C.")).text
        'C | F G7 | N.C.'
        """
        return " | ".join(" ".join(NO_CHORD[0] if c is None else c.name for c in bar) for bar in self.bars)

    def chord(self, tick: int, grid: BarGrid) -> Chord | None:
        """The chord that holds at a tick; None where any note may come."""
        bar, _ = grid.place(tick)
        return None if bar < 0 else self._chords(bar)[self._part(tick, grid)]

    def change(self, tick: int, grid: BarGrid) -> int | None:
        """The tick inside the same bar at which another chord follows the one at a tick; None where none does."""
        bar, place = grid.place(tick)
        if bar < 0:
            return None
        chords, now = self._chords(bar), self._part(tick, grid)
        begins = _begins(len(chords), grid)
        later = (k for k in range(now + 1, len(chords)) if chords[k] != chords[now])
        return next((tick - place + begins[k] for k in later), None)

    def same_again(self, lag: int) -> bool:
        """Whether the same chords held so many bars before, wherever there were any."""
        return lag % len(self.bars) == 0

    def kept(self, notes: Notes, grid: BarGrid) -> tuple[float, float] | None:
        """How well notes keep to the chords.

        Args:
            notes: in ticks.
            grid: the bars.

        Returns:
            the share of the pitched notes' time, each up to the end of the bar it begins in, that belongs to the chord
            at its beginning; and the share of the chords over which something begins whose first lowest note is their
            bass. None where nothing begins under a chord.
        """
        inside = own = 0
        lowest: dict[tuple[int, int], tuple[int, int, bool]] = {}
        pitched = notes.select(notes.program >= 0)
        columns = (pitched.onset, pitched.end, pitched.pitch)
        for onset, end, pitch in zip(*(column.tolist() for column in columns), strict=True):
            bar, place = grid.place(onset)
            chord = self.chord(onset, grid)
            if chord is None:
                continue
            time = min(end - onset, grid.length - place)
            inside += time
            own += time * (pitch % 12 in chord.classes)
            rank = (onset, pitch, pitch % 12 == chord.bass)
            where = bar, self._part(onset, grid)
            lowest[where] = min(rank, lowest.get(where, rank))
        if not inside:
            return None
        return own / inside, sum(is_bass for _, _, is_bass in lowest.values()) / len(lowest)

    def _chords(self, bar: int) -> tuple[Chord | None, ...]:
        return self.bars[bar % len(self.bars)]

    def _part(self, tick: int, grid: BarGrid) -> int:
        """Which of its bar's chords holds at a tick."""
        bar, place = grid.place(tick)
        return bisect_right(_begins(len(self._chords(bar)), grid), place) - 1


@lru_cache(maxsize=64)
def _begins(count: int, grid: BarGrid) -> tuple[int, ...]:
    """The ticks of a bar at which so many chords begin: on its beats, unless there are more of them than beats."""
    steps = grid.beats if count <= grid.beats else count
    return tuple((2 * k * steps + count) // (2 * count) * grid.length // steps for k in range(count))
