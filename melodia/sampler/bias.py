"""The bias of pitches towards those of the seed: a product of two experts, the model and a histogram.

A model that was trained on much music holds a key less well than the piece it continues does, and cutting off what is
unlikely (temperature below 1, top-p) mends that at the price of the register: notes of a chord are written upwards, the
intervals above a note are spread wider than those below, so that what is cut off is what lies high. The seed itself
says which pitch classes belong here, whatever its scale, and how high and low it goes: a continuation that leaves that
range comes down to where most music lies.

With q(c) the share of a pitch class in the seed's notes and d the distance to the range of all but a few of them, in
semitones, the logit of each Pitch token gets w (log q(c) - d / 3), less what makes the mean of its exponential over the
seed's notes 1: where the model plays the classes as the seed does, as many notes come as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melodia.grammar import Op
from melodia.sampler.classes import TokenClasses
from melodia.sampler.request import Request

if TYPE_CHECKING:
    from symusic.core import ScoreTick

SMOOTHING = 1.0
"""Notes of each pitch class that are added to the seed's: no class is ever out of question."""

RANGE = (0.02, 0.98)
"""Quantiles of the seed's notes between which its range lies."""
OUTSIDE = 3.0
"""Semitones outside the range that count as much as a share of 1/e does among the classes."""


def seed_bias(classes: TokenClasses, seed: ScoreTick | None, request: Request) -> NDArray[np.float32] | None:
    """The bias of a continuation's logits, float32 [V]; None where there is none, or no seed with pitches."""
    if not request.pitch_bias or seed is None:
        return None
    counts = np.zeros(128)
    for track in seed.tracks:
        if not track.is_drum:
            counts += np.bincount(track.notes.numpy()["pitch"], minlength=128)
    if not counts.any():
        return None
    pitches = np.arange(128)
    of_class = SMOOTHING + np.bincount(pitches % 12, counts)
    low, high = np.quantile(np.repeat(pitches, counts.astype(int)), RANGE, method="nearest")
    outside = np.maximum(low - pitches, 0) + np.maximum(pitches - high, 0)
    of_pitch = request.pitch_bias * (np.log(of_class / of_class.sum())[pitches % 12] - outside / OUTSIDE)
    of_pitch -= np.log(np.average(np.exp(of_pitch), weights=counts))
    tables = classes.tables
    bias = np.zeros(classes.vocabulary.size)
    for token in np.flatnonzero(np.array(tables.ops) == Op.PITCH).tolist():
        bias[token] = of_pitch[tables.values[token]]
    for token, parts in classes.vocabulary.expansions.items():
        bias[token] = bias[list(parts)].sum()
    return bias.astype(np.float32)
