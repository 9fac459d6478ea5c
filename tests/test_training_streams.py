"""The lanes: every token once an epoch, windows inside pieces, everything random a function of the seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from training_helpers import HIGH, LOW, small_corpus, small_vocabulary, tune

from melodia.corpus.shards import CONSTANT_VELOCITY, Corpus, Piece, ShardWriter
from melodia.errors import ConfigError, TrainingError
from melodia.grammar import Grammar
from melodia.midi import read_score
from melodia.side_inputs import SideInputSpec, density_bucket, side_inputs
from melodia.tokenizer import Tokenizer, TokenizerConfig
from melodia.training.config import TrainingConfig
from melodia.training.streams import IGNORED, Batch, LaneStream, Preparer, _uniform

PLAIN = {"transpose_probability": 0.0, "hide_bars_left": 0.0, "hide_density": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def stream(
    corpus: Corpus,
    lanes: int = 3,
    window: int = 16,
    rank: int = 0,
    world_size: int = 1,
    specs: tuple[SideInputSpec, ...] = (),
    **settings: float,
) -> LaneStream:
    config = TrainingConfig(iterations=1, **settings)  # type: ignore[arg-type]
    preparer = Preparer(corpus.vocabulary, specs, config)
    return LaneStream(
        corpus.pieces("train"),
        preparer,
        lanes=lanes,
        window=window,
        random_seed=config.random_seed,
        rank=rank,
        world_size=world_size,
    )


def walk(source: LaneStream, batches: int) -> list[list[NDArray[np.int64]]]:
    """The pieces each lane walked, BOS and tokens; the last of each lane may be unfinished."""
    lanes: list[list[list[int]]] = [[] for _ in range(source.lanes)]
    for _ in range(batches):
        batch = source.next()
        for b, lane in enumerate(lanes):
            window = batch.tokens[b, : batch.lengths[b]].tolist()
            if batch.starts[b]:
                lane.append([])
            lane[-1].extend(window)
    return [[np.array(piece) for piece in lane] for lane in lanes]


def same(a: Batch, b: Batch) -> bool:
    return all(
        np.array_equal(getattr(a, n), getattr(b, n)) for n in ("tokens", "targets", "lengths", "starts")
    )


@pytest.mark.parametrize(("lanes", "window"), [(1, 16), (3, 16), (5, 7), (20, 1000), (2, 1)])
def test_an_epoch_holds_every_piece_once_and_whole(corpus: Corpus, lanes: int, window: int) -> None:
    source = stream(corpus, lanes, window, **PLAIN)
    per_lane = walk(source, batches=2000 // (lanes * min(window, 40)) + 40)
    walked = [piece for lane in per_lane for piece in lane[:-1]]  # the last may be unfinished
    bos = corpus.vocabulary.bos
    wanted = {(bos, *piece.tokens.tolist()) for piece in corpus.pieces("train")}
    assert {tuple(piece.tolist()) for piece in walked} == wanted
    unfinished = [lane[-1] for lane in per_lane]
    starts = {piece[: len(end)] for piece in wanted for end in unfinished}
    assert all(tuple(end.tolist()) in starts for end in unfinished)


def test_counts_of_an_epoch(corpus: Corpus) -> None:
    source = stream(corpus, lanes=1, window=16, **PLAIN)
    batches = [source.next() for _ in range(source.windows_per_epoch)]
    assert sum(int(batch.lengths.sum()) for batch in batches) == source.steps_per_epoch
    assert sum(batch.notes for batch in batches) == int(corpus.pieces("train").notes.sum())
    assert sum(bool(batch.starts[0]) for batch in batches) == len(corpus.pieces("train"))
    assert source.next().starts[0]


@pytest.mark.parametrize("window", [16, 1000])
def test_an_epoch_has_each_piece_in_one_of_its_keys(window: int, tmp_path: Path) -> None:
    """As byte pairs are stored: 3, 1 and 4 keys, one behind the other, of tokens that tell piece and key."""
    v = small_vocabulary()
    keys, ids = (3, 1, 4), [v.index[name] for name in v.tokens if name.startswith("Pitch_")]
    with ShardWriter(tmp_path, v) as writer:
        for row, count in enumerate(keys):
            for key in range(count):
                writer.add("train", [ids[row], ids[3 + key]] * (10 + row + key), row=row)
    corpus = Corpus.open(tmp_path)
    source = stream(corpus, 1, window, **PLAIN)
    assert (source.pieces_per_epoch, source.keys, source.tokens_per_epoch) == (3, 4, 2 * (10 + 11 + 12))
    assert source.steps_per_epoch == source.tokens_per_epoch + 3
    met: list[list[tuple[int, int]]] = []
    saved = source.position()
    while len(met) < 13 or len(met[-1]) < 3:
        batch = source.next()
        if batch.starts[0]:
            if not met or len(met[-1]) == 3:
                met.append([])
                saved = source.position() if len(met) == 6 else saved
            met[-1].append((ids.index(batch.tokens[0, 1]), ids.index(batch.tokens[0, 2]) - 3))
    for epoch in met:
        assert sorted(row for row, _ in epoch) == [0, 1, 2], "each piece once"
    for row, count in enumerate(keys):
        used = [key for epoch in met for at, key in epoch if at == row]
        for first in range(len(used) - count + 1):
            assert len(set(used[first : first + count])) == count, "all keys come in turn"
    again = stream(corpus, 1, window, **PLAIN)
    again.seek(saved)
    source.seek(saved)
    assert all(same(source.next(), again.next()) for _ in range(60)), "and go on so from a saved position"


def test_targets_are_the_next_tokens(corpus: Corpus) -> None:
    source = stream(corpus, lanes=2, window=16, **PLAIN)
    v = corpus.vocabulary
    velocities = {*v.ids_of("Velocity")}
    hidden = 0
    for _ in range(40):
        batch = source.next()
        assert batch.tokens.shape == batch.targets.shape == (2, batch.lengths.max())
        for b, n in enumerate(batch.lengths.tolist()):
            inputs, targets = batch.tokens[b], batch.targets[b]
            assert (inputs[n:] == v.pad).all()
            assert (targets[n:] == IGNORED).all()
            assert (inputs[0] == v.bos) == batch.starts[b]
            for t in range(n - 1):
                if targets[t] == IGNORED:
                    assert int(inputs[t + 1]) in velocities
                    hidden += 1
                else:
                    assert targets[t] == inputs[t + 1]
        assert batch.scored == (batch.targets != IGNORED).sum()
    assert hidden > 0


def test_velocities_of_constant_velocity_are_not_scored(tmp_path: Path) -> None:
    v = small_vocabulary()
    ids = [v.index[n] for n in ("Bar_None", "Position_0", "Pitch_60", "Velocity_63", "Duration_0.1.2")]
    with ShardWriter(tmp_path, v) as writer:
        writer.add("train", ids)
        writer.add("train", ids, flags=CONSTANT_VELOCITY)
    pieces = Corpus.open(tmp_path).pieces("train")
    prepare = Preparer(v, ())
    assert prepare(pieces[0]).targets.tolist() == [*ids, v.eos]
    assert prepare(pieces[1]).targets.tolist() == [*ids[:3], IGNORED, ids[4], v.eos]


def test_a_saved_position_goes_on_the_same(corpus: Corpus) -> None:
    source = stream(corpus, lanes=4)
    for count in range(30):
        position = source.position()
        expected = [source.next() for _ in range(3)]
        again = stream(corpus, lanes=4)
        again.seek(position)
        assert all(same(batch, again.next()) for batch in expected), count
        source.seek(position)
        source.next()
    with pytest.raises(TrainingError, match="4 lanes, this one 2"):
        stream(corpus, lanes=2).seek(position)


def test_processes_share_out_the_lanes(corpus: Corpus) -> None:
    whole = stream(corpus, lanes=6)
    parts = [stream(corpus, lanes=6, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(30):
        batch, shares = whole.next(), [part.next() for part in parts]
        for rank, share in enumerate(shares):
            assert share.tokens.shape[0] == 2
            for b in range(2):
                n = int(share.lengths[b])
                assert n == batch.lengths[2 * rank + b]
                assert share.starts[b] == batch.starts[2 * rank + b]
                assert (share.tokens[b, :n] == batch.tokens[2 * rank + b, :n]).all()
        assert sum(share.scored for share in shares) == batch.scored
        assert sum(share.notes for share in shares) == batch.notes
    with pytest.raises(TrainingError, match="multiple of the number of processes"):
        stream(corpus, lanes=5, world_size=2)


def test_order_depends_on_epoch_and_seed_alone(corpus: Corpus) -> None:
    def orders(random_seed: int) -> list[list[int]]:
        source = stream(corpus, lanes=1, window=10_000, random_seed=random_seed, **PLAIN)
        lengths = [int(source.next().lengths[0]) for _ in range(3 * len(corpus.pieces("train")))]
        return np.array(lengths).reshape(3, -1).tolist()

    first, second, third = orders(0)
    assert sorted(first) == sorted(second) == sorted(third)
    assert first != second != third
    assert orders(0) == [first, second, third]
    assert orders(1)[0] != first


def test_the_generator_is_pinned(corpus: Corpus) -> None:
    """Numbers that must never change, or a run resumed with a newer version would go another way than it began."""
    source = stream(corpus, lanes=24, window=1)
    source.next()
    assert [piece for _, piece, _ in source.position()["lanes"]] == [
        *[5, 3, 7, 8, 11, 2, 4, 1, 10, 0, 6, 9],
        *[10, 11, 1, 8, 9, 3, 4, 7, 0, 6, 2, 5],
    ]
    assert _uniform(7, 2, 3, 4, 2).tolist() == [0.9106438895354683, 0.4762054160886]


def test_transposition_moves_all_pitches_alike_and_only_as_far_as_they_fit(tmp_path: Path) -> None:
    v = small_vocabulary()
    low, high = v.index[f"Pitch_{LOW + 2}"], v.index[f"Pitch_{HIGH - 4}"]
    bar, position = v.index["Bar_None"], v.index["Position_0"]
    with ShardWriter(tmp_path, v) as writer:
        writer.add("train", [bar, position, low, low + 3])  # at most 2 down
        writer.add("train", [bar, position, high, high - 3])  # at most 3 up
        writer.add("train", [bar, bar])
    pieces = Corpus.open(tmp_path).pieces("train")
    prepare = Preparer(v, (), TrainingConfig(iterations=1))
    moved = np.array([prepare(pieces[0], epoch, 0).inputs[1:] for epoch in range(300)])
    assert (moved[:, :2] == [bar, position]).all()
    assert set((moved[:, 2] - low).tolist()) == set(range(-2, 7))
    assert (moved[:, 3] - moved[:, 2] == 3).all()
    counts = np.bincount(moved[:, 2] - moved[:, 2].min())
    assert counts.min() > 300 / 9 / 2  # uniform: 33 each expected, deviation 5.4
    tops = {int(prepare(pieces[1], epoch, 1).inputs[3]) - high for epoch in range(100)}
    assert tops == set(range(-5, 4))
    assert prepare(pieces[2], 0, 2).inputs.tolist() == [v.bos, bar, bar]
    still = Preparer(v, (), TrainingConfig(iterations=1, transpose_probability=0.0))
    assert still(pieces[0], 5, 0).inputs.tolist() == [v.bos, bar, position, low, low + 3]
    half = Preparer(v, (), TrainingConfig(iterations=1, transpose_probability=0.5, transpose_down=-2))
    untouched = sum(int(half(pieces[0], epoch, 0).inputs[3] == low) for epoch in range(400))
    assert abs(untouched - (200 + 200 / 9)) < 60  # half of them, and a ninth of the other half


def test_pieces_played_twice(corpus: Corpus) -> None:
    """Nothing stands between the two times; which pieces, and how long they are, survives a saved position."""
    source = stream(corpus, lanes=2, window=16, repeat_probability=0.5, **PLAIN)
    once = {tuple(piece.tokens.tolist()) for piece in corpus.pieces("train")}
    walked = [tuple(piece[1:].tolist()) for lane in walk(source, 200) for piece in lane[:-1]]
    twice = {piece for piece in walked if piece not in once}
    assert 0.3 < np.mean([piece in twice for piece in walked]) < 0.7
    assert all(piece[: len(piece) // 2] in once and piece[len(piece) // 2 :] in once for piece in twice)
    other = stream(corpus, lanes=2, window=16, repeat_probability=0.5, **PLAIN)
    other.seek(source.position())
    assert all(same(source.next(), other.next()) for _ in range(50))


def test_a_piece_played_twice_is_still_music() -> None:
    """The grammar takes it, for real files and the tokens that melodia trains on by default."""
    tokenizer = Tokenizer()
    grammar = Grammar.compile(tokenizer.vocabulary)
    again = Preparer(tokenizer.vocabulary, ()).again
    for path in sorted((Path(__file__).parent.parent / "midi_samples").glob("*.mid")):
        ids = tokenizer.encode(read_score(path)[0]).ids.astype(np.int64)
        assert grammar.accepts([*ids.tolist(), *again(ids).tolist()]) is None, path.name
        assert ids.size - 4 <= again(ids).size <= ids.size


def test_only_tokens_with_bars_can_be_repeated() -> None:
    with pytest.raises(ConfigError, match="bar lines"):
        Preparer(
            Tokenizer(TokenizerConfig(scheme="TSD")).vocabulary,
            (),
            TrainingConfig(iterations=1, repeat_probability=0.1),
        )


def test_other_instruments_play() -> None:
    """Programs become others, in order; drums and everything else stay; what comes is still music."""
    tokenizer = Tokenizer()
    v = tokenizer.vocabulary
    grammar = Grammar.compile(v)
    path = Path(__file__).parent.parent / "midi_samples" / "beethoven_ode_to_joy.mid"
    ids = tokenizer.encode(read_score(path)[0]).ids.astype(np.int64)
    drum = [
        "Bar_None",
        "TimeSig_4/4",
        "Position_0",
        "Program_-1",
        "PitchDrum_38",
        "Velocity_79",
        "Duration_0.1.12",
    ]
    ids = np.concatenate([ids, [v.index[token] for token in drum]])
    programs = np.array(v.ids_of("Program"))
    melodic = programs[programs != v.index["Program_-1"]]
    piece = Piece(ids.astype(np.uint16), -1, 0, 1, 1)
    prepare = Preparer(v, (), TrainingConfig(iterations=1, program_probability=0.75, **PLAIN))  # type: ignore[arg-type]
    changed, heard = 0, set()
    for epoch in range(60):
        made = prepare(piece, epoch, 0).inputs[1:]
        assert (made == prepare(piece, epoch, 0).inputs[1:]).all()
        assert grammar.accepts(made.tolist()) is None
        moved = made != ids
        changed += bool(moved.any())
        assert np.isin(ids[moved], melodic).all()
        assert np.isin(made[moved], melodic).all()
        pairs = {(int(a), int(b)) for a, b in zip(ids, made, strict=True) if a in melodic}
        _, after = zip(*sorted(pairs), strict=True)
        assert len(pairs) == 4
        assert list(after) == sorted(set(after)), "four programs stay four, in their order"
        heard |= set(after)
    assert 30 <= changed <= 57  # 45 expected, deviation 3.4
    assert len(heard) > 80, "any program, not a few"


def test_only_tokens_with_programs_can_exchange_them(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="needs tokens with programs"):
        Preparer(corpus.vocabulary, (), TrainingConfig(iterations=1, program_probability=0.1))


def test_side_inputs_are_those_of_the_transposed_piece(corpus: Corpus) -> None:
    size = corpus.vocabulary.size + 1
    specs = (
        SideInputSpec("position", 8),
        SideInputSpec("lookback1", size),
        SideInputSpec("bars_left", 33),
        SideInputSpec("density", 9),
    )
    prepare = Preparer(
        corpus.vocabulary, specs, TrainingConfig(iterations=1, hide_bars_left=0.5, hide_density=0.25)
    )
    given = []
    for epoch in range(20):
        for number, piece in enumerate(corpus.pieces("train")):
            passage = prepare(piece, epoch, number)
            assert passage.side is not None
            bars = piece.bars if passage.side[0, 2] else None
            density = density_bucket(piece.tokens, corpus.vocabulary) if passage.side[0, 3] else None
            expected = side_inputs(corpus.vocabulary, passage.inputs, specs, bars_total=bars, density=density)
            assert (passage.side == expected).all()
            given.append((bars is not None, density is not None))
    shares = np.mean(given, axis=0)
    assert abs(shares[0] - 0.5) < 0.12
    assert abs(shares[1] - 0.75) < 0.12
    held_out = Preparer(corpus.vocabulary, specs)(corpus.pieces("train")[0])
    assert held_out.side is not None
    assert not held_out.side[:, 2:].any()


def test_windows_carry_their_side_inputs(corpus: Corpus) -> None:
    specs = (SideInputSpec("position", 8),)
    source = stream(corpus, lanes=1, window=16, specs=specs, **PLAIN)
    columns, tokens = [], []
    while True:
        batch = source.next()
        if batch.starts[0] and columns:
            break
        assert batch.side is not None
        columns.extend(batch.side[0, :, 0].tolist())
        tokens.extend(batch.tokens[0].tolist())
    assert columns == side_inputs(corpus.vocabulary, tokens, specs)[:, 0].tolist()


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, small_vocabulary()) as writer:
        writer.add("train", [])
        writer.add("valid", [3])
    with pytest.raises(TrainingError, match="no piece to train on"):
        stream(Corpus.open(tmp_path))


READER = """
import sys
from melodia.corpus.shards import Corpus
from melodia.side_inputs import SideInputSpec
from melodia.training.config import TrainingConfig
from melodia.training.streams import LaneStream, Preparer

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

corpus = Corpus.open(sys.argv[1])
preparer = Preparer(corpus.vocabulary, [SideInputSpec("position", 8)], TrainingConfig(iterations=1))
stream = LaneStream(corpus.pieces("train"), preparer, lanes=4, window=20_000, random_seed=0)
steps = [stream.next().lengths.sum() for _ in range(40)]
before = resident()
while stream.position()["taken"] < len(corpus.pieces("train")):
    steps.append(stream.next().lengths.sum())
print(sum(steps), resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to measure memory")
def test_memory_stays_flat_over_a_corpus_that_would_not_fit(tmp_path: Path) -> None:
    """320 MB of tokens pass through; what the process holds grows by a tenth of that at most."""
    v = small_vocabulary()
    ids = tune(v, np.random.default_rng(0), 12_000)
    with ShardWriter(tmp_path, v, shard_tokens=1 << 24) as writer:
        for _ in range(800):
            writer.add("train", ids)
    run = [sys.executable, "-c", READER, str(tmp_path)]
    steps, growth = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert 2 * int(steps) > 300_000_000
    assert int(growth) < 32_000_000
