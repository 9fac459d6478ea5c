"""The names of the backends, and the one that was asked for. No imports but Python's own and the errors.

`melodia.kernels` obeys it for torch, `melodia.sampler` for the engine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from melodia.errors import ConfigError

BACKENDS = ("auto", "reference", "native")


def validated(backend: str, origin: str) -> str:
    """The name itself; raises ConfigError, naming its origin, if there is no such backend."""
    if backend not in BACKENDS:
        raise ConfigError(f"{origin} must be one of {', '.join(BACKENDS)} (received {backend!r})")
    return backend


_chosen = validated(os.environ.get("MELODIA_BACKEND", "").strip().lower() or "auto", "MELODIA_BACKEND")


class _OfThread(threading.local):  # torch.compile follows it, but no ContextVar
    chosen: str | None = None


_of_thread = _OfThread()


def chosen() -> str:
    """What was asked for: in this thread by `using`, else by `choose`, else by MELODIA_BACKEND, else "auto"."""
    return _of_thread.chosen or _chosen


def meant(backend: str) -> str:
    """What an argument `backend` asks for: its "auto" leaves the choice to whoever chose for all.

    >>> meant("reference")
    'reference'
    """
    return chosen() if backend == "auto" else backend


def choose(backend: str) -> None:
    """Ask for a backend in the whole process; `melodia.kernels.set_backend` also sees to it that it is there.

    Raises:
        ConfigError: there is no such backend.
    """
    global _chosen
    _chosen = validated(backend, "the backend")


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Ask for a backend in this thread, while a `with` block lasts.

    Raises:
        ConfigError: there is no such backend.
    """
    before = _of_thread.chosen
    _of_thread.chosen = validated(backend, "the backend")
    try:
        yield
    finally:
        _of_thread.chosen = before
