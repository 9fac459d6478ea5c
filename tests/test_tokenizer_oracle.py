"""The tokenizer against miditok: vocabularies, graphs, ids, and scores read back."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_files import corpus_files
from grammar_helpers import content, tokenizer_of
from miditok_oracle import encode, make_oracle

from melodia.midi import read_score
from melodia.tokenizer import SCHEMES, Tokenizer, TokenizerConfig
from melodia.tokenizer.grid import to_grid

THEIRS = [
    s for s in SCHEMES if s != "PerTok"
]  # PerTok is laid out otherwise, see melodia/tokenizer/encoding.py


@lru_cache(maxsize=8)
def oracle_of(scheme: str, positions: int = 12) -> tuple[Tokenizer, Any]:
    config = TokenizerConfig(scheme=scheme, positions_per_beat=positions)
    return Tokenizer(config), make_oracle(config)


def check_ids(data: Path | bytes, scheme: str, positions: int = 12) -> None:
    score = read_score(data)[0]
    tokenizer, oracle = oracle_of(scheme, positions)
    theirs = encode(oracle, to_grid(score, tokenizer.config))
    assert np.array_equal(tokenizer.encode(score).ids, theirs)


@pytest.mark.parametrize("positions", [12, 24])
@pytest.mark.parametrize("scheme", THEIRS)
def test_ids_are_miditoks(scheme: str, positions: int, samples_dir: Path) -> None:
    for path in sorted(samples_dir.glob("*.mid")):
        check_ids(path, scheme, positions)


def test_ids_are_miditoks_in_the_corpora(data_dir: Path) -> None:
    for i, (_, data) in enumerate(corpus_files(data_dir, 150)):
        check_ids(data, THEIRS[i % len(THEIRS)])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", THEIRS)
def test_ids_are_miditoks_in_a_share_of_the_corpora(scheme: str, data_dir: Path) -> None:
    for _, data in corpus_files(data_dir, 10):
        check_ids(data, scheme)


@pytest.mark.parametrize("positions", [12, 24])
@pytest.mark.parametrize("scheme", THEIRS)
def test_vocabulary_is_miditoks(scheme: str, positions: int) -> None:
    config = TokenizerConfig(scheme=scheme, positions_per_beat=positions)
    theirs = make_oracle(config).vocab
    assert Tokenizer(config).base.index == theirs


@pytest.mark.parametrize("scheme", SCHEMES)
def test_graph_has_no_edge_that_miditok_lacks(scheme: str) -> None:
    vocabulary = tokenizer_of(scheme).vocabulary
    assert set(vocabulary.graph) <= set(vocabulary.types)
    if scheme == "PerTok":  # miditok has no graph for it
        return
    theirs = make_oracle(TokenizerConfig(scheme=scheme)).tokens_types_graph
    ends = {("Velocity", "NoteOff"), ("Velocity", "DrumOff")}  # at one place another program's note may end
    for kind, after in vocabulary.graph.items():
        mine = {(kind, follower) for follower in after if "EOS" not in (kind, follower) and kind != "BOS"}
        extra = {edge for edge in mine if edge[1] not in theirs[edge[0]]}
        assert extra <= ends | {(k, f) for k, f in extra if "Drum" in k or "Drum" in f or "TimeSig" in (k, f)}


@pytest.mark.parametrize("scheme", THEIRS)
def test_decode_is_miditoks(scheme: str, samples_dir: Path) -> None:
    from miditok import TokSequence

    tokenizer = tokenizer_of(scheme)
    theirs = make_oracle(tokenizer.config)
    for path in sorted(samples_dir.glob("*.mid")):
        ids = tokenizer.encode(read_score(path)[0]).ids
        mine, other = tokenizer.decode(ids), theirs.decode(TokSequence(ids=ids.tolist()))
        assert mine.ticks_per_quarter == other.ticks_per_quarter
        assert content(mine)[:1] == content(other)[:1], path.name
        if scheme != "Structured":
            assert content(mine) == content(other), path.name
