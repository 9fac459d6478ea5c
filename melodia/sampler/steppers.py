"""What runs the model under the loop: the engine, or torch (`torch_stepper`). No torch is imported here.

Letters: B live lanes, T time, V vocabulary, S side inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from melodia import engine
from melodia.model.config import ModelConfig
from melodia.model.network import ModelState, initial_state

if TYPE_CHECKING:
    from melodia.sampler.torch_stepper import TorchEncoder

Rows = NDArray[np.float32]


class Stepper(Protocol):
    """The states of B lanes, and what advances them."""

    compiled: bool
    """Whether tokens are chosen in compiled code as well."""

    def feed(self, tokens: Sequence[int], sides: Sequence[NDArray[np.int32]]) -> Rows:
        """One token for each lane, [B], and its side inputs, [B] of [S] -> logits [B, V]."""
        ...

    def read(self, tokens: NDArray[np.int32], sides: NDArray[np.int32]) -> Rows:
        """Many tokens for the only lane, [T], and their side inputs, [T, S] -> logits [T, V]."""
        ...

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes only."""
        ...

    def state(self, lane: int) -> ModelState:
        """The state of one lane."""
        ...


class EngineStepper:
    """The engine.

    Args:
        packed: the network.
        config: its configuration.
        first: the states that the lanes begin with.
        encoder: what reads the blocks of a bidirectional model.

    Attributes:
        lanes: the engine's sessions, in the order of the live lanes.
    """

    compiled = True

    def __init__(
        self,
        packed: engine.Engine,
        config: ModelConfig,
        first: Sequence[ModelState],
        encoder: TorchEncoder | None = None,
    ) -> None:
        self.lanes = engine.Lanes(packed, len(first))
        self._packed = packed
        self._encoder = encoder
        self._sides = bool(config.side_inputs)
        mine = initial_state(config)
        self._names = [name for name in mine if encoder is None or name.startswith("0.")]
        self._sizes = [mine[name].shape[1] for name in self._names]
        for lane, state in enumerate(first):
            self.lanes.write(lane, np.concatenate([state[name][0] for name in self._names]))

    def feed(self, tokens: Sequence[int], sides: Sequence[NDArray[np.int32]]) -> Rows:
        """See `Stepper.feed`."""
        side = np.stack(sides) if self._sides else None
        if self._encoder is not None:
            for lane, summary in self._encoder.feed(tokens, side):
                self.lanes.condition(lane, summary)
        return self.lanes.step(tokens, side)

    def read(self, tokens: NDArray[np.int32], sides: NDArray[np.int32]) -> Rows:
        """See `Stepper.read`."""
        columns = tokens[:, None]
        rows = sides[:, None] if self._sides else None
        if self._encoder is None:
            return self.lanes.advance(columns, rows)[:, 0]
        found = []
        for start, stop, summary in self._encoder.read(tokens, sides if self._sides else None):
            self.lanes.condition(0, summary)
            part = None if rows is None else rows[start:stop]
            found.append(self.lanes.advance(columns[start:stop], part)[:, 0])
        return np.concatenate(found)

    def keep(self, lanes: Sequence[int]) -> None:
        """See `Stepper.keep`."""
        kept = engine.Lanes(self._packed, len(lanes))
        for new, old in enumerate(lanes):
            kept.write(new, self.lanes.read(old))
        self.lanes = kept
        if self._encoder is not None:
            self._encoder.keep(lanes)

    def state(self, lane: int) -> ModelState:
        """See `Stepper.state`."""
        parts = np.split(self.lanes.read(lane), np.cumsum(self._sizes)[:-1])
        state = {name: part[None] for name, part in zip(self._names, parts, strict=True)}
        return state if self._encoder is None else state | self._encoder.state(lane)
