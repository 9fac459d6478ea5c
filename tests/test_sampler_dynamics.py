"""Behind music of one velocity, new notes have it, too; behind any other they have what the model says."""

from __future__ import annotations

import numpy as np
import pytest
from sampler_helpers import make_seed, notes_of, scale, tiny_sampler

from melodia import engine
from melodia.sampler import Sampler
from melodia.sampler.classes import TokenClasses
from melodia.sampler.dynamics import FEWEST_NOTES, Level
from melodia.tokenizer import Tokenizer, TokenizerConfig
from melodia.tokenizer.bpe import with_pairs

VELOCITIES = (75, 79, 83)  # of the tokenizer's, around the 80 of the seeds
SCHEMES = ["REMI", "TSD", "Structured", "MIDILike", "PerTok"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_one_velocity_stays(scheme: str, backend: str) -> None:
    if backend == "native" and engine.reason() is not None:
        pytest.skip(f"no engine: {engine.reason()}")
    model = tiny_sampler(scheme)
    sampler = Sampler(model.model, model.tokenizer, backend=backend)
    seed = make_seed(scale(FEWEST_NOTES // 4))
    sampler.prime(seed)
    made = sampler.generate(bars=4, random_seed=3)
    assert {velocity for *_, velocity in notes_of(made.score)} == {80}, "which no token has"
    assert {event.velocity for event in sampler.stream(bars=4, random_seed=3)} == {80}
    sampler.prime(made.joined_score)
    assert {velocity for *_, velocity in notes_of(sampler.generate(bars=4, random_seed=3).score)} == {80}
    seed.tracks[0].notes[3].velocity = 40
    sampler.prime(seed)
    assert len({velocity for *_, velocity in notes_of(sampler.generate(bars=4, random_seed=3).score)}) > 1


def test_few_notes_say_nothing() -> None:
    classes = TokenClasses(Tokenizer(TokenizerConfig()).vocabulary)
    assert Level.of(classes, None) is None
    assert Level.of(classes, make_seed(scale(FEWEST_NOTES // 4)[:-1])) is None
    level = Level.of(classes, make_seed(scale(FEWEST_NOTES // 4)))
    assert level is not None
    others = {classes.vocabulary.tokens[token] for token in np.flatnonzero(level.others)}
    kept = {token for token in classes.vocabulary.tokens if token.startswith("Velocity")} - others
    assert len(kept) == 1
    assert all(token.startswith("Velocity") for token in others)


def test_byte_pairs_that_hold_another_velocity_are_left_out() -> None:
    base = Tokenizer(TokenizerConfig()).vocabulary
    soft, loud, other = (base.index[f"Velocity_{value}"] for value in VELOCITIES)
    pitch = base.index["Pitch_60"]
    vocabulary = with_pairs(base, [(pitch, soft), (pitch, loud), (pitch, other)])
    level = Level.of(TokenClasses(vocabulary), make_seed(scale(8)))
    assert level is not None
    assert level.others[base.size :].tolist() == [True, False, True]
