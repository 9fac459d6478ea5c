"""`melodia train CORPUS --out DIR`: a folder of MIDI files becomes a model."""

from __future__ import annotations

from pathlib import Path

import typer

from melodia.cli.choice import Backend, BatchSize, Device, Window
from melodia.cli.loading import loading
from melodia.cli.output import tell


def train(
    corpus: Path = typer.Argument(
        ...,
        metavar="CORPUS",
        help="A folder of MIDI files (sub-folders are searched too). If it has sub-folders train/ and valid/, those "
        "say what is trained on and what is held out.",
    ),
    out: Path = typer.Option(
        ..., "--out", metavar="DIR", help="Folder for the training run; the checkpoint is in DIR/best."
    ),
    kind: str | None = typer.Option(
        None, help="lstm, gru, sequential, reversed, parallel (default) or bidirectional."
    ),
    size: str | None = typer.Option(
        None,
        help="tiny, small (default), base or large (128, 256, 512, 1024 hidden units).",
    ),
    combine: str | None = typer.Option(None, help="For a parallel model: concat, sum or gated."),
    encoder: str | None = typer.Option(None, help="For a bidirectional model: lstm or gru."),
    minutes: float | None = typer.Option(None, help="Budget in minutes (20 if no budget is given)."),
    epochs: float | None = typer.Option(None, help="Budget in passes over the corpus."),
    device: Device = "auto",
    backend: Backend = "auto",
    resume: bool = typer.Option(
        False,
        "--resume",
        help="Resume the interrupted run in --out; its options are remembered, only the budget may change.",
    ),
    init: Path | None = typer.Option(
        None,
        "--init",
        metavar="DIR",
        help="Fine-tune this checkpoint, with its model and its tokenizer; bundled: the model that comes with melodia.",
    ),
    scheme: str | None = typer.Option(
        None, "--tokenizer", help="REMI (default), TSD, MIDILike, Structured or PerTok."
    ),
    bpe: int | None = typer.Option(
        None, min=1, help="Learn a byte-pair encoding with a vocabulary of up to this size."
    ),
    side_inputs: str | None = typer.Option(
        None,
        help="Extra inputs of the first layer, separated by commas, or none (default: "
        "position,bars_left,lookback1,lookback2,density).",
    ),
    dropout: float | None = typer.Option(
        None,
        help="Share of the units that are dropped while training (default: 0.1, 0.2, 0.3 or 0.4 by size, or that of "
        "--init).",
    ),
    batch_size: BatchSize = None,
    window: Window = None,
    learning_rate: float | None = typer.Option(
        None, help="Peak learning rate (default: 0.006; with --init, 0.0006)."
    ),
    precision: str = typer.Option(
        "auto",
        help="fp32, bf16, or auto: bf16 where the processor multiplies it faster (AMX, AVX512-BF16).",
    ),
    recompute: bool = typer.Option(
        False,
        "--recompute",
        help="Recompute the gates in the backward pass: half the memory, a quarter more time.",
    ),
    threads: int | None = typer.Option(None, help="CPU threads."),
    workers: int | None = typer.Option(None, min=1, help="Processes that read the corpus."),
    random_seed: int | None = typer.Option(
        None, help="Seed for the weights, the order of pieces and the augmentation (default: 0)."
    ),
    cache: Path | None = typer.Option(
        None, "--cache", metavar="DIR", help="Folder that caches the token shards."
    ),
    force: bool = typer.Option(False, "--force", help="Replace a training run that is already in --out."),
) -> None:
    """Train a model on a folder of MIDI files, then continue three pieces it has not seen."""
    if minutes is not None and epochs is not None:
        raise typer.BadParameter("give --minutes or --epochs, not both")
    if resume and init is not None:
        raise typer.BadParameter("give --resume or --init, not both")
    if resume and force:
        raise typer.BadParameter("give --resume (continue) or --force (start over), not both")
    if learning_rate is not None and learning_rate <= 0:
        raise typer.BadParameter(f"--learning-rate must be above 0 (received {learning_rate:g})")

    with loading():
        from melodia.cli.progress import ConsoleProgress
        from melodia.training.memory import keep_freed_memory
        from melodia.workflows.train import train_folder

    keep_freed_memory()

    optional = {
        "minutes": minutes,
        "epochs": epochs,
        "batch_size": batch_size,
        "window": window,
        "learning_rate": learning_rate,
        "recompute": recompute or None,
        "threads": threads,
        "random_seed": random_seed,
    }
    sides = None
    if side_inputs is not None:
        sides = () if side_inputs == "none" else tuple(name.strip() for name in side_inputs.split(","))
    with ConsoleProgress("train") as progress:
        result = train_folder(
            corpus,
            out,
            kind=kind,
            size=size,
            combine=combine,
            encoder=encoder,
            side_inputs=sides,
            dropout=dropout,
            scheme=scheme,
            bpe=bpe,
            training={name: value for name, value in optional.items() if value is not None}
            | {"device": device, "precision": precision},
            backend=backend,
            resume=resume,
            init=init,
            workers=workers,
            cache=cache,
            force=force,
            progress=progress,
        )
    for line in result.lines():
        tell(line)
