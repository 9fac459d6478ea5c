"""The CUDA decode engine with many sessions, on the emulator: rows instead of words, compute blocks that sample."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import cuda_decode_checks as checks
import cuda_decode_emulation as emulation
import numpy as np
import pytest
from cuda_decode_checks import FILTERS, KINDS, check_lanes, check_loop, check_plain, loops, same
from cuda_decode_emulation import configure

from melodia import engine
from melodia.decode import SamplingConfig
from melodia.engine import cuda
from melodia.engine.description import describe
from melodia.engine.loop import Stopped, Terms
from melodia.errors import ConfigError
from melodia.model import ModelConfig, Network
from melodia.model.network import tensor_shapes

pytestmark = [
    pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}"),
]
ROWS: dict[str, Any] = {"counted": 1}
WORDS: dict[str, Any] = {"counted": -1}
JOINT: dict[str, Any] = {"samplers": -1}
EIGHT: dict[str, Any] = {"group": 8}
MOST = ["fp32", pytest.param("bf16", marks=pytest.mark.slow), "int8"]


@pytest.mark.parametrize("weights", MOST)
@pytest.mark.parametrize("name", KINDS)
def test_rows_are_what_words_are(library: ctypes.CDLL, name: str, weights: str) -> None:
    """The CPU's logits and states, and the same bits by either exchange, whichever blocks hand given tokens on."""
    configure(library, schedule=len(name) + 1)
    ints, floats, sizes = checks.described(name, weights)
    tokens, sides = checks.random_input(sizes, checks.steps_of(name), 9)
    found = []
    for way in (ROWS, WORDS, ROWS | JOINT, WORDS | JOINT):
        packed = cuda.CudaEngine(ints, floats, library=library, options=checks.options(**way))
        lanes = engine.Lanes(packed, 9)
        found.append([lanes.advance(tokens, sides), *(lanes.read(lane) for lane in range(9))])
        assert packed.facts()["stalls"] == 0, packed.fallback()
    for other in found[1:]:
        assert all(np.array_equal(*pair) for pair in zip(found[0], other, strict=True))
    check_lanes(library, name, weights, checks.steps_of(name), 9, **ROWS)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("H", [20, 24, 40])
def test_rows_of_odd_sizes(library: ctypes.CDLL, H: int, weights: str) -> None:
    """Rows that end within 16 bytes, a last group of one session, blocks with fewer units than others."""
    for schedule, (kind, B, V) in enumerate(
        [("sequential", 9, 21), ("parallel", 17, 23), ("lstm", 17, 50), ("gru", 9, 8)]
    ):
        configure(library, schedule=schedule + H)
        check_plain(library, kind, weights, 3, B, H, V, **ROWS)


@pytest.mark.parametrize("weights", MOST)
@pytest.mark.parametrize(
    ("name", "B"), [("parallel-gated", 17), ("sequential-deep", 35), ("bilstm-gru-deep", 18)]
)
def test_groups_of_every_width(library: ctypes.CDLL, name: str, B: int, weights: str) -> None:
    """8, 16 or 32 sessions pass a stage together, their rows asked for ahead or not: the bits of eight by words."""
    ways = (WORDS | EIGHT, ROWS | EIGHT, ROWS | EIGHT | {"ahead": -1}, ROWS | {"group": 16}, ROWS)
    same_bits(library, name, weights, 9, B, ways)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_groups_that_bring_embeddings(
    library: ctypes.CDLL, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five groups of eight pass the first stage, too: nobody posts what comes into it."""
    monkeypatch.setattr("melodia.engine.description.TABLE_BYTES", 0)
    checks.described.cache_clear()
    try:
        same_bits(library, "sequential-deep", weights, 4, 35, (WORDS | EIGHT, ROWS | EIGHT))
    finally:
        checks.described.cache_clear()


def same_bits(
    library: ctypes.CDLL, name: str, weights: str, T: int, B: int, ways: Iterable[dict[str, Any]]
) -> None:
    """The same logits and states, whichever way the sessions pass the stages, and no launch that fell back."""
    ints, floats, sizes = checks.described(name, weights)
    configure(library, schedule=B, shared_bytes=200 << 10)
    tokens, sides = checks.random_input(sizes, T, B)
    found = []
    for way in ways:
        packed = cuda.CudaEngine(ints, floats, library=library, options=checks.options(**way))
        lanes = engine.Lanes(packed, B)
        found.append([lanes.advance(tokens, sides), *(lanes.read(lane) for lane in range(B))])
        assert packed.facts()["stalls"] == 0, packed.fallback()
    for other in found[1:]:
        assert all(np.array_equal(*pair) for pair in zip(found[0], other, strict=True))
    configure(library)


@pytest.mark.parametrize(
    "changed",
    [ROWS, WORDS, ROWS | JOINT, WORDS | JOINT, ROWS | JOINT | {"apart": 1}, ROWS | {"launch_steps": 2}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["gru", "parallel"])
def test_sessions_that_end_at_other_steps(library: ctypes.CDLL, kind: str, changed: dict[str, Any]) -> None:
    """Nobody waits for them, whole groups included, and the others choose what they choose alone."""
    configure(library, schedule=7)
    B, most = 11, 7
    wanted = [1 + lane % 3 if lane < 8 else most - lane % 2 for lane in range(B)]
    together = loops(library, B, FILTERS, kind=kind, **changed)[1]
    for lane in range(B):
        together.set_terms(lane, Terms(wanted[lane]))
    together.run(steps=most)
    for lane in range(B):
        alone = loops(library, 1, FILTERS, kind=kind, first_session=lane)[0]
        alone.set_terms(0, Terms(wanted[lane]))
        if changed.get("launch_steps"):  # the others stop where the first does
            alone.run(steps=2)
        else:
            alone.run(steps=most)
        assert same(alone, together, 0, lane) == min(wanted[lane], changed.get("launch_steps", most))
    packed = together.lanes.engine
    assert packed.facts()["stalls"] == 0


@pytest.mark.parametrize("schedule", range(4))
def test_tokens_by_rows(library: ctypes.CDLL, schedule: int) -> None:
    configure(library, schedule=schedule)
    check_loop(library, 9, 5, FILTERS, **ROWS)
    check_loop(library, 2, 24, FILTERS, encoder=("lstm", "gru")[schedule % 2], weights="bf16", **ROWS)
    check_loop(library, 2, 4, pairs=True, **ROWS)


@pytest.mark.parametrize(
    "changed",
    [{}, ROWS, WORDS, ROWS | {"apart": 1}, {"launch_steps": 3}, {"threads": 96}, {"streamed": 1}],
    ids=str,
)
@pytest.mark.parametrize("schedule", range(4))
def test_compute_blocks_that_sample(library: ctypes.CDLL, schedule: int, changed: dict[str, Any]) -> None:
    """A session each, several each, and blocks without one."""
    configure(library, schedule=schedule)
    for B, kind, weights in ((1, "gru", "fp32"), (4, "parallel", "bf16"), (9, "sequential", "fp32")):
        check_loop(library, B, 5, FILTERS, kind=kind, weights=weights, **JOINT, **changed)
    encoder = ("lstm", "gru")[schedule % 2]
    check_loop(library, 3, 24, FILTERS, encoder=encoder, **JOINT, **changed)
    check_loop(library, 2, 4, SamplingConfig(temperature=1.5), pairs=True, **JOINT, **changed)


@pytest.mark.parametrize("changed", [ROWS, ROWS | EIGHT, WORDS], ids=str)
@pytest.mark.parametrize("schedule", [1, 2, 3])
def test_blocks_that_give_up(library: ctypes.CDLL, schedule: int, changed: dict[str, Any]) -> None:
    """One of two has 15 sessions, the other's have ended; it waits, and may not: stage by stage it is the same."""
    configure(library, schedule=schedule)
    found = []
    for limit_us in (0, 1):
        loop = loops(library, 30, FILTERS, kind="gru", blocks=2, limit_us=limit_us, **JOINT, **changed)[1]
        for lane in range(30):
            loop.set_terms(lane, Terms(1 if lane % 2 else 1000))
        loop.run(steps=4)
        found.append(loop)
    assert [same(*found, lane) for lane in range(30)] == [4, 1] * 15
    assert [loop.lanes.engine.fallback() for loop in found] == ["", "a block gave up waiting for the others"]


@pytest.mark.parametrize(
    ("B", "changed", "blocks"),
    [(1, {}, 6 + 1), (3, {}, 6 + 1), (6, {}, 6), (9, {}, 6), (1, JOINT, 6), (9, {"samplers": 1}, 6 + 1)],
    ids=str,
)
def test_who_samples(library: ctypes.CDLL, B: int, changed: dict[str, Any], blocks: int) -> None:
    """Compute blocks where one more block would have too many sessions; what is missing says how many there are."""
    configure(library, schedule=1, blocks=7)
    pair = loops(library, B, FILTERS, least_units=1, **changed)
    configure(library, schedule=1, blocks=2)
    for loop in pair:
        for lane in range(B):
            loop.set_terms(lane, Terms(1000))
        assert loop.run(steps=2) == Stopped.STEPS
    assert [same(*pair, lane) for lane in range(B)] == [2] * B
    packed = pair[1].lanes.engine
    assert isinstance(packed, cuda.CudaEngine)
    assert packed.fallback() == f"the device holds 2 blocks at once of {blocks}"
    configure(library, schedule=1)


def test_sessions_that_need_more_than_32_bits_count(library: ctypes.CDLL) -> None:
    """More than 2 GB of states in one block are refused like a little too much."""
    config = ModelConfig("sequential", vocab_size=8, hidden_size=176, lstm_layers=64, gru_layers=64)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    packed = cuda.CudaEngine(
        *describe(Network(config, tensors)), library=library, options=cuda.Options(blocks=1)
    )
    assert 4 * 6 * 128 * 176 * 4096 > 1 << 31
    with pytest.raises(ConfigError, match="so many sessions do not fit into the shared memory"):
        engine.Lanes(packed, 4096)


def test_no_room_for_blocks_that_only_sample(library: ctypes.CDLL) -> None:
    """A device that the compute blocks fill."""
    configure(library, schedule=1, blocks=1)
    check_loop(library, 2, 4, FILTERS)
    configure(library, schedule=1)
