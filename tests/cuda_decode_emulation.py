"""The CUDA decode engine's library on the emulator, as it is or with a barrier left out."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from cuda_emulation import one_at_a_time

from melodia.engine import cuda

CSRC = Path(__file__).resolve().parent.parent / "csrc"
COMPILER = shutil.which("g++") or shutil.which("c++")
ENTRIES = ("cuda/decode_fp32.cu", "cuda/decode_bf16.cu", "cuda/decode_int8.cu")
KERNEL = "decode_kernels.cpp"  # all entries as one source
SOURCES = (
    KERNEL,
    "cuda/decode_kernel.cu",
    "cuda/decode_device.cu",
    "cuda/decode_clusters.cu",
    "cuda/decode_lanes.cu",
    "cuda/decode_loop.cu",
    "cuda/decode_api.cu",
    "engine/plan.cpp",
    "engine/rules.cpp",
    "engine/voices.cpp",
)
NAMES = re.compile(r'MELODIA_(?:SYNC|ALL|ORDER|EPOCH)\(\s*"([^"]+)"')


def compile_object(folder: Path, source: str, mutant: str = "") -> Path:
    """One source for the emulator; `mutant` names the barrier that is left out.

    Kernels as they are tell the emulator of pointers that are not aligned.
    """
    out = folder / f"{Path(source).stem}.o"
    file = CSRC / source
    flags = ["-x", "c++", "-std=c++17", "-O0" if mutant else "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC"]
    flags += [
        "-fvisibility=hidden",
        "-U_FORTIFY_SOURCE",
        "-DMELODIA_EMULATOR",
        f'-DMELODIA_MUTANT="{mutant}"',
    ]
    flags += ["-Wno-unused-but-set-variable", f"-I{CSRC}"]
    folder.mkdir(parents=True, exist_ok=True)
    if source == KERNEL:
        flags += [] if mutant else ["-fsanitize=alignment"]
        file = folder / KERNEL
        file.write_text("".join(f'#include "{entry}"\n' for entry in ENTRIES))
    subprocess.run([str(COMPILER), *flags, "-c", str(file), "-o", str(out)], check=True, timeout=300)
    return out


def link(folder: Path, objects: list[Path]) -> Path:
    """The library from its objects."""
    out = folder / "libmelodia_cuda_emulator.so"
    subprocess.run(
        [str(COMPILER), "-shared", *map(str, objects), "-o", str(out), "-Wl,-z,defs"], check=True, timeout=300
    )
    return out


@lru_cache(maxsize=1)
def build() -> Path:
    """The library of the sources as they are; kept in build/ until they change."""
    shared = ("device", "numbers", "launch", "cell")
    files = [*CSRC.glob("cuda/decode_*"), *CSRC.glob("cuda/emulator*")]
    files += [CSRC / f"cuda/{name}.h" for name in shared]
    files += [*CSRC.glob("engine/*.h"), *CSRC.glob("*.h"), *CSRC.glob("engine/*.cpp")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    folder = CSRC.parent / "build" / f"decode-{digest.hexdigest()[:16]}"
    out = folder / "libmelodia_cuda_emulator.so"
    with one_at_a_time(folder):
        if not out.exists():
            with ThreadPoolExecutor(2) as pool:
                link(folder, list(pool.map(lambda source: compile_object(folder, source), SOURCES)))
    return out


def mutant_names() -> list[str]:
    """What orders threads in the decode kernel."""
    found = [
        name for file in sorted(CSRC.glob("cuda/decode_*.h")) for name in NAMES.findall(file.read_text())
    ]
    assert len(found) == len(set(found)), "a name stands in two places"
    return found


@lru_cache(maxsize=64)
def load(path: Path) -> ctypes.CDLL:
    """A library that runs on the emulator."""
    library = cuda.load(path)
    library.melodia_emulator_configure.argtypes = [
        ctypes.c_uint64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int32,
    ]
    library.melodia_emulator_faults.restype = ctypes.c_int64
    return library


def configure(
    library: ctypes.CDLL,
    *,
    schedule: int = 1,
    blocks: int = 8,
    shared_bytes: int = 64 << 10,
    expire: bool = False,
) -> None:
    """Choose the schedule and the size of the device."""
    library.melodia_emulator_configure(schedule, blocks, shared_bytes, expire)
