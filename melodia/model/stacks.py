"""Stacks: levels above one another, with what stands between them.

Between two levels, and between the last one and the head: LayerNorm if asked for, then dropout. With residual
connections every level but the first adds its (unnormalised) input to its output. Letters as in `layers`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from melodia import kernels
from melodia.model import state as states
from melodia.model.config import ModelConfig
from melodia.model.layers import HIDDEN_VARIANCE, Dropper, Gates, Level, PairLevel, SingleLevel
from melodia.model.state import State


class Stack(nn.Module):
    """Levels of one width, H.

    Args:
        levels: the levels from the input upwards.
        hidden_size: H.
        residual: levels add their input.
        layer_norm: LayerNorm behind every level.
    """

    def __init__(self, levels: list[Level], hidden_size: int, residual: bool, layer_norm: bool) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in levels) if layer_norm else None
        self.residual = residual
        self._levels = tuple(levels)  # the same, typed

    @property
    def bottom(self) -> Level:
        """The first level, whose input the caller provides as gates."""
        return self._levels[0]

    def initialise(self, generator: torch.Generator, input_variance: float) -> None:
        """Draw the weights; the first level's input has the given variance."""
        for level in self._levels:
            level.initialise(generator, input_variance)
            input_variance = HIDDEN_VARIANCE if self.norms is None else 1.0

    def initial_state(self, batch: int) -> State:
        """Zeros: one tuple per level."""
        return tuple(level.initial_state(batch) for level in self._levels)

    def scan(
        self,
        gates_x: tuple[Gates, ...],
        state: State,
        lengths: Tensor | None,
        dropper: Dropper,
        recompute: bool = False,
    ) -> tuple[Tensor, State]:
        """Run over T steps: the first level's gates [T, B, G] -> the head's input [T, B, H], the state."""
        x, last = self.bottom.scan(gates_x, state[0], lengths, dropper)
        after = [last]
        for index, level in enumerate(self._levels[1:], start=1):
            below = dropper.between(self._norm(index - 1, x))
            gates_x = tuple(layer.gates_for_scan(below, recompute) for layer in level.cells)
            y, last = level.scan(gates_x, state[index], lengths, dropper)
            x = x + y if self.residual else y
            after.append(last)
        return dropper.between(self._norm(-1, x)), tuple(after)

    def step(self, gates_x: tuple[Tensor, ...], state: State) -> tuple[Tensor, State]:
        """One step: the first level's gates [B, G] -> what the head reads [B, H], and the state."""
        weights: list[Tensor] = []
        for index, level in enumerate(self._levels):
            weights += level.step_weights(first=index == 0)
            if self.norms is not None:
                weights += self.norms[index].parameters()
        x, after = kernels.hybrid_step(
            gates_x,
            states.leaves(state),
            weights,
            [level.kind for level in self._levels],
            self.norms is not None,
            self.residual,
        )
        return x, states.unflatten(state, after)

    def _norm(self, index: int, x: Tensor) -> Tensor:
        return x if self.norms is None else self.norms[index](x)


def build_stack(config: ModelConfig, input_size: int) -> Stack:
    """The levels of a kind, from the input upwards.

    Args:
        config: the kind and the sizes.
        input_size: width of the first level's input.
    """
    lstm, gru = ["lstm"] * config.lstm_layers, ["gru"] * config.gru_layers
    H = config.hidden_size
    levels: list[Level] = []
    if config.kind == "parallel":
        assert config.combine is not None
        for _ in lstm:
            levels.append(PairLevel(H if levels else input_size, H, config.combine))
    else:
        for cell in gru + lstm if config.kind == "reversed" else lstm + gru:
            levels.append(SingleLevel(cell, H if levels else input_size, H))
    return Stack(levels, H, config.residual, config.layer_norm)
