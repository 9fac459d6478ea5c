"""The `melodia` command: its sub-commands, and what happens to errors."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence

import typer

from melodia import __version__
from melodia.cli.output import tell
from melodia.cli.words import as_options
from melodia.errors import ConfigError, MelodiaError, out_of_memory

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

COMMANDS = {  # and their lines in the list of commands, which cuts off what is longer than some 60 letters
    "generate": "Continue a MIDI file, or write music from nothing.",
    "fill": "Rewrite some bars of a MIDI file.",
    "train": "Train a model on a folder of MIDI files.",
    "compare": "Train all kinds of model at equal size and compare them.",
    "evaluate": "Score a model on music it has not seen.",
    "inspect": "Read MIDI files and report what is in them.",
    "originality": "Find what MIDI files share with the training music.",
    "bench": "Measure how fast a model generates.",
    "info": "Print which backends run here and why.",
}


def app_of(command: str | None = None) -> typer.Typer:
    """The command line with one command, since each takes milliseconds to make; None: with all of them."""
    app = typer.Typer(
        name="melodia",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in COMMANDS if command is None else [command]:
        function = getattr(importlib.import_module(f"melodia.cli.{name}"), name)
        app.command(name, short_help=COMMANDS[name])(function)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"melodia {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Train a small recurrent music model on your own MIDI files, then continue and fill music with it."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0, 1 failure, 2 usage, 130 interrupted)."""
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in given if not word.startswith("-")), None)
    try:
        _refuse_empty(given)
        app_of(given[0] if given and given[0] in COMMANDS else None)(args=given, prog_name="melodia")
    except SystemExit as stop:
        if stop.code == EXIT_INTERRUPTED:  # Typer has caught Ctrl-C, and said nothing
            _complain("interrupted")
        return stop.code if isinstance(stop.code, int) else EXIT_FAILURE
    except MelodiaError as error:
        _complain(as_options(str(error), command))
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILURE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        return EXIT_FAILURE
    except ImportError as error:
        package = (error.name or "melodia").partition(".")[0]
        if package == "melodia":
            raise
        _complain(f"{command} needs {package}, which cannot be imported ({error}); install it")
        return EXIT_FAILURE
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        _complain("out of memory; close other programs, or ask for less at once")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        _complain("interrupted")
        return EXIT_INTERRUPTED
    return 0


def _refuse_empty(given: Sequence[str]) -> None:
    """A path without letters would be the present folder, where nobody has asked for it: $OUT was not set.

    Raises:
        ConfigError: names the option.
    """
    for i, word in enumerate(given):
        if not word:
            before = given[i - 1] if i and given[i - 1].startswith("-") else "an argument"
            raise ConfigError(f"{before} is empty; give a value or leave it out")
        if word.startswith("--") and word.endswith("="):
            raise ConfigError(f"{word[:-1]} is empty; give a value or leave it out")


def _complain(text: str) -> None:
    tell(f"melodia: {text}", err=True)
