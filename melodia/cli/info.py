"""`melodia info`: versions, backend and why, processor."""

from __future__ import annotations

import json

import typer

from melodia.cli.output import tell


def info(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Print which backend runs and why, the versions of melodia and its dependencies, and the processor."""
    from melodia.info import collect

    facts = collect()
    if as_json:
        tell(json.dumps(facts.to_dict(), indent=2))
    else:
        for line in facts.lines():
            tell(line)
