"""The measurements of gpu_check.py that concern the decode engine.

A call packs what it sends, launches and unpacks, which has nothing to do with how long a token takes. So every way
makes few and many tokens, each by one launch; the difference is what a step takes, and the whole call's figure stands
beside it.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

from benchmarks import gpu_primitives
from benchmarks.gpu_tools import captured, note, repeat, row
from melodia.errors import ConfigError

FEW, MANY = 128, 1024  # steps
RIVALS = {"x eager": "", "x graph": ", graph"}
Key = TypeVar("Key", bound=Hashable)


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
    packed: Any = None,
) -> Any:
    """`benchmarks.suite.ours.Ours` on the GPU: B streams, grammar and choice inside the launch.

    Args:
        model: the network.
        weights: "fp32", "bf16" or "int8".
        B: streams.
        library, options: of `melodia.engine.cuda.CudaEngine`, for tests and comparisons.
        sampling: filters; None: those of the benchmarks.
        packed: the engine of other streams with this model, weights and options; None: one is made.
    """
    from benchmarks.suite.ours import SAMPLING, small_vocabulary
    from melodia.engine import cuda
    from melodia.model import Network
    from melodia.workflows.bench import Streams

    class OnGpu(Streams):
        def _packed(self, description: Any, threads: int) -> Any:
            if packed is not None:
                return packed
            chosen = None if options is None else cuda.Options(**options)
            return cuda.CudaEngine(*description, library=library, options=chosen)

    return OnGpu(Network.of(model), small_vocabulary(), sampling or SAMPLING, weights=weights, B=B)


def in_turns(runs: dict[Key, Callable[[], object]], turns: int = 5) -> dict[Key, float]:
    """Median seconds of each, all taking turns, two of which warm up."""
    import torch

    took: dict[Key, list[float]] = {way: [] for way in runs}
    for turn in range(turns + 2):
        for way, run in runs.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            torch.cuda.synchronize()
            if turn >= 2:
                took[way].append(time.perf_counter() - begin)
    return {way: statistics.median(values) for way, values in took.items()}


def per_step(took: dict[tuple[str, int], float], way: str, few: int, many: int) -> tuple[float, float]:
    """Microseconds of a step: by the difference of two calls, and of the whole longer call."""
    return 1e6 * (took[way, many] - took[way, few]) / (many - few), 1e6 * took[way, many] / many


def steady(made: dict[str, Any], what: str) -> dict[str, Any]:
    """The streams whose launches run as they should; of others a note says why they do not, and they are left out.

    A launch that gives up has waited for a second, and its time is that of another way.
    """
    kept = {}
    for way, streams in made.items():
        before = streams.engine.facts()["stalls"]
        streams.make(2)
        if streams.engine.facts()["stalls"] == before:
            kept[way] = streams
        else:
            note(f"{what}, {way}: {streams.engine.fallback()}")
    return kept


def generation() -> int:
    """Microseconds per step and tokens per second of the decode engine against eager torch with cuDNN's layers.

    `of the floor`: time over the time in which all processors read as many bytes as the weights have, from L2.
    `x eager`, `x graph`: how many times as long torch takes, eager and in a CUDA graph. melodia's grammar runs, torch
    has none. `streamed`: no weights in shared memory. `cluster 16`, `cluster 8`: sessions in clusters of so many
    blocks.
    """
    import torch

    from benchmarks.suite.peers import Eager

    chain, peer_steps = 16, 64
    floor_of = lru_cache(partial(gpu_primitives.read_once, gpu_primitives.here()))
    kinds: tuple[tuple[str, str, int, dict[str, int]], ...] = (
        ("small", "parallel", 256, {}),
        ("i-a", "sequential", 512, {}),
        ("i-b", "sequential", 512, {"lstm_layers": 2}),
        ("ii", "parallel", 1024, {}),
    )
    choices: dict[str, dict[str, int]] = {"": {}, ", streamed": {"streamed": 1}}
    choices |= {f", cluster {blocks}": {"cluster": blocks} for blocks in (16, 8)}
    for name, kind, H, settings in kinds:
        model = network(kind, H, **settings)
        models = {t: copy.deepcopy(model).cuda().to(t) for t in (torch.float32, torch.bfloat16)}
        engines: dict[str, Any] = {}
        for B in (1, 8, 64):
            made = {}
            for weights, (way, options) in itertools.product(("fp32", "bf16", "int8"), choices.items()):
                by = weights + way
                try:
                    made[by] = streams_of(
                        model, weights, B, options={"launch_steps": MANY} | options, packed=engines.get(by)
                    )
                except ConfigError as error:  # so many sessions do not fit into so few blocks
                    note(f"{name}, B={B}, {by}: {error}")
                else:
                    engines[by] = made[by].engine
            made = steady(made, f"{name}, B={B}")
            runs: dict[tuple[str, int], Callable[[], object]] = {
                (way, steps): partial(streams.make, steps)
                for way, streams in made.items()
                for steps in (FEW, MANY)
            }
            for dtype, peer_model in models.items():
                peer = Eager(peer_model, B)
                eager = {f"eager {str(dtype)[6:]}": peer.chain(chain)}
                for way, run in (eager | captured(**eager)).items():
                    runs[way, peer_steps] = partial(repeat, run, peer_steps // chain)
            before = {way: streams.engine.facts()["stalls"] for way, streams in made.items()}
            took = in_turns(runs)
            for way, streams in made.items():
                facts = streams.engine.facts()
                us, whole = per_step(took, way, FEW, MANY)
                rival = "eager float32" if way.startswith("fp32") else "eager bfloat16"
                rivals = {x: took.get((rival + more, peer_steps)) for x, more in RIVALS.items()}
                row(
                    model=name,
                    B=B,
                    weights=way,
                    **{"us/step": us, "us/step, whole call": whole, "tokens/s": 1e6 * B / us},
                    **{"of the floor": us / floor_of(facts["step_bytes"])},
                    **{x: seconds and 1e6 * seconds / peer_steps / us for x, seconds in rivals.items()},
                    **{"fell back": facts["stalls"] - before[way]},
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
    sizes: Sequence[int] = (256, 512),
    batches: Sequence[int] = (1, 64),
    steps: tuple[int, int] = (FEW, MANY),
    library: Any = None,
) -> int:
    """Microseconds per step of the decode engine, bf16: by what is chosen from, and by how its blocks work.

    `given`: tokens that nobody chooses, so without a grammar; what the others take more is the sampler's share. The
    options are measured with top-k 50. Tests choose smaller models, and the emulator's library.
    """
    import numpy as np

    from melodia.decode import SamplingConfig

    one = {"launch_steps": max(steps)}
    for H, B in itertools.product(sizes, batches):
        model = network("sequential", H)
        made = {
            way: streams_of(model, "bf16", B, library, one, sampling=SamplingConfig(**fields))
            for way, fields in CHOICES.items()
        }
        usual = SamplingConfig(**CHOICES["top-k 50"])
        made |= {
            way: streams_of(model, "bf16", B, library, one | more, usual) for way, more in OPTIONS.items()
        }
        given = made["greedy"].lanes
        made = steady(made, f"H={H}, B={B}")
        runs: dict[tuple[str, int], Callable[[], object]] = {
            (way, n): partial(streams.make, n) for way, streams in made.items() for n in steps
        }
        tokens = np.random.default_rng(0).integers(0, 512, (max(steps), B))
        runs |= {("given", n): partial(given.advance, tokens[:n], every=False) for n in steps}
        took = in_turns(runs)
        for way in [*made, "given"]:
            us, whole = per_step(took, way, *steps)
            stalls = made[way].engine.facts()["stalls"] if way in made else None
            row(H=H, B=B, way=way, **{"us/step": us, "us/step, whole call": whole, "fell back": stalls})
    return 0
