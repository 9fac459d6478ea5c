"""Arguments in messages: Python names them in backticks, the command line writes them as options."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def as_options(text: str) -> str:
    """A message with the names of arguments written as options.

    What stands in backticks and is no option of any command stays as it is.

    >>> as_options("song.mid: is there already; give `force` to replace it, or another `max_copy`")
    'song.mid: is there already; give --force to replace it, or another --max-copy'
    >>> as_options("`endless` music has no end")
    '`endless` music has no end'
    """
    return re.sub(r"`([a-z]+(?:_[a-z]+)*)`", lambda found: _options().get(found[1], found[0]), text)


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line, even with its default value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@cache
def _options() -> dict[str, str]:
    """The long option of every parameter, over all commands."""
    from typer.main import get_command

    from melodia.cli.app import app

    commands = getattr(get_command(app), "commands", {}).values()
    parameters = [parameter for command in commands for parameter in command.params]
    return {p.name: p.opts[0] for p in parameters if p.opts[0].startswith("--")}
