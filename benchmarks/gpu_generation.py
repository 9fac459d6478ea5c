"""The measurements of gpu_check.py that concern the decode engine.

A call packs what it sends, launches and unpacks, which has nothing to do with how long a token takes. So every way
makes few and many tokens, each by one launch; the difference is what a step takes, and the whole call's figure stands
beside it. What is copied for every step, both ways, is in both.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from benchmarks import gpu_primitives, gpu_tools
from benchmarks.gpu_tools import FAILURES, begins, captured, note, repeat, row, warm

FEW, MANY = 128, 1024  # steps
RIVALS = {"x eager": "eager", "x graph": "eager, graph"}


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


def in_turns(
    runs: dict[tuple[str, int], Callable[[], object]], turns: int = 5, what: str = ""
) -> dict[tuple[str, int], float]:
    """Median seconds of each, all taking turns, two of which warm up; a way that fails is left out, with a note."""
    import torch

    warm()
    took: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for turn in range(turns + 2):
        for way, steps in list(took):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            try:
                runs[way, steps]()
            except FAILURES as error:
                torch.cuda.synchronize()  # an error that stays ends the part
                note(f"{what}, {way}: {error}")
                del took[way, steps]
                continue
            torch.cuda.synchronize()
            if turn >= 2:
                took[way, steps].append(time.perf_counter() - begin)
    return {key: statistics.median(values) for key, values in took.items()}


def per_step(
    took: dict[tuple[str, int], float], way: str, few: int, many: int
) -> tuple[float, float] | tuple[None, None]:
    """Microseconds of a step: by the difference of two calls, and of the whole longer call; None where it failed.

    The difference takes out what a call costs once. What it copies for every step and lane (about 48 bytes to the
    device and 20 back) and what the host does with each token stay in.
    """
    if (way, few) not in took or (way, many) not in took:
        return None, None
    return 1e6 * (took[way, many] - took[way, few]) / (many - few), 1e6 * took[way, many] / many


def makeable(ways: dict[str, Callable[[], Any]], what: str) -> dict[str, Any]:
    """What each makes; of those that fail, as where so many sessions do not fit into so few blocks, a note says why."""
    made = {}
    for way, make in ways.items():
        try:
            made[way] = make()
        except FAILURES as error:
            note(f"{what}, {way}: {error}")
    return made


def steady(made: dict[str, Any], what: str) -> dict[str, Any]:
    """The streams whose launches run as they should; of others a note says why they do not, and they are left out.

    A launch that gives up has waited for a second, and its time is that of another way.
    """
    kept = {}
    for way, streams in made.items():
        before = streams.engine.facts()["stalls"]
        try:
            streams.make(2)
        except FAILURES as error:
            note(f"{what}, {way}: {error}")
            continue
        if streams.engine.facts()["stalls"] == before:
            kept[way] = streams
        else:
            note(f"{what}, {way}: {streams.engine.fallback()}")
    return kept


MODELS: dict[str, tuple[str, int, dict[str, int]]] = {  # kind, H, settings
    "i-a": ("sequential", 512, {}),
    "ii": ("parallel", 1024, {}),
    "small": ("parallel", 256, {}),
    "i-b": ("sequential", 512, {"lstm_layers": 2}),
}
WEIGHTS = ("bf16", "fp32", "int8")
MAIN = [("i-a", 1), ("ii", 64), ("i-a", 64), ("ii", 1)]  # model, B
MORE = [("small", 1), ("i-a", 1), ("small", 8), ("i-a", 8), ("i-b", 1), ("ii", 8), ("ii", 1)]
MORE += [("i-a", 64), ("ii", 64), ("i-b", 8), ("small", 64), ("i-b", 64)]
VARIANTS: dict[str, dict[str, int]] = {
    ", streamed": {"streamed": 1},
    ", cluster 16": {"cluster": 16},
    ", cluster 8": {"cluster": 8},
}
CHAIN, PEER_STEPS = 16, 64  # steps of a graph, and of a turn of torch's


def floors(probe: Callable[[], Any]) -> Callable[[int], float | None]:
    """What says in how many microseconds all processors read so many bytes from L2; None where the probe fails."""
    try:
        built = probe()
    except (OSError, RuntimeError, SystemExit, subprocess.CalledProcessError) as error:
        note(f"no reading floor: {error}")
        return lambda size: None

    @lru_cache
    def floor_of(size: int) -> float | None:
        try:
            return gpu_primitives.read_once(built, size)
        except RuntimeError as error:
            note(f"no reading floor: {error}")
            return None

    return floor_of


def generation(
    cases: Sequence[tuple[str, int]] = MAIN,
    variants: dict[str, dict[str, int]] | None = None,
    steps: tuple[int, int] = (FEW, MANY),
    library: Any = None,
    probe: Callable[[], Any] = gpu_primitives.here,
    models: dict[str, tuple[str, int, dict[str, int]]] = MODELS,
) -> int:
    """Microseconds per step and tokens per second of the decode engine against eager torch with cuDNN's layers.

    `of the floor`: time over the time in which all processors read as many bytes as the weights have, from L2.
    `x eager`, `x graph`: how many times as long torch takes, eager and in a CUDA graph; they stand in a row of their
    own, behind that of the engine alone, which is there whatever becomes of torch's. melodia's grammar runs, torch has
    none. What decides most comes first. Tests choose smaller models, and the emulator's library.
    """
    floor_of = floors(probe)
    ways_of = {
        weights + way: (weights, options)
        for (way, options), weights in itertools.product(({"": {}} | (variants or {})).items(), WEIGHTS)
    }
    engines: dict[tuple[str, str], Any] = {}
    network_of = lru_cache(lambda name: network(models[name][0], models[name][1], **models[name][2]))
    for (name, B), (way, (weights, options)) in itertools.product(cases, ways_of.items()):
        what = f"{name}, B={B}"
        if not begins(f"{what}, {way}"):
            continue
        model, packed = network_of(name), engines.get((name, way))
        given = {"launch_steps": max(steps)} | options
        made = makeable(
            {way: partial(streams_of, model, weights, B, library, given, packed=packed)},
            what,
        )
        for streams in steady(made, what).values():
            engines[name, way] = streams.engine
            facts = streams.engine.facts()
            runs: dict[tuple[str, int], Callable[[], object]] = {
                (way, n): partial(streams.make, n) for n in steps
            }
            us, whole = per_step(in_turns(runs, what=what), way, *steps)
            least = floor_of(facts["step_bytes"])
            which = {"model": name, "B": B, "weights": way}
            row(
                **which,
                **{"us/step": us, "us/step, whole call": whole, "tokens/s": us and 1e6 * B / us},
                **{"of the floor": us / least if us and least else None},
                **{"fell back": streams.engine.facts()["stalls"] - facts["stalls"]},
            )
            if not options:
                against(which, model, runs, steps)
    return 0


def against(
    which: dict[str, Any],
    model: Any,
    runs: dict[tuple[str, int], Callable[[], object]],
    steps: tuple[int, int],
) -> None:
    """A row of how many times as long torch takes, all taking turns; a note where it cannot be had."""
    import torch

    from benchmarks.suite.peers import Eager

    way, B, what = which["weights"], which["B"], f"{which['model']}, B={which['B']}, torch"
    dtype = torch.float32 if way == "fp32" else torch.bfloat16
    try:
        peer = Eager(copy.deepcopy(model).to(gpu_tools.DEVICE, dtype), B)
        eager = {"eager": peer.chain(CHAIN)}
        chains = eager | captured(**eager)
    except FAILURES as error:
        torch.cuda.synchronize()  # an error that stays ends the process
        note(f"{what}, {str(dtype)[6:]}: {error}")
        return
    turns = {(rival, PEER_STEPS): partial(repeat, run, PEER_STEPS // CHAIN) for rival, run in chains.items()}
    took = in_turns(runs | turns, what=what)
    us, _ = per_step(took, way, *steps)
    rivals = {x: took.get((rival, PEER_STEPS)) for x, rival in RIVALS.items()}
    times = {x: 1e6 * seconds / PEER_STEPS if seconds else None for x, seconds in rivals.items()}
    row(
        **which,
        **{"us/step": us},
        **{x: rival / us if rival and us else None for x, rival in times.items()},
        **{f"torch's us/step, {x[2:]}": rival for x, rival in times.items()},
    )


def more_generation() -> int:
    """The other models and batches, and other ways to run all of them.

    `streamed`: no weights in shared memory. `cluster 16`, `cluster 8`: sessions in clusters of so many blocks.
    """
    return generation(MORE, VARIANTS)


CHOICES: dict[str, dict[str, Any]] = {
    "greedy": {"greedy": True},
    "no filter": {},
    "top-k 50": {"top_k": 50},
    "top-p 0.98": {"top_p": 0.98},
}
OPTIONS: dict[str, dict[str, int]] = {
    "words": {"counted": -1},
    "rows": {"counted": 1},
    "groups of 8": {"group": 8},
    "streamed": {"streamed": 1},
    "8 units": {"least_units": 8},
    "16 units": {"least_units": 16},
    "4 samplers": {"samplers": 4},
    "compute blocks sample": {"samplers": -1},
}


def decoding(
    sizes: Sequence[int] = (512, 256),
    batches: Sequence[int] = (1, 64),
    steps: tuple[int, int] = (FEW, MANY),
    library: Any = None,
) -> int:
    """Microseconds per step of the decode engine, bf16: by what is chosen from, and by how its blocks work.

    `given`: tokens that nobody chooses, so without a grammar; what the others take more is the sampler's share. The
    options are measured with top-k 50; what none of them names, exchange, width of groups and who samples, is as
    predicted. Tests choose smaller models, and the emulator's library.
    """
    import numpy as np

    from melodia.decode import SamplingConfig

    one = {"launch_steps": max(steps)}
    for H, B in itertools.product(sizes, batches):
        what = f"H={H}, B={B}"
        if not begins(what):
            continue
        model = network("sequential", H)
        usual = SamplingConfig(**CHOICES["top-k 50"])
        ways = {way: (one, SamplingConfig(**fields)) for way, fields in CHOICES.items()}
        ways |= {way: (one | more, usual) for way, more in OPTIONS.items()}
        made = makeable(
            {
                way: partial(streams_of, model, "bf16", B, library, options, sampling)
                for way, (options, sampling) in ways.items()
            },
            what,
        )
        given = made["greedy"].lanes if "greedy" in made else None
        made = steady(made, what)
        runs: dict[tuple[str, int], Callable[[], object]] = {
            (way, n): partial(streams.make, n) for way, streams in made.items() for n in steps
        }
        tokens = np.random.default_rng(0).integers(0, 512, (max(steps), B))
        if given is not None:
            runs |= {("given", n): partial(given.advance, tokens[:n], every=False) for n in steps}
        took = in_turns(runs, what=what)
        for way in [*made, "given"]:
            us, whole = per_step(took, way, *steps)
            stalls = made[way].engine.facts()["stalls"] if way in made else None
            row(H=H, B=B, way=way, **{"us/step": us, "us/step, whole call": whole, "fell back": stalls})
    return 0
