"""The loop over tokens: choose, take, step; all lanes side by side."""

from __future__ import annotations

import numpy as np

from melodia.grammar import NoteEvent
from melodia.sampler.lane import Lane
from melodia.sampler.session import Session
from melodia.sampler.steppers import Stepper


class Loop:
    """Lanes that advance together, a token each at a step.

    Args:
        stepper: holds the lanes' states and advances them.
        lanes: at least one.

    Attributes:
        live: the lanes that have not ended.
    """

    def __init__(self, stepper: Stepper, lanes: list[Lane]) -> None:
        self.live = list(lanes)
        self._stepper = stepper

    def step(self) -> list[tuple[Lane, list[NoteEvent]]]:
        """Advance every live lane by a token, or end it: the lanes that took one, and the notes it completed."""
        choices = [lane.choose(compiled=self._stepper.compiled) for lane in self.live]
        keep = [i for i, choice in enumerate(choices) if choice is not None]
        if len(keep) < len(self.live):
            for i, lane in enumerate(self.live):
                if choices[i] is None:
                    lane.session.model_state = self._stepper.state(i)
            self.live = [self.live[i] for i in keep]
            if not keep:
                return []
            self._stepper.keep(keep)
        taken = []
        sides, tokens = [], []
        for lane, i in zip(self.live, keep, strict=True):
            choice = choices[i]
            assert choice is not None
            notes, side = lane.take(choice)
            taken.append((lane, notes))
            tokens.append(choice.token)
            sides.append(side)
        self._feed(tokens, sides)
        return taken

    def snapshot(self, lane: Lane) -> Session:
        """The session of a lane at this place."""
        session = lane.snapshot()
        if lane in self.live:
            session.model_state = self._stepper.state(self.live.index(lane))
        return session

    def _feed(self, tokens: list[int], sides: list[np.ndarray]) -> None:
        """Run the model by one step and hand each lane its logits."""
        rows = self._stepper.feed(tokens, sides)
        for lane, row in zip(self.live, rows, strict=True):
            lane.session.logits = row
