"""Trainings of folders: short ones, ones that crash, and who listens to them."""

from __future__ import annotations

from melodia.training import Step
from melodia.workflows.train import Reporter

SHORT = {"iterations": 3, "batch_size": 2, "window": 32, "threads": 1, "device": "cpu"}
"""Settings of a training of a moment."""


class Crash(Reporter):
    """Ends a training after its second iteration, as a crash would."""

    def stepped(self, step: Step) -> None:
        if step.iteration == 2:
            raise RuntimeError("crash")


class Record(Reporter):
    """Notes how far reading has come, and warnings."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int]] = []
        self.warnings: list[str] = []

    def read(self, done: int, total: int, path: str) -> None:
        self.counts.append((done, total))

    def warned(self, text: str) -> None:
        self.warnings.append(text)
