"""The part `primitives` of gpu_check.py: what the design of the CUDA kernels rests on, measured alone.

`gpu_probe.cu` has the kernels; nvcc builds it here, for the GPU that is there.
"""

from __future__ import annotations

import ctypes
import itertools
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.gpu_tools import note, row
from build_support.toolchain import find_nvcc

SOURCE = Path(__file__).with_name("gpu_probe.cu")
CSRC = Path(__file__).resolve().parent.parent / "csrc"
WAYS = ("alone", "grid", "counter", "words", "cluster")  # as enum Way
MODULUS = 65521
NUMBERS = 1024  # of an exchange: 4 KB, what a level of 1024 units hands on
SHARED_BYTES = 200 << 10  # of a decode block
CHUNK = 4096  # bytes that a block reads at once: 16 for each thread
MEGABYTES = (3, 6, 19, 38, 1024)  # the last is far more than any L2 holds


def load(path: Path) -> ctypes.CDLL:
    """The built probe, its functions declared."""
    probe = ctypes.CDLL(str(path))
    number, microseconds = ctypes.c_int64, ctypes.POINTER(ctypes.c_double)
    probe.probe_processors.restype = number
    probe.probe_clusters.restype = number
    probe.probe_clusters.argtypes = [number, number]
    probe.probe_exchange.restype = ctypes.c_char_p
    sums = ctypes.POINTER(ctypes.c_uint32)
    probe.probe_exchange.argtypes = [ctypes.c_int, number, number, number, microseconds, sums]
    probe.probe_reading.restype = ctypes.c_char_p
    probe.probe_reading.argtypes = [ctypes.c_int, number, number, number, microseconds]
    return probe


def build(folder: Path, architecture: str) -> ctypes.CDLL:
    """Build the probe with nvcc; what is newer than its sources stays."""
    out = folder / f"gpu_probe-{architecture}.so"
    newest = max(file.stat().st_mtime for file in (SOURCE, *(CSRC / "cuda").glob("*.h")))
    if not out.exists() or out.stat().st_mtime < newest:
        nvcc = find_nvcc()
        if isinstance(nvcc, str):
            raise SystemExit(nvcc)
        flags = ["-std=c++17", "-O3", f"-arch={architecture}", "-shared", "-Xcompiler", "-fPIC", f"-I{CSRC}"]
        flags += [flag for place in nvcc.folders for flag in (f"-I{place / 'include'}", f"-L{place / 'lib'}")]
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([nvcc.path, *flags, str(SOURCE), "-o", str(out)], check=True)
    return load(out)


def here() -> ctypes.CDLL:
    """The probe for the GPU that is there."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return build(CSRC.parent / "build", f"sm_{major}{minor}")


def expected_sum(numbers: int, steps: int) -> int:
    """What every block comes to: the sum of `total + i` for all i below `numbers`, where `total` is the sum before."""
    total = 1
    for _ in range(steps):
        total = (numbers * total + numbers * (numbers - 1) // 2) % MODULUS
    return total


def exchange(probe: ctypes.CDLL, way: str, blocks: int, numbers: int, steps: int) -> float:
    """Microseconds of a launch of `steps` exchanges; RuntimeError where it cannot be or goes wrong."""
    microseconds, sums = ctypes.c_double(), (ctypes.c_uint32 * blocks)()
    why = probe.probe_exchange(WAYS.index(way), blocks, numbers, steps, ctypes.byref(microseconds), sums)
    if why is not None:
        raise RuntimeError(f"{way}, {blocks} blocks: {why.decode()}")
    if set(sums) != {expected_sum(numbers, steps)}:
        raise RuntimeError(f"{way}, {blocks} blocks: a block came to another sum")
    return microseconds.value


def reading(probe: ctypes.CDLL, shared: bool, blocks: int, size: int, passes: int) -> float:
    """Microseconds of a launch in which every block reads `size` bytes so often."""
    microseconds = ctypes.c_double()
    why = probe.probe_reading(shared, blocks, size, passes, ctypes.byref(microseconds))
    if why is not None:
        raise RuntimeError(f"reading: {why.decode()}")
    return microseconds.value


def difference(run: Callable[[int], float], few: int, many: int) -> float:
    """Microseconds of one of what `run` does so many of, launches and copies taken out: the median of five.

    Clocks sink while the host prepares the next launch, so work of 50 ms comes before each.
    """
    found = []
    for _ in range(5):
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            run(many)
        found.append((run(many) - run(few)) / (many - few))
    return statistics.median(found)


def read_once(probe: ctypes.CDLL, size: int, shared: bool = False) -> float:
    """Microseconds in which all processors together read so many bytes, which they have just read."""
    processors = probe.probe_processors()
    each = max(1, round(size / processors / CHUNK)) * CHUNK
    passes = max(10, (20 << 30) // size)  # some milliseconds
    took = difference(partial(reading, probe, shared, processors, each), passes // 10, passes)
    return took * size / (each * processors)


def primitives() -> int:
    """Microseconds of an exchange of 1024 numbers and of a step without one; GB/s of reading again and again.

    `exchange`: a step less the step of a block that makes everything by itself. `at once`: clusters that there can be.
    Read is from shared memory, from L2 and, where it does not fit, from memory.
    """
    probe = here()
    processors = probe.probe_processors()
    alone = difference(partial(exchange, probe, "alone", processors, NUMBERS), 200, 2000)
    row(what="step", way="alone", blocks=processors, us=alone)
    ways = [(way, processors) for way in ("grid", "counter", "words")]
    for way, blocks in [*ways, ("words", 16), ("cluster", 8), ("cluster", 16)]:
        clusters = probe.probe_clusters(blocks, SHARED_BYTES) if way == "cluster" else None
        try:
            step = difference(partial(exchange, probe, way, blocks, NUMBERS), 200, 2000)
        except RuntimeError as error:
            note(str(error))
            continue
        row(what="step", way=way, blocks=blocks, us=step, exchange=step - alone, **{"at once": clusters})
    for shared, megabytes in itertools.product((False, True), MEGABYTES):
        way = "shared memory" if shared else "L2 or memory"
        try:
            took = read_once(probe, megabytes << 20, shared)
        except RuntimeError as error:  # so much does not fit into shared memory
            print(error)
            continue
        rate = 1.048576e3 * megabytes / took
        row(what="reading", way=way, blocks=processors, us=took, **{"MB": megabytes, "GB/s": rate})
    return 0
