"""States as values: taken apart, put together, saved."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from model_zoo import ZOO, make, music

from melodia.model import state


@pytest.mark.parametrize("name", ZOO)
def test_select_stack_save_and_load(name: str) -> None:
    model = make(name, dtype=torch.float32)
    tokens, side = music(model, 3, 17)
    with torch.no_grad():
        _, end = model(tokens, side)
    assert state.batch_size(end) == 3
    lanes = [state.select(end, b) for b in (2, 0, 1)]
    again = state.select(state.stack(lanes), [1, 2, 0])
    file = io.BytesIO()
    np.savez(file, **state.to_numpy(again))
    file.seek(0)
    loaded = state.from_numpy(dict(np.load(file, allow_pickle=False)), model.initial_state(1))
    for a, b in zip(state.leaves(loaded), state.leaves(end), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    with torch.no_grad():
        first = model(tokens, side, loaded)[0]
        assert torch.equal(first, model(tokens, side, end)[0])


def test_selecting() -> None:
    now = ((torch.arange(4), torch.arange(8).view(4, 2)),)
    assert state.select(now, -1)[0][1].tolist() == [[6, 7]]
    assert state.select(now, slice(1, 3))[0][0].tolist() == [1, 2]
    assert state.select(now, torch.tensor([3, 3]))[0][0].tolist() == [3, 3]
    with pytest.raises(IndexError, match="lane 4 of a state with 4 lanes"):
        state.select(now, 4)


def test_reset_works_lane_by_lane() -> None:
    now = ((torch.ones(2, 3), torch.tensor([1, 2])),)
    after = state.reset(now, torch.tensor([False, True]))
    assert after[0][0].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert after[0][1].tolist() == [1, 0]
    assert now[0][1].tolist() == [1, 2], "a state is a value"


def test_a_step_leaves_the_state_it_was_given_alone() -> None:
    model = make("bilstm-gru-deep")
    tokens, side = music(model, 4, 30)
    now = model.initial_state(4)
    with torch.no_grad():
        for t in range(30):
            kept = state.map(torch.clone, now)
            _, after = model.step(tokens[:, t], side[:, t], now)
            for a, b in zip(state.leaves(kept), state.leaves(now), strict=True):
                assert torch.equal(a, b)
            now = after


def test_branches_of_one_state_do_not_touch_each_other() -> None:
    model = make("bigru-lstm")
    tokens, side = music(model, 1, 30)
    with torch.no_grad():
        _, primed = model(tokens[:, :13], side[:, :13])
        straight, _ = model(tokens[:, 13:], side[:, 13:], primed)
        model((tokens[:, 13:] + 1) % 23, side[:, 13:], primed)
        again, _ = model(tokens[:, 13:], side[:, 13:], primed)
    assert torch.equal(straight, again)


def test_foreign_states_are_refused() -> None:
    small, large = make("gru", dtype=torch.float32), make("gru", hidden_size=9, dtype=torch.float32)
    other = make("lstm", dtype=torch.float32)
    saved = state.to_numpy(small.initial_state(2))
    with pytest.raises(ValueError, match=r"part 0\.0 is float32"):
        state.from_numpy(saved, large.initial_state(1))
    with pytest.raises(ValueError, match="its parts differ"):
        state.from_numpy(saved, other.initial_state(1))
    with pytest.raises(ValueError, match="disagree about the batch size"):
        state.from_numpy(saved | {"0.0": saved["0.0"][:1]}, small.initial_state(1))
    with pytest.raises(ValueError, match=r"part 0\.0 is int64"):
        state.from_numpy(saved | {"0.0": saved["0.0"].astype(np.int64)}, small.initial_state(1))
    with pytest.raises(ValueError, match="cannot be stacked"):
        state.stack([small.initial_state(1), large.initial_state(1)])
    with pytest.raises(ValueError, match="nothing to stack"):
        state.stack([])
    with pytest.raises(ValueError, match="more tensors"):
        state.unflatten(small.initial_state(1), [torch.zeros(1)] * 3)


def test_bfloat16_states_are_saved_as_float32() -> None:
    model = make("gru", dtype=torch.bfloat16)
    arrays = state.to_numpy(model.initial_state(1))
    assert arrays["0.0"].dtype == np.float32
    assert state.leaves(state.from_numpy(arrays, model.initial_state(1)))[0].dtype == torch.bfloat16
