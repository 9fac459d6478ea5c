"""How the host cuts a CUDA scan into blocks (csrc/cuda/plan.h), and every way to cut it against the reference."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from typing import NamedTuple

import cuda_emulation as emulation
import pytest
import torch
from cuda_emulation import CSRC, TOLERANCE, Emulator, arguments, error, wanted

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler")

WARPS = 8


class Product(NamedTuple):
    """What is asked for: a product of a step, and the device."""

    units: int
    gates: int
    depth: int
    batch: int
    element_bytes: int = 4
    blocks: int = 132
    shared_bytes: int = 227 << 10


class Tiling(NamedTuple):
    """The host's answer; see csrc/cuda/tiling.h."""

    units: int
    unit_tiles: int
    batch: int
    run: int
    shares: int
    unit_blocks: int
    batch_blocks: int
    chunk: int
    depth: int
    shared_bytes: int
    rows: int  # of the batch at once


Planner = Callable[[list[Product]], list[Tiling | None]]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    """The host's choice, asked in a program of its own."""
    program = tmp_path_factory.mktemp("tilings") / "tilings"
    source = CSRC / "tests/tilings.cpp"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
    subprocess.run([str(emulation.COMPILER), *flags, str(source), "-o", str(program)], check=True)

    def ask(products: list[Product]) -> list[Tiling | None]:
        questions = "".join(f"{' '.join(map(str, product))}\n" for product in products)
        done = subprocess.run([str(program)], input=questions, capture_output=True, text=True, check=True)
        answers = done.stdout.splitlines()
        return [None if line == "none" else Tiling(*map(int, line.split())) for line in answers]

    return ask


def test_tilings_hold_the_whole_product(planner: Planner) -> None:
    """Every unit, row of the batch and number of the depth has a place, and every tile a warp."""
    devices = ((132, 227 << 10), (108, 163 << 10), (4, 64 << 10), (1, 32 << 10))
    products = [
        Product(H, gates, depth, B, element, blocks, shared)
        for H, B, element, (blocks, shared) in itertools.product(
            (1, 9, 64, 200, 512, 1024, 1536), (1, 8, 9, 24, 33, 64, 256), (2, 4), devices
        )
        for gates, depth in ((4, H), (3, H), (1, 4 * H), (1, 3 * H))
    ]
    found = planner(products)
    assert len(found) == len(products)
    assert sum(tiling is not None for tiling in found) > len(products) // 2
    for product, t in zip(products, found, strict=True):
        if t is None:
            continue
        assert t.units * t.unit_blocks >= product.units
        assert t.units == t.unit_tiles * (16 // product.gates)
        assert t.batch * t.batch_blocks >= t.rows
        assert t.rows <= product.batch
        assert t.unit_blocks * t.batch_blocks <= product.blocks
        assert t.shared_bytes <= product.shared_bytes
        assert t.depth - 16 < product.depth <= t.depth
        assert t.chunk <= t.depth
        assert t.chunk % 16 == 0
        assert t.batch % 8 == 0
        assert t.batch // 8 % t.run == 0
        assert t.unit_tiles * (t.batch // 8 // t.run) * t.shares <= WARPS, (product, t)


# H, B, and the tiles of a warp that come of them.
LSTM = [(16, 8, 1), (32, 16, 2), (32, 24, 3), (24, 32, 4), (12, 64, 4)]
GRU = [(20, 8, 1), (40, 16, 2), (20, 24, 3)]
CASES = [*(("lstm_scan", *case) for case in LSTM), *(("gru_scan", *case) for case in GRU)]


@pytest.mark.parametrize(
    ("dtype", "tf32", "allowed"),
    [
        (torch.float32, False, TOLERANCE),
        (torch.float32, True, 3e-3),
        (torch.bfloat16, False, 3e-2),
        (torch.float16, False, 4e-3),
    ],
)
@pytest.mark.parametrize(("name", "H", "B", "run"), CASES)
def test_runs_of_tiles(
    emulator: Emulator,
    planner: Planner,
    name: str,
    H: int,
    B: int,
    run: int,
    dtype: torch.dtype,
    tf32: bool,
    allowed: float,
) -> None:
    """One to four tiles of a warp beside each other, and warps that have none."""
    blocks, shared = 1, 96 << 10  # one block has to take it all
    gates = {"lstm_scan": 4, "gru_scan": 3}[name]
    (tiling,) = planner([Product(H, gates, H, B, dtype.itemsize, blocks, shared)])
    assert tiling is not None
    assert (tiling.run, tiling.batch) == (run, B)
    inputs = [x.to(dtype) for x in arguments(name, 2, B, H)]
    cotangents, want = wanted(name, [x.float() for x in inputs], None)
    cotangents = [x.to(dtype) if k == 0 else x for k, x in enumerate(cotangents)]
    emulator.configure(path="resident", schedule=run, blocks=blocks, shared_bytes=shared, tf32=tf32)
    got = emulator.values(name, inputs, cotangents, None)
    assert emulator.chosen() == "resident"
    assert error(got, want) < allowed
