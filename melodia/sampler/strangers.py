"""Programs that join music that stays and have not been heard yet.

A model has learned how parts go on, not how one joins music that was made without it: left alone, it lets a bass play
four notes in eight bars. In real music a part that plays at all is seldom silent: where another begins a note and it is
free, it mostly begins one, too, most of all at bar lines and beats (`habits`). So where the model passes over such a
place, the program is asked, as often as parts of its family begin there; what it plays is the model's to say.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import copy

import numpy as np
from numpy.typing import NDArray

from melodia.decode import uniform
from melodia.grammar import GrammarState
from melodia.grammar.state import NONE
from melodia.notes import voice
from melodia.sampler.classes import TokenClasses
from melodia.sampler.habits import DRUMS_BEGIN, habit_of

Mask = NDArray[np.bool_]

COMMON = 0.05
"""Where in a quarter note fewer of the others' notes begin than this share, nobody new begins any."""

PLAIN = 0.5
"""Only where so many of the others' notes keep to common places: else nobody plays in time."""

_DRAWS = 3 << 62
"""Positions of random numbers that no token has, nor `recall`."""

_NOBODY = -1


class Strangers:
    """The strangers of one continuation, and who has been asked at the present place. Ticks are grid ticks.

    Args:
        classes: of the vocabulary.
        programs: theirs, -1 for the drums.
        onsets: of the notes that stay, ascending.
        random_seed, session: of the random numbers that decide.
    """

    def __init__(
        self,
        classes: TokenClasses,
        programs: Collection[int],
        onsets: NDArray[np.int64],
        random_seed: int = 0,
        session: int = 0,
    ) -> None:
        self.programs = tuple(sorted(programs, key=voice))
        self._classes = classes
        self._onsets = frozenset(onsets.tolist())
        self._random = (random_seed, session)
        self._asked = (0, _NOBODY)  # at which tick, and up to which voice
        quarter = classes.tables.ticks_per_quarter
        begun = np.bincount(onsets % quarter, minlength=quarter)
        common = begun >= COMMON * len(onsets)
        common[[0, quarter // 2]] = True
        self._common: Mask | None = common if begun[common].sum() >= PLAIN * len(onsets) else None
        if self._common is not None and self.programs == (-1,):  # the time is theirs
            self._common = np.isin(np.arange(quarter), (0, quarter // 2))

    def fork(self, random_seed: int, session: int) -> Strangers:
        """An independent copy with random numbers of its own."""
        twin = copy(self)
        twin._random = (random_seed, session)
        return twin

    def odd_places(self, s: GrammarState) -> Mask | None:
        """Position tokens that lead where in a quarter note the others hardly ever begin, bool [V]; None for none."""
        if self._common is None:
            return None
        ticks = s.bar_start + self._classes.values * s.unit
        return self._classes.position & ~self._common[ticks % len(self._common)]

    def ask(self, s: GrammarState, legal: Mask, rank: int) -> Mask | None:
        """Ask those that a token passes over at a place at which others begin.

        Args:
            s: where the grammar stands: between two notes.
            legal: what it allows, bool [V].
            rank: the voice of the token's program; `melodia.notes.LAST_VOICE` + 1 where it leads away from the place.

        Returns:
            what begins a note of the first that is to play, bool [V]; None: none is.
        """
        if s.place < 0 or s.now not in self._onsets:
            return None
        asked = self._asked[1] if self._asked[0] == s.now else _NOBODY
        for program in self.programs:
            if not asked < voice(program) < rank:
                continue
            self._asked = (s.now, voice(program))
            row = s.heard_row(program)
            if row is not None and row.max() > s.now:
                continue  # it plays already
            begins = self._classes.pitch if s.program == program else self._classes.program_of == program
            begins = begins & legal
            if begins.any() and self._draw(s.now, program) < self._chance(s, program):
                return begins
        return None

    def _draw(self, tick: int, program: int) -> float:
        random_seed, session = self._random
        return float(uniform(random_seed, session, _DRAWS + tick, voice(program) + 1)[0, -1])

    def _chance(self, s: GrammarState, program: int) -> float:
        """How likely the program begins a note here."""
        tables = self._classes.tables
        top, bottom = tables.metres[s.metre] if s.metre != NONE else (4, 4)
        compound = bottom >= 8 and top % 3 == 0
        beat = 4 * tables.ticks_per_quarter * (3 if compound else 1) // bottom
        place = s.now - s.bar_start
        at_bar, at_beat, at_half, elsewhere = DRUMS_BEGIN if program < 0 else habit_of(program).begins
        if place == 0:
            return at_bar
        if place % beat == 0:
            return at_beat
        return at_half if 2 * place % beat == 0 else elsewhere
