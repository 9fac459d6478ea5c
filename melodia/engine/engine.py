"""The engine as an object: a packed network with its threads, and sessions that advance together.

Letters: B sessions, T steps, V vocabulary, S side inputs, N numbers of a state.
"""

from __future__ import annotations

import ctypes
import weakref
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

    Raises:
        BackendError: the engine is not there.
        ConfigError: the description is wrong.
    """

    def __init__(self, ints: NDArray[np.int64], floats: Floats, *, threads: int | None = None) -> None:
        why = native.reason()
        if why is not None:
            raise BackendError(f"the engine was asked for, but {why}; build it (see CONTRIBUTING.md)")
        if threads is not None and threads < 1:
            raise ConfigError(f"`threads` must be at least 1 (received {threads})")
        ints = np.ascontiguousarray(ints, np.int64)
        floats = np.ascontiguousarray(floats, np.float32)
        library = native.library()
        self.pointer = library.melodia_engine_new(
            ints.ctypes.data, len(ints), floats.ctypes.data, len(floats), threads or min(8, native.cores())
        )
        if not self.pointer:
            raise ConfigError(f"the engine refuses this network: {native.last_error()}")
        self._free = weakref.finalize(self, library.melodia_engine_free, self.pointer)

    def facts(self) -> dict[str, int]:
        """V, S, context, state_size [floats], step_bytes (weights read per token), memory, threads, stalls."""
        facts = native.Facts()
        native.library().melodia_engine_facts(self.pointer, ctypes.byref(facts))
        return {name: getattr(facts, name) for name, *_ in native.Facts._fields_}


class Lanes:
    """B sessions of one engine, at the beginning at first. One thread at a time may use them.

    Args:
        engine: its network.
        count: B.
    """

    def __init__(self, engine: Engine, count: int) -> None:
        self.engine = engine
        self.count = count
        facts = engine.facts()
        self._V, self._S = facts["V"], facts["S"]
        self.state_size = facts["state_size"]
        self._library = native.library()
        self._pointer = self._library.melodia_lanes_new(engine.pointer, count)
        if not self._pointer:
            raise ConfigError(f"no room for {count} sessions: {native.last_error()}")
        self._free = weakref.finalize(self, _free_lanes, self._library, self._pointer, engine)

    def step(self, tokens: Sequence[int] | NDArray[Any], sides: NDArray[Any] | None = None) -> Floats:
        """One token for each session: tokens [B], sides [B, S] -> logits [B, V]."""
        return self._advance(np.asarray(tokens)[None], None if sides is None else sides[None], False)

    def advance(
        self, tokens: NDArray[Any], sides: NDArray[Any] | None = None, *, every: bool = True
    ) -> Floats:
        """T steps: tokens [T, B], sides [T, B, S] -> logits [T, B, V], or [B, V] of the last unless `every`."""
        return self._advance(np.asarray(tokens), sides, every)

    def _advance(self, tokens: NDArray[Any], sides: NDArray[Any] | None, every: bool) -> Floats:
        T = len(tokens)
        if tokens.shape != (T, self.count):
            raise ValueError(f"tokens must be [T, {self.count}] (received {tokens.shape})")
        if (0 if sides is None else sides.shape) != ((T, self.count, self._S) if self._S else 0):
            raise ValueError(f"side inputs must be [T, {self.count}, {self._S}]")
        tokens = np.ascontiguousarray(tokens, np.int32)
        sides = None if sides is None else np.ascontiguousarray(sides, np.int32)
        logits = np.empty((T, self.count, self._V) if every else (self.count, self._V), np.float32)
        self._check(
            self._library.melodia_lanes_advance(
                self._pointer,
                T,
                tokens.ctypes.data,
                None if sides is None else sides.ctypes.data,
                logits.ctypes.data,
                every,
            )
        )
        return logits

    def read(self, lane: int) -> Floats:
        """The state of a session, float32 [N]: the parts of `melodia.model.network.initial_state` one by one."""
        state = np.empty(self.state_size, np.float32)
        self._check(self._library.melodia_lanes_read(self._pointer, lane, state.ctypes.data))
        return state

    def write(self, lane: int, state: Floats) -> None:
        """Set the state [N] of a session."""
        state = np.ascontiguousarray(state, np.float32)
        if state.shape != (self.state_size,):
            raise ValueError(f"a state must be [{self.state_size}] (received {state.shape})")
        self._check(self._library.melodia_lanes_write(self._pointer, lane, state.ctypes.data))

    @staticmethod
    def _check(done: int) -> None:
        if not done:
            raise ValueError(native.last_error())


def _free_lanes(library: ctypes.CDLL, pointer: int, engine: Engine) -> None:
    """Free lanes; the engine is an argument so that it lives until then."""
    library.melodia_lanes_free(pointer)
