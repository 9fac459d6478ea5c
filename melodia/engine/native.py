"""The engine's library: loaded when first needed, with the reason kept where it cannot be.

The functions are plain C (csrc/engine/api.cpp); ctypes releases the GIL while they run.
"""

from __future__ import annotations

import ctypes
import json
import os
from ctypes import POINTER, c_double, c_int, c_int64, c_uint32, c_uint64, c_void_p
from functools import lru_cache
from pathlib import Path

LIBRARY = Path(__file__).with_name("libmelodia_engine.so")
BUILD_FACTS = Path(__file__).parent.parent / "kernels" / "native_build.json"


class Facts(ctypes.Structure):
    """What `melodia_engine_facts` fills in."""

    _fields_ = [  # ctypes wants a list
        (name, c_int64)
        for name in ("V", "S", "context", "state_size", "step_bytes", "memory", "threads", "stalls")
    ]


class SamplingNumbers(ctypes.Structure):
    """The settings of a choice."""

    _fields_ = [
        *((name, c_double) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        ("top_k", c_int64),
        ("greedy", c_int64),
    ]


class ChoiceNumbers(ctypes.Structure):
    """A choice."""

    _fields_ = [("token", c_int64), ("nll", c_double), ("entropy", c_double)]


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library once: it, or the reason why not."""
    if os.environ.get("MELODIA_DISABLE_EXT", "0") not in ("", "0"):
        return None, "MELODIA_DISABLE_EXT is set"
    if not LIBRARY.exists():
        try:
            why = json.loads(BUILD_FACTS.read_text()).get("engine_reason")
        except (OSError, ValueError, AttributeError):
            why = None
        return None, f"the engine was not built: {why or 'melodia was installed without it'}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        _declare(library)
    except (OSError, AttributeError) as error:
        return None, f"the engine does not load: {error}"
    wish = os.environ.get("MELODIA_CPU")
    if wish and library.melodia_engine_instruction_set().decode() != wish:
        return None, f"MELODIA_CPU={wish} is unknown to the engine, or this processor cannot run it"
    return library, None


def _declare(library: ctypes.CDLL) -> None:
    def function(name: str, result: object, *arguments: object) -> None:
        declared = getattr(library, name)
        declared.restype = result
        declared.argtypes = list(arguments)

    text = ctypes.c_char_p
    function("melodia_engine_error", text)
    function("melodia_engine_instruction_set", text)
    function("melodia_engine_cores", c_int)
    function("melodia_engine_new", c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int)
    function("melodia_engine_free", None, c_void_p)
    function("melodia_engine_facts", None, c_void_p, POINTER(Facts))
    function("melodia_lanes_new", c_void_p, c_void_p, c_int64)
    function("melodia_lanes_free", None, c_void_p)
    function("melodia_lanes_advance", c_int, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int)
    for name in ("read", "write"):
        function(f"melodia_lanes_{name}", c_int, c_void_p, c_int64, c_void_p)
    function(
        "melodia_choose", c_int, c_void_p, c_int64, c_void_p, c_void_p, c_int64,
        POINTER(SamplingNumbers), c_uint64, c_uint32, c_uint64, c_int, POINTER(ChoiceNumbers),
    )  # fmt: skip


def reason() -> str | None:
    """Why the engine cannot be used; None if it can."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The library; `reason()` must be None."""
    found, why = _load()
    if found is None:
        raise RuntimeError(why)
    return found


def last_error() -> str:
    """What the last call of this thread that failed complained about."""
    return library().melodia_engine_error().decode()


def instruction_set() -> str | None:
    """The instruction set that runs on this processor: "avx512", "avx2" or "portable"; None without the engine."""
    found = _load()[0]
    return None if found is None else found.melodia_engine_instruction_set().decode()


def cores() -> int:
    """Cores that this process may use."""
    return int(library().melodia_engine_cores())
