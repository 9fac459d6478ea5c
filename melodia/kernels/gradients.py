"""The gradients of the native operators: what each saves, and its backward pass.

The recurrence is native; the weight gradients are two products over all steps and stay with torch.
"""

# ruff: noqa: D103  (csrc/ops.cpp says what each operator does)
from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from melodia.errors import BackendError
from melodia.kernels import reference
from melodia.kernels.shapes import GATES

_ops = torch.ops.melodia


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward pass in the types that its forward pass had, also where it is called under autocast.

    Args:
        backward: called with the context, the tensors that it saved and the gradients. Whoever unpacks them may do
            work for it and allow it once, as torch.utils.checkpoint does.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Any) -> Any:
        saved = ctx.saved_tensors
        with torch.autocast(saved[0].device.type, enabled=False):
            return backward(ctx, saved, *grads)

    return run


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


def lstm_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, h, c, weight_hh, bias_hh, lengths, keep = inputs
    hidden, _, _, gates, cells = output
    ctx.keep, ctx.bias = keep, bias_hh.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates, cells)
    ctx.save_for_backward(h, c, weight_hh, lengths, hidden, gates, cells)


def lstm_backward(ctx: Any, saved: Any, grad_output: Any, grad_h_n: Any, grad_c_n: Any, *_: Any) -> Any:
    _require_kept(ctx.keep)
    h, c, weight_hh, lengths, output, gates, cells = saved
    grad_gates, grad_h, grad_c = _ops.lstm_scan_backward(
        grad_output, grad_h_n, grad_c_n, gates, cells, c, weight_hh, lengths
    )
    grad_weight, grad_bias = weight_gradients(grad_gates, output, h, ctx.bias)
    return grad_gates, grad_h.to(h.dtype), grad_c.to(c.dtype), grad_weight, grad_bias, None, None


def gru_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, h, weight_hh, bias_hh, lengths, keep = inputs
    hidden, _, gates = output
    ctx.keep, ctx.bias = keep, bias_hh.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates)
    ctx.save_for_backward(h, weight_hh, lengths, hidden, gates)


def gru_backward(ctx: Any, saved: Any, grad_output: Any, grad_h_n: Any, *_: Any) -> Any:
    _require_kept(ctx.keep)
    h, weight_hh, lengths, output, gates = saved
    grad_gates_x, grad_gates_h, grad_h = _ops.gru_scan_backward(
        grad_output, grad_h_n, gates, output, h, weight_hh, lengths
    )
    grad_weight, grad_bias = weight_gradients(grad_gates_h, output, h, ctx.bias)
    return grad_gates_x, grad_h.to(h.dtype), grad_weight, grad_bias, None, None


def pair_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, _, h_lstm, c_lstm, h_gru, weight_hh_lstm, bias_lstm, weight_hh_gru, bias_gru, lengths, keep = inputs
    out_lstm, out_gru, _, _, _, *kept = output
    ctx.keep, ctx.biases = keep, (bias_lstm.dtype, bias_gru.dtype)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(
        h_lstm, c_lstm, h_gru, weight_hh_lstm, weight_hh_gru, lengths, out_lstm, out_gru, *kept
    )


def pair_backward(ctx: Any, saved: Any, *grads: Any) -> Any:
    _require_kept(ctx.keep)
    h_lstm, c_lstm, h_gru, weight_lstm, weight_gru, lengths, out_lstm, out_gru, *kept = saved
    grad_lstm, grad_gru_x, grad_gru_h, *grad_states = _ops.pair_scan_backward(
        *grads[:5], *kept, out_gru, c_lstm, h_gru, weight_lstm, weight_gru, lengths
    )
    states = [grad.to(x.dtype) for grad, x in zip(grad_states, (h_lstm, c_lstm, h_gru), strict=True)]
    lstm_weights = weight_gradients(grad_lstm, out_lstm, h_lstm, ctx.biases[0])
    gru_weights = weight_gradients(grad_gru_h, out_gru, h_gru, ctx.biases[1])
    return grad_lstm, grad_gru_x, *states, *lstm_weights, *gru_weights, None, None


def wave_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, h, c, weight_hh, bias_hh, lengths, keep = inputs
    hidden, _, _, gates, cells = output
    ctx.keep, ctx.biases = keep, [bias.dtype for bias in bias_hh]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*gates, *cells)
    lists = (h, c, weight_hh, lengths, hidden, gates, cells)
    ctx.counts = [len(x) for x in lists]
    ctx.save_for_backward(*(x for some in lists for x in some))


def wave_backward(ctx: Any, saved: Any, grad_output: Any, grad_h_n: Any, grad_c_n: Any, *_: Any) -> Any:
    _require_kept(ctx.keep)
    tensors = iter(saved)
    h, c, weight_hh, lengths, output, gates, cells = [list(islice(tensors, n)) for n in ctx.counts]
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


def step_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def lstm_step_backward(ctx: Any, saved: Any, grad_h: Any, grad_c: Any) -> Any:
    """A step is a scan of one step; it is run again, which costs less than every step keeping its gates."""
    gates_x, h, c, weight_hh, bias_hh = saved
    output, _, _, gates, cells = _ops.lstm_scan(gates_x.unsqueeze(0), h, c, weight_hh, bias_hh, None, GATES)
    grad_gates, grad_h, grad_c = _ops.lstm_scan_backward(
        None, grad_h, grad_c, gates, cells, c, weight_hh, None
    )
    return grad_gates.squeeze(0), grad_h, grad_c, *weight_gradients(grad_gates, output, h, bias_hh.dtype)


def gru_step_backward(ctx: Any, saved: Any, grad_h: Any) -> Any:
    gates_x, h, weight_hh, bias_hh = saved
    output, _, gates = _ops.gru_scan(gates_x.unsqueeze(0), h, weight_hh, bias_hh, None, GATES)
    grad_x, grad_hh, grad_h = _ops.gru_scan_backward(None, grad_h, gates, output, h, weight_hh, None)
    return grad_x.squeeze(0), grad_h, *weight_gradients(grad_hh, output, h, bias_hh.dtype)


def hybrid_step_setup(ctx: Any, inputs: Any, output: Any) -> None:
    gates_x, state, weights, *ctx.rest = inputs
    ctx.counts = [len(gates_x), len(state), len(weights)]
    ctx.save_for_backward(*gates_x, *state, *weights)


def hybrid_step_backward(ctx: Any, saved: Any, grad_output: Tensor, grad_state: list[Tensor]) -> Any:
    """The reference's formulas, run again."""
    levels, layer_norm, residual = ctx.rest
    names = [reference.LEVELS[level] for level in levels]
    gates, states, _ = ctx.counts

    def formulas(*tensors: Tensor) -> Any:
        gates_x, state, weights = tensors[:gates], tensors[gates : gates + states], tensors[gates + states :]
        output, after = reference.hybrid_step(gates_x, state, weights, names, layer_norm, residual)
        return output, tuple(after)

    back = torch.func.vjp(formulas, *saved)[1]
    grads = list(back((grad_output, tuple(grad_state))))
    return grads[:gates], grads[gates : gates + states], grads[gates + states :], None, None, None


def lookup_setup(ctx: Any, inputs: Any, output: Any) -> None:
    index, table = inputs
    ctx.rows, ctx.dtype = table.shape[0], table.dtype
    ctx.save_for_backward(index)


def lookup_backward(ctx: Any, saved: Any, grad: Tensor) -> Any:
    (index,) = saved
    return None, _ops.lookup_backward(grad, index, ctx.rows).to(ctx.dtype)


def no_second_derivative(ctx: Any, *_: Any) -> Any:
    raise BackendError(
        'the native operators have no second derivative; run the forward pass under `use_backend("reference")`'
    )
