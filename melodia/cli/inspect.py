"""`melodia inspect FILE…`: what a MIDI file holds, and what reading it repaired."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from melodia.cli.output import tell
from melodia.errors import MelodiaError


def inspect(
    files: list[Path] = typer.Argument(..., metavar="FILE...", help="MIDI files to read."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object per file instead of text."),
) -> None:
    """Read MIDI files and print what was read, repaired, quantised and dropped, and why."""
    from melodia.midi.reading import named
    from melodia.workflows.inspect import inspect_file

    failed = 0
    for path in files:
        try:
            report = inspect_file(path)
        except MelodiaError as error:
            tell(f"melodia: {named(path, error)}", err=True)
            failed += 1
            continue
        lines = [json.dumps(report.to_dict())] if as_json else report.lines()
        if not all(tell(line) for line in lines):
            break
    if failed:
        raise typer.Exit(code=1)
