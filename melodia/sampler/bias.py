"""The bias of pitches towards those of the seed: the model's opinion pooled with a histogram's.

A model that was trained on much music holds a key less well than the piece it continues does, and cutting off what is
unlikely (temperature below 1, top-p) mends that at the price of the register: notes of a chord are written upwards, the
intervals above a note are spread wider than those below, so that what is cut off is what lies high. The seed itself
says which pitch classes belong here, whatever its scale, and how high and low each of its instruments goes: one that
leaves its range comes down to where most of its music lies.

With q(c) the share of a pitch class in the seed's notes, and d + a the semitones by which a pitch lies outside the
range of the program that plays, of which a lie where the seed's other programs play, a pitch of probability p among the
pitches gets one in proportion to p^(1 - w) (q(c) exp(-d / 3 - a))^w: a logarithmic opinion pool (Genest & Zidek 1986,
"Combining probability distributions"), whose weights add up to 1. Without the exponent of p, a product of two
distributions that mostly agree is sharper than either, and sharper music repeats its notes. Whether a note
comes at all is the model's to say; only a pitch outside the range makes it less likely: (q exp(-d / 3 - a))^w is taken
relative to its mean over the pitches of the range.

A range is that of all but a few notes. A program that is not in the seed has the range of all of it, or none where it
joins others.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melodia.decode import Bias
from melodia.decode.bias import PROGRAM_NUMBERS
from melodia.grammar.state import NONE
from melodia.sampler.classes import TokenClasses
from melodia.sampler.request import Request

if TYPE_CHECKING:
    from symusic.core import ScoreTick

SMOOTHING = 1.0
"""Notes of each pitch class that are added to the seed's: no class is ever out of question."""

RANGE = (0.02, 0.98)
"""Quantiles of the seed's notes between which its range lies."""
OUTSIDE = 3.0
"""Semitones outside every range that count as much as a share of 1/e does among the classes."""
ASTRAY = 1.0
"""The same where others play: the model takes one instrument's place for another's."""
UNKNOWN = 30.0
"""Semitones by which the range of a single note may really be wider; of n notes it is an n-th of that."""

PITCHES = np.arange(128)


def seed_bias(
    classes: TokenClasses,
    seed: ScoreTick | None,
    request: Request,
    beside: ScoreTick | None = None,
    joining: Collection[int] = (),
) -> Bias | None:
    """The bias of a continuation's logits; None where there is none, or nothing with pitches to lean to.

    Args:
        classes: of the vocabulary.
        seed: the music before; None for none.
        request: how strong the bias is.
        beside: what sounds at the same time: its pitch classes count, too, but its programs' ranges are theirs.
        joining: programs of whose range `part_bias` says more.
    """
    if not request.pitch_bias:
        return None
    counts = pitches_of(seed)
    every = sum(counts.values(), np.zeros(128, np.int64))
    heard = sum(pitches_of(beside).values(), every)
    if not heard.any():
        return None
    of_class = SMOOTHING + np.bincount(PITCHES % 12, heard)
    likelihood = np.log(of_class / of_class.sum())[PITCHES % 12]
    beyond_all = distances(every)
    beyond = {program: distances(notes) for program, notes in counts.items()}
    beyond |= {program: np.zeros(128) for program in joining if program >= 0 and program not in counts}

    def of_pitches(own: NDArray[np.float64]) -> NDArray[np.float64]:
        outside = np.minimum(own, beyond_all)
        raw = request.pitch_bias * (likelihood - outside / OUTSIDE - (own - outside) / ASTRAY)
        return raw - np.log(np.exp(raw[own == 0]).mean())

    table = np.stack([of_pitches(own) for own in (beyond_all, *beyond.values())])  # [R, 128]
    row_of = np.zeros(PROGRAM_NUMBERS, np.int32)
    row_of[[program + 1 for program in beyond]] = np.arange(1, len(table))
    token, named, pitch = classes.begun
    rows = []
    for row in range(len(table)):  # a note's program is the one that its token names, or the one before
        of_note = table[np.where(named == NONE, row, row_of[named + 1]), pitch]
        rows.append(np.bincount(token, of_note, minlength=classes.vocabulary.size))
    members = np.zeros(classes.vocabulary.size, np.bool_)
    members[token] = True
    return Bias(np.stack(rows).astype(np.float32), row_of, members, 1 - request.pitch_bias)


def pitches_of(music: ScoreTick | None) -> dict[int, NDArray[np.int64]]:
    """How many notes of each pitch [128] each program with pitches plays."""
    counts: dict[int, NDArray[np.int64]] = {}
    for track in () if music is None else music.tracks:
        if not track.is_drum and len(track.notes):
            found = np.bincount(track.notes.numpy()["pitch"], minlength=128)
            counts[track.program] = counts.get(track.program, np.zeros(128, np.int64)) + found
    return counts


def distances(notes: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each pitch lies outside the range of notes, so many of each pitch [128], in semitones [128].

    Of no notes, every pitch is in range.
    """
    if not notes.any():
        return np.zeros(128)
    low, high = np.quantile(np.repeat(PITCHES, notes), RANGE, method="nearest")
    return np.maximum(outside_of(low, high) - UNKNOWN / notes.sum(), 0.0)


def outside_of(low: float, high: float) -> NDArray[np.float64]:
    """How far each pitch lies outside a range, in semitones [128]."""
    return np.maximum(low - PITCHES, 0.0) + np.maximum(PITCHES - high, 0.0)
