"""The model card of the model that comes with melodia, from what was measured; its text is `bundled_model.card.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import melodia
from melodia.corpus.shards import Corpus
from melodia.model.checkpoint import Checkpoint

CARD = Path(__file__).with_name("bundled_model.card.md")
CONTINUED = {
    "notes in the scale of the seed's key": ("in the seed's scale", "{:.2f}"),
    "estimated key is the seed's key": ("seed's key", "{:.0%}"),
    "mean pitch, in semitones relative to the seed": ("pitch drift", "{:+.1f}"),
    "highest voice, in semitones relative to the seed": ("top drift", "{:+.1f}"),
    "lowest voice, in semitones relative to the seed": ("bottom drift", "{:+.1f}"),
    "notes more than 2 semitones outside their program's range in the seed": (
        "outside its own range",
        "{:.0%}",
    ),
    "repeated top notes of a program, in the seed": ("notes repeated, seed", "{:.0%}"),
    "repeated top notes of a program, in the continuation": ("notes repeated", "{:.0%}"),
    "step size of the top notes, relative to the seed": ("step, ratio", "{:.2f}"),
    "simultaneous voices, relative to the seed": ("voices, ratio", "{:.2f}"),
    "notes per onset and program, relative to the seed": ("chord, ratio", "{:.2f}"),
    "notes per bar, relative to the seed": ("notes a bar, ratio", "{:.2f}"),
    "programs playing together, relative to the seed": ("players, ratio", "{:.2f}"),
    "drums' share of the notes, in seeds with drums": ("drums' share, seed", "{:.2f}"),
    "drums' share of the notes, in the continuation": ("drums' share", "{:.2f}"),
    "bars repeating an earlier one note for note": ("bars that came before", "{:.0%}"),
    "last bar ends on the tonic": ("ends on the tonic", "{:.0%}"),
    "continuations with a collapse finding": ("collapse findings", "{:.0%}"),
    "NLL of its own tokens, nats per token": ("nats a token", "{:.2f}"),
}
"""What the card shows of `benchmarks/continuations.py`, by its name on the card: its name there and its format."""


class Source(NamedTuple):
    """A set of music: what it is, its licence, and whom to name."""

    what: str
    licence: str
    credit: str


def model_card(
    checkpoint: Checkpoint, scores: dict[str, Any], corpus: Corpus, sources: Mapping[str, Source]
) -> str:
    """The model card, from what was measured."""
    config, stages = checkpoint.config, [*scores["before"], checkpoint.training]
    text = CARD.read_text(encoding="utf-8")
    lines = ["| set | what it is | licence | held-out pieces | nats/token | nats/note | 5-gram, nats/token |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, score in scores["sets"].items():
        source = sources.get(name, Source("all of them", "", ""))
        model, judge = score["model"], score["5-gram"]
        token, note = model["nats_per_token"], model["nats_per_note"]
        lines.append(
            f"| {name} | {source.what} | {source.licence} | {model['pieces']} "
            f"| {token['value']:.3f} [{token['low']:.3f}, {token['high']:.3f}] | {note['value']:.2f} "
            f"| {judge['nats_per_token']['value']:.3f} |"
        )
    pieces = corpus.pieces("train")
    return text.format(
        kind=config.kind,
        hidden=config.hidden_size,
        parameters=f"{checkpoint.model.parameter_count():,}",
        pieces=f"{len(pieces):,}",
        tokens=f"{pieces.tokens / 1e6:.1f} million",
        passes=" and then ".join(
            f"{stage['epochs']:.2f} passes in {stage['seconds'] / 60:.0f} minutes" for stage in stages
        ),
        commands="\n".join(training_commands(stages)),
        version=melodia.__version__,
        date=scores["date"],
        table="\n".join(lines),
        contest=contest_table(scores["contest"]),
        **{
            f"continued_{name}": table for name, table in continuation_tables(scores["continuations"]).items()
        },
        credits=credits_of(scores["sets"], sources),
    )


def credits_of(sets: Iterable[str], sources: Mapping[str, Source]) -> str:
    """A line for each set that has a source: whom its music is of, under which licence."""
    return "\n".join(
        f"- {name}: {sources[name].credit} ({sources[name].licence})" for name in sets if name in sources
    )


def training_commands(stages: Iterable[Mapping[str, Any]]) -> list[str]:
    r"""The commands that trained the model, one for each of its trainings, which began where the one before ended.

    >>> settings = {"minutes": 5.0, "learning_rate": 0.005, "program_probability": 0.5, "repeat_probability": 0.15}
    >>> print("\n".join(training_commands([{"settings": settings}])))
        torchrun --nproc-per-node 2 benchmarks/bundled_model.py train ARRANGED --out RUN1 --minutes 5 \
            --learning-rate 0.005 --program-probability 0.5 --repeat-probability 0.15
    """
    lines = []
    for number, stage in enumerate(stages, start=1):
        settings = stage["settings"]
        begun = f" --init RUN{number - 1}" if number > 1 else ""
        lines += [
            "    torchrun --nproc-per-node 2 benchmarks/bundled_model.py train ARRANGED "
            f"--out RUN{number}{begun} --minutes {settings['minutes']:g} \\",
            f"        --learning-rate {settings['learning_rate']:g} "
            f"--program-probability {settings['program_probability']:g} "
            f"--repeat-probability {settings['repeat_probability']:g}",
        ]
    return lines


def contest_table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| trained from nothing | parameters | minutes | passes | nats/token | nats/note |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        token, note = row["nats_per_token"], row["nats_per_note"]
        lines.append(
            f"| {row['name']} | {row['parameters']:,} | {row['minutes']:.0f} | {row['epochs']:.2f} "
            f"| {token['value']:.3f} [{token['low']:.3f}, {token['high']:.3f}] | {note['value']:.2f} |"
        )
    return "\n".join(lines)


def continuation_means(files: Iterable[Path]) -> dict[str, Any]:
    """What the card needs of reports of `benchmarks/continuations.py`: of each the means over pieces, by file name."""
    means: dict[str, Any] = {}
    for file in files:
        sets = json.loads(file.read_text(encoding="utf-8"))
        means[file.stem] = {
            name: {"pieces": len(rows)} | {column: _mean(rows, column) for column, _ in CONTINUED.values()}
            for name, rows in sets.items()
        }
    return means


def _mean(rows: Mapping[str, Mapping[str, float | None]], column: str) -> float | None:
    """The mean of a column over the pieces that have it."""
    values = [value for row in rows.values() if (value := row.get(column)) is not None]
    return sum(values) / len(values) if values else None


def continuation_tables(means: Mapping[str, Any]) -> dict[str, str]:
    """Tables of what follows held-out beginnings, beside the pieces themselves, and of what follows whole pieces."""
    first = next(iter(means.values()))
    columns = {
        "pieces": {name: found["held-out"] for name, found in means.items()}
        | {"the pieces themselves": first["real"]},
        "whole": {name: found["whole"] for name, found in means.items()},
    }
    return {name: _continuation_table(found) for name, found in columns.items()}


def _continuation_table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    count = next(iter(columns.values()))["pieces"]
    lines = [f"| {count} pieces | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for title, (column, form) in CONTINUED.items():
        values = [found[column] for found in columns.values()]
        shown = ("" if value is None else form.format(value) for value in values)
        if any(value is not None for value in values):
            lines.append(f"| {title} | " + " | ".join(shown) + " |")
    return "\n".join(lines)
