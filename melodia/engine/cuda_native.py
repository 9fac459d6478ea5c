"""The classes of `melodia.engine._engine` over the plain C functions of csrc/cuda/decode_api.cu.

nvcc's objects are linked without Python, so ctypes calls them; it releases the GIL meanwhile. Rules and followers are
the CPU engine's: both libraries are built from one tree.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_uint64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.engine import native
from melodia.engine.rules import pack
from melodia.errors import ConfigError, GrammarError


class Facts(ctypes.Structure):
    """What the library says of a network."""

    _fields_ = [  # ctypes wants a list
        (name, c_int64)
        for name in ("V", "S", "context", "state_size", "step_bytes", "memory", "threads", "stalls")
    ]


class LaneFacts(ctypes.Structure):
    """What a loop says of a lane."""

    _fields_ = [
        *((name, c_int64) for name in ("standing", "token")),
        *((name, c_double) for name in ("nll", "entropy")),
        *((name, c_int64) for name in ("made", "fed")),
    ]


class LaneTerms(ctypes.Structure):
    """How a lane goes on until it is asked again."""

    _fields_ = [
        *((name, c_int64) for name in ("tokens", "pause", "bars_total", "stop_tick")),
        ("ticks", c_int64 * 3),
        ("late", c_void_p * 3),
        ("exclude", c_void_p),
        ("stop", c_void_p),
    ]


# The settings of the choice that the engine's `Sampling` has, in the order of csrc/cuda/decode_api.cu.
REALS = ("temperature", "top_p", "min_p", "repetition_penalty")
WHOLES = ("top_k", "greedy")


class BeginNumbers(ctypes.Structure):
    """The settings of a lane's choices, and whose random numbers they take."""

    _fields_ = [
        *((name, c_double) for name in REALS),
        *((name, c_int64) for name in (*WHOLES, "window")),
        ("random_seed", c_uint64),
        *((name, c_int64) for name in ("session", "fed")),
    ]


def _error_of(library: ctypes.CDLL) -> str:
    """What the last call of this thread that failed complained about."""
    why: bytes = library.melodia_engine_error()
    return why.decode()


class Engine:
    """A network; as the CPU's.

    Args:
        library: of `melodia.engine.cuda.load`.
        ints, floats: the description.
    """

    def __init__(self, library: ctypes.CDLL, ints: NDArray[np.int64], floats: NDArray[np.float32]) -> None:
        self.lib = library
        self.pointer = library.melodia_engine_new(
            ints.ctypes.data, len(ints), floats.ctypes.data, len(floats), 1
        )
        if not self.pointer:
            raise ConfigError(f"the CUDA engine refuses this network: {_error_of(library)}")
        weakref.finalize(self, library.melodia_engine_free, self.pointer)

    def facts(self) -> dict[str, int]:
        """As the CPU's; threads: blocks that compute, stalls: launches that were run again stage by stage."""
        facts = Facts()
        self.lib.melodia_engine_facts(self.pointer, ctypes.byref(facts))
        return {name: getattr(facts, name) for name, *_ in Facts._fields_}

    def fallback(self) -> str:
        """Why the last launch was run again stage by stage; empty if none was."""
        why: bytes = self.lib.melodia_cuda_fallback(self.pointer)
        return why.decode()

    def lanes(self, count: int) -> Lanes:
        """Sessions that advance together."""
        return Lanes(self, count)


class Lanes:
    """B sessions; as the CPU's."""

    def __init__(self, engine: Engine, count: int) -> None:
        self.count = count
        self.engine = engine
        facts = engine.facts()
        self.V, self._S, self._state_size = facts["V"], facts["S"], facts["state_size"]
        self.lib = engine.lib
        self.pointer = self.lib.melodia_lanes_new(engine.pointer, count)
        if not self.pointer:
            raise ConfigError(f"no room for {count} sessions: {_error_of(self.lib)}")
        weakref.finalize(self, _free, self.lib.melodia_lanes_free, self.pointer, engine)

    def step(self, tokens: NDArray[np.int32], sides: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """One token for each session."""
        return self.advance(tokens[None], None if sides is None else sides[None], False)

    def advance(
        self, tokens: NDArray[np.int32], sides: NDArray[np.int32] | None = None, every: bool = True
    ) -> NDArray[np.float32]:
        """T steps."""
        T = len(tokens)
        if tokens.shape != (T, self.count):
            raise ValueError(f"tokens must be [T, {self.count}] (received {tokens.shape})")
        if (0 if sides is None else sides.shape) != ((T, self.count, self._S) if self._S else 0):
            raise ValueError(f"side inputs must be [T, {self.count}, {self._S}]")
        logits = np.empty((T, self.count, self.V) if every else (self.count, self.V), np.float32)
        self._check(
            self.lib.melodia_lanes_advance(
                self.pointer, T, tokens.ctypes.data, _address(sides), logits.ctypes.data, every
            )
        )
        return logits

    def read(self, lane: int) -> NDArray[np.float32]:
        """The state of a session."""
        state = np.empty(self._state_size, np.float32)
        self._check(self.lib.melodia_lanes_read(self.pointer, lane, state.ctypes.data))
        return state

    def write(self, lane: int, state: NDArray[np.float32]) -> None:
        """Set the state of a session."""
        if state.shape != (self._state_size,):
            raise ValueError(f"a state must be [{self._state_size}] (received {state.shape})")
        self._check(self.lib.melodia_lanes_write(self.pointer, lane, state.ctypes.data))

    def loop(self, rules: Sequence[Any]) -> Loop:
        """The loop over tokens, under rules of the CPU's engine."""
        return Loop(self, rules)

    def _check(self, done: int) -> None:
        if not done:
            raise ValueError(_error_of(self.lib))


class Loop:
    """The loop over tokens; as the CPU's."""

    def __init__(self, lanes: Lanes, rules: Sequence[Any]) -> None:
        self._library = lanes.lib
        self._lanes = lanes
        self._rules = list(rules)
        pointers = (c_void_p * len(rules))(*(of.address for of in rules))
        self._pointer = self._library.melodia_loop_new(
            lanes.engine.pointer, lanes.pointer, pointers, len(rules)
        )
        if not self._pointer:
            raise ConfigError(f"the CUDA engine refuses this grammar: {_error_of(self._library)}")
        weakref.finalize(
            self, _free, self._library.melodia_loop_free, self._pointer, (lanes.engine, tuple(rules))
        )

    @property
    def facts(self) -> NDArray[np.void]:
        """What it says of its lanes: the memory itself, [B] records."""
        address = ctypes.cast(self._library.melodia_loop_facts(self._pointer), c_void_p).value
        return self._view(LaneFacts * len(self._rules), address)

    def follower(self, lane: int) -> Any:
        """Grammar and side inputs of a lane."""
        address = self._library.melodia_loop_follower(self._pointer, lane)
        return native.module().Follower.at(address, self._rules[lane], self)

    def logits(self, lane: int) -> NDArray[np.float32]:
        """The logits of a lane's next token: the memory itself."""
        return self._view(
            ctypes.c_float * self._lanes.V, self._library.melodia_loop_logits(self._pointer, lane)
        )

    def _view(self, kind: Any, address: int | None) -> NDArray[Any]:
        assert address is not None
        memory = kind.from_address(address)
        memory.loop = self  # an array of it keeps the loop alive
        return np.ctypeslib.as_array(memory)

    def begin(
        self, lane: int, sampling: Any, window: int, random_seed: int, session: int, fed: int, recent: Sequence[int]
    ) -> None:  # fmt: skip
        """What a lane's choices are made with."""
        numbers = BeginNumbers(
            **{name: getattr(sampling, name) for name in (*REALS, *WHOLES)},
            window=window,
            random_seed=random_seed,
            session=session,
            fed=fed,
        )
        last = np.array(recent, np.int64)
        self._check(
            self._library.melodia_loop_begin(
                self._pointer, lane, ctypes.byref(numbers), last.ctypes.data, len(last)
            )
        )

    def set_bias(
        self,
        lane: int,
        rows: NDArray[np.float32],
        row_of: NDArray[np.int32],
        members: NDArray[np.uint64],
        exponent: float,
    ) -> None:
        """The parts of a `melodia.decode.Bias`, its members as a mask of words [W]; they are copied."""
        self._check(
            self._library.melodia_loop_bias(
                self._pointer,
                lane,
                rows.ctypes.data,
                len(rows),
                row_of.ctypes.data,
                members.ctypes.data,
                exponent,
            )
        )

    def set_terms(
        self,
        lane: int,
        tokens: int,
        pause: bool,
        bars_total: int,
        exclude: NDArray[np.uint64] | None,
        late: Sequence[tuple[NDArray[np.uint64], int]],
        stop: NDArray[np.uint64] | None,
        stop_tick: int,
    ) -> None:
        """How a lane goes on."""
        terms = LaneTerms(
            tokens=tokens,
            pause=pause,
            bars_total=bars_total,
            stop_tick=stop_tick,
            exclude=_address(exclude),
            stop=_address(stop),
        )
        for i, (mask, tick) in enumerate(late):
            terms.late[i], terms.ticks[i] = mask.ctypes.data, tick
        self._check(self._library.melodia_loop_terms(self._pointer, lane, ctypes.byref(terms)))

    def run(self, steps: int, microseconds: int, flag: NDArray[np.int32] | None) -> int:
        """Go on until a lane needs its caller; why it came back."""
        why: int = self._library.melodia_loop_run(self._pointer, steps, microseconds, _address(flag))
        self._check(why)
        return why

    def choose(self, lane: int, legal: NDArray[np.bool_]) -> None:
        """Draw a token for a lane that asks."""
        bits = pack(legal)
        self._check(self._library.melodia_loop_choose(self._pointer, lane, bits.ctypes.data))

    def take(self, lane: int) -> None:
        """Take the token at which a lane stopped."""
        self._check(self._library.melodia_loop_take(self._pointer, lane))

    def drain(self, lane: int) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
        """The tokens since the last time, their NLL and entropy."""
        count = int(self.facts["made"][lane])
        tokens = np.empty(count, np.int32)
        nll, entropy = np.empty((2, count))
        self._check(
            self._library.melodia_loop_drain(
                self._pointer, lane, tokens.ctypes.data, nll.ctypes.data, entropy.ctypes.data
            )
        )
        return tokens, nll, entropy

    def keep(self, lanes: Lanes, kept: Sequence[int]) -> None:
        """Go on with some lanes only, in new sessions with their states."""
        indices = np.array(kept, np.int64)
        self._check(
            self._library.melodia_loop_keep(self._pointer, lanes.pointer, indices.ctypes.data, len(indices))
        )
        self._lanes = lanes
        self._rules = [self._rules[i] for i in kept]

    def _check(self, done: int) -> None:
        if not done:
            raise GrammarError(_error_of(self._library))


def _address(numbers: NDArray[Any] | None) -> int | None:
    return None if numbers is None else numbers.ctypes.data


def _free(free: Any, pointer: int, alive: object) -> None:
    """Free an object; what it points to is an argument so that it lives until then."""
    free(pointer)
