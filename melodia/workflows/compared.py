"""The table of a comparison: its rows, how it is written, and what an earlier call wrote."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from melodia.errors import ConfigError, TrainingError, show_path
from melodia.files import write_whole
from melodia.measure import Likelihood, difference, number, plain, span

TABLE = "comparison.md"
READING = (
    "The intervals are over the held-out pieces, those of differences over pairs of figures for the same piece. Each "
    "kind was trained once: what another random seed would change is not in them. The same pieces chose the best "
    "checkpoint of each training."
)
"""What stands below the facts."""
BEGINNING = "| kind | parameters |"


@dataclass(frozen=True)
class Row:
    """One line of the table.

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
        rows: one for each kind that is trained, and the baseline.
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
        lines = [
            "| kind | parameters | hidden | time per token (µs) | training tokens/s | epochs "
            "| held-out nats/token (95 %) | difference to the best kind (95 %) | nats/note |",
            "|---|---:|---:|---:|---:|---:|---|---|---:|",
        ]
        rows = sorted(self.rows, key=lambda row: row.nats_per_token)
        # Kinds are compared; the n-grams stand beside them.
        best = next((row for row in rows if row.hidden_size), rows[0])
        for row in rows:
            lines.append(
                f"| {row.name} | {row.parameters:,} | {row.hidden_size or '–'} | {number(row.step_microseconds, 0)} "
                f"| {number(row.training_tokens_per_second, 0)} | {number(row.epochs, 2)} "
                f"| {number(row.nats_per_token, 4)} ({span(row.low, row.high, 4)}) "
                f"| {'–' if row is best else _more(row, best)} | {number(row.nats_per_note, 3)} |"
            )
        facts = "; ".join(f"{name}: {value}" for name, value in (self.setting | _trained_with(rows)).items())
        notes = [f"\nnote: {note}" for note in dict.fromkeys(row.note for row in self.rows) if note]
        facts += "; training tokens/s: of the whole run, validations and saving included"
        return "\n".join([*lines, "", facts, "", READING, *notes])

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
                terms = values.get("terms", {}) if rows else values["terms"]
                table = cls(rows, dict(values["setting"]), path, dict(terms))
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


def _trained_with(rows: list[Row]) -> dict[str, str]:
    """The threads and versions that trained the rows; with the names of the rows where they differ."""
    facts = {}
    for name in ("threads", "torch", "melodia"):
        found: dict[str, list[str]] = {}
        for row in rows:
            if getattr(row, name):
                found.setdefault(str(getattr(row, name)), []).append(row.name)
        if found:
            which = [f"{value} ({' and '.join(names)})" for value, names in found.items()]
            facts[name] = next(iter(found)) if len(found) == 1 else ", ".join(which)
    return facts


def _more(row: Row, best: Row) -> str:
    """How many nats a token more than the best, piece by piece; a dash where the pieces of a row are not known."""
    if not best.piece_tokens or row.piece_tokens != best.piece_tokens:
        return number(math.nan)
    more = difference(row.likelihood, best.likelihood)
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
