"""A machine that has other work: two threads beside busy processes, against one thread left alone."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.suite.generation import networks
from benchmarks.suite.machine import cores
from benchmarks.suite.options import Options
from benchmarks.suite.ours import Ours, need_engine, small_vocabulary
from benchmarks.suite.page import Section, Table, Target, figure, micros
from melodia.engine.description import WEIGHTS
from melodia.model import Model

LIMITS = {1: 1.2, 2: 2.5}
ROUNDS = 5
SPIN = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Works until it is stopped, or its parent is gone."""


class Spinner:
    """A process that does nothing as fast as it can, while it may."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", SPIN])
        self.rest()

    def rest(self) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGSTOP)

    def go(self) -> None:
        """Let it run."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it for good."""
        self._process.kill()
        self._process.wait()


@contextmanager
def two_cores() -> Iterator[None]:
    """Keep this thread, and all threads and processes that it starts, on two cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(options: Options, section: Section) -> None:
    """Measure i-a, one stream, all weights."""
    if not hasattr(os, "sched_setaffinity") or not hasattr(signal, "SIGSTOP"):
        raise RuntimeError("this system cannot keep processes on two cores or stop them; Linux can")
    if cores() < 2:
        raise RuntimeError("needs two cores (this process may use one)")
    need_engine()
    network = networks(options.quick)[0]
    model = Model(network.config).eval()
    window = options.seconds(1.0, 0.1)
    section.intro = (
        f"{network.name}, one stream, everything on two cores: the engine with two threads beside processes that "
        "never rest, against one thread with the cores to itself. Mean time of a token over windows of "
        f"{window:g} s (a mean, for what counts is how much music comes out), median of the windows; the conditions "
        "take turns."
    )
    columns = ["weights", "one thread alone, µs", "two threads alone", "beside one process", "beside two"]
    table = Table([*columns, "ratio, one", "ratio, two"])
    section.tables.append(table)
    with two_cores():
        spinners = [Spinner(), Spinner()]
        try:
            for weights in WEIGHTS:
                options.say(f"busy machine: {weights}")
                _measure(model, weights, window, 3 if options.quick else ROUNDS, spinners, section)
        finally:
            for spinner in spinners:
                spinner.end()


def _measure(
    model: Model, weights: str, window: float, rounds: int, spinners: list[Spinner], section: Section
) -> None:
    one, two = (Ours(model, small_vocabulary(), weights, 1, count) for count in (1, 2))
    found: dict[str, list[float]] = {"alone": [], "0": [], "1": [], "2": []}
    for _ in range(rounds):
        found["alone"].append(_mean(one, window))
        found["0"].append(_mean(two, window))
        for beside in (1, 2):
            for spinner in spinners[:beside]:
                spinner.go()
            time.sleep(0.05)
            found[str(beside)].append(_mean(two, window))
            for spinner in spinners:
                spinner.rest()
            time.sleep(0.05)
    median = {name: statistics.median(times) for name, times in found.items()}
    ratios = {beside: median[str(beside)] / median["alone"] for beside in LIMITS}
    cells = [micros(median[name]) for name in ("alone", "0", "1", "2")]
    section.tables[0].rows.append([weights, *cells, *(figure(ratio) for ratio in ratios.values())])
    section.figures[weights] = found
    for beside, limit in LIMITS.items():
        what = (
            f"generation with two threads, {weights}, beside {('one', 'two')[beside - 1]} busy on two cores"
        )
        section.targets.append(Target(what, "one thread, undisturbed", limit, ratios[beside], at_most=True))


def _mean(ours: Ours, window: float) -> float:
    """Seconds of a token, over a window."""
    ours.make(20)
    made, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < window:
        ours.make(20)
        made += 20
    return (now - began) / made
