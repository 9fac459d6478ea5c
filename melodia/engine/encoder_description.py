"""The block encoder of a bidirectional model as the engine reads it; the last part of a description.

The form is that of csrc/engine/plan.cpp. Letters: V vocabulary, S side inputs, D embedding, E units in each direction,
G gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.model.config import ModelConfig

NORM_EPS = 1e-5
"""Of torch's LayerNorm."""

Part = NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]
"""A tensor of a description; or E [R, D] and W [N, D], which stand for the table E W^T [R, N]."""


def describe_encoder(
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any]],
    sources: Sequence[NDArray[Any]],
    folded: bool,
) -> tuple[list[int], list[Part]]:
    """What stands behind the head in a bidirectional model's two rows.

    Args:
        config: the model's.
        tensors: its weights, float32, by their names in a checkpoint.
        sources: the token's embedding [V, D], then the side inputs' [size, D].
        folded: whether tables stand for the products of those with W_ih.

    Returns:
        Whole numbers, and tensors.
    """
    assert config.encoder_layers is not None
    assert config.encoder_hidden_size is not None
    assert config.block_max is not None
    starts = sorted(config.block_starts or ())
    ints = [config.encoder_layers, int(config.encoder == "gru"), config.encoder_hidden_size]
    ints += [int(config.residual), int(config.layer_norm), config.block_max, len(starts), *starts]
    parts: list[Part] = []
    directions = ("forward", "backward")
    if folded:
        stacked = np.concatenate(sources)
        parts += [(stacked, tensors[f"reader.encoder.{way}_layers.0.weight_ih"]) for way in directions]
    for level in range(config.encoder_layers):
        for way in directions:
            prefix = f"reader.encoder.{way}_layers.{level}"
            if level > 0 or not folded:
                parts.append(tensors[f"{prefix}.weight_ih"])
            parts += [tensors[f"{prefix}.{name}"] for name in ("weight_hh", "bias_ih", "bias_hh")]
        if config.layer_norm:
            parts += [tensors[f"reader.encoder.norms.{level}.{name}"] for name in ("weight", "bias")]
            parts.append(np.array([NORM_EPS], np.float32))
    parts.append(tensors["reader.encoder.start"])
    return ints, parts
