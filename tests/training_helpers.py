"""A small vocabulary and made-up music with something to learn in it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from melodia.corpus.shards import CONSTANT_VELOCITY, Corpus, ShardWriter
from melodia.model import ModelConfig
from melodia.training import TrainingConfig
from melodia.training.folder import RESUME
from melodia.training.resume import TrainingState, parse_state, read_bytes
from melodia.vocabulary import Vocabulary

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
"""For processes that import melodia and these helpers."""
LOW, HIGH = 40, 90
CONFIG = TrainingConfig(
    iterations=40,
    batch_size=4,
    window=16,
    learning_rate=1e-2,
    eval_every=7,
    save_every=0.0,
    threads=1,
    device="cpu",
)


def read_state(folder: Path) -> TrainingState | None:
    """The state in the folder of a training, on the CPU; None if there is none."""
    data = read_bytes(folder / RESUME)
    return None if data is None else parse_state(folder / RESUME, data, torch.device("cpu"))


def small_vocabulary() -> Vocabulary:
    """Three specials, Bar, 8 positions, pitches 40 to 89, two velocities, two durations."""
    tokens = ["PAD_None", "BOS_None", "EOS_None", "Bar_None"]
    tokens += [f"Position_{i}" for i in range(8)]
    tokens += [f"Pitch_{i}" for i in range(LOW, HIGH)]
    tokens += ["Velocity_63", "Velocity_95", "Duration_0.1.2", "Duration_0.2.2"]
    graph = {
        "Bar": ("Position", "Bar"),
        "Position": ("Pitch",),
        "Pitch": ("Velocity",),
        "Velocity": ("Duration",),
        "Duration": ("Pitch", "Position", "Bar"),
    }
    return Vocabulary("REMI", tuple(tokens), graph, 2)


def tune(vocabulary: Vocabulary, rng: np.random.Generator, bars: int) -> NDArray[np.int64]:
    """Scales up and down from a random pitch, four notes a bar, loud on the first: [17 * bars] ids."""
    index = vocabulary.index
    pitch, step = int(rng.integers(52, 76)), int(rng.choice([-2, -1, 1, 2]))
    ids = []
    for _ in range(bars):
        ids.append(index["Bar_None"])
        for beat in range(4):
            velocity = 95 if beat == 0 else 63
            ids += [index[f"Position_{2 * beat}"], index[f"Pitch_{pitch}"], index[f"Velocity_{velocity}"]]
            ids.append(index["Duration_0.1.2"])
            pitch += step
            if not 52 <= pitch < 76:
                step, pitch = -step, pitch - 2 * step
    return np.array(ids, np.int64)


def small_corpus(
    folder: Path,
    *,
    pieces: int = 12,
    valid: int = 3,
    longest: int = 9,
    random_seed: int = 0,
    shard_tokens: int = 1 << 20,
    keys: int = 1,
) -> Corpus:
    """A corpus of tunes of 1 to `longest` bars; every fourth has one velocity and says so; stored `keys` times."""
    vocabulary, rng = small_vocabulary(), np.random.default_rng(random_seed)
    soft, loud = vocabulary.index["Velocity_63"], vocabulary.index["Velocity_95"]
    with ShardWriter(folder, vocabulary, shard_tokens=shard_tokens) as writer:
        for i in range(pieces + valid):
            ids = tune(vocabulary, rng, int(rng.integers(1, longest + 1)))
            flags = 0
            if i % 4 == 3:
                ids[ids == loud] = soft
                flags = CONSTANT_VELOCITY
            for _ in range(keys if i < pieces else 1):
                writer.add("train" if i < pieces else "valid", ids, row=i, flags=flags)
    return Corpus.open(folder)


def form(corpus: Corpus) -> ModelConfig:
    """Every source of randomness, and a state of every kind of tensor."""
    return ModelConfig(
        kind="bidirectional",
        vocab_size=corpus.vocabulary.size,
        hidden_size=16,
        dropout=0.2,
        embedding_dropout=0.1,
        weight_drop=0.1,
        side_inputs=(("position", 8), ("bars_left", 9)),
        block_starts=corpus.vocabulary.ids_of("Bar"),
    )
