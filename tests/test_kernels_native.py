"""Parity of the native kernels with the reference and with torch.nn: every output and every gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from kernel_helpers import (
    OUTPUTS,
    arguments,
    as_tuple,
    assert_close,
    generator,
    halve,
    instruction_set,
    native_function,
    run,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from melodia import kernels
from melodia.errors import BackendError
from melodia.kernels import native, reference, shapes

__all__ = ["instruction_set"]

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")

SIZES = (1, 3, 17, 64, 100)
BATCHES = (1, 2, 7, 32)


@pytest.mark.parametrize("name", OUTPUTS)
def test_parity_with_reference(name: str, instruction_set: str) -> None:
    scan = name.endswith("scan")
    for H, B, T in itertools.product(SIZES, BATCHES, (1, 2) if scan else (1,)):
        inputs = arguments(name, T, B, H, seed=H)
        want = run(getattr(reference, name), inputs)
        assert_close(run(native_function(name), inputs), want, OUTPUTS[name], T, H)


@pytest.mark.parametrize("name", ["lstm_scan", "gru_scan", "pair_scan"])
def test_parity_long(name: str, instruction_set: str) -> None:
    for H, B in ((1, 2), (17, 7), (64, 1)):
        inputs = arguments(name, 129, B, H, seed=H)
        want = run(getattr(reference, name), inputs)
        assert_close(run(native_function(name), inputs), want, OUTPUTS[name], 129, H)


@pytest.mark.parametrize("name", ["lstm_scan", "gru_scan", "pair_scan"])
@pytest.mark.parametrize("lengths", [[5, 5, 5, 5, 5], [0, 1, 3, 5, 2], [0, 0, 0, 0, 0], [9, 5, -1, 0, 4]])
def test_lengths(name: str, lengths: list[int], instruction_set: str) -> None:
    inputs, more = arguments(name, 5, 5, 17), torch.tensor(lengths)
    want = run(getattr(reference, name), inputs, more)
    assert_close(run(native_function(name), inputs, more), want, OUTPUTS[name], 5, 17)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["lstm_scan", "gru_scan", "pair_scan"])
def test_many_rows(name: str, dtype: torch.dtype, instruction_set: str) -> None:
    """One thread has more rows than go over a panel together (48, csrc/cpu/products.h), of unlike lengths."""
    B, T, H = 103, 5, 33
    inputs = arguments(name, T, B, H, seed=4)
    inputs = halve(name, inputs) if dtype == torch.bfloat16 else inputs
    lengths = torch.randint(0, T + 1, (B,), generator=generator(5))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for more in (None, lengths):
            want = run(getattr(reference, name), inputs, more)
            assert_close(run(native_function(name), inputs, more), want, OUTPUTS[name], T, H, dtype)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(("T", "B", "H"), [(1, 1, 1), (9, 7, 17), (5, 32, 64), (129, 2, 100)])
def test_parity_with_torch_nn(kind: str, T: int, B: int, H: int) -> None:
    """torch.nn's own layer, its weights in ours: outputs and the gradients of input, weights, biases and states."""
    g = generator(H)
    layer = (torch.nn.LSTM if kind == "lstm" else torch.nn.GRU)(5, H)
    x = torch.randn(T, B, 5, generator=g, requires_grad=True)
    states = [torch.randn(B, H, generator=g, requires_grad=True) for _ in range(2 if kind == "lstm" else 1)]
    weights = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0]
    first = tuple(s.unsqueeze(0) for s in states)
    out, last = layer(x, first if kind == "lstm" else first[0])
    want_out = [out, *(s.squeeze(0) for s in as_tuple(last))]

    gates_x = torch.nn.functional.linear(x, weights[0], weights[2])
    got_out = list(native_function(f"{kind}_scan")(gates_x, *states, weights[1], weights[3]))
    cotangents = [torch.randn(out.shape, generator=g) for out in want_out]
    leaves = [x, *states, *weights]
    want = [*want_out, *torch.autograd.grad(want_out, leaves, cotangents)]
    got = [*got_out, *torch.autograd.grad(got_out, leaves, cotangents)]
    assert_close(got, want, len(want_out), T, H)


@pytest.mark.parametrize("name", OUTPUTS)
def test_strided_inputs(name: str, instruction_set: str) -> None:
    """Transposed, sliced and expanded inputs, and the expanded gradient of a sum."""
    inputs = arguments(name, 4, 3, 20)
    strided = [x.mT.contiguous().mT if x.dim() > 1 else x.repeat_interleave(2)[::2] for x in inputs]
    strided[1] = strided[1][:, :1].expand_as(strided[1])
    assert not any(x.is_contiguous() for x in strided)
    results = []
    for function in (getattr(reference, name), native_function(name)):
        leaves = [x.detach().requires_grad_() for x in strided]
        outputs = as_tuple(function(*leaves))
        results.append([*outputs, *torch.autograd.grad(sum(x.sum() for x in outputs), leaves)])
    assert_close(results[1], results[0], OUTPUTS[name], 4, 20)


@pytest.mark.parametrize("name", ["lstm_scan", "gru_scan", "pair_scan"])
@pytest.mark.parametrize("used", range(2))
def test_gradient_of_one_output(name: str, used: int) -> None:
    """The gradients of the other outputs are missing, not zero tensors."""
    inputs = arguments(name, 3, 2, 17)
    results = []
    for function in (getattr(reference, name), native_function(name)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        chosen = function(*leaves)[-1 if used else 0]
        grads = torch.autograd.grad(chosen.square().sum(), leaves, allow_unused=True)
        results.append([torch.zeros_like(x) if y is None else y for x, y in zip(inputs, grads, strict=True)])
    assert_close(results[1], results[0], 0, 3, 17)


@pytest.mark.parametrize("name", OUTPUTS)
def test_only_some_gradients(name: str) -> None:
    """Only weight_hh asks for a gradient."""
    inputs = arguments(name, 3, 2, 17)
    weight = next(k for k, x in enumerate(inputs) if x.dim() == 2 and x.shape[0] in (51, 68))
    grads = []
    for function in (getattr(reference, name), native_function(name)):
        leaves = [x.clone().requires_grad_(k == weight) for k, x in enumerate(inputs)]
        (grad,) = torch.autograd.grad(as_tuple(function(*leaves))[0].sum(), leaves[weight])
        grads.append([grad])
    assert_close(grads[1], grads[0], 0, 3, 17)


@pytest.mark.parametrize("name", ["lstm_scan", "gru_scan", "pair_scan"])
def test_no_steps(name: str) -> None:
    inputs = [x.requires_grad_() for x in arguments(name, 0, 2, 5)]
    want, got = (as_tuple(f(*inputs)) for f in (getattr(reference, name), native_function(name)))
    assert all(torch.equal(x, y) for x, y in zip(want, got, strict=True))
    state = inputs[2] if name == "pair_scan" else inputs[1]
    h_n = got[2] if name == "pair_scan" else got[1]
    assert torch.equal(torch.autograd.grad(h_n.sum(), state)[0], torch.ones_like(state))


@pytest.mark.parametrize("name", ["lstm_scan", "gru_scan", "pair_scan"])
def test_batch_equals_singles_bit_for_bit(name: str, instruction_set: str) -> None:
    """Neither the batch nor the number of threads changes a bit of any row's outputs and gradients."""
    T, B, H = 6, 11, 40
    inputs = arguments(name, T, B, H)
    rows = [k for k, x in enumerate(inputs) if x.dim() == 3 or x.shape == (B, H)]
    call = native_function(name)

    def outputs_and_row_gradients(chosen: slice) -> list[Tensor]:
        leaves = list(inputs)
        for k in rows:
            x = inputs[k]
            leaves[k] = (x[:, chosen] if x.dim() == 3 else x[chosen]).clone().requires_grad_()
        out = as_tuple(call(*leaves))
        return [*out, *torch.autograd.grad([x.square().sum() for x in out], [leaves[k] for k in rows])]

    whole = outputs_and_row_gradients(slice(0, B))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        again = outputs_and_row_gradients(slice(0, B))
    finally:
        torch.set_num_threads(threads)
    singles = [outputs_and_row_gradients(slice(b, b + 1)) for b in range(B)]
    for k, x in enumerate(whole):
        assert torch.equal(x, again[k])
        assert torch.equal(x, torch.cat([s[k] for s in singles], dim=1 if x.dim() == 3 else 0))


def test_saturated_and_invalid_values(instruction_set: str) -> None:
    """Huge gates saturate cleanly; a NaN stays a NaN and does not become a number."""
    gates_x = torch.tensor([[3e4, 3e4, 3e4, 3e4], [-3e4, -3e4, -3e4, -3e4], [float("nan")] * 4])
    zero = torch.zeros(3, 1)
    h, c = native_function("lstm_step")(gates_x, zero, zero + 0.5, torch.zeros(4, 1), torch.zeros(4))
    want_h, want_c = reference.lstm_step(gates_x, zero, zero + 0.5, torch.zeros(4, 1), torch.zeros(4))
    torch.testing.assert_close((h, c), (want_h, want_c), rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, of jvp
def test_derivatives_of_torch_func_come_from_the_reference(name: str) -> None:
    first, *others = arguments(name, 3, 2, 5)

    def loss(x: Tensor) -> Tensor:
        return sum(
            (out.square().sum() for out in as_tuple(getattr(kernels, name)(x, *others))), torch.zeros(())
        )

    def derivatives() -> tuple[Tensor, Tensor]:
        return torch.func.grad(loss)(first), torch.func.jvp(loss, (first,), (first,))[1]

    with kernels.use_backend("reference"):
        want = derivatives()
    torch.testing.assert_close(derivatives(), want)
    with kernels.use_backend("native"), pytest.raises(BackendError, match=r"no transform of torch\.func"):
        derivatives()


@pytest.mark.parametrize("name", ["gru_scan", "lstm_step"])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, of jvp
def test_derivatives_of_torch_func_compile(name: str) -> None:
    first, *others = arguments(name, 3, 2, 5)

    def loss(x: Tensor) -> Tensor:
        return as_tuple(getattr(kernels, name)(x, *others))[0].square().sum()

    def derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.grad(loss)(x), torch.func.jvp(loss, (x,), (x,))[1]

    compiled = torch.compile(derivatives, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(first), derivatives(first))


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_is_kept_is_asked_for_once(name: str) -> None:
    """So that torch.utils.checkpoint can make it anew."""
    inputs, call = arguments(name, 3, 2, 5), native_function(name)
    again = partial(checkpoint, call, use_reentrant=False)
    assert_close(run(again, inputs), run(call, inputs), OUTPUTS[name], 3, 5)


def test_gradients_through_vmap() -> None:
    """Also of the operators of lists, for which torch has no fallback."""
    scan, step = (arguments(name, 3, 2, 5) for name in ("gru_scan", "gru_step"))

    def both(x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        output, h_n = kernels.gru_scan(x, h, *scan[2:])
        wave = kernels.wave_scan([x], [h], [], *([y] for y in scan[2:]))
        return output, h_n, *wave[0], kernels.hybrid_step([step[0]], [h], step[2:], ["gru"])[0]

    leaves = [torch.stack([x, x / 2]).requires_grad_() for x in scan[:2]]
    mapped = torch.func.vmap(both)(*leaves)
    plain = [torch.stack(x) for x in zip(*(both(*pair) for pair in zip(*leaves, strict=True)), strict=True)]
    for got, want in zip(mapped, plain, strict=True):
        torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad([x.square().sum() for x in out], leaves) for out in (mapped, plain)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", OUTPUTS)
def test_opcheck(name: str) -> None:
    inputs = [x.requires_grad_() for x in arguments(name, 3, 2, 5)]
    more: tuple[Any, ...] = (torch.tensor([3, 1]), shapes.GATES) if name.endswith("scan") else ()
    torch.library.opcheck(getattr(torch.ops.melodia, name).default, (*inputs, *more))
    if name.endswith("scan"):
        plain = tuple(x.detach() for x in inputs)
        torch.library.opcheck(getattr(torch.ops.melodia, name).default, (*plain, None, shapes.NOTHING))


def test_opcheck_of_halves_of_two_widths() -> None:
    lstm, gru = arguments("lstm_scan", 3, 2, 5), arguments("gru_scan", 3, 2, 4)
    halves = (lstm[0], gru[0], *lstm[1:3], gru[1], *lstm[3:], *gru[2:])
    inputs = [x.requires_grad_() for x in halves]
    torch.library.opcheck(torch.ops.melodia.pair_scan.default, (*inputs, None, shapes.GATES))


@pytest.mark.parametrize("name", ["lstm_scan", "gru_scan", "pair_scan"])
def test_compiles_without_graph_breaks(name: str) -> None:
    inputs = arguments(name, 3, 2, 5)
    compiled = torch.compile(native_auto(name), fullgraph=True, backend="aot_eager")
    assert_close(run(compiled, inputs), run(getattr(reference, name), inputs), OUTPUTS[name], 3, 5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it loads inductor
def test_compiles_with_inductor() -> None:
    inputs = arguments("pair_scan", 3, 2, 5)
    compiled = torch.compile(native_auto("pair_scan"), fullgraph=True)
    assert_close(run(compiled, inputs), run(reference.pair_scan, inputs), 5, 3, 5)


def native_auto(name: str) -> Callable[..., Any]:
    """A little more than the bare operator, so that there is a graph around it."""
    function = getattr(kernels, name)

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x * 1.0 for x in function(inputs[0] + 0.0, *inputs[1:]))

    return call


def test_second_derivative_says_what_to_do() -> None:
    inputs = [x.requires_grad_() for x in arguments("gru_scan", 2, 1, 3)]
    out, _ = native_function("gru_scan")(*inputs)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(BackendError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: [a[0][..., :-1], *a[1:]],
            r"`gates_x` must have the shape \[2, 3, 20\].*received \[2, 3, 19\]",
        ),
        (lambda a: [a[0], a[1][:1], *a[2:]], r"`h` must have the shape \[3, 5\]"),
        (lambda a: [*a[:3], a[3][:-1], a[4]], r"`weight_hh` must have the shape \[20, 5\]"),
        (lambda a: [*a, torch.ones(2, dtype=torch.int64)], r"`lengths` must have the shape \[3\]"),
        (lambda a: [*a, torch.ones(3)], "`lengths` must be int64"),
    ],
)
def test_wrong_arguments(change: Callable[[list[Tensor]], list[Tensor]], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{message}"):  # no path of a source file before it
        native_function("lstm_scan")(*change(arguments("lstm_scan", 2, 3, 5)))


def test_sigmoid_and_tanh(instruction_set: str) -> None:
    """Gates against float64: a state that forgets little adds up what a sigmoid near 1 is off, if to one side."""
    x = torch.cat([torch.linspace(-30, 30, 200_001), torch.tensor([-1e30, -200.0, 0.0, 200.0, 1e30])])
    H = x.numel()
    gates = (
        torch.ops.melodia.lstm_gates(x.repeat(4)[None, None], torch.zeros(4 * H))[0, 0].view(4, H).double()
    )
    want = torch.sigmoid(x.double())
    off = gates[0] - want
    assert (gates[0] == gates[1]).all()
    assert (gates[0] == gates[3]).all()
    assert off.abs().max() < 1e-7
    assert (off.abs() / want)[x > -80].max() < 2e-7
    near_one = (x > 4) & (x < 14)
    assert off[near_one].mean().abs() < 3e-9
    assert (gates[2] - torch.tanh(x.double())).abs().max() < 4e-7
    nan = torch.full((1, 1, 4 * 3), torch.nan)
    assert torch.ops.melodia.lstm_gates(nan, torch.zeros(12)).isnan().all()


@pytest.mark.parametrize(("name", "precision"), [("amx", "bf16"), ("avx512bf16", "bf16"), ("avx2", "fp32")])
def test_training_takes_the_faster_precision(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "instruction_set", lambda: name)
    assert kernels.fast_precision(torch.device("cpu")) == precision
    with kernels.use_backend("reference"):
        assert kernels.fast_precision(torch.device("cpu")) == "fp32"
