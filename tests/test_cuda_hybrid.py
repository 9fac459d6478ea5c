"""hybrid_step for CUDA on the emulator against the reference: every kind, size, path and schedule."""

from __future__ import annotations

import cuda_emulation as emulation
import pytest
import torch
from cuda_emulation import Emulator, error
from kernel_helpers import stack_arguments as arguments
from test_hybrid_step import STACKS, flat

from melodia.kernels import cuda, reference

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler")

# Relative to the largest magnitude of a tensor; half precision as in test_cuda_scans.py.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
WAYS = ("resident", "steps", "rows")


def compare(
    emulator: Emulator,
    levels: list[str],
    B: int,
    H: int,
    layer_norm: bool = True,
    residual: bool = True,
    dtype: torch.dtype = torch.float32,
    state: torch.dtype | None = None,
) -> None:
    """A step as configured; the state and the vectors in a type of their own where one is named."""
    gates, states, weights = arguments(levels, B, H, layer_norm, seed=H)
    states = [x.to(state or dtype) for x in states]
    gates, weights = (
        [x.to(state if state and x.dim() == 1 else dtype) for x in part] for part in (gates, weights)
    )
    codes = [reference.LEVELS.index(level) for level in levels]
    got = emulator.ops.hybrid_step(gates, states, weights, codes, layer_norm, residual)
    wide = [[x.float() for x in part] for part in (gates, states, weights)]
    want = reference.hybrid_step(*wide, levels, layer_norm, residual)
    assert {x.dtype for x in flat(got)} == {state or dtype}
    assert error(flat(got), flat(want)) < TOLERANCE[dtype], error(flat(got), flat(want))


@pytest.mark.parametrize("path", WAYS)
@pytest.mark.parametrize("levels", STACKS, ids="-".join)
def test_parity(emulator: Emulator, levels: list[str], path: str) -> None:
    for schedule, (B, H) in enumerate(((1, 17), (9, 33))):
        emulator.configure(path=path, schedule=schedule + 2)
        compare(emulator, levels, B, H, layer_norm=schedule == 0, residual=schedule == 1)
        assert emulator.chosen() == path


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", WAYS)
def test_types(emulator: Emulator, path: str, dtype: torch.dtype) -> None:
    """All in one type; the state in float32 beside it, as under autocast."""
    emulator.configure(path=path, schedule=5)
    for state in (None, torch.float32):
        compare(emulator, ["gated", "gru", "lstm"], 3, 24, dtype=dtype, state=state)


def test_one_tile_needs_no_other_block(emulator: Emulator) -> None:
    compare(emulator, ["lstm", "gru"], 2, 3)
    assert emulator.chosen() == "rows"
    compare(emulator, ["lstm", "gru"], 2, 40)
    assert emulator.chosen() == "resident"


def test_vectors_in_chunks(emulator: Emulator) -> None:
    for path in WAYS:
        emulator.configure(path=path, shared_bytes=10 << 10, schedule=7)
        compare(emulator, ["concat", "lstm"], 2, 84)


def test_fewer_blocks_than_tiles(emulator: Emulator) -> None:
    for blocks in (2, 5):
        emulator.configure(path="resident", blocks=blocks, schedule=blocks)
        compare(emulator, ["gated", "sum", "gru"], 9, 50)


def test_a_block_with_tiles_of_both_cells(emulator: Emulator) -> None:
    """Tiles of an LSTM and then of a GRU, whose weights come to where the sums of the first stand."""
    for schedule in range(1, 7):
        emulator.configure(path="resident", blocks=2, shared_bytes=10 << 10, schedule=schedule)
        compare(emulator, ["sum"], 2, 27, dtype=torch.bfloat16)


def test_blocks_that_wait_in_vain(emulator: Emulator) -> None:
    """Time that runs out at once: the step that follows makes the same numbers, block by block."""
    levels = ["concat", "gru", "sum", "lstm", "gated"]
    for schedule in (1, 2, 3):
        emulator.configure(path="resident", schedule=schedule, limit_ns=1)
        before = emulator.rescues()
        compare(emulator, levels, 9, 40)
        assert emulator.rescues() > before


def test_the_same_bits_on_every_schedule(emulator: Emulator) -> None:
    made = arguments(["gated", "gru"], 9, 40, True)
    found = []
    for schedule in range(4):
        emulator.configure(schedule=schedule)
        found.append(flat(emulator.ops.hybrid_step(*made, [4, 1], True, True)))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_nothing_to_do(emulator: Emulator) -> None:
    output, state = emulator.ops.hybrid_step(*arguments(["lstm"], 0, 5, False), [0], False, False)
    assert output.shape == state[0].shape == (0, 5)


def test_autocast_leaves_vectors_and_states() -> None:
    """Under autocast matrices and gates are converted; biases and LayerNorm's vectors stay as they are."""
    got = cuda._cast([torch.zeros(2, 2), torch.zeros(2)], torch.bfloat16)
    assert [x.dtype for x in got] == [torch.bfloat16, torch.float32]
    assert cuda._CAST["hybrid_step"] == (0, 2)


def test_wrong_arguments(emulator: Emulator) -> None:
    gates, state, weights = arguments(["lstm"], 2, 5, True)
    for given, message in (
        ((gates, state, weights[:-1]), "`weights` has 3 tensors and needs more"),
        ((gates, state, [*weights, weights[0]]), r"`weights` must have 4 tensors \(received 5\)"),
        ((gates, state[:1], weights), "`state` has 1 tensors and needs more"),
        (([gates[0][:, :-1]], state, weights), r"`gates_x` must have the shape \[2, 20\]"),
        ((gates, state, [weights[0].half(), *weights[1:]]), "`weights` must be float32 on this backend"),
        (
            (gates, state, [*weights[:-1], weights[-1].double()]),
            "`weights` must be float32, bfloat16 or float16",
        ),
        (([], state, weights), "one level at least"),
    ):
        with pytest.raises(RuntimeError, match=message):
            emulator.ops.hybrid_step(*given, [0], True, False)
    with pytest.raises(RuntimeError, match="`levels` must be within 0 and 4"):
        emulator.ops.hybrid_step(gates, state, weights, [5], False, False)
    with pytest.raises(RuntimeError, match=r"16 levels at most on CUDA \(received 17\)"):
        emulator.ops.hybrid_step(gates, state, weights, [0] * 17, False, False)


@pytest.mark.slow
@pytest.mark.parametrize("levels", STACKS, ids="-".join)
def test_many_schedules(emulator: Emulator, levels: list[str]) -> None:
    for schedule in range(3, 15):
        emulator.configure(path=WAYS[schedule % 3], schedule=schedule, blocks=6 + schedule)
        compare(emulator, levels, 1 + schedule, 7 * schedule, schedule % 2 == 0, schedule % 4 < 2)
