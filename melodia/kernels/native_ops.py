"""The native operators, with the signatures of the reference, and what Python tells torch about them.

The schemas stand in csrc/ops.cpp, the shapes of results in `shapes`, gradients in `gradients`, the AMP rule in `amp`.
`native.py` loads the library and then calls `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from melodia.kernels import amp, gradients, reference, shapes
from melodia.kernels.shapes import GATES, NOTHING

_ops = torch.ops.melodia
_SCANS = ("lstm_scan", "gru_scan", "pair_scan", "wave_scan")
_STEPS = ("lstm_step", "gru_step")
_STACKS = ("hybrid_step",)
_OTHERS = ("lookup",)


def _keep(*tensors: Tensor) -> int:
    """What the scan must keep: all that a backward pass needs, if one may come."""
    return GATES if torch.is_grad_enabled() and any(x.requires_grad for x in tensors) else NOTHING


def lstm_step(
    gates_x: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """As `reference.lstm_step`."""
    return _ops.lstm_step(gates_x, h, c, weight_hh, bias_hh)


def gru_step(gates_x: Tensor, h: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
    """As `reference.gru_step`."""
    return _ops.gru_step(gates_x, h, weight_hh, bias_hh)


def lstm_scan(
    gates_x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.lstm_scan`."""
    keep = _keep(gates_x, h, c, weight_hh, bias_hh)
    output, h_n, c_n, _, _ = _ops.lstm_scan(gates_x, h, c, weight_hh, bias_hh, lengths, keep)
    return output, h_n, c_n


def gru_scan(
    gates_x: Tensor, h: Tensor, weight_hh: Tensor, bias_hh: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.gru_scan`."""
    keep = _keep(gates_x, h, weight_hh, bias_hh)
    output, h_n, _ = _ops.gru_scan(gates_x, h, weight_hh, bias_hh, lengths, keep)
    return output, h_n


def pair_scan(
    lstm_gates_x: Tensor,
    gru_gates_x: Tensor,
    h_lstm: Tensor,
    c_lstm: Tensor,
    h_gru: Tensor,
    weight_hh_lstm: Tensor,
    bias_hh_lstm: Tensor,
    weight_hh_gru: Tensor,
    bias_hh_gru: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.pair_scan`."""
    tensors = (lstm_gates_x, gru_gates_x, h_lstm, c_lstm, h_gru)
    weights = (weight_hh_lstm, bias_hh_lstm, weight_hh_gru, bias_hh_gru)
    return _ops.pair_scan(*tensors, *weights, lengths, _keep(*tensors, *weights))[:5]


def wave_scan(
    gates_x: Sequence[Tensor],
    h: Sequence[Tensor],
    c: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    lengths: Sequence[Tensor] = (),
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """As `reference.wave_scan`."""
    lists = [list(x) for x in (gates_x, h, c, weight_hh, bias_hh)]
    keep = _keep(*(x for some in lists for x in some))
    output, h_n, c_n, _, _ = _ops.wave_scan(*lists, list(lengths), keep)
    return output, h_n, c_n


def lookup(index: Tensor, table: Tensor) -> Tensor:
    """As `reference.lookup`."""
    return _ops.lookup(index, table)


def hybrid_step(
    gates_x: Sequence[Tensor],
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    levels: Sequence[str],
    layer_norm: bool = False,
    residual: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """As `reference.hybrid_step`."""
    codes = [reference.LEVELS.index(level) for level in levels]
    output, after = _ops.hybrid_step(list(gates_x), list(state), list(weights), codes, layer_norm, residual)
    return output, list(after)


def register() -> None:
    """Tell torch their shapes, gradients and AMP rule; once, after the library is loaded."""
    library = torch.library

    def fake(name: str) -> None:
        library.register_fake(f"melodia::{name}", getattr(shapes, name))

    def gradient(name: str, backward: Callable[..., Any], setup: Callable[..., None]) -> None:
        library.register_autograd(
            f"melodia::{name}", gradients.without_autocast(backward), setup_context=setup
        )

    for name in (*_STEPS, *_STACKS, *_SCANS, *_OTHERS):
        fake(name)
    for name in ("lstm_gates", "gru_gates", *(f"{name}_backward" for name in (*_SCANS, *_OTHERS))):
        fake(name)
        library.register_autograd(f"melodia::{name}", gradients.no_second_derivative)
    gradient("lstm_step", gradients.lstm_step_backward, gradients.step_setup)
    gradient("gru_step", gradients.gru_step_backward, gradients.step_setup)
    gradient("lstm_scan", gradients.lstm_backward, gradients.lstm_setup)
    gradient("gru_scan", gradients.gru_backward, gradients.gru_setup)
    gradient("pair_scan", gradients.pair_backward, gradients.pair_setup)
    gradient("wave_scan", gradients.wave_backward, gradients.wave_setup)
    gradient("lookup", gradients.lookup_backward, gradients.lookup_setup)
    gradient("hybrid_step", gradients.hybrid_step_backward, gradients.hybrid_step_setup)
    amp.register((*_STEPS, *_STACKS, *_SCANS, *_OTHERS))
