"""The options that several commands share: of the choice of tokens, of the model, of what is written."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

if TYPE_CHECKING:
    from melodia.decode import SamplingConfig

TEMPERATURE: OptionInfo = typer.Option(help="Divides the logits: below 1 is safer, above 1 wilder.")
TOP_K: OptionInfo = typer.Option(help="Keep the K likeliest tokens.")
TOP_P: OptionInfo = typer.Option(
    help="Keep the smallest set of likeliest tokens with this total probability (1 = all)."
)
MIN_P: OptionInfo = typer.Option(help="Keep tokens at least this share as likely as the likeliest.")
REPETITION_PENALTY: OptionInfo = typer.Option(help="Above 1, recent tokens become less likely.")
PITCH_BIAS: OptionInfo = typer.Option(
    help="How strongly new notes keep to the pitch classes before them, and instruments to their range there, 0 (not "
    "at all) to 1."
)
RECALL: OptionInfo = typer.Option(
    help="Share of bars that repeat earlier ones, 0 (none) to 0.9 (nearly all but the last two); in between, more "
    "after a repetitive seed."
)

Temperature = Annotated[float, TEMPERATURE]
TopK = Annotated[int | None, TOP_K]
TopP = Annotated[float | None, TOP_P]
MinP = Annotated[float | None, MIN_P]
RepetitionPenalty = Annotated[float, REPETITION_PENALTY]
PitchBias = Annotated[float, PITCH_BIAS]
Recall = Annotated[float, RECALL]
ScaleName = Annotated[
    str | None,
    typer.Option(
        "--scale", metavar="SCALE", help="Use only pitches of this scale, such as 'D minor' or 'G dorian'."
    ),
]
Chords = Annotated[
    str | None,
    typer.Option(
        metavar="CHORDS",
        help="Chords for the new bars: one per bar, such as 'Am F C G', or with bar lines, 'Dm | Gm A7 | Dm'; after "
        "the last they start again.",
    ),
]
RandomSeed = Annotated[int | None, typer.Option(help="Number that makes the result repeatable.")]
ModelFolder = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="DIR",
        help="A checkpoint made by `melodia train` (default: the model that comes with melodia).",
    ),
]
Plot = Annotated[bool, typer.Option("--plot", help="Also write a piano-roll picture (PNG) next to it.")]
Audio = Annotated[bool, typer.Option("--audio", help="Also write sound (WAV) next to it.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Backend = Annotated[str, typer.Option(help="auto, reference or native.")]
BatchSize = Annotated[int | None, typer.Option(help="Number of streams trained at once.")]
Window = Annotated[int | None, typer.Option(help="Steps of truncated backpropagation through time.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Weights = Annotated[
    str,
    typer.Option(help="fp32, bf16 or int8: smaller weights are faster and slightly less exact (CPU only)."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


def only_with(needed: str, option: OptionInfo) -> OptionInfo:
    """The same option, whose help says that it needs another one."""
    limited, text = copy(option), option.help or ""
    limited.help = f"With {needed}: {text[0].lower()}{text[1:]}"
    return limited


def sampling_of(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
) -> SamplingConfig:
    """The settings of the choice; a top-p of 1 keeps all."""
    from melodia.decode import SamplingConfig

    return SamplingConfig(
        temperature=temperature,
        top_k=top_k,
        top_p=None if top_p == 1.0 else top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )


MOST_NEAR = 8
"""So many names are suggested in place of one that is none."""


def program_numbers(text: str) -> tuple[int, ...]:
    """Programs as the sampler takes them, from a list such as "0,violin,drums".

    >>> program_numbers("0, Violin,drums")
    (0, 40, -1)
    """
    return tuple(dict.fromkeys(_program_number(part.strip()) for part in text.split(",")))


USUAL = {
    "drums": -1,
    "piano": 0,
    "organ": 19,
    "guitar": 24,
    "electric guitar": 27,
    "bass": 32,
    "electric bass": 33,
    "strings": 48,
    "choir": 52,
    "horn": 60,
    "brass": 61,
    "sax": 65,
    "saxophone": 65,
}
"""What is meant by names that several programs share, or none has."""


def _program_number(word: str) -> int:
    """A program from its number or its name, which may be cut short as long as it is the only one; -1 for drums.

    >>> _program_number("pizz"), _program_number("acoustic guitar (nylon)"), _program_number("bass")
    (45, 24, 32)
    """
    low = " ".join(word.lower().split())
    if low in USUAL:
        return USUAL[low]
    if low.isascii() and low.isdigit() and int(low) <= 127:
        return int(low)
    from difflib import get_close_matches

    from pretty_midi.constants import INSTRUMENT_MAP  # takes a moment, and numbers do without

    names = [name.lower() for name in INSTRUMENT_MAP]
    if low in names:
        return names.index(low)
    begun = [number for number, name in enumerate(names) if low and name.startswith(low)]
    if len(begun) == 1:
        return begun[0]
    near = [name for name in names if low and low in name] or get_close_matches(low, [*USUAL, *names])
    meant = f"; did you mean {', '.join(near[:MOST_NEAR])}?" if near else ""
    raise typer.BadParameter(
        "--programs takes numbers between 0 and 127, General MIDI names such as violin, and drums, separated by "
        f"commas (received {word!r}){meant}"
    )
