"""`melodia fill`: rewrite some bars of a MIDI file."""

from __future__ import annotations

import re
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
from melodia.decode.config import FILL_BRANCHES, RECOMMENDED


def bar_numbers(text: str) -> tuple[int, int]:
    """The first and the last bar, from "9-12", or "9" for one.

    >>> bar_numbers("9-12"), bar_numbers("9")
    ((9, 12), (9, 9))
    """
    found = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", text, re.ASCII)
    if found is None:
        raise typer.BadParameter(
            f"--bars takes one bar, such as 9, or a range, such as 9-12 (received {text!r})"
        )
    return int(found[1]), int(found[2] or found[1])


def fill(
    music: Path = typer.Argument(..., metavar="FILE", help="The MIDI file whose bars are rewritten."),
    bars: str = typer.Option(
        ...,
        metavar="N-N",
        help="Bars to rewrite, counted from 1, such as 9-12; their present content is replaced.",
    ),
    num_samples: int = typer.Option(1, min=1, max=1000, help="Number of versions."),
    temperature: Temperature = RECOMMENDED["temperature"],
    top_k: TopK = None,
    top_p: TopP = RECOMMENDED["top_p"],
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    pitch_bias: PitchBias = RECOMMENDED["pitch_bias"],
    branches: int = typer.Option(
        FILL_BRANCHES,
        min=2,
        max=64,
        help="Generate every two bars this many times (the last two eight times as many, unless --beside leaves other "
        "parts there) and keep the version that fits best and leads into what follows.",
    ),
    beside: bool = typer.Option(
        False,
        "--beside",
        help="Rewrite only --programs, which may be new to the piece; the other parts stay and are accompanied.",
    ),
    programs: str | None = typer.Option(
        None,
        metavar="P,P",
        help="General MIDI programs that may play, by number or name, such as 0,violin,drums (default: those that play "
        "in these bars now).",
    ),
    scale: ScaleName = None,
    chords: Chords = None,
    random_seed: RandomSeed = None,
    model: ModelFolder = None,
    out: str | None = typer.Option(  # no Path, which forgets a slash at the end
        None,
        "--out",
        metavar="FILE",
        help="The MIDI file to write, or a folder for FILE-filled.mid. Default: the current folder. A folder is "
        "created if its name ends in a slash.",
    ),
    plot: Plot = False,
    audio: Audio = False,
    device: Device = "auto",
    backend: Backend = "auto",
    weights: Weights = "fp32",
    force: Force = False,
) -> None:
    """Rewrite some bars of a MIDI file: they continue the music before them and lead into the music after."""
    between = bar_numbers(bars)
    if beside and programs is None:
        raise typer.BadParameter("--beside needs --programs: those to rewrite")

    from melodia.cli.late_bar import LateBar
    from melodia.workflows.fill import fill_files

    with LateBar() as bar:
        result = fill_files(
            music,
            between,
            out,
            model=model,
            num_samples=num_samples,
            sampling=sampling_of(temperature, top_k, top_p, min_p, repetition_penalty),
            pitch_bias=pitch_bias,
            branches=branches,
            beside=beside,
            programs=None if programs is None else program_numbers(programs),
            scale=scale,
            chords=chords,
            random_seed=random_seed,
            plot=plot,
            audio=audio,
            device=device,
            backend=backend,
            weights=weights,
            force=force,
            progress=bar.show,
        )
    for line in result.lines():
        tell(line)
