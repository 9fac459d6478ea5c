"""A second opinion on some tokens, pooled with the model's before all filters; it depends on the program that plays.

Letters: R rows, V = vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PROGRAM_NUMBERS = 129
"""How many programs there are: -1 (the drums) to 127."""


class Opinion(NamedTuple):
    """What is held of the tokens at one place; `filters.pool` pools it with the logits.

    Attributes:
        row: float32 [V], added to the logits of the members.
        members: bool [V], the tokens that it is about.
        exponent: of the members' probabilities under the model, 0 to 1. Their mass stays what it is.
    """

    row: NDArray[np.float32]
    members: NDArray[np.bool_]
    exponent: float


@dataclass(frozen=True, eq=False)
class Bias:
    """An opinion for every program.

    Attributes:
        rows: float32 [R, V]; the first holds where no program plays yet.
        row_of: int32 [129], the row of each program, the drums (-1) first.
        members, exponent: as in `Opinion`.

    >>> row_of = np.zeros(PROGRAM_NUMBERS, np.int32)
    >>> row_of[40 + 1] = 1
    >>> bias = Bias(np.array([[0, 0], [0, 3]], np.float32), row_of, np.array([False, True]), 0.7)
    >>> bias.of(40).row.tolist(), bias.of(0).row.tolist(), bias.of(-2).row.tolist()
    ([0.0, 3.0], [0.0, 0.0], [0.0, 0.0])
    """

    rows: NDArray[np.float32]
    row_of: NDArray[np.int32]
    members: NDArray[np.bool_]
    exponent: float

    def of(self, program: int) -> Opinion:
        """What holds while a program plays; below -1: while none does."""
        row = self.row_of[program + 1] if program >= -1 else 0
        return Opinion(self.rows[row], self.members, self.exponent)
