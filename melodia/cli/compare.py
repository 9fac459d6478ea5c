"""`melodia compare CORPUS`: GRU, LSTM and their hybrids at equal size on your own music."""

from __future__ import annotations

from pathlib import Path

import typer

from melodia.cli.choice import Backend, BatchSize, Device, LearningRate, Window
from melodia.cli.loading import loading
from melodia.cli.output import tell


def compare(
    corpus: Path = typer.Argument(
        ..., metavar="CORPUS", help="A folder of MIDI files (sub-folders are searched too)."
    ),
    out: Path = typer.Option(..., "--out", metavar="DIR", help="Folder for the training runs and the table."),
    kinds: str = typer.Option(
        "lstm, gru, sequential, reversed, parallel, bidirectional",
        help="Kinds to train, separated by commas.",
    ),
    size: str = typer.Option(
        "small", help="Size of the LSTM whose parameter count the others match: tiny, small, base or large."
    ),
    minutes: float | None = typer.Option(None, help="Training time per kind, in minutes."),
    epochs: float | None = typer.Option(
        None, help="Training per kind, in passes over the corpus (1 if no budget is given)."
    ),
    without_side_inputs: bool = typer.Option(
        False, "--without-side-inputs", help="Add a row for the first kind without side inputs."
    ),
    trainings: int = typer.Option(
        1,
        help="Trainings of each kind, with random seeds from --random-seed on; with 2 or more, the intervals hold what "
        "another random seed changes.",
    ),
    batch_size: BatchSize = None,
    window: Window = None,
    learning_rate: LearningRate = None,
    device: Device = "auto",
    backend: Backend = "auto",
    threads: int | None = typer.Option(None, help="CPU threads."),
    random_seed: int = typer.Option(
        0, help="Seed for the weights, the order of pieces and the augmentation."
    ),
    cache: Path | None = typer.Option(
        None, "--cache", metavar="DIR", help="Folder that caches the token shards."
    ),
    force: bool = typer.Option(
        False,
        "--force",
        help="Retrain kinds that are already in --out; replace the table of another comparison.",
    ),
) -> None:
    """Train every kind at equal parameter count and print parameters, time per token and held-out NLL."""
    if minutes is not None and epochs is not None:
        raise typer.BadParameter("give --minutes or --epochs, not both")

    with loading():
        from melodia.cli.progress import ConsoleProgress
        from melodia.training.memory import keep_freed_memory
        from melodia.workflows.compare import compare_kinds

    keep_freed_memory()
    with ConsoleProgress("compare") as progress:
        table = compare_kinds(
            corpus,
            out,
            kinds=tuple(kind.strip() for kind in kinds.split(",")),
            size=size,
            training=(
                {"minutes": minutes} if minutes is not None else {"epochs": 1.0 if epochs is None else epochs}
            )
            | {"batch_size": batch_size, "window": window, "learning_rate": learning_rate}
            | {"device": device, "threads": threads, "random_seed": random_seed},
            without_side_inputs=without_side_inputs,
            trainings=trainings,
            backend=backend,
            cache=cache,
            force=force,
            progress=progress,
        )
    tell(table.markdown())
    tell(f"\nwrote {table.path}")
