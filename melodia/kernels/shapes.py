"""The shapes of what the native operators return, for tracing: their fake kernels, by the names of the operators."""

# ruff: noqa: D103  (csrc/ops.cpp says what each operator does)
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from melodia.kernels import reference

NOTHING, CELLS, GATES = 0, 1, 2
"""What a scan keeps for its backward pass: nothing, the cells (the gates are recomputed), gates and cells."""


def _like(x: Tensor, *shape: Any, dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty(shape, dtype=dtype)


def lstm_step(gates_x: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Any:
    return _like(h, *h.shape), _like(h, *h.shape)


def gru_step(gates_x: Tensor, h: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Any:
    return _like(h, *h.shape)


def lstm_scan(
    gates_x: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, bias_hh: Tensor, lengths: Any, keep: int
) -> Any:
    (T, B, _), H = gates_x.shape, weight_hh.shape[1]
    gates = _like(gates_x, T, B, 4 * H) if keep == GATES else _like(gates_x, 0)
    cells = _like(gates_x, *((T, B, H) if keep > NOTHING else (0,)), dtype=torch.float32)
    return _like(gates_x, T, B, H), _like(h, B, H), _like(c, B, H), gates, cells


def lstm_scan_backward(
    grad_output: Any,
    grad_h_n: Any,
    grad_c_n: Any,
    gates: Tensor,
    cells: Tensor,
    c: Tensor,
    weight_hh: Tensor,
    lengths: Any,
) -> Any:
    states = (_like(c, *c.shape, dtype=torch.float32) for _ in range(2))
    return _like(gates, *gates.shape), *states


def gru_scan(gates_x: Tensor, h: Tensor, weight_hh: Tensor, bias_hh: Tensor, lengths: Any, keep: int) -> Any:
    (T, B, _), H = gates_x.shape, weight_hh.shape[1]
    gates = _like(gates_x, T, B, 4 * H) if keep == GATES else _like(gates_x, 0)
    return _like(gates_x, T, B, H), _like(h, B, H), gates


def gru_scan_backward(
    grad_output: Any,
    grad_h_n: Any,
    gates: Tensor,
    output: Tensor,
    h: Tensor,
    weight_hh: Tensor,
    lengths: Any,
) -> Any:
    T, B, H = output.shape
    gates_x, gates_h = (_like(gates, T, B, 3 * H) for _ in range(2))
    return gates_x, gates_h, _like(h, B, H, dtype=torch.float32)


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
    lengths: Any,
    keep: int,
) -> Any:
    out_lstm, h_lstm_n, c_lstm_n, lstm_gates, cells = lstm_scan(
        lstm_gates_x, h_lstm, c_lstm, weight_hh_lstm, bias_hh_lstm, lengths, keep
    )
    out_gru, h_gru_n, gru_gates = gru_scan(gru_gates_x, h_gru, weight_hh_gru, bias_hh_gru, lengths, keep)
    return out_lstm, out_gru, h_lstm_n, c_lstm_n, h_gru_n, lstm_gates, cells, gru_gates


def pair_scan_backward(
    grad_out_lstm: Any,
    grad_out_gru: Any,
    grad_h_lstm_n: Any,
    grad_c_lstm_n: Any,
    grad_h_gru_n: Any,
    lstm_gates: Tensor,
    cells: Tensor,
    gru_gates: Tensor,
    out_gru: Tensor,
    c_lstm: Tensor,
    h_gru: Tensor,
    weight_hh_lstm: Tensor,
    weight_hh_gru: Tensor,
    lengths: Any,
) -> Any:
    T, B, H = out_gru.shape
    gru_x, gru_h = (_like(gru_gates, T, B, 3 * H) for _ in range(2))
    states = (_like(x, *x.shape, dtype=torch.float32) for x in (c_lstm, c_lstm, h_gru))
    return _like(lstm_gates, *lstm_gates.shape), gru_x, gru_h, *states


def wave_scan(
    gates_x: list[Tensor],
    h: list[Tensor],
    c: list[Tensor],
    weight_hh: list[Tensor],
    bias_hh: list[Tensor],
    lengths: list[Tensor],
    keep: int,
) -> Any:
    outputs, h_n, c_n, gates, cells, states = [], [], [], [], [], iter(c)
    for own_gates, own_h, weight, bias in zip(gates_x, h, weight_hh, bias_hh, strict=True):
        if reference.is_lstm(weight):
            output, last, cell, kept, own_cells = lstm_scan(
                own_gates, own_h, next(states), weight, bias, None, keep
            )
            c_n.append(cell)
            cells.append(own_cells)
        else:
            output, last, kept = gru_scan(own_gates, own_h, weight, bias, None, keep)
        outputs.append(output)
        h_n.append(last)
        gates.append(kept)
    return outputs, h_n, c_n, gates, cells


def wave_scan_backward(
    grad_output: Any,
    grad_h_n: Any,
    grad_c_n: Any,
    gates: list[Tensor],
    cells: Any,
    c: list[Tensor],
    output: list[Tensor],
    h: list[Tensor],
    weight_hh: list[Tensor],
    lengths: Any,
) -> Any:
    grad_x, grad_gates, grad_h = [], [], []
    for kept, out, state, weight in zip(gates, output, h, weight_hh, strict=True):
        T, B, H = out.shape
        lstm = reference.is_lstm(weight)
        grad_gates.append(_like(kept, T, B, (4 if lstm else 3) * H))
        grad_h.append(_like(state, B, H, dtype=torch.float32))
        if not lstm:
            grad_x.append(_like(kept, T, B, 3 * H))
    return grad_x, grad_gates, grad_h, [_like(x, *x.shape, dtype=torch.float32) for x in c]


def lstm_gates(sums: Tensor, bias_hh: Tensor) -> Tensor:
    return _like(sums, *sums.shape)


def gru_gates(gates_x: Tensor, gates_h: Tensor) -> Tensor:
    T, B, G = gates_x.shape
    return _like(gates_x, T, B, G // 3 * 4)


def hybrid_step(
    gates_x: Any, state: list[Tensor], weights: Any, levels: Any, layer_norm: bool, residual: bool
) -> Any:
    return _like(state[0], *state[0].shape), [_like(x, *x.shape) for x in state]


def lookup(index: Tensor, table: Tensor) -> Tensor:
    return _like(table, *index.shape[:2], table.shape[1])


def lookup_backward(grad_out: Tensor, index: Tensor, rows: int) -> Tensor:
    return _like(grad_out, rows, grad_out.shape[2], dtype=torch.float32)
