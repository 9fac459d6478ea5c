"""Printing that ends no work: who reads may leave, as `| head -1` does, and what was made or is being made stays."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO

import typer


def tell(text: str, *, err: bool = False) -> bool:
    """Print a line on standard output, or error; False where the reader has just gone."""
    try:
        typer.echo(text, err=err)
    except BrokenPipeError:
        silence(sys.stderr if err else sys.stdout)
        return False
    return True


def silence(stream: IO[str]) -> None:
    """Let what is written from here on vanish, with what is buffered: else it would fail again at the end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
