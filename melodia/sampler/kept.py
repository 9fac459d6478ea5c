"""Music that stays, and new notes beside it.

The notes that stay come at their places, in the order in which the model has learned to read the notes of a place, as
if it had chosen them. It is asked before each of them whether something else comes first; whatever would pass over one
is overruled. So it hears what is played with a new note before it, or right behind it, but nothing of what comes.

Tried, and left out: to choose between branches by how little what stays surprises the model behind what was played. New
parts were no more like the real ones in their pitch classes (20 held-out pieces: 0.61 alike, bar by bar, either way).
"""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melodia.errors import ConfigError
from melodia.grammar import GrammarState, Op, TokenReader
from melodia.grammar.state import NONE
from melodia.notes import LAST_VOICE, Notes, notes_of_events, notes_of_score, voice
from melodia.sampler.classes import TokenClasses
from melodia.sampler.habits import habit_of
from melodia.sampler.players import rests_of
from melodia.sampler.request import Request
from melodia.sampler.seed import open_music
from melodia.sampler.session import Session
from melodia.sampler.strangers import Strangers
from melodia.sampler.together import together

if TYPE_CHECKING:
    from symusic.core import ScoreTick

    from melodia.tokenizer import Tokenizer

Mask = NDArray[np.bool_]

SOUNDS = 0.9
"""A part that plays sounds most of the time, and not always (`python -m benchmarks.accompaniments`)."""

SOLO = 0.9
"""A program that sounds alone at so many of its onsets plays one note at a time."""


@dataclass(frozen=True)
class _Note:
    tick: int
    program: int
    pitch: int
    length: int
    tokens: tuple[int, ...]


class Kept:
    """The notes that stay, and which of them comes next. Ticks are grid ticks; V = vocabulary size.

    Args:
        classes: of the vocabulary.
        score: the notes.
        ids: the same as tokens [N].
        join: where they begin.
        new: the programs of the new notes.
        soloists: those of them that play one note at a time.
        strangers: those of them that have not been heard.

    Attributes:
        score: the notes.
        programs: whose they are, -1 for the drums.
        soloists: as given.
        strangers: as `melodia.sampler.strangers` makes them join in.
        notes: the same in grid ticks.

    Raises:
        ConfigError: the vocabulary has no bars, or byte pairs.
    """

    def __init__(
        self,
        classes: TokenClasses,
        score: ScoreTick,
        ids: NDArray[np.int32],
        join: int,
        new: Collection[int] = (),
        soloists: Collection[int] = (),
        strangers: Collection[int] = (),
    ) -> None:
        vocabulary, ops = classes.vocabulary, classes.tables.ops
        if not classes.bar.any() or vocabulary.expansions or classes.has_micro:
            raise ConfigError("`beside` needs a model with REMI tokens, without byte pairs")
        self.score = score
        self._classes = classes
        reader = TokenReader(vocabulary)
        described: list[int] = []
        notes = []
        self.programs: frozenset[int] = frozenset()
        for token in ids.tolist():
            if ops[token] in (Op.PROGRAM, Op.PITCH, Op.DRUM, Op.VELOCITY, Op.DURATION):
                described.append(token)
            for note in reader.feed(token):
                program = vocabulary.index[f"Program_{note.program}"]
                tokens = (program, *described[-3:])
                notes.append(_Note(join + note.onset, note.program, note.pitch, note.duration, tokens))
                self.programs |= {note.program}
                described = []
        self._notes = notes
        self._next = self._told = 0  # the note that comes next, and which of its tokens
        self._owed = False  # whether that token comes now
        self.soloists = frozenset(soloists)
        self._all_solo = bool(soloists) and set(soloists) == set(new)
        self.strangers = Strangers(
            classes, strangers, np.unique([note.tick for note in notes]).astype(np.int64)
        )
        self._all_strange = bool(strangers) and set(strangers) == set(new)
        self.notes = notes_of_events([(n.tick, n.length, n.program, n.pitch) for n in notes])
        self._theirs = np.isin(classes.program_of, sorted(self.programs))
        self._orders = np.where(classes.program_of == NONE, 129, classes.program_of)
        self._orders[classes.program_of == -1] = voice(-1)

    @classmethod
    def of(cls, request: Request, classes: TokenClasses, tokenizer: Tokenizer, start: Session) -> Kept | None:
        """What stays beside the music that was asked for behind a session; None where nothing does.

        Raises:
            ConfigError: some of the programs that were asked for play in it; or nothing says the metre or the tempo.
            MidiError, TokenizerError: as for a seed.
        """
        if request.beside is None:
            return None
        for name in ("metre", "tempo"):
            if getattr(request, name) is None and getattr(start.context, name) is None:
                raise ConfigError(
                    f"without a seed `beside` needs `{name}`; give that of the music that stays"
                )
        score, *_ = open_music(request.beside, tokenizer)
        programs = request.programs or ()
        ids = tokenizer.encode(score).ids
        heard = rests_of(start.seed, programs, classes.tables.ticks_per_quarter, alone=True)
        strangers = [program for program in programs if program not in heard]
        solo = soloists(start.seed, programs)
        kept = cls(classes, score, ids, start.context.join, programs, solo, strangers)
        both = sorted(kept.programs.intersection(programs))
        if both:
            raise ConfigError(
                f"`programs` {', '.join(map(str, both))} already play in the `beside` music, which stays; name others"
            )
        return kept

    def fork(self, random_seed: int, session: int) -> Kept:
        """An independent copy, for another continuation or branch, and its random numbers."""
        twin = copy(self)
        twin.strangers = self.strangers.fork(random_seed, session)
        return twin

    def continues(self, legal: Mask) -> int | None:
        """The token that must come now, inside one of the notes; None where the choice is free."""
        if self._told:
            token = self._notes[self._next].tokens[self._told]
            if legal[token]:
                self._owed = True
                return token
            self._pass()
        return None

    def skip(self, s: GrammarState) -> None:
        """Pass over notes that cannot come any more."""
        here = max(s.now, s.bar_start)
        while self._next < len(self._notes):
            note = self._notes[self._next]
            row = s.heard_row(note.program)
            if note.tick > here or (note.tick == here and (row is None or row[note.pitch] <= here)):
                break
            self._pass()  # its pitch sounds already, in another part of the same program

    def _pass(self) -> None:
        self._next, self._told = self._next + 1, 0

    def narrow(self, s: GrammarState, wanted: Mask) -> None:
        """Take out of `wanted`, bool [V], what plays their parts where they rest, and what belonged before them.

        And second notes of soloists, and places at which strangers would not be in time.
        """
        before = self._notes[self._next - 1] if self._next else None
        if before is not None and before.tick == s.now and s.place >= 0:
            wanted &= self._orders >= voice(before.program)
        self._narrow_soloists(s, wanted)
        if self._all_strange and (odd := self.strangers.odd_places(s)) is not None:
            wanted &= ~odd
        if self._sounds_now(s):
            return
        wanted &= ~self._theirs
        if s.program in self.programs:
            wanted &= ~self._classes.pitch

    def _narrow_soloists(self, s: GrammarState, wanted: Mask) -> None:
        """Take out second notes of soloists, and places at which all new programs are still at one."""
        classes = self._classes
        rows = {program: s.heard_row(program) for program in self.soloists}
        until = {program: 0 if row is None else int(row.max()) for program, row in rows.items()}
        for program, end in until.items():
            if end > s.now:
                wanted &= classes.program_of != program
                if s.program == program:
                    wanted &= ~classes.pitch
        if until and self._all_solo:
            places = s.bar_start + classes.values * s.unit
            wanted &= ~(classes.position & (places < min(until.values())))

    def overrule(self, s: GrammarState, legal: Mask, token: int) -> Mask | None:
        """What must come in place of a token that was chosen.

        Of one that passes over a note that stays, that note; of one that passes over a stranger who is asked here, what
        begins a note of that.

        Args:
            s: where the grammar stands.
            legal: what it allows, bool [V].
            token: what was chosen.

        Returns:
            legal tokens, bool [V]; None: the choice stands.
        """
        classes = self._classes
        if not (legal & classes.begins).any():
            return None  # inside a note, or in front of a metre
        instead, told = self._passed_over(s, legal, token)
        asked = self.strangers.ask(s, legal, self._rank(s, token if instead is None else instead))
        if asked is not None or instead is None:
            return asked
        if told is not None:
            self._told, self._owed = told, True
        only = np.zeros_like(legal)
        only[instead] = True
        return only

    def _passed_over(self, s: GrammarState, legal: Mask, token: int) -> tuple[int | None, int | None]:
        """The token that leads to the next note that stays, or begins it, and which of the note's it is then.

        Nones where the token that was chosen does not pass over that note.
        """
        classes = self._classes
        if self._next == len(self._notes):
            return None, None
        note = self._notes[self._next]
        if self._sounds_now(s):
            told = int(s.program == note.program)  # it need not be named again
            program = int(classes.program_of[token]) if classes.program_of[token] != NONE else s.program
            first = program not in self.programs and voice(program) < voice(note.program)
            passes = not (classes.plays[token] and first) and legal[note.tokens[told]]
            return (note.tokens[told], told) if passes else (None, None)
        place = (note.tick - s.bar_start) // s.unit
        passes = classes.bar[token] or classes.eos[token]
        passes |= classes.position[token] and classes.tables.values[token] > place
        if not passes or note.tick >= s.bar_end:
            return None, None
        instead = classes.vocabulary.index[f"Position_{place}"]
        return (instead if legal[instead] else None), None

    def _rank(self, s: GrammarState, token: int) -> int:
        """The voice that a token leads to; one behind the last where it leads away from the place."""
        named = int(self._classes.program_of[token])
        if named != NONE:
            return voice(named)
        return voice(s.program) if self._classes.plays[token] else LAST_VOICE + 1

    def _sounds_now(self, s: GrammarState) -> bool:
        """Whether the next note stands at the place that has been reached."""
        notes = self._notes
        return self._next < len(notes) and notes[self._next].tick == s.now and s.place >= 0

    def fit(self, notes: Notes, start: int, end: int) -> float:
        """How well new notes fit those that stay, between two ticks; only the order of such numbers means anything.

        The shares of the time in which they sound, up to `SOUNDS`, and have a pitch class in common, less twice that in
        which they rub.
        """
        found = together(notes, self.notes, start, end)
        return min(found.sounds, SOUNDS) + found.classes - 2 * found.rubs

    def after(self) -> None:
        """Take note of a token that has come."""
        if not self._owed:
            return
        self._told, self._owed = self._told + 1, False
        if self._told == len(self._notes[self._next].tokens):
            self._pass()


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
