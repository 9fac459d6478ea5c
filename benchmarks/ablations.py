"""What each option of a model and of its training is worth on held-out music, one changed at a time.

    python benchmarks/ablations.py train FOLDER --out RUNS/much --epochs 0.1
    python benchmarks/ablations.py train FEWER --out RUNS/little --epochs 8
    python benchmarks/ablations.py table RUNS/much RUNS/little --write benchmarks/ABLATIONS.md

FOLDER is a folder of MIDI, or of train/ and valid/. Every run reads the same pieces in the same order, as often, and
has as many parameters; a run that RUNS has already is not trained again. The difference to the run that changes nothing
is taken piece by piece; how far a run with another random seed lies from it says which differences are chance.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from melodia.errors import ConfigError, MelodiaError
from melodia.measure import Likelihood, difference
from melodia.model.checkpoint import load_checkpoint
from melodia.model.sizes import match_parameters, parameter_count
from melodia.training import Plan, Progress, Step, TrainingConfig, train
from melodia.training.memory import keep_freed_memory
from melodia.workflows.compare import held_out_likelihood
from melodia.workflows.corpora import open_corpus
from melodia.workflows.train import model_settings

KIND, HIDDEN = "parallel", 128
RESULT = "result.json"
BASE = "nothing changed"
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Change(NamedTuple):
    """What a run has that the others have not: fields of `ModelConfig` and of `TrainingConfig`."""

    model: Mapping[str, Any] = NOTHING
    training: Mapping[str, Any] = NOTHING


CHANGES = {
    BASE: Change(),
    "nothing but the random seed": Change(training={"random_seed": 1}),
    "dropout 0.2 between layers, one mask a sequence": Change({"dropout": 0.2}),
    "dropout 0.1 of embeddings": Change({"embedding_dropout": 0.1}),
    "weight-drop 0.2 on W_hh": Change({"weight_drop": 0.2}),
    "all three": Change({"dropout": 0.2, "embedding_dropout": 0.1, "weight_drop": 0.2}),
    "embedding and head tied": Change({"tie_weights": True}),
    "two levels": Change({"lstm_layers": 2, "gru_layers": 2}),
    "two levels, residual": Change({"lstm_layers": 2, "gru_layers": 2, "residual": True}),
    "LayerNorm": Change({"layer_norm": True}),
    "no side inputs": Change({"side_inputs": ()}),
    "no transposition": Change(training={"transpose_probability": 0.0}),
    "no averaging of weights": Change(training={"ema": 0.0}),
    "TBPTT over 64 steps, not 256": Change(training={"window": 64, "batch_size": 64}),
    "TBPTT over 512 steps, not 256": Change(training={"window": 512, "batch_size": 8}),
    "label smoothing 0.1": Change(training={"label_smoothing": 0.1}),
    "weight decay 0.1, not 0.01": Change(training={"weight_decay": 0.1}),
}
TRAINING: dict[str, Any] = {"batch_size": 16, "window": 256, "patience": None, "eval_every": 1 << 30}


def main() -> int:
    """Parse, do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("train").add_argument
    add("folder", type=Path, metavar="FOLDER")
    add("--out", type=Path, required=True, metavar="RUNS")
    add("--epochs", type=float, required=True, help="passes over the training pieces, of each run")
    add("--changes", default=None, metavar="I,J", help="only these, numbered from 0")
    add("--cache", type=Path, default=None, help="where token shards are kept")
    add("--threads", type=int, default=None)
    add = commands.add_parser("table").add_argument
    add("runs", type=Path, nargs="+", metavar="RUNS")
    add("--write", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    try:
        {"train": train_all, "table": write_table}[arguments.command](arguments)
    except (MelodiaError, OSError) as error:
        print(f"ablations.py: {error}", file=sys.stderr)
        return 1
    return 0


class Clock(Progress):
    """How long the processor is busy from the first update to the last, without reading and validation."""

    def __init__(self) -> None:
        self.began = self.seconds = 0.0

    def started(self, plan: Plan) -> None:
        """Time begins."""
        self.began = time.process_time()

    def stepped(self, step: Step) -> None:
        """Until here."""
        self.seconds = time.process_time() - self.began


def train_all(arguments: argparse.Namespace) -> None:
    """Every run that is not in the folder yet."""
    keep_freed_memory()
    corpus = open_corpus(arguments.folder, cache=arguments.cache)
    plain = model_settings(
        corpus.vocabulary, KIND, "small", hidden_size=HIDDEN, embedding_size=HIDDEN, dropout=0.0
    )
    numbered = {str(number): name for number, name in enumerate(CHANGES)}
    wanted = list(numbered) if arguments.changes is None else arguments.changes.split(",")
    if unknown := sorted(set(wanted) - set(numbered)):
        raise ConfigError(f"--changes are 0 to {len(CHANGES) - 1} (received {', '.join(unknown)})")
    for number in wanted:
        name, out = numbered[number], arguments.out / number.zfill(2)
        if (out / RESULT).is_file():
            continue
        change = CHANGES[name]
        model = match_parameters(replace(plain, **change.model), parameter_count(plain))
        config = TrainingConfig(
            **TRAINING | {"epochs": arguments.epochs, "threads": arguments.threads, **change.training}
        )
        clock = Clock()
        summary = train(corpus, model, config, out, progress=clock, force=True)
        scored = held_out_likelihood(corpus, load_checkpoint(summary.checkpoint).model)
        pieces = corpus.pieces("train")
        result = {
            "change": name,
            "parameters": summary.parameters,
            "epochs": arguments.epochs,
            "processor_seconds": clock.seconds,
            "train_pieces": len(pieces.originals),
            "train_tokens": int(pieces.lengths[pieces.originals].sum()),
            "nats": scored.nats.tolist(),
            "tokens": scored.tokens.tolist(),
            "notes": scored.notes.tolist(),
        }
        (out / RESULT).write_text(json.dumps(result) + "\n", encoding="utf-8")
        print(f"{name}: {scored.nats_per_token:.4f} nats/token, {clock.seconds:.0f} s", flush=True)


def write_table(arguments: argparse.Namespace) -> None:
    """The page."""
    text = page([results_in(folder) for folder in arguments.runs])
    if arguments.write is None:
        print(text)
    else:
        arguments.write.write_text(text, encoding="utf-8")


def results_in(folder: Path) -> list[dict[str, Any]]:
    """What the runs of a folder reached, in the order of `CHANGES`."""
    paths = sorted(folder.glob(f"*/{RESULT}"))
    results = [json.loads(path.read_text("utf-8")) for path in paths]
    if not results or results[0]["change"] != BASE:
        raise ConfigError(f"{folder} holds no run in which {BASE}; make it with `train`")
    return results


def page(tables: list[list[dict[str, Any]]]) -> str:
    """The tables as Markdown, the best run of each first."""
    lines = [
        "# What the options are worth",
        "",
        f"Written on {date.today().isoformat()} by `python benchmarks/ablations.py` (how: see there; torch",
        f"{torch.__version__}, {platform.machine()}): a {KIND} model of {HIDDEN} units, or as many parameters. Less is",
        "better; differences with 95 % bootstrap intervals over the held-out pieces. Time: of the processor while",
        f"training, against the run with {BASE}.",
    ]
    for results in tables:
        base = results[0]
        lines += [
            "",
            f"## {base['train_pieces']:,} pieces, {base['train_tokens'] / 1e6:.2f} million tokens, read "
            f"{base['epochs']:g} times; {len(base['nats'])} pieces held out",
            "",
            "| change | parameters | nats/token | nats/note | difference, nats/token | time |",
            "|---|---:|---:|---:|---|---:|",
        ]
        for result in sorted(results, key=lambda result: likelihood(result).nats_per_token):
            scored = likelihood(result)
            more = difference(scored, likelihood(base))
            cell = f"{more.value:+.3f} [{more.low:+.3f}, {more.high:+.3f}]"
            lines.append(
                f"| {result['change']} | {result['parameters']:,} | {scored.nats_per_token:.3f} "
                f"| {scored.nats_per_note:.2f} | {'' if result is base else cell} "
                f"| {result['processor_seconds'] / base['processor_seconds']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def likelihood(result: dict[str, Any]) -> Likelihood:
    """What a run gave to each held-out piece."""
    return Likelihood(*(np.array(result[name]) for name in ("nats", "tokens", "notes")))


if __name__ == "__main__":
    sys.exit(main())
