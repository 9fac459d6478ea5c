"""The cells and their scans in plain PyTorch: the specification, and the fallback without native kernels.

Letters: B batch, T time, H hidden. Everything is time-major. Gates follow torch: LSTM i, f, g, o and GRU r,
    z, n with
the reset gate applied after the matrix product, so the weights of `nn.LSTM` and `nn.GRU` fit unchanged.

The input's share of the gates, `gates_x = x @ weight_ih.T + bias_ih`, is made outside, for all steps in one
product. Gradients come from autograd, and so does every higher derivative. A native kernel has the same names
and signatures and must equal these functions in every output and every gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    i, f, g, o = (gates_x + F.linear(h, weight_hh, bias_hh)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, c


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
    r_x, z_x, n_x = gates_x.chunk(3, dim=-1)
    r_h, z_h, n_h = F.linear(h, weight_hh, bias_hh).chunk(3, dim=-1)
    r = torch.sigmoid(r_x + r_h)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return (1 - z) * n + z * h


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
            is 0. None: all T.

    Returns:
        output [T, B, H], h_n [B, H], c_n [B, H].
    """
    outputs = []
    for t, gates in enumerate(gates_x.unbind(0)):
        h_new, c_new = lstm_step(gates, h, c, weight_hh, bias_hh)
        if lengths is None:
            h, c = h_new, c_new
            outputs.append(h)
        else:
            live = (t < lengths).unsqueeze(-1)  # [B, 1]
            h, c = torch.where(live, h_new, h), torch.where(live, c_new, c)
            outputs.append(torch.where(live, h_new, 0.0))
    return _stack(outputs, gates_x, h), h, c


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
            is 0. None: all T.

    Returns:
        output [T, B, H], h_n [B, H].
    """
    outputs = []
    for t, gates in enumerate(gates_x.unbind(0)):
        h_new = gru_step(gates, h, weight_hh, bias_hh)
        if lengths is None:
            h = h_new
            outputs.append(h)
        else:
            live = (t < lengths).unsqueeze(-1)  # [B, 1]
            h = torch.where(live, h_new, h)
            outputs.append(torch.where(live, h_new, 0.0))
    return _stack(outputs, gates_x, h), h


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


def _stack(outputs: list[Tensor], gates_x: Tensor, h: Tensor) -> Tensor:
    """The outputs as one tensor [T, B, H], also for T = 0."""
    return torch.stack(outputs) if outputs else gates_x.new_zeros((0, *h.shape))
