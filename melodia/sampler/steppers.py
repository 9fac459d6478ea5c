"""What runs the model under the loop: the engine, or torch (`torch_stepper`). No torch is imported here.

Letters: B live lanes, T time, V vocabulary, S side inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from melodia import engine
from melodia.engine.loop import Start, TokenLoop
from melodia.engine.rules import Rules
from melodia.model.config import ModelConfig
from melodia.model.network import ModelState, initial_state

Rows = NDArray[np.float32]


class Stepper(Protocol):
    """The states of B lanes, and what advances them."""

    compiled: bool
    """Whether tokens are chosen in compiled code as well."""

    def feed(self, tokens: Sequence[int], sides: Sequence[NDArray[np.int32]]) -> Rows:
        """One token for each lane, [B], and its side inputs, [B] of [S] -> logits [B, V]."""
        ...

    def read(self, tokens: NDArray[np.int32], sides: NDArray[np.int32]) -> Rows:
        """Many tokens for each lane, [T, B], and their side inputs, [T, B, S] -> logits [T, B, V]."""
        ...

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes only."""
        ...

    def state(self, lane: int) -> ModelState:
        """The state of one lane."""
        ...


class EngineStepper:
    """The engine, on the CPU or on a GPU.

    Args:
        packed: the network, of either.
        config: its configuration.
        first: the states that the lanes begin with.

    Attributes:
        lanes: the engine's sessions, in the order of the live lanes.
    """

    compiled = True

    def __init__(self, packed: engine.Engine, config: ModelConfig, first: Sequence[ModelState]) -> None:
        self._packed = packed
        self.lanes = engine.Lanes(packed, len(first))
        self._sides = bool(config.side_inputs)
        self._like = initial_state(config)  # the engine's numbers are these parts, one behind the other
        for lane, state in enumerate(first):
            parts = [state[name].astype(np.float32).reshape(-1) for name in self._like]
            self.lanes.write(lane, np.concatenate(parts))

    def loop(self, rules: Sequence[Rules], starts: Sequence[Start]) -> TokenLoop:
        """The loop over tokens of the present lanes."""
        return TokenLoop(self.lanes, rules, starts)

    def feed(self, tokens: Sequence[int], sides: Sequence[NDArray[np.int32]]) -> Rows:
        """See `Stepper.feed`."""
        return self.lanes.step(tokens, np.stack(sides) if self._sides else None)

    def read(self, tokens: NDArray[np.int32], sides: NDArray[np.int32]) -> Rows:
        """See `Stepper.read`."""
        return self.lanes.advance(tokens, sides if self._sides else None)

    def keep(self, lanes: Sequence[int]) -> None:
        """See `Stepper.keep`."""
        kept = engine.Lanes(self._packed, len(lanes))
        for new, old in enumerate(lanes):
            kept.write(new, self.lanes.read(old))
        self.lanes = kept

    def state(self, lane: int) -> ModelState:
        """See `Stepper.state`."""
        ends = np.cumsum([like.size for like in self._like.values()])
        parts = np.split(self.lanes.read(lane), ends[:-1])
        return {
            name: part.reshape(like.shape).astype(like.dtype)
            for part, (name, like) in zip(parts, self._like.items(), strict=True)
        }
