"""`melodia generate` as a whole process, from the command to the written file; `benchmarks/startup.py` measures it."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.startup import PARTS, SAMPLE, compiled, parts, whole
from benchmarks.suite.options import Options
from benchmarks.suite.page import Section, Table, Target, figure
from melodia.errors import CheckpointError
from melodia.sampler.loading import bundled_model

LIMIT = 1.0
BARS = "melodia generate, 8 bars behind a seed"


def run(options: Options, section: Section) -> None:
    """Start the command again and again."""
    what = "melodia generate, 8 bars, whole process"
    try:
        model = options.model or bundled_model()
    except CheckpointError as error:
        section.notes.append(f"Not measured: no model was given (--model DIR), and {error}.")
        section.targets.append(
            Target(what, "", LIMIT, None, unit=" s", at_most=True, why="no model was given")
        )
        return
    options.say("start-up")
    runs = 2 if options.quick else 9
    with tempfile.TemporaryDirectory() as folder:
        environment = compiled(str(Path(folder) / "compiled"))
        out = str(Path(folder) / "out.mid")
        cli = [sys.executable, "-m", "melodia"]
        generate = [*cli, "generate", "--model", str(model), "--out", out, "--force", "--random-seed", "1"]
        ways = {
            "python, doing nothing": [sys.executable, "-c", "pass"],
            "melodia --version": [*cli, "--version"],
            BARS: [*generate, "--seed", str(SAMPLE)],
        }
        inner = [sys.executable, "-c", PARTS, str(model), str(SAMPLE), out, "fp32"]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        inside: dict[str, list[float]] = {}
        for turn in range(runs + 1):
            for name, words in ways.items():
                seconds = whole(words, environment)
                if turn:  # the first one compiles the modules and warms the disk
                    found[name].append(seconds)
            for name, taken in parts(inner, environment).items():
                if turn:
                    inside.setdefault(name, []).append(taken)
    section.intro = (
        f"Whole processes in turns, files in the disk's cache, modules compiled; medians of {runs} runs."
    )
    table = Table(["process", "s", "s of the processor", "fastest, s"])
    for name, times in found.items():
        wall, busy = (statistics.median(column) for column in zip(*times, strict=True))
        table.rows.append([name, figure(wall), figure(busy), figure(min(times)[0])])
    part_table = Table(["part, inside one process", "ms"])
    for name, values in inside.items():
        part_table.rows.append([name, figure(1e3 * statistics.median(values))])
    section.tables += [table, part_table]
    value = statistics.median(wall for wall, _ in found[BARS])
    section.targets.append(Target(what, "", LIMIT, value, unit=" s", at_most=True))
    section.figures = {"seconds": found, "parts": inside}
