"""A model as the engine reads it: whole numbers that say what there is, and its tensors one behind the other.

The form is that of csrc/engine/plan.cpp. Letters: V vocabulary, S side inputs, D embedding, H hidden, G gates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from melodia.model import Model
from melodia.model.layers import PairLevel, RecurrentLayer

WEIGHTS = ("fp32", "bf16", "int8")
COMBINES = ("single", "concat", "sum", "gated")
MAGIC, VERSION = 0x4D454C4F44494131, 1
TABLE_BYTES = 96 << 20
"""Up to this size the input's products with W_ih stand in tables; beyond it they are made at every token."""


@torch.no_grad()
def describe(model: Model, weights: str = "fp32") -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The two rows of a model.

    Args:
        model: of any kind. Of a bidirectional one: everything but its encoder, whose summary the caller provides.
        weights: "fp32", "bf16" or "int8".
    """
    config = model.config
    bottom = model.stack.bottom.cells
    D, H = config.embedding_size, config.hidden_size
    context = 0 if model.reader is None else 2 * model.reader.encoder.hidden_size
    sources = [model.input.weight, *model.input.side]
    rows = sum(table.shape[0] for table in sources)
    folded = 4 * rows * sum(layer.weight_ih.shape[0] for layer in bottom) <= TABLE_BYTES
    sizes = [spec.size for spec in config.side_inputs]
    ints = [MAGIC, VERSION, WEIGHTS.index(weights), config.vocab_size, H, D, context, int(folded)]
    ints += [len(sizes), *sizes, len(model.stack.levels)]
    tensors: list[Tensor] = []
    if folded:
        for layer in bottom:
            weight = layer.weight_ih[:, :D].double()
            tensors += [(table.double() @ weight.T).float() for table in sources]
    else:
        tensors += sources
    for index, level in enumerate(model.stack.levels):
        pair = isinstance(level, PairLevel)
        cells: Sequence[RecurrentLayer] = level.cells  # type: ignore[assignment]
        ints += [
            COMBINES.index(level.combine) if pair else 0,
            int(not pair and cells[0].cell == "gru"),
            int(model.stack.residual and index > 0),
            int(model.stack.norms is not None),
        ]
        for layer in cells:
            if index == 0:
                tensors += [] if folded else [layer.weight_ih[:, :D]]
                tensors += [layer.weight_ih[:, D:]] if context else []
            else:
                tensors.append(layer.weight_ih)
            tensors += [layer.weight_hh, layer.bias_ih, layer.bias_hh]
        if isinstance(level, PairLevel) and level.projection is not None:
            tensors += [level.projection.weight, level.projection.bias]
        if model.stack.norms is not None:
            norm = model.stack.norms[index]
            tensors += [norm.weight, norm.bias, torch.tensor([norm.eps])]  # type: ignore[list-item]
    ints.append(int(model.head.projection is not None))
    if model.head.projection is not None:
        tensors.append(model.head.projection.weight)
    tensors += [model.input.weight if model.head.weight is None else model.head.weight, model.head.bias]
    flat = [tensor.detach().float().cpu().reshape(-1).numpy() for tensor in tensors]
    return np.array(ints, np.int64), np.concatenate(flat)
