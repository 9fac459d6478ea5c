"""A bar for work that is mostly over in a moment: it appears where there is a terminal, once it takes longer."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 1.0  # seconds without a bar


class LateBar:
    """A context manager: the bar goes when it ends.

    Args:
        stream: where to; None: standard error. Nothing is written to what is no terminal.
        patience: seconds before it appears.
    """

    def __init__(self, stream: IO[str] | None = None, patience: float = PATIENCE) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream is not None and self._stream.isatty()  # None: it was closed
        self._since = time.monotonic() + patience
        self._bar: Progress | None = None

    def __enter__(self) -> LateBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()

    def show(self, doing: str, done: int, total: int, unit: str) -> None:
        """Show how much is done of how much."""
        if not self._terminal or time.monotonic() < self._since:
            return
        with contextlib.suppress(OSError):  # a terminal that has gone ends no work
            self._bar = bar = self._bar or self._empty()
            if not bar.tasks:
                bar.add_task("", unit=unit)
            bar.update(bar.tasks[0].id, description=doing, completed=done, total=total, unit=unit)
            bar.start()  # if it has not begun

    def _empty(self) -> Progress:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from melodia.cli.console import LastingConsole

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f} of {task.total:.0f} {task.fields[unit]}"),
            TimeRemainingColumn(),
            console=LastingConsole(file=self._stream, highlight=False),
            transient=True,
        )
