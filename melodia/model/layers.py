"""Recurrent layers: a cell's parameters, and one level of a stack (a layer, or an LSTM beside a GRU).

A layer makes its input's share of the gates in one product over all steps, and leaves the recurrence to
`melodia.kernels`. Letters: B batch, T time, D input size, H hidden, G gates (4H of an LSTM, 3H of a GRU).
Sequences are time-major, [T, B, ...].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from melodia import kernels
from melodia.kernels import Recipe
from melodia.model.network import GATES
from melodia.model.state import State

Gates = Tensor | Recipe
"""gates_x of a scan, or how to make it, now and again in the backward pass."""
HIDDEN_VARIANCE = 1 / 9
"""What an output of a cell varies by, roughly, while its weights are fresh; LayerNorm makes it 1."""


class RecurrentLayer(nn.Module):
    """The parameters of one LSTM or GRU layer, in the names and order of torch.

    Attributes:
        weight_ih [G, D], weight_hh [G, H], bias_ih [G], bias_hh [G].
    """

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        gates = GATES[cell] * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(gates, input_size))
        self.weight_hh = nn.Parameter(torch.empty(gates, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(gates))
        self.bias_hh = nn.Parameter(torch.empty(gates))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, input_variance: float) -> None:
        """Draw the weights such that a gradient travels through a bar from the start.

        W_hh is orthogonal gate by gate, so that what is fed back neither grows nor dies. W_ih is uniform with
        variance 1 / (D input_variance), so that gates begin neither shut nor saturated. The forget gate's bias
        is 1: an LSTM begins by remembering; and so is that of the update gate z, with which a GRU remembers.

        Args:
            generator: where the numbers come from.
            input_variance: what a number of this layer's input varies by.
        """
        for weight in self.weight_hh.chunk(GATES[self.cell]):
            nn.init.orthogonal_(weight, generator=generator)
        bound = math.sqrt(3 / (self.input_size * input_variance))
        self.weight_ih.uniform_(-bound, bound, generator=generator)
        self.bias_ih.zero_()
        self.bias_hh.zero_()
        self.bias_ih[self.hidden_size : 2 * self.hidden_size] = 1.0  # LSTM f, GRU z

    def initial_state(self, batch: int) -> State:
        """Zeros: (h,) of a GRU, (h, c) of an LSTM, each [B, H]."""
        return tuple(
            self.weight_hh.new_zeros(batch, self.hidden_size) for _ in range(2 if self.cell == "lstm" else 1)
        )

    def gates(self, x: Tensor) -> Tensor:
        """The input's share of the gates: [..., D] -> [..., G]."""
        return F.linear(x, self.weight_ih, self.bias_ih)

    def gates_for_scan(self, x: Tensor, recompute: bool) -> Gates:
        """The same for a scan, as a recipe where the gates are to be recomputed: [T, B, D] -> [T, B, G]."""
        return Recipe(F.linear, (x, self.weight_ih, self.bias_ih)) if recompute else self.gates(x)

    def scan(
        self, gates_x: Gates, state: State, lengths: Tensor | None, weight_hh: Tensor
    ) -> tuple[Tensor, State]:
        """Run over T steps: gates_x [T, B, G] -> output [T, B, H] and the state after it."""
        if self.cell == "lstm":
            out, h, c = kernels.lstm_scan(gates_x, state[0], state[1], weight_hh, self.bias_hh, lengths)
            return out, (h, c)
        out, h = kernels.gru_scan(gates_x, state[0], weight_hh, self.bias_hh, lengths)
        return out, (h,)

    def step_weights(self, first: bool) -> list[Tensor]:
        """What `kernels.hybrid_step` reads of this layer; the first level's input is given as gates."""
        own: list[Tensor] = [self.weight_hh, self.bias_hh]
        return own if first else [self.weight_ih, self.bias_ih, *own]

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.cell}, {self.input_size} -> {self.hidden_size}"


class Linear(nn.Linear):
    """A linear map whose weights are drawn by `initialise`, and not from torch's own random numbers."""

    def reset_parameters(self) -> None:
        """Leave the weights as the memory was found."""

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw uniform weights of variance 1 / inputs, which keep the variance of the input; bias 0."""
        bound = math.sqrt(3 / self.in_features)
        self.weight.uniform_(-bound, bound, generator=generator)
        if self.bias is not None:
            self.bias.zero_()


class SingleLevel(nn.Module):
    """A level of a stack that is one layer. Its state is the layer's: (h,) or (h, c)."""

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.layer = RecurrentLayer(cell, input_size, hidden_size)

    @property
    def cells(self) -> tuple[RecurrentLayer, ...]:
        """The level's layers."""
        return (self.layer,)

    @property
    def kind(self) -> str:
        """Its name in `kernels.hybrid_step`."""
        return self.layer.cell

    def step_weights(self, first: bool) -> list[Tensor]:
        """What `kernels.hybrid_step` reads of this level."""
        return self.layer.step_weights(first)

    def initialise(self, generator: torch.Generator, input_variance: float) -> None:
        """Draw the weights."""
        self.layer.initialise(generator, input_variance)

    def initial_state(self, batch: int) -> State:
        """Zeros [B, H]."""
        return self.layer.initial_state(batch)

    def scan(
        self, gates_x: tuple[Gates, ...], state: State, lengths: Tensor | None, dropper: Dropper
    ) -> tuple[Tensor, State]:
        """Run over T steps: one [T, B, G] per layer -> output [T, B, H] and the state after it."""
        return self.layer.scan(gates_x[0], state, lengths, dropper.weight(self.layer.weight_hh))

    def join(self, *outputs: Tensor) -> Tensor:
        """The layers' outputs as one: there is one."""
        return outputs[0]


class PairLevel(nn.Module):
    """A level that is an LSTM beside a GRU on the same input; its state is (h_lstm, c_lstm, h_gru).

    Joined by "concat": W [h_lstm ; h_gru] + b; "sum": h_lstm + h_gru; "gated": g h_lstm + (1 - g) h_gru with
    g = sigmoid(W [h_lstm ; h_gru] + b).
    """

    def __init__(self, input_size: int, hidden_size: int, combine: str) -> None:
        super().__init__()
        self.combine = combine
        self.lstm = RecurrentLayer("lstm", input_size, hidden_size)
        self.gru = RecurrentLayer("gru", input_size, hidden_size)
        self.projection = None if combine == "sum" else Linear(2 * hidden_size, hidden_size)

    @property
    def cells(self) -> tuple[RecurrentLayer, ...]:
        """The level's layers."""
        return (self.lstm, self.gru)

    @property
    def kind(self) -> str:
        """Its name in `kernels.hybrid_step`."""
        return self.combine

    def step_weights(self, first: bool) -> list[Tensor]:
        """What `kernels.hybrid_step` reads of this level."""
        weights = self.lstm.step_weights(first) + self.gru.step_weights(first)
        return (
            weights if self.projection is None else [*weights, self.projection.weight, self.projection.bias]
        )

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, input_variance: float) -> None:
        """Draw the weights; the gate begins near one half, the projection keeps the variance of its input."""
        self.lstm.initialise(generator, input_variance)
        self.gru.initialise(generator, input_variance)
        if self.projection is not None:
            self.projection.initialise(generator)

    def initial_state(self, batch: int) -> State:
        """Zeros [B, H], three times."""
        return (*self.lstm.initial_state(batch), *self.gru.initial_state(batch))

    def scan(
        self, gates_x: tuple[Gates, ...], state: State, lengths: Tensor | None, dropper: Dropper
    ) -> tuple[Tensor, State]:
        """Run over T steps: the halves' gates, [T, B, 4H] and [T, B, 3H] -> output [T, B, H], the state."""
        out_lstm, out_gru, *after = kernels.pair_scan(
            gates_x[0],
            gates_x[1],
            state[0],
            state[1],
            state[2],
            dropper.weight(self.lstm.weight_hh),
            self.lstm.bias_hh,
            dropper.weight(self.gru.weight_hh),
            self.gru.bias_hh,
            lengths,
        )
        return self.join(out_lstm, out_gru), tuple(after)

    def join(self, *outputs: Tensor) -> Tensor:
        """The two halves' outputs as one, [..., H] each."""
        h_lstm, h_gru = outputs
        if self.projection is None:
            return h_lstm + h_gru
        mixed = self.projection(torch.cat((h_lstm, h_gru), dim=-1))
        return mixed if self.combine == "concat" else h_gru + torch.sigmoid(mixed) * (h_lstm - h_gru)


Level = SingleLevel | PairLevel


class Dropper:
    """The dropout of one call of a model: draws masks while training, hands everything through otherwise.

    Args:
        dropout, embedding_dropout, weight_drop: the shares that become 0; the rest is scaled up by 1 / (1 -
            share).
        generator: where the randomness comes from; None: torch's own.
    """

    def __init__(
        self,
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        weight_drop: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.dropout = dropout
        self.embedding_dropout = embedding_dropout
        self.weight_drop = weight_drop
        self.generator = generator

    def between(self, x: Tensor) -> Tensor:
        """Drop units between layers, the same ones at every step of a sequence: [T, B, H] -> [T, B, H]."""
        mask = self.mask_between(x)
        return x if mask is None else x * mask

    def mask_between(self, x: Tensor) -> Tensor | None:
        """What `between` multiplies x [T, B, H] with, [B, H], for parts of a sequence; None: nothing."""
        return self._mask(x, x.shape[1:], self.dropout) if self.dropout else None

    def embedding(self, table: Tensor) -> Tensor:
        """Drop whole rows of an embedding, a token wherever it stands: [V, D] -> [V, D]."""
        return (
            table * self._mask(table, (table.shape[0], 1), self.embedding_dropout)
            if self.embedding_dropout
            else table
        )

    def weight(self, weight: Tensor) -> Tensor:
        """Drop recurrent connections, the same ones at every step: [G, H] -> [G, H]."""
        return weight * self._mask(weight, weight.shape, self.weight_drop) if self.weight_drop else weight

    def _mask(self, like: Tensor, shape: tuple[int, ...], share: float) -> Tensor:
        mask = torch.empty(shape, dtype=like.dtype, device=like.device)
        return mask.bernoulli_(1 - share, generator=self.generator).div_(1 - share)


NO_DROPOUT = Dropper()
