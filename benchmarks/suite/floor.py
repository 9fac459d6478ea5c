"""The time to read a buffer once: no way that reads its weights for every token can be faster.

NumPy's reductions read at the speed of the memory system. A call reads the buffer many times (a view that repeats it
without a copy), so that starting a thread is no part of the figure; two threads read a half each, as the engine's do.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.lib.stride_tricks import as_strided

from benchmarks.suite.measuring import Way

READERS = {"or": np.bitwise_or, "max": np.maximum}
"""Which of them is faster depends on the processor; the faster one is the floor."""


class Reading:
    """A buffer that `threads` threads read.

    Args:
        size: bytes.
        threads: each has an equal share.
        reader: of `READERS`.
    """

    def __init__(self, size: int, threads: int, reader: str) -> None:
        words = max(1, size // 8 // threads)
        self.size = 8 * words * threads
        self._parts = [np.ones(words, np.int64) for _ in range(threads)]
        self._reduce = READERS[reader].reduce
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self, times: int) -> None:
        """Read everything so many times."""
        if self._pool is None:
            self._read(self._parts[0], times)
        else:
            list(self._pool.map(self._read, self._parts, [times] * len(self._parts)))

    def _read(self, part: np.ndarray, times: int) -> None:
        repeated = as_strided(part, (times, len(part)), (0, part.itemsize), writeable=False)
        self._reduce(repeated, axis=1)


def floor_ways(size: int, threads: int) -> dict[str, Way]:
    """A way for each reader, named after it."""
    return {name: Way(Reading(size, threads, name)) for name in READERS}
