"""melodia's engine as a way of making tokens."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from benchmarks.suite.peers import TOP_K
from melodia import engine
from melodia.decode import SamplingConfig
from melodia.engine.description import describe
from melodia.engine.loop import Start, Terms, TokenLoop
from melodia.engine.rules import rules_of
from melodia.grammar import Constraints, Grammar
from melodia.model import Model
from melodia.side_inputs import SideInputTracker
from melodia.tokenizer import Tokenizer
from melodia.vocabulary import Vocabulary

SAMPLING = SamplingConfig(top_k=TOP_K)
FOR_EVER = 1 << 62


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


class Ours:
    """B streams of the engine; the grammar runs, and the choice is among the `TOP_K` likeliest, as the peers'.

    Args:
        model: the network.
        vocabulary: of its tokens; its grammar allows music without end.
        weights: "fp32", "bf16" or "int8".
        B: streams.
        threads: of the engine.
    """

    def __init__(self, model: Model, vocabulary: Vocabulary, weights: str, B: int, threads: int) -> None:
        self.engine = engine.Engine(*describe(model, weights), threads=threads)
        self._lanes = engine.Lanes(self.engine, B)
        grammar = Grammar.compile(vocabulary, Constraints(allow_eos=False))
        state = grammar.start()
        grammar.advance(state, vocabulary.bos)
        logits = self._lanes.step([vocabulary.bos] * B)
        specs = model.config.side_inputs
        starts = [
            Start(
                logits=logits[b],
                grammar=state.copy(),
                side=SideInputTracker(vocabulary, specs),
                sampling=SAMPLING,
                random_seed=1,
                session=b,
                fed=1,
                recent=(),
            )
            for b in range(B)
        ]
        self._loop = TokenLoop(self.engine, self._lanes, [rules_of(grammar, specs)] * B, starts)
        for b in range(B):
            self._loop.set_terms(b, Terms(FOR_EVER))

    def make(self, tokens: int) -> list[np.ndarray]:
        """So many tokens for each stream, in one call: B of [tokens]."""
        self._loop.run(steps=tokens)
        return [self._loop.drain(b)[0] for b in range(self._lanes.count)]

    def step(self) -> None:
        """One token for each stream, by a call of its own."""
        self.make(1)

    def logits(self, token: int) -> np.ndarray:
        """Advance all streams by this token, whatever the grammar says: logits [B, V]."""
        return self._lanes.step([token] * self._lanes.count)
