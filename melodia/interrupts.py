"""Ctrl-C in places where it must not break anything off half-way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Let Ctrl-C wait for the end of what is inside; then its handler is called, which as a rule raises.

    Only in the main thread, which alone hears it, and only where Python handles it.

    >>> before = signal.signal(signal.SIGINT, signal.default_int_handler)
    >>> with ctrl_c_waits():
    ...     signal.getsignal(signal.SIGINT).__name__
    'note'
    >>> signal.signal(signal.SIGINT, before).__name__
    'default_int_handler'
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append((number, frame))

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            before(*pressed[-1])
