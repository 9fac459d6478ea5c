"""melodia's engine as a way of making tokens."""

from __future__ import annotations

import numpy as np

from benchmarks.suite.peers import TOP_K
from melodia import engine
from melodia.decode import SamplingConfig
from melodia.engine.description import describe
from melodia.model import Model

SAMPLING = SamplingConfig(top_k=TOP_K)


class Ours:
    """B streams of the engine; the choice draws among the `TOP_K` likeliest, as the peers do.

    Args:
        model: the network.
        weights: "fp32", "bf16" or "int8".
        B: streams.
        threads: of the engine.
    """

    def __init__(self, model: Model, weights: str, B: int, threads: int) -> None:
        self.engine = engine.Engine(*describe(model, weights), threads=threads)
        self._lanes = engine.Lanes(self.engine, B)
        self._tokens = np.zeros(B, np.int32)
        self._position = 0

    def make(self, tokens: int) -> None:
        """So many tokens for each stream."""
        for _ in range(tokens):
            self.step()

    def step(self) -> None:
        """One token for each stream, by a call of its own."""
        logits = self._lanes.step(self._tokens)
        self._position += 1
        for b, row in enumerate(logits):
            choice = engine.choose(row, None, [], SAMPLING, random_seed=1, session=b, position=self._position)
            self._tokens[b] = choice.token

    def logits(self, token: int) -> np.ndarray:
        """Advance all streams by this token: logits [B, V]."""
        return self._lanes.step(np.full_like(self._tokens, token))
