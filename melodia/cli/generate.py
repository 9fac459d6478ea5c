"""`melodia generate`: continue a MIDI file, or write music from nothing."""

from __future__ import annotations

from pathlib import Path

import typer

from melodia.cli.choice import (
    Audio,
    Backend,
    Chords,
    Device,
    Force,
    MinP,
    ModelFolder,
    PitchBias,
    Plot,
    RandomSeed,
    Recall,
    RepetitionPenalty,
    ScaleName,
    Temperature,
    TopK,
    TopP,
    Weights,
    program_numbers,
    sampling_of,
)
from melodia.cli.output import tell
from melodia.cli.words import is_given
from melodia.decode.config import RECOMMENDED

_SEED = "The seed: a MIDI file to continue (not a random number: that is --random-seed)."


def generate(
    context: typer.Context,
    seed: Path | None = typer.Option(None, "--seed", metavar="FILE", help=_SEED),
    seed_bars: int | None = typer.Option(None, min=1, help="Use only the first N bars of the seed."),
    seed_seconds: float | None = typer.Option(
        None, min=0.0, help="Use only the first S seconds of the seed, rounded up to a bar line."
    ),
    bars: int | None = typer.Option(
        None, min=1, help="Length of the continuation in bars, at most 100000 (8 if no length is given)."
    ),
    seconds: float | None = typer.Option(None, help="Length in seconds, rounded up to a bar line."),
    tokens: int | None = typer.Option(None, min=1, help="Length in tokens, completed to a bar line."),
    num_samples: int = typer.Option(1, min=1, max=1000, help="Number of different continuations."),
    temperature: Temperature = RECOMMENDED["temperature"],
    top_k: TopK = None,
    top_p: TopP = RECOMMENDED["top_p"],
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    pitch_bias: PitchBias = RECOMMENDED["pitch_bias"],
    branches: int = typer.Option(
        RECOMMENDED["branches"],
        min=1,
        max=64,
        help="Generate every two bars this many times (four times as many where none is like the seed) and keep the "
        "version that fits the seed and closes best; with --tokens, the whole; without a seed, only the last two bars.",
    ),
    recall: Recall = RECOMMENDED["recall"],
    programs: str | None = typer.Option(
        None,
        metavar="P,P",
        help="General MIDI programs that may play, by number or name, such as 0,violin,drums; those that the seed does "
        "not have join it (default: the seed's, or up to four of the model's choice without a seed).",
    ),
    metre: str | None = typer.Option(
        None,
        metavar="N/N",
        help="Metre of the new bars, such as 3/4 (default: the seed's, or any without a seed).",
    ),
    tempo: float | None = typer.Option(
        None, help="Quarter notes per minute (default: the seed's, or the model's choice without a seed)."
    ),
    scale: ScaleName = None,
    chords: Chords = None,
    random_seed: RandomSeed = None,
    continuation_only: bool = typer.Option(
        False, "--continuation-only", help="Write the new music without the seed."
    ),
    model: ModelFolder = None,
    out: str | None = typer.Option(  # no Path, which forgets a slash at the end
        None,
        "--out",
        metavar="FILE",
        help="The MIDI file to write, or a folder for SEED-continued.mid (melodia.mid without a seed). Default: the "
        "current folder. A folder is created if its name ends in a slash.",
    ),
    max_copy: float | None = typer.Option(
        None,
        "--max-copy",
        metavar="BARS",
        min=0.0,
        help="Reject music that shares more than BARS bars with the training music, and try again a few times.",
    ),
    plot: Plot = False,
    audio: Audio = False,
    device: Device = "auto",
    backend: Backend = "auto",
    weights: Weights = "fp32",
    force: Force = False,
) -> None:
    """Continue a MIDI file with a model, or write music from nothing."""
    if seed_bars is not None and seed_seconds is not None:
        raise typer.BadParameter("give --seed-bars or --seed-seconds, not both")
    if seed is None and (seed_bars is not None or seed_seconds is not None):
        raise typer.BadParameter("--seed-bars and --seed-seconds need --seed FILE")
    if seed is None and continuation_only:
        raise typer.BadParameter("--continuation-only needs --seed FILE")
    if sum(length is not None for length in (bars, seconds, tokens)) > 1:
        raise typer.BadParameter("give only one of --bars, --seconds and --tokens")
    if seed is None and pitch_bias > 0 and is_given(context, "pitch_bias"):
        raise typer.BadParameter("--pitch-bias needs --seed FILE: it leans towards the notes of the seed")
    if seed is None and tokens is not None and branches > 1 and is_given(context, "branches"):
        raise typer.BadParameter(
            "--branches needs --seed FILE or --bars: with --tokens alone there is nothing to choose a branch by"
        )
    if tokens is not None and branches > 1 and recall > 0 and is_given(context, "recall"):
        raise typer.BadParameter(
            "--recall needs --bars, --seconds or --branches 1: with --tokens each branch is generated as a whole"
        )

    from melodia.cli.late_bar import LateBar
    from melodia.workflows.generate import generate_files

    sampling = sampling_of(temperature, top_k, top_p, min_p, repetition_penalty)
    with LateBar() as bar:
        result = generate_files(
            seed,
            out,
            model=model,
            seed_bars=seed_bars,
            seed_seconds=seed_seconds,
            bars=bars,
            seconds=seconds,
            tokens=tokens,
            num_samples=num_samples,
            sampling=sampling,
            pitch_bias=pitch_bias,
            branches=branches,
            recall=recall,
            programs=None if programs is None else program_numbers(programs),
            metre=metre,
            tempo=tempo,
            scale=scale,
            chords=chords,
            random_seed=random_seed,
            continuation_only=continuation_only,
            plot=plot,
            audio=audio,
            device=device,
            backend=backend,
            weights=weights,
            force=force,
            max_copy=max_copy,
            progress=bar.show,
        )
    for line in result.lines():
        tell(line)
