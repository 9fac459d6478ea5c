"""The choice of a token in compiled code: `melodia.decode.choose`, the same tokens from the same numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from melodia.decode import Choice, SamplingConfig
from melodia.engine import native
from melodia.errors import GrammarError, MelodiaError


def choose(
    logits: NDArray[np.float32],
    legal: NDArray[np.bool_] | None,
    recent: Sequence[int],
    config: SamplingConfig,
    *,
    random_seed: int,
    session: int,
    position: int,
) -> Choice:
    """Filter the logits [V] and draw a token; see `melodia.decode.choose`.

    Args:
        logits, legal, recent, config: as there.
        random_seed, session, position: whose noise; see `melodia.decode.philox`.

    Raises:
        MelodiaError, GrammarError: as there.
    """
    logits = np.ascontiguousarray(logits, np.float32)
    legal = None if legal is None else np.ascontiguousarray(legal, np.bool_)
    ids = (ctypes.c_int32 * len(recent))(*recent)
    made = native.ChoiceNumbers()
    done = native.library().melodia_choose(
        logits.ctypes.data,
        len(logits),
        None if legal is None else legal.ctypes.data,
        ids,
        len(recent),
        ctypes.byref(_numbers(config)),
        random_seed,
        session,
        position,
        True,
        ctypes.byref(made),
    )
    if not done:
        raise MelodiaError(native.last_error())
    if made.token == -1:
        raise GrammarError("no token is allowed here; loosen the constraints")
    if made.token < 0:
        raise MelodiaError(
            "the model's logits are not numbers (nan); its weights are damaged, train or load it again"
        )
    return Choice(made.token, made.nll, made.entropy)


@lru_cache(maxsize=64)
def _numbers(config: SamplingConfig) -> native.SamplingNumbers:
    return native.SamplingNumbers(
        temperature=config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        min_p=0.0 if config.min_p is None else config.min_p,
        repetition_penalty=config.repetition_penalty,
        top_k=0 if config.top_k is None else config.top_k,
        greedy=config.greedy,
    )
