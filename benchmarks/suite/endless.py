"""A million tokens in one session: memory and time of a token, after them and at the beginning."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from benchmarks.suite.generation import networks
from benchmarks.suite.options import Options
from benchmarks.suite.ours import Ours, need_engine, small_vocabulary
from benchmarks.suite.page import Section, Table, Target, micros
from melodia.model import Model

EARLY, TOKENS, PIECES = 1_000, 1_000_000, 100


def resident() -> float:
    """Memory of this process, in bytes; needs Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096.0


def run(options: Options, section: Section) -> None:
    """Measure i-a in int8, one thread."""
    need_engine()
    tokens = 20_000 if options.quick else TOKENS
    network = networks(options.quick)[0]
    ours = Ours(Model(network.config).eval(), small_vocabulary(), "int8", 1, 1)
    section.intro = (
        f"{network.name} in int8, one stream, one thread, {tokens:,} tokens in one session. Time of a token: the "
        f"median over pieces of {tokens // PIECES:,} tokens, of the first tenth and of the last."
    )
    options.say(f"endless: {tokens:,} tokens")
    ours.make(EARLY)
    memory = resident()
    times = []
    for _ in range(PIECES):
        began = time.perf_counter()
        ours.make(tokens // PIECES)
        times.append((time.perf_counter() - began) / (tokens // PIECES))
    grown = resident() - memory
    first, last = statistics.median(times[: PIECES // 10]), statistics.median(times[-PIECES // 10 :])
    table = Table(["after", "µs a token", "memory more than after 1,000 tokens, kB"])
    table.rows = [
        ["the beginning", micros(first), "0"],
        [f"{tokens:,} tokens", micros(last), f"{grown / 1e3:,.0f}"],
    ]
    section.tables.append(table)
    what = f"after {tokens:,} tokens in one session"
    section.targets += [
        Target(f"memory grown {what}", "after 1,000", 1.0, max(0.0, grown / 1e6), unit=" MB", at_most=True),
        Target(f"time of a token {what}", "at the beginning", 1.1, last / first, at_most=True),
    ]
    section.figures = {"seconds": times, "bytes grown": grown}
