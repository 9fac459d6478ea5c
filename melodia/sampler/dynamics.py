"""How loud new music is: behind music of one velocity throughout, as scores without dynamics have it, that one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melodia.engine.rules import Bits, pack
from melodia.grammar import Op
from melodia.notes import notes_of_score
from melodia.sampler.classes import TokenClasses

if TYPE_CHECKING:
    from symusic.core import ScoreTick

FEWEST_NOTES = 16
"""Fewer notes of one velocity say nothing of those behind them."""


@dataclass(frozen=True)
class Level:
    """The one velocity that new notes have.

    Attributes:
        others: tokens that set another one, bool [V].
        bits: the same as words [W].
        velocity: itself, which need not be one of the vocabulary: the median of those that it stands for.
    """

    others: NDArray[np.bool_]
    bits: Bits
    velocity: int

    @classmethod
    def of(cls, classes: TokenClasses, seed: ScoreTick | None) -> Level | None:
        """That of a seed; None where it has several, or few notes, or the vocabulary has but one."""
        velocity = np.zeros(0, np.int64) if seed is None else notes_of_score(seed).velocity
        levels = np.flatnonzero(np.array(classes.tables.ops) == Op.VELOCITY)
        if len(velocity) < FEWEST_NOTES or len(levels) < 2:
            return None
        values = classes.values[levels]
        nearest = np.abs(values - np.array([[velocity.min()], [velocity.max()]])).argmin(axis=1)
        if nearest[0] != nearest[1]:
            return None
        others = np.zeros(classes.vocabulary.size, np.bool_)
        others[np.delete(levels, nearest[0])] = True
        others = classes.holding(others)
        return cls(others, pack(others), int(np.median(velocity)))
