"""What the tests of the native kernels share: random arguments, runs with gradients, instruction sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from melodia import kernels
from melodia.kernels import native

INSTRUCTION_SETS = ("amx", "avx512bf16", "avx512", "avx2", "portable")
OUTPUTS = {"lstm_step": 2, "gru_step": 1, "lstm_scan": 3, "gru_scan": 2, "pair_scan": 5}
"""How many results an operator has."""

# Tolerances, relative to the largest magnitude in the compared tensor (at least 1): outputs, gradients.
#
# float32: the fitted tanh is off by up to 4e-7; products of H terms are summed in another order than torch's, which
# costs about H^0.5 * 6e-8, and weight gradients sum T * B such terms. What is measured lies about 5 times below.
# bfloat16: one rounding is 2^-9 = 0.002 of a number. Outputs are rounded once; where sums differ in their last
# float32 bit a state may be rounded to the neighbour, which later steps see as noise. Gradients pass through a rounding
# at every step on both sides, at different places (the kernels round the gates they keep and the gates' gradients, the
# reference d h on its way through the cast), so they drift apart as both do from float32: with T, and with H.
TOLERANCE = {
    (torch.float32, "small (H <= 100)"): (2e-6, 5e-6),
    (torch.float32, "large (H = 512)"): (5e-6, 2e-5),
    (torch.float32, "long (T = 129)"): (5e-6, 2e-5),
    (torch.float32, "long and large"): (5e-6, 2e-5),
    (torch.bfloat16, "small (H <= 100)"): (6e-3, 2e-2),
    (torch.bfloat16, "large (H = 512)"): (6e-3, 2e-2),
    (torch.bfloat16, "long (T = 129)"): (6e-3, 4e-2),
    (torch.bfloat16, "long and large"): (6e-3, 6e-2),
}


def tolerance(dtype: torch.dtype, T: int, H: int) -> tuple[float, float]:
    """What outputs and gradients may be off by."""
    long, large = T > 100, H > 100
    case = (
        "long and large"
        if long and large
        else "long (T = 129)"
        if long
        else "large (H = 512)"
        if large
        else "small (H <= 100)"
    )
    return TOLERANCE[dtype, case]


def assert_close(
    got: Sequence[Tensor],
    want: Sequence[Tensor],
    outputs: int,
    T: int,
    H: int,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Compare values one by one.

    Returns:
        The worst share of its tolerance that any used; it is printed too (pytest -rP).
    """
    worst = 0.0
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        allowed = tolerance(dtype, T, H)[0 if k < outputs else 1]
        if b.numel():
            a, b = a.double(), b.double()
            error = ((a - b).abs().max() / b.abs().max().clamp(min=1.0)).item()
            assert error <= allowed, f"value {k}: off by {error:.2e}, allowed {allowed:.2e}"
            worst = max(worst, error / allowed)
    print(f"{dtype} T={T} H={H}: {worst:.0%} of the tolerance")
    return worst


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


def halve(name: str, inputs: list[Tensor], states: bool = False) -> list[Tensor]:
    """bfloat16 products of a scan; the states and biases too where asked for, float32 otherwise."""
    operands = {"lstm_scan": (0, 3), "gru_scan": (0, 2), "pair_scan": (0, 1, 5, 7)}[name]
    return [x.bfloat16() if states or k in operands else x for k, x in enumerate(inputs)]


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


def stack_arguments(
    levels: list[str], B: int, H: int, layer_norm: bool, seed: int = 0
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """gates_x, state, weights of a random stack, for `hybrid_step`."""
    g = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    gates, state, weights = [], [], []
    for index, level in enumerate(levels):
        pair = level not in ("lstm", "gru")
        for cell in ("lstm", "gru") if pair else (level,):
            G = {"lstm": 4, "gru": 3}[cell] * H
            if index == 0:
                gates.append(normal(B, G))
            else:
                weights += [normal(G, H) / H**0.5, normal(G) * 0.3]
            weights += [normal(G, H) / H**0.5, normal(G) * 0.3]
            state += [normal(B, H) for _ in range(2 if cell == "lstm" else 1)]
        if level in ("concat", "gated"):
            weights += [normal(H, 2 * H) / H**0.5, normal(H) * 0.3]
        if layer_norm:
            weights += [1 + normal(H) * 0.3, normal(H) * 0.3]
    return gates, state, weights
