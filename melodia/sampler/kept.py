"""Music that stays, and new notes beside it.

The notes that stay come at their places, in the order in which the model has learned to read the notes of a place, as
if it had chosen them. It is asked before each of them whether something else comes first; whatever would pass over one
is overruled. So it hears what is played with a new note before it, or right behind it, but nothing of what comes.

Tried, and left out: to choose between branches by how little what stays surprises the model behind what was played. New
parts were no more like the real ones in their pitch classes (20 held-out pieces: 0.61 alike, bar by bar, either way).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melodia.errors import ConfigError
from melodia.grammar import GrammarState, Op, TokenReader
from melodia.grammar.state import NONE
from melodia.notes import notes_of_events, voice
from melodia.sampler.classes import TokenClasses
from melodia.sampler.request import Request
from melodia.sampler.seed import open_music
from melodia.sampler.session import Session

if TYPE_CHECKING:
    from symusic.core import ScoreTick

    from melodia.tokenizer import Tokenizer

Mask = NDArray[np.bool_]


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

    Attributes:
        score: the notes.
        programs: whose they are, -1 for the drums.
        notes: the same in grid ticks.

    Raises:
        ConfigError: the vocabulary has no bars, or byte pairs.
    """

    def __init__(self, classes: TokenClasses, score: ScoreTick, ids: NDArray[np.int32], join: int) -> None:
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
        kept = cls(classes, score, ids, start.context.join)
        both = sorted(kept.programs.intersection(programs))
        if both:
            raise ConfigError(
                f"`programs` {', '.join(map(str, both))} already play in the `beside` music, which stays; name others"
            )
        return kept

    def fork(self) -> Kept:
        """An independent copy, for another continuation or branch."""
        return copy(self)

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
        """Take out of `wanted`, bool [V], what plays their parts where they rest, and what belonged before them."""
        before = self._notes[self._next - 1] if self._next else None
        if before is not None and before.tick == s.now and s.place >= 0:
            wanted &= self._orders >= voice(before.program)
        if self._sounds_now(s):
            return
        wanted &= ~self._theirs
        if s.program in self.programs:
            wanted &= ~self._classes.pitch

    def passed_over(self, s: GrammarState, legal: Mask, token: int) -> int | None:
        """What leads to the next note that stays, or begins it, where a token passes over it; else None.

        Args:
            s: where the grammar stands: between two notes.
            legal: what it allows, bool [V].
            token: what was chosen.
        """
        classes = self._classes
        if self._next == len(self._notes):
            return None
        note = self._notes[self._next]
        if self._sounds_now(s):
            program = int(classes.program_of[token]) if classes.program_of[token] != NONE else s.program
            first = program not in self.programs and voice(program) < voice(note.program)
            begins = note.tokens[self._untold(s)]
            return begins if not (classes.plays[token] and first) and legal[begins] else None
        place = (note.tick - s.bar_start) // s.unit
        passes = classes.bar[token] or classes.eos[token]
        passes |= classes.position[token] and classes.values[token] > place
        if not passes or note.tick >= s.bar_end:
            return None
        instead = classes.vocabulary.index[f"Position_{place}"]
        return instead if legal[instead] else None

    def tell(self, s: GrammarState) -> None:
        """Take note that what `passed_over` gave comes now."""
        if self._sounds_now(s):
            self._told, self._owed = self._untold(s), True

    def _untold(self, s: GrammarState) -> int:
        """With which of the next note's tokens it begins: its program need not be named again."""
        return int(s.program == self._notes[self._next].program)

    def _sounds_now(self, s: GrammarState) -> bool:
        """Whether the next note stands at the place that has been reached."""
        notes = self._notes
        return self._next < len(notes) and notes[self._next].tick == s.now and s.place >= 0

    def after(self) -> None:
        """Take note of a token that has come."""
        if not self._owed:
            return
        self._told, self._owed = self._told + 1, False
        if self._told == len(self._notes[self._next].tokens):
            self._pass()
