"""The music behind new bars: which of several branches leads there best.

A recurrent model reads one way, and bars that were drawn from what stands before know nothing of what comes after. But
a model says how likely what comes after is behind each of them, for the price of reading it. By Bayes' rule bars with
music before and after them have the probability

    p(new | before, after) = p(new | before) p(after | before, new) / p(after | before):

branches are drawn from the first factor, and the second says which of them is kept. A bar or two decide: further on
they are forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from melodia.grammar import GrammarState
from melodia.grammar.state import NONE
from melodia.sampler.feeding import Reader, nll_behind
from melodia.sampler.seed import open_music
from melodia.sampler.session import Session, shifts_over

if TYPE_CHECKING:
    from melodia.tokenizer import Tokenizer

AHEAD_BARS = 2
"""So many bars behind the new ones are read, and those before in which nothing begins."""

TEXTURE_BARS = 8
"""So many say what the music there is like."""


class Following:
    """What comes behind new bars.

    Args:
        reader: what reads.
        music: in any form that a seed has.
        tokenizer: the reader's.

    Attributes:
        score: the first bars.
        ids: int32 [N], their tokens.

    Raises:
        MidiError, TokenizerError: as for a seed.
    """

    def __init__(self, reader: Reader, music: Any, tokenizer: Tokenizer) -> None:
        from melodia.midi import bar_table, cut_score

        score, *_ = open_music(music, tokenizer)
        first = min(
            (track.notes.numpy()["time"].min() for track in score.tracks if len(track.notes)), default=0
        )
        rest = bar_table(score).index(int(first))
        self.score, _ = cut_score(score, bars=rest + TEXTURE_BARS)
        self.ids = tokenizer.encode(cut_score(score, bars=rest + AHEAD_BARS)[0]).ids
        self._reader = reader

    def nlls(self, sessions: Sequence[Session], joins: Sequence[int]) -> list[float]:
        """Its negative log-likelihood (NLL): the mean of its tokens, in nats.

        Args:
            sessions: where the music before may stand, B of them.
            joins: the bar line behind that music of each, in grid ticks.

        Returns:
            of each, [B].
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for k, (session, join) in enumerate(zip(sessions, joins, strict=True)):
            groups.setdefault(self._rest(session.grammar, join), []).append(k)
        found = np.zeros(len(sessions))
        for rest, members in groups.items():
            ids = np.array([*rest, *self.ids], np.int32)
            found[members] = nll_behind(self._reader, [sessions[k] for k in members], ids)
        return [float(value) for value in found]

    def _rest(self, state: GrammarState, join: int) -> tuple[int, ...]:
        """The tokens that lead to a bar line from where the music before stands."""
        vocabulary = self._reader.grammar.vocabulary
        if state.has_bars:  # rests before it have said nothing yet
            bar = [vocabulary.index["Bar_None"], *([] if state.metre == NONE else [state.metre])]
            return tuple(bar * max(0, (join - state.bar_end) // state.bar_length)) if state.bar >= 0 else ()
        return tuple(shifts_over(vocabulary, (join - state.now) // state.unit))
