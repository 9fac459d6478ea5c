"""Tables and bars on a terminal; apart from `melodia.cli.output`, since Rich takes a moment to load."""

from __future__ import annotations

from rich.console import Console

from melodia.cli.output import silence


class LastingConsole(Console):
    """Does not end the program, as Rich would, when nobody reads on."""

    def on_broken_pipe(self) -> None:
        """Say nothing any more."""
        self.quiet = True
        silence(self.file)
