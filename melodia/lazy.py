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

    Returns:
        a function of the name; it raises AttributeError for one that is not there, and NoTorchError, which is both a
        BackendError and an ImportError, for one whose module needs torch where torch cannot be imported. So `try: from
        ... import NAME` and `except ImportError` do what they say, and who does not catch it is told what to install;
        `hasattr` raises it, too: the name is there. To ask whether it can be had, import it.

    >>> on_demand("melodia.decode", {"SamplingConfig": "config"})("SamplingConfig")
    <class 'melodia.decode.config.SamplingConfig'>
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        except ImportError as error:
            from melodia.errors import need_torch  # only now: importing the package costs nothing

            if (error.name or "torch").partition(".")[0] == "torch":
                need_torch(f"`{name}`")
            raise
        setattr(sys.modules[package], name, value)
        return value

    return load
