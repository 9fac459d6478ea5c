"""The kernels: cells and scans, and the choice of the backend that runs them.

The functions have the signatures of `melodia.kernels.reference`, which is their specification. Two backends exist:
`reference` (plain PyTorch, any device, any floating type) and `native` (the libraries built from csrc/; CPU, float32
and, except in single steps, bfloat16; CUDA, if built and usable (`melodia.kernels.cuda`), also float16).

`backend` is "auto", "reference" or "native": the environment's MELODIA_BACKEND first, then `set_backend()` or, for a
while and in one thread, `use_backend()`. auto takes native for every call it can run and reference for the others;
native raises where it cannot run a call. Nothing else ever changes the backend, and `backend_report()` says what runs
and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from melodia import backends
from melodia.errors import BackendError
from melodia.kernels import cuda, native, native_ops, recompute, reference
from melodia.kernels.recompute import Recipe

__all__ = [
    "BackendReport",
    "Recipe",
    "backend_report",
    "fast_precision",
    "gru_scan",
    "gru_step",
    "hybrid_step",
    "lookup",
    "lstm_scan",
    "lstm_step",
    "pair_scan",
    "set_backend",
    "use_backend",
    "wave_scan",
    "wavefront_steps",
]


@dataclass(frozen=True)
class BackendReport:
    """Which backend runs and why.

    Attributes:
        chosen: what was asked for: "auto", "reference" or "native".
        runs: what runs float32 calls on the CPU: "reference" or "native".
        why: a sentence.
        instruction_set: of the native backend: "amx", "avx512bf16", "avx512", "avx2" or "portable"; None where it is
            missing.
    """

    chosen: str
    runs: str
    why: str
    instruction_set: str | None


def set_backend(backend: str) -> None:
    """Choose the backend of this process.

    Args:
        backend: "auto", "reference" or "native".

    Raises:
        ConfigError: for another word.
        BackendError: "native" was asked for and is not there; the message carries the reason.
    """
    _require(backend)
    backends.choose(backend)


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """As `set_backend`, but in this thread only and while a `with` block lasts.

    What is computed backward later runs as it was computed here.

    >>> with use_backend("reference"):
    ...     backend_report().runs
    'reference'
    """
    _require(backend)
    with backends.using(backend):
        yield


def backend_report() -> BackendReport:
    """Which backend runs, and why; never raises."""
    reason = native.reason()
    isa = native.instruction_set()
    chosen = backends.chosen()
    if chosen == "reference":
        return BackendReport(chosen, "reference", "the reference backend was asked for", isa)
    if reason is None:
        why = f"the native library is loaded ({isa}); calls that it does not support go to the reference"
        if chosen == "native":
            why = f"the native backend was asked for and is loaded ({isa})"
        return BackendReport(chosen, "native", why, isa)
    return BackendReport(chosen, "reference", reason, isa)


def fast_precision(device: torch.device) -> str:
    """The precision in which training is known to take less time there: "bf16" or "fp32".

    bf16 on a processor whose native operators have AMX or AVX512-BF16; fp32 on GPUs, where it was not measured.
    """
    native_runs = device.type == "cpu" and backend_report().runs == "native"
    return "bf16" if native_runs and native.instruction_set() in ("amx", "avx512bf16") else "fp32"


def _require(backend: str) -> None:
    """Raises ConfigError where there is no such backend, and BackendError where it cannot run."""
    backends.validated(backend, "the backend")
    if backend == "native":
        _require_native()


def _require_native() -> None:
    reason = _native_reason()
    if reason is not None:
        raise BackendError(
            f"the native backend was asked for, but {reason}; build it (see CONTRIBUTING.md) or use auto"
        )


def _native_reason() -> str | None:
    """`native.reason`, which a compiled graph may take for a constant: the library is loaded once or never."""
    return native.reason()


# What torch.compiler.assume_constant_result does, without importing the compiler, which takes a second.
_native_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _unfit(operands: tuple[Tensor, ...], others: tuple[Tensor, ...], half: bool) -> str | None:
    """Why the native backend cannot run a call with these arguments; None if it can.

    Args:
        operands: what must be of one type.
        others: states and biases, each of any type that the call knows.
        half: whether the call knows bfloat16 on the CPU.
    """
    if _derived():
        return "it runs under no transform of torch.func, and has no forward-mode derivatives"
    if all(x.is_cpu and x.dtype == torch.float32 for x in (*operands, *others)):
        return None  # soon said: single steps are short
    if any(x.device.type == "cuda" for x in (*operands, *others)):
        return cuda.unfit(operands, others)
    amp = torch.is_autocast_enabled("cpu")  # then the operators convert by themselves
    known = (
        (torch.float32, torch.bfloat16, torch.float16) if amp else (torch.float32, torch.bfloat16)[: 1 + half]
    )
    for x in (*operands, *others):
        if x.device.type != "cpu":
            return f"it runs on the CPU and on CUDA devices only (received a tensor on {x.device})"
        if x.dtype not in known:
            names = "float32 and bfloat16" if half else "float32"
            return f"it runs in {names} only (received {x.dtype})"
    types = {x.dtype for x in operands}
    if len(types) > 1 and not amp:
        return f"gates and weights must be of one type (received {' and '.join(sorted(map(str, types)))})"
    return None


def _derived() -> bool:
    """Whether torch calls in a way that knows no registered gradients, which then were 0 or an error."""
    return forward_ad._current_level >= 0 or _transformed()


def _transformed() -> bool:
    """Whether a transform of torch.func is at work."""
    return bool(_functorch.get_interpreter_stack())


# A graph has them where it was traced, and guards for those around it.
_derived._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _native_runs(*operands: Tensor, others: tuple[Tensor, ...] = (), half: bool = False) -> bool:
    """Whether this call goes to the native backend; raises where it must and cannot."""
    chosen = backends.chosen()
    if chosen == "reference":
        return False
    if chosen == "native":
        _require_native()
        unfit = _unfit(operands, others, half)
        if unfit is not None:
            raise BackendError(f"the native backend was asked for, but {unfit}; use auto or reference")
        return True
    return _native_reason() is None and _unfit(operands, others, half) is None


def lstm_step(
    gates_x: Tensor,  # [B, 4H]
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, H]
    bias_hh: Tensor,  # [4H]
) -> tuple[Tensor, Tensor]:
    """Advance an LSTM cell by one step; see `reference.lstm_step`."""
    if _native_runs(gates_x, h, c, weight_hh, bias_hh):
        return native_ops.lstm_step(gates_x, h, c, weight_hh, bias_hh)
    return reference.lstm_step(gates_x, h, c, weight_hh, bias_hh)


def gru_step(
    gates_x: Tensor,  # [B, 3H]
    h: Tensor,  # [B, H]
    weight_hh: Tensor,  # [3H, H]
    bias_hh: Tensor,  # [3H]
) -> Tensor:
    """Advance a GRU cell by one step; see `reference.gru_step`."""
    if _native_runs(gates_x, h, weight_hh, bias_hh):
        return native_ops.gru_step(gates_x, h, weight_hh, bias_hh)
    return reference.gru_step(gates_x, h, weight_hh, bias_hh)


def _recomputes() -> bool:
    """Whether a recipe is worth keeping: a gradient may be asked for, and no compiler or transform is at work."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and not _transformed()


def lstm_scan(
    gates_x: Tensor | Recipe,  # [T, B, 4H]
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, H]
    bias_hh: Tensor,  # [4H]
    lengths: Tensor | None = None,  # [B] int64
) -> tuple[Tensor, Tensor, Tensor]:
    """Run an LSTM cell over T steps; see `reference.lstm_scan`. A recipe's gates are recomputed in backward."""
    if isinstance(gates_x, Recipe):
        if not _recomputes():
            return lstm_scan(gates_x.follow(), h, c, weight_hh, bias_hh, lengths)
        if _native_runs(weight_hh, others=(h, c, bias_hh), half=True):
            return recompute.native_lstm_scan(gates_x, h, c, weight_hh, bias_hh, lengths)
        return recompute.reference_scan(reference.lstm_scan, gates_x, h, c, weight_hh, bias_hh, lengths)
    if _native_runs(gates_x, weight_hh, others=(h, c, bias_hh), half=True):
        return native_ops.lstm_scan(gates_x, h, c, weight_hh, bias_hh, lengths)
    return reference.lstm_scan(gates_x, h, c, weight_hh, bias_hh, lengths)


def gru_scan(
    gates_x: Tensor | Recipe,  # [T, B, 3H]
    h: Tensor,  # [B, H]
    weight_hh: Tensor,  # [3H, H]
    bias_hh: Tensor,  # [3H]
    lengths: Tensor | None = None,  # [B] int64
) -> tuple[Tensor, Tensor]:
    """Run a GRU cell over T steps; see `reference.gru_scan`. A recipe's gates are recomputed in backward."""
    if isinstance(gates_x, Recipe):
        if not _recomputes():
            return gru_scan(gates_x.follow(), h, weight_hh, bias_hh, lengths)
        if _native_runs(weight_hh, others=(h, bias_hh), half=True):
            return recompute.native_gru_scan(gates_x, h, weight_hh, bias_hh, lengths)
        return recompute.reference_scan(reference.gru_scan, gates_x, h, weight_hh, bias_hh, lengths)
    if _native_runs(gates_x, weight_hh, others=(h, bias_hh), half=True):
        return native_ops.gru_scan(gates_x, h, weight_hh, bias_hh, lengths)
    return reference.gru_scan(gates_x, h, weight_hh, bias_hh, lengths)


def pair_scan(
    lstm_gates_x: Tensor | Recipe,  # [T, B, 4H]
    gru_gates_x: Tensor | Recipe,  # [T, B, 3H]
    h_lstm: Tensor,  # [B, H]
    c_lstm: Tensor,  # [B, H]
    h_gru: Tensor,  # [B, H]
    weight_hh_lstm: Tensor,  # [4H, H]
    bias_hh_lstm: Tensor,  # [4H]
    weight_hh_gru: Tensor,  # [3H, H]
    bias_hh_gru: Tensor,  # [3H]
    lengths: Tensor | None = None,  # [B] int64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run an LSTM and a GRU side by side over T steps; see `reference.pair_scan`. Both gates or none by recipe."""
    if isinstance(lstm_gates_x, Recipe) or isinstance(gru_gates_x, Recipe):
        lstm = lstm_scan(lstm_gates_x, h_lstm, c_lstm, weight_hh_lstm, bias_hh_lstm, lengths)
        gru = gru_scan(gru_gates_x, h_gru, weight_hh_gru, bias_hh_gru, lengths)
        return lstm[0], gru[0], *lstm[1:], gru[1]
    tensors = (lstm_gates_x, gru_gates_x, h_lstm, c_lstm, h_gru)
    weights = (weight_hh_lstm, bias_hh_lstm, weight_hh_gru, bias_hh_gru)
    operands = (lstm_gates_x, gru_gates_x, weight_hh_lstm, weight_hh_gru)
    others = (h_lstm, c_lstm, h_gru, bias_hh_lstm, bias_hh_gru)
    if _native_runs(*operands, others=others, half=True):
        return native_ops.pair_scan(*tensors, *weights, lengths)
    return reference.pair_scan(*tensors, *weights, lengths)


def wavefront_steps(like: Tensor) -> int:
    """After how many steps of a scan the level above it may begin; 0: when all are done.

    More than 0 where scans that run side by side cost less than one after the other: on a CUDA device.

    Args:
        like: a tensor of the scan.
    """
    return cuda.wavefront_steps() if like.is_cuda and _native_runs(like) else 0


def wave_scan(
    gates_x: Sequence[Tensor],  # [T, B, 4H] or [T, B, 3H] each
    h: Sequence[Tensor],  # [B, H] each
    c: Sequence[Tensor],  # [B, H] of each LSTM
    weight_hh: Sequence[Tensor],  # [4H, H] or [3H, H] each
    bias_hh: Sequence[Tensor],  # [4H] or [3H] each
    lengths: Sequence[Tensor] = (),  # none, or [B] int64 of each cell
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Run several cells side by side, each over its own steps; see `reference.wave_scan`."""
    if _native_runs(*gates_x, *weight_hh, others=(*h, *c, *bias_hh), half=True):
        return native_ops.wave_scan(gates_x, h, c, weight_hh, bias_hh, lengths)
    return reference.wave_scan(gates_x, h, c, weight_hh, bias_hh, lengths)


def lookup(
    index: Tensor,  # [T, B, K] int64
    table: Tensor,  # [R, G]
) -> Tensor:
    """Sum K rows of a table at every step; see `reference.lookup`."""
    if _native_runs(table, half=True):
        return native_ops.lookup(index, table)
    return reference.lookup(index, table)


def hybrid_step(
    gates_x: Sequence[Tensor],  # [B, GH] each
    state: Sequence[Tensor],  # [B, H] each
    weights: Sequence[Tensor],
    levels: Sequence[str],
    layer_norm: bool = False,
    residual: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Advance a whole stack by one token in one call; see `reference.hybrid_step`.

    Gradients of the native operator come from the reference's formulas.
    """
    matrices = (x for x in weights if x.dim() == 2)
    if _native_runs(*gates_x, *matrices, others=(*state, *(x for x in weights if x.dim() != 2))):
        return native_ops.hybrid_step(gates_x, state, weights, levels, layer_norm, residual)
    return reference.hybrid_step(gates_x, state, weights, levels, layer_norm, residual)
