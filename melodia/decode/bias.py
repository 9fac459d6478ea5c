"""A second opinion on some tokens, pooled with the model's before all filters; it depends on the program that plays.

Letters: R rows, V = vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from melodia.checks import real_number
from melodia.errors import ConfigError

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

    def check(self, V: int) -> None:
        """Raise ConfigError unless it is an opinion on a vocabulary of V tokens."""
        _check("row", self.row, np.float32, (V,), "[V]")
        _check("members", self.members, np.bool_, (V,), "[V]")
        real_number("exponent", self.exponent, 0, 1)


@dataclass(frozen=True, eq=False)
class Bias:
    """An opinion for every program.

    Attributes:
        rows: float32 [R, V]; the first holds where no program plays yet.
        row_of: int32 [129], the row of each program, the drums (-1) first.
        members, exponent: as in `Opinion`.

    Raises:
        ConfigError: a part has another form or other values.

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

    def __post_init__(self) -> None:
        V = np.size(self.members)
        _check("members", self.members, np.bool_, (V,), "[V]")
        _check(
            "rows", self.rows, np.float32, (max(1, len(np.atleast_1d(self.rows))), V), "[R, V], R at least 1"
        )
        _check("row_of", self.row_of, np.int32, (PROGRAM_NUMBERS,), f"[{PROGRAM_NUMBERS}]")
        low, high = int(self.row_of.min()), int(self.row_of.max())
        if low < 0 or high >= len(self.rows):
            raise ConfigError(
                f"`row_of` must be between 0 and {len(self.rows) - 1}, the rows of the bias (received {low} to {high})"
            )
        real_number("exponent", self.exponent, 0, 1)

    def of(self, program: int) -> Opinion:
        """What holds while a program plays; below -1: while none does."""
        row = self.row_of[program + 1] if program >= -1 else 0
        return Opinion(self.rows[row], self.members, self.exponent)


def _check(name: str, array: object, kind: type[np.generic], shape: tuple[int, ...], form: str) -> None:
    """Raise ConfigError unless it is an array as compiled code reads it: its numbers one behind the other, finite."""
    wrong = ""
    if not isinstance(array, np.ndarray):
        wrong = repr(array)
    elif array.dtype != kind or array.shape != shape:
        wrong = f"{array.dtype} {list(array.shape)}"
    elif not array.flags.c_contiguous:
        wrong = "a non-contiguous array"
    elif not np.isfinite(array).all():
        wrong = "numbers that are not finite"
    if wrong:
        name_of_kind = np.dtype(kind).name
        raise ConfigError(
            f"`{name}` must be a contiguous array of finite {name_of_kind} {form} (received {wrong})"
        )
