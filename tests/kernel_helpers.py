"""What the tests of the native kernels share: random arguments, runs with gradients, instruction sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from melodia import kernels
from melodia.kernels import native

INSTRUCTION_SETS = ("avx512bf16", "avx512", "avx2", "portable")
OUTPUTS = {"lstm_step": 2, "gru_step": 1, "lstm_scan": 3, "gru_scan": 2, "pair_scan": 5}
"""How many results an operator has."""


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Any:
    """Each instruction set this processor can run; the others are skipped and shown."""
    before = native.instruction_set()
    if not native.set_instruction_set(request.param):
        pytest.skip(f"this processor cannot run {request.param}")
    yield request.param
    assert before is not None
    native.set_instruction_set(before)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cell_arguments(kind: str, T: int, B: int, H: int, seed: int = 0) -> list[Tensor]:
    """gates_x, the state, weight_hh, bias_hh of an "lstm" or a "gru" scan."""
    g = generator(seed)
    G = {"lstm": 4, "gru": 3}[kind]
    states = [torch.randn(B, H, generator=g) for _ in range(2 if kind == "lstm" else 1)]
    weight = torch.randn(G * H, H, generator=g) / H**0.5
    return [torch.randn(T, B, G * H, generator=g), *states, weight, torch.randn(G * H, generator=g) * 0.3]


def arguments(name: str, T: int, B: int, H: int, seed: int = 0) -> list[Tensor]:
    """Random arguments of an operator, without lengths."""
    if name == "pair_scan":
        lstm, gru = cell_arguments("lstm", T, B, H, seed), cell_arguments("gru", T, B, H, seed + 1)
        return [lstm[0], gru[0], lstm[1], lstm[2], gru[1], *lstm[3:], *gru[2:]]
    kind, form = name.split("_")
    made = cell_arguments(kind, T, B, H, seed)
    return made if form == "scan" else [made[0][0], *made[1:]]


def as_tuple(x: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


def run(function: Callable[..., Any], inputs: list[Tensor], *more: Any) -> list[Tensor]:
    """The outputs, then the gradient of every input, with random cotangents on every output."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = as_tuple(function(*leaves, *more))
    g = generator(99)
    cotangents = [torch.randn(out.shape, generator=g, dtype=torch.float32).to(out.dtype) for out in outputs]
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, leaves, cotangents)]


def native_function(name: str) -> Callable[..., Any]:
    """The dispatcher's function, with the native backend forced."""

    def call(*inputs: Any) -> Any:
        with kernels.use_backend("native"):
            return getattr(kernels, name)(*inputs)

    return call
