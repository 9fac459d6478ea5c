"""The measurements of gpu_check.py that concern the decode engine, and the floor under them."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.gpu_tools import captured, medians, repeat, row
from melodia.errors import ConfigError


def memory() -> int:
    """GB/s of torch reading a buffer again and again: from L2 where it fits, else from memory."""
    import torch

    for megabytes in (3, 6, 19, 38, 1024):
        took = reading_time(megabytes << 20)
        row(MB=megabytes, us=1e6 * took, **{"GB/s": megabytes * 1.048576e-3 / took})
    torch.cuda.empty_cache()
    return 0


def reading_time(size: int) -> float:
    """Seconds in which torch reads so many bytes that it has just read."""
    import torch

    buffer = torch.ones(max(1, size // 4), device="cuda")
    return medians({"sum": lambda: [buffer.sum() for _ in range(20)]})["sum"] / 20000


def network(kind: str, H: int, **settings: int) -> Any:
    """A random model over the benchmark's vocabulary of 512 tokens with a grammar."""
    from benchmarks.suite.ours import small_vocabulary
    from melodia.model import Model, ModelConfig

    return Model(ModelConfig(kind, small_vocabulary().size, H, **settings), random_seed=0).eval()


def streams_of(
    model: Any,
    weights: str,
    B: int,
    library: Any = None,
    options: dict[str, int] | None = None,
    sampling: Any = None,
) -> Any:
    """`benchmarks.suite.ours.Ours` on the GPU: B streams, grammar and choice inside the launch.

    Args:
        model: the network.
        weights: "fp32", "bf16" or "int8".
        B: streams.
        library, options: of `melodia.engine.cuda.CudaEngine`, for tests and comparisons.
        sampling: filters; None: those of the benchmarks.
    """
    from benchmarks.suite.ours import SAMPLING, small_vocabulary
    from melodia.engine import cuda
    from melodia.model import Network
    from melodia.workflows.bench import Streams

    class OnGpu(Streams):
        def _packed(self, description: Any, threads: int) -> Any:
            chosen = None if options is None else cuda.Options(**options)
            return cuda.CudaEngine(*description, library=library, options=chosen)

    return OnGpu(Network.of(model), small_vocabulary(), sampling or SAMPLING, weights=weights, B=B)


def in_turns(runs: dict[str, Callable[[], object]], turns: int = 5) -> dict[str, float]:
    """Median seconds of each, all taking turns, two of which warm up."""
    import torch

    took: dict[str, list[float]] = {way: [] for way in runs}
    for turn in range(turns + 2):
        for way, run in runs.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            torch.cuda.synchronize()
            if turn >= 2:
                took[way].append(time.perf_counter() - begin)
    return {way: statistics.median(values) for way, values in took.items()}


def generation() -> int:
    """Tokens per second of the decode engine against eager torch with cuDNN's layers, and a CUDA graph of it.

    `of the floor`: time over the time in which torch reads as many bytes as the weights have. melodia's grammar runs,
    the others have none. `streamed`: no weights in shared memory. `cluster 16`, `cluster 8`: sessions in clusters of
    so many blocks. `fell back`: launches that were run in another way, and why the last was.
    """
    import torch

    from benchmarks.suite.peers import Eager

    steps, chain = 256, 16
    kinds: tuple[tuple[str, str, int, dict[str, int]], ...] = (
        ("small", "parallel", 256, {}),
        ("i-a", "sequential", 512, {}),
        ("i-b", "sequential", 512, {"lstm_layers": 2}),
        ("ii", "parallel", 1024, {}),
    )
    for (name, kind, H, settings), B in itertools.product(kinds, (1, 8, 64)):
        model = network(kind, H, **settings)
        ways: dict[str, dict[str, int]] = {"": {}, ", streamed": {"streamed": 1}}
        ways |= {f", cluster {blocks}": {"cluster": blocks} for blocks in (16, 8)}
        made = {}
        for weights, (way, options) in itertools.product(("fp32", "bf16", "int8"), ways.items()):
            try:
                made[weights + way] = streams_of(model, weights, B, options=options)
            except ConfigError as error:  # so many sessions do not fit into so few blocks
                print(f"{name}, {B} sessions, {weights}{way}: {error}")
        runs = {weights: partial(streams.make, steps) for weights, streams in made.items()}
        for dtype in (torch.float32, torch.bfloat16):
            peer = Eager(network(kind, H, **settings).cuda().to(dtype), B)
            eager = {f"eager {str(dtype)[6:]}": peer.chain(chain)}
            for way, run in (eager | captured(**eager)).items():
                runs[way] = partial(repeat, run, steps // chain)
        found = {way: seconds / steps for way, seconds in in_turns(runs).items()}
        for way, streams in made.items():
            facts, spent = streams.engine.facts(), found[way]
            rival = "eager float32" if way.startswith("fp32") else "eager bfloat16"
            graph = found.get(f"{rival}, graph")
            row(
                model=name,
                B=B,
                weights=way,
                **{
                    "us/step": 1e6 * spent,
                    "tokens/s": B / spent,
                    "of the floor": spent / reading_time(facts["step_bytes"]),
                },
                **{"x eager": found[rival] / spent, "x graph": graph / spent if graph else None},
                **{"fell back": facts["stalls"], "why": streams.engine.fallback()},
            )
    return 0


CHOICES: dict[str, dict[str, Any]] = {
    "greedy": {"greedy": True},
    "no filter": {},
    "top-k 50": {"top_k": 50},
    "top-p 0.98": {"top_p": 0.98},
}
OPTIONS: dict[str, dict[str, int]] = {
    "counters": {"counted": 1},
    "streamed": {"streamed": 1},
    "8 units": {"least_units": 8},
    "16 units": {"least_units": 16},
    "1 sampler": {"samplers": 1},
    "4 samplers": {"samplers": 4},
}


def decoding(
    sizes: Sequence[int] = (256, 512), batches: Sequence[int] = (1, 64), steps: int = 256, library: Any = None
) -> int:
    """Microseconds per step of the decode engine, bf16: by what is chosen from, and by how its blocks work.

    `given`: tokens that nobody chooses, so without a grammar; what the others take more is the sampler's share. The
    options are measured with top-k 50. Tests choose smaller models, and the emulator's library.
    """
    import numpy as np

    from melodia.decode import SamplingConfig

    for H, B in itertools.product(sizes, batches):
        model = network("sequential", H)
        made = {
            way: streams_of(model, "bf16", B, library, sampling=SamplingConfig(**fields))
            for way, fields in CHOICES.items()
        }
        made |= {way: streams_of(model, "bf16", B, library, options) for way, options in OPTIONS.items()}
        runs: dict[str, Callable[[], object]] = {way: partial(x.make, steps) for way, x in made.items()}
        tokens = np.random.default_rng(0).integers(0, 512, (steps, B))
        runs["given"] = partial(made["greedy"].lanes.advance, tokens, every=False)
        for way, seconds in in_turns(runs).items():
            stalls = made[way].engine.facts()["stalls"] if way in made else None
            row(H=H, B=B, way=way, **{"us/step": 1e6 * seconds / steps, "fell back": stalls})
    return 0
