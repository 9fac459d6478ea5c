"""What other busy processes cost the engine: time of a token with one and two threads beside loops that never rest.

`python -m benchmarks.busy_machine` prints a table. Beside N busy processes, every number of threads gets a turn in
each round, and so does one thread with the busy processes stopped, which is the measure of all. A turn's number is
its wall time over its tokens, so that a token that waited long counts in full; a way's is the median over its turns.
Turns during which anything else took more than a tenth of a core are left out (/proc tells); how many were kept is
printed. Linux only.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from melodia import engine
from melodia.engine.description import describe
from melodia.model import Model, ModelConfig

QUIET = 0.1
"""Cores that others may use during a turn."""


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """Processes that do nothing but run; their ids."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield [loop.pid for loop in loops]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """Stop or continue processes."""
    for pid in pids:
        os.kill(pid, number)


def cpu_seconds(pids: Sequence[int]) -> float:
    """Seconds of processor time that these processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Seconds that the machine's cores were not idle."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def turn(lanes: engine.Lanes, seconds: float, loops: Sequence[int]) -> tuple[float, float]:
    """Seconds of a token over so many seconds, and how many cores others were using meanwhile."""
    ours = [os.getpid(), *loops]
    before = busy_seconds() - cpu_seconds(ours)
    began, tokens = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        for _ in range(16):
            lanes.step([tokens % 8])
        tokens += 16
    return passed / tokens, (busy_seconds() - cpu_seconds(ours) - before) / passed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    parser.add_argument("--weights", nargs="+", default=["fp32", "int8"])
    options = parser.parse_args()
    model = Model(ModelConfig(kind="sequential", vocab_size=512, hidden_size=options.hidden)).eval()
    threads = (1, min(2, engine.cores()))
    print(f"{engine.cores()} cores, {engine.instruction_set()}\n")
    print(
        "| weights | busy processes | 1 thread alone, µs | 1 thread | 2 threads | 2 threads / 1 alone | turns kept |"
    )
    print("|---|---|---|---|---|---|---|")
    for weights in options.weights:
        lanes = {n: engine.Lanes(engine.Engine(*describe(model, weights), threads=n), 1) for n in threads}
        for busy in (0, 1, 2):
            found: dict[str, list[float]] = {"alone": [], "1": [], "2": []}
            with busy_processes(busy) as loops:
                for _ in range(options.rounds):
                    for name in found:
                        send(loops, signal.SIGSTOP if name == "alone" else signal.SIGCONT)
                        mine = lanes[2 if name == "2" and 2 in lanes else 1]
                        seconds, others = turn(mine, options.seconds, loops)
                        if others < QUIET:
                            found[name].append(seconds)
            kept = "/".join(str(len(turns)) for turns in found.values())
            if not all(found.values()):
                print(f"| {weights} | {busy} | | | | | {kept}: too much else runs here |")
                continue
            alone, one, two = (statistics.median(turns) * 1e6 for turns in found.values())
            print(
                f"| {weights} | {busy} | {alone:.0f} | {one:.0f} | {two:.0f} | {two / alone:.2f} | {kept} |"
            )


if __name__ == "__main__":
    main()
