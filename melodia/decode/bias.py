"""What is added to the logits of a choice before all filters: a row of numbers, by the program that plays.

Letters: R rows, V = vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PROGRAM_NUMBERS = 129
"""How many programs there are: -1 (the drums) to 127."""


@dataclass(frozen=True)
class Bias:
    """Rows of numbers, and which of them holds while a program plays.

    Attributes:
        rows: float32 [R, V]; the first holds where no program plays yet.
        row_of: int32 [129], the row of each program, the drums (-1) first.

    >>> row_of = np.zeros(PROGRAM_NUMBERS, np.int32)
    >>> row_of[40 + 1] = 1
    >>> bias = Bias(np.array([[0, 0], [0, 3]], np.float32), row_of)
    >>> bias.of(40).tolist(), bias.of(0).tolist(), bias.of(-2).tolist()
    ([0.0, 3.0], [0.0, 0.0], [0.0, 0.0])
    """

    rows: NDArray[np.float32]
    row_of: NDArray[np.int32]

    def of(self, program: int) -> NDArray[np.float32]:
        """The row that holds while a program plays, float32 [V]; below -1: while none does."""
        row: NDArray[np.float32] = self.rows[self.row_of[program + 1] if program >= -1 else 0]
        return row
