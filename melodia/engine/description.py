"""A model as the engine reads it: whole numbers that say what there is, and its tensors one behind the other.

The form is that of csrc/engine/plan.cpp. Letters: V vocabulary, S side inputs, D embedding, H hidden, G gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melodia.engine.encoder_description import NORM_EPS, Part, describe_encoder
from melodia.model.config import COMBINES as JOINS
from melodia.model.network import GATES, Network, cell_prefix, level_cells

if TYPE_CHECKING:
    from melodia.model.model import Model

WEIGHTS = ("fp32", "bf16", "int8")
COMBINES = ("single", *JOINS)
MAGIC, VERSION = 0x4D454C4F44494131, 1
TABLE_BYTES = 96 << 20
"""Up to this size the input's products with W_ih stand in tables; beyond it they are made at every token."""


def describe(model: Network | Model, weights: str = "fp32") -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The two rows of a model.

    Args:
        model: of any kind, as arrays or torch's.
        weights: "fp32", "bf16" or "int8".

    >>> from melodia.model import Model, ModelConfig
    >>> ints, floats = describe(Model(ModelConfig("gru", vocab_size=10, hidden_size=4, gru_layers=1)))
    >>> ints[2:6].tolist()  # weights, V, H, D
    [0, 10, 4, 4]
    """
    network = model if isinstance(model, Network) else Network.of(model)
    config, tensors = network.config, network.tensors
    D, H = config.embedding_size, config.hidden_size
    context = 2 * (config.encoder_hidden_size or 0)
    levels = level_cells(config)
    sources = [tensors["input.weight"], *(tensors[f"input.side.{i}"] for i in range(len(config.side_inputs)))]
    rows = sum(len(table) for table in sources)
    folded = 4 * rows * sum(GATES[cell] * H for cell in levels[0]) <= TABLE_BYTES
    sizes = [spec.size for spec in config.side_inputs]
    ints = [MAGIC, VERSION, WEIGHTS.index(weights), config.vocab_size, H, D, context, int(folded)]
    ints += [len(sizes), *sizes, len(levels)]
    parts: list[Part] = []
    if folded:
        stacked = np.concatenate(sources)
        parts += [
            (stacked, tensors[f"{cell_prefix(0, levels[0], cell)}.weight_ih"][:, :D]) for cell in levels[0]
        ]
    else:
        parts += sources
    for index, cells in enumerate(levels):
        pair = len(cells) > 1
        ints += [
            COMBINES.index(config.combine) if pair and config.combine is not None else 0,
            int(cells == ("gru",)),
            int(config.residual and index > 0),
            int(config.layer_norm),
        ]
        for cell in cells:
            prefix = cell_prefix(index, cells, cell)
            weight = tensors[f"{prefix}.weight_ih"]
            if index == 0:
                parts += [] if folded else [weight[:, :D]]
                parts += [weight[:, D:]] if context else []
            else:
                parts.append(weight)
            parts += [tensors[f"{prefix}.{name}"] for name in ("weight_hh", "bias_ih", "bias_hh")]
        if pair and config.combine != "sum":
            parts += _weight_and_bias(tensors, f"stack.levels.{index}.projection")
        if config.layer_norm:
            parts += _weight_and_bias(tensors, f"stack.norms.{index}")
            parts.append(np.array([NORM_EPS], np.float32))
    projection = tensors.get("head.projection.weight")
    ints.append(int(projection is not None))
    parts += [] if projection is None else [projection]
    parts += [tensors["input.weight" if config.tie_weights else "head.weight"], tensors["head.bias"]]
    if config.blocks:
        more, tensors_behind = describe_encoder(config, tensors, sources, folded)
        ints += more
        parts += tensors_behind
    return np.array(ints, np.int64), _laid(parts)


def _laid(parts: Sequence[Part]) -> NDArray[np.float32]:
    """The parts one behind the other; products are made where they are to stand, for they are large."""
    shapes = [(len(part[0]), len(part[1])) if isinstance(part, tuple) else (part.size,) for part in parts]
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    floats = np.empty(ends[-1], np.float32)
    for part, place, shape in zip(parts, np.split(floats, ends[:-1]), shapes, strict=True):
        if isinstance(part, tuple):
            np.matmul(part[0], part[1].T, out=place.reshape(shape))
        else:
            place[:] = part.reshape(-1)
    return floats


def _weight_and_bias(tensors: Mapping[str, NDArray[Any]], prefix: str) -> list[NDArray[Any]]:
    return [tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"]]
