"""melodia's engine as a way of making tokens."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from benchmarks.suite.peers import TOP_K
from melodia import engine
from melodia.decode import SamplingConfig
from melodia.model import Model, Network
from melodia.tokenizer import Tokenizer
from melodia.vocabulary import Vocabulary
from melodia.workflows.bench import Streams

SAMPLING = SamplingConfig(top_k=TOP_K)


@lru_cache(maxsize=1)
def small_vocabulary() -> Vocabulary:
    """512 tokens with a grammar: those of the tokenizer without the drums and with eight programs.

    >>> small_vocabulary().size
    512
    """
    whole = Tokenizer().vocabulary
    kept = tuple(
        token
        for token, kind in zip(whole.tokens, whole.types, strict=True)
        if kind != "PitchDrum" and (kind != "Program" or 0 <= int(token.partition("_")[2]) < 8)
    )
    return Vocabulary(whole.scheme, kept, whole.graph, whole.positions_per_beat)


def need_engine() -> None:
    """RuntimeError, which says why, where the engine cannot run."""
    obstacle = engine.reason()
    if obstacle is not None:
        raise RuntimeError(f"the engine cannot run here: {obstacle}")


class Ours(Streams):
    """B streams of the engine; the grammar runs, and the choice is among the `TOP_K` likeliest, as the peers'.

    Args:
        model: the network.
        vocabulary: of its tokens; its grammar allows music without end.
        weights: "fp32", "bf16" or "int8".
        B: streams.
        threads: of the engine.
    """

    def __init__(self, model: Model, vocabulary: Vocabulary, weights: str, B: int, threads: int) -> None:
        super().__init__(Network.of(model), vocabulary, SAMPLING, weights=weights, B=B, threads=threads)

    def step(self) -> None:
        """One token for each stream, by a call of its own."""
        self.make(1)

    def logits(self, token: int) -> np.ndarray:
        """Advance all streams by this token, whatever the grammar says: logits [B, V]."""
        return self.lanes.step([token] * self.lanes.count)
