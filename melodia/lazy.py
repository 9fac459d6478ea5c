"""Names of a package that are loaded when they are first used, so that importing the package costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def on_demand(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """What a package's `__getattr__` does: load a name from the module that is its home, and keep it.

    Args:
        package: its `__name__`.
        homes: of each name the module inside the package, "decode.config".

    >>> on_demand("melodia.decode", {"SamplingConfig": "config"})("SamplingConfig")
    <class 'melodia.decode.config.SamplingConfig'>
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
