"""Byte pair encoding over token ids: the pair that stands together most often becomes a token of its own.

Nothing but whole numbers is learned, so a trained tokenizer is a list of pairs. No pair reaches over a bar line (its
second token never begins a bar), so what counts bars goes on counting. V = size of the base vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.errors import TokenizerError
from melodia.vocabulary import SPECIAL_TYPES, Vocabulary

MOST_TOKENS = 2_000_000
"""Pairs are counted on so many tokens at most; a corpus has far fewer pairs worth a token than that shows."""

LEAST_COUNT = 2
_WALL = -1

Pair = tuple[int, int]


def learn_pairs(sequences: Iterable[NDArray[np.integer[Any]]], base: Vocabulary, size: int) -> list[Pair]:
    """Learn pairs until the vocabulary has `size` tokens, or no pair stands twice.

    Args:
        sequences: base token ids of pieces.
        base: the base vocabulary, V tokens.
        size: tokens of the vocabulary with the pairs.

    Returns:
        the pairs in the order in which they are joined; the first becomes token V, the next V + 1.

    Raises:
        TokenizerError: `size` is not above V, or there is nothing to learn from.
    """
    if size <= base.size:
        raise TokenizerError(
            f"the vocabulary has {base.size} tokens already; give `bpe_vocab_size` above that (received {size})"
        )
    stream = _one_stream(sequences)
    if not len(stream):
        raise TokenizerError("no pieces to learn byte pairs from; give at least one")
    apart = np.zeros(size, dtype=bool)  # tokens that no pair ends with
    alone = np.zeros(size, dtype=bool)  # tokens that are in no pair at all
    for token, kind in enumerate(base.types):
        apart[token] = kind == "Bar" or kind in SPECIAL_TYPES
        alone[token] = kind in SPECIAL_TYPES
    pairs: list[Pair] = []
    for token in range(base.size, size):
        pair = _most_frequent(stream, apart, alone, token)
        if pair is None:
            break
        apart[token] = apart[pair[0]]
        stream = join_pair(stream, pair, token)
        pairs.append(pair)
    return pairs


def _one_stream(sequences: Iterable[NDArray[np.integer[Any]]]) -> NDArray[np.int64]:
    parts: list[NDArray[np.int64]] = []
    length = 0
    for sequence in sequences:
        parts += [np.asarray(sequence, dtype=np.int64), np.array([_WALL])]
        length += len(sequence) + 1
        if length >= MOST_TOKENS:
            break
    return np.concatenate(parts)[:MOST_TOKENS] if parts else np.zeros(0, dtype=np.int64)


def _most_frequent(
    stream: NDArray[np.int64], apart: NDArray[np.bool_], alone: NDArray[np.bool_], size: int
) -> Pair | None:
    """The pair that stands most often, the lowest ids on a tie; None if none stands twice."""
    first, second = stream[:-1], stream[1:]
    fine = (first != _WALL) & (second != _WALL)
    first, second = first[fine], second[fine]
    fine = ~(alone[first] | apart[second])
    codes, counts = np.unique(first[fine] * size + second[fine], return_counts=True)
    if not len(counts) or counts.max() < LEAST_COUNT:
        return None
    code = int(codes[int(counts.argmax())])
    return code // size, code % size


def join_pair(ids: NDArray[np.int64], pair: Pair, token: int) -> NDArray[np.int64]:
    """Put a token in the place of each pair, from the left: [N] -> [M], M <= N.

    >>> join_pair(np.array([5, 5, 5, 6]), (5, 5), 9).tolist()
    [9, 5, 6]
    """
    at = np.flatnonzero((ids[:-1] == pair[0]) & (ids[1:] == pair[1]))
    if not len(at):
        return ids
    if pair[0] == pair[1]:  # of a run of equal tokens every second place
        run = np.cumsum(np.concatenate([[True], np.diff(at) != 1]))
        starts = np.flatnonzero(np.concatenate([[True], np.diff(run) != 0]))
        at = at[(np.arange(len(at)) - starts[run - 1]) % 2 == 0]
    out = ids.copy()
    out[at] = token
    keep = np.ones(len(ids), dtype=bool)
    keep[at + 1] = False
    return out[keep]


def apply_pairs(ids: NDArray[np.integer[Any]], pairs: Sequence[Pair], first: int) -> NDArray[np.int32]:
    """Join all pairs, in the order in which they were learned; the first becomes token `first`."""
    out = np.asarray(ids, dtype=np.int64)
    present = set(np.unique(out).tolist())
    for token, pair in enumerate(pairs, start=first):
        if pair[0] in present and pair[1] in present:
            joined = join_pair(out, pair, token)
            if len(joined) != len(out):
                out = joined
                present.add(token)
    return out.astype(np.int32)


def with_pairs(base: Vocabulary, pairs: Sequence[Pair]) -> Vocabulary:
    """The base vocabulary and one more token per pair, with its expansion into base tokens.

    Raises:
        TokenizerError: a pair names a token that does not stand before it.
    """
    expansions: dict[int, tuple[int, ...]] = {}
    for token, (left, right) in enumerate(pairs, start=base.size):
        if not (0 <= left < token and 0 <= right < token):
            raise TokenizerError(f"byte pair {left}, {right} names no token before it; rebuild the tokenizer")
        expansions[token] = expansions.get(left, (left,)) + expansions.get(right, (right,))
    tokens = base.tokens + tuple(f"BPE_{token}" for token in expansions)
    return Vocabulary(base.scheme, tokens, base.graph, base.positions_per_beat, expansions)
