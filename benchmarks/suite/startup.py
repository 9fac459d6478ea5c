"""`melodia generate` as a whole process, from the command to the written file."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.suite.machine import REPOSITORY
from benchmarks.suite.options import Options
from benchmarks.suite.page import Section, Table, Target, figure

LIMIT = 1.0


def seconds_of(command: list[str]) -> float:
    """Wall-clock seconds of a process that must succeed."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"{' '.join(command[1:4])} failed: {said[-1] if said else done.returncode}")
    return took


def run(options: Options, section: Section) -> None:
    """Start the command again and again."""
    seed = REPOSITORY / "midi_samples" / "bach_prelude_c_major.mid"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.mid"
        command = [sys.executable, "-m", "melodia", "generate", "--seed", str(seed), "--bars", "8"]
        command += ["--random-seed", "1", "--out", str(out), "--force"]
        command += ["--model", str(options.model)] if options.model else []
        ways = {
            "python, doing nothing": [sys.executable, "-c", "pass"],
            "melodia --version": [sys.executable, "-m", "melodia", "--version"],
            "melodia generate, 8 bars after a seed": command,
        }
        options.say("start-up")
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(3 if options.quick else 9):
            for name, words in ways.items():
                found[name].append(seconds_of(words))
    section.intro = "Whole processes, files in the disk's cache; medians of runs in turns."
    table = Table(["process", "s", "fastest"])
    for name, times in found.items():
        table.rows.append([name, figure(statistics.median(times[1:])), figure(min(times))])
    section.tables.append(table)
    value = statistics.median(found["melodia generate, 8 bars after a seed"][1:])
    section.targets.append(
        Target("melodia generate, 8 bars, whole process", "", LIMIT, value, unit=" s", at_most=True)
    )
    section.figures = {"seconds": found}
