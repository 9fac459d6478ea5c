"""The cells and their scans in plain PyTorch: the specification, and the fallback without native kernels.

Letters: B batch, T time, H hidden. Everything is time-major. Gates follow torch: LSTM i, f, g, o and GRU r, z, n
with the reset gate applied after the matrix product, so the weights of `nn.LSTM` and `nn.GRU` fit unchanged.

The input's share of the gates, `gates_x = x @ weight_ih.T + bias_ih`, is made outside, for all steps in one
product. Gradients come from autograd, and so does every higher derivative. A native kernel has the same names
and signatures and must equal these functions in every output and every gradient.

Half precision: gates_x and weight_hh say how precise the products and the outputs are. Where they are bfloat16 or
float16 the arithmetic is float32 all the same, and so is the state from step to step; a product reads the state
rounded to their type, and `output` is the state rounded to it. The states may be float32 beside them and are
returned in the type they came in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _gates_h(gates_x: Tensor, h: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
    """The state's share of the gates: h [B, H] -> [B, G], from h as precise as gates_x is."""
    return F.linear(_wide(h.to(gates_x.dtype)), _wide(weight_hh), _wide(bias_hh))


def lstm_step(
    gates_x: Tensor,  # [B, 4H]
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, H]
    bias_hh: Tensor,  # [4H]
) -> tuple[Tensor, Tensor]:
    """Advance an LSTM cell by one step.

    Returns:
        h [B, H] and c [B, H] after the step.

    >>> h, c = lstm_step(torch.zeros(1, 4), torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(4, 1), torch.zeros(4))
    >>> h.shape, c.item()
    (torch.Size([1, 1]), 0.5)
    """
    i, f, g, o = (_wide(gates_x) + _gates_h(gates_x, h, weight_hh, bias_hh)).chunk(4, dim=-1)
    c_new = torch.sigmoid(f) * _wide(c) + torch.sigmoid(i) * torch.tanh(g)
    h_new = torch.sigmoid(o) * torch.tanh(c_new)
    return h_new.to(h.dtype), c_new.to(c.dtype)


def gru_step(
    gates_x: Tensor,  # [B, 3H]
    h: Tensor,  # [B, H]
    weight_hh: Tensor,  # [3H, H]
    bias_hh: Tensor,  # [3H]
) -> Tensor:
    """Advance a GRU cell by one step.

    Returns:
        h [B, H] after the step.

    >>> gru_step(torch.zeros(1, 3), torch.ones(1, 1), torch.zeros(3, 1), torch.zeros(3)).item()
    0.5
    """
    r_x, z_x, n_x = _wide(gates_x).chunk(3, dim=-1)
    r_h, z_h, n_h = _gates_h(gates_x, h, weight_hh, bias_hh).chunk(3, dim=-1)
    r = torch.sigmoid(r_x + r_h)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return ((1 - z) * n + z * _wide(h)).to(h.dtype)


def lstm_scan(
    gates_x: Tensor,  # [T, B, 4H]
    h: Tensor,  # [B, H]
    c: Tensor,  # [B, H]
    weight_hh: Tensor,  # [4H, H]
    bias_hh: Tensor,  # [4H]
    lengths: Tensor | None = None,  # [B] int64
) -> tuple[Tensor, Tensor, Tensor]:
    """Run an LSTM cell over T steps.

    Args:
        gates_x: the input's share of the gates.
        h: the hidden state before the first step.
        c: the cell state before the first step.
        weight_hh: the recurrent weights.
        bias_hh: the recurrent bias.
        lengths: how many steps of each sequence count; at t >= lengths[b] the state stays and the output
            is 0. Any number will do: more than T are T, less than 0 none. None: all T.

    Returns:
        output [T, B, H], h_n [B, H], c_n [B, H].
    """
    outputs, types = [], (h.dtype, c.dtype)
    h, c = _wide(h), _wide(c)
    for t, gates in enumerate(gates_x.unbind(0)):
        h_new, c_new = lstm_step(gates, h, c, weight_hh, bias_hh)
        if lengths is None:
            h, c = h_new, c_new
            outputs.append(h)
        else:
            live = (t < lengths).unsqueeze(-1)  # [B, 1]
            h, c = torch.where(live, h_new, h), torch.where(live, c_new, c)
            outputs.append(torch.where(live, h_new, 0.0))
    return _stack(outputs, gates_x, h), h.to(types[0]), c.to(types[1])


def gru_scan(
    gates_x: Tensor,  # [T, B, 3H]
    h: Tensor,  # [B, H]
    weight_hh: Tensor,  # [3H, H]
    bias_hh: Tensor,  # [3H]
    lengths: Tensor | None = None,  # [B] int64
) -> tuple[Tensor, Tensor]:
    """Run a GRU cell over T steps.

    Args:
        gates_x: the input's share of the gates.
        h: the hidden state before the first step.
        weight_hh: the recurrent weights.
        bias_hh: the recurrent bias.
        lengths: how many steps of each sequence count; at t >= lengths[b] the state stays and the output
            is 0. Any number will do: more than T are T, less than 0 none. None: all T.

    Returns:
        output [T, B, H], h_n [B, H].
    """
    outputs, h_type = [], h.dtype
    h = _wide(h)
    for t, gates in enumerate(gates_x.unbind(0)):
        h_new = gru_step(gates, h, weight_hh, bias_hh)
        if lengths is None:
            h = h_new
            outputs.append(h)
        else:
            live = (t < lengths).unsqueeze(-1)  # [B, 1]
            h = torch.where(live, h_new, h)
            outputs.append(torch.where(live, h_new, 0.0))
    return _stack(outputs, gates_x, h), h.to(h_type)


def pair_scan(
    lstm_gates_x: Tensor,  # [T, B, 4H]
    gru_gates_x: Tensor,  # [T, B, 3H]
    h_lstm: Tensor,  # [B, H]
    c_lstm: Tensor,  # [B, H]
    h_gru: Tensor,  # [B, H]
    weight_hh_lstm: Tensor,  # [4H, H]
    bias_hh_lstm: Tensor,  # [4H]
    weight_hh_gru: Tensor,  # [3H, H]
    bias_hh_gru: Tensor,  # [3H]
    lengths: Tensor | None = None,  # [B] int64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run an LSTM and a GRU side by side over T steps; neither sees the other.

    The arguments are those of `lstm_scan` and of `gru_scan`; `lengths` is common to both.

    Returns:
        out_lstm [T, B, H], out_gru [T, B, H], h_lstm_n [B, H], c_lstm_n [B, H], h_gru_n [B, H].
    """
    out_lstm, h_lstm, c_lstm = lstm_scan(lstm_gates_x, h_lstm, c_lstm, weight_hh_lstm, bias_hh_lstm, lengths)
    out_gru, h_gru = gru_scan(gru_gates_x, h_gru, weight_hh_gru, bias_hh_gru, lengths)
    return out_lstm, out_gru, h_lstm, c_lstm, h_gru


def wave_scan(
    gates_x: Sequence[Tensor],  # [T, B, 4H] or [T, B, 3H] each
    h: Sequence[Tensor],  # [B, H] each
    c: Sequence[Tensor],  # [B, H] of each LSTM
    weight_hh: Sequence[Tensor],  # [4H, H] of an LSTM, [3H, H] of a GRU
    bias_hh: Sequence[Tensor],  # [4H] or [3H]
    lengths: Sequence[Tensor] = (),  # none, or [B] int64 of each cell
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Run several cells side by side, none of which sees another: a wavefront over a stack.

    Every cell has steps T, units H and lengths of its own; the batch is common. Which cell it is, the shape of its
    weight_hh says.

    Returns:
        output [T, B, H] and h_n [B, H] of each cell, c_n [B, H] of each LSTM.

    >>> weight, zeros = torch.zeros(3, 1), torch.zeros(3)
    >>> output, h_n, c_n = wave_scan([torch.zeros(2, 1, 3)], [torch.ones(1, 1)], [], [weight], [zeros])
    >>> output[0].flatten().tolist(), h_n[0].item(), c_n
    ([0.5, 0.25], 0.25, [])
    """
    outputs, h_n, c_n, cells = [], [], [], iter(c)
    for k, (gates, state, weight, bias) in enumerate(zip(gates_x, h, weight_hh, bias_hh, strict=True)):
        length = lengths[k] if lengths else None
        if is_lstm(weight):
            output, state, cell = lstm_scan(gates, state, next(cells), weight, bias, length)
            c_n.append(cell)
        else:
            output, state = gru_scan(gates, state, weight, bias, length)
        outputs.append(output)
        h_n.append(state)
    return outputs, h_n, c_n


def is_lstm(weight_hh: Tensor) -> bool:
    """Whether recurrent weights are those of an LSTM, [4H, H], and not of a GRU, [3H, H]."""
    return weight_hh.shape[0] == 4 * weight_hh.shape[1]


def lookup(
    index: Tensor,  # [T, B, K] int64
    table: Tensor,  # [R, G]
) -> Tensor:
    """Sum K rows of a table at every step: the first layer's gates, made from tokens without a product.

    Half precision is added up in float32, and so is the gradient of the table.

    Returns:
        [T, B, G].

    >>> lookup(torch.tensor([[[0, 2]]]), torch.tensor([[1.0], [10.0], [100.0]])).tolist()
    [[[101.0]]]
    """
    flat = index.flatten(0, 1)
    if flat.shape[1] == 1:
        rows = F.embedding(flat[:, 0], _wide(table))
    else:
        rows = F.embedding_bag(flat, _wide(table), mode="sum")
    return rows.to(table.dtype).view(*index.shape[:2], table.shape[1])


LEVELS = ("lstm", "gru", "concat", "sum", "gated")
"""What a level of a stack is: a layer, or an LSTM beside a GRU joined in one of three ways."""


def hybrid_step(
    gates_x: Sequence[Tensor],  # [B, GH] each
    state: Sequence[Tensor],  # [B, H] each
    weights: Sequence[Tensor],
    levels: Sequence[str],
    layer_norm: bool = False,
    residual: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Advance a whole stack of levels of one width by one token.

    Args:
        gates_x: the input's share of the gates of the first level's cells, whatever they read.
        state: h and c of an LSTM, h of a GRU, cell after cell.
        weights: level after level: of each cell weight_ih [GH, H] and bias_ih [GH] (not of the first level),
            weight_hh [GH, H] and bias_hh [GH]; then, of concat and gated, weight [H, 2H] and bias [H]; then, with
            layer_norm, weight [H] and bias [H].
        levels: names from `LEVELS`, from the input upwards.
        layer_norm: every level's output passes a LayerNorm (of epsilon 1e-5) on its way up.
        residual: levels but the first add what stood below them, before its LayerNorm.

    Returns:
        what the head reads [B, H], and the state in the order it came in.

    >>> zeros, weights = torch.zeros(1, 3), [torch.zeros(3, 1), torch.zeros(3)]
    >>> hybrid_step([zeros], [torch.ones(1, 1)], weights, ["gru"])[0].item()
    0.5
    """
    gates, states, weight = iter(gates_x), iter(state), iter(weights)
    after: list[Tensor] = []

    def linear(x: Tensor) -> Tensor:
        matrix, bias = next(weight), next(weight)
        return F.linear(_wide(x.to(matrix.dtype)), _wide(matrix), _wide(bias))

    def cell(kind: str, below: Tensor | None) -> Tensor:
        share = next(gates) if below is None else linear(below)
        if kind == "lstm":
            after.extend(lstm_step(share, next(states), next(states), next(weight), next(weight)))
            return after[-2]
        after.append(gru_step(share, next(states), next(weight), next(weight)))
        return after[-1]

    x: Tensor | None = None
    below: Tensor | None = None
    for level in levels:
        if level in ("lstm", "gru"):
            y = cell(level, below)
        else:
            h_lstm, h_gru = cell("lstm", below), cell("gru", below)
            if level == "sum":
                y = h_lstm + h_gru
            else:
                y = linear(torch.cat((h_lstm, h_gru), dim=-1))
            if level == "gated":
                y = h_gru + torch.sigmoid(y) * (h_lstm - h_gru)
        x = x + y if residual and x is not None else y
        below = x
        if layer_norm:
            below = F.layer_norm(_wide(x), x.shape[-1:], _wide(next(weight)), _wide(next(weight)))
    if below is None:
        raise ValueError("a stack has one level at least (received none)")
    return below.to(state[0].dtype), after


def _stack(outputs: list[Tensor], gates_x: Tensor, h: Tensor) -> Tensor:
    """The outputs as one tensor [T, B, H] of the type of gates_x, also for T = 0."""
    return torch.stack(outputs).to(gates_x.dtype) if outputs else gates_x.new_zeros((0, *h.shape))
