"""What Python adds to the native operators: shapes for tracing (fake kernels), gradients, and the AMP rule.

The schemas stand in csrc/ops.cpp. `native.py` loads the library and then calls `register`.
The recurrence is native; the weight gradients are two products over all steps and stay with torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from melodia.errors import BackendError
from melodia.kernels import amp, reference

_ops = torch.ops.melodia
_SCANS = ("lstm_scan", "gru_scan", "pair_scan", "wave_scan")
_STEPS = ("lstm_step", "gru_step")
_STACKS = ("hybrid_step",)
_OTHERS = ("lookup",)
NOTHING, CELLS, GATES = 0, 1, 2
"""What a scan keeps for its backward pass: nothing, the cells (the gates are recomputed), gates and cells."""


# ---- Calls with the signatures of the reference --------------------------------------------------------------------


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


# ---- Fake kernels: the shapes of what an operator returns ----------------------------------------------------------


def _like(x: Tensor, *shape: Any, dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty(shape, dtype=dtype)


def _lstm_step_fake(gates_x: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Any:
    return _like(h, *h.shape), _like(h, *h.shape)


def _gru_step_fake(gates_x: Tensor, h: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Any:
    return _like(h, *h.shape)


def _lstm_scan_fake(
    gates_x: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, bias_hh: Tensor, lengths: Any, keep: int
) -> Any:
    (T, B, _), H = gates_x.shape, weight_hh.shape[1]
    gates = _like(gates_x, T, B, 4 * H) if keep == GATES else _like(gates_x, 0)
    cells = _like(gates_x, *((T, B, H) if keep > NOTHING else (0,)), dtype=torch.float32)
    return _like(gates_x, T, B, H), _like(h, B, H), _like(c, B, H), gates, cells


def _lstm_scan_backward_fake(
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


def _gru_scan_fake(
    gates_x: Tensor, h: Tensor, weight_hh: Tensor, bias_hh: Tensor, lengths: Any, keep: int
) -> Any:
    (T, B, _), H = gates_x.shape, weight_hh.shape[1]
    gates = _like(gates_x, T, B, 4 * H) if keep == GATES else _like(gates_x, 0)
    return _like(gates_x, T, B, H), _like(h, B, H), gates


def _gru_scan_backward_fake(
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


def _pair_scan_fake(
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
    out_lstm, h_lstm_n, c_lstm_n, lstm_gates, cells = _lstm_scan_fake(
        lstm_gates_x, h_lstm, c_lstm, weight_hh_lstm, bias_hh_lstm, lengths, keep
    )
    out_gru, h_gru_n, gru_gates = _gru_scan_fake(
        gru_gates_x, h_gru, weight_hh_gru, bias_hh_gru, lengths, keep
    )
    return out_lstm, out_gru, h_lstm_n, c_lstm_n, h_gru_n, lstm_gates, cells, gru_gates


def _pair_scan_backward_fake(
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
    states = (_like(h_gru, B, H, dtype=torch.float32) for _ in range(3))
    return _like(lstm_gates, *lstm_gates.shape), gru_x, gru_h, *states


def _wave_scan_fake(
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
            output, last, cell, kept, own_cells = _lstm_scan_fake(
                own_gates, own_h, next(states), weight, bias, None, keep
            )
            c_n.append(cell)
            cells.append(own_cells)
        else:
            output, last, kept = _gru_scan_fake(own_gates, own_h, weight, bias, None, keep)
        outputs.append(output)
        h_n.append(last)
        gates.append(kept)
    return outputs, h_n, c_n, gates, cells


def _wave_scan_backward_fake(
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


def _lstm_gates_fake(sums: Tensor, bias_hh: Tensor) -> Tensor:
    return _like(sums, *sums.shape)


def _gru_gates_fake(gates_x: Tensor, gates_h: Tensor) -> Tensor:
    T, B, G = gates_x.shape
    return _like(gates_x, T, B, G // 3 * 4)


def _hybrid_step_fake(
    gates_x: Any, state: list[Tensor], weights: Any, levels: Any, layer_norm: bool, residual: bool
) -> Any:
    return _like(state[0], *state[0].shape), [_like(x, *x.shape) for x in state]


def _lookup_fake(index: Tensor, table: Tensor) -> Tensor:
    return _like(table, *index.shape[:2], table.shape[1])


def _lookup_backward_fake(grad_out: Tensor, index: Tensor, rows: int) -> Tensor:
    return _like(grad_out, rows, grad_out.shape[2], dtype=torch.float32)


# ---- Gradients -----------------------------------------------------------------------------------------------------


def weight_gradients(
    grad_gates: Tensor, output: Tensor, h: Tensor, bias: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradients of weight_hh [GH, H] and bias_hh [GH].

    Args:
        grad_gates: of W_hh h + b_hh at every step [T, B, GH]; 0 at steps that do not count.
        output: h after every step [T, B, H].
        h: before the first step [B, H].
        bias: the type of bias_hh.
    """
    T = grad_gates.shape[0]
    grad_bias = _sum_of_steps(grad_gates).to(bias)
    if T == 0:
        return grad_gates.flatten(0, 1).t() @ output.flatten(0, 1), grad_bias
    weight = grad_gates[0].t() @ h.to(grad_gates.dtype)
    if T > 1:
        weight = torch.addmm(weight, grad_gates[1:].flatten(0, 1).t(), output[:-1].flatten(0, 1))
    return weight, grad_bias


def _sum_of_steps(x: Tensor) -> Tensor:
    """X [T, B, G] summed over T and B in float32 [G]."""
    if x.device.type == "cpu":  # torch's sum copies bfloat16 to float32 first, 12 times the time of this
        return _ops.lookup_backward(x, x.new_zeros(*x.shape[:2], 1, dtype=torch.int64), 1)[0]
    return x.flatten(0, 1).sum(0, dtype=torch.float32)


def _lstm_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, h, c, weight_hh, bias_hh, lengths, keep = inputs
    hidden, _, _, gates, cells = output
    ctx.keep, ctx.bias = keep, bias_hh.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates, cells)
    ctx.save_for_backward(h, c, weight_hh, lengths, hidden, gates, cells)


def _lstm_backward(ctx: Any, grad_output: Any, grad_h_n: Any, grad_c_n: Any, *_: Any) -> Any:
    _require_kept(ctx.keep)
    h, c, weight_hh, lengths, output, gates, cells = ctx.saved_tensors
    grad_gates, grad_h, grad_c = _ops.lstm_scan_backward(
        grad_output, grad_h_n, grad_c_n, gates, cells, c, weight_hh, lengths
    )
    grad_weight, grad_bias = weight_gradients(grad_gates, output, h, ctx.bias)
    return grad_gates, grad_h.to(h.dtype), grad_c.to(c.dtype), grad_weight, grad_bias, None, None


def _gru_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, h, weight_hh, bias_hh, lengths, keep = inputs
    hidden, _, gates = output
    ctx.keep, ctx.bias = keep, bias_hh.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates)
    ctx.save_for_backward(h, weight_hh, lengths, hidden, gates)


def _gru_backward(ctx: Any, grad_output: Any, grad_h_n: Any, *_: Any) -> Any:
    _require_kept(ctx.keep)
    h, weight_hh, lengths, output, gates = ctx.saved_tensors
    grad_gates_x, grad_gates_h, grad_h = _ops.gru_scan_backward(
        grad_output, grad_h_n, gates, output, h, weight_hh, lengths
    )
    grad_weight, grad_bias = weight_gradients(grad_gates_h, output, h, ctx.bias)
    return grad_gates_x, grad_h.to(h.dtype), grad_weight, grad_bias, None, None


def _pair_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, _, h_lstm, c_lstm, h_gru, weight_hh_lstm, bias_lstm, weight_hh_gru, bias_gru, lengths, keep = inputs
    out_lstm, out_gru, _, _, _, *kept = output
    ctx.keep, ctx.biases = keep, (bias_lstm.dtype, bias_gru.dtype)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(
        h_lstm, c_lstm, h_gru, weight_hh_lstm, weight_hh_gru, lengths, out_lstm, out_gru, *kept
    )


def _pair_backward(ctx: Any, *grads: Any) -> Any:
    _require_kept(ctx.keep)
    h_lstm, c_lstm, h_gru, weight_lstm, weight_gru, lengths, out_lstm, out_gru, *kept = ctx.saved_tensors
    grad_lstm, grad_gru_x, grad_gru_h, *grad_states = _ops.pair_scan_backward(
        *grads[:5], *kept, out_gru, c_lstm, h_gru, weight_lstm, weight_gru, lengths
    )
    states = [grad.to(x.dtype) for grad, x in zip(grad_states, (h_lstm, c_lstm, h_gru), strict=True)]
    lstm_weights = weight_gradients(grad_lstm, out_lstm, h_lstm, ctx.biases[0])
    gru_weights = weight_gradients(grad_gru_h, out_gru, h_gru, ctx.biases[1])
    return grad_lstm, grad_gru_x, *states, *lstm_weights, *gru_weights, None, None


def _wave_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, h, c, weight_hh, bias_hh, lengths, keep = inputs
    hidden, _, _, gates, cells = output
    ctx.keep, ctx.biases = keep, [bias.dtype for bias in bias_hh]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*gates, *cells)
    lists = (h, c, weight_hh, lengths, hidden, gates, cells)
    ctx.counts = [len(x) for x in lists]
    ctx.save_for_backward(*(x for some in lists for x in some))


def _wave_backward(ctx: Any, grad_output: Any, grad_h_n: Any, grad_c_n: Any, *_: Any) -> Any:
    _require_kept(ctx.keep)
    saved = iter(ctx.saved_tensors)
    h, c, weight_hh, lengths, output, gates, cells = [list(islice(saved, n)) for n in ctx.counts]
    grad_x, grad_gates, grad_h, grad_c = _ops.wave_scan_backward(
        _or_zeros(grad_output, output),
        _or_zeros(grad_h_n, h),
        _or_zeros(grad_c_n, c),
        gates,
        cells,
        c,
        output,
        h,
        weight_hh,
        lengths,
    )
    of_grus, of_inputs, of_weights, of_biases = iter(grad_x), [], [], []
    for k, weight in enumerate(weight_hh):
        of_inputs.append(grad_gates[k] if reference.is_lstm(weight) else next(of_grus))
        of_weight, of_bias = weight_gradients(grad_gates[k], output[k], h[k], ctx.biases[k])
        of_weights.append(of_weight)
        of_biases.append(of_bias)
    return (
        of_inputs,
        [grad.to(x.dtype) for grad, x in zip(grad_h, h, strict=True)],
        [grad.to(x.dtype) for grad, x in zip(grad_c, c, strict=True)],
        of_weights,
        of_biases,
        [None for _ in lengths],
        None,
    )


def _or_zeros(grads: Any, like: list[Tensor]) -> list[Tensor]:
    """The gradients, zeros where there is none."""
    grads = [None] * len(like) if grads is None else grads
    return [torch.zeros_like(x) if grad is None else grad for grad, x in zip(grads, like, strict=True)]


def _require_kept(keep: int) -> None:
    if keep != GATES:
        raise BackendError(f"a scan called with keep={keep} has no backward pass; pass keep={GATES}")


def _step_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _lstm_step_backward(ctx: Any, grad_h: Any, grad_c: Any) -> Any:
    """A step is a scan of one step; it is run again, which costs less than every step keeping its gates."""
    gates_x, h, c, weight_hh, bias_hh = ctx.saved_tensors
    output, _, _, gates, cells = _ops.lstm_scan(gates_x.unsqueeze(0), h, c, weight_hh, bias_hh, None, GATES)
    grad_gates, grad_h, grad_c = _ops.lstm_scan_backward(
        None, grad_h, grad_c, gates, cells, c, weight_hh, None
    )
    return grad_gates.squeeze(0), grad_h, grad_c, *weight_gradients(grad_gates, output, h, bias_hh.dtype)


def _gru_step_backward(ctx: Any, grad_h: Any) -> Any:
    gates_x, h, weight_hh, bias_hh = ctx.saved_tensors
    output, _, gates = _ops.gru_scan(gates_x.unsqueeze(0), h, weight_hh, bias_hh, None, GATES)
    grad_x, grad_hh, grad_h = _ops.gru_scan_backward(None, grad_h, gates, output, h, weight_hh, None)
    return grad_x.squeeze(0), grad_h, *weight_gradients(grad_hh, output, h, bias_hh.dtype)


def _hybrid_step_setup(ctx: Any, inputs: Any, output: Any) -> None:
    gates_x, state, weights, *ctx.rest = inputs
    ctx.counts = [len(gates_x), len(state), len(weights)]
    ctx.save_for_backward(*gates_x, *state, *weights)


def _hybrid_step_backward(ctx: Any, grad_output: Tensor, grad_state: list[Tensor]) -> Any:
    """The reference's formulas, run again."""
    levels, layer_norm, residual = ctx.rest
    names = [reference.LEVELS[level] for level in levels]
    gates, states, _ = ctx.counts

    def formulas(*tensors: Tensor) -> Any:
        gates_x, state, weights = tensors[:gates], tensors[gates : gates + states], tensors[gates + states :]
        output, after = reference.hybrid_step(gates_x, state, weights, names, layer_norm, residual)
        return output, tuple(after)

    back = torch.func.vjp(formulas, *ctx.saved_tensors)[1]
    grads = list(back((grad_output, tuple(grad_state))))
    return grads[:gates], grads[gates : gates + states], grads[gates + states :], None, None, None


def _lookup_setup(ctx: Any, inputs: Any, output: Any) -> None:
    index, table = inputs
    ctx.rows, ctx.dtype = table.shape[0], table.dtype
    ctx.save_for_backward(index)


def _lookup_backward(ctx: Any, grad: Tensor) -> Any:
    (index,) = ctx.saved_tensors
    return None, _ops.lookup_backward(grad, index, ctx.rows).to(ctx.dtype)


def _no_second_derivative(ctx: Any, *_: Any) -> Any:
    raise BackendError(
        'the native operators have no second derivative; run the forward pass under `use_backend("reference")`'
    )


def register() -> None:
    """Tell torch all of the above; once, after the library is loaded."""
    library = torch.library
    for name in (*_STEPS, *_STACKS, *_SCANS, *_OTHERS):
        library.register_fake(f"melodia::{name}", globals()[f"_{name}_fake"])
    for name in ("lstm_gates", "gru_gates"):
        library.register_fake(f"melodia::{name}", globals()[f"_{name}_fake"])
        library.register_autograd(f"melodia::{name}", _no_second_derivative)
    for name in (*_SCANS, *_OTHERS):
        library.register_fake(f"melodia::{name}_backward", globals()[f"_{name}_backward_fake"])
        library.register_autograd(f"melodia::{name}_backward", _no_second_derivative)
    library.register_autograd("melodia::lstm_step", _lstm_step_backward, setup_context=_step_setup)
    library.register_autograd("melodia::gru_step", _gru_step_backward, setup_context=_step_setup)
    library.register_autograd("melodia::lstm_scan", _lstm_backward, setup_context=_lstm_setup)
    library.register_autograd("melodia::gru_scan", _gru_backward, setup_context=_gru_setup)
    library.register_autograd("melodia::pair_scan", _pair_backward, setup_context=_pair_setup)
    library.register_autograd("melodia::wave_scan", _wave_backward, setup_context=_wave_setup)
    library.register_autograd("melodia::lookup", _lookup_backward, setup_context=_lookup_setup)
    library.register_autograd("melodia::hybrid_step", _hybrid_step_backward, setup_context=_hybrid_step_setup)
    amp.register((*_STEPS, *_STACKS, *_SCANS, *_OTHERS))
