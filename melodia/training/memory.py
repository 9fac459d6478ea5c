"""Memory that is freed and needed again a moment later."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Ask the C library to keep what this process frees, for its next allocations, until it ends.

    A training iteration frees and allocates the same large tensors; by default each goes back to the system, and its
    pages are cleared anew when they are touched: 14 % of the time of an iteration (parallel, H = 512, bf16, two cores
    with AMX: 0.266 against 0.229 s). For programs that train and end, since it holds for the whole process.

    Returns:
        whether the C library can do that (glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
