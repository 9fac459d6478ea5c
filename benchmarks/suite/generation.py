"""Tokens on the CPU: the engine against PyTorch and ONNX Runtime, with the same network and the same draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.suite import onnx_peer
from benchmarks.suite.floor import floor_ways
from benchmarks.suite.machine import thread_counts, torch_threads
from benchmarks.suite.measuring import Timing, Way, interleave, repeated
from benchmarks.suite.options import Options
from benchmarks.suite.ours import Ours, need_engine, small_vocabulary
from benchmarks.suite.page import Section, Table, Target, figure, micros
from benchmarks.suite.peers import Cells, Compiled, Eager, Peer
from melodia.engine.description import WEIGHTS
from melodia.model import Model, ModelConfig

EAGER, CELLS, COMPILED, ONNX = "nn.LSTM + nn.GRU", "LSTMCell + GRUCell", "torch.compile", "ONNX Runtime"
BATCHES = (1, 8, 64)
EAGER_LIMITS = {"fp32": 9, "bf16": 20, "int8": 35}
ONNX_LIMITS = {"fp32": 2, "bf16": 4, "int8": 8}
FLOOR_LIMITS = {"fp32": 1.3, "bf16": 1.6, "int8": 1.6}


@dataclass(frozen=True)
class Network:
    """A network of the page: its name, what it is, its configuration."""

    name: str
    what: str
    config: ModelConfig


def networks(quick: bool) -> list[Network]:
    """The three networks; with hidden sizes of 64 where only the way through the suite matters."""
    H, wide = (64, 96) if quick else (512, 1024)
    V = small_vocabulary().size
    return [
        Network("i-a", f"LSTM {H} → GRU {H}", ModelConfig("sequential", V, H)),
        Network("i-b", f"LSTM {H} × 2 → GRU {H}", ModelConfig("sequential", V, H, lstm_layers=2)),
        Network("ii", f"LSTM {wide} ‖ GRU {wide}, joined by a projection", ModelConfig("parallel", V, wide)),
    ]


@dataclass
class Contest:
    """What was measured of one network with B streams: seconds for one token of every stream.

    Attributes:
        timings: by (way, threads); an engine's way is its weights.
        missing: by way, why it was not measured.
        floors: seconds to read the packed weights, by (weights, threads).
        bytes: that a token reads, by weights.
    """

    timings: dict[tuple[str, int], Timing]
    missing: dict[str, str]
    floors: dict[tuple[str, int], float]
    bytes: dict[str, int]

    def best(self, way: str) -> float | None:
        """The way's time with the number of threads that suits it best; None where it was not measured."""
        found = [timing.median for (name, _), timing in self.timings.items() if name == way]
        return min(found) if found else None


def run(options: Options, section: Section) -> None:
    """Measure every network with every number of streams."""
    section.intro = (
        "One token for every stream: embedding, layers, head, and a draw among the 40 likeliest tokens. All ways run "
        "the same weights in inference mode; melodia makes its tokens in one call, in which a grammar runs that the "
        "others do not have. *Floor*: the time to read the packed weights once with as many threads, "
        "measured on a buffer of that size. torch.compile runs fused formulas of the cells with frozen weights; ONNX "
        "Runtime runs its LSTM and GRU operators, NumPy draws. Ratios compare each way at its better number of threads."
    )
    need_engine()
    batches = BATCHES[:2] if options.quick else BATCHES
    for network in networks(options.quick):
        model = Model(network.config).eval()
        for B in batches:
            options.say(f"generation: {network.name}, {B} streams")
            # Compiling takes seconds each time; the other networks differ from i-a in size only.
            compiled = not options.quick and (B == 1 or network.name == "i-a")
            contest = measure(model, B, options.seconds(14, 0.4), compiled=compiled)
            _report(section, network, B, contest)


def measure(model: Model, B: int, seconds: float, *, compiled: bool = True) -> Contest:
    """All ways of making a token of B streams, interleaved."""
    ways: dict[tuple[str, int], Way] = {}
    floors: dict[tuple[str, int, str], Way] = {}
    missing: dict[str, str] = {}
    sizes: dict[str, int] = {}
    torch.compiler.reset()  # what was compiled for other sizes would be looked through at every call

    def add(name: str, threads: int, make: Callable[[], Peer]) -> None:
        if name in missing:
            return
        try:
            torch_threads(threads)
            peer = make()
            peer.step()
        except Exception as error:  # a peer that fails is a row of the page, not the end of the run
            missing[name] = _first_line(error)
            return
        ways[name, threads] = repeated(peer.step, lambda: torch_threads(threads))

    why = onnx_peer.missing()
    if why is not None:
        missing[ONNX] = why
    if not compiled:
        missing[COMPILED] = "left out for this size"
    for threads in thread_counts():
        add(EAGER, threads, lambda: Eager(model, B))
        add(CELLS, threads, lambda: Cells(model, B))
        add(COMPILED, threads, lambda: Compiled(model, B))
        add(ONNX, threads, lambda threads=threads: onnx_peer.Onnx(model, B, threads))
        for weights in WEIGHTS:
            ours = Ours(model, small_vocabulary(), weights, B, threads)
            ways[weights, threads] = Way(ours.make)
            sizes[weights] = ours.engine.facts()["step_bytes"]
            for reader, way in floor_ways(sizes[weights], threads).items():
                floors[weights, threads, reader] = way
    named = {" ".join(map(str, key)): way for key, way in (ways | floors).items()}
    found = interleave(named, seconds)
    timings = {key: found[" ".join(map(str, key))] for key in ways}
    read: dict[tuple[str, int], float] = {}
    for weights, threads, reader in floors:
        took = found[f"{weights} {threads} {reader}"].median
        read[weights, threads] = min(took, read.get((weights, threads), took))
    return Contest(timings, missing, read, sizes)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:120]


def _report(section: Section, network: Network, B: int, contest: Contest) -> None:
    """Add the table, the figures and the targets of one contest."""
    threads = thread_counts()
    eager, onnx = contest.best(EAGER), contest.best(ONNX)
    columns = ["way", *(f"µs, {count} thread{'s' * (count > 1)}" for count in threads)]
    columns += ["tokens/s", f"× {EAGER}", f"× {ONNX}", *(f"× floor, {count}" for count in threads), "spread"]
    table = Table(
        columns, caption=f"{network.name}: {network.what}, V = {network.config.vocab_size}, B = {B}"
    )
    for way in (EAGER, CELLS, COMPILED, ONNX, *WEIGHTS):
        label = f"melodia {way}" if way in WEIGHTS else way
        best = contest.best(way)
        if best is None:
            table.rows.append([f"{label}: {contest.missing[way]}", *[""] * (len(columns) - 1)])
            continue
        times = [contest.timings[way, count] for count in threads]
        row = [label, *(micros(timing.median) for timing in times), f"{B / best:,.0f}"]
        row += ["" if base is None else figure(base / best) for base in (eager, onnx)]
        floors = [contest.floors.get((way, count)) for count in threads]
        row += [
            "" if floor is None else figure(timing.median / floor)
            for floor, timing in zip(floors, times, strict=True)
        ]
        table.rows.append([*row, f"±{max(timing.spread for timing in times):.0%}"])
    for weights in WEIGHTS:
        read = [micros(contest.floors[weights, count]) for count in threads]
        label = f"reading {contest.bytes[weights] / 1e6:.1f} MB once"
        table.rows.append([label, *read, *[""] * (len(columns) - 1 - len(read))])
    section.tables.append(table)
    section.figures[f"{network.name} B={B}"] = {
        "seconds per step": {f"{way} {count}": t.median for (way, count), t in contest.timings.items()},
        "turns": {f"{way} {count}": list(t.turns) for (way, count), t in contest.timings.items()},
        "floor seconds": {f"{way} {count}": took for (way, count), took in contest.floors.items()},
        "bytes read": contest.bytes,
        "missing": contest.missing,
    }
    if network.name == "i-a" and B == 1:
        section.targets += targets(contest)


def targets(contest: Contest) -> list[Target]:
    """The targets of one stream of i-a."""
    made = []
    for name, limits in ((EAGER, EAGER_LIMITS), (ONNX, ONNX_LIMITS)):
        base = contest.best(name)
        for weights, limit in limits.items():
            own = contest.best(weights)
            value = None if base is None or own is None else base / own
            what = f"generation, one stream, i-a, {weights}"
            made.append(Target(what, name, limit, value, why=contest.missing.get(name, "")))
    for weights, limit in FLOOR_LIMITS.items():
        for count in thread_counts():
            value = contest.timings[weights, count].median / contest.floors[weights, count]
            what = f"generation, one stream, i-a, {weights}, {count} thread{'s' * (count > 1)}"
            made.append(Target(what, "reading the weights once", limit, value, at_most=True))
    return made
