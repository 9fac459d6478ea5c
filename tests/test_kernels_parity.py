"""Parity over sizes, batches, lengths and layouts: every pair of values somewhere, not every combination.

For each operator and size the reference runs once per case, and every instruction set is held against it.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from kernel_helpers import (
    INSTRUCTION_SETS,
    OUTPUTS,
    arguments,
    assert_close,
    generator,
    halve,
    native_function,
    run,
)
from torch import Tensor

from melodia.kernels import native, reference

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")

SIZES = (1, 3, 17, 64, 100, 512)
BATCHES = (1, 2, 7, 32)
STEPS = (1, 2, 129)


class Case(NamedTuple):
    """One row of the table."""

    H: int
    B: int
    T: int
    lengths: bool
    strided: bool


# T goes on by one with every batch and by two with every size (so that H = 512 meets T = 129 with B = 7 only);
# lengths and strides alternate at different paces. The test below says what that covers.
CASES = [
    Case(H, B, STEPS[(2 * i + j + 2) % 3], (i + j) % 2 == 0, (i // 2 + j // 2) % 2 == 0)
    for (i, H), (j, B) in itertools.product(enumerate(SIZES), enumerate(BATCHES))
]


def test_every_pair_of_values_occurs() -> None:
    values = (SIZES, BATCHES, STEPS, (False, True), (False, True))
    for a, b in itertools.combinations(range(len(values)), 2):
        met = {(case[a], case[b]) for case in CASES}
        assert met == set(itertools.product(values[a], values[b])), (Case._fields[a], Case._fields[b])


def layout(inputs: list[Tensor]) -> list[Tensor]:
    """The same numbers, nothing contiguous that could be otherwise."""
    return [x.mT.contiguous().mT if x.dim() > 1 else x.repeat_interleave(2)[::2] for x in inputs]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("H", SIZES)
def test_parity_everywhere(name: str, H: int, dtype: torch.dtype) -> None:
    scan = name.endswith("scan")
    if dtype == torch.bfloat16 and not scan:
        pytest.skip("single steps are float32 only")
    margins: dict[str, float] = {}
    before = native.instruction_set()
    assert before is not None
    try:
        for case in (case for case in CASES if case.H == H):
            T = case.T if scan else 1
            inputs = arguments(name, T, case.B, H, seed=case.B)
            inputs = halve(name, inputs) if dtype == torch.bfloat16 else inputs
            more: tuple[Any, ...] = ()
            if scan:
                some = torch.randint(0, T + 1, (case.B,), generator=generator(case.B))
                more = (some if case.lengths else None,)
            want = run(getattr(reference, name), inputs, *more)
            given = layout(inputs) if case.strided else inputs
            for isa in INSTRUCTION_SETS:
                if native.set_instruction_set(isa):
                    got = run(native_function(name), given, *more)
                    worst = assert_close(got, want, OUTPUTS[name], T, H, dtype)
                    margins[isa] = max(margins.get(isa, 0.0), worst)
    finally:
        native.set_instruction_set(before)
    print(f"{name} H={H} {dtype}:", ", ".join(f"{isa} {worst:.0%}" for isa, worst in margins.items()))
    assert margins
