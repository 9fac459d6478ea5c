"""The native library: loaded when first needed, with the reason kept where it cannot be.

Nothing here raises because the library is missing: `reason()` says why it is, in a sentence, and the dispatcher
(`melodia.kernels`) decides what to do about it.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch

from melodia.kernels import native_ops

LIBRARY = Path(__file__).with_name("libmelodia_ops.so")
BUILD_FACTS = Path(__file__).with_name("native_build.json")

Result = TypeVar("Result")


def once(make: Callable[[], Result]) -> Callable[[], Result]:
    """Run a function the first time only; threads that ask meanwhile wait, which those of `lru_cache` do not."""
    made: list[Result] = []
    lock = threading.RLock()

    @wraps(make)
    def what_it_made() -> Result:
        if not made:
            with lock:
                if not made:
                    made.append(make())
        return made[0]

    return what_it_made


@lru_cache(maxsize=1)
def build_facts() -> dict[str, Any]:
    """What the build noted: compiler, torch, platform and, where it made no library, the reason."""
    try:
        facts = json.loads(BUILD_FACTS.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


@once
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library once: it, or the reason why not."""
    if os.environ.get("MELODIA_DISABLE_EXT", "0") not in ("", "0"):
        return None, "MELODIA_DISABLE_EXT is set"
    if not LIBRARY.exists():
        why = build_facts().get("reason") or "melodia was installed without it"
        return None, f"the native library was not built: {why}"
    try:
        torch.ops.load_library(str(LIBRARY))
        library = ctypes.CDLL(str(LIBRARY))
        library.melodia_cpu_name.restype = ctypes.c_char_p
        library.melodia_cpu_set.argtypes = [ctypes.c_char_p]
        wish = os.environ.get("MELODIA_CPU")
        if wish and library.melodia_cpu_set(wish.encode()) != 0:
            return None, f"MELODIA_CPU={wish} is unknown, or this processor cannot run it"
        native_ops.register()
    except Exception as error:  # whatever is wrong with the library must not break the fallback
        return None, f"the native library does not load: {error}"
    return library, None


def reason() -> str | None:
    """Why the native library cannot be used; None if it can."""
    return _load()[1]


def instruction_set() -> str | None:
    """The instruction set that runs on this processor: as `BackendReport` has it; None without the library."""
    library = _load()[0]
    return library.melodia_cpu_name().decode() if library is not None else None


def set_instruction_set(name: str) -> bool:
    """Use another instruction set in this process, for tests and comparisons.

    Returns:
        False if it is unknown, this processor cannot run it or the library is not there.
    """
    library = _load()[0]
    return library is not None and library.melodia_cpu_set(name.encode()) == 0
