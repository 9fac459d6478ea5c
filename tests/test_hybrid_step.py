"""A whole stack by one token in one call: every kind against its layers one by one, torch.nn and the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_helpers import generator, instruction_set, native_function
from kernel_helpers import stack_arguments as arguments
from torch import Tensor
from torch.nn import functional as F

from melodia import kernels
from melodia.errors import BackendError
from melodia.kernels import native, native_ops, reference
from melodia.model import Model, ModelConfig

__all__ = ["instruction_set"]

needs_native = pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
STACKS = [
    ["lstm"],
    ["gru", "gru"],
    ["lstm", "gru"],
    ["gru", "gru", "lstm"],
    ["concat", "concat"],
    ["sum"],
    ["gated", "gated", "gated"],
    ["concat", "gru", "sum", "lstm", "gated"],
]
# Relative to the largest magnitude (at least 1): a few float32 roundings per level, and the fitted tanh's 4e-7.
OUTPUT, GRADIENT = 5e-6, 2e-5


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        error = ((a - b).abs().max() / b.abs().max().clamp(min=1.0)).item()
        assert error <= tolerance, f"off by {error:.2e}, allowed {tolerance:.2e}"


def flat(result: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
    return [result[0], *result[1]]


@needs_native
@pytest.mark.parametrize("levels", STACKS, ids="-".join)
@pytest.mark.parametrize(("layer_norm", "residual"), [(False, True), (True, False)])
def test_parity_with_reference(
    levels: list[str], layer_norm: bool, residual: bool, instruction_set: str
) -> None:
    for B, H in ((1, 17), (2, 64), (3, 1), (7, 33)):
        made = arguments(levels, B, H, layer_norm, seed=H)
        want = reference.hybrid_step(*made, levels, layer_norm, residual)
        assert_close(
            flat(native_function("hybrid_step")(*made, levels, layer_norm, residual)), flat(want), OUTPUT
        )


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("levels", STACKS, ids="-".join)
def test_parity_with_torch_cells(levels: list[str], backend: str) -> None:
    """The same stack of torch's own cells, level by level."""
    B, H = 3, 20
    gates, state, weights = arguments(levels, B, H, layer_norm=True)
    # Torch's cells make the first product themselves: with W_ih = 1 and b_ih = 0 their input is the gates.
    took, states = iter(weights), iter(state)
    below, x, after = None, None, []
    for index, level in enumerate(levels):
        outs = []
        for cell in ("lstm", "gru") if level not in ("lstm", "gru") else (level,):
            G = {"lstm": 4, "gru": 3}[cell] * H
            given = gates[len(outs)] if index == 0 else below
            w_ih, b_ih = (torch.eye(G), torch.zeros(G)) if index == 0 else (next(took), next(took))
            module = (torch.nn.LSTMCell if cell == "lstm" else torch.nn.GRUCell)(given.shape[1], H)
            with torch.no_grad():
                for parameter, value in zip(
                    module.parameters(), (w_ih, next(took), b_ih, next(took)), strict=True
                ):
                    parameter.copy_(value)
                if cell == "lstm":
                    new = module(given, (next(states), next(states)))
                else:
                    new = (module(given, next(states)),)
            outs.append(new[0])
            after += new
        if level in ("concat", "gated"):
            mixed = F.linear(torch.cat(outs, dim=1), next(took), next(took))
            y = mixed if level == "concat" else mixed.sigmoid() * outs[0] + (1 - mixed.sigmoid()) * outs[1]
        else:
            y = sum(outs)
        x = y if x is None else x + y
        below = F.layer_norm(x, (H,), next(took), next(took))
    with kernels.use_backend(backend):
        got = kernels.hybrid_step(gates, state, weights, levels, True, True)
    assert_close(flat(got), [below, *after], OUTPUT)


@needs_native
@pytest.mark.parametrize("levels", [STACKS[2], STACKS[7]], ids="-".join)
def test_gradients_are_the_references(levels: list[str]) -> None:
    made = arguments(levels, 2, 9, True)
    counts = [len(part) for part in made]
    results = []
    for function in (reference.hybrid_step, native_function("hybrid_step")):
        leaves = [x.clone().requires_grad_() for part in made for x in part]
        parts = iter(leaves)
        gates, state, weights = ([next(parts) for _ in range(count)] for count in counts)
        outputs = flat(function(gates, state, weights, levels, True, True))
        g = generator(3)
        grads = torch.autograd.grad(outputs, leaves, [torch.randn(x.shape, generator=g) for x in outputs])
        results.append(list(grads))
    assert_close(results[1], results[0], GRADIENT)


@needs_native
def test_opcheck() -> None:
    levels = ["gated", "gru"]
    made = arguments(levels, 2, 5, True)
    codes = [reference.LEVELS.index(level) for level in levels]
    operator = torch.ops.melodia.hybrid_step.default
    for x in made[1]:
        x.requires_grad_()
    torch.library.opcheck(operator, (*made, codes, True, False))


KINDS = ["lstm", "gru", "sequential", "reversed", "parallel", "bidirectional"]


@needs_native
@pytest.mark.parametrize(
    ("kind", "combine"),
    [*((kind, None) for kind in KINDS), ("parallel", "sum"), ("parallel", "gated")],
)
@pytest.mark.parametrize("deep", [False, True])
def test_models_step_as_they_scan(kind: str, combine: str | None, deep: bool) -> None:
    """Token by token through the fused step = a window through the scans, of every kind."""
    options: dict[str, Any] = {"residual": True, "layer_norm": True} if deep else {}
    layers = {"lstm": (3, 0), "gru": (0, 3), "bidirectional": (0, 2)}.get(kind, (2, 2))
    if deep:
        options |= {"lstm_layers": layers[0], "gru_layers": layers[1]}
    if kind == "bidirectional":
        options |= {"block_length": 4}
    model = Model(
        ModelConfig(kind=kind, vocab_size=30, hidden_size=16, combine=combine, **options), random_seed=0
    ).eval()
    tokens = torch.randint(0, 30, (3, 13), generator=generator(1))
    with torch.no_grad(), kernels.use_backend("native"):
        want, end = model(tokens)
        state = model.initial_state(3)
        for t in range(13):
            logits, state = model.step(tokens[:, t], None, state)
            assert_close([logits], [want[:, t]], 2e-5)
    assert str(torch.utils._pytree.tree_structure(state)) == str(torch.utils._pytree.tree_structure(end))


@needs_native
def test_compiles_without_graph_breaks() -> None:
    levels = STACKS[7]
    made = arguments(levels, 2, 5, True)

    def call(gates: list[Tensor], state: list[Tensor], weights: list[Tensor]) -> Any:
        output, after = kernels.hybrid_step(gates, [x * 1.0 for x in state], weights, levels, True)
        return [output + 0.0, *after]

    compiled: Any = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*made), call(*made), OUTPUT)


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, s, w: (g, s, w[:-1]), "`weights` has 3 tensors and needs more"),
        (lambda g, s, w: (g, s, [*w, w[0]]), r"`weights` must have 4 tensors \(received 5\)"),
        (lambda g, s, w: (g, s[:1], w), "`state` has 1 tensors and needs more"),
        (lambda g, s, w: (g, [*s[:1], s[1][:1]], w), r"`state` must have the shape \[2, 5\]"),
        (lambda g, s, w: ([g[0][:, :-1]], s, w), r"`gates_x` must have the shape \[2, 20\]"),
    ],
)
def test_wrong_arguments(change: Callable[..., Any], message: str) -> None:
    made = change(*arguments(["lstm"], 2, 5, True))
    with pytest.raises(RuntimeError, match=message):
        native_function("hybrid_step")(*made, ["lstm"], True)


@needs_native
def test_other_types_go_to_the_reference_or_are_refused() -> None:
    made = [[x.double() for x in part] for part in arguments(["gru"], 2, 5, False)]
    out, _ = kernels.hybrid_step(*made, ["gru"])
    assert out.dtype == torch.float64
    with pytest.raises(BackendError, match="runs in float32 only"):
        native_function("hybrid_step")(*made, ["gru"])
    with pytest.raises(RuntimeError, match="`levels` must be within 0 and 4"):
        native_ops._ops.hybrid_step(*arguments(["gru"], 2, 5, False), [5], False, False)


def test_no_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="one level at least"):
        reference.hybrid_step([], [], [], [])


def test_gradcheck_of_the_reference() -> None:
    """float64 gradients of the reference's formulas."""
    levels = ["gated", "lstm"]
    made = [[x.double().requires_grad_() for x in part] for part in arguments(levels, 2, 3, True)]
    counts = list(itertools.accumulate(len(part) for part in made))

    def call(*tensors: Tensor) -> Any:
        gates, state = tensors[: counts[0]], tensors[counts[0] : counts[1]]
        return flat(reference.hybrid_step(gates, state, tensors[counts[1] :], levels, True, True))

    assert torch.autograd.gradcheck(call, [x for part in made for x in part])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_the_reference(dtype: torch.dtype) -> None:
    """Gates and matrices in half precision beside float32 states and vectors: float32 sums, and every gradient."""
    levels = ["gated", "sum", "lstm"]
    gates, state, weights = arguments(levels, 2, 9, True)
    rounded = [x.to(dtype) for x in gates], [x.to(dtype) if x.dim() == 2 else x for x in weights]
    leaves = [x.requires_grad_() for part in (rounded[0], state, rounded[1]) for x in part]
    got = flat(reference.hybrid_step(rounded[0], state, rounded[1], levels, True, True))
    wide = [x.detach().float() for x in rounded[0]], [x.detach().float() for x in rounded[1]]
    assert {x.dtype for x in got} == {torch.float32}
    assert_close(got, flat(reference.hybrid_step(wide[0], state, wide[1], levels, True, True)), 3e-2)
    grads = torch.autograd.grad(sum(x.sum() for x in got), leaves)
    assert all(grad.dtype == x.dtype and grad.isfinite().all() for grad, x in zip(grads, leaves, strict=True))
