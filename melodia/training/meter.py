"""Measuring a training: losses since the last validation and of late, seconds, tokens per second."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

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
        self._counted = [0.0, 0.0, 0]  # targets, notes, iterations whose nats are still to come
        self._last: float | None = None

    def count(self, scored: float, notes: float) -> None:
        """Take in an iteration whose loss is not fetched yet."""
        self._counted[0] += scored
        self._counted[1] += notes
        self._counted[2] += 1

    def take(self, nats: float, now: float) -> None:
        """Take in the loss of all iterations counted since the last call, at `now` seconds."""
        scored, notes, iterations = self._counted
        self._counted = [0.0, 0.0, 0]
        keep = KEEP**iterations
        self.nats, self.scored, self.notes = self.nats + nats, self.scored + scored, self.notes + notes
        self.late_nats = keep * self.late_nats + nats
        self.late_scored = keep * self.late_scored + scored
        self.late_notes = keep * self.late_notes + notes
        if self._last is not None:
            self.late_seconds = keep * self.late_seconds + now - self._last
            self.late_tokens = keep * self.late_tokens + scored
            self.late_iterations = keep * self.late_iterations + iterations
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
