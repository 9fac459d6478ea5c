"""The engine on CUDA: the classes of `melodia.engine` over csrc/cuda, loaded when first needed.

A launch makes many tokens of all lanes; the rest is as on the CPU, states and followers included. Nothing here needs
torch. No GPU has run this yet: what is known of it comes from the emulator (csrc/cuda/NOTES_decode.md).
"""

from __future__ import annotations

import ctypes
import json
import os
import weakref
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from melodia.engine import native, native_loop
from melodia.engine.engine import Engine, Floats, Lanes
from melodia.engine.loop import Start, TokenLoop
from melodia.engine.rules import Follower, Rules
from melodia.errors import BackendError, ConfigError, GrammarError

LIBRARY = Path(__file__).with_name("libmelodia_cuda_engine.so")


class Options(ctypes.Structure):
    """What a test or a measurement may choose; zeros: as the device wants it. See csrc/cuda/decode_device.h."""

    _fields_ = [
        (name, c_int64)
        for name in (
            "threads",
            "least_units",
            "blocks",
            "samplers",
            "counted",
            "apart",
            "launch_steps",
            "limit_us",
            "streamed",
        )
    ]


def load(path: Path) -> ctypes.CDLL:
    """A library of the decode engine, its functions declared."""
    found = ctypes.CDLL(str(path))

    def function(name: str, result: object, *arguments: object) -> None:
        declared = getattr(found, name)
        declared.restype = result
        declared.argtypes = list(arguments)

    function("melodia_engine_error", c_char_p)
    function("melodia_cuda_obstacle", c_char_p)
    function("melodia_cuda_options", None, POINTER(Options))
    function("melodia_cuda_fallback", c_char_p, c_void_p)
    function("melodia_engine_new", c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int)
    function("melodia_engine_free", None, c_void_p)
    function("melodia_engine_facts", None, c_void_p, POINTER(native.Facts))
    function("melodia_lanes_new", c_void_p, c_void_p, c_int64)
    function("melodia_lanes_free", None, c_void_p)
    function("melodia_lanes_advance", c_int, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int)
    for name in ("read", "write"):
        function(f"melodia_lanes_{name}", c_int, c_void_p, c_int64, c_void_p)
    function("melodia_loop_new", c_void_p, c_void_p, c_void_p, c_void_p, c_int64)
    function("melodia_loop_free", None, c_void_p)
    function("melodia_loop_facts", POINTER(native_loop.LaneFacts), c_void_p)
    function("melodia_loop_follower", c_void_p, c_void_p, c_int64)
    function("melodia_loop_logits", c_void_p, c_void_p, c_int64)
    begin = POINTER(native_loop.BeginNumbers)
    function("melodia_loop_begin", c_int, c_void_p, c_int64, begin, c_void_p, c_int64)
    function("melodia_loop_terms", c_int, c_void_p, c_int64, POINTER(native_loop.LaneTerms))
    function("melodia_loop_run", c_int64, c_void_p, c_int64, c_int64, c_void_p)
    function("melodia_loop_choose", c_int, c_void_p, c_int64, c_void_p)
    function("melodia_loop_take", c_int, c_void_p, c_int64)
    function("melodia_loop_drain", c_int, c_void_p, c_int64, c_void_p, c_void_p, c_void_p)
    function("melodia_loop_keep", c_int, c_void_p, c_void_p, c_void_p, c_int64)
    return found


@lru_cache(maxsize=1)
def _loaded() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("MELODIA_DISABLE_EXT", "0") not in ("", "0"):
        return None, "MELODIA_DISABLE_EXT is set"
    if not LIBRARY.exists():
        try:
            why = json.loads(native.BUILD_FACTS.read_text())["cuda"]["reason"]
        except (OSError, ValueError, KeyError):
            why = None
        return None, f"the CUDA engine was not built: {why or 'melodia was installed without it'}"
    try:
        library = load(LIBRARY)
    except (OSError, AttributeError) as error:
        return None, f"the CUDA engine does not load: {error}"
    obstacle = library.melodia_cuda_obstacle().decode()
    return (None, obstacle) if obstacle else (library, None)


def reason() -> str | None:
    """Why the CUDA engine cannot be used; None if it can.

    >>> isinstance(reason(), str) or reason() is None
    True
    """
    return native.reason() or _loaded()[1]


class CudaEngine(Engine):
    """A network, packed for the blocks of a GPU.

    Args:
        ints, floats: as of `Engine`.
        library: of `load`; None: the one that was installed.
        options: for tests and measurements.

    Raises:
        BackendError: there is no library or no GPU.
        ConfigError: the description is wrong, or of a bidirectional model.
    """

    def __init__(
        self,
        ints: NDArray[np.int64],
        floats: Floats,
        *,
        library: ctypes.CDLL | None = None,
        options: Options | None = None,
    ) -> None:
        why = reason() if library is None else None
        if why is not None:
            raise BackendError(f"the CUDA engine was asked for, but {why}; use device cpu")
        self.library = library if library is not None else _loaded()[0]
        assert self.library is not None
        ints = np.ascontiguousarray(ints, np.int64)
        floats = np.ascontiguousarray(floats, np.float32)
        self.library.melodia_cuda_options(None if options is None else ctypes.byref(options))
        self.pointer = self.library.melodia_engine_new(
            ints.ctypes.data, len(ints), floats.ctypes.data, len(floats), 1
        )
        if not self.pointer:
            raise ConfigError(f"the CUDA engine refuses this network: {error_of(self.library)}")
        self._free = weakref.finalize(self, self.library.melodia_engine_free, self.pointer)

    def facts(self) -> dict[str, int]:
        """As of `Engine`; threads: blocks that compute, stalls: launches that were run again stage by stage."""
        facts = native.Facts()
        assert self.library is not None
        self.library.melodia_engine_facts(self.pointer, ctypes.byref(facts))
        return {name: getattr(facts, name) for name, *_ in native.Facts._fields_}

    def fallback(self) -> str:
        """Why the last launch was run again stage by stage; empty if none was."""
        assert self.library is not None
        why: bytes = self.library.melodia_cuda_fallback(self.pointer)
        return why.decode()


class CudaLanes(Lanes):
    """B sessions on the GPU; see `Lanes`.

    Args:
        engine: its network.
        count: B.
    """

    def __init__(self, engine: CudaEngine, count: int) -> None:
        self.engine = engine
        self.count = count
        facts = engine.facts()
        self._V, self._S = facts["V"], facts["S"]
        self.state_size = facts["state_size"]
        assert engine.library is not None
        self._library = engine.library
        self._pointer = self._library.melodia_lanes_new(engine.pointer, count)
        if not self._pointer:
            raise ConfigError(f"no room for {count} sessions: {error_of(self._library)}")
        self._free = weakref.finalize(self, _free_lanes, self._library, self._pointer, engine)

    def _check(self, done: int) -> None:  # type: ignore[override]
        if not done:
            raise ValueError(error_of(self._library))


class CudaLoop(TokenLoop):
    """The loop over tokens on the GPU; see `TokenLoop`.

    Lanes do not wait for one another inside a launch, and `run` looks at its limits between launches. A failing
    device leaves everything as it was.

    Args:
        packed, lanes, rules, starts: as of `TokenLoop`.
    """

    def __init__(
        self, packed: CudaEngine, lanes: CudaLanes, rules: Sequence[Rules], starts: Sequence[Start]
    ) -> None:
        assert packed.library is not None
        self._library = packed.library
        self._lanes = lanes
        self._rules = list(rules)
        self._V = packed.facts()["V"]
        pointers = (c_void_p * len(rules))(*(of.pointer for of in rules))
        self._pointer = self._library.melodia_loop_new(packed.pointer, lanes._pointer, pointers, len(rules))
        if not self._pointer:
            raise ConfigError(f"the CUDA engine refuses this grammar: {error_of(self._library)}")
        self._free = weakref.finalize(
            self, _free_loop, self._library, self._pointer, (packed, tuple(rules), [lanes])
        )
        self.followers = [
            Follower(of, self._library.melodia_loop_follower(self._pointer, lane), self)
            for lane, of in enumerate(rules)
        ]
        self._all_facts = self._facts_of(len(rules))
        self.facts = self._all_facts
        for lane, start in enumerate(starts):
            self._begin(lane, start)

    def _check(self, done: int) -> None:  # type: ignore[override]
        if not done:
            raise GrammarError(error_of(self._library))


def error_of(library: ctypes.CDLL) -> str:
    """What the last call of this thread that failed complained about."""
    why: bytes = library.melodia_engine_error()
    return why.decode()


def _free_lanes(library: ctypes.CDLL, pointer: int, engine: Engine) -> None:
    """Free lanes; the engine is an argument so that it lives until then."""
    library.melodia_lanes_free(pointer)


def _free_loop(library: ctypes.CDLL, pointer: int, alive: object) -> None:
    """Free a loop; what it points to is an argument so that it lives until then."""
    library.melodia_loop_free(pointer)
