"""The loop over tokens, on the reference backend: choose, take, step; all lanes side by side.

A compiled engine that holds grammar, filters and model replaces this file and nothing else.
Letters: B live lanes, V vocabulary, S side inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch

from melodia.grammar import NoteEvent
from melodia.model import Model, State
from melodia.model import state as states
from melodia.sampler.lane import Lane
from melodia.sampler.session import Session


class Loop:
    """Lanes that advance together, a token each at a step.

    Args:
        model: in evaluation mode.
        lanes: at least one.
        backend: gives the context in which the kernels run.

    Attributes:
        live: the lanes that have not ended.
    """

    def __init__(
        self, model: Model, lanes: list[Lane], backend: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.model = model
        self.live = list(lanes)
        self._backend = backend
        self._state: State = states.stack([lane.session.model_state for lane in lanes])
        self._device = states.leaves(self._state)[0].device

    def step(self) -> list[tuple[Lane, list[NoteEvent]]]:
        """Advance every live lane by a token, or end it: the lanes that took one, and the notes it completed."""
        choices = [lane.choose() for lane in self.live]
        keep = [i for i, choice in enumerate(choices) if choice is not None]
        if len(keep) < len(self.live):
            for i, lane in enumerate(self.live):
                if choices[i] is None:
                    lane.session.model_state = states.select(self._state, i)
            self.live = [self.live[i] for i in keep]
            if not keep:
                return []
            self._state = states.select(self._state, keep)
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
            session.model_state = states.select(self._state, self.live.index(lane))
        return session

    def _feed(self, tokens: list[int], sides: list[np.ndarray]) -> None:
        """Run the model by one step and hand each lane its logits."""
        with torch.inference_mode(), self._backend():
            ids = torch.tensor(tokens, device=self._device)
            side = None
            if self.model.config.side_inputs:
                side = torch.from_numpy(np.stack(sides).astype(np.int64)).to(self._device)
            logits, self._state = self.model.step(ids, side, self._state)
            rows = logits.float().cpu().numpy()
        for lane, row in zip(self.live, rows, strict=True):
            lane.session.logits = row
