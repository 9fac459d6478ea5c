"""`melodia info`: versions, backend and why, processor."""

from __future__ import annotations

import json

import typer


def info(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Print which backend runs and why, the versions of what melodia stands on, and the processor."""
    from melodia.info import collect

    facts = collect()
    if as_json:
        typer.echo(json.dumps(facts.to_dict(), indent=2))
    else:
        for line in facts.lines():
            typer.echo(line)
