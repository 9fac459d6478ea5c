"""Measuring a training: losses since the last validation and of late, seconds, tokens per second."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from melodia.training.learner import Update

KEEP = 0.97
"""How much of the smoothed sums stays from one iteration to the next."""


def ratio(total: float, count: float) -> float:
    """The quotient; nan for a count of 0."""
    return total / count if count else math.nan


class Clock:
    """Seconds since training began; the time between an interruption and a resumption does not count."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.monotonic() - before

    def elapsed(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start


@dataclass(frozen=True)
class Validated:
    """When the last validation was.

    Attributes:
        iteration: after which iteration; 0: none yet.
        now: at how many seconds it ended.
        cost: how many seconds it took.
    """

    iteration: int = 0
    now: float = 0.0
    cost: float = 0.0


@dataclass
class Meter:
    """Sums of nats, scored targets and notes; its fields are JSON values.

    Attributes:
        nats, scored, notes: since the last validation.
        late_nats, late_scored, late_notes: fading sums, for display.
        late_seconds, late_tokens, late_iterations: fading sums of a training's pace.
    """

    nats: float = 0.0
    scored: float = 0.0
    notes: float = 0.0
    late_nats: float = 0.0
    late_scored: float = 0.0
    late_notes: float = 0.0
    late_seconds: float = 0.0
    late_tokens: float = 0.0
    late_iterations: float = 0.0

    def __post_init__(self) -> None:
        self._last: float | None = None

    def take(self, nats: Sequence[float], updates: Sequence[Update], now: float) -> None:
        """Take in the updates since the last call, with the nats of each, at `now` seconds.

        The sums are the same however many come at once, with the time shared out evenly.
        """
        for loss, update in zip(nats, updates, strict=True):
            self.nats += loss
            self.scored += update.scored
            self.notes += update.notes
            self.late_nats = KEEP * self.late_nats + loss
            self.late_scored = KEEP * self.late_scored + update.scored
            self.late_notes = KEEP * self.late_notes + update.notes
            if self._last is not None:
                self.late_seconds = KEEP * self.late_seconds + (now - self._last) / len(updates)
                self.late_tokens = KEEP * self.late_tokens + update.scored
                self.late_iterations = KEEP * self.late_iterations + 1
        self._last = now

    def paused(self, seconds: float) -> None:
        """Leave out seconds that were not spent training."""
        if self._last is not None:
            self._last += seconds

    def since_validation(self) -> tuple[float, float]:
        """Mean nats per token and per note since the last call."""
        result = ratio(self.nats, self.scored), ratio(self.nats, self.notes)
        self.nats = self.scored = self.notes = 0.0
        return result

    @property
    def smooth_per_token(self) -> float:
        """Nats per token of late."""
        return ratio(self.late_nats, self.late_scored)

    @property
    def smooth_per_note(self) -> float:
        """Nats per note of late."""
        return ratio(self.late_nats, self.late_notes)

    @property
    def tokens_per_second(self) -> float:
        """Targets trained on per second of late; nan before the second iteration."""
        return ratio(self.late_tokens, self.late_seconds)

    @property
    def seconds_per_iteration(self) -> float | None:
        """Of late; None before the second iteration."""
        return self.late_seconds / self.late_iterations if self.late_iterations else None
