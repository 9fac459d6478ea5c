"""The CUDA kernels: loaded when a CUDA tensor first asks for them, with the reason kept where they cannot be.

The library (csrc/cuda but for its decoder, built by setup.py with MELODIA_CUDA) implements the operators of
`melodia.kernels.native_ops` for CUDA tensors in float32, bfloat16 and float16. It loads on a machine without a GPU;
`reason()` says, in a sentence, why nothing runs there. Variables choose how scans and steps of stacks run, for
comparisons:

    MELODIA_CUDA_SCAN=automatic|resident|steps|rows        one launch for all steps; a launch per step; a block per row
    MELODIA_CUDA_EXCHANGE=automatic|counter|in_band        how blocks of one launch hand each other the state
    MELODIA_CUDA_WAVEFRONT=N                               steps after which the next level of a stack begins; 0: all

Products of float32 scans round their operands to tf32 where torch's own may
(`torch.backends.cuda.matmul.fp32_precision`, `torch.set_float32_matmul_precision`), as it stands when a scan begins.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from melodia.kernels import native
from melodia.kernels.amp import LOW_PRECISION

LIBRARY = Path(__file__).with_name("libmelodia_cuda.so")
TYPES = (torch.float32, torch.bfloat16, torch.float16)
SPIN_LIMIT_NS = 2_000_000_000
WAVEFRONT_STEPS = 64
_CHOICES = {
    "MELODIA_CUDA_SCAN": ("automatic", "resident", "steps", "rows"),
    "MELODIA_CUDA_EXCHANGE": ("automatic", "counter", "in_band"),
}

# The arguments that autocast converts, by operator: gates, weights and tables. States and biases stay, which of a
# list of weights are those that are no matrices.
_CAST = LOW_PRECISION | {"lstm_step": (0, 3), "gru_step": (0, 2), "hybrid_step": (0, 2)}
_IMPLEMENTATIONS = torch.library.Library("melodia", "IMPL")


def _autocast(name: str) -> Callable[..., Any]:
    """The operator under autocast: its operands in autocast's type, sums and states in float32 as always."""

    def call(*arguments: Any) -> Any:
        dtype = torch.get_autocast_dtype("cuda")
        converted = [_cast(x, dtype) if k in _CAST[name] else x for k, x in enumerate(arguments)]
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)):
            return getattr(torch.ops.melodia, name)(*converted)

    return call


def _cast(x: Any, dtype: torch.dtype) -> Any:
    """A tensor, or the gates and matrices of a list, converted."""
    return [y.to(dtype) if y.dim() >= 2 else y for y in x] if isinstance(x, (list, tuple)) else x.to(dtype)


def build_facts() -> dict[str, Any]:
    """What the build noted of the CUDA kernels: nvcc, architectures, registers, or the reason why there are none."""
    facts = native.build_facts().get("cuda")
    return facts if isinstance(facts, dict) else {}


def _choice(variable: str) -> int:
    """The number of what a variable chooses; ValueError for another word."""
    names = _CHOICES[variable]
    word = os.environ.get(variable, "").strip().lower() or names[0]
    if word not in names:
        raise ValueError(f"{variable} must be one of {', '.join(names)} (received {word!r})")
    return names.index(word)


@lru_cache(maxsize=1)
def wavefront_steps() -> int:
    """After how many steps the next level of a stack begins; 0: after all. ValueError where it is no number."""
    word = os.environ.get("MELODIA_CUDA_WAVEFRONT", "").strip() or str(WAVEFRONT_STEPS)
    if not word.isdecimal():
        raise ValueError(f"MELODIA_CUDA_WAVEFRONT must be a number of steps, 0 for none (received {word!r})")
    return int(word)


def _follow_torch() -> None:
    """Allow tf32 where torch does."""
    library = _load()[0]
    if library is not None and not torch.compiler.is_compiling():
        library.melodia_cuda_allow_tf32(torch.backends.cuda.matmul.fp32_precision == "tf32")


@native.once
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library once: it, or the reason why not."""
    missing = native.reason()  # it has the schemas
    if missing is not None:
        return None, missing
    if not LIBRARY.exists():
        why = build_facts().get("reason") or "melodia was installed without them"
        return None, f"the CUDA kernels were not built: {why}"
    try:
        path, exchange = _choice("MELODIA_CUDA_SCAN"), _choice("MELODIA_CUDA_EXCHANGE")
        torch.ops.load_library(str(LIBRARY))
        library = ctypes.CDLL(str(LIBRARY))
        library.melodia_cuda_problem.restype = ctypes.c_char_p
        library.melodia_cuda_configure.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_uint64]
        library.melodia_cuda_configure(path, exchange, SPIN_LIMIT_NS)
        library.melodia_cuda_allow_tf32.argtypes = [ctypes.c_int32]
        wavefront_steps()  # what is wrong with it is said now
        for name in _CAST:
            _IMPLEMENTATIONS.impl(name, _autocast(name), "AutocastCUDA")
    except Exception as error:  # whatever is wrong with the library must not break the fallback
        return None, f"the CUDA kernels do not load: {error}"
    return library, None


def reason() -> str | None:
    """Why no CUDA kernel can run here; None if they can."""
    return _reason()


reason._dynamo_marked_constant = True  # type: ignore[attr-defined]  # it never changes; see melodia.kernels


@lru_cache(maxsize=1)
def _reason() -> str | None:
    library, why = _load()
    if library is None:
        return why
    if not torch.cuda.is_available():
        problem = library.melodia_cuda_problem()
        if torch.version.cuda is None:
            return f"the CUDA kernels are built, but this torch ({torch.__version__}) has no CUDA"
        return (
            f"the CUDA kernels are built, but {problem.decode() if problem else 'torch sees no CUDA device'}"
        )
    problem = library.melodia_cuda_problem()
    return None if problem is None else f"the CUDA kernels are built, but {problem.decode()}"


def describe() -> str:
    """What there is and why it is not used, in a line; for `melodia info`.

    >>> isinstance(describe(), str)
    True
    """
    why = reason()
    if why is not None and not LIBRARY.exists():
        return why
    facts = build_facts()
    built = ", ".join(f"sm_{n}" for n in facts.get("architectures", []))
    with_nvcc = f"built with nvcc {facts.get('nvcc', '?')} for {built}"
    return with_nvcc if why is None else f"{why} ({with_nvcc})"


def unfit(operands: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> str | None:
    """Why the kernels cannot run a call with these arguments, some of which are on a CUDA device; None if they can.

    Args:
        operands: gates, weights and tables, which must be of one type.
        others: states and biases, each of any type that the kernels know.
    """
    why = reason()
    if why is not None:
        return why
    _follow_torch()
    devices = {x.device for x in (*operands, *others)}
    if len(devices) > 1:
        return f"all tensors must be on one device (received {' and '.join(sorted(map(str, devices)))})"
    for x in (*operands, *others):
        if x.dtype not in TYPES:
            return f"it runs in float32, bfloat16 and float16 only (received {x.dtype})"
    types = {x.dtype for x in operands}
    if len(types) > 1 and not torch.is_autocast_enabled("cuda"):
        return f"gates and weights must be of one type (received {' and '.join(sorted(map(str, types)))})"
    return None
