"""The engine's block encoder against the model: whole = in chunks = step by step, and its state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_zoo import BAR, ZOO, make, music
from test_engine import TOLERANCE, relative

from melodia import engine
from melodia.engine.description import describe
from melodia.model import Model
from melodia.model import state as states

pytestmark = pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")

BLOCKS = [name for name in ZOO if ZOO[name]["kind"] == "bidirectional"]


def play(model: Model, B: int, T: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The model's logits [T, B, V], the tokens [T, B] and side inputs [T, B, S] that made them."""
    tokens, side = music(model, B, T)
    with torch.inference_mode():
        logits = model(tokens, side)[0].transpose(0, 1).numpy()
    return logits, tokens.T.numpy(), None if side is None else side.transpose(0, 1).numpy()


def rows(sides: np.ndarray | None, part: slice) -> np.ndarray | None:
    return None if sides is None else sides[part]


def flat(state: states.State) -> np.ndarray:
    return np.concatenate([leaf.float().reshape(-1).numpy() for leaf in states.leaves(state)])


@pytest.mark.parametrize("hidden", [1, 17, 40])
@pytest.mark.parametrize("name", BLOCKS)
def test_logits_equal_the_models(name: str, hidden: int) -> None:
    model = make(name, dtype=torch.float32, hidden_size=hidden)
    expected, tokens, sides = play(model, 5, 90)
    packed = engine.Engine(*describe(model), threads=1)
    got = engine.Lanes(packed, 5).advance(tokens, sides)
    margin = relative(got, expected)
    print(f"{name} {hidden}: {margin:.1e} of {TOLERANCE['fp32']:.0e}")
    assert margin < TOLERANCE["fp32"]


@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("name", BLOCKS)
def test_chunks_steps_and_sessions_change_nothing(name: str, weights: str) -> None:
    model = make(name, dtype=torch.float32)
    _, tokens, sides = play(model, 4, 300)
    packed = engine.Engine(*describe(model, weights), threads=1)
    whole = engine.Lanes(packed, 4)
    expected = whole.advance(tokens, sides)
    generator = np.random.default_rng(1)
    chunked, stepped, alone = engine.Lanes(packed, 4), engine.Lanes(packed, 4), engine.Lanes(packed, 1)
    t = 0
    while t < 300:
        n = int(generator.integers(1, 40))
        assert (chunked.advance(tokens[t : t + n], rows(sides, slice(t, t + n))) == expected[t : t + n]).all()
        t += n
    for t in range(120):
        assert (stepped.step(tokens[t], None if sides is None else sides[t]) == expected[t]).all()
    lane = None if sides is None else sides[:, 2:3]
    assert (alone.advance(tokens[:, 2:3], lane)[:, 0] == expected[:, 2]).all()
    for b in range(4):
        assert (chunked.read(b) == whole.read(b)).all()
    # A state that is read and written elsewhere goes on as if nothing had happened.
    moved = engine.Lanes(packed, 4)
    for b in range(4):
        moved.write(b, stepped.read((b + 1) % 4))
    turn = (np.arange(4) + 1) % 4
    again = moved.advance(tokens[120:200, turn], None if sides is None else sides[120:200, turn])
    assert (again == expected[120:200, turn]).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_the_state_is_the_models(name: str) -> None:
    model = make(name, dtype=torch.float32)
    tokens, side = music(model, 3, 50)
    with torch.inference_mode():
        _, state = model(tokens, side)
    packed = engine.Engine(*describe(model), threads=1)
    lanes = engine.Lanes(packed, 3)
    heard, sides = tokens.T.numpy(), None if side is None else side.transpose(0, 1).numpy()
    lanes.advance(heard, sides)
    for b in range(3):
        np.testing.assert_allclose(lanes.read(b), flat(states.select(state, b)), rtol=0, atol=2e-5)
    start = engine.Lanes(packed, 3)
    lanes.write(1, np.zeros(lanes.state_size, np.float32))  # the beginning of a piece
    assert (lanes.read(1) == start.read(1)).all()
    first, row = heard[:1], rows(sides, slice(1))
    assert (lanes.advance(first, row)[0, 1] == start.advance(first, row)[0, 1]).all()


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_small_weights_are_close(weights: str) -> None:
    model = make("bilstm-gru-deep", dtype=torch.float32, hidden_size=100, encoder_hidden_size=60)
    expected, tokens, sides = play(model, 3, 30)
    got = engine.Lanes(engine.Engine(*describe(model, weights)), 3).advance(tokens, sides)
    assert 0 < relative(got, expected) < TOLERANCE[weights]


def test_threads_and_embeddings_too_large_for_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("bilstm-gru-deep", dtype=torch.float32, hidden_size=100, encoder_hidden_size=130)
    expected, tokens, sides = play(model, 6, 60)
    one = engine.Lanes(engine.Engine(*describe(model), threads=1), 6).advance(tokens, sides)
    two = engine.Lanes(engine.Engine(*describe(model), threads=2), 6).advance(tokens, sides)
    assert (one == two).all()
    monkeypatch.setattr("melodia.engine.description.TABLE_BYTES", 0)
    got = engine.Lanes(engine.Engine(*describe(model)), 6).advance(tokens, sides)
    assert relative(got, expected) < TOLERANCE["fp32"]


def test_broken_states_are_refused_and_change_nothing() -> None:
    model = make("bilstm-gru-deep", dtype=torch.float32)
    packed = engine.Engine(*describe(model), threads=1)
    lanes = engine.Lanes(packed, 1)
    _, tokens, sides = play(model, 1, 8)
    lanes.advance(np.where(tokens == BAR, 0, tokens), sides)
    before = lanes.read(0)
    block_max = model.config.block_max
    assert block_max is not None
    S = len(model.config.side_inputs)
    places = {
        -1: "number of waiting tokens",
        -2: "waiting side inputs",
        -2 - block_max * S: "waiting tokens",
        -2 - block_max * (1 + S): "number of blocks",
    }
    for place, name in places.items():
        for value in (-1, 0.5, 1e9):
            broken = before.copy()
            broken[place] = value
            with pytest.raises(ValueError, match=name):
                lanes.write(0, broken)
            assert (lanes.read(0) == before).all()


def test_one_block_and_many_cost_the_same_memory() -> None:
    model = make("bilstm-gru", dtype=torch.float32)
    lanes = engine.Lanes(engine.Engine(*describe(model), threads=1), 1)
    size = lanes.read(0).size
    lanes.advance(np.full((5000, 1), BAR), every=False)
    assert lanes.read(0).size == size
    waiting = lanes.read(0)[-1]
    assert waiting == 1  # each bar is closed by the next
