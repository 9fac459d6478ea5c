"""Likelihood of a model against a walk step by step, and of MIDI files from a folder."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import symusic
import torch

from melodia.errors import ConfigError, CorpusError
from melodia.evaluation.likelihood import PiecesInMemory, encode_files, files_to_score, model_likelihood
from melodia.model import Model, ModelConfig
from melodia.side_inputs import SideInputTracker, default_specs
from melodia.tokenizer import Tokenizer, TokenizerConfig

TPQ = 480


def write_tune(path, number, *, velocity=None, beats=12, tempo=120.0):
    rng = np.random.default_rng(number)
    score = symusic.Score(TPQ)
    track = symusic.Track(program=0)
    for beat in range(beats):
        loud = int(rng.integers(30, 110)) if velocity is None else velocity
        track.notes.append(symusic.Note(beat * TPQ, TPQ // 2, int(rng.integers(48, 72)), loud))
    score.tracks.append(track)
    score.tempos.append(symusic.Tempo(0, qpm=tempo))
    score.time_signatures.append(symusic.TimeSignature(0, 4, 4))
    path.parent.mkdir(parents=True, exist_ok=True)
    score.dump_midi(path)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TokenizerConfig())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    write_tune(folder / "a.mid", 1)
    write_tune(folder / "deep/flat.mid", 2, velocity=70, beats=7)
    write_tune(folder / "slow.mid", 3, beats=20, tempo=60.0)
    (folder / "broken.mid").write_bytes(b"MThd")
    return folder


def slow_nll(model, vocabulary, ids, flat):
    """One step at a time, with the tracker that generation uses."""
    specs = model.config.side_inputs
    tracker = SideInputTracker(vocabulary, specs) if specs else None
    state = model.initial_state(1)
    total, scored = 0.0, 0
    line = [vocabulary.bos, *ids, vocabulary.eos]
    for now, after in pairwise(line):
        side = None if tracker is None else torch.from_numpy(np.asarray(tracker.advance(now)))[None].long()
        logits, state = model.step(torch.tensor([now]), side, state)
        if flat and vocabulary.types[after] == "Velocity":
            continue
        total -= float(torch.log_softmax(logits[0].double(), 0)[after])
        scored += 1
    return total, scored


@pytest.mark.parametrize("kind", ["sequential", "bidirectional"])
@pytest.mark.parametrize("with_side", [False, True])
def test_same_as_step_by_step(kind, with_side, tokenizer, folder):
    vocabulary = tokenizer.vocabulary
    pieces = encode_files(folder, tokenizer)
    specs = default_specs(vocabulary) if with_side else ()
    settings = {"block_starts": vocabulary.ids_of("Bar")} if kind == "bidirectional" else {}
    config = ModelConfig(kind=kind, vocab_size=vocabulary.size, hidden_size=12, side_inputs=specs, **settings)
    model = Model(config, random_seed=5)
    options = {"constant_velocity": pieces.constant_velocity, "seconds": pieces.seconds}
    result = model_likelihood(model, vocabulary, pieces.tokens, **options)
    model.eval()
    with torch.no_grad():
        for i, ids in enumerate(pieces.tokens):
            total, scored = slow_nll(model, vocabulary, ids.tolist(), pieces.constant_velocity[i])
            assert result.tokens[i] == scored
            assert result.nats[i] == pytest.approx(total, rel=1e-5)
    assert result.units() == ("token", "note", "bar", "second")
    other = model_likelihood(model, vocabulary, pieces.tokens, lanes=2, window=9, **options)
    np.testing.assert_allclose(other.nats, result.nats, rtol=1e-6)


def test_a_model_that_knows_nothing_gives_log_v(tokenizer, folder):
    vocabulary = tokenizer.vocabulary
    model = Model(ModelConfig(kind="gru", vocab_size=vocabulary.size, hidden_size=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    result = model_likelihood(model, vocabulary, encode_files(folder, tokenizer).tokens)
    assert result.per("token") == pytest.approx(np.log(vocabulary.size), rel=1e-5)


def test_encoded_files(tokenizer, folder):
    pieces = encode_files(folder, tokenizer)
    assert [row.path for row in pieces.rows] == ["a.mid", "broken.mid", "deep/flat.mid", "slow.mid"]
    assert pieces.used == [0, 2, 3]
    assert pieces.rows[1].verdict == "failed"
    assert pieces.constant_velocity == [False, True, False]
    assert pieces.seconds == pytest.approx([5.75, 3.25, 19.5])
    held = PiecesInMemory(pieces.tokens, tokenizer.vocabulary, pieces.constant_velocity)
    assert held.notes.tolist() == [12, 7, 20]
    assert held.bars.tolist() == [3, 2, 5]
    assert held[1].constant_velocity
    assert [piece.notes for piece in held[:2]] == [12, 7]
    one = encode_files(folder / "a.mid", tokenizer)
    np.testing.assert_array_equal(one.tokens[0], pieces.tokens[0])
    assert len(encode_files([folder / "a.mid", folder / "slow.mid"], tokenizer).used) == 2


def test_the_same_music_counts_once(tokenizer, folder, tmp_path):
    """A copy, and the same notes at another velocity, as the corpus reader decides."""
    (tmp_path / "b.mid").write_bytes((folder / "a.mid").read_bytes())
    write_tune(tmp_path / "a.mid", 1)
    write_tune(tmp_path / "c.mid", 2, velocity=70)
    write_tune(tmp_path / "d.mid", 2, velocity=80)
    pieces = encode_files(tmp_path, tokenizer)
    assert pieces.used == [0, 2]
    assert len(pieces.tokens) == len(pieces.seconds) == len(pieces.constant_velocity) == 2
    verdicts = [(row.verdict, row.reason) for row in pieces.rows]
    assert verdicts[1] == ("duplicate", "same bytes as a.mid")
    assert verdicts[3] == ("duplicate", "same notes as c.mid")


def test_a_folder_that_says_what_is_held_out(tokenizer, tmp_path):
    for number, name in enumerate(["train/a.mid", "valid/b.mid", "beside.mid", "Dev/c.mid"]):
        write_tune(tmp_path / "split" / name, number)
    write_tune(tmp_path / "alone.mid", 9)
    pieces = encode_files(tmp_path / "split", tokenizer)
    assert [row.path for row in pieces.rows] == ["Dev/c.mid", "valid/b.mid"]
    # What no split speaks of is scored; and where it holds nothing out, all is.
    assert [found.relative for found in files_to_score(tmp_path)] == [
        "alone.mid", "split/Dev/c.mid", "split/valid/b.mid",
    ]  # fmt: skip
    for path in (tmp_path / "split").glob("*/[bc].mid"):
        path.unlink()
    assert len(files_to_score(tmp_path / "split")) == 2


def test_errors(tokenizer, folder, tmp_path):
    with pytest.raises(CorpusError, match=r"none of the 1 files.*failed"):
        encode_files(folder / "broken.mid", tokenizer)
    with pytest.raises(CorpusError, match="no MIDI files"):
        encode_files(tmp_path, tokenizer)
    v = tokenizer.vocabulary
    with pytest.raises(ConfigError, match="one flag per piece"):
        PiecesInMemory([[3]], v, [True, False])
    with pytest.raises(ConfigError, match="ids must be between"):
        PiecesInMemory([[v.size]], v)
    model = Model(ModelConfig(kind="gru", vocab_size=v.size, hidden_size=4))
    with pytest.raises(ConfigError, match="one number per piece"):
        model_likelihood(model, v, [[3]], seconds=[1.0, 2.0])
