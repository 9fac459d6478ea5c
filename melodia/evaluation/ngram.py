"""Interpolated n-gram model with modified Kneser-Ney smoothing: the judge that a network must beat.

Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling" (TR-10-98), section 3
and equations 24 to 26: three discounts an order, estimated from counts of counts; lower orders count distinct
left neighbours (continuation counts) instead of occurrences. An n-gram that begins with the begin token has
no left neighbour and keeps its occurrences, as in KenLM (Heafield et al. 2013). Order 1 is interpolated with
the uniform distribution over the ids that can be predicted (all but PAD and BOS). A context is cut at the
beginning of its piece.

Counting is vectorised: each k-gram gets an integer, found by sorting the pairs (integer of its last k - 1
tokens, first token), so that any vocabulary and order fit into 64 bits. Letters: N = positions in all pieces,
V = vocabulary, U = distinct n-grams of an order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melodia.errors import ConfigError
from melodia.measure import Likelihood, bare, count_notes_and_bars, velocity_mask
from melodia.vocabulary import Vocabulary

# Where counts of counts are too thin to estimate a discount; KenLM's --discount_fallback.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
# Pieces are scored in blocks of about this many positions, which bounds memory.
SCORE_BLOCK = 1 << 20


@dataclass(frozen=True)
class _Stream:
    """Pieces laid end to end, each with BOS in front and EOS behind.

    Attributes:
        ids: token ids [N].
        place: index inside the piece, 0 for BOS [N].
        scored: which positions are predicted and counted [N].
    """

    ids: NDArray[np.int64]
    place: NDArray[np.int64]
    scored: NDArray[np.bool_]


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length k and what their contexts know.

    Attributes:
        keys: sorted integers, (index of the last k - 1 tokens) * V + first token [U].
        numerator: discounted count of each n-gram, max(c - D(c), 0) [U].
        total: sum of the counts behind each context, indexed by the context's (k-1)-gram [contexts].
        backoff: share of a context's mass that goes to the lower order [contexts].
        discounts: D1, D2, D3+.
    """

    keys: NDArray[np.int64]
    numerator: NDArray[np.float64]
    total: NDArray[np.float64]
    backoff: NDArray[np.float64]
    discounts: tuple[float, float, float]


def modified_discounts(counts: NDArray[np.int64]) -> tuple[float, float, float]:
    """D1, D2, D3+ from the counts of all n-grams of an order (Chen & Goodman 1998, equation 26).

    Falls back to 0.5, 1, 1.5 where fewer than the needed counts of counts occur or a discount leaves (0, its
    count].

    >>> modified_discounts(np.array([1] * 8 + [2] * 4 + [3] * 2 + [4] * 1))
    (0.5, 1.25, 2.0)
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == c)) for c in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2.0 * n2)
    found = (1.0 - 2.0 * y * n2 / n1, 2.0 - 3.0 * y * n3 / n2, 3.0 - 4.0 * y * n4 / n3)
    if any(not 0.0 < discount <= limit for limit, discount in enumerate(found, start=1)):
        return FALLBACK_DISCOUNTS
    return found


class KneserNey:
    """An n-gram model of token ids. Build it with `KneserNey.train`.

    >>> v = Vocabulary("x", ("PAD_None", "BOS_None", "EOS_None", "Pitch_1", "Pitch_2"), {}, 12)
    >>> model = KneserNey.train([[3, 4, 3, 4], [3, 4, 4]], v, order=2)
    >>> round(float(model.probabilities([3]).sum()), 9)
    1.0
    >>> model.nll([[3, 4]]).tokens.tolist()
    [3]
    """

    def __init__(self, vocabulary: Vocabulary, orders: Sequence[_Order]) -> None:
        self.vocabulary = vocabulary
        self._orders = tuple(orders)

    @property
    def order(self) -> int:
        """n: how many tokens the longest n-gram has."""
        return len(self._orders)

    @property
    def discounts(self) -> tuple[tuple[float, float, float], ...]:
        """D1, D2, D3+ of each order, from 1 up."""
        return tuple(order.discounts for order in self._orders)

    @property
    def size(self) -> int:
        """How many n-grams of all orders the model holds."""
        return sum(len(order.keys) for order in self._orders)

    @classmethod
    def train(
        cls,
        pieces: Sequence[ArrayLike],
        vocabulary: Vocabulary,
        *,
        order: int = 5,
        constant_velocity: Sequence[bool] | None = None,
    ) -> KneserNey:
        """Count the pieces.

        Args:
            pieces: ids of each piece; BOS in front and EOS behind are optional and change nothing.
            vocabulary: of the ids.
            order: n, at least 1.
            constant_velocity: for each piece, whether all its notes have one velocity: its Velocity tokens
                are then contexts, but are not counted as predictions.

        Raises:
            ConfigError: no pieces, an order below 1, or an id outside the vocabulary.
        """
        if order < 1:
            raise ConfigError(f"order must be at least 1 (received {order})")
        if not len(pieces):
            raise ConfigError("an n-gram model needs at least one piece (received none)")
        stream = _stream(pieces, vocabulary, constant_velocity)
        v = vocabulary.size
        unused = np.array([vocabulary.pad, vocabulary.bos])

        keys: list[NDArray[np.int64]] = []
        first: list[NDArray[np.int64]] = []
        raw: list[NDArray[np.int64]] = []
        begins: list[NDArray[np.int64]] = []
        grams = np.zeros(len(stream.ids), dtype=np.int64)
        contexts: list[NDArray[np.int64]] = []
        for k in range(1, order + 1):
            whole = np.flatnonzero(stream.place >= k - 1)
            if k > 1:
                contexts.append(grams)
            unique, index, inverse = np.unique(
                grams[whole] * v + stream.ids[whole - (k - 1)], return_index=True, return_inverse=True
            )
            keys.append(unique)
            first.append(whole[index])
            scored = stream.scored[whole]
            raw.append(np.bincount(inverse[scored], minlength=len(unique)))
            at_start = scored & (stream.place[whole] == k - 1)
            begins.append(np.bincount(inverse[at_start], minlength=len(unique)))
            longer = np.full(len(stream.ids), -1, dtype=np.int64)
            longer[whole] = inverse
            grams = longer

        built: list[_Order] = []
        for k in range(1, order + 1):
            counts = raw[k - 1]
            if k < order:
                suffix = keys[k][raw[k] > 0] // v
                counts = np.bincount(suffix, minlength=len(counts)) + begins[k - 1]
            discounts = modified_discounts(counts)
            discount = np.array([0.0, *discounts])[np.minimum(counts, 3)]
            if k == 1:
                behind = np.zeros(len(counts), dtype=np.int64)
                size = 1
            else:
                behind = contexts[k - 2][np.maximum(first[k - 1] - 1, 0)]
                size = len(keys[k - 2])
            total = np.bincount(behind, weights=counts, minlength=size).astype(np.float64)
            moved = np.bincount(behind, weights=discount, minlength=size).astype(np.float64)
            backoff = np.divide(moved, total, out=np.ones(size), where=total > 0)
            built.append(_Order(keys[k - 1], np.maximum(counts - discount, 0.0), total, backoff, discounts))
        if np.isin(stream.ids[stream.scored], unused).any():
            raise ConfigError("a piece contains PAD or BOS; give pieces of music tokens only")
        return cls(vocabulary, built)

    def _log_probabilities(self, stream: _Stream) -> NDArray[np.float64]:
        """Natural log of the probability of each scored position, given the tokens before it in its piece."""
        v = self.vocabulary.size
        at = np.flatnonzero(stream.scored)
        probability = np.full(len(at), 1.0 / (v - 2))
        grams = np.zeros(len(stream.ids), dtype=np.int64)
        for k, order in enumerate(self._orders, start=1):
            behind = np.zeros(len(at), dtype=np.int64) if k == 1 else grams[at - 1]
            whole = np.flatnonzero((stream.place >= k - 1) & (grams >= 0))
            key = grams[whole] * v + stream.ids[whole - (k - 1)]
            slot = np.minimum(np.searchsorted(order.keys, key), max(len(order.keys) - 1, 0))
            hit = order.keys[slot] == key if len(order.keys) else np.zeros(len(key), dtype=bool)
            longer = np.full(len(stream.ids), -1, dtype=np.int64)
            longer[whole[hit]] = slot[hit]
            known = (behind >= 0) & (stream.place[at] >= k - 1)
            known[known] = order.total[behind[known]] > 0
            context = behind[known]
            gram = longer[at[known]]
            count = np.where(gram >= 0, order.numerator[np.maximum(gram, 0)], 0.0) if len(order.keys) else 0.0
            probability[known] = count / order.total[context] + order.backoff[context] * probability[known]
            grams = longer
        return np.log(probability)

    def nll(
        self, pieces: Sequence[ArrayLike], *, constant_velocity: Sequence[bool] | None = None
    ) -> Likelihood:
        """Negative log-likelihood of each piece with its end token; `constant_velocity` as in `train`.

        Raises:
            ConfigError: an id outside the vocabulary.
        """
        nats: list[float] = []
        tokens: list[int] = []
        start = 0
        while start < len(pieces):
            stop, size = start, 0
            while stop < len(pieces) and (stop == start or size + np.size(pieces[stop]) <= SCORE_BLOCK):
                size += int(np.size(pieces[stop]))
                stop += 1
            constant = None if constant_velocity is None else constant_velocity[start:stop]
            stream = _stream(pieces[start:stop], self.vocabulary, constant)
            piece = (np.cumsum(stream.place == 0) - 1)[stream.scored]
            nats += np.bincount(
                piece, weights=-self._log_probabilities(stream), minlength=stop - start
            ).tolist()
            tokens += np.bincount(piece, minlength=stop - start).tolist()
            start = stop
        notes, bars = count_notes_and_bars(pieces, self.vocabulary)
        return Likelihood(np.array(nats), np.array(tokens, dtype=np.int64), notes, bars)

    def probabilities(self, context: ArrayLike, *, from_start: bool = False) -> NDArray[np.float64]:
        """The distribution over the next token [V]; PAD and BOS get 0.

        Args:
            context: the ids before it; only the last n - 1 matter.
            from_start: the context is the whole piece so far, so BOS stands before it.
        """
        v = self.vocabulary
        past = np.asarray(context, dtype=np.int64).reshape(-1)
        if from_start:
            past = np.concatenate([[v.bos], bare(past, v)])
        past = past[max(0, len(past) - self.order + 1) :]
        candidates = np.array([i for i in range(v.size) if i not in (v.pad, v.bos)], dtype=np.int64)
        length = len(past) + 1
        ids = np.empty((len(candidates), length), dtype=np.int64)
        ids[:, :-1] = past
        ids[:, -1] = candidates
        place = np.tile(np.arange(length), len(candidates))
        result = np.zeros(v.size)
        result[candidates] = np.exp(
            self._log_probabilities(_Stream(ids.reshape(-1), place, place == length - 1))
        )
        return result


def _stream(
    pieces: Sequence[ArrayLike], vocabulary: Vocabulary, constant_velocity: Sequence[bool] | None
) -> _Stream:
    """Lay pieces end to end; everything but BOS and masked velocities is scored."""
    masks = velocity_mask(pieces, vocabulary, constant_velocity)
    bodies = [bare(piece, vocabulary) for piece in pieces]
    lengths = np.array([len(body) + 2 for body in bodies], dtype=np.int64)
    ends = np.cumsum(lengths)
    ids = np.empty(int(ends[-1]), dtype=np.int64)
    scored = np.ones(len(ids), dtype=bool)
    for i, (body, end) in enumerate(zip(bodies, ends.tolist(), strict=True)):
        begin = end - len(body) - 2
        ids[begin] = vocabulary.bos
        ids[begin + 1 : end - 1] = body
        ids[end - 1] = vocabulary.eos
        scored[begin] = False
        if masks is not None:
            scored[begin + 1 : end] = masks[i]
    if ids.min() < 0 or ids.max() >= vocabulary.size:
        raise ConfigError(
            f"ids must be between 0 and {vocabulary.size - 1} (received {ids.min()} to {ids.max()})"
        )
    place = np.arange(len(ids)) - np.repeat(ends - lengths, lengths)
    return _Stream(ids, place, scored)
