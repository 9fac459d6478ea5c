"""The model that comes with melodia: how it was made, scored and packed.

    python benchmarks/bundled_model.py train CORPORA --out RUN1 --minutes 75
    python benchmarks/bundled_model.py train CORPORA --init RUN1 --out RUN --minutes 65
    for name in "as recommended:" "one draw:--branches 1 --recall 0"; do
        python -m benchmarks.continuations --model RUN --weights int8 --whole midi_samples --pieces CORPORA/valid \
            --times 3 ${name#*:} --json "${name%:*}.json"
    done
    python benchmarks/bundled_model.py score CORPORA --model RUN --before RUN1 --contest RUNS --out SCORES \
        --continuations "as recommended.json" "one draw.json"
    python benchmarks/bundled_model.py pack CORPORA --model RUN --scores SCORES --notices NOTICES.txt

CORPORA holds train/SET/*.mid and valid/SET/*.mid. `train` may run in several processes:
`torchrun --nproc-per-node 2 benchmarks/bundled_model.py train ...`. SET is the name of a set of music; each needs a
line in `SETS` below, since music whose licence is not known is not learned from.

SCORES is `benchmarks/bundled_model.json`. The contest of the model card, which `score` reads from RUNS: kinds of one
size and the transformer, trained from nothing for the same time, all at once on the same processor, one thread each.

    for kind in parallel lstm gru; do
        python benchmarks/bundled_model.py train CORPORA --kind $kind --out RUNS/$kind --minutes 50 --threads 1 &
    done
    python benchmarks/transformer.py CORPORA --parameters 7743581 --minutes 50 --threads 1 > RUNS/transformer.json &
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from melodia.corpus.shards import Corpus, Piece
from melodia.errors import CorpusError, MelodiaError
from melodia.evaluation.likelihood import model_likelihood
from melodia.evaluation.ngram import KneserNey
from melodia.measure import Likelihood
from melodia.model import KINDS
from melodia.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from melodia.model.sizes import match_parameters, parameter_count
from melodia.model.stored import NOTICES
from melodia.sampler.loading import bundled_folder
from melodia.training import TrainingConfig, join, train
from melodia.training.config import PRECISIONS
from melodia.training.lock import only_training
from melodia.training.memory import keep_freed_memory
from melodia.workflows.corpora import open_corpus
from melodia.workflows.originality import index_corpus
from melodia.workflows.train import model_settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks only beside it

from benchmarks.bundled_card import Source, continuation_means, credits_of, model_card

KIND, HIDDEN = "parallel", 608
TRAINING: dict[str, Any] = {
    "precision": "bf16",
    "batch_size": 32,
    "window": 256,
    "learning_rate": 5e-3,
    "patience": None,
    "eval_every": 1 << 30,  # once, at the end: the held-out pieces take minutes
}


_NIFC = "the Fryderyk Chopin Institute (https://nifc.pl)"
SETS = {
    "openscore-lieder": Source(
        "songs with piano",
        "CC0 1.0",
        "OpenScore Lieder Corpus, https://github.com/OpenScore/Lieder",
    ),
    "quartets": Source(
        "string quartets",
        "CC0 1.0",
        "OpenScore String Quartets, https://github.com/OpenScore/StringQuartets",
    ),
    "mutopia-piano": Source(
        "piano, harpsichord and organ",
        "public domain",
        "Mutopia Project (public-domain editions), https://www.mutopiaproject.org",
    ),
    "mutopia-ensemble": Source(
        "chamber, orchestral, choral and guitar music",
        "public domain",
        "Mutopia Project (public-domain editions), https://www.mutopiaproject.org",
    ),
    "mutopia-ccby": Source(
        "keyboard music, much of it Swedish folk dances",
        "CC BY 2.5, 3.0, 4.0",
        "Keyboard editions from the Mutopia Project, https://www.mutopiaproject.org, by their typesetters; "
        "converted to MIDI",
    ),
    "polish-piano": Source(
        "Polish piano music",
        "CC BY 4.0",
        f"Polish Music Heritage in Open Access, Copyright 2019-2022 {_NIFC}, https://polishscores.org, "
        "https://github.com/pl-wnifc/humdrum-polish-scores; converted to MIDI",
    ),
    "chopin-piano": Source(
        "Chopin's piano works",
        "CC BY 4.0",
        f"First Editions of Fryderyk Chopin's Music, Copyright 2017-2021 {_NIFC}, https://chopinscores.org, "
        "https://github.com/pl-wnifc/humdrum-chopin-first-editions; converted to MIDI",
    ),
    "freedoom-multitrack": Source(
        "game music for many instruments",
        "BSD-3-Clause",
        "Music from Freedoom, Copyright 2001-2024 Contributors to the Freedoom project",
    ),
    "groove-drums": Source(
        "drums, played by people",
        "CC BY 4.0",
        "Groove MIDI Dataset (Gillick, Roberts, Engel, Eck, Bamman; Google), "
        "https://magenta.tensorflow.org/datasets/groove",
    ),
    "arrangements": Source(
        "pieces of the other sets for other instruments, grooves under them (`benchmarks/arrangements.py`)",
        "CC BY 4.0",
        "made of the sets above",
    ),
}
CREDITS = """The weights in this folder were trained on this music:

{}

{}"""


def main() -> int:
    """Parse, do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "score", "pack"):
        command = commands.add_parser(name)
        command.add_argument("corpora", type=Path, metavar="CORPORA")
        command.add_argument("--cache", type=Path, default=None, help="where token shards are kept")
    add = commands.choices["train"].add_argument
    add("--out", type=Path, required=True)
    add("--minutes", type=float, default=75.0)
    add("--kind", choices=KINDS, default=KIND, help=f"others get as many parameters as {KIND}")
    add("--threads", type=int, default=None)
    add(
        "--init",
        type=Path,
        default=None,
        help="go on from this checkpoint, with a new course of the learning rate",
    )
    add("--learning-rate", type=float, default=TRAINING["learning_rate"])
    add(
        "--precision",
        choices=PRECISIONS,
        default=TRAINING["precision"],
        help="fp32 is faster without AVX-512",
    )
    add("--dropout", type=float, default=0.0, help="before the head")
    add("--weight-drop", type=float, default=0.0, help="of recurrent weights")
    add(
        "--program-probability",
        type=float,
        default=0.0,
        help="share of passes in which other instruments play",
    )
    add(
        "--repeat-probability",
        type=float,
        default=0.0,
        help="share of passes in which a piece is played twice",
    )
    add("--resume", action="store_true")
    for name in ("score", "pack"):
        commands.choices[name].add_argument("--model", type=Path, required=True)
    commands.choices["score"].add_argument("--out", type=Path, required=True, metavar="JSON")
    commands.choices["score"].add_argument(
        "--before",
        type=Path,
        nargs="*",
        default=[],
        metavar="RUN",
        help="the trainings that this one went on from, the first one first",
    )
    commands.choices["score"].add_argument(
        "--contest",
        type=Path,
        required=True,
        metavar="RUNS",
        help="or the scores that hold an earlier contest",
    )
    commands.choices["score"].add_argument(
        "--continuations",
        type=Path,
        nargs="+",
        required=True,
        metavar="JSON",
        help="reports of continuations.py, each a column of the card with its file's name",
    )
    add = commands.choices["pack"].add_argument
    add("--scores", type=Path, required=True, metavar="JSON")
    add("--notices", type=Path, required=True, help="the licence texts that must go with the weights")
    arguments = parser.parse_args()
    try:
        {"train": run_training, "score": run_scoring, "pack": run_packing}[arguments.command](arguments)
    except MelodiaError as error:
        print(f"bundled_model.py: {error}", file=sys.stderr)
        return 1
    return 0


def run_training(arguments: argparse.Namespace) -> None:
    """Train from scratch, or go on from a checkpoint."""
    keep_freed_memory()
    names = ("learning_rate", "precision", "program_probability", "repeat_probability")
    settings = TRAINING | {name: getattr(arguments, name) for name in names}
    config = TrainingConfig(minutes=arguments.minutes, threads=arguments.threads, **settings)
    with join("cpu") as world, only_training(arguments.out, world):
        corpus = open_corpus(arguments.corpora, cache=arguments.cache, world=world)
        dropouts = {"dropout": arguments.dropout, "weight_drop": arguments.weight_drop}
        if arguments.init is None:
            ours, model = (
                replace(
                    model_settings(corpus.vocabulary, kind, "base"),
                    hidden_size=HIDDEN,
                    embedding_size=HIDDEN,
                    **dropouts,
                )
                for kind in (KIND, arguments.kind)
            )
            model = match_parameters(model, parameter_count(ours))
        else:
            model = replace(load_checkpoint(arguments.init).config, **dropouts)
        summary = train(
            corpus, model, config, arguments.out, resume=arguments.resume, init=arguments.init, world=world
        )
        if world.leads:
            print(summary)


def held_out(corpus: Corpus) -> dict[str, list[Piece]]:
    """The held-out pieces of each set.

    Raises:
        CorpusError: music of a set that `SETS` does not know.
    """
    rows = corpus.rows()
    for row in rows:
        if row.path.split("/")[1] not in SETS:
            raise CorpusError(f"{row.path}: a set that has no line in SETS; say what its licence is")
    sets: dict[str, list[Piece]] = {}
    for piece in corpus.pieces("valid"):
        sets.setdefault(rows[piece.row].path.split("/")[1], []).append(piece)
    return dict(sorted(sets.items()))


def run_scoring(arguments: argparse.Namespace) -> None:
    """The network and the 5-gram on every set's held-out pieces."""
    corpus = open_corpus(arguments.corpora, cache=arguments.cache)
    sets = held_out(corpus)
    checkpoint = load_checkpoint(arguments.model)
    scores: dict[str, Any] = {"date": date.today().isoformat(), "sets": {}}
    scores["before"] = [load_checkpoint(run).training for run in arguments.before]
    train_pieces = list(corpus.pieces("train"))
    judge = KneserNey.train(
        [piece.tokens for piece in train_pieces],
        corpus.vocabulary,
        order=5,
        constant_velocity=[piece.constant_velocity for piece in train_pieces],
    )
    everything = [piece for pieces in sets.values() for piece in pieces]
    network = likelihood_of(checkpoint, everything)
    ngram = judge.nll(
        [piece.tokens for piece in everything],
        constant_velocity=[piece.constant_velocity for piece in everything],
    )
    start = 0
    for name, pieces in [*sets.items(), ("all", everything)]:
        part = slice(0, None) if name == "all" else slice(start, start + len(pieces))
        scores["sets"][name] = {
            "model": _part(network, part).to_dict(),
            "5-gram": _part(ngram, part).to_dict(),
        }
        start += len(pieces)
    if arguments.contest.is_file():
        scores["contest"] = json.loads(arguments.contest.read_text(encoding="utf-8"))["contest"]
    else:
        scores["contest"] = contest(arguments.contest, everything)
    scores["continuations"] = continuation_means(arguments.continuations)
    arguments.out.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"all": scores["sets"]["all"], "contest": scores["contest"]}, indent=1))


def contest(runs: Path, pieces: list[Piece]) -> list[dict[str, Any]]:
    """What was trained for the same time, the best first: networks of any kind, and the transformer's own report."""
    rows = []
    for folder in sorted(path for path in runs.iterdir() if path.is_dir()):
        checkpoint = load_checkpoint(folder)
        training = checkpoint.training
        rows.append(
            {
                "name": f"{checkpoint.config.kind}, {checkpoint.config.hidden_size} units",
                "parameters": checkpoint.model.parameter_count(),
                "minutes": training["settings"]["minutes"],
                "epochs": training["epochs"],
                **likelihood_of(checkpoint, pieces).to_dict(),
            }
        )
    transformer = runs / "transformer.json"
    if transformer.exists():
        report = json.loads(transformer.read_text(encoding="utf-8"))
        if report["pieces"] != len(pieces):
            raise CorpusError(
                f"{transformer}: scored on {report['pieces']} pieces, here are {len(pieces)}; train it on this corpus"
            )
        name = f"transformer, {report['layers']} layers of {report['width']}"
        rows.append({"name": name, **report})
    return sorted(rows, key=lambda row: row["nats_per_token"]["value"])


def likelihood_of(checkpoint: Checkpoint, pieces: Sequence[Piece]) -> Likelihood:
    """How well a checkpoint's network predicts pieces."""
    return model_likelihood(
        checkpoint.model,
        checkpoint.vocabulary,
        [piece.tokens for piece in pieces],
        constant_velocity=[piece.constant_velocity for piece in pieces],
    )


def _part(likelihood: Likelihood, part: slice) -> Likelihood:
    return Likelihood(likelihood.nats[part], likelihood.tokens[part], likelihood.notes[part])


def run_packing(arguments: argparse.Namespace) -> None:
    """Write the checkpoint, its originality index, its card and the notices into the package."""
    corpus = open_corpus(arguments.corpora, cache=arguments.cache)
    checkpoint = load_checkpoint(arguments.model)
    scores = json.loads(arguments.scores.read_text(encoding="utf-8"))
    card = model_card(checkpoint, scores, corpus, SETS)

    def write_more(folder: Path) -> None:
        (folder / "README.md").write_text(card, encoding="utf-8")
        licences = arguments.notices.read_text(encoding="utf-8")
        notices = CREDITS.format(credits_of(scores["sets"], SETS), licences)
        (folder / NOTICES).write_text(notices, encoding="utf-8")

    folder = save_checkpoint(
        bundled_folder(),
        checkpoint.model,
        vocabulary=checkpoint.vocabulary,
        tokenizer_json=checkpoint.tokenizer_json,
        training=checkpoint.training,
        corpus_fingerprint=checkpoint.corpus_fingerprint,
        weights="bf16",
        write_more=write_more,
    )
    print("\n".join(index_corpus(corpus, folder).lines()))


if __name__ == "__main__":
    sys.exit(main())
