"""The compiled engine, `melodia.engine._engine`: imported when first needed; where it cannot be, the reason is kept."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
BUILD_FACTS = FOLDER.parent / "kernels" / "native_build.json"

NEAREST = {"amx": "avx512bf16"}
"""What the engine runs under a `MELODIA_CPU` that only the operators know: one stream has no use for tiles."""


@lru_cache(maxsize=1)
def _load() -> tuple[Any, str | None]:
    """Import the module once: it, or the reason why not."""
    if os.environ.get("MELODIA_DISABLE_EXT", "0") not in ("", "0"):
        return None, "MELODIA_DISABLE_EXT is set"
    if not any((FOLDER / f"_engine{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
        return None, f"the engine was not built: {_why_not_built()}"
    try:
        found = import_module("melodia.engine._engine")
    except ImportError as error:
        return None, f"the engine does not load: {error}"
    wish = os.environ.get("MELODIA_CPU")
    if wish and found.instruction_set() != NEAREST.get(wish, wish):
        return None, f"MELODIA_CPU={wish} is unknown to the engine, or this processor cannot run it"
    return found, None


def _why_not_built() -> str:
    others = sorted(file.name for file in FOLDER.glob("_engine.*.so"))
    if others:
        return f"{', '.join(others)} was built for another Python; reinstall melodia with this one"
    try:
        why = json.loads(BUILD_FACTS.read_text()).get("engine_reason")
    except (OSError, ValueError, AttributeError):
        why = None
    return why or "melodia was installed without it"


def reason() -> str | None:
    """Why the engine cannot be used; None if it can."""
    return _load()[1]


def module() -> Any:
    """The module; `reason()` must be None."""
    found, why = _load()
    if found is None:
        raise RuntimeError(why)
    return found


def instruction_set() -> str | None:
    """The instruction set that runs, of those that `MELODIA_CPU` may name; None without the engine."""
    found = _load()[0]
    return None if found is None else str(found.instruction_set())


def cores() -> int:
    """Cores that this process may use."""
    return int(module().cores())
