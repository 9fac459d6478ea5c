"""The native libraries and their sources."""

from __future__ import annotations

import platform
import sysconfig
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Library:
    """A shared library: where it stands in the package, what it is made of, by which tools."""

    path: str
    what: str  # in a sentence
    sources: dict[str, list[str]]  # for the C++ compiler, each with flags of its own
    kernels: dict[str, bool] = field(default_factory=dict)  # for nvcc; whether there are kernels inside
    torch: bool = False  # whether it calls torch
    python: bool = False  # whether it is a pybind11 module of the Python that builds it

    @property
    def cuda(self) -> bool:
        """Whether nvcc links it."""
        return bool(self.kernels)


FACTS = "melodia/kernels/native_build.json"  # what was built and how, or why not

# Every instruction set is an object of its own; only code behind the run-time check is compiled with its flags.
_MACHINE = platform.machine().lower()
X86, ARM = _MACHINE in ("x86_64", "amd64"), _MACHINE in ("aarch64", "arm64")
_AVX2 = ["-mavx2", "-mfma"]
_AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]

_OPERATORS: dict[str, list[str]] = {
    "csrc/ops.cpp": [],
    "csrc/cpu/step_ops.cpp": [],
    "csrc/cpu/wave_ops.cpp": [],
    "csrc/cpu/scan_ops.cpp": [],
    "csrc/cpu/hybrid_ops.cpp": [],
    "csrc/cpu/dispatch.cpp": [],
    "csrc/cpu/kernels_portable.cpp": [],
}
_OPERATORS_X86: dict[str, list[str]] = {
    "csrc/cpu/kernels_avx2.cpp": _AVX2,
    "csrc/cpu/kernels_avx512.cpp": _AVX512,
    "csrc/cpu/kernels_avx512bf16.cpp": [*_AVX512, "-mavx512bf16"],
    "csrc/cpu/kernels_amx.cpp": [*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}

_ENGINE: dict[str, list[str]] = {
    "csrc/engine/blocks.cpp": [],
    "csrc/engine/dispatch.cpp": [],
    "csrc/engine/engine.cpp": [],
    "csrc/engine/kernels_portable.cpp": [],
    "csrc/engine/loop.cpp": [],
    "csrc/engine/module.cpp": [],
    "csrc/engine/module_loop.cpp": [],
    "csrc/engine/plan.cpp": [],
    "csrc/engine/rules.cpp": [],
    "csrc/engine/team.cpp": [],
    "csrc/engine/voices.cpp": [],
}
_ENGINE_X86: dict[str, list[str]] = {
    "csrc/engine/kernels_avx2.cpp": _AVX2,
    "csrc/engine/kernels_avx512.cpp": [*_AVX512, "-mavx512vnni"],
    "csrc/engine/kernels_avx512bf16.cpp": [*_AVX512, "-mavx512bf16", "-mavx512vnni"],
}
_ENGINE_ARM: dict[str, list[str]] = {
    "csrc/engine/kernels_neon.cpp": [],
    "csrc/engine/kernels_neondot.cpp": ["-march=armv8.2-a+dotprod"],
}

# The names are those that native.py and cuda.py of melodia/kernels and melodia/engine load.
OPERATORS = Library(
    "melodia/kernels/libmelodia_ops.so",
    "native library",
    _OPERATORS | (_OPERATORS_X86 if X86 else {}),
    torch=True,
)
ENGINE = Library(
    f"melodia/engine/_engine{sysconfig.get_config_var('EXT_SUFFIX')}",
    "engine",
    _ENGINE | (_ENGINE_X86 if X86 else _ENGINE_ARM if ARM else {}),
    python=True,
)
CUDA = Library(
    "melodia/kernels/libmelodia_cuda.so",
    "CUDA kernels",
    {"csrc/cuda/ops_cuda.cpp": [], "csrc/cuda/hybrid_ops.cpp": [], "csrc/cuda/wave_ops.cpp": []},
    {
        "csrc/cuda/hybrid_step.cu": True,
        "csrc/cuda/scan_forward.cu": True,
        "csrc/cuda/scan_backward.cu": True,
        "csrc/cuda/scan_rows.cu": True,
        "csrc/cuda/lookup.cu": True,
        "csrc/cuda/gates.cu": True,
        "csrc/cuda/scan.cu": False,
        "csrc/cuda/hybrid.cu": False,
    },
    torch=True,
)
# Followers and rules come from the engine, whose sources they share.
CUDA_ENGINE = Library(
    "melodia/engine/libmelodia_cuda_engine.so",
    "CUDA engine",
    {"csrc/engine/plan.cpp": [], "csrc/engine/rules.cpp": [], "csrc/engine/voices.cpp": []},
    {
        "csrc/cuda/decode_bf16.cu": True,
        "csrc/cuda/decode_fp32.cu": True,
        "csrc/cuda/decode_int8.cu": True,
        "csrc/cuda/decode_kernel.cu": False,
        "csrc/cuda/decode_device.cu": False,
        "csrc/cuda/decode_clusters.cu": False,
        "csrc/cuda/decode_lanes.cu": False,
        "csrc/cuda/decode_loop.cu": False,
        "csrc/cuda/decode_api.cu": False,
    },
)
LIBRARIES = (
    OPERATORS,
    ENGINE,
    CUDA_ENGINE,
    CUDA,
)  # of the last two, what takes longest comes first

# What a source distribution must hold, whatever the machine.
ALL_SOURCES = [*_OPERATORS, *_OPERATORS_X86, *_ENGINE, *_ENGINE_X86, *_ENGINE_ARM]
