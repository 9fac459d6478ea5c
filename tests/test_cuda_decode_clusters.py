"""The CUDA decode engine in clusters of blocks, on the emulator: the CPU engine's tokens."""

from __future__ import annotations

import ctypes

import cuda_decode_checks as checks
import cuda_decode_emulation as emulation
import pytest
from cuda_decode_checks import FILTERS, check_loop, loops, same
from cuda_decode_emulation import configure

from melodia import engine
from melodia.engine import cuda
from melodia.engine.loop import Stopped, Terms
from melodia.errors import ConfigError

pytestmark = [
    pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}"),
]


@pytest.mark.parametrize("schedule", range(4))
@pytest.mark.parametrize("kind", ["gru", "sequential", "parallel"])
def test_sessions_in_clusters(library: ctypes.CDLL, kind: str, schedule: int) -> None:
    """Three clusters of four blocks, one to choose: more sessions than clusters, and a last one with fewer."""
    configure(library, schedule=schedule, blocks=12)
    for B in (1, 3, 5):
        check_loop(library, B, 5, FILTERS, kind=kind, cluster=4)


@pytest.mark.parametrize("streamed", [0, 1])
def test_clusters_at_every_epoch(library: ctypes.CDLL, streamed: int) -> None:
    """Launches of other lengths, one after the other, in memory that still holds the words of those before."""
    for schedule in (0, 1, 2, 3):
        configure(library, schedule=schedule, blocks=4, shared_bytes=100 << 10)
        pair = loops(library, 4, FILTERS, kind="gru", cluster=4, streamed=streamed)
        for steps in (2, 1, 3, 2):
            for loop in pair:
                for lane in range(4):
                    loop.set_terms(lane, Terms(1000))
                assert loop.run(steps=steps) == Stopped.STEPS
        assert [same(*pair, lane) for lane in range(4)] == [8] * 4
        assert pair[1].lanes.engine.facts()["stalls"] == 0, pair[1].lanes.engine.fallback()


@pytest.mark.parametrize("cluster", [2, 16])
def test_clusters_of_every_size(library: ctypes.CDLL, cluster: int) -> None:
    configure(library, schedule=2, blocks=16)
    check_loop(library, 2, 5, FILTERS, kind="parallel", weights="bf16", cluster=cluster)


def test_the_environment_chooses_clusters(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """More blocks at once than one cluster of two has would be needed otherwise."""
    configure(library, schedule=1)
    ints, floats, _ = checks.described("gru", "fp32")
    for word, blocks in (("", 7), ("0", 7), ("2", 1), ("4", 3)):
        monkeypatch.setenv("MELODIA_CUDA_CLUSTER", word)
        assert cuda.CudaEngine(ints, floats, library=library).facts()["threads"] <= blocks
        assert cuda.chosen_options().cluster == int(word or 0)
    for word in ("1", "17", "-2", "four"):
        monkeypatch.setenv("MELODIA_CUDA_CLUSTER", word)
        with pytest.raises(ConfigError, match=f"MELODIA_CUDA_CLUSTER must be 2 to 16 .*{word}"):
            cuda.CudaEngine(ints, floats, library=library)


def test_where_there_can_be_no_clusters(library: ctypes.CDLL) -> None:
    """The same tokens from blocks all over the device, and the engine says why."""
    for why, settings, device in (
        ("clusters have no room for a bidirectional model's encoder", {"cluster": 4, "encoder": "gru"}, {}),
        ("a session does not fit into shared memory", {"cluster": 4}, {"shared_bytes": 24 << 10}),
    ):
        configure(library, schedule=1, **device)
        pair = loops(library, 1, FILTERS, **settings)  # type: ignore[arg-type]
        for loop in pair:
            loop.set_terms(0, Terms(1000))
            assert loop.run(steps=4) == Stopped.STEPS
        assert same(*pair, 0) == 4
        packed = pair[1].lanes.engine
        assert isinstance(packed, cuda.CudaEngine)
        assert packed.fallback() == why
    configure(library, schedule=1)
