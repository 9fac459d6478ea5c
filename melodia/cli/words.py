"""Arguments in messages: Python names them in backticks, the command line writes them as options."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def as_options(text: str, command: str | None) -> str:
    """A message with the names of arguments written as options of a command; None: of no command.

    What stands in backticks and is no option of this command stays as it is: no other command's option is advised.

    >>> as_options("song.mid: already exists; give `force` to replace it, or another `max_copy`", "generate")
    'song.mid: already exists; give --force to replace it, or another --max-copy'
    >>> as_options("`endless` music has no end, `force` or not", "info")
    '`endless` music has no end, `force` or not'
    """
    options = _options(command)
    return re.sub(r"`([a-z]+(?:_[a-z]+)*)`", lambda found: options.get(found[1], found[0]), text)


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line, even with its default value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@cache
def _options(command: str | None) -> dict[str, str]:
    """The long option of every parameter of a command; none of what is no command."""
    from typer.main import get_command

    from melodia.cli.app import COMMANDS, app_of

    if command not in COMMANDS:
        return {}
    parameters = getattr(get_command(app_of(command)), "commands", {})[command].params
    return {p.name: p.opts[0] for p in parameters if p.opts[0].startswith("--")}
