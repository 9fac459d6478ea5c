"""Ctrl-C while libraries are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from melodia.interrupts import ctrl_c_waits


@contextmanager
def loading() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the imports inside: one that reaches torch's ends in an abort.

    Raises:
        KeyboardInterrupt: at the end, if it was pressed.
    """
    with ctrl_c_waits():
        yield
