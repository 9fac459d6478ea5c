"""Generating beside the index: models that recite are caught, and their recitals refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sampler_helpers import make_seed, scale, tiny_sampler

from melodia.cli import main
from melodia.errors import CheckpointError, ConfigError, MelodiaError
from melodia.evaluation.continuations import Settings, continue_pieces, notes_and_bars
from melodia.midi import write_midi
from melodia.model import save_checkpoint
from melodia.notes import bar_lines
from melodia.originality import (
    Index,
    Training,
    attach_index,
    notes_of_events,
    notes_of_score,
    shared_passages,
)
from melodia.sampler import Continuation, Sampler
from melodia.workflows.generate import generate_files, generate_original

BARS = 8
SETTINGS = {"bars": BARS, "random_seed": 11}
TRIES = 8


def player() -> Sampler:
    """A random model that plays short notes and moves on, as tunes do."""
    sampler = tiny_sampler()
    long = [
        i for i in sampler.vocabulary.ids_of("Duration") if not sampler.vocabulary.value(i).startswith("0.")
    ]
    with torch.no_grad():
        sampler.model.head.bias[long] -= 8.0
        sampler.model.head.bias[list(sampler.vocabulary.ids_of("Position"))] += 9.0
    return sampler


def training(continuation: Continuation, name: str) -> Training:
    """A continuation as a training piece; its first bar is the piece's third."""
    notes = notes_of_events(continuation._notes)
    times = continuation._map
    starts = bar_lines(list(times.metres), times.end, times.ticks_per_quarter)
    bar = int(starts[1])
    for column in (notes.onset, notes.end):
        column += 2 * bar
    return Training(name, notes, bar_lines(list(times.metres), times.end + 2 * bar, times.ticks_per_quarter))


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_midi(make_seed(scale(2)), tmp_path_factory.mktemp("seed") / "seed.mid")


@pytest.fixture(scope="module")
def recitals(seed: Path) -> list[Continuation]:
    """What the model plays on the first eight streams of a random seed."""
    sampler = player()
    sampler.prime(seed)
    return sampler.generate_many(TRIES, **SETTINGS)


def checkpoint(folder: Path, pieces: list[Training] | None) -> Path:
    sampler = player()
    path = save_checkpoint(
        folder, sampler.model, vocabulary=sampler.vocabulary, tokenizer_json=sampler.tokenizer.to_dict()
    )
    if pieces is not None:
        attach_index(path, Index.build(pieces))
    return path


@pytest.fixture(scope="module")
def recites_one(tmp_path_factory: pytest.TempPathFactory, recitals: list[Continuation]) -> Path:
    """A model whose training music holds what it plays on its first stream."""
    return checkpoint(tmp_path_factory.mktemp("one") / "best", [training(recitals[0], "songs/X.mid")])


@pytest.fixture(scope="module")
def recites_all(tmp_path_factory: pytest.TempPathFactory, recitals: list[Continuation]) -> Path:
    pieces = [training(continuation, f"{k}.mid") for k, continuation in enumerate(recitals)]
    return checkpoint(tmp_path_factory.mktemp("all") / "best", pieces)


def test_a_recital_is_named(recites_one: Path, seed: Path, recitals: list[Continuation]) -> None:
    sampler = Sampler.load(recites_one)
    sampler.prime(seed)
    continuation = sampler.generate(**SETTINGS)
    assert continuation.tokens.tolist() == recitals[0].tokens.tolist()
    found = continuation.originality
    assert found is not None
    assert found.longest is not None
    assert found.longest.file == "songs/X.mid"
    assert found.longest.file_bar == found.longest.bar + 2
    assert found.bars > 3
    assert not found.longest.of_seed
    other = sampler.generate(**SETTINGS, session=5).originality
    assert other is not None
    assert other.bars < 2
    assert tiny_sampler().generate(bars=1, random_seed=1).originality is None, "no checkpoint, no index"


def test_a_pickle_has_the_finding_and_not_the_index(recites_one: Path, seed: Path) -> None:
    sampler = Sampler.load(recites_one)
    sampler.prime(seed)
    made = sampler.generate(**SETTINGS)
    assert made._index is not None
    with pytest.MonkeyPatch.context() as patch:  # so that an index in the pickle fails
        patch.setattr(Index, "__reduce_ex__", lambda *_: pytest.fail("the index is pickled"))
        data = pickle.dumps(made)
    again = pickle.loads(data)
    assert again.originality == made.originality
    assert again.originality.longest.file == "songs/X.mid"
    assert again.tokens.tolist() == made.tokens.tolist()
    assert len(again.joined_score.tracks) == len(made.joined_score.tracks)
    assert pickle.loads(pickle.dumps(tiny_sampler().generate(bars=1, random_seed=1))).originality is None


def test_the_seeds_own_piece(recitals: list[Continuation], tmp_path: Path) -> None:
    """A seed out of the training piece whose next bars the model plays."""
    piece = recitals[0].joined_score
    notes = notes_of_score(piece)
    metres = [(int(m.time), int(m.numerator), int(m.denominator)) for m in piece.time_signatures]
    whole = Training("whole.mid", notes, bar_lines(metres, int(piece.end()), int(piece.ticks_per_quarter)))
    model = checkpoint(tmp_path / "model", [whole])
    sampler = Sampler.load(model)
    sampler.prime(recitals[0].state.seed)
    state = sampler.state
    assert state.seed is not None
    again = sampler.generate(bars=1, random_seed=1)
    assert again.originality is not None
    # The seed is eight bars of the piece; what the model recites of it is named as the seed's own.
    recited = sampler.generate(bars=BARS, random_seed=1)
    found = recited.originality
    assert found is not None
    for passage in found.passages:
        assert passage.of_seed
    twice = shared_passages(
        Index.build([whole]),
        notes_of_events(recitals[0]._notes),
        bar_lines(list(recitals[0]._map.metres), recitals[0]._map.end, recitals[0]._map.ticks_per_quarter),
        seed=notes,
    )
    assert twice.longest is not None
    assert twice.longest.of_seed


def test_what_recites_is_drawn_again(recites_one: Path, seed: Path, tmp_path: Path) -> None:
    result = generate_files(seed, tmp_path / "a.mid", model=recites_one, max_copy=2, **SETTINGS)
    (continuation,) = result.continuations
    assert continuation.report.session == 1
    assert continuation.report.random_seed == 11
    assert continuation.originality is not None
    assert continuation.originality.bars <= 2
    several = generate_files(
        seed, tmp_path / "b.mid", model=recites_one, max_copy=2, num_samples=3, **SETTINGS
    )
    assert [c.report.session for c in several.continuations] == [1, 2, 3]
    loose = generate_files(seed, tmp_path / "c.mid", model=recites_one, max_copy=BARS + 2, **SETTINGS)
    assert loose.continuations[0].report.session == 0
    assert any(line.startswith("longest passage shared with the training music") for line in loose.lines())
    drawn = generate_files(seed, tmp_path / "d.mid", model=recites_one, max_copy=2, bars=2)
    assert drawn.continuations[0].report.random_seed >= 0


def test_a_model_that_only_recites_fails_and_writes_nothing(
    recites_all: Path, seed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.mid"
    with pytest.raises(MelodiaError, match=r"8 of 8 tries share more than 0.5 bars .*`max_copy`"):
        generate_files(seed, out, model=recites_all, max_copy=0.5, **SETTINGS)
    assert not out.exists()
    arguments = ["generate", "--seed", str(seed), "--model", str(recites_all), "--out", str(out)]
    arguments += ["--bars", str(BARS), "--random-seed", "11", "--temperature", "1", "--top-p", "1"]
    arguments += ["--pitch-bias", "0", "--branches", "1", "--recall", "0"]
    assert main([*arguments, "--max-copy", "0.5"]) == 1
    assert "raise --max-copy" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "--max-copy", "-1"]) == 2
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "longest passage shared with the training music:" in said
    assert "notes, with 0.mid bar" in said


def test_without_an_index_it_is_said(seed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = checkpoint(tmp_path / "model", None)
    arguments = ["generate", "--seed", str(seed), "--model", str(bare), "--bars", "1"]
    assert main([*arguments, "--out", str(tmp_path / "a.mid")]) == 0
    assert "originality not checked" in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "b.mid"), "--max-copy", "4"]) == 1
    assert "melodia originality --model DIR --index FOLDER" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="needs an index"):
        generate_files(seed, tmp_path / "c.mid", model=bare, max_copy=4, bars=1)
    with pytest.raises(ConfigError, match="at least 0 bars"):
        generate_original(Sampler.load(bare), 1, -1.0)


def test_what_is_played_again_from_memory_is_no_recital(tmp_path: Path) -> None:
    """The seed is a training piece, and its bars come again because they were asked for."""
    rng = np.random.default_rng(3)
    tune = make_seed([(k / 2, 0.5, int(rng.integers(55, 85)), 0) for k in range(16 * 8)])
    sampler = player()
    tune = sampler.tokenizer.decode(sampler.tokenizer.encode(tune).ids)
    bars = bar_lines([(0, 4, 4)], 64 * tune.ticks_per_quarter, tune.ticks_per_quarter)
    path = checkpoint(tmp_path / "model", [Training("own.mid", notes_of_score(tune), bars)])
    sampler = Sampler.load(path)
    sampler.prime(tune)
    index, longest = sampler.originality_index, 0.0
    assert index is not None
    for random_seed in range(8):
        made = sampler.generate(bars=6, recall=0.9, random_seed=random_seed)
        assert made.originality is not None
        assert made.originality.bars == 0
        times = made._map
        starts = bar_lines(list(times.metres), times.end, times.ticks_per_quarter)
        longest = max(longest, shared_passages(index, notes_of_events(made._notes), starts).bars)
    assert longest > 1.5, "it would be one"


def test_an_evaluation_counts_no_bars_that_were_played_again(tmp_path: Path) -> None:
    sampler = player()
    rng = np.random.default_rng(3)
    tune = make_seed([(k / 2, 0.5, int(rng.integers(55, 85)), 0) for k in range(16 * 8)])
    file = write_midi(tune, tmp_path / "own.mid")
    tune = sampler.tokenizer.decode(sampler.tokenizer.encode(tune).ids)
    path = checkpoint(tmp_path / "model", [Training("own.mid", *notes_and_bars(tune))])
    sampler = Sampler.load(path)
    shared = []
    for random_seed in range(4):
        settings = Settings(seed_bars=10, bars=6, recall=0.9, random_seed=random_seed)
        ((pair,), failed) = continue_pieces(sampler, [("own.mid", file)], 1, settings)
        assert failed == []
        assert pair.originality is not None
        assert pair.originality.bars == 0
        assert pair.real_originality is not None
        assert pair.real_originality.bars > 4
        index = sampler.originality_index
        assert index is not None
        shared.append(shared_passages(index, *notes_and_bars(pair.generated)).bars)
    assert max(shared) > 1.5, "they would be passages of the training music"
