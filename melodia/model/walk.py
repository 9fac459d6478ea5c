"""A model as a flat list of layers, for whoever packs the weights: an engine, a summary, a converter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from melodia.model.layers import PairLevel, RecurrentLayer

if TYPE_CHECKING:
    from melodia.model.model import Model


@dataclass(frozen=True)
class LayerView:
    """One layer of a model.

    Attributes:
        name: its prefix in the model's state dict.
        kind: what it computes; see `walk`.
        part: "input", "encoder", "stack" or "head".
        level: which level of its part, from 0.
        direction: "forward", or "backward" in the encoder.
        weights: its tensors by their short names; not copies.
        residual: its level adds its own input to its output.
    """

    name: str
    kind: str
    part: str
    level: int = 0
    direction: str = "forward"
    weights: dict[str, Tensor] = field(default_factory=dict)
    residual: bool = False


def walk(model: Model) -> Iterator[LayerView]:
    """The layers of a model in the order in which they run.

    Kinds:
        embedding: weight [V, D]; side_embedding: weight [size, D], one per side input. The first layers read
            their sum.
        start: weight [2E], the summary before any block is finished (bidirectional).
        lstm, gru: weight_ih, weight_hh, bias_ih, bias_hh. All of one level read the same input. The first
            layer of a bidirectional stack reads [embedding ; summary].
        concat, gated: weight [H, 2H], bias [H]; sum: none. Join the LSTM and the GRU of a parallel level.
        norm: weight, bias, eps: on what the next level (or the head) reads; a residual passes it by.
        projection: weight [D, H], before a tied head.
        head: weight [V, D or H], bias [V]; `tied` heads carry the embedding's own tensor.
    """
    yield LayerView("input", "embedding", "input", weights={"weight": model.input.weight})
    for i, table in enumerate(model.input.side):
        yield LayerView(f"input.side.{i}", "side_embedding", "input", i, weights={"weight": table})
    if model.reader is not None:
        encoder = model.reader.encoder
        yield LayerView("reader.encoder.start", "start", "encoder", weights={"weight": encoder.start})
        for level, (forward, backward) in enumerate(encoder.pairs):
            residual = encoder.residual and level > 0
            prefix = "reader.encoder"
            yield _recurrent(
                f"{prefix}.forward_layers.{level}", forward, "encoder", level, "forward", residual
            )
            yield _recurrent(
                f"{prefix}.backward_layers.{level}", backward, "encoder", level, "backward", residual
            )
            if encoder.norms is not None:
                yield _norm(f"{prefix}.norms.{level}", encoder.norms[level], "encoder", level)
    for index, level_module in enumerate(model.stack.levels):
        residual = model.stack.residual and index > 0
        prefix = f"stack.levels.{index}"
        if isinstance(level_module, PairLevel):
            yield _recurrent(f"{prefix}.lstm", level_module.lstm, "stack", index, "forward", residual)
            yield _recurrent(f"{prefix}.gru", level_module.gru, "stack", index, "forward", residual)
            projection = level_module.projection
            weights = {} if projection is None else {"weight": projection.weight, "bias": projection.bias}
            name = prefix if projection is None else f"{prefix}.projection"
            yield LayerView(name, level_module.combine, "stack", index, weights=weights, residual=residual)
        else:
            layer = level_module.layer
            assert isinstance(layer, RecurrentLayer)
            yield _recurrent(f"{prefix}.layer", layer, "stack", index, "forward", residual)
        if model.stack.norms is not None:
            yield _norm(f"stack.norms.{index}", model.stack.norms[index], "stack", index)
    if model.head.projection is not None:
        yield LayerView(
            "head.projection", "projection", "head", weights={"weight": model.head.projection.weight}
        )
    weight = model.input.weight if model.head.weight is None else model.head.weight
    yield LayerView("head", "head", "head", weights={"weight": weight, "bias": model.head.bias})


def _recurrent(
    name: str, layer: RecurrentLayer, part: str, level: int, direction: str, residual: bool
) -> LayerView:
    return LayerView(name, layer.cell, part, level, direction, dict(layer.named_parameters()), residual)


def _norm(name: str, norm: nn.Module, part: str, level: int) -> LayerView:
    assert isinstance(norm, nn.LayerNorm)
    return LayerView(name, "norm", part, level, weights={"weight": norm.weight, "bias": norm.bias})
