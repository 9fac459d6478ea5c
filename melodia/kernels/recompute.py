"""Scans that keep h and c only and make the gates again in their backward pass, to train in half the memory.

What feeds a scan is then not a tensor but a `Recipe`: how to make gates_x from tensors that are kept anyway. All
hidden states are known when the backward pass begins, so the gates of all steps come from one product, not from
another walk through time. Outputs and gradients are those of the plain scans, to rounding.

With the native kernels it costs a product of the size of the forward one. With the reference the whole scan runs
again. torch.compile decides itself what it keeps, and torch.func can run nothing again: there a recipe is simply
followed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from melodia import backends
from melodia.kernels.gradients import weight_gradients, without_autocast
from melodia.kernels.shapes import CELLS

_ops = torch.ops.melodia


class Recipe(NamedTuple):
    """How to make gates_x.

    Attributes:
        make: called with the sources, now and in the backward pass; draws no random numbers.
        sources: tensors, those that need a gradient among them.
    """

    make: Callable[..., Tensor]
    sources: tuple[Tensor, ...]

    def follow(self) -> Tensor:
        """Make gates_x [T, B, G]."""
        return self.make(*self.sources)


def native_lstm_scan(
    recipe: Recipe,
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, H]
    bias_hh: Tensor,  # [4H]
    lengths: Tensor | None,  # [B] int64
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.lstm_scan`."""
    return _LstmScan.apply(recipe.make, lengths, h, c, weight_hh, bias_hh, *recipe.sources)


def native_gru_scan(
    recipe: Recipe,
    h: Tensor,  # [B, H]
    weight_hh: Tensor,  # [3H, H]
    bias_hh: Tensor,  # [3H]
    lengths: Tensor | None,  # [B] int64
) -> tuple[Tensor, Tensor]:
    """As `reference.gru_scan`."""
    return _GruScan.apply(recipe.make, lengths, h, weight_hh, bias_hh, *recipe.sources)


def reference_scan(scan: Callable[..., Any], recipe: Recipe, *arguments: Any) -> Any:
    """A scan of the reference that is run again by its backward pass."""
    count, backend = len(recipe.sources), backends.chosen()

    def whole(*tensors: Any) -> Any:
        with backends.using(backend):
            return scan(recipe.make(*tensors[:count]), *tensors[count:])

    return checkpoint(whole, *recipe.sources, *arguments, use_reentrant=False, preserve_rng_state=False)


def _autocast(device: str) -> AbstractContextManager[Any]:
    """The autocast of now, to be entered again by the backward pass, which is called outside it."""
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device))


def _followed(make: Callable[..., Tensor], sources: tuple[Tensor, ...]) -> Tensor:
    """gates_x in a type that the kernels know: those of the CPU have no float16."""
    gates_x = make(*sources)
    narrow = gates_x.dtype == torch.float16 and gates_x.device.type == "cpu"
    return gates_x.float() if narrow else gates_x


def _again(ctx: Any, sources: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """gates_x with a graph behind it, and the sources as its leaves."""
    wanted = ctx.needs_input_grad[-len(sources) :]
    leaves = [x.detach().requires_grad_(need) for x, need in zip(sources, wanted, strict=True)]
    with torch.enable_grad(), ctx.autocast, backends.using(ctx.backend):  # autograd has threads of its own
        return _followed(ctx.make, tuple(leaves)), leaves


def _source_gradients(gates_x: Tensor, leaves: list[Tensor], grad: Tensor) -> list[Tensor | None]:
    needed = [x for x in leaves if x.requires_grad]
    grads = iter(torch.autograd.grad(gates_x, needed, grad, allow_unused=True) if needed else ())
    return [next(grads) if x.requires_grad else None for x in leaves]


def _add_products(sums: Tensor, output: Tensor, h: Tensor, weight_hh: Tensor) -> Tensor:
    """Add W_hh h of the state before every step to sums [T, B, G], contiguous, in place."""
    if sums.shape[0]:
        sums[0].addmm_(h.to(sums.dtype), weight_hh.t())
        sums[1:].flatten(0, 1).addmm_(output[:-1].flatten(0, 1), weight_hh.t())
    return sums


class _LstmScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        make: Callable[..., Tensor],
        lengths: Tensor | None,
        h: Tensor,
        c: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor,
        *sources: Tensor,
    ) -> Any:
        device = weight_hh.device.type
        ctx.make, ctx.autocast, ctx.backend = make, _autocast(device), backends.chosen()
        ctx.set_materialize_grads(False)
        gates_x = _followed(make, sources)
        with torch.autocast(device, enabled=False):
            output, h_n, c_n, _, cells = _ops.lstm_scan(
                gates_x, h, c, weight_hh.to(gates_x.dtype), bias_hh, lengths, CELLS
            )
        ctx.save_for_backward(h, c, weight_hh, bias_hh, lengths, output, cells, *sources)
        return output, h_n, c_n

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx: Any, saved: Any, grad_output: Any, grad_h_n: Any, grad_c_n: Any) -> Any:
        h, c, weight_hh, bias_hh, lengths, output, cells, *sources = saved
        gates_x, leaves = _again(ctx, tuple(sources))
        weight = weight_hh.to(output.dtype)
        sums = gates_x.detach().clone(memory_format=torch.contiguous_format)
        sums = _add_products(sums, output, h, weight)
        gates = _ops.lstm_gates(sums, bias_hh)
        del sums
        grad_gates, grad_h, grad_c = _ops.lstm_scan_backward(
            grad_output, grad_h_n, grad_c_n, gates, cells, c, weight, lengths
        )
        del gates
        grad_weight, grad_bias = weight_gradients(grad_gates, output, h, bias_hh.dtype)
        states = grad_h.to(h.dtype), grad_c.to(c.dtype)
        grads = _source_gradients(gates_x, leaves, grad_gates)
        return None, None, *states, grad_weight.to(weight_hh.dtype), grad_bias, *grads


class _GruScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        make: Callable[..., Tensor],
        lengths: Tensor | None,
        h: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor,
        *sources: Tensor,
    ) -> Any:
        device = weight_hh.device.type
        ctx.make, ctx.autocast, ctx.backend = make, _autocast(device), backends.chosen()
        ctx.set_materialize_grads(False)
        gates_x = _followed(make, sources)
        with torch.autocast(device, enabled=False):
            output, h_n, _ = _ops.gru_scan(gates_x, h, weight_hh.to(gates_x.dtype), bias_hh, lengths, CELLS)
        ctx.save_for_backward(h, weight_hh, bias_hh, lengths, output, *sources)
        return output, h_n

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx: Any, saved: Any, grad_output: Any, grad_h_n: Any) -> Any:
        h, weight_hh, bias_hh, lengths, output, *sources = saved
        gates_x, leaves = _again(ctx, tuple(sources))
        weight = weight_hh.to(output.dtype)
        bias = bias_hh.to(output.dtype).expand(*output.shape[:2], -1).contiguous()
        gates_h = _add_products(bias, output, h, weight)
        gates = _ops.gru_gates(gates_x.detach(), gates_h)
        del gates_h, bias
        grad_x, grad_gates_h, grad_h = _ops.gru_scan_backward(
            grad_output, grad_h_n, gates, output, h, weight, lengths
        )
        del gates
        grad_weight, grad_bias = weight_gradients(grad_gates_h, output, h, bias_hh.dtype)
        grads = _source_gradients(gates_x, leaves, grad_x)
        return None, None, grad_h.to(h.dtype), grad_weight.to(weight_hh.dtype), grad_bias, *grads
