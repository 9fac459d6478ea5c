"""The choice of a token in compiled code: `melodia.decode.choose`, the same tokens from the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.decode import Choice, Opinion, SamplingConfig
from melodia.decode.filters import not_numbers, nothing_legal
from melodia.engine import native


def choose(
    logits: NDArray[np.float32],
    legal: NDArray[np.bool_] | None,
    recent: Sequence[int],
    config: SamplingConfig,
    *,
    random_seed: int,
    session: int,
    position: int,
    opinion: Opinion | None = None,
) -> Choice:
    """Filter the logits [V] and draw a token; see `melodia.decode.choose`.

    Args:
        logits, legal, recent, config, opinion: as there.
        random_seed, session, position: whose noise; see `melodia.decode.philox`.

    Raises:
        MelodiaError, GrammarError: as there.
        ValueError: a recent token is not in the vocabulary.
    """
    if opinion is not None:
        opinion.check(len(logits))
    token, nll, entropy = native.module().choose(
        np.asarray(logits, np.float32, order="C"),
        None if legal is None else np.asarray(legal, np.bool_, order="C"),
        recent,
        sampling_of(config),
        random_seed,
        session,
        position,
        opinion,
    )
    if token == -1:
        raise nothing_legal()
    if token < 0:
        raise not_numbers()
    return Choice(token, nll, entropy)


@lru_cache(maxsize=64)
def sampling_of(config: SamplingConfig) -> Any:
    """The settings as the engine takes them."""
    return native.module().Sampling(
        temperature=config.temperature,
        top_k=0 if config.top_k is None else config.top_k,
        top_p=1.0 if config.top_p is None else config.top_p,
        min_p=0.0 if config.min_p is None else config.min_p,
        repetition_penalty=config.repetition_penalty,
        greedy=config.greedy,
    )
