"""What a run found, as values; and as a page of Markdown and as JSON.

A *section* is a topic's result: tables of cells that are text already, and *targets*: figures with the limit that
design sets them. Every figure comes from the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A figure that should reach a limit.

    Attributes:
        what: what is measured.
        against: what it is compared with; "" for nothing.
        limit: the number to reach.
        value: the number reached; None: not measured.
        unit: behind both numbers, such as "×" or " s".
        at_most: whether smaller is better.
        why: where there is no value, the reason.
    """

    what: str
    against: str
    limit: float
    value: float | None
    unit: str = "×"
    at_most: bool = False
    why: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the limit is reached; None where nothing was measured.

        >>> Target("speed", "others", 2, 2.0).met, Target("time", "", 1, 1.1, at_most=True).met
        (True, False)
        """
        if self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    @property
    def verdict(self) -> str:
        """Met, missed and by how much, or why nothing is known."""
        if self.value is None:
            return f"not measured: {self.why}"
        if self.met:
            return "met"
        short = (self.value / self.limit - 1) if self.at_most else (1 - self.value / self.limit)
        return f"**missed** by {short:.0%}" if self.limit else "**missed**"

    def cells(self) -> list[str]:
        """The row of the table of targets."""
        limit = f"{'≤' if self.at_most else '≥'} {self.limit:g}{self.unit}"
        reached = "" if self.value is None else f"{figure(self.value)}{self.unit}"
        return [self.what, self.against, limit, reached, self.verdict]


@dataclass
class Table:
    """A table. `rows` hold one text a column."""

    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    caption: str = ""

    def lines(self) -> list[str]:
        """As Markdown; the first column is text, the others are numbers."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)}: {row}")
        rule = "|" + "|".join(["---"] + ["--:"] * (len(self.columns) - 1)) + "|"
        body = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in self.rows]
        head = f"| {' | '.join(self.columns)} |"
        return [*([f"**{self.caption}**", ""] if self.caption else []), head, rule, *body, ""]


@dataclass
class Section:
    """The result of a topic.

    Attributes:
        topic: the word that chooses it.
        title: the heading.
        intro: how it was measured.
        tables, targets: see there.
        notes: remarks under the tables.
        figures: everything measured, by name, for the JSON file.
        seconds: how long the topic took.
        failed: what went wrong, where it did; the tables then hold what was found before.
    """

    topic: str
    title: str
    intro: str = ""
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    failed: str = ""

    def lines(self) -> list[str]:
        """As Markdown."""
        lines = [f"## {self.title}", "", *([self.intro, ""] if self.intro else [])]
        if self.failed:
            lines += [f"**This part failed:** `{self.failed}`", ""]
        for table in self.tables:
            lines += table.lines()
        for note in self.notes:
            lines += [f"- {note}"]
        return [*lines, ""] if self.notes else lines


@dataclass
class Page:
    """A run.

    Attributes:
        facts: of the machine and the run: name and text.
        sections: in order.
        left_out: topics that were not asked for.
        remarks: on the run as a whole, such as that sizes were reduced.
    """

    facts: dict[str, str]
    sections: list[Section] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The page."""
        lines = [
            "# Benchmarks",
            "",
            "Written by `python -m benchmarks`; every figure is from the run described here. All ways of doing "
            "the same thing take turns within one process, and each figure is the median over its turns.",
            "",
        ]
        lines += [f"- {name}: {text}" for name, text in self.facts.items()]
        lines += ["", *(f"**{remark}**" for remark in self.remarks), *([""] if self.remarks else [])]
        targets = Table(["what", "against", "to reach", "reached", ""])
        targets.rows = [target.cells() for section in self.sections for target in section.targets]
        if targets.rows:
            lines += ["## Targets", "", *targets.lines()]
        for section in self.sections:
            lines += section.lines()
        if self.left_out:
            lines += [f"Not part of this run: {', '.join(self.left_out)}.", ""]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        sections = []
        for section in self.sections:
            entry = asdict(section)
            for target, values in zip(section.targets, entry["targets"], strict=True):
                values["met"] = target.met
            sections.append(entry)
        return {"facts": self.facts, "remarks": self.remarks, "sections": sections, "left_out": self.left_out}

    def write(self, path: Path) -> None:
        """Write the page to `path` and its figures beside it, as .json, each in one movement."""
        for target, text in (
            (path, self.markdown()),
            (path.with_suffix(".json"), json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"),
        ):
            fresh = target.with_name(target.name + ".new")
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(target)


def figure(value: float, digits: int = 3) -> str:
    """A number with three significant digits, without an exponent.

    >>> figure(1234.5), figure(12.345), figure(0.01234), figure(0.0), figure(99.96)
    ('1,230', '12.3', '0.0123', '0', '100')
    """
    if value == 0:
        return "0"
    from math import floor, log10

    places = digits - 1 - floor(log10(abs(value)))
    rounded = round(value, places)
    places = digits - 1 - floor(log10(abs(rounded)))
    return f"{rounded:,.{max(0, places)}f}"


def micros(seconds: float) -> str:
    """Seconds as microseconds."""
    return figure(seconds * 1e6)
