"""How large a model is, and models of one kind as large as those of another."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from melodia.errors import ConfigError
from melodia.model.config import MAX_HIDDEN, ModelConfig
from melodia.model.model import Model


def parameter_count(config: ModelConfig) -> int:
    """How many numbers a model of this configuration learns; allocates none of them.

    >>> parameter_count(ModelConfig("gru", vocab_size=10, hidden_size=4, gru_layers=1))
    210
    """
    with torch.device("meta"):
        return Model(config, random_seed=None).parameter_count()


def match_parameters(config: ModelConfig, target: int, *, tolerance: float = 0.01) -> ModelConfig:
    """The configuration with `hidden_size` such that it has `target` parameters.

    What equals the hidden size in `config` (the embedding), and what is a share of it (the encoder), follows
    it. Where whole hidden units are too coarse, the embedding makes up the difference.

    Args:
        config: the kind and everything but the size.
        target: how many parameters.
        tolerance: how far off, as a share of the target.

    Raises:
        ConfigError: no size comes that close.

    >>> small = ModelConfig.preset("lstm", "small", vocab_size=400)
    >>> other = match_parameters(ModelConfig.preset("gru", "small", vocab_size=400), parameter_count(small))
    >>> abs(parameter_count(other) / parameter_count(small) - 1) < 0.01
    True
    """
    low, high = 1, MAX_HIDDEN
    while low < high:  # the largest hidden size that does not exceed the target
        middle = (low + high + 1) // 2
        if parameter_count(_with_hidden(config, middle)) <= target:
            low = middle
        else:
            high = middle - 1
    candidates = [_with_hidden(config, hidden) for hidden in (low, low + 1) if hidden <= MAX_HIDDEN]
    best = min(candidates, key=lambda candidate: abs(parameter_count(candidate) - target))
    if abs(parameter_count(best) - target) > tolerance * target:
        finer = []
        for candidate in candidates:
            width = candidate.embedding_size
            for size in range(max(1, width * 3 // 4), min(MAX_HIDDEN, width * 5 // 4 + 1) + 1):
                finer.append(dataclasses.replace(candidate, embedding_size=size))
        best = min(finer, key=lambda candidate: abs(parameter_count(candidate) - target))
    count = parameter_count(best)
    if abs(count - target) > tolerance * target:
        raise ConfigError(
            f"no {config.kind} model of this shape has {target} parameters within {tolerance:.1%} "
            f"(the nearest has {count}); choose another size"
        )
    return best


def _with_hidden(config: ModelConfig, hidden: int) -> ModelConfig:
    """The configuration at another hidden size, what follows it in proportion."""
    changes: dict[str, Any] = {"hidden_size": hidden}
    if config.embedding_size == config.hidden_size:
        changes["embedding_size"] = hidden
    if config.encoder_hidden_size is not None:
        changes["encoder_hidden_size"] = max(
            1, round(config.encoder_hidden_size * hidden / config.hidden_size)
        )
    return dataclasses.replace(config, **changes)
