"""The paper's table: log-likelihood of frames on JSB Chorales, Nottingham, MuseData and Piano-midi, for all kinds.

    python benchmarks/polyphony.py train FOLDER --out RUNS   # all sets, heads, kinds, seeds; goes on where it stopped
    python benchmarks/polyphony.py train FOLDER --out RUNS --sets jsb_chorales --heads notes --kinds sequential
    python benchmarks/polyphony.py score RUNS --test jsb_chorales=TEST_FILE ...
    python benchmarks/polyphony.py table RUNS --write benchmarks/POLYPHONY.md   # and .json, every run's figures

FOLDER holds `jsb_chorales.json.gz` and so on: {"train": [sequence], "valid": [sequence]}, a sequence a list of frames,
a frame the ascending MIDI pitches in it (the splits of Boulanger-Lewandowski et al. 2012); a test file has the same
form and a part named "test". The heads are described in `benchmarks/frame_heads.py`.

Figures are nats a frame. Papers average in two ways, over all frames or over sequences first, and count the first frame
of a sequence or not; all four stand in the table. Hyper-parameters were chosen on the validation parts alone. What
`table` finds in the JSON beside its page, of runs that are not in RUNS and were made with the settings of today, it
keeps, so that more random seeds can be added another day.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks only beside it

from benchmarks.frame_heads import HEADS, VOCABULARY, Example, Head, Pieces, build, hidden_for
from benchmarks.frames import load, transposed
from melodia.model import KINDS, Model
from melodia.model import state as states
from melodia.training import TrainingConfig
from melodia.training.optimiser import AveragedWeights, make_optimiser
from melodia.training.streams import LaneStream, stack_windows

SETS = ("jsb_chorales", "nottingham", "musedata", "piano_midi")
PARAMETERS = 250_000
WINDOW = {"bernoulli": 128, "notes": 400}  # steps between two updates
VALIDATIONS = 12  # over the whole budget
PATIENCE = 4  # validations without a better result


@dataclass(frozen=True)
class Settings:
    """How a set is learned; one family for all kinds.

    Attributes:
        epochs: at most so many passes over the training part.
        learning_rate: the highest.
        batch_size: lanes.
        dropout, embedding_dropout, weight_drop: see `ModelConfig`.
        weight_decay: of AdamW.
        layer_norm: above every level; models of a single level have none where notes are predicted (as in presets;
            independent pitches want it all the same: JSB Chorales 7.80, 7.90 without).
    """

    epochs: float
    learning_rate: float
    batch_size: int = 16
    dropout: float = 0.3
    embedding_dropout: float = 0.1
    weight_drop: float = 0.2
    weight_decay: float = 0.05
    layer_norm: bool = True


_SMALL, _LARGE = {"batch_size": 8}, {"dropout": 0.15, "embedding_dropout": 0.0, "weight_drop": 0.1}
SETTINGS = {
    ("jsb_chorales", "bernoulli"): Settings(epochs=24, learning_rate=4e-3, **_SMALL),
    ("jsb_chorales", "notes"): Settings(epochs=32, learning_rate=6e-3, **_SMALL),
    ("nottingham", "bernoulli"): Settings(epochs=8, learning_rate=6e-3, **_LARGE),
    ("nottingham", "notes"): Settings(epochs=2, learning_rate=8e-3, layer_norm=False, **_LARGE),
    ("musedata", "bernoulli"): Settings(epochs=6, learning_rate=6e-3, **_LARGE),
    ("musedata", "notes"): Settings(epochs=2, learning_rate=8e-3, **_LARGE),
    ("piano_midi", "bernoulli"): Settings(epochs=12, learning_rate=4e-3, **_SMALL),
    ("piano_midi", "notes"): Settings(epochs=6, learning_rate=6e-3, **_SMALL),
}


def main() -> int:
    """Parse, do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("train").add_argument
    add("folder", type=Path, metavar="FOLDER")
    add("--out", type=Path, required=True, metavar="RUNS")
    add("--sets", default=",".join(SETS))
    add("--heads", default=",".join(HEADS))
    add("--kinds", default=",".join(KINDS))
    add("--random-seeds", default="0,1,2")
    add("--epochs", type=float, default=None, help="for each run, instead of the set's own")
    add("--parameters", type=int, default=PARAMETERS)
    add("--transpose", action="store_true", help="move sequences by -5 to +6 semitones; reported apart")
    add("--threads", type=int, default=None)
    add("--watch", action="store_true", help="print every validation")
    add = commands.add_parser("score").add_argument
    add("runs", type=Path, metavar="RUNS")
    add("--test", action="append", default=[], required=True, metavar="SET=FILE")
    add = commands.add_parser("table").add_argument
    add("runs", type=Path, metavar="RUNS")
    add("--write", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    try:
        {"train": train_all, "score": score_all, "table": write_table}[arguments.command](arguments)
    except (ValueError, OSError) as error:
        print(f"polyphony.py: {error}", file=sys.stderr)
        return 1
    return 0


def train_all(arguments: argparse.Namespace) -> None:
    """Every run that is not in the folder yet."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    wanted = {name: getattr(arguments, name).split(",") for name in ("sets", "heads", "kinds")}
    for name, known in (("sets", SETS), ("heads", tuple(HEADS)), ("kinds", KINDS)):
        if unknown := set(wanted[name]) - set(known):
            raise ValueError(f"--{name} are {', '.join(known)} (received {', '.join(sorted(unknown))})")
    seeds = [int(text) for text in arguments.random_seeds.split(",")]
    for seed in seeds:
        for name in wanted["sets"]:
            parts = load(arguments.folder / f"{name}.json.gz")
            for head_name in wanted["heads"]:
                for kind in wanted["kinds"]:
                    label = "-".join(
                        [name, head_name, kind, *(["transposed"] if arguments.transpose else []), str(seed)]
                    )
                    if (arguments.out / f"{label}.json").is_file():
                        continue
                    settings = SETTINGS[name, head_name]
                    if arguments.epochs is not None:
                        settings = replace(settings, epochs=arguments.epochs)
                    run = Run(
                        parts,
                        head_name,
                        kind,
                        settings,
                        arguments.parameters,
                        seed,
                        arguments.transpose,
                        arguments.watch,
                    )
                    result, model = run.train()
                    arguments.out.mkdir(parents=True, exist_ok=True)
                    save_file(dict(model.state_dict()), arguments.out / f"{label}.safetensors")
                    facts = {"set": name, "head": head_name, "kind": kind, "random_seed": seed, **result}
                    (arguments.out / f"{label}.json").write_text(json.dumps(facts, indent=1) + "\n")
                    print(label, json.dumps(result["valid"]), flush=True)


class Run:
    """One training: parts of a set, a head, a kind."""

    def __init__(
        self,
        parts: dict[str, list[list[tuple[int, ...]]]],
        head_name: str,
        kind: str,
        settings: Settings,
        parameters: int,
        random_seed: int,
        transpose: bool,
        watch: bool = False,
    ) -> None:
        self.settings, self.random_seed, self.transpose, self.watch = settings, random_seed, transpose, watch
        self.train_sequences, valid = parts["train"], parts["valid"]
        known = [*self.train_sequences, *valid]
        if transpose:
            known += [transposed(s, shift) for s in self.train_sequences for shift in range(-5, 7)]
        self.head: Head = HEADS[head_name](known)
        self.window = WINDOW[head_name]
        self.valid = [self.head.example(sequence) for sequence in valid]
        self.options = {
            "kind": kind,
            "dropout": settings.dropout,
            "embedding_dropout": settings.embedding_dropout if head_name == "notes" else 0.0,
            "weight_drop": settings.weight_drop,
            "layer_norm": settings.layer_norm
            and (head_name == "bernoulli" or kind not in ("parallel", "bidirectional")),
        }
        self.hidden = hidden_for(self.head, self.options, parameters)
        self.model = build(self.head, self.options, self.hidden, random_seed)
        self.config = TrainingConfig(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            random_seed=random_seed,
        )

    def prepare(self, example: Example, epoch: int, number: int) -> Any:
        """What a lane reads: the passage of a piece in an epoch."""
        if not self.transpose:
            return example.passage
        shift = np.random.default_rng([self.random_seed, epoch, number]).integers(-5, 7)
        return self.head.example(transposed(self.train_sequences[number], int(shift))).passage

    def train(self) -> tuple[dict[str, Any], Model]:
        """Train until epochs or patience run out; the best weights and what they reach."""
        config, model = self.config, self.model
        optimiser, average = make_optimiser(model, config), AveragedWeights(model, 0.995)

        class Prepare(SimpleNamespace):
            """`LaneStream`'s idea of a preparer."""

            def __call__(preparer, piece: Example, epoch: int, number: int) -> Any:  # noqa: N805
                return self.prepare(piece, epoch, number)

            def repeats(preparer, epoch: int, number: int) -> bool:  # noqa: N805
                return False

        pieces = Pieces([self.head.example(sequence) for sequence in self.train_sequences])
        lanes = min(config.batch_size, len(pieces))
        stream = LaneStream(
            pieces,  # type: ignore[arg-type]
            Prepare(vocabulary=VOCABULARY),  # type: ignore[arg-type]
            lanes=lanes,
            window=self.window,
            random_seed=config.random_seed,
        )
        state = model.initial_state(lanes)
        parameters = list(model.parameters())
        generator = torch.Generator().manual_seed(self.random_seed)
        best: dict[str, Any] = {"frame": math.inf}
        weights: dict[str, torch.Tensor] = {}
        budget, spent, validated = self.settings.epochs * stream.steps_per_epoch, 0, 0
        began, processor = time.perf_counter(), time.process_time()
        iteration = misses = 0
        while spent < budget and misses < PATIENCE:
            model.train()
            batch = stream.next()
            tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
            side = None if batch.side is None else torch.from_numpy(batch.side)
            state = states.reset(states.detach(state), torch.from_numpy(batch.starts))
            logits, state = model(tokens, side, state, torch.from_numpy(batch.lengths), generator=generator)
            (self.head.nll(logits, tokens, targets).sum() / batch.scored).backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate_at(spent / budget)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            iteration += 1
            average.update(iteration)
            spent += int(batch.lengths.sum())
            if spent * VALIDATIONS >= (validated + 1) * budget:
                validated = int(spent * VALIDATIONS / budget)
                result = score(average.model, self.head, self.valid)
                misses += 1
                if result["frame"] < best["frame"]:
                    best = {**result, "iteration": iteration, "epochs": spent / stream.steps_per_epoch}
                    weights, misses = {name: p.clone() for name, p in average.model.state_dict().items()}, 0
                if self.watch:
                    print(f"  {spent / stream.steps_per_epoch:.2f} epochs: {result['frame']:.4f}", flush=True)
        model.load_state_dict(weights)
        facts = {
            "valid": best,
            "parameters": model.parameter_count(),
            "hidden": self.hidden,
            "options": self.options,
            "settings": asdict(self.settings),
            "transposed": self.transpose,
            "iterations": iteration,
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - processor,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        return facts, model


@torch.no_grad()
def score(
    model: Model, head: Head, examples: Sequence[Example], lanes: int = 16, window: int = 1024
) -> dict[str, float]:
    """Nats a frame: over frames and over sequences, with and without the first frame of each."""
    model.eval()
    totals = []
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].frame))
    for start in range(0, len(order), lanes):
        group = [examples[i] for i in order[start : start + lanes]]
        state = model.initial_state(len(group))
        nats = [np.zeros(int(example.frame[-1]) + 1) for example in group]
        sizes = np.array([len(example.frame) for example in group])
        for offset in range(0, int(sizes.max()), window):
            going = np.flatnonzero(sizes > offset)
            if len(going) < len(group):
                state = states.select(state, going.tolist())
                group, nats_going = [group[i] for i in going], [nats[i] for i in going]
                totals += [nats[i] for i in range(len(nats)) if i not in set(going.tolist())]
                nats, sizes = nats_going, sizes[going]
            lengths = np.minimum(window, sizes - offset)
            batch = stack_windows(
                [example.passage for example in group],
                np.full(len(group), offset),
                lengths,
                VOCABULARY,  # type: ignore[arg-type]
            )
            tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
            side = None if batch.side is None else torch.from_numpy(batch.side)
            logits, state = model(tokens, side, state, torch.from_numpy(batch.lengths))
            each = head.nll(logits, tokens, targets).double().numpy()
            for lane, example in enumerate(group):
                at = example.frame[offset : offset + lengths[lane]]
                np.add.at(nats[lane], at, each[lane, : lengths[lane]])
        totals += nats
    rest = [nats[1:] for nats in totals if len(nats) > 1]
    return {
        "frame": float(np.concatenate(totals).mean()),
        "sequence": float(np.mean([nats.mean() for nats in totals])),
        "frame_without_first": float(np.concatenate(rest).mean()) if rest else math.nan,
        "sequence_without_first": float(np.mean([nats.mean() for nats in rest])) if rest else math.nan,
    }


def score_all(arguments: argparse.Namespace) -> None:
    """Score trained runs on files that were kept aside; the figures go into the runs' own files."""
    for text in arguments.test:
        name, _, file = text.partition("=")
        parts = load(Path(file))
        if name not in SETS or "test" not in parts:
            raise ValueError(f'--test takes SET=FILE, a file with a part "test" (received {text})')
        for path, facts in runs_in(arguments.runs):
            if facts["set"] != name:
                continue
            head: Head = HEADS[facts["head"]](parts["test"])
            model = build(head, facts["options"], facts["hidden"], 0)
            model.load_state_dict(load_file(path.with_suffix(".safetensors")))
            facts["test"] = score(model, head, [head.example(sequence) for sequence in parts["test"]])
            path.write_text(json.dumps(facts, indent=1) + "\n")
            print(path.stem, json.dumps(facts["test"]), flush=True)


def runs_in(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs of a folder."""
    found = False
    for path in sorted(folder.glob("*.json")):
        found = True
        yield path, json.loads(path.read_text())
    if not found:
        raise ValueError(f"{folder} holds no runs; make some with `train`")


def write_table(arguments: argparse.Namespace) -> None:
    """The page, and the figures behind it."""
    runs = {path.stem: facts for path, facts in runs_in(arguments.runs)}
    if arguments.write is None:
        print(page(list(runs.values())))
        return
    kept = arguments.write.with_suffix(".json")
    if kept.exists():
        runs = {name: facts for name, facts in json.loads(kept.read_text()).items() if of_today(facts)} | runs
    lines = (f"{json.dumps(name)}: {json.dumps(facts)}" for name, facts in sorted(runs.items()))
    kept.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    arguments.write.write_text(page(list(runs.values())), encoding="utf-8")


def of_today(facts: dict[str, Any]) -> bool:
    """Whether a run was made as `train` would make it now."""
    return bool(facts["settings"] == asdict(SETTINGS[facts["set"], facts["head"]]))


COLUMNS = ("frame", "sequence", "frame_without_first", "sequence_without_first")


def page(runs: list[dict[str, Any]]) -> str:
    """The runs as Markdown: a row for each set, head, kind and part, the mean over random seeds ± their deviation."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for facts in runs:
        for part in ("valid", "test"):
            if part in facts:
                moved = "yes" if facts["transposed"] else "no"
                key = (facts["set"], facts["head"], moved, part, facts["kind"])
                rows.setdefault(key, []).append(facts | {"figures": facts[part]})
    lines = [
        "# Frames of four sets, nats a frame (lower is better)",
        "",
        f"Written on {date.today().isoformat()} by `python benchmarks/polyphony.py table RUNS --write FILE`,",
        "the runs by `python benchmarks/polyphony.py train FOLDER --out RUNS` (what the columns mean stands there; the",
        "hyper-parameters, too: chosen on the validation parts, the same for all kinds, but that models of one level",
        "have no LayerNorm where notes are predicted).",
        f"torch {torch.__version__}, {platform.machine()}. Mean over random seeds ± standard deviation; n: how many.",
        "",
        "| set | head | transposed | part | kind | n | parameters | processor minutes | over frames | over sequences "
        "| over frames, without the first | over sequences, without the first |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(rows, key=lambda key: (SETS.index(key[0]), *key[1:4], _mean(rows[key], "frame")[0])):
        group = rows[key]
        minutes = np.mean([facts["processor_seconds"] for facts in group]) / 60
        form = "{:.3f} ± {:.3f}" if len(group) > 1 else "{:.3f}"
        cells = [form.format(*_mean(group, column)) for column in COLUMNS]
        lines.append(
            f"| {' | '.join(key)} | {len(group)} | {group[0]['parameters']:,} | {minutes:.1f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _mean(group: list[dict[str, Any]], column: str) -> tuple[float, float]:
    values = [facts["figures"][column] for facts in group]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


if __name__ == "__main__":
    sys.exit(main())
