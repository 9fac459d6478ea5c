"""How music that stays leans what is played beside it, and what programs play that nobody has heard.

A new note is chosen before the model has read the notes that stay of the programs behind its own, let alone what comes
next. What will sound in the quarter note that begins here is known, though, and evidence of what fits: h(x) is 1 for a
pitch class that sounds, exp(-`FOREIGN`) for another one, times exp(-`RUB`) where it lies a semitone off one that lasts.
A pitch then gets a probability in proportion to p(x) h(x), as under a chord (`chord_bias`), and p's exponent is lowered
for the same reason.

Of a program that nobody has heard (`strangers`) there is more to say: it stays near what it has played so far, and
within the range of its family, whose notes are about as long (`habits`); and it is about as loud as the music that it
joins, which grew soft with it where it was not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melodia.decode import Bias
from melodia.decode.bias import PROGRAM_NUMBERS
from melodia.grammar import GrammarState, Op
from melodia.notes import Notes, notes_of_score
from melodia.sampler.bias import outside_of
from melodia.sampler.chord_bias import EXPONENT, OCTAVE, no_bias
from melodia.sampler.classes import TokenClasses
from melodia.sampler.habits import habit_of
from melodia.sampler.strangers import Strangers
from melodia.sampler.together import sounding

if TYPE_CHECKING:
    from symusic.core import ScoreTick

    from melodia.sampler.kept import Kept

FOREIGN = 1.1
"""How strongly pitch classes that do not sound are held back, in nats."""

RUB = 1.6
"""The same of those a semitone off one that sounds for a third of the quarter note."""

NEAR, NEAR_CHORDS = 4, 10
"""Semitones from what it has played last within which a part of single notes, or of chords, is at home."""

ASTRAY = 3.0
"""Semitones beyond that, or outside the family's range, that count as much as a nat."""

LENGTHS = 1.0
"""Standard deviation of the logarithms of note lengths around those of the family."""

STEADY = 8.0
"""Standard deviation of velocities, at least, around the mean of the music that is joined."""

_PITCHES = np.arange(128)


class PartBias:
    """The bias of parts that are new, or beside music that stays. Ticks are grid ticks.

    Args:
        classes: of the vocabulary.
        kept: the notes that stay, in grid ticks; None for none.
        strangers: who joins in; None for nobody.
        velocities: of the music that they join; may be empty.
    """

    def __init__(
        self,
        classes: TokenClasses,
        kept: Notes | None,
        strangers: Strangers | None,
        velocities: NDArray[np.int64] | None = None,
    ) -> None:
        self._classes = classes
        self._quarter = classes.tables.ticks_per_quarter
        self._none = no_bias(classes)
        self._strangers = frozenset(strangers.programs if strangers else ())
        self._alone = strangers.soloists if strangers else frozenset()
        self._notes = None if kept is None else kept.select(kept.program >= 0)
        self._around: dict[int, NDArray[np.float64]] = {}
        self._biases: dict[tuple[object, ...], Bias] = {}
        ops = np.array(classes.tables.ops)
        self._lengths, self._velocities = ops == Op.DURATION, ops == Op.VELOCITY
        self._loudness = np.zeros(len(ops))
        if velocities is not None and len(velocities):
            off = (classes.values - velocities.mean()) / max(STEADY, float(velocities.std()))
            self._loudness = self._velocities * off**2 / 2

    @classmethod
    def of(
        cls, classes: TokenClasses, seed: ScoreTick | None, kept: Kept | None, strangers: Strangers | None
    ) -> PartBias | None:
        """The bias where music stays or somebody joins in; else None."""
        if kept is None and strangers is None:
            return None
        joined = seed if kept is None else kept.score
        velocities = None if joined is None else notes_of_score(joined).velocity
        return cls(classes, None if kept is None else kept.notes, strangers, velocities)

    def under(self, base: Bias | None, s: GrammarState, *, chords: bool) -> Bias:
        """The bias at a place.

        Args:
            base: without that music; None for none.
            s: where the grammar stands.
            chords: whether `base` says which pitch classes fit already.
        """
        base = base or self._none
        around = None if chords else self._around_of(s.now)
        stranger = s.program in self._strangers
        home = self._home(s) if stranger and s.program >= 0 else -1
        if around is None and not stranger:
            return base
        key = (base, s.program, s.unit, home, None if around is None else around.tobytes())
        if key not in self._biases:
            self._biases[key] = self._made(base, s, around, home)
        return self._biases[key]

    def _around_of(self, tick: int) -> NDArray[np.float64] | None:
        """By how many nats each pitch class is held back in the quarter note from a tick on, [12]; None: by none."""
        if self._notes is None:
            return None
        if tick not in self._around:
            time = sounding(self._notes, tick, tick + self._quarter).sum(0)
            sounds, strong = time > 0, time >= self._quarter / 3
            rubs = (np.roll(strong, 1) | np.roll(strong, -1)) & ~sounds
            self._around[tick] = (FOREIGN * ~sounds + RUB * rubs) * sounds.any()
        held_back = self._around[tick]
        return held_back if held_back.any() else None

    def _home(self, s: GrammarState) -> int:
        """The mean of the pitches that a program has played last; -1 where it has not played."""
        row = s.heard_row(s.program)
        if row is None or not row.any():
            return -1
        return round(float(np.flatnonzero(row >= row.max() - 2 * self._quarter).mean()))

    def _made(self, base: Bias, s: GrammarState, around: NDArray[np.float64] | None, home: int) -> Bias:
        classes, program = self._classes, s.program
        leaning, stranger = np.zeros(128), program in self._strangers
        pitched = stranger and program >= 0
        if around is not None:
            leaning -= (around + np.log(np.exp(-around).mean()))[_PITCHES % OCTAVE]
        if pitched:
            leaning -= outside_of(habit_of(program).low, habit_of(program).high) / ASTRAY
        if home >= 0:
            near = NEAR if program in self._alone else NEAR_CHORDS
            leaning -= np.maximum(0, abs(_PITCHES - home) - near) / ASTRAY
        token, _, pitch = classes.begun
        row = base.of(program).row + np.bincount(token, leaning[pitch], minlength=len(base.members))
        members = base.members
        if stranger:
            members, row = members | self._velocities, row - self._loudness
        if pitched:
            members = members | self._lengths
            quarters = np.maximum(1, classes.values) * s.unit / self._quarter
            off = np.log(quarters / habit_of(program).length) / LENGTHS
            row = row - self._lengths * off**2 / 2
        exponent = base.exponent if around is None else EXPONENT * base.exponent
        return Bias(row.astype(np.float32)[None], np.zeros(PROGRAM_NUMBERS, np.int32), members, exponent)
