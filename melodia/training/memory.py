"""Memory of a training: what is freed and needed again a moment later, and what to do where there is too little."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from melodia.errors import TrainingError, out_of_memory, show_path
from melodia.training.config import TrainingConfig
from melodia.training.folder import holds_state

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


@contextmanager
def enough_memory(config: TrainingConfig, out: Path, device: torch.device, again: str) -> Iterator[None]:
    """Say what to do where memory runs out; `again` is what goes on with a training.

    Raises:
        TrainingError: it has.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        kept, force = "nothing has been saved yet", ""
        if holds_state(out):
            kept = f"what {show_path(out)} has saved is kept, and {again} continues from it where there is more memory"
            force = " (`force`)"
        recompute = "" if config.recompute else ", or with `recompute`"
        raise TrainingError(
            f"out of memory on {device} with `batch_size` {config.batch_size} and `window` {config.window}; {kept}. "
            f"Retrain{force} with a smaller `batch_size`, `window` or `size`{recompute}"
        ) from error
