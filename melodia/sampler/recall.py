"""Bars that come again.

A recurrent model remembers what music is like, not what was played: of the bars that it draws 0.2 % are the same as an
earlier one, of those that really come behind the same seeds 16 % (`benchmarks/continuations.py`). Its state is no place
to look a theme up, but the tokens are. So some stretches of two bars are not drawn: the tokens of two earlier bars are
fed again, and the model goes on from there, having heard them. How many is asked for, and depends on the seed, too: one
in which bars come again asks for more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from melodia.decode.config import RECOMMENDED
from melodia.decode.philox import uniform
from melodia.grammar import Op
from melodia.grammar.state import NONE
from melodia.sampler.classes import TokenClasses
from melodia.sampler.request import MOST_RECALL


class Lag(NamedTuple):
    """How often stretches come from one distance.

    Attributes:
        begins: in a hundred rows of stretches that come again.
        goes_on: how often the next stretch does, too.
    """

    begins: float
    goes_on: float


LAGS = {2: Lag(15, 0.1), 4: Lag(36, 0.15), 8: Lag(29, 0.5), 16: Lag(11, 0.8), 32: Lag(9, 0.7)}
"""By bars back: what was counted in 23,000 stretches behind the 16th bar of 447 pieces, of all sets with tunes."""

USUAL = RECOMMENDED["recall"]
"""The usual share: who asks for it gets what the seed lets expect. From there it goes evenly down to none and up to
`MOST_RECALL`: who asks for these means them, whatever the seed."""

SEED_WEIGHT = 12
"""The share of bars that come again in a seed counts as much as `USUAL` where the seed has so many bars. It is what
foretells the next 16 bars best (165 held-out pieces, by squares; correlation 0.42)."""

FIRST_BARS, FEW_NOTES = 4, 3
"""The first bars of a piece cannot come again, and bars with fewer notes say nothing."""

_DRAWS = 1 << 62
"""Positions of the random numbers here: beyond those of any token."""


class Recalled(NamedTuple):
    """Bars that came again: from and to which grid tick, and how many."""

    begin: int
    end: int
    bars: int


@dataclass(frozen=True)
class TokenBar:
    """A bar as tokens.

    Attributes:
        tokens: from the bar token on.
        program: that plays where it begins, as in `melodia.grammar.GrammarState`.
    """

    tokens: tuple[int, ...]
    program: int


@dataclass(frozen=True)
class Recollection:
    """What may come again, and how that stands: what another lane goes on from.

    Attributes:
        bars: the last bars; the last of them may be unfinished.
        program: that plays behind them.
        seen: of a seed, as `share_of` counts.
        stretch, lag: as in `Recall`.
        script: tokens of what is being played again that are still to come.
    """

    bars: tuple[TokenBar, ...]
    program: int
    seen: tuple[int, int]
    stretch: int
    lag: int
    script: tuple[int, ...] = ()

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        """As arrays that can be written to a file."""
        return {
            "bars": np.array([token for bar in self.bars for token in bar.tokens], np.int64),
            "programs": np.array([(len(bar.tokens), bar.program) for bar in self.bars], np.int64).reshape(
                -1, 2
            ),
            "script": np.array(self.script, np.int64),
            "counts": np.array([self.program, *self.seen, self.stretch, self.lag], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], vocabulary_size: int) -> Recollection:
        """From such arrays; raises ValueError and KeyError where they are none."""
        tokens, script = (arrays[name].astype(np.int64).tolist() for name in ("bars", "script"))
        program, again, counted, stretch, lag = arrays["counts"].astype(np.int64).tolist()
        programs = arrays["programs"].astype(np.int64).reshape(-1, 2).tolist()
        if not all(0 <= token < vocabulary_size for token in (*tokens, *script)):
            raise ValueError("bars in memory hold tokens that the vocabulary does not have")
        if sum(length for length, _ in programs) != len(tokens) or any(length < 1 for length, _ in programs):
            raise ValueError("bars in memory are not as long as they say")
        if not 0 <= again <= counted or stretch < 0 or lag not in (0, *LAGS):
            raise ValueError("the state of the repeated bars is impossible")
        left = iter(tokens)
        bars = tuple(TokenBar(tuple(islice(left, length)), own) for length, own in programs)
        return cls(bars, program, (again, counted), stretch, lag, tuple(script))


NOTHING_HEARD = Recollection((), NONE, (0, 0), 0, 0)


class Memory:
    """The last bars of music, as tokens: as many as the longest lag asks for.

    Args:
        classes: of the vocabulary. Only where bars are tokens, and tokens no byte pairs, anything is kept.
        pieces: token bars in a bar.
        before: what to begin with.

    Attributes:
        works: whether anything is kept.
        program: that plays behind the last of them.
    """

    def __init__(self, classes: TokenClasses, pieces: int = 1, before: Recollection = NOTHING_HEARD) -> None:
        self._classes = classes
        self.pieces = pieces
        self._bars: deque[TokenBar] = deque(maxlen=(max(LAGS) + 1) * pieces)
        self._open: list[int] = []
        self._begun = self.program = NONE
        self.works = classes.tables.has_bars and not classes.vocabulary.expansions
        if before.bars:
            self._bars.extend(before.bars[:-1])
            self._open, self._begun = list(before.bars[-1].tokens), before.bars[-1].program
            self.program = before.program

    @property
    def bars(self) -> tuple[TokenBar, ...]:
        """The last bars, the unfinished one among them."""
        return (*self._bars, TokenBar(tuple(self._open), self._begun)) if self._open else tuple(self._bars)

    def read(self, tokens: Iterable[int]) -> None:
        """Go on with these tokens."""
        classes = self._classes
        for token in tokens if self.works else ():
            if classes.begins_bar[token]:
                if self._open:
                    self._bars.append(TokenBar(tuple(self._open), self._begun))
                self._begun, self._open = self.program, [token]
            elif self._open:
                self._open.append(token)
            if classes.program_of[token] != NONE:
                self.program = int(classes.program_of[token])

    def fork(self) -> Memory:
        """An independent copy."""
        twin = copy(self)
        twin._bars, twin._open = self._bars.copy(), list(self._open)
        return twin

    def again(self, lag: int, bars: int, program: int) -> tuple[int, ...]:
        """Tokens that play bars again, the present bar being at its end.

        Args:
            lag: from so many bars back.
            bars: so many, at most `lag`.
            program: that plays now.

        Returns:
            tokens, of which tempi are left out; none where memory does not go back so far, or another metre held.
        """
        known = self.bars
        first = len(known) - lag * self.pieces
        if first < 0:
            return ()
        found: list[int] = []
        for k, bar in enumerate(known[first : first + bars * self.pieces]):
            notes, program = self._played_from(bar, program)
            if not notes or self._metre(bar) != self._metre(known[k % self.pieces - self.pieces]):
                return ()
            found += notes
        return tuple(found)

    def _metre(self, bar: TokenBar) -> list[int]:
        return [token for token in bar.tokens if self._classes.metre[token]]

    def _played_from(self, bar: TokenBar, program: int) -> tuple[list[int], int]:
        """The bar's tokens where `program` plays before it, and the program that plays behind it; none if silent.

        A place at which there was nothing but a tempo goes with it.
        """
        classes, index = self._classes, self._classes.vocabulary.index
        found: list[int] = []
        own, notes = bar.program, 0
        for token in bar.tokens:
            if classes.tempo[token]:
                continue
            if classes.program_of[token] != NONE:
                own = int(classes.program_of[token])
                continue
            if classes.pitch[token]:
                notes += 1
                if own != program and own != NONE:
                    found.append(index[f"Program_{own}"])
                    program = own
            if classes.position[token] and classes.position[found[-1]]:
                found.pop()
            found.append(token)
        if classes.position[found[-1]]:
            found.pop()
        return (found, program) if notes else ([], program)


def recollect(classes: TokenClasses, tokens: Sequence[int], pieces: int = 1) -> Recollection:
    """What may come again of music that was read.

    Args:
        classes: of the vocabulary.
        tokens: of the music.
        pieces: token bars in a bar.
    """
    memory = Memory(classes, pieces)
    memory.read(tokens)
    return Recollection(memory.bars, memory.program, share_of(classes, tokens), 0, 0)


def share_of(classes: TokenClasses, tokens: Iterable[int]) -> tuple[int, int]:
    """How many bars of music are the same as an earlier one, in places and pitches, and of how many.

    Counted are whole bars from the fifth on with at least three notes, where bars are tokens.
    """
    again = counted = place = 0
    seen: set[tuple[tuple[int, int, int], ...]] = set()
    program, number = NONE, -1
    notes: list[tuple[int, int, int]] = []
    tables = classes.tables
    for token in (*tokens, None):
        if token is None or classes.begins_bar[token]:
            content = tuple(sorted(notes))
            if number >= FIRST_BARS and len(content) >= FEW_NOTES:
                again += content in seen
                counted += 1
            seen.add(content)
            notes, place, number = [], 0, number + 1
            continue
        if tables.ops[token] == Op.POSITION:
            place = tables.values[token]
        elif classes.program_of[token] != NONE:
            program = int(classes.program_of[token])
        elif classes.pitch[token]:
            notes.append((place, program, tables.values[token]))
    return again, counted


@dataclass(frozen=True)
class Recall:
    """Whether the next stretch comes from memory, and from how far back.

    Attributes:
        share: of the stretches that come again, below 1.
        random_seed, session: of its random numbers.
        stretch: how many stretches were asked for.
        lag: of the last stretch, in bars; 0: it was new.
    """

    share: float
    random_seed: int
    session: int
    stretch: int = 0
    lag: int = 0

    @classmethod
    def of(cls, recall: float, before: Recollection, random_seed: int, session: int) -> Recall:
        """For an asked share, going on from what was before."""
        again, counted = before.seen
        expected = (again + SEED_WEIGHT * USUAL) / (counted + SEED_WEIGHT)
        shares = (0.0, expected, max(expected, MOST_RECALL))
        share = float(np.interp(recall, (0.0, USUAL, MOST_RECALL), shares))
        return cls(share, random_seed, session, before.stretch, before.lag)

    @property
    def chance(self) -> float:
        """How often a row of stretches begins where none goes on, so that `share` of all come again."""
        rows = sum(lag.begins for lag in LAGS.values())
        length = sum(lag.begins / (1 - lag.goes_on) for lag in LAGS.values()) / rows
        return self.share / (self.share + (1 - self.share) * length)

    def next(
        self, memory: Memory, bars: int, program: int, allowed: Collection[int] = tuple(LAGS)
    ) -> tuple[Recall, tuple[int, ...]]:
        """For the next stretch: how it stands behind it, and its tokens; none where it is new.

        Args:
            memory: of all that was played.
            bars: of the stretch.
            program: that plays now.
            allowed: the lags from which bars may come again.
        """
        on, begins, place = uniform(self.random_seed, self.session, _DRAWS + self.stretch, 3)[0].tolist()
        after = replace(self, stretch=self.stretch + 1, lag=0)
        if self.lag and on < LAGS[self.lag].goes_on:
            lags = [self.lag]
        elif begins < self.chance:  # right behind a seed, its last bars would be its close once more
            lags = [lag for lag in LAGS if self.stretch or lag > min(LAGS)]
        else:
            return after, ()
        lags = [lag for lag in lags if lag in allowed]
        tokens = {lag: found for lag in lags if (found := memory.again(lag, bars, program))}
        left = place * sum(LAGS[lag].begins for lag in tokens)
        for lag, found in tokens.items():
            left -= LAGS[lag].begins
            if left < 0:
                return replace(after, lag=lag), found
        return after, ()
