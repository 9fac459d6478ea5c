"""Progress on the terminal: a bar while a corpus is read, a line while a model is trained.

Everything goes to standard error. Where that is no terminal, a plain line appears every few seconds instead of a bar.
Where it is gone (a closed pipe or terminal), nothing appears, and the work goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from melodia.cli.console import LastingConsole
from melodia.cli.words import as_options
from melodia.measure import number
from melodia.training.progress import Plan, Step, TrainingSummary, Validation
from melodia.wording import clock, counted
from melodia.workflows.train import Reporter

PLAIN_INTERVAL = 15.0  # seconds between lines where there is no terminal


def duration(seconds: float | None) -> str:
    """Seconds as hours or minutes; None: not known.

    >>> duration(90), duration(5400), duration(3599.9)
    ('1:30 minutes', '1:30:00 hours', '1:00:00 hours')
    """
    shown = _shown(seconds)
    return f"{shown} {'hours' if shown.count(':') > 1 else 'minutes'}"


def _shown(seconds: float | None) -> str:
    return "?" if seconds is None else clock(seconds)


class ConsoleProgress(Reporter):
    """Draws what corpus building and training tell. A context manager: the bar goes when it ends.

    Args:
        command: whose options messages name.
        console: where to; None: standard error.
    """

    def __init__(self, command: str, console: Console | None = None) -> None:
        self._command = command
        self.console = console or LastingConsole(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._last_line = 0.0

    def __enter__(self) -> ConsoleProgress:
        with self._unless_gone():
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._unless_gone():
            self._bars.stop()

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """Be silent from the first line that cannot be written: a training is worth more than its report."""
        try:
            yield
        except OSError:
            self.console.quiet = True

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._unless_gone():
            self.console.print(as_options(text, self._command), markup=False, soft_wrap=True)

    def _due(self) -> bool:
        """Whether a plain line is due (never on a terminal, where the bar says it)."""
        if self.console.is_terminal or time.monotonic() - self._last_line < PLAIN_INTERVAL:
            return False
        self._last_line = time.monotonic()
        return True

    def _show(self, description: str, done: float, total: float, status: str) -> None:
        with self._unless_gone():
            if self._task is None or self._bars.tasks[-1].description != description:
                if self._task is not None:
                    self._bars.remove_task(self._task)
                self._task = self._bars.add_task(description, total=total, status=status)
            self._bars.update(self._task, completed=done, total=total, status=status)

    # -- reading the corpus ---------------------------------------------------------------------------------------

    def read(self, done: int, total: int, path: str) -> None:
        """A file of the corpus has been read."""
        self._show("reading", done, total, path[-40:])
        if self._due():
            self.say(f"reading {done} of {counted(total, 'file')}")

    # -- training -------------------------------------------------------------------------------------------------

    def started(self, plan: Plan) -> None:
        """Say what is about to be trained on what."""
        budget = counted(plan.iterations, "iteration") if plan.iterations else duration(plan.seconds)
        again = f", resumed at iteration {plan.resumed_at}" if plan.resumed_at else ""
        keys = f" in up to {plan.keys} keys, one of them an epoch" if plan.keys > 1 else ""
        self.say(
            f"training {plan.parameters:,} parameters on {plan.train_tokens:,} tokens of "
            f"{counted(plan.train_pieces, 'piece')}{keys} ({plan.valid_pieces} held out), {budget}, {plan.device}, "
            f"{plan.precision}" + (f", {plan.processes} processes" if plan.processes > 1 else "") + again
        )

    def stepped(self, step: Step) -> None:
        """Move the bar."""
        status = (
            f"epoch {step.epoch:.2f}  {number(step.nats_per_token, 3)} nats/token  "
            f"{number(step.nats_per_note, 2)} nats/note  {number(step.tokens_per_second, 0)} tokens/s  "
            f"ETA {_shown(step.eta)}"
        )
        self._show("training", round(1000 * step.fraction), 1000, status)
        if self._due():
            self.say(f"iteration {step.iteration}  {status}")

    def validated(self, validation: Validation) -> None:
        """Say how well the held-out pieces are predicted."""
        per_token, per_note = number(validation.nats_per_token, 4), number(validation.nats_per_note, 3)
        train_per_token = number(validation.train_nats_per_token, 4)
        train_per_note = number(validation.train_nats_per_note, 3)
        if math.isnan(validation.nats_per_token):  # nothing is held out, and every state is the best so far
            found = f"training {train_per_token} nats/token, {train_per_note} nats/note"
            saved = "saved"
        else:
            found = f"held-out {per_token} nats/token, {per_note} nats/note "
            found += f"(training {train_per_token}, {train_per_note})"
            saved = "best so far, saved"
        self.say(f"iteration {validation.iteration}: {found}" + (f"  {saved}" if validation.best else ""))

    def warned(self, text: str) -> None:
        """Say what the person should know."""
        self.say(f"warning: {text}")

    def finished(self, summary: TrainingSummary) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
