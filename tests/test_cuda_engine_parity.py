"""The decode engine on a GPU against the CPU's engine: the checks that test_cuda_decode.py runs on the emulator.

Skipped where it cannot run; the reason is shown.
"""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch
from cuda_decode_checks import (
    FILTERS,
    KINDS,
    WHOLE,
    check_bias,
    check_lanes,
    check_loop,
    check_plain,
    check_streams,
    steps_of,
)
from kernel_helpers import stack_arguments
from test_hybrid_step import STACKS, assert_close, flat

from melodia import engine, kernels
from melodia.decode import SamplingConfig
from melodia.engine import cuda
from melodia.kernels import cuda as cuda_kernels
from melodia.kernels import reference

needs_engine = pytest.mark.skipif(
    cuda.reason() is not None or engine.reason() is not None, reason=f"no engine: {cuda.reason()}"
)
needs_kernels = pytest.mark.skipif(cuda_kernels.reason() is not None, reason=cuda_kernels.describe())
ROWS = {"counted": 1, "samplers": -1}  # as for many sessions
WAYS = [{}, ROWS, {"apart": 1}, {"streamed": 1}, {"launch_steps": 1}, {"least_units": 6}]
ENCODERS = [None, "lstm", "gru"]
NO_ROOM = ("clusters need compute capability 9.0", "the device has no room for a cluster of so many blocks")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    """The engine that was built."""
    found = cuda._loaded()[0]
    assert found is not None
    return found


@needs_engine
@pytest.mark.parametrize("changed", WAYS, ids=str)
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", KINDS)
def test_logits_and_states(library: ctypes.CDLL, name: str, weights: str, changed: dict[str, int]) -> None:
    for B in (1, 9):
        check_lanes(library, name, weights, 2 + steps_of(name), B, **changed)


@needs_engine
@pytest.mark.parametrize(
    ("encoder", "changed"),
    [*itertools.product(ENCODERS, WAYS), (None, {"cluster": 4})],  # an encoder has no room in a cluster
    ids=str,
)
@pytest.mark.parametrize(
    "config", [None, FILTERS, SamplingConfig(greedy=True), SamplingConfig(top_p=0.5)], ids=str
)
def test_tokens(
    library: ctypes.CDLL, encoder: str | None, config: SamplingConfig | None, changed: dict[str, int]
) -> None:
    if "cluster" in changed and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip(NO_ROOM[0])
    for B in (1, 3):
        check_loop(library, B, 20, config, encoder=encoder, **changed)


@needs_engine
@pytest.mark.parametrize("changed", WAYS, ids=str)
def test_a_bias_by_program(library: ctypes.CDLL, changed: dict[str, int]) -> None:
    check_bias(library, **changed)


@needs_engine
@pytest.mark.parametrize("B", [1, 9, 64])
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("kind", ["sequential", "parallel"])
def test_large_models(library: ctypes.CDLL, kind: str, weights: str, B: int) -> None:
    """Blocks as the device wants them: 256 threads, as many blocks as it has processors."""
    check_plain(library, kind, weights, 12, B, 512, 512, **WHOLE)


@needs_engine
@pytest.mark.parametrize(
    ("B", "changed"),
    [
        (1, {}),
        (64, {}),
        (64, {"samplers": 4, "group": 8}),
        (64, {"counted": -1}),
        (1, {"cluster": 16}),
        (9, {"cluster": 16}),
    ],
)
def test_tokens_of_large_models(library: ctypes.CDLL, B: int, changed: dict[str, int]) -> None:
    fell_back = check_streams(library, "sequential", 512, B, 24, **changed)
    if "cluster" in changed and fell_back in NO_ROOM:
        pytest.skip(fell_back)
    assert fell_back == ""


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("levels", STACKS, ids="-".join)
def test_stacks(levels: list[str], dtype: torch.dtype) -> None:
    """hybrid_step on every path; gradients are the reference's formulas."""
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    loaded = cuda_kernels._load()[0]
    assert loaded is not None
    for path in range(4):
        loaded.melodia_cuda_configure(path, 0, cuda_kernels.SPIN_LIMIT_NS)
        for B, H in ((1, 17), (9, 64), (64, 100)):
            made = [[x.to(dtype) for x in part] for part in stack_arguments(levels, B, H, True, seed=H)]
            wide = [[x.float() for x in part] for part in made]
            there = [[x.cuda() for x in part] for part in made]
            with kernels.use_backend("native"):
                got = flat(kernels.hybrid_step(*there, levels, True, True))
            want = flat(reference.hybrid_step(*wide, levels, True, True))
            assert_close([x.float().cpu() for x in got], want, tolerance)
    loaded.melodia_cuda_configure(0, 0, cuda_kernels.SPIN_LIMIT_NS)
