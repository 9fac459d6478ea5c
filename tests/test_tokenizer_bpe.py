"""Byte pairs: what is learned, and that nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from grammar_helpers import content, grammar_of, sample, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st

from melodia.errors import TokenizerError
from melodia.grammar import Constraints, Grammar
from melodia.midi import read_score
from melodia.side_inputs import SideInputTracker, default_specs, side_inputs
from melodia.tokenizer import SCHEMES, Tokenizer, TokenizerConfig
from melodia.tokenizer.bpe import apply_pairs, join_pair, learn_pairs, with_pairs
from melodia.transpose import transposition_permutation
from melodia.vocabulary import Vocabulary

LETTERS = Vocabulary(
    "REMI", ("PAD_None", "BOS_None", "EOS_None", "Bar_None", "Pitch_0", "Pitch_1", "Pitch_2"), {}, 12
)
BAR, A, B, C = 3, 4, 5, 6


def naive_join(ids: list[int], pair: tuple[int, int], token: int) -> list[int]:
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(token)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 2), st.integers(0, 2))
def test_a_pair_is_joined_from_the_left(ids: list[int], left: int, right: int) -> None:
    joined = join_pair(np.array(ids, dtype=np.int64), (left, right), 9)
    assert joined.tolist() == naive_join(ids, (left, right), 9)


def test_the_most_frequent_pair_is_learned_first() -> None:
    """A B stands four times, C (A B) then three times."""
    piece = np.array([A, B, C, A, B, C, A, B, C, A, B])
    pairs = learn_pairs([piece], LETTERS, 9)
    assert pairs == [(A, B), (C, 7)]
    assert with_pairs(LETTERS, pairs).expansions == {7: (A, B), 8: (C, A, B)}
    assert apply_pairs(piece, pairs, 7).tolist() == [7, 8, 8, 8]


def test_no_pair_reaches_over_a_bar_line_a_piece_or_its_ends() -> None:
    pieces = [np.array([1, BAR, A, BAR, A, BAR, A, 2])] * 3
    pairs = learn_pairs(pieces, LETTERS, 20)
    assert pairs == [(BAR, A)], (
        "Bar may begin a token, but nothing may stand before it or before or behind BOS, EOS"
    )


def test_learning_stops_when_nothing_stands_twice() -> None:
    assert learn_pairs([np.array([A, B])], LETTERS, 50) == []


def test_errors() -> None:
    with pytest.raises(TokenizerError, match="7 tokens already; give `bpe_vocab_size` above that"):
        learn_pairs([np.array([A, B])], LETTERS, 7)
    with pytest.raises(TokenizerError, match="no pieces"):
        learn_pairs([], LETTERS, 9)
    with pytest.raises(TokenizerError, match="needs a vocabulary size"):
        Tokenizer().train_bpe([np.array([3])])
    with pytest.raises(TokenizerError, match="names no token before it"):
        with_pairs(LETTERS, [(A, 8)])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_there_and_back(scheme: str, samples_dir: Path, tmp_path: Path) -> None:
    """Trained on real files, shorter, lossless, saved and loaded, accepted by the grammar, side inputs agree."""
    base = tokenizer_of(scheme)
    scores = [read_score(path)[0] for path in sorted(samples_dir.glob("*.mid"))[:6]]
    pieces = [base.encode(score).ids for score in scores]
    config = TokenizerConfig(scheme=scheme, bpe_vocab_size=base.vocabulary.size + 100)
    trained = Tokenizer(config).train_bpe(pieces)
    assert trained.vocabulary.size == config.bpe_vocab_size
    again = Tokenizer.load(trained.save(tmp_path / "tokenizer.json"))
    assert again.vocabulary == trained.vocabulary
    grammar = Grammar.compile(again.vocabulary)
    for score, piece in zip(scores, pieces, strict=True):
        ids = again.encode(score).ids
        assert np.array_equal(ids, trained.apply_bpe(piece))
        assert len(ids) < 0.9 * len(piece)
        assert np.array_equal(again.vocabulary.expand(ids), piece)
        assert int(again.vocabulary.notes_of_token[ids].sum()) == int(
            base.vocabulary.notes_of_token[piece].sum()
        )
        assert content(again.decode(ids)) == content(base.decode(piece))
    assert grammar.accepts(ids[:200].tolist()) is None
    specs = default_specs(again.vocabulary)
    tracker = SideInputTracker(again.vocabulary, specs, bars_total=5)
    rows = np.array([tracker.advance(token) for token in ids.tolist()])
    assert np.array_equal(side_inputs(again.vocabulary, ids, specs, bars_total=5), rows)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_music_there_and_back(random_seed: int) -> None:
    rng = np.random.default_rng(random_seed)
    grammar = grammar_of("REMI", Constraints(programs=(0,), pitch_range=(60, 63), time_signatures=("2/4",)))
    base = tokenizer_of("REMI")
    pieces = [np.array(sample(grammar, rng, tokens=60, by_type=True)) for _ in range(4)]
    trained = base.train_bpe(pieces, base.vocabulary.size + 20)
    for piece in pieces:
        ids = trained.apply_bpe(piece)
        assert np.array_equal(trained.vocabulary.expand(ids), piece)
        assert Grammar.compile(trained.vocabulary).accepts(ids.tolist()) is None


def test_transposing_byte_pairs() -> None:
    """A BPE token moves to the one of the moved parts, or to -1 where there is none."""
    vocabulary = with_pairs(LETTERS, [(A, B), (B, C), (BAR, BAR)])
    assert transposition_permutation(vocabulary, 1).tolist() == [0, 1, 2, BAR, B, C, -1, 8, -1, 9]
