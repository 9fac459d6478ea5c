"""Stacks: levels above one another, with what stands between them.

Between two levels, and between the last one and the head: LayerNorm if asked for, then dropout. With residual
connections every level but the first adds its (unnormalised) input to its output. Letters as in `layers`.

A scan goes level after level, or, where the kernels gain by it, as a wavefront: as soon as a level has made some
steps the next one reads them, beside the steps that follow.
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
        steps = kernels.wavefront_steps(self.bottom.cells[0].weight_hh)
        ready = [x for x in gates_x if isinstance(x, Tensor)]  # a recipe makes all steps at once
        if len(self._levels) > 1 and len(ready) == len(gates_x) and 0 < steps < ready[0].shape[0]:
            return self._scan_in_waves(ready, state, lengths, dropper, steps)
        x, last = self.bottom.scan(gates_x, state[0], lengths, dropper)
        after = [last]
        for index, level in enumerate(self._levels[1:], start=1):
            below = dropper.between(self._norm(index - 1, x))
            gates_x = tuple(layer.gates_for_scan(below, recompute) for layer in level.cells)
            y, last = level.scan(gates_x, state[index], lengths, dropper)
            x = x + y if self.residual else y
            after.append(last)
        return dropper.between(self._norm(-1, x)), tuple(after)

    def _scan_in_waves(
        self, gates_x: list[Tensor], state: State, lengths: Tensor | None, dropper: Dropper, steps: int
    ) -> tuple[Tensor, State]:
        """The same as a wavefront: in wave k level l makes the k - l'th part, of `steps` steps.

        Masks are drawn in the order of `scan`, so both give the same numbers.
        """
        parts = list(zip(*(x.split(steps) for x in gates_x), strict=True))
        arrived: dict[int, tuple[Tensor, ...]] = {}  # by level: the gates of its next part
        residues: dict[int, Tensor] = {}  # by level: what its part adds to its output
        after, top = list(state), []
        weights: list[list[Tensor]] = []
        masks: list[Tensor | None] = []
        for wave in range(len(parts) + len(self._levels) - 1):
            if wave < len(parts):
                arrived[0] = parts[wave]
            if wave < len(self._levels):
                weights.append([dropper.weight(cell.weight_hh) for cell in self._levels[wave].cells])
            arrived = dict(sorted(arrived.items()))
            starts = [(wave - level) * steps for level in arrived]
            made = self._scan_side_by_side(arrived, after, weights, lengths, starts)
            active, beside, arrived, residues = list(arrived), residues, {}, {}
            for level, y in zip(active, made, strict=True):
                x = beside[level] + y if self.residual and level else y
                above = self._norm(level, x)
                if level == len(masks):
                    masks.append(dropper.mask_between(above))
                mask = masks[level]
                above = above if mask is None else above * mask
                if level + 1 == len(self._levels):
                    top.append(above)
                else:
                    arrived[level + 1] = tuple(cell.gates(above) for cell in self._levels[level + 1].cells)
                    residues[level + 1] = x
        return torch.cat(top), tuple(after)

    def _scan_side_by_side(
        self,
        gates_x: dict[int, tuple[Tensor, ...]],
        state: list[State],
        weights: list[list[Tensor]],
        lengths: Tensor | None,
        starts: list[int],
    ) -> list[Tensor]:
        """One part of several levels, from step `starts` on: their joined outputs; brings `state` up to date."""
        gates, h, c, weight_hh, bias_hh, left = [], [], [], [], [], []
        for (level, own), start in zip(gates_x.items(), starts, strict=True):
            parts = iter(state[level])
            for cell, x, weight in zip(self._levels[level].cells, own, weights[level], strict=True):
                gates.append(x)
                h.append(next(parts))
                c += [next(parts)] if cell.cell == "lstm" else []
                weight_hh.append(weight)
                bias_hh.append(cell.bias_hh)
                left += [] if lengths is None else [(lengths - start).clamp(min=0)]
        outputs, h_n, c_n = (iter(x) for x in kernels.wave_scan(gates, h, c, weight_hh, bias_hh, left))
        made = []
        for level in gates_x:
            cells = self._levels[level].cells
            made.append(self._levels[level].join(*(next(outputs) for _ in cells)))
            state[level] = tuple(
                part
                for cell in cells
                for part in ([next(h_n)] + ([next(c_n)] if cell.cell == "lstm" else []))
            )
        return made

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
