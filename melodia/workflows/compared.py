"""The table of a comparison: its rows, how it is written, and what an earlier call wrote."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from melodia.errors import ConfigError, TrainingError, show_path
from melodia.files import write_whole
from melodia.measure import Interval, Likelihood, difference, number, plain, span, student, widened

TABLE = "comparison.md"
PIECES = (
    "The intervals are over the held-out pieces, those of differences over pairs of figures for the same piece. The "
    "same pieces chose the best checkpoint of each training."
)
ONCE = "Each kind was trained once: what another random seed would change is not in the intervals."
OFTEN = (
    "Figures are means over the trainings of a kind. How far these spread around it is in the intervals, too: a "
    "standard deviation of {spread} nats/token, taken to be the same for all kinds."
)
"""What stands below the facts."""
BEGINNING = "| kind | parameters |"


@dataclass(frozen=True)
class Row:
    """One training, or the baseline: a line of the table, alone or with other trainings of the same name.

    Attributes:
        name: the kind, or the baseline.
        parameters: learned numbers; n-grams for the n-gram model.
        hidden_size: units of each layer; 0 for the n-gram model.
        step_microseconds: of generating one token (`bench.token_time`); nan where it was not measured.
        training_tokens_per_second: targets trained on per second of the whole run; nan for the n-gram model.
        epochs: passes over the training pieces.
        nats_per_token: held-out, every token once.
        low, high: 95 % bootstrap interval of it over pieces.
        nats_per_note: the same nats over the notes.
        note: a remark on what disturbed its figures; may be empty.
        threads: of the CPU that trained it; 0 for the n-gram model.
        torch, melodia: the versions that trained it; empty for the n-gram model.
        piece_nats, piece_tokens, piece_notes: of each held-out piece, in the order of the corpus.
        random_seed: of the training; 0 for the n-gram model.
    """

    name: str
    parameters: int
    hidden_size: int
    step_microseconds: float
    training_tokens_per_second: float
    epochs: float
    nats_per_token: float
    low: float
    high: float
    nats_per_note: float
    note: str = ""
    threads: int = 0
    torch: str = ""
    melodia: str = ""
    piece_nats: tuple[float, ...] = ()
    piece_tokens: tuple[int, ...] = ()
    piece_notes: tuple[int, ...] = ()
    random_seed: int = 0

    @classmethod
    def of(cls, name: str, likelihood: Likelihood, **others: Any) -> Row:
        """A row with the figures of the held-out pieces, and others."""
        interval = likelihood.interval("token")
        return cls(
            name=name,
            nats_per_token=likelihood.nats_per_token,
            low=interval.low,
            high=interval.high,
            nats_per_note=likelihood.nats_per_note,
            piece_nats=tuple(likelihood.nats.tolist()),
            piece_tokens=tuple(likelihood.tokens.tolist()),
            piece_notes=tuple(likelihood.notes.tolist()),
            **others,
        )

    @property
    def likelihood(self) -> Likelihood:
        """What it gives to each held-out piece."""
        return Likelihood(
            np.array(self.piece_nats, np.float64),
            np.array(self.piece_tokens, np.int64),
            np.array(self.piece_notes, np.int64),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy; what is undefined is None."""
        row: dict[str, Any] = plain(asdict(self))
        return row

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {
            name: math.nan if item is None else tuple(item) if isinstance(item, list) else item
            for name, item in data.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class Comparison:
    """The table, and where it lies.

    Attributes:
        rows: one for each training, and the baseline.
        setting: what stands below the table of all rows; what may differ is in them.
        path: of the Markdown; the JSON lies beside it.
        terms: all that the rows have in common and their figures hang on, as JSON keeps it.
    """

    rows: list[Row]
    setting: dict[str, Any]
    path: Path
    terms: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """The table as Markdown, best held-out NLL first."""
        lines = sorted(_lines_of(self.rows), key=lambda line: line.nats_per_token)
        # Kinds are compared; the n-grams stand beside them.
        best = next((line for line in lines if line.trained), lines[0])
        spread = _Spread.of(lines)
        columns = ["kind", "parameters", "hidden", "time per token (µs)", "training tokens/s", "epochs"]
        columns += ["held-out nats/token (95 %)", "difference to the best kind (95 %)", "nats/note"]
        columns += ["nats/token of each training"] * spread.known
        table = [
            f"| {' | '.join(columns)} |",
            "|---|---:|---:|---:|---:|---:|---|---|---:|" + "---|" * spread.known,
        ]
        for line in lines:
            first, found = line.rows[0], spread.widen(line.interval, line)
            cells = [
                line.name,
                f"{first.parameters:,}",
                f"{first.hidden_size or '–'}",
                number(line.mean("step_microseconds"), 0),
                number(line.mean("training_tokens_per_second"), 0),
                number(line.mean("epochs"), 2),
                f"{number(found.value, 4)} ({span(found.low, found.high, 4)})",
                "–" if line is best else _more(line, best, spread),
                number(line.mean("nats_per_note"), 3),
            ]
            each = " ".join(number(row.nats_per_token, 4) for row in line.rows) if line.trained else "–"
            cells += [each] * spread.known
            table.append(f"| {' | '.join(cells)} |")
        facts = "; ".join(f"{name}: {value}" for name, value in (self.setting | _trained_with(lines)).items())
        notes = [f"\nnote: {note}" for note in dict.fromkeys(row.note for row in self.rows) if note]
        facts += "; training tokens/s: of the whole run, validations and saving included"
        trainings = OFTEN.format(spread=number(spread.deviation, 4)) if spread.known else ONCE
        return "\n".join([*table, "", facts, "", f"{PIECES} {trainings}", *notes])

    def write(self) -> None:
        """Write the table as Markdown, and beside it as JSON.

        Raises:
            TrainingError: they cannot be written.
        """
        rows = [row.to_dict() for row in self.rows]
        values = {"setting": self.setting, "terms": self.terms, "rows": rows}
        write_file(self.path.with_suffix(".json"), json.dumps(values, indent=2, allow_nan=False))
        write_file(self.path, self.markdown() + "\n")

    @classmethod
    def read(cls, path: Path) -> Comparison | None:
        """What an earlier call wrote there; None where there is nothing.

        Raises:
            TrainingError: a file has its name, but no comparison wrote it.
        """
        data, table = path.with_suffix(".json"), None
        try:
            if os.path.lexists(data):
                values = json.loads(data.read_text("utf-8"))
                rows = [Row.from_dict(row) for row in values["rows"]]
                # an earlier version wrote no terms, and always rows
                terms = dict(values.get("terms", {}) if rows else values["terms"])
                random_seed = terms.pop("random_seed", None)  # another: one for all rows
                if random_seed is not None:
                    rows = [replace(row, random_seed=random_seed if row.hidden_size else 0) for row in rows]
                table = cls(rows, dict(values["setting"]), path, terms)
        except (OSError, KeyError, TypeError, ValueError, AttributeError):
            raise TrainingError(_foreign(data)) from None
        try:
            if os.path.lexists(path) and not path.read_text("utf-8").startswith(BEGINNING):
                raise TrainingError(_foreign(path))
        except (OSError, ValueError):
            raise TrainingError(_foreign(path)) from None
        return table

    def rows_beside(self, terms: dict[str, Any], *, force: bool) -> list[Row]:
        """The rows that stay in a table of these terms: all, or none where it is of others and may be replaced.

        Raises:
            ConfigError: it is of other terms (without `force`).
        """
        if self.terms == terms:
            return self.rows
        if not force:
            why = f"different {different(terms, self.terms)}" if self.terms else "an earlier version wrote it"
            raise ConfigError(
                f"{show_path(self.path)} is of another comparison ({why}); choose another `out`, or replace the table "
                "(`force`)"
            )
        return []


@dataclass(frozen=True)
class _Line:
    """The trainings of one name, by random seed: one line of the table."""

    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        return self.rows[0].name

    @property
    def trained(self) -> bool:
        """Whether it is a network; n-grams are counted."""
        return self.rows[0].hidden_size > 0

    @property
    def nats_per_token(self) -> float:
        return self.mean("nats_per_token")

    def mean(self, name: str) -> float:
        """The mean of a figure over the trainings."""
        return fmean(getattr(row, name) for row in self.rows)

    @property
    def likelihood(self) -> Likelihood | None:
        """What the trainings give to each piece, on average; None where that was not kept."""
        first = self.rows[0]
        if not first.piece_tokens or any(row.piece_tokens != first.piece_tokens for row in self.rows):
            return None
        return replace(first.likelihood, nats=np.mean([row.piece_nats for row in self.rows], axis=0))

    @property
    def interval(self) -> Interval:
        """Nats per token, over the held-out pieces."""
        likelihood = self.likelihood
        if likelihood is not None:
            return likelihood.interval("token")
        ends = [(row.low, row.high) for row in self.rows]
        low, high = ends[0] if len(ends) == 1 else (math.nan, math.nan)
        return Interval(self.nats_per_token, low, high)


@dataclass(frozen=True)
class _Spread:
    """How nats per token differ between trainings of a kind: pooled over kinds, with its degrees of freedom."""

    deviation: float
    freedom: int

    @classmethod
    def of(cls, lines: list[_Line]) -> _Spread:
        freedom = sum(len(line.rows) - 1 for line in lines)
        squares = sum((row.nats_per_token - line.nats_per_token) ** 2 for line in lines for row in line.rows)
        return cls(math.sqrt(squares / freedom) if freedom else math.nan, freedom)

    @property
    def known(self) -> bool:
        return self.freedom > 0

    def widen(self, interval: Interval, *lines: _Line) -> Interval:
        """An interval over pieces of one mean over trainings, or of a difference of two, with their spread in it."""
        if not self.known:
            return interval
        error = self.deviation * math.sqrt(sum(1 / len(line.rows) for line in lines if line.trained))
        return widened(interval, student(interval.level, self.freedom) * error)


def _lines_of(rows: list[Row]) -> list[_Line]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.name, []).append(row)
    return [_Line(tuple(sorted(of, key=lambda row: row.random_seed))) for of in found.values()]


def _trained_with(lines: list[_Line]) -> dict[str, str]:
    """The random seeds, threads and versions of the trainings; with the names of the lines where they differ."""
    facts = {}
    named = {"random seeds": "random_seed"} | {name: name for name in ("threads", "torch", "melodia")}
    for title, name in named.items():
        found: dict[str, list[str]] = {}
        for line in lines:
            values = [str(value) for value in dict.fromkeys(getattr(row, name) for row in line.rows)]
            if line.trained:
                found.setdefault(" ".join(values), []).append(line.name)
        if found and (name != "random_seed" or list(found) != ["0"]):
            which = [f"{value} ({' and '.join(names)})" for value, names in found.items()]
            facts[title] = next(iter(found)) if len(found) == 1 else ", ".join(which)
    return facts


def _more(line: _Line, best: _Line, spread: _Spread) -> str:
    """How many nats a token more than the best, piece by piece; a dash where the pieces are not known."""
    mine, base = line.likelihood, best.likelihood
    if mine is None or base is None or not np.array_equal(mine.tokens, base.tokens):
        return number(math.nan)
    more = spread.widen(difference(mine, base), line, best)
    ends = "–" if math.isnan(more.low + more.high) else f"{more.low:+.4f} to {more.high:+.4f}"
    return f"{more.value:+.4f} ({ends})"


def different(mine: dict[str, Any], other: dict[str, Any]) -> str:
    """The names of what differs.

    >>> different({"epochs": 1, "size": "tiny"}, {"epochs": 2, "size": "tiny"})
    'epochs'
    """
    names = sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
    return ", ".join(names)


def _foreign(path: Path) -> str:
    return f"{show_path(path)} already exists, and no comparison wrote it; move it or choose another folder"


def write_file(path: Path, text: str) -> None:
    """Write a file in a folder that is made if need be.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text, own=True)
    except OSError as error:
        raise TrainingError(
            f"cannot write {show_path(path)}: {error.strerror or error}; free some space or choose another folder"
        ) from error
