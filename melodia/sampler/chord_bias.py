"""How a chord that new music follows leans the model's opinion of pitches.

A chord is evidence of what is played while it holds. Let h(x) be 1 for a pitch of the chord and exp(-`FOREIGN`) for any
other, times exp(-`FOREIGN_BASS`) for a pitch in the bass's register that is not the chord's bass. A pitch then gets a
probability in proportion to p(x) h(x), where p is what it has without the chord: Bayes' rule, for notes that tell of
the chord independently of each other. It is taken relative to the mean of h over the seed's pitches, those of the
bass's register and the others apart, so that about as many notes come in each as without.

The rest is done by choosing among branches: how much of the sounding time belongs to the chords, and whether each chord
begins over its bass, counts beside the texture.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melodia.decode import Bias
from melodia.decode.bias import PROGRAM_NUMBERS
from melodia.harmony import Chord
from melodia.notes import notes_of_score
from melodia.sampler.bias import SMOOTHING, pitches_of
from melodia.sampler.classes import TokenClasses
from melodia.sampler.texture import texture_of

if TYPE_CHECKING:
    from symusic.core import ScoreTick

FOREIGN = 1.0
"""How strongly pitches that are not of the chord are held back, in nats.

Stronger chords repeat their notes. Of 18 held-out pieces, 0.8 nats (and 1.5 in the bass) keep 77 % of the notes' time
in the chords and leave 23 % of the top notes where they are, 1.3 nats (and 2.5) 89 % and 28 %; without chords it is 45
% and 16 %. With 1.0 and 2.0 it is 83 % and 26 % of 36 pieces (`python -m benchmarks.harmonies`)."""

FOREIGN_BASS = 2.0
"""The same of pitches in the bass's register that are not the chord's bass."""

BASS = 50
"""What lies lower is the bass's where no seed says it."""

OCTAVE = 12
_PITCHES = np.arange(128)


class ChordBias:
    """The bias under each chord.

    Args:
        classes: of the vocabulary.
        base: the bias without chords; None for none.
        seed: the music before; None for none.
    """

    def __init__(self, classes: TokenClasses, base: Bias | None, seed: ScoreTick | None) -> None:
        self._classes = classes
        self._base = base or _no_bias(classes)
        self._heard: NDArray[np.int64] = sum(pitches_of(seed).values(), np.zeros(128, np.int64))
        self._bass = bass_of(seed)
        self._biases: dict[Chord, Bias] = {}

    def under(self, chord: Chord | None) -> Bias:
        """The bias while a chord holds; None for none."""
        if chord is None:
            return self._base
        if chord not in self._biases:
            self._biases[chord] = self._with(chord)
        return self._biases[chord]

    def _with(self, chord: Chord) -> Bias:
        held_back = np.where(np.isin(_PITCHES % OCTAVE, sorted(chord.classes)), 0.0, -FOREIGN)
        is_bass = chord.bass == _PITCHES % OCTAVE
        low = self._bass >= _PITCHES
        held_back[low & ~is_bass] -= FOREIGN_BASS
        heard = self._heard + SMOOTHING / 128
        for register in (low, ~low):
            mean = np.average(np.exp(held_back), weights=heard * register) if register.any() else 1.0
            held_back[register] -= np.log(mean)
        token, _, pitch = self._classes.begun
        row = np.bincount(token, held_back[pitch], minlength=self._classes.vocabulary.size)
        return replace(self._base, rows=self._base.rows + row.astype(np.float32))


def _no_bias(classes: TokenClasses) -> Bias:
    """One that changes nothing, of the tokens that begin pitched notes."""
    members = np.zeros(classes.vocabulary.size, np.bool_)
    members[classes.begun[0]] = True
    rows = np.zeros((1, len(members)), np.float32)
    return Bias(rows, np.zeros(PROGRAM_NUMBERS, np.int32), members, 1.0)


def bass_of(seed: ScoreTick | None) -> float:
    """Up to which pitch the bass plays: where the seed's outer voices lie far apart, the lower third between them."""
    if seed is None:
        return BASS
    whole = texture_of(notes_of_score(seed), seed.ticks_per_quarter, 0, seed.end())
    if whole is None or whole.top is None or whole.bottom is None:
        return BASS
    apart = whole.top - whole.bottom
    return whole.bottom + apart / 3 if apart >= OCTAVE else -1
