"""Stretches of a continuation: bars between two places where it may branch, counted from its end."""

from __future__ import annotations

from dataclasses import dataclass, replace

STRETCH_BARS = 2
"""Bars between two branchings, where branches are wanted."""

WIDER = 4
"""So many times the branches where all of them are far from the music around."""


@dataclass
class Stretches:
    """Where the music stands among its stretches, numbered from 0; what lies before number 1 belongs to number 0.

    Attributes:
        open: the last stretch that may be entered.
        asked: the one that was asked for.
        last_asked: whether that is the last one.

    >>> stretches = Stretches()  # of five bars, 10 to 14: 10, then 11 and 12, then 13 and 14
    >>> [stretches.asks(10, 14, bar, 1) for bar in (9, 10, 11)]
    [False, False, True]
    >>> stretches = stretches.opened()
    >>> [stretches.asks(10, 14, bar, 1) for bar in (11, 12, 13)], stretches.last_asked
    ([False, False, True], True)
    """

    open: int = 0
    asked: int = 0
    last_asked: bool = False

    def asks(self, first: int, last: int, bar: int, pieces: int) -> bool:
        """Whether a bar lies in a stretch that is not open; that stretch is the one that was asked for then.

        Args:
            first, last: the bars of the music.
            bar: which.
            pieces: token bars in a bar.
        """
        bars = STRETCH_BARS * pieces
        final = -(-(last + 1 - first) // bars) - 1
        self.asked = max(0, final - (last - bar) // bars)
        self.last_asked = self.asked >= final
        return self.asked > self.open

    def opened(self) -> Stretches:
        """A copy with the stretch open that was asked for."""
        return replace(self, open=self.asked)
