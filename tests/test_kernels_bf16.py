"""bfloat16 scans and lookups: parity with the reference, AMP, opcheck."""

from __future__ import annotations

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

from melodia import kernels
from melodia.errors import BackendError
from melodia.kernels import native, reference, shapes

__all__ = ["instruction_set"]

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")

SCANS = ("lstm_scan", "gru_scan", "pair_scan")


def assert_near(got: list[Tensor], want: list[Tensor], outputs: int, T: int = 1) -> None:
    """`assert_close` by the tolerances of bfloat16."""
    assert_close(got, want, outputs, T, 1, torch.bfloat16)


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize(
    ("T", "B", "H"), [(1, 1, 1), (2, 7, 3), (9, 2, 17), (2, 32, 64), (3, 80, 33), (33, 3, 100), (129, 2, 65)]
)
@pytest.mark.parametrize("states", [False, True])
def test_parity_with_reference(name: str, T: int, B: int, H: int, states: bool, instruction_set: str) -> None:
    inputs = halve(name, arguments(name, T, B, H, seed=H), states)
    lengths = torch.randint(0, T + 1, (B,), generator=generator(B)) if B > 2 else None
    want = run(getattr(reference, name), inputs, lengths)
    assert_near(run(native_function(name), inputs, lengths), want, OUTPUTS[name], T)


@pytest.mark.parametrize("name", SCANS)
def test_instruction_sets_agree(name: str) -> None:
    """The same numbers but for the order of sums."""
    before = native.instruction_set()
    assert before is not None
    inputs, results = halve(name, arguments(name, 12, 5, 37)), {}
    try:
        for isa in ("portable", "avx2", "avx512", "avx512bf16", "amx"):
            if native.set_instruction_set(isa):
                results[isa] = run(native_function(name), inputs)
    finally:
        native.set_instruction_set(before)
    for other in results.values():
        assert_near(other, results["portable"], OUTPUTS[name])


def test_a_gru_remembers_in_float32() -> None:
    """An update of 1/1000 per step is below what bfloat16 resolves; the state moves all the same."""
    T, H = 400, 16
    gates = torch.zeros(T, 1, 3 * H)
    gates[..., H : 2 * H] = 6.9  # z = 0.999
    gates[..., 2 * H :] = 20.0  # n = 1
    weight, bias = torch.zeros(3 * H, H), torch.zeros(3 * H)
    _, h = native_function("gru_scan")(gates.bfloat16(), torch.zeros(1, H), weight.bfloat16(), bias)
    _, want = reference.gru_scan(gates, torch.zeros(1, H), weight, bias)
    assert want.mean() > 0.3
    torch.testing.assert_close(h, want, rtol=0.01, atol=0)


def test_rounding_of_special_values(instruction_set: str) -> None:
    """Ties go to even, a NaN stays one, infinities stay."""
    numbers = torch.tensor(
        [1.00390625, 1.01171875, 3.4e38, float("inf"), -float("inf"), float("nan"), -0.0, 1e-30]
    )
    index = torch.arange(8).view(8, 1, 1)
    table = torch.stack([numbers.bfloat16(), torch.zeros(8).bfloat16()], dim=1).repeat(1, 10)
    halves = table[:2] * 0 + torch.tensor([1.0, 2**-8]).bfloat16()[:, None]
    torch.testing.assert_close(kernels.lookup(index, table)[:, 0], table, rtol=0, atol=0, equal_nan=True)
    both = kernels.lookup(torch.tensor([[[0, 1]]]), halves)  # 1 + 2^-8 lies in the middle: 1 is even
    assert torch.equal(both, torch.ones_like(both))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("T", "B", "K", "R", "G"), [(1, 1, 1, 1, 1), (5, 7, 1, 9, 68), (4, 3, 6, 30, 51), (0, 2, 2, 3, 4)]
)
def test_lookup(dtype: torch.dtype, T: int, B: int, K: int, R: int, G: int, instruction_set: str) -> None:
    index = torch.randint(0, R, (T, B, K), generator=generator(T))
    table = torch.randn(R, G, generator=generator(G)).to(dtype)
    results = [
        run(lambda t, f=f: f(index, t), [table]) for f in (reference.lookup, native_function("lookup"))
    ]
    tolerance = {"rtol": 0.0, "atol": 0.0} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    if dtype == torch.bfloat16:  # sums in another order, then rounded
        tolerance = {"rtol": 0.01, "atol": 0.01}
    torch.testing.assert_close(results[1], results[0], **tolerance)


def test_lookup_adds_its_gradient_up_in_float32() -> None:
    """The sum of 4096 halves into one row; in bfloat16 it would stop at 128."""
    table = torch.zeros(2, 20, dtype=torch.bfloat16, requires_grad=True)
    index = torch.zeros(4096, 1, 1, dtype=torch.int64)
    for function in (reference.lookup, native_function("lookup")):
        (grad,) = torch.autograd.grad(
            function(index, table), table, torch.full((4096, 1, 20), 0.5).bfloat16()
        )
        assert grad[:, 0].tolist() == [2048, 0]


def test_lookup_refuses_rows_that_are_not_there() -> None:
    for number in (-1, 3):
        with pytest.raises(RuntimeError, match="must be within 0 and 2"):
            native_function("lookup")(torch.tensor([[[number]]]), torch.zeros(3, 4))


@pytest.mark.parametrize("name", SCANS)
def test_opcheck(name: str) -> None:
    inputs = [x.requires_grad_() for x in halve(name, arguments(name, 3, 2, 5))]
    operator = getattr(torch.ops.melodia, name).default
    torch.library.opcheck(operator, (*inputs, torch.tensor([3, 1]), shapes.GATES))
    torch.library.opcheck(operator, (*[x.detach() for x in inputs], None, shapes.NOTHING))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_lookup(dtype: torch.dtype) -> None:
    index, table = torch.tensor([[[0, 2], [1, 1]]]), torch.randn(3, 5).to(dtype)
    torch.library.opcheck(torch.ops.melodia.lookup.default, (index, table.requires_grad_()))


@pytest.mark.parametrize("name", SCANS)
def test_autocast_casts_products_and_keeps_states(name: str) -> None:
    inputs = arguments(name, 4, 3, 20)
    leaves = [x.clone().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        got = as_tuple(native_function(name)(*leaves))
        direct = getattr(torch.ops.melodia, name)(*inputs, None, shapes.NOTHING)
    want = as_tuple(native_function(name)(*halve(name, inputs)))
    sequences = 2 if name == "pair_scan" else 1
    for k, (a, b, c) in enumerate(zip(got, want, direct[: len(got)], strict=True)):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert a.dtype == (torch.bfloat16 if k < sequences else torch.float32)
    grads = torch.autograd.grad([x.float().square().sum() for x in got], leaves)
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_autocast_to_float16_and_steps_run_in_float32() -> None:
    inputs = arguments("lstm_scan", 4, 3, 20)
    with torch.autocast("cpu", torch.float16):
        out, *_ = native_function("lstm_scan")(inputs[0].half(), *inputs[1:])
    assert out.dtype == torch.float32
    step = arguments("lstm_step", 1, 3, 20)
    with torch.autocast("cpu", torch.bfloat16):
        h, _ = native_function("lstm_step")(step[0].bfloat16(), *step[1:])
    torch.testing.assert_close(h, reference.lstm_step(step[0].bfloat16().float(), *step[1:])[0])


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("forward", [None, torch.bfloat16])
@pytest.mark.parametrize("name", OUTPUTS)
def test_backward_under_autocast_computes_as_outside(
    name: str, forward: torch.dtype | None, low: torch.dtype
) -> None:
    found = []
    for backward in (False, True):
        leaves = [x.requires_grad_() for x in arguments(name, 3, 2, 8)]
        with torch.autocast("cpu", forward, enabled=forward is not None):
            loss = sum(out.float().square().sum() for out in as_tuple(native_function(name)(*leaves)))
        with torch.autocast("cpu", low, enabled=backward):
            found.append(torch.autograd.grad(loss, leaves))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", SCANS)
def test_compiles_without_graph_breaks_under_autocast(name: str) -> None:
    inputs = arguments(name, 3, 2, 5)

    def call(*arguments: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            return tuple(x.float() for x in getattr(kernels, name)(arguments[0] + 0.0, *arguments[1:]))

    compiled: Any = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_near(run(compiled, inputs), run(call, inputs), OUTPUTS[name])


def test_mixed_types_are_refused() -> None:
    gates, h, c, weight, bias = arguments("lstm_scan", 2, 3, 5)
    with pytest.raises(BackendError, match="must be of one type"):
        native_function("lstm_scan")(gates.bfloat16(), h, c, weight, bias)
    with pytest.raises(RuntimeError, match="`weight_hh` must be bfloat16"):
        torch.ops.melodia.lstm_scan(gates.bfloat16(), h, c, weight, bias, None, shapes.NOTHING)
    with pytest.raises(RuntimeError, match="`gates_x` must be float32 or bfloat16"):
        torch.ops.melodia.lstm_scan(gates.double(), h, c, weight, bias, None, shapes.NOTHING)
