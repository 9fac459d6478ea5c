"""`melodia evaluate FOLDER`: how good a model is, in numbers, tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from melodia.cli.choice import (
    MIN_P,
    PITCH_BIAS,
    RECALL,
    REPETITION_PENALTY,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    Backend,
    Device,
    Force,
    ModelFolder,
    only_with,
    sampling_of,
)
from melodia.cli.loading import loading
from melodia.cli.output import tell
from melodia.cli.words import as_options, is_given
from melodia.decode.config import FILTERS, RECOMMENDED

if TYPE_CHECKING:
    from rich.console import Console

    from melodia.evaluation.report import Table

PLAIN_WIDTH = 160  # of tables where there is no terminal

GENERATION = ("seed_bars", "bars", *FILTERS, "pitch_bias", "branches", "recall", "random_seed")


def evaluate(
    context: typer.Context,
    folder: Path = typer.Argument(
        ...,
        metavar="FOLDER",
        help="MIDI files that the model was not trained on (sub-folders are searched too; of train/ and valid/, the "
        "second is scored).",
    ),
    model: ModelFolder = None,
    generate: int = typer.Option(
        0,
        "--generate",
        metavar="N",
        min=0,
        help="Also continue N of the pieces, and compare the result with how they really go on.",
    ),
    seed_bars: int = typer.Option(16, min=1, help="With --generate: bars of each seed."),
    bars: int = typer.Option(16, min=1, help="With --generate: bars of each continuation."),
    temperature: Annotated[float, only_with("--generate", TEMPERATURE)] = RECOMMENDED["temperature"],
    top_k: Annotated[int | None, only_with("--generate", TOP_K)] = None,
    top_p: Annotated[float | None, only_with("--generate", TOP_P)] = RECOMMENDED["top_p"],
    min_p: Annotated[float | None, only_with("--generate", MIN_P)] = None,
    repetition_penalty: Annotated[float, only_with("--generate", REPETITION_PENALTY)] = 1.0,
    pitch_bias: Annotated[float, only_with("--generate", PITCH_BIAS)] = RECOMMENDED["pitch_bias"],
    branches: int = typer.Option(
        RECOMMENDED["branches"],
        min=1,
        max=64,
        help="With --generate: generate every two bars this many times and keep what fits best.",
    ),
    recall: Annotated[float, only_with("--generate", RECALL)] = RECOMMENDED["recall"],
    random_seed: int = typer.Option(
        0, help="With --generate: seed for the choice of pieces and for the music."
    ),
    json_file: Path | None = typer.Option(
        None, "--json", metavar="FILE", help="Also write everything as JSON."
    ),
    html_file: Path | None = typer.Option(
        None, "--html", metavar="FILE", help="Also write one HTML page with plots and piano rolls."
    ),
    device: Device = "auto",
    backend: Backend = "auto",
    force: Force = False,
) -> None:
    """Score a model's likelihood on music, and compare what it writes with how the pieces really go on."""
    if generate == 1:
        raise typer.BadParameter("--generate needs at least 2 pieces to compare, or 0 for none")
    idle = next((name for name in GENERATION if not generate and is_given(context, name)), None)
    if idle is not None:
        raise typer.BadParameter(
            as_options(f"`{idle}` needs `generate` N: without it nothing is generated", "evaluate")
        )

    with loading():
        from melodia.cli.console import LastingConsole
        from melodia.cli.progress import ConsoleProgress
        from melodia.errors import show_path
        from melodia.files import check_target
        from melodia.workflows.evaluate import evaluate_folder, write_json

    for path, suffix in ((json_file, ".json"), (html_file, ".html")):
        if path is not None:
            check_target(path, suffix, force)  # before the work, not behind it
    sampling = sampling_of(temperature, top_k, top_p, min_p, repetition_penalty)
    with ConsoleProgress("evaluate") as progress:
        evaluation = evaluate_folder(
            folder,
            model,
            generate=generate,
            seed_bars=seed_bars,
            bars=bars,
            sampling=sampling,
            pitch_bias=pitch_bias,
            branches=branches,
            recall=recall,
            random_seed=random_seed,
            device=device,
            backend=backend,
            progress=progress,
        )
    console = LastingConsole(highlight=False)
    if not console.is_terminal:
        console = LastingConsole(highlight=False, width=PLAIN_WIDTH)
    for table in evaluation.tables():
        _print(console, table)
    for name, reason in evaluation.skipped:
        tell(f"skipped {name}: {reason}", err=True)
    if evaluation.generated is not None and len(evaluation.generated.pairs) < generate:
        made, bad = len(evaluation.generated.pairs), len(evaluation.generated.failed)
        tell(
            f"continued {made} of the {generate} pieces that --generate asks for: no others have {seed_bars + bars} "
            f"bars and enough notes" + (f", and {bad} could not be continued" if bad else ""),
            err=True,
        )
    written = []
    if json_file is not None:
        written.append(write_json(evaluation, json_file, force=force))
    if html_file is not None:
        from melodia.evaluation.page import write_page

        written.append(write_page(evaluation, html_file, force=force))
    for path in written:
        tell(f"wrote {show_path(path)}")


def _print(console: Console, table: Table) -> None:
    """Draw a table; where the terminal is too narrow, cells are folded, never cut."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD)
    for number, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(Text(table.title, style="bold"))
    console.print(drawn)
    if table.note:
        console.print(Text(table.note))
        console.print()
