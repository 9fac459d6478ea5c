"""The same network as a model of melodia, run a token at a time by others.

Every peer embeds the token, runs the layers, and draws the next token among the 40 likeliest (`TOP_K`), for B streams
side by side. A peer is an object whose `step()` makes one token for each stream and whose `logits(token)` [B, V] shows
what it computes, for the tests. Letters: B streams, V vocabulary, D embedding, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from melodia.kernels import reference
from melodia.model import Model
from melodia.model.layers import PairLevel, RecurrentLayer

TOP_K = 40


class Peer(Protocol):
    """Makes tokens."""

    def step(self) -> None:
        """One token for each of the B streams."""

    def logits(self, token: int) -> np.ndarray:
        """Advance all streams by this token: logits [B, V]."""


def _runs(model: Model) -> list[list[list[RecurrentLayer]]]:
    """The layers from the input upwards: runs of layers of one cell, or the two halves of a pair.

    A run is what one `nn.LSTM` or `nn.GRU` of several layers computes; halves stand side by side.
    """
    groups: list[list[list[RecurrentLayer]]] = []
    for level in model.stack.levels:
        cells = list(level.cells)
        last = groups[-1] if groups else None
        if len(cells) == 1 and last and len(last) == 1 and last[0][0].cell == cells[0].cell:
            last[0].append(cells[0])
        else:
            groups.append([[cell] for cell in cells])
    return groups


def refuse_more(model: Model) -> None:
    """The peers know plain stacks and pairs joined by a projection."""
    config = model.config
    odd = [config.kind == "bidirectional", config.residual, config.layer_norm, bool(config.side_inputs)]
    odd += [config.tie_weights, config.kind == "parallel" and config.combine != "concat"]
    if any(odd):
        raise ValueError(f"the peers do not know this model: {config}")


def _copied(module: nn.LSTM | nn.GRU, layers: list[RecurrentLayer]) -> nn.LSTM | nn.GRU:
    module = module.to(layers[0].weight_hh)  # its device and type
    with torch.no_grad():
        for index, layer in enumerate(layers):
            for name, weight in layer.named_parameters():
                getattr(module, f"{name}_l{index}").copy_(weight)
    return module


def torch_layers(layers: list[RecurrentLayer]) -> nn.LSTM | nn.GRU:
    """An `nn.LSTM` or `nn.GRU` with the weights of layers that stand above one another."""
    kind = nn.LSTM if layers[0].cell == "lstm" else nn.GRU
    return _copied(kind(layers[0].input_size, layers[0].hidden_size, len(layers)), layers)


def drawn(logits: Tensor) -> Tensor:
    """Softmax over the likeliest, and a draw: [B, V] -> [B]."""
    values, ids = logits.topk(min(TOP_K, logits.shape[-1]))
    return ids.gather(1, torch.multinomial(torch.softmax(values, -1), 1)).squeeze(1)


class Eager:
    """`nn.LSTM` and `nn.GRU`, called with one step at a time."""

    def __init__(self, model: Model, B: int) -> None:
        refuse_more(model)
        self._model = model
        self._groups = [[torch_layers(run) for run in group] for group in _runs(model)]
        self._states: list[list[Any]] = [[None] * len(group) for group in self._groups]
        self._joins = [level.projection for level in model.stack.levels if isinstance(level, PairLevel)]
        self._token = torch.zeros(B, dtype=torch.long, device=model.input.weight.device)

    @torch.inference_mode()
    def step(self) -> None:
        """See `Peer`."""
        self._token = drawn(self._forward(self._token))

    def chain(self, steps: int) -> Callable[[], None]:
        """What makes so many steps, always from where it stands behind the next one.

        Their inputs stay where they are in memory, as a CUDA graph needs.
        """
        self.step()
        token, states = self._token, [list(group) for group in self._states]

        def run() -> None:
            self._token, self._states = token, [list(group) for group in states]
            for _ in range(steps):
                self.step()

        return run

    @torch.inference_mode()
    def logits(self, token: int) -> np.ndarray:
        """See `Peer`."""
        return self._forward(torch.full_like(self._token, token)).numpy()

    def _forward(self, token: Tensor) -> Tensor:
        x = F.embedding(token, self._model.input.weight)[None]
        joins = iter(self._joins)
        for group, states in zip(self._groups, self._states, strict=True):
            outs = []
            for k, module in enumerate(group):
                out, states[k] = module(x, states[k])
                outs.append(out)
            x = outs[0] if len(outs) == 1 else next(joins)(torch.cat(outs, -1))
        return F.linear(x[0], self._model.head.weight, self._model.head.bias)


class Cells:
    """`nn.LSTMCell` and `nn.GRUCell`."""

    def __init__(self, model: Model, B: int) -> None:
        refuse_more(model)
        self._model = model
        self._levels: list[list[nn.LSTMCell | nn.GRUCell]] = []
        self._states: list[list[Any]] = []
        self._joins = [getattr(level, "projection", None) for level in model.stack.levels]
        for level in model.stack.levels:
            cells = []
            for layer in level.cells:
                cell = (nn.LSTMCell if layer.cell == "lstm" else nn.GRUCell)(
                    layer.input_size, layer.hidden_size
                )
                with torch.no_grad():
                    for name, weight in layer.named_parameters():
                        getattr(cell, name).copy_(weight)
                cells.append(cell)
            zero = torch.zeros(B, model.config.hidden_size)
            self._levels.append(cells)
            self._states.append([(zero, zero) if isinstance(cell, nn.LSTMCell) else zero for cell in cells])
        self._token = torch.zeros(B, dtype=torch.long)

    @torch.inference_mode()
    def step(self) -> None:
        """See `Peer`."""
        self._token = drawn(self._forward(self._token))

    @torch.inference_mode()
    def logits(self, token: int) -> np.ndarray:
        """See `Peer`."""
        return self._forward(torch.full_like(self._token, token)).numpy()

    def _forward(self, token: Tensor) -> Tensor:
        x = F.embedding(token, self._model.input.weight)
        for cells, states, join in zip(self._levels, self._states, self._joins, strict=True):
            outs = []
            for k, cell in enumerate(cells):
                states[k] = cell(x, states[k])
                outs.append(states[k][0] if isinstance(cell, nn.LSTMCell) else states[k])
            x = outs[0] if len(outs) == 1 else join(torch.cat(outs, -1))
        return F.linear(x, self._model.head.weight, self._model.head.bias)


class Compiled:
    """One `torch.compile`d function from token and state to the next token and state; the draw is inside."""

    def __init__(self, model: Model, B: int) -> None:
        refuse_more(model)
        self._token = torch.zeros(B, dtype=torch.long)
        with torch.inference_mode():
            self._state = model.stack.initial_state(B)
        forward = _plain_forward(model)
        self._forward = forward

        def make(token: Tensor, state: Any) -> tuple[Tensor, Any]:
            logits, after = forward(token, state)
            return drawn(logits), after

        # Freezing packs the weights once, as torch's notes on inference with a CPU advise.
        self._make = torch.compile(make, fullgraph=True, dynamic=False, options={"freezing": True})

    @torch.inference_mode()
    def step(self) -> None:
        """See `Peer`."""
        self._token, self._state = self._make(self._token, self._state)

    @torch.inference_mode()
    def logits(self, token: int) -> np.ndarray:
        """See `Peer`; computed outside the compiled function, which gives none."""
        logits, self._state = self._forward(torch.full_like(self._token, token), self._state)
        return logits.numpy()


def _plain_forward(model: Model) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """The network as a function of token [B] and state, in the formulas of the reference."""

    def cell(layer: RecurrentLayer, x: Tensor, state: Any) -> tuple[Tensor, ...]:
        gates = F.linear(x, layer.weight_ih, layer.bias_ih)
        if layer.cell == "lstm":
            return reference.lstm_step(gates, *state, layer.weight_hh, layer.bias_hh)
        return (reference.gru_step(gates, *state, layer.weight_hh, layer.bias_hh),)

    def forward(token: Tensor, state: Any) -> tuple[Tensor, Any]:
        x = F.embedding(token, model.input.weight)
        after = []
        for level, before in zip(model.stack.levels, state, strict=True):
            if len(level.cells) == 1:
                made = cell(level.cells[0], x, before)
                x = made[0]
            else:
                lstm, gru = cell(level.cells[0], x, before[:2]), cell(level.cells[1], x, before[2:])
                made = (*lstm, *gru)
                x = level.projection(torch.cat((lstm[0], gru[0]), -1))
            after.append(made)
        return F.linear(x, model.head.weight, model.head.bias), tuple(after)

    return forward
