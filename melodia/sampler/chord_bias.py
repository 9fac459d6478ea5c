"""How a chord that new music follows leans the model's opinion of pitches.

A chord is evidence of what is played while it holds. Let h(x) be 1 for a pitch of the chord and exp(-`FOREIGN`) for any
other, times exp(-`FOREIGN_BASS`) for a pitch in the bass's register that is not the chord's bass. A pitch then gets a
probability in proportion to p(x) h(x), where p is what it has without the chord: Bayes' rule, for notes that tell of
the chord independently of each other. Such a product is sharper than p, and sharper music repeats its notes: the
exponent of p (see `bias`) is lowered by `EXPONENT`. h is taken relative to its mean over the seed's pitches, those of
the bass's register and the others apart, so that about as many notes come in each as without.

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
"""How strongly pitches that are not of the chord are held back, in nats."""

EXPONENT = 0.85
"""By what the exponent of the model's own probabilities is multiplied.

Of 18 held-out pieces under chords (`python -m benchmarks.harmonies`), 27 % of the top notes stay where they are with 1,
21 % with 0.75, where steps are a fifth larger; without chords 16 %."""

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
        self._base = base or no_bias(classes)
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
        return replace(
            self._base, rows=self._base.rows + row.astype(np.float32), exponent=EXPONENT * self._base.exponent
        )


def no_bias(classes: TokenClasses) -> Bias:
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
