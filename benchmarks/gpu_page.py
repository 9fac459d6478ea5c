"""The page of gpu_check.py: verdicts, numbers to reach, figures and notes of every part, from the log alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from benchmarks import gpu_process, gpu_pytest, gpu_tools

TAIL = 25  # lines of a failed part that the page shows
SHOWN = 40  # tests that failed, by name
TESTS = "parity"  # how the names of parts begin that run tests
BUILT = "melodia: "  # how setup.py begins what it says of a library
_SUMMARY = re.compile(r"=+ .* in [\d.:]+ ?s.* =+")  # pytest's last line
_TOLD = ("SKIPPED ", "FAILED ", "ERROR ", "!!!", gpu_pytest.GAVE_UP)


class Target(NamedTuple):
    """A number to reach: the worst figure of the rows that fit, of parts whose name ends so.

    Attributes:
        what: in words.
        part: the end of the parts' names, as "more-training" has more figures of "training".
        where: what the rows have in other columns.
        column: the figure.
        at_least, at_most: what it has to be; one of them.
        rows: how many there have to be, where it is about several.
    """

    what: str
    part: str
    where: dict[str, object]
    column: str
    at_least: float | None = None
    at_most: float | None = None
    rows: int = 1


_ONE = {"model": "i-a", "B": 1, "weights": "bf16"}
_MANY = {"model": "ii", "B": 64, "weights": "bf16"}
TARGETS = [
    Target("one stream, i-a, bf16: times eager", "generation", _ONE, "x eager", at_least=30),
    Target("one stream, i-a, bf16: times eager in a CUDA graph", "generation", _ONE, "x graph", at_least=3),
    Target("one stream, i-a, bf16: us per token", "generation", _ONE, "us/step", at_most=5),
    Target("one stream, i-a, bf16: us per token, then", "generation", _ONE, "us/step", at_most=3),
    Target("64 streams, ii, bf16: times eager", "generation", _MANY, "x eager", at_least=30),
    Target("64 streams, ii, bf16: tokens per second", "generation", _MANY, "tokens/s", at_least=5e6),
]
TARGETS += [
    Target(
        f"training, bf16, T = 512, B = 64, H = {H}: times cuDNN, worst of 5 kinds",
        "training",
        {"type": "bfloat16", "T": 512, "B": 64, "H": H},
        "ratio",
        at_least=1.5,
        rows=5,
    )
    for H in (512, 1024)
]
TARGETS += [  # what decides how the decode engine exchanges
    Target("exchange by words: us", "primitives", {"what": "step", "way": "words"}, "exchange", at_most=0.8),
    Target(
        "exchange in a cluster of 16: us",
        "primitives",
        {"way": "cluster", "blocks": 16},
        "exchange",
        at_most=0.4,
    ),
    Target("clusters of 16 at once", "primitives", {"way": "cluster", "blocks": 16}, "at once", at_least=6),
]

Rows = dict[str, list[dict[str, object]]]


def rows_of(found: dict[str, gpu_process.Section]) -> Rows:
    """The rows of every part; a line that was cut off is none."""
    rows: Rows = {}
    for part, section in found.items():
        rows[part] = []
        for line in section.lines:
            if line.startswith(gpu_tools.MARK):
                try:
                    rows[part].append(json.loads(line[len(gpu_tools.MARK) :]))
                except ValueError:
                    continue
    return rows


def reached(rows: Rows) -> list[dict[str, object]]:
    """Each number to reach, and what was measured."""
    told = []
    for target in TARGETS:
        figures: dict[str, float] = {}  # the better of rows that were measured twice
        better, worse = (max, min) if target.at_least is not None else (min, max)
        for part, some in rows.items():
            for row in some if part.endswith(target.part) else []:
                value = row.get(target.column)
                if value is None or any(row.get(name) != wanted for name, wanted in target.where.items()):
                    continue
                which = str([row.get(name) for name in ("kind", "blocks")])
                figures[which] = better(figures.get(which, float(str(value))), float(str(value)))
        measured, met = "not measured", ""
        if figures:
            figure = worse(figures.values())
            measured = f"{figure:.4g}"
            good = (
                figure >= target.at_least if target.at_least is not None else figure <= (target.at_most or 0)
            )
            met = "yes" if good else "no"
            if len(figures) < target.rows:
                measured += f", of {len(figures)}"
                met = "not all measured" if good else "no"
        limit = (
            f"at least {target.at_least:g}" if target.at_least is not None else f"at most {target.at_most:g}"
        )
        told.append({"number": target.what, "reach": limit, "measured": measured, "met": met})
    return told


def page(log: Path, where: str) -> str:
    """Everything so far: verdicts, numbers, notes, figures, what pytest says, and how parts that failed ended."""
    found = gpu_process.sections(log)
    rows = rows_of(found)
    lines = ["# CUDA kernels on a GPU", "", f"{where} Medians of interleaved turns.", ""]
    lines += table([{"part": part, "verdict": section.verdict} for part, section in found.items()])
    lines += ["", "## Numbers to reach", "", *table(reached(rows))]
    for part, (verdict, printed) in found.items():
        marks = (gpu_tools.NOTE, gpu_tools.MARK)
        notes = [line[len(gpu_tools.NOTE) :] for line in printed if line.startswith(gpu_tools.NOTE)]
        rest = [line for line in printed if line and not line.startswith(marks)]
        notes += [line for line in rest if line.startswith(BUILT)]
        if part.startswith(TESTS):
            told = [line for line in rest if line.startswith(_TOLD)]
            notes += [line[:300] for line in told[:SHOWN]]
            notes += [f"and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
            notes += [line for line in rest if _SUMMARY.fullmatch(line)]
        failed = verdict.startswith(("failed", gpu_process.UNFINISHED))
        if notes or rows[part] or failed:
            lines += ["", f"## {part}", "", *(f"- {text}" for text in dict.fromkeys(notes))]
        if rows[part]:
            lines += ["", *table(rows[part])]
        if failed:
            lines += ["", "It ended with", "", "```text", *rest[-TAIL:], "```"]
    return "\n".join([*lines, ""])


def table(rows: list[dict[str, object]]) -> list[str]:
    """Rows with all their columns, in Markdown."""
    names = list(dict.fromkeys(name for values in rows for name in values))
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return lines + [f"| {' | '.join(str(row.get(name, '')) for name in names)} |" for row in rows]
