"""`melodia bench`: how fast a model generates on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from melodia.cli.choice import ModelFolder
from melodia.cli.output import tell
from melodia.wording import counted

if TYPE_CHECKING:
    from melodia.workflows.bench import BenchResult


def bench(
    model: ModelFolder = None,
    weights: str = typer.Option("fp32,bf16,int8", help="Weight formats to measure, separated by commas."),
    threads: str | None = typer.Option(
        None,
        help="Thread counts, separated by commas (default: 1, 2, 4, ... up to the number of cores).",
    ),
    seconds: float = typer.Option(12.0, help="Total time for all measurements, in seconds."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Measure tokens per second and time per token for each weight format, alongside plain PyTorch."""
    try:
        counts = None if threads is None else [int(word) for word in threads.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"--threads takes whole numbers separated by commas (received {threads!r})"
        ) from error

    from melodia.workflows.bench import bench as measure

    words = [word.strip() for word in weights.split(",")]
    result = measure(model, weights=words, threads=counts, seconds=seconds)
    if as_json:
        tell(json.dumps(result.to_dict(), indent=2))
    else:
        _show(result)


def _show(result: BenchResult) -> None:
    """Draw the table."""
    from rich.table import Table

    from melodia.cli.console import LastingConsole

    console = LastingConsole(highlight=False)
    cores = counted(result.cores, "core")
    engine = f"engine: {result.instruction_set}" if result.instruction_set else "no engine"
    table = Table(
        caption=f"one stream; tokens/s in bursts, p50 and p99 of single tokens; {engine}, {cores}",
        caption_justify="left",
    )
    table.add_column("weights")
    for name in ("threads", "tokens/s", "p50 µs", "p99 µs", "× PyTorch"):
        table.add_column(name, justify="right")
    for speed in result.speeds:
        times = "" if speed.times_pytorch is None else f"{speed.times_pytorch:.1f}"
        numbers = [f"{speed.tokens_per_second:,.0f}", f"{speed.p50:,.1f}", f"{speed.p99:,.1f}", times]
        way = "PyTorch, fp32" if speed.way == "PyTorch" else speed.way
        table.add_row(way, str(speed.threads), *numbers)
    console.print(f"{result.model}, {result.parameters:,} parameters", markup=False, soft_wrap=True)
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
