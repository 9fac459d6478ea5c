"""The engine as an object: a packed network with its threads, and sessions that advance together.

Letters: B sessions, T steps, V vocabulary, S side inputs, N numbers of a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.engine import native
from melodia.errors import BackendError, ConfigError

Floats = NDArray[np.float32]


class Engine:
    """A network, packed and ready.

    Args:
        ints: what there is, int64 (`melodia.engine.description`).
        floats: its tensors, float32. Neither is kept.
        threads: with the caller's own; None: as many as there are cores, at most 8. Never more than cores.

    Attributes:
        native: the compiled network.

    Raises:
        BackendError: the engine is not there.
        ConfigError: the description is wrong.
    """

    native: Any

    def __init__(self, ints: NDArray[np.int64], floats: Floats, *, threads: int | None = None) -> None:
        why = native.reason()
        if why is not None:
            raise BackendError(f"the engine was asked for, but {why}; build it (see CONTRIBUTING.md)")
        if threads is not None and threads < 1:
            raise ConfigError(f"`threads` must be at least 1 (received {threads})")
        self.native = native.module().Engine(
            np.ascontiguousarray(ints, np.int64),
            np.ascontiguousarray(floats, np.float32),
            threads or min(8, native.cores()),
        )

    def facts(self) -> dict[str, int]:
        """V, S, context, state_size [floats], step_bytes (weights read per token), memory, threads, stalls."""
        found: dict[str, int] = self.native.facts()
        return found


class Lanes:
    """B sessions of one engine, at the beginning at first.

    One thread at a time may use them (RuntimeError otherwise); several threads may each use their own.

    Args:
        engine: its network.
        count: B.

    Raises:
        ConfigError: there are too many, or none.
    """

    def __init__(self, engine: Engine, count: int) -> None:
        self.engine = engine
        self.count = count
        self.state_size = engine.facts()["state_size"]
        self.native = engine.native.lanes(count)

    def step(self, tokens: Sequence[int] | NDArray[Any], sides: NDArray[Any] | None = None) -> Floats:
        """One token for each session: tokens [B], sides [B, S] -> logits [B, V]."""
        logits: Floats = self.native.step(_ids(tokens), None if sides is None else _ids(sides))
        return logits

    def advance(
        self, tokens: NDArray[Any], sides: NDArray[Any] | None = None, *, every: bool = True
    ) -> Floats:
        """T steps: tokens [T, B], sides [T, B, S] -> logits [T, B, V], or [B, V] of the last unless `every`."""
        logits: Floats = self.native.advance(_ids(tokens), None if sides is None else _ids(sides), every)
        return logits

    def read(self, lane: int) -> Floats:
        """The state of a session, float32 [N]: the parts of `melodia.model.network.initial_state` one by one."""
        state: Floats = self.native.read(lane)
        return state

    def write(self, lane: int, state: Floats) -> None:
        """Set the state [N] of a session."""
        self.native.write(lane, np.asarray(state, np.float32, order="C"))


def _ids(numbers: Sequence[int] | NDArray[Any]) -> NDArray[np.int32]:
    """Whole numbers as the engine reads them; those that are already are not copied. ValueError for others."""
    given = np.asarray(numbers)
    found = np.asarray(given, np.int32, order="C")
    if given.dtype != np.int32 and given.size and not (found == given).all():
        raise ValueError("tokens and side inputs must be 32-bit integers")
    return found
