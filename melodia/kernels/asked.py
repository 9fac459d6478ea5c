"""The kernels that an argument `backend` asks for."""

from __future__ import annotations

from contextlib import AbstractContextManager

from melodia import backends
from melodia.kernels import use_backend


def asked_backend(backend: str) -> AbstractContextManager[None]:
    """`use_backend` for an argument: its "auto" leaves the choice to whoever chose for all.

    Raises:
        ConfigError, BackendError: as `set_backend` does, when the block is entered.

    >>> from melodia.kernels import backend_report
    >>> with use_backend("reference"), asked_backend("auto"):
    ...     backend_report().runs
    'reference'
    """
    return use_backend(backends.meant(backend))
