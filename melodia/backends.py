"""The names of the backends, and the one that this process was asked for. No imports but Python's own and the errors.

`melodia.kernels` obeys it for torch, `melodia.sampler` for the engine.
"""

from __future__ import annotations

import os

from melodia.errors import ConfigError

BACKENDS = ("auto", "reference", "native")


def validated(backend: str, origin: str) -> str:
    """The name itself; raises ConfigError, naming its origin, if there is no such backend."""
    if backend not in BACKENDS:
        raise ConfigError(f"{origin} must be one of {', '.join(BACKENDS)} (received {backend!r})")
    return backend


_chosen = validated(os.environ.get("MELODIA_BACKEND", "").strip().lower() or "auto", "MELODIA_BACKEND")


def chosen() -> str:
    """What was asked for: by `choose`, else by the environment's MELODIA_BACKEND, else "auto"."""
    return _chosen


def meant(backend: str) -> str:
    """What an argument `backend` asks for: its "auto" leaves the choice to whoever chose for the whole process.

    >>> meant("reference")
    'reference'
    """
    return _chosen if backend == "auto" else backend


def choose(backend: str) -> None:
    """Ask for a backend; `melodia.kernels.set_backend` also sees to it that it is there.

    Raises:
        ConfigError: there is no such backend.
    """
    global _chosen
    _chosen = validated(backend, "the backend")
