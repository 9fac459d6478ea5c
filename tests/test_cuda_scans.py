"""The CUDA operators on the emulator against the reference: every path, forward and backward, many schedules."""

from __future__ import annotations

import itertools

import cuda_emulation as emulation
import pytest
import torch
from cuda_emulation import TOLERANCE, Emulator, arguments, error, wanted
from torch import Tensor

from melodia.kernels import reference

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler")

SCANS = ("lstm_scan", "gru_scan", "pair_scan")
WAYS = [("resident", "counter"), ("resident", "in_band"), ("steps", "automatic"), ("rows", "automatic")]

# Half precision: what is kept per step is rounded, sums are not. Relative to the largest magnitude of a tensor; the
# reference runs in float32 on the same rounded inputs.
ROUNDED = {torch.bfloat16: 3e-2, torch.float16: 4e-3}


def compare(
    emulator: Emulator,
    name: str,
    sizes: tuple[int, int, int],
    lengths: Tensor | None = None,
    allowed: float = TOLERANCE,
    dtype: torch.dtype = torch.float32,
) -> None:
    """A scan as configured against the reference, outputs and gradients."""
    T, B, H = sizes
    inputs = [x.to(dtype) for x in arguments(name, T, B, H, seed=H)]
    cotangents, want = wanted(name, [x.float() for x in inputs], lengths)
    outputs = {"lstm_scan": (0,), "gru_scan": (0,), "pair_scan": (0, 1)}[name]
    cotangents = [x.to(dtype) if k in outputs else x for k, x in enumerate(cotangents)]
    got = emulator.values(name, inputs, cotangents, lengths)
    assert error(got, want) < allowed, error(got, want)


@pytest.mark.parametrize(("path", "exchange"), WAYS)
@pytest.mark.parametrize("name", SCANS)
def test_parity(emulator: Emulator, name: str, path: str, exchange: str) -> None:
    """Sizes that are multiples of nothing; a few schedules, the first in order and with a strong memory."""
    few = path == "rows"  # a fiber switch for every number that a warp sums
    all_sizes = ((1, 1, 1), (2, 2, 9)) if few else ((1, 1, 1), (5, 2, 17), (3, 9, 33))
    for sizes, schedule in itertools.product(all_sizes, range(1, 2) if few else range(3)):
        emulator.configure(path=path, exchange=exchange, schedule=schedule)
        compare(emulator, name, sizes)
        assert emulator.chosen() == path


@pytest.mark.slow
@pytest.mark.parametrize(("path", "exchange"), WAYS)
@pytest.mark.parametrize("name", SCANS)
def test_parity_under_many_schedules(emulator: Emulator, name: str, path: str, exchange: str) -> None:
    for T, B, H in ((1, 3, 5), (2, 1, 1), (9, 2, 8), (4, 17, 20), (3, 5, 64)):
        for schedule in range(3, 9):
            lengths = torch.randint(0, T + 1, (B,), generator=torch.Generator().manual_seed(schedule))
            emulator.configure(path=path, exchange=exchange, schedule=schedule)
            compare(emulator, name, (T, B, H), None if schedule % 2 else lengths)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["counter", "in_band"])
def test_long(emulator: Emulator, exchange: str) -> None:
    emulator.configure(path="resident", exchange=exchange, schedule=5)
    compare(emulator, "pair_scan", (129, 2, 17), allowed=2e-5)


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize(("path", "exchange"), WAYS)
def test_half_precision(emulator: Emulator, dtype: torch.dtype, path: str, exchange: str) -> None:
    emulator.configure(path=path, exchange=exchange, schedule=3)
    for name in SCANS:
        compare(emulator, name, (3, 2, 8 if path == "rows" else 24), allowed=ROUNDED[dtype], dtype=dtype)


TF32 = 2e-3  # operands have 11 bits; sums and everything else are float32


def rounded_to_tf32(x: Tensor) -> Tensor:
    """10 bits of fraction, halves away from zero: what a tensor core reads."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize(("path", "exchange"), WAYS[:3])
def test_tf32(emulator: Emulator, path: str, exchange: str) -> None:
    """float32 scans whose products are of tensor cores; in chunks too."""
    emulator.configure(path=path, exchange=exchange, schedule=3, tf32=True)
    for name in SCANS:
        compare(emulator, name, (3, 9, 33), allowed=TF32)
    emulator.configure(path=path, exchange=exchange, schedule=3, tf32=True, shared_bytes=24 << 10, blocks=40)
    compare(emulator, "gru_scan", (3, 2, 84), allowed=TF32)


def test_tf32_rounds_the_operands_and_nothing_else(emulator: Emulator) -> None:
    """One step equals float32 with rounded weights and state, and does not equal float32."""
    gates_x, h, c, weight, bias = arguments("lstm_scan", 1, 9, 33)
    want = reference.lstm_step(gates_x[0], rounded_to_tf32(h), c, rounded_to_tf32(weight), bias)
    plain = reference.lstm_step(gates_x[0], h, c, weight, bias)
    emulator.configure(tf32=True)
    got = emulator.ops.lstm_step(gates_x[0], h, c, weight, bias)
    assert error(list(got), list(want)) < TOLERANCE
    assert error(list(got), list(plain)) > 10 * TOLERANCE


def test_tf32_that_gives_up_is_done_in_float32(emulator: Emulator) -> None:
    emulator.configure(path="resident", schedule=2, limit_ns=0, tf32=True)
    compare(emulator, "pair_scan", (2, 2, 17))


@pytest.mark.parametrize("dtype", ROUNDED)
def test_conversions_round_as_torch(emulator: Emulator, dtype: torch.dtype) -> None:
    """Rows of a table: one alone is itself, two are their rounded sum."""
    g = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**15), 2**15, (16, 1000), generator=g, dtype=torch.int16)
    table = torch.where(torch.isfinite(words.view(dtype)), words.view(dtype), 0)
    index = torch.randint(0, 16, (1, 6, 2), generator=g)
    assert torch.equal(emulator.ops.lookup(index, table), table.float()[index].sum(2).to(dtype))
    one = emulator.ops.lookup(index[..., :1], table)
    assert torch.equal(one.view(torch.int16), table[index[..., 0]].view(torch.int16))


@pytest.mark.parametrize(("path", "exchange"), WAYS)
@pytest.mark.parametrize("lengths", [[0, 1, 3, 5, 2], [0, 0, 0, 0, 0], [9, 5, -1, 0, 4]])
def test_lengths(emulator: Emulator, lengths: list[int], path: str, exchange: str) -> None:
    for name in SCANS:
        emulator.configure(path=path, exchange=exchange, schedule=5)
        compare(emulator, name, (5, 5, 5), torch.tensor(lengths))


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("exchange", ["counter", "in_band"])
def test_batch_in_rounds(emulator: Emulator, name: str, exchange: str) -> None:
    """Four blocks hold the weights but not the batch, which goes through in several launches."""
    emulator.configure(path="resident", exchange=exchange, schedule=3, blocks=4, shared_bytes=20 << 10)
    compare(emulator, name, (2, 70, 20), allowed=1e-5)


def test_vectors_in_chunks(emulator: Emulator) -> None:
    emulation.check_chunks(emulator, range(2, 4))


@pytest.mark.parametrize("name", SCANS)
def test_what_gives_up_is_done_in_another_way(emulator: Emulator, name: str) -> None:
    """Waits of no time at all: the blocks give up, and the kernel that follows does the work."""
    T, B, H = 2, 2, 17
    for exchange, schedule in itertools.product(("counter", "in_band"), (1, 2)):
        emulator.configure(path="resident", exchange=exchange, schedule=schedule, limit_ns=0)
        before = emulator.rescues()
        compare(emulator, name, (T, B, H))
        assert emulator.rescues() > before


def test_blocks_that_give_up_between_chunks(emulator: Emulator) -> None:
    emulation.check_giving_up(emulator, range(1, 5))


def test_weights_that_do_not_fit(emulator: Emulator) -> None:
    emulator.configure(blocks=1, shared_bytes=12 << 10)
    compare(emulator, "lstm_scan", (3, 2, 40))
    assert emulator.chosen() == "steps"
    emulator.configure(path="resident", blocks=1, shared_bytes=12 << 10)
    with pytest.raises(RuntimeError, match="the weights do not fit on the chip; choose another path"):
        compare(emulator, "lstm_scan", (3, 2, 40))


@pytest.mark.parametrize("name", SCANS)
def test_automatic_is_resident_and_the_same_in_every_schedule(emulator: Emulator, name: str) -> None:
    """Bit for bit: no sum depends on who comes first."""
    inputs = arguments(name, 4, 5, 20)
    cotangents, _ = wanted(name, inputs)
    results = []
    for schedule in range(6):
        emulator.configure(schedule=schedule)
        results.append(emulator.values(name, inputs, cotangents, None))
        assert emulator.chosen() == "resident"
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("path", ["automatic", "resident"])
@pytest.mark.parametrize("name", SCANS)
def test_no_steps_and_no_batch(emulator: Emulator, name: str, path: str) -> None:
    """Without steps the state and its gradient pass through; without a batch everything is empty."""
    emulator.configure(path=path)
    inputs = arguments(name, 0, 3, 5)
    states = inputs[2:5] if name == "pair_scan" else inputs[1:-2]
    outputs = 2 if name == "pair_scan" else 1
    cotangents = [*(torch.zeros(0, 3, 5) for _ in range(outputs)), *(torch.randn(3, 5) for _ in states)]
    got = emulator.values(name, inputs, cotangents, None)
    assert all(torch.equal(a, b) for a, b in zip(got[outputs:], states, strict=False))
    gradients = got[2 * outputs + len(states) :]
    assert all(torch.equal(a, b) for a, b in zip(gradients, cotangents[outputs:], strict=False))
    for x in getattr(emulator.ops, name)(*arguments(name, 2, 0, 5), None, emulation.KEEP):
        assert x.numel() == 0


@pytest.mark.parametrize("B", [1, 3, 20])
def test_steps(emulator: Emulator, B: int) -> None:
    for H in (1, 17, 40):
        gates_x, h, c, weight, bias = arguments("lstm_scan", 1, B, H)
        want = reference.lstm_step(gates_x[0], h, c, weight, bias)
        assert error(list(emulator.ops.lstm_step(gates_x[0], h, c, weight, bias)), list(want)) < TOLERANCE
        gates_x, h, weight, bias = arguments("gru_scan", 1, B, H)
        got = emulator.ops.gru_step(gates_x[0], h, weight, bias)
        assert error([got], [reference.gru_step(gates_x[0], h, weight, bias)]) < TOLERANCE


def test_gates_again(emulator: Emulator) -> None:
    """The kept gates from sums over all steps equal those that the scan kept."""
    inputs = arguments("lstm_scan", 3, 2, 9)
    gates_x, h, _, weight, bias = inputs
    output, *_, gates, _ = emulator.ops.lstm_scan(*inputs, None, 2)
    before = torch.cat([h.unsqueeze(0), output[:-1]])
    assert error([emulator.ops.lstm_gates(gates_x + before @ weight.t(), bias)], [gates]) < TOLERANCE
    inputs = arguments("gru_scan", 3, 2, 9)
    gates_x, h, weight, bias = inputs
    output, _, gates = emulator.ops.gru_scan(*inputs, None, 2)
    before = torch.cat([h.unsqueeze(0), output[:-1]])
    assert error([emulator.ops.gru_gates(gates_x, before @ weight.t() + bias)], [gates]) < TOLERANCE


def test_kept(emulator: Emulator) -> None:
    """With keep 0: nothing, 1: the cells, 2: cells and gates; the outputs are the same."""
    inputs = arguments("lstm_scan", 3, 2, 9)
    results = [emulator.ops.lstm_scan(*inputs, None, keep) for keep in range(3)]
    assert [r[3].numel() for r in results] == [0, 0, 3 * 2 * 36]
    assert [r[4].numel() for r in results] == [0, 3 * 2 * 9, 3 * 2 * 9]
    assert all(torch.equal(a, b) for r in results[:2] for a, b in zip(r[:3], results[2][:3], strict=True))
    assert torch.equal(results[1][4], results[2][4])


@pytest.mark.parametrize("dtype", [torch.float32, *ROUNDED])
def test_lookup(emulator: Emulator, dtype: torch.dtype) -> None:
    """Rows that read words of four numbers and rows that do not, a row hit by nobody, one hit at every place."""
    g = torch.Generator().manual_seed(0)
    for rows, B, G, K in ((1, 9, 1, 1), (7, 9, 5, 3), (20, 9, 300, 2), (4, 600, 8, 2)):
        index = torch.randint(0, rows, (2, B, K), generator=g)
        index[..., 0] = 0
        table = torch.randn(rows + 1, G, generator=g).to(dtype).requires_grad_()
        want = reference.lookup(index, table)
        grad = torch.randn(want.shape, generator=g).to(dtype)
        got = emulator.ops.lookup(index, table.detach())
        assert error([got], [want.detach()]) < ROUNDED.get(dtype, TOLERANCE)
        want = torch.zeros(rows + 1, G).index_add_(
            0, index.flatten(), grad.float().flatten(0, 1).repeat_interleave(K, 0)
        )
        got = emulator.ops.lookup_backward(grad, index, rows + 1)
        assert got.dtype == torch.float32
        assert error([got], [want]) < TOLERANCE


def test_the_gradient_of_a_lookup_leaves_out_rows_that_are_not_there(emulator: Emulator) -> None:
    """On the GPU nobody looks at the numbers before; nothing may be written beside the table."""
    index = torch.tensor([[[-3, 1], [1, 2], [9, 0]]])
    got = emulator.ops.lookup_backward(torch.tensor([[[1.0], [2.0], [4.0]]]), index, 2)
    assert got.flatten().tolist() == [4.0, 3.0]
    nothing = emulator.ops.lookup_backward(torch.zeros(2, 0, 3), torch.zeros(2, 0, 1, dtype=torch.int64), 4)
    assert torch.equal(nothing, torch.zeros(4, 3))


def test_missing_gradients_are_zero(emulator: Emulator) -> None:
    """Only the last cell state is used."""
    inputs = arguments("lstm_scan", 3, 2, 9)
    _, want = wanted("lstm_scan", inputs)
    zeros = [torch.zeros_like(want[0]), torch.zeros_like(want[1]), torch.randn(2, 9)]
    *_, gates, cells = emulator.ops.lstm_scan(*inputs, None, 2)
    got = [
        emulator.ops.lstm_scan_backward(*first, zeros[2], gates, cells, inputs[2], inputs[3], None)
        for first in ((None, None), zeros[:2])
    ]
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: [a[0][..., :-1], *a[1:]], r"`gates_x` must have the shape \[2, 3, 20\] \(received"),
        (lambda a: [a[0], a[1][:1], *a[2:]], r"`h` must have the shape \[3, 5\]"),
        (lambda a: [*a[:3], a[3].bfloat16(), a[4]], "`weight_hh` must be float32"),
        (lambda a: [x.double() for x in a], "must be float32, bfloat16 or float16|must be float32"),
    ],
)
def test_wrong_arguments(emulator: Emulator, change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(RuntimeError, match=message):
        emulator.ops.lstm_scan(*change(arguments("lstm_scan", 2, 3, 5)), None, 0)
