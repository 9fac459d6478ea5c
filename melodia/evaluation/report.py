"""The result of an evaluation: numbers, tables for people, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from melodia.evaluation.collapse import CollapseReport
from melodia.evaluation.comparison import SetComparison
from melodia.evaluation.continuations import KeyAgreement, Pair
from melodia.evaluation.statistics import piece_histograms
from melodia.measure import Likelihood, number, plain, span
from melodia.originality import Originality
from melodia.wording import counted

REPORT_VERSION = 1
LEVEL = 0.95
WORST = 5


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: stands above.
        columns: their headings; the first column names the rows.
        rows: cells as text.
        note: stands below.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Generated:
    """Continuations against the real bars.

    Attributes:
        pairs: one a piece.
        comparison: generated against real bars.
        yardstick: the bars before, which are real too, against the real bars: what overlaps can be hoped for.
        keys: of the real and of the generated bars with the seed.
        collapse: of the real and of the generated bars, one a piece.
        settings: seed bars, bars, sampling, random seed.
        failed: why pieces could not be continued.
    """

    pairs: tuple[Pair, ...]
    comparison: SetComparison
    yardstick: SetComparison
    keys: tuple[KeyAgreement, KeyAgreement]
    collapse: tuple[tuple[CollapseReport, ...], tuple[CollapseReport, ...]]
    settings: dict[str, Any]
    failed: tuple[str, ...] = ()

    def originalities(self) -> tuple[list[Originality], list[Originality]]:
        """Of the real and of the generated bars; empty without an index."""
        real = [pair.real_originality for pair in self.pairs if pair.real_originality is not None]
        return real, [pair.originality for pair in self.pairs if pair.originality is not None]


@dataclass(frozen=True)
class Evaluation:
    """What `melodia evaluate` found.

    Attributes:
        model: facts about the model.
        folder: the music.
        likelihood: of each piece.
        names: the file of each piece.
        skipped: files that could not be used, with the reason.
        generated: None unless asked for.
        versions: of what computed.
        notes: what one should know of the figures.
    """

    model: dict[str, Any]
    folder: str
    likelihood: Likelihood
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    generated: Generated | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def tables(self) -> list[Table]:
        """Everything as tables."""
        found = [likelihood_table(self.likelihood)]
        if self.generated is not None:
            made = self.generated
            found += [comparison_table(made), collapse_table(made)]
            if made.originalities()[1]:
                found.append(originality_table(made))
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy: numbers without rounding, nothing but null where a number is not defined."""
        likelihood = self.likelihood
        pieces = []
        for i, name in enumerate(self.names):
            row: dict[str, Any] = {"name": name, "nats": float(likelihood.nats[i])}
            for unit in likelihood.units():
                row[f"{unit}s"] = getattr(likelihood, f"{unit}s")[i].item()
            pieces.append(row)
        data = {
            "report_version": REPORT_VERSION,
            "model": self.model,
            "folder": self.folder,
            "likelihood": likelihood.to_dict(level=LEVEL) | {"level": LEVEL},
            "pieces": pieces,
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "generated": None if self.generated is None else _generated_dict(self.generated),
            "versions": self.versions,
            "notes": list(self.notes),
        }
        copy: dict[str, Any] = plain(data)
        return copy


def likelihood_table(likelihood: Likelihood) -> Table:
    """Nats per unit with intervals; bits, since other systems give those."""
    rows = []
    for unit in likelihood.units():
        interval = likelihood.interval(unit, level=LEVEL)
        total = float(getattr(likelihood, f"{unit}s").sum())
        rows.append(
            (
                f"per {unit}",
                number(interval.value, 4),
                span(interval.low, interval.high, 4),
                number(interval.value / np.log(2), 3),
                f"{total:,.0f}",
            )
        )
    return Table(
        "Likelihood: how surprising the model finds the music",
        ("", "nats", f"{LEVEL:.0%} interval", "bits", "counted"),
        tuple(rows),
        f"{counted(len(likelihood.nats), 'piece')}; lower is better. Intervals: bootstrap over pieces, widened "
        "where they are few. The tokens counted are those scored: the end of each piece too, but no velocities where a "
        "piece has only one. Only the rows per note, bar and second can be compared between models with different "
        "tokenizers.",
    )


def comparison_table(made: Generated) -> Table:
    """Every statistic of real and generated bars."""
    rows = []
    for row, other in zip(made.comparison.features, made.yardstick.features, strict=True):
        values = row.real_mean == row.real_mean
        sure = values and (row.low > 0 or row.high < 0)
        rows.append(
            (
                row.name.replace("_", " "),
                f"{number(row.real_mean)} ± {number(row.real_spread)}" if values else "",
                f"{number(row.generated_mean)} ± {number(row.generated_spread)}" if values else "",
                f"{span(row.low, row.high)}{' *' if sure else ''}" if values else "",
                number(row.overlap, 2),
                number(row.divergence, 2),
                f"{number(other.overlap, 2)} / {number(other.divergence, 2)}",
            )
        )
    seeds = made.settings["seed_bars"]
    known = sum(row.low == row.low for row in made.comparison.features)
    return Table(
        "Generated against real",
        ("", "real", "generated", f"difference, {LEVEL:.0%}", "overlap", "KL", "real: overlap / KL"),
        tuple(rows),
        f"{len(made.pairs)} pieces: {made.settings['bars']} generated bars after {seeds} seed bars, compared with the "
        "bars that really follow, piece by piece. * the interval leaves out 0; where nothing differs, chance puts "
        f"a star on {1.0 - LEVEL:.0%} of the rows, on {number(known * (1.0 - LEVEL), 1)} of these {known}. Overlap (1 "
        "is best) and Kullback-Leibler divergence (0 is best) as in MGEval; the last column is the yardstick: the seed "
        "bars, which are real, against the real bars.",
    )


def collapse_table(made: Generated) -> Table:
    """Loops and drift, real beside generated."""
    generated = made.collapse[1]

    def row(name: str, values: Any, digits: int = 2) -> tuple[str, ...]:
        return (name, *(number(mean(values(report) for report in side), digits) for side in made.collapse))

    rows = [
        ("pieces with a finding", *(str(sum(not report.healthy for report in side)) for side in made.collapse)),
        row("distinct bars", lambda report: report.distinct_bars),
        row("longest loop of one note, onsets", lambda report: report.note_loop, 1),
        row("longest loop of a bar, copies", lambda report: report.bar_loops[0].copies, 1),
        row("pitch entropy lost from first to last third", lambda report: report.entropy_drop),
        row("longest silence, quarter notes", lambda report: report.silence),
        ("notes in the scale of the seed's key", *(number(keys.in_scale) for keys in made.keys)),
        ("pieces in the seed's key", *(number(keys.same_key) for keys in made.keys)),
    ]  # fmt: skip
    worst = [
        f"{pair.name}: {'; '.join(report.findings)}"
        for pair, report in zip(made.pairs, generated, strict=True)
        if report.findings
    ]
    more = f" and {len(worst) - WORST} more" if len(worst) > WORST else ""
    note = f"Findings: {'. '.join(worst[:WORST])}{more}." if worst else "Nothing looks like collapse."
    return Table("Collapse: loops and drift along the piece", ("", "real", "generated"), tuple(rows), note)


def originality_table(made: Generated) -> Table:
    """The longest passages shared with the training music."""
    sides = made.originalities()

    def row(name: str, cell: Any) -> tuple[str, ...]:
        return (name, *(cell(side) for side in sides))

    rows = (
        row(
            "pieces that share a passage",
            lambda side: f"{sum(bool(o.passages) for o in side)} of {len(side)}",
        ),
        row("longest, notes: median", lambda side: number(float(np.median([o.notes for o in side])), 0)),
        row("longest, notes: maximum", lambda side: str(max(o.notes for o in side))),
        row("longest, bars: maximum", lambda side: number(max(o.bars for o in side), 1)),
    )
    longest = sorted(
        (
            pair
            for pair in made.pairs
            if pair.originality is not None and pair.originality.longest is not None
        ),
        key=lambda pair: -pair.originality.notes if pair.originality is not None else 0,
    )
    found = [
        f"{pair.name}: {pair.originality.longest}" for pair in longest[:WORST] if pair.originality is not None
    ]
    note = "Scales, broken chords and repeated notes do not count. "
    note += (
        f"Longest of the generated: {'. '.join(found)}." if found else "The generated bars share no passage."
    )
    return Table(
        "Originality: the longest passage shared with the training music",
        ("", "real", "generated"),
        rows,
        note,
    )


def mean_histograms(scores: Sequence[Any]) -> dict[str, list[float]]:
    """The mean of every histogram over pieces, those without notes left out."""
    collected: dict[str, list[Any]] = {}
    for score in scores:
        for name, histogram in piece_histograms(score).items():
            if not np.isnan(histogram).any():
                collected.setdefault(name, []).append(histogram)
    return {name: np.mean(rows, axis=0).tolist() for name, rows in collected.items()}


def mean(values: Any) -> float:
    """The mean of the defined values; nan without any."""
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def _generated_dict(made: Generated) -> dict[str, Any]:
    pieces = []
    for pair, real, generated in zip(made.pairs, *made.collapse, strict=True):
        pieces.append(
            {
                "name": pair.name,
                "session": pair.continuation.report.session,
                "notes": pair.continuation.report.notes,
                "nats_per_token": pair.continuation.report.nll,
                "collapse": {"real": real.to_dict(), "generated": generated.to_dict()},
                "originality": None
                if pair.originality is None or pair.real_originality is None
                else {"real": pair.real_originality.to_dict(), "generated": pair.originality.to_dict()},
            }
        )
    return {
        "settings": made.settings,
        "comparison": made.comparison.to_dict(),
        "yardstick": made.yardstick.to_dict(),
        "keys": {"real": asdict(made.keys[0]), "generated": asdict(made.keys[1])},
        "histograms": {
            "real": mean_histograms([pair.real for pair in made.pairs]),
            "generated": mean_histograms([pair.generated for pair in made.pairs]),
        },
        "pieces": pieces,
        "failed": list(made.failed),
    }
