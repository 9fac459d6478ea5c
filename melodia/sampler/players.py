"""Who plays: the programs at the end of a seed, how long each of them rests there, and when one is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melodia.engine.rules import Bits, pack
from melodia.grammar.state import NONE
from melodia.notes import program_of
from melodia.sampler.classes import TokenClasses

if TYPE_CHECKING:
    from symusic.core import ScoreTick

REST_BARS = 1
"""A program may rest for so many bars, or as long as it did in the seed; then it is asked for."""

OPEN_BARS, OPEN_PROGRAMS = 2, 4
"""Music from nothing finds its programs in so many bars, and so many of them at most."""

RECENT_QUARTERS = 32.0
"""A program that is silent for the last 32 quarter notes of the seed plays no more."""


@dataclass(frozen=True)
class Players:
    """The programs that are to play on.

    Attributes:
        rests: by program, how long each may be silent, in grid ticks.
        tune: the programs with pitches, where drums play beside them.
    """

    rests: Mapping[int, int] = field(default_factory=dict)
    tune: frozenset[int] = frozenset()

    @classmethod
    def of(cls, rests: Mapping[int, int], programs: Collection[int]) -> Players:
        """The players of programs, -1 for the drums.

        >>> Players.of({}, (0, 40, -1)).tune == {0, 40}, Players.of({}, (0, 40)).tune == set()
        (True, True)
        """
        return cls(rests, frozenset(p for p in programs if p >= 0) if -1 in programs else frozenset())

    def due(self, heard: Mapping[int, int], start: int, bar_length: int) -> tuple[frozenset[int], ...]:
        """Whom to ask for in the bar that begins at a tick, given until when each program has been heard.

        Returns:
            groups: of each one program is to play.

        >>> Players({0: 0, 40: 96}).due({0: 0, 40: 100}, 200, 48) == (frozenset({0}), frozenset({40}))
        True
        """
        least = REST_BARS * bar_length
        rested = {p for p, rest in self.rests.items() if start - heard.get(p, start) > max(rest, least)}
        groups = [frozenset({program}) for program in sorted(rested)]
        # Drums alone: for no bar where some program of the seed's tune never rested so long, else for one.
        sparse = all(self.rests.get(p, bar_length) >= bar_length for p in self.tune)
        alone = bar_length if self.tune and sparse else 0
        if not rested & self.tune and all(heard.get(p, 0) <= start - alone for p in self.tune):
            groups.append(self.tune)
        return tuple(group for group in groups if group)


@dataclass(frozen=True)
class Ensemble:
    """The programs that music from nothing has found, and keeps.

    Attributes:
        programs: ascending.
        others: tokens that lead to other programs, bool [V].
        bits: the same as words [W].
    """

    programs: tuple[int, ...]
    others: NDArray[np.bool_]
    bits: Bits

    @classmethod
    def found(cls, classes: TokenClasses, programs: Collection[int], bars: int) -> Ensemble | None:
        """The ensemble of the programs that have played; None while others may join, `bars` bars from the beginning."""
        if not programs or (bars < OPEN_BARS and len(programs) < OPEN_PROGRAMS):
            return None
        others = classes.other_programs(programs)
        return cls(tuple(sorted(programs)), others, pack(others))


class Cast:
    """Who plays in one continuation. Ticks are grid ticks; V = vocabulary size.

    Args:
        classes: of the vocabulary.
        rests: by program, how long each may be silent.
        programs: those that may play, -1 for the drums; None for all.
        finds: music from nothing keeps the programs that it begins with.
        silent: nobody is asked for.

    Attributes:
        finds: whether it still waits for those programs.
    """

    def __init__(
        self,
        classes: TokenClasses,
        rests: Mapping[int, int],
        programs: Collection[int] | None,
        *,
        finds: bool,
        silent: bool,
    ) -> None:
        self._classes = classes
        self._silent = silent
        self._players = Players() if silent else Players.of(rests, programs or ())
        self._due: tuple[frozenset[int], ...] = ()  # the next notes must be of these, one of each group
        self.finds = finds
        self._ensemble: Ensemble | None = None

    @property
    def settled(self) -> bool:
        """Whether `narrow` forbids nothing but `others`, and goes on so until the next bar."""
        return not (self.finds or self._due)

    @property
    def found(self) -> tuple[int, ...] | None:
        """The programs that music from nothing has found; None before."""
        return None if self._ensemble is None else self._ensemble.programs

    @property
    def others(self) -> Bits | None:
        """The tokens that lead to others than those, as words [W]; None before."""
        return None if self._ensemble is None else self._ensemble.bits

    def narrow(self, program: int, wanted: NDArray[np.bool_]) -> None:
        """Take out of `wanted`, bool [V], what may not come now, while a program plays."""
        classes = self._classes
        if self._ensemble is not None:
            wanted &= ~self._ensemble.others
        if self._due:
            due = frozenset().union(*self._due)
            kept = np.isin(classes.program_of, list(due))
            if program in due:
                kept |= classes.pitch & (classes.program_of == NONE)
            wanted &= kept | ~classes.plays

    def played(self, program: int) -> None:
        """Take note of a note."""
        self._due = tuple(group for group in self._due if program not in group)

    def enter_bar(self, heard: Mapping[int, int], start: int, bar_length: int) -> bool:
        """Whether somebody is asked for in the bar that begins at a tick; as `Players.due`."""
        self._due = self._players.due(heard, start, bar_length)
        return bool(self._due)

    def leave_bar(self) -> None:
        """Ask for nobody any more."""
        self._due = ()

    def find(self, programs: Collection[int], bars: int) -> None:
        """Music from nothing: keep the programs that have played once they are enough, `bars` bars from its begin."""
        self._ensemble = Ensemble.found(self._classes, programs, bars)
        if self._ensemble is not None:
            self.finds = False
            if not self._silent:
                self._players = Players.of({}, self._ensemble.programs)


def rests_of(
    seed: ScoreTick | None, programs: Collection[int] | None, ticks_per_quarter: int, *, alone: bool = False
) -> dict[int, int]:
    """The longest rest between two notes of each program that plays at the seed's end, in grid ticks.

    Args:
        seed: the music before; None for none.
        programs: those that may play on, -1 for the drums; None for all.
        ticks_per_quarter: of the grid.

    Returns:
        by program; empty where fewer than two play, unless `alone`.
    """
    if seed is None:
        return {}
    spans: dict[int, list[tuple[int, int]]] = {}
    for track in seed.tracks:
        program = program_of(track)
        if len(track.notes) and (programs is None or program in programs):
            notes = track.notes.numpy()
            starts, lengths = notes["time"].tolist(), notes["duration"].tolist()
            spans.setdefault(program, []).extend(
                (start, start + length) for start, length in zip(starts, lengths, strict=True)
            )
    end, quarter = seed.end(), seed.ticks_per_quarter
    found = {}
    for program, notes_of in spans.items():
        start, stop = np.array(sorted(notes_of)).T
        heard = np.maximum.accumulate(stop)
        if heard[-1] >= end - RECENT_QUARTERS * quarter:
            longest = max(0, int((start[1:] - heard[:-1]).max(initial=0)))
            found[program] = longest * ticks_per_quarter // quarter
    return found if alone or len(found) > 1 else {}
