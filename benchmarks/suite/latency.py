"""Latency of a single event: tokens asked for one at a time from Python, and how late the latest came."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.suite.generation import networks
from benchmarks.suite.machine import thread_counts, torch_threads
from benchmarks.suite.measuring import PAUSE, percentile
from benchmarks.suite.options import Options
from benchmarks.suite.ours import Ours, need_engine, small_vocabulary
from benchmarks.suite.page import Section, Table, micros
from benchmarks.suite.peers import Eager
from melodia.engine.description import WEIGHTS
from melodia.model import Model

SHARES = (0.5, 0.99, 0.999)
TURNS = 10


def latencies(
    steps: dict[str, tuple[Callable[[], object], Callable[[], object] | None]], seconds: float
) -> dict[str, list[float]]:
    """Seconds of every single call, the ways taking turns of an equal share of the time."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    turn = seconds / TURNS / len(steps)
    for _ in range(TURNS):
        for name, (step, prepare) in steps.items():
            time.sleep(PAUSE)
            if prepare is not None:
                prepare()
            for _ in range(5):
                step()
            end = time.perf_counter() + turn
            now = time.perf_counter()
            while now < end:
                step()
                after = time.perf_counter()
                found[name].append(after - now)
                now = after
    return found


def run(options: Options, section: Section) -> None:
    """Measure i-a, one stream."""
    need_engine()
    network = networks(options.quick)[0]
    model = Model(network.config).eval()
    section.intro = (
        f"{network.name} ({network.what}, V = {network.config.vocab_size}), one stream; every token is a call of its "
        "own from Python and is timed alone, draw included. The highest percentiles show the machine as much as the "
        "program."
    )
    steps: dict[str, tuple[Callable[[], object], Callable[[], object] | None]] = {}
    for count in thread_counts():
        label = f"{count} thread{'s' * (count > 1)}"
        steps[f"nn.LSTM + nn.GRU, {label}"] = (Eager(model, 1).step, lambda count=count: torch_threads(count))
        for weights in WEIGHTS:
            steps[f"melodia {weights}, {label}"] = (
                Ours(model, small_vocabulary(), weights, 1, count).step,
                None,
            )
    options.say("latency")
    found = latencies(steps, options.seconds(40, 1.0))
    table = Table(["way", "tokens", *(f"p{100 * share:g} µs" for share in SHARES), "latest µs"])
    for name, times in found.items():
        cells = [micros(percentile(times, share)) for share in SHARES]
        table.rows.append([name, f"{len(times):,}", *cells, micros(max(times))])
        section.figures[name] = {f"p{100 * share:g}": percentile(times, share) for share in SHARES}
    section.tables.append(table)
