"""Which TimeSig token a bar takes, from the place where it begins."""

from __future__ import annotations

from dataclasses import dataclass

from melodia.grammar import Tables
from melodia.vocabulary import Vocabulary


@dataclass(frozen=True)
class Metres:
    """A metre that is written as one token bar or as several in turn (13/8 as 7/8 and 6/8).

    Attributes:
        tokens: the TimeSig tokens of one bar, in turn; empty: the model chooses.
        lengths: their lengths, in grid ticks.
        anchor: a bar line from which they count, in grid ticks.
    """

    tokens: tuple[int, ...]
    lengths: tuple[int, ...]
    anchor: int

    @classmethod
    def of(cls, cycle: tuple[str, ...], anchor: int, vocabulary: Vocabulary, tables: Tables) -> Metres:
        """From TimeSig values such as ("7/8", "6/8"); raises KeyError for one without a token."""
        tokens = tuple(vocabulary.index[f"TimeSig_{name}"] for name in cycle)
        return cls(tokens, tuple(tables.bar_lengths[token] for token in tokens), anchor)

    @property
    def length(self) -> int:
        """Grid ticks in one bar."""
        return sum(self.lengths)

    @property
    def pieces(self) -> int:
        """Token bars in one bar, at least 1."""
        return max(1, len(self.tokens))

    def piece_at(self, tick: int) -> int:
        """Which piece of its bar begins at a tick (or lies there)."""
        gone = (tick - self.anchor) % self.length
        for piece, length in enumerate(self.lengths):
            if gone < length:
                return piece
            gone -= length
        raise AssertionError("the pieces are shorter than their bar")

    def token_at(self, tick: int) -> int:
        """The TimeSig token of the token bar that begins at a tick."""
        return self.tokens[self.piece_at(tick)]

    def bars_until(self, tick: int, line: int) -> tuple[int, int]:
        """Token bars that begin at `tick` or later and before `line`: how many, and where the last one ends."""
        count = 0
        while tick < line:
            tick += self.lengths[self.piece_at(tick)]
            count += 1
        return count, tick
