"""Programs that join music and have not been heard yet: beside music that stays, or in a continuation.

A model has learned how parts go on, not how one joins music that was made without it: left alone, it lets a bass play
four notes in eight bars. In real music a part that plays at all is seldom silent: where another begins a note and it is
free, it mostly begins one, too, most of all at bar lines and beats (`habits`). So where the model passes over such a
place, the program is asked, as often as parts of its family begin there; what it plays is the model's to say.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melodia.decode import uniform
from melodia.grammar import GrammarState
from melodia.grammar.state import NONE
from melodia.notes import LAST_VOICE, Notes, notes_of_score, voice
from melodia.sampler.classes import TokenClasses
from melodia.sampler.habits import DRUMS_BEGIN, habit_of, kind_of_place
from melodia.sampler.request import Request

if TYPE_CHECKING:
    from symusic.core import ScoreTick

Mask = NDArray[np.bool_]

SOLO = 0.9
"""A program that sounds alone at so many of its onsets plays one note at a time."""

COMMON = 0.05
"""Where in a quarter note fewer of the others' notes begin than this share, nobody begins any beside them."""

PLAIN = 0.5
"""Only where so many of the others' notes keep to common places: else nobody plays in time."""

_DRAWS = 3 << 62
"""Positions of random numbers that no token has, nor `recall`."""

_NOBODY = -1


class Strangers:
    """Who joins in one continuation, and who has been asked at the present place. Ticks are grid ticks.

    Args:
        classes: of the vocabulary; bars are tokens, and none is a byte pair.
        programs: those that nobody has heard, -1 for the drums.
        new: all programs of the new notes.
        soloists: those of them that play one note at a time.
        onsets: where the notes begin that stay, or that came before; None: of no such notes the time is known.
        random_seed, session: of the random numbers that decide.
    """

    def __init__(
        self,
        classes: TokenClasses,
        programs: Collection[int],
        new: Collection[int],
        soloists: Collection[int] = (),
        onsets: NDArray[np.int64] | None = None,
        random_seed: int = 0,
        session: int = 0,
    ) -> None:
        self.programs = tuple(sorted(programs, key=voice))
        self.soloists = frozenset(soloists)
        self._all_solo = bool(soloists) and self.soloists == set(new)
        self._classes = classes
        self._random = (random_seed, session)
        self._asked = (0, _NOBODY)  # at which tick, and up to which voice
        self._common: Mask | None = None  # places in a quarter note at which somebody may begin
        self._alone: Mask | None = None  # and the drums, before anybody else has
        drums = -1 in self.programs
        if onsets is not None and (drums or (self.programs and set(self.programs) == set(new))):
            self._common, alone = common_places(onsets, classes.tables.ticks_per_quarter) or (None, None)
            self._alone = alone if drums else None
            if set(new) == {-1}:
                self._common = alone

    @classmethod
    def of(
        cls,
        classes: TokenClasses,
        request: Request,
        seed: ScoreTick | None,
        strangers: Collection[int],
        kept: Notes | None,
        slip: float = 0.0,
    ) -> Strangers | None:
        """Who joins in a continuation that was asked for; None where nobody does, beside no music that stays.

        Args:
            classes: of the vocabulary.
            request: what was asked for.
            seed: the music before; None for none.
            strangers: the programs that were asked for and do not play at its end.
            kept: the notes that stay, in grid ticks; None for none.
            slip: by how many quarter notes grid time is ahead of the seed's.
        """
        new = request.programs or ()
        if kept is not None:
            solo, onsets = soloists(seed, new), kept.onset
        else:
            known = classes.bar.any() and not classes.vocabulary.expansions and not classes.has_micro
            if not known or not strangers or len(new) == 1:
                return None
            solo, onsets = soloists(seed, strangers), None
            if seed is not None:
                quarters = notes_of_score(seed).onset / seed.ticks_per_quarter + slip
                onsets = np.rint(quarters * classes.tables.ticks_per_quarter).astype(np.int64)
        return cls(classes, strangers, new, solo, onsets, request.random_seed, request.session)

    def fork(self, random_seed: int) -> Strangers:
        """An independent copy with another random seed."""
        twin = copy(self)
        twin._random = (random_seed, self._random[1])
        return twin

    def narrow(self, s: GrammarState, wanted: Mask) -> None:
        """Take out of `wanted`, bool [V], second notes of soloists, and places at which nobody new should begin any.

        Those are where all are still at a note, and those where in a quarter note hardly any notes begin that stay, or
        that drums join. Where those have halves, the drums begin alone on none but halves.
        """
        classes = self._classes
        rows = {program: s.heard_row(program) for program in self.soloists}
        until = {program: 0 if row is None else int(row.max()) for program, row in rows.items()}
        for program, end in until.items():
            if end > s.now:
                wanted &= classes.program_of != program
                if s.program == program:
                    wanted &= ~classes.pitch
        quarter = classes.tables.ticks_per_quarter
        if self._alone is not None and s.onset != s.now and not self._alone[s.now % quarter]:
            others = wanted & (classes.program_of != -1)
            if s.program == -1:
                others &= ~classes.pitch
            if (others & (classes.begins | classes.pitch)).any():
                wanted &= others
        if not self._all_solo and self._common is None:
            return
        places = s.bar_start + classes.values * s.unit
        if self._all_solo:
            wanted &= ~(classes.position & (places < min(until.values())))
        if self._common is not None:
            wanted &= ~(classes.position & ~self._common[places % len(self._common)])

    def ask(self, s: GrammarState, legal: Mask, coming: int) -> Mask | None:
        """Ask those that a token passes over at a place at which others begin.

        Args:
            s: where the grammar stands: between two notes.
            legal: what it allows, bool [V].
            coming: the token.

        Returns:
            what begins a note of the first that is to play, bool [V]; None: none is.
        """
        classes = self._classes
        plays = bool(classes.plays[coming])
        if s.place < 0 or not (plays or s.onset == s.now):
            return None
        named = int(classes.program_of[coming])
        rank = voice(s.program if named == NONE else named) if plays else LAST_VOICE + 1
        asked = self._asked[1] if self._asked[0] == s.now else _NOBODY
        for program in self.programs:
            if not asked < voice(program) < rank:
                continue
            self._asked = (s.now, voice(program))
            row = s.heard_row(program)
            if row is not None and row.max() > s.now:
                continue  # it plays already
            begins = legal & (classes.pitch if s.program == program else classes.program_of == program)
            if begins.any() and self._draw(s.now, program) < self._chance(s, program):
                return begins
        return None

    def _draw(self, tick: int, program: int) -> float:
        random_seed, session = self._random
        return float(uniform(random_seed, session, _DRAWS + tick, voice(program) + 1)[0, -1])

    def _chance(self, s: GrammarState, program: int) -> float:
        """How likely the program begins a note here."""
        tables = self._classes.tables
        metre = tables.metres[s.metre] if s.metre != NONE else (4, 4)
        begins = DRUMS_BEGIN if program < 0 else habit_of(program).begins
        return begins[kind_of_place(s.now - s.bar_start, metre, tables.ticks_per_quarter)]


def soloists(seed: ScoreTick | None, programs: Collection[int]) -> frozenset[int]:
    """The programs that play one note at a time: in the seed, or, of those that it does not have, by their family."""
    heard = None if seed is None else notes_of_score(seed)
    solo = set()
    for program in programs:
        notes = None if heard is None else heard.select(heard.program == program)
        if program >= 0 and notes is not None and len(notes.onset):
            alone = plays_alone(notes)
        else:
            alone = program >= 0 and habit_of(program).alone
        if alone:
            solo.add(program)
    return frozenset(solo)


def plays_alone(notes: Notes) -> bool:
    """Whether the notes of one program sound one at a time.

    >>> from melodia.notes import notes_of_events
    >>> plays_alone(notes_of_events([(0, 12, 40, 60), (12, 12, 40, 62)]))
    True
    >>> plays_alone(notes_of_events([(0, 12, 40, 60), (0, 12, 40, 64)]))
    False
    """
    places = np.unique(notes.onset)
    begun = np.searchsorted(np.sort(notes.onset), places, "right")
    ended = np.searchsorted(np.sort(notes.end), places, "right")
    return bool((begun - ended <= 1).mean() >= SOLO)


def common_places(onsets: NDArray[np.int64], quarter: int) -> tuple[Mask, Mask] | None:
    """Where in a quarter note notes begin, and where drums do that keep their time.

    Args:
        onsets: of the notes.
        quarter: ticks in a quarter note.

    Returns:
        two masks, bool [quarter]; None where there are no notes, or they do not keep to any time.

    >>> triplets, straight = np.arange(0, 96, 4), np.arange(0, 96, 3)
    >>> [np.flatnonzero(places).tolist() for places in common_places(straight, 12)]
    [[0, 3, 6, 9], [0, 6]]
    >>> [np.flatnonzero(places).tolist() for places in common_places(triplets, 12)]
    [[0, 4, 6, 8], [0, 4, 8]]
    """
    begun = np.bincount(onsets % quarter, minlength=quarter)
    common, halves = begun >= max(1, COMMON * len(onsets)), np.isin(np.arange(quarter), (0, quarter // 2))
    alone = halves if common[quarter // 2] or not common[1:].any() else common | (np.arange(quarter) == 0)
    common = common | halves
    return (common, alone) if begun[common].sum() >= max(1, PLAIN * len(onsets)) else None
