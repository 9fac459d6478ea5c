"""Blocks: where they begin, which of them are finished, which summary conditions a token; however windows fall."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_zoo import BAR, V, make, music

from melodia.model import Model, state
from melodia.model.bidirectional import BlockEncoder, find_blocks, find_starts


def test_starts_by_hand() -> None:
    tokens = torch.tensor([[9, 4, 1, 1, 1, 1, 4, 4], [4, 1, 1, 4, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
    opens = torch.arange(10) == 4
    assert find_starts(tokens, torch.tensor([8, 5, 0]), opens, 3).int().tolist() == [
        [1, 1, 0, 0, 1, 0, 1, 1],
        [1, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert find_starts(tokens, torch.tensor([8, 5, 0]), None, 3).int().tolist() == [
        [1, 0, 0, 1, 0, 0, 1, 0],
        [1, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_blocks_by_hand() -> None:
    starts = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 0]]).bool()
    blocks = find_blocks(starts)
    assert blocks.lane.tolist() == [0, 0, 3]
    assert blocks.start.tolist() == [0, 1, 0]
    assert blocks.length.tolist() == [1, 3, 2]
    assert blocks.counts.tolist() == [2, 0, 0, 1]
    assert blocks.finished.tolist() == [4, 0, 0, 2]
    assert blocks.row.tolist() == [[0, 4, 4, 4, 5], [1] * 5, [2] * 5, [3, 3, 6, 6, 6]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([1, 2, BAR]), min_size=1, max_size=25), min_size=1, max_size=4),
    st.integers(1, 6),
    st.booleans(),
)
def test_blocks_equal_a_reading_token_by_token(lanes: list[list[int]], block_max: int, bars: bool) -> None:
    lengths = torch.tensor([len(lane) for lane in lanes])
    tokens = torch.tensor([lane + [BAR] * (25 - len(lane)) for lane in lanes])
    opens = (torch.arange(10) == BAR) if bars else None
    blocks = find_blocks(find_starts(tokens, lengths, opens, block_max))
    found = list(zip(blocks.lane.tolist(), blocks.start.tolist(), blocks.length.tolist(), strict=True))
    expected = []
    for number, lane in enumerate(lanes):
        begun, before = 0, len(expected)
        for place, token in enumerate(lane):
            if place > begun and ((bars and token == BAR) or place - begun == block_max):
                expected.append((number, begun, place - begun))
                begun = place
            row = len(lanes) + len(expected) - 1 if len(expected) > before else number
            assert blocks.row[number, place] == row
        assert blocks.finished[number] == begun
    assert found == expected


MODELS = {name: make(name) for name in ("bilstm-gru", "bigru-lstm", "bilstm-gru-deep")}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_lanes(name: str) -> None:
    model = MODELS[name]
    tokens, side = music(model, 0, 5)
    logits, after = model(tokens, side)
    assert logits.shape == (0, 5, V)
    assert model.step(tokens[:, 0], None if side is None else side[:, 0], after)[0].shape == (0, V)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(0, 999), st.data())
def test_windows_fall_anywhere(name: str, random_seed: int, data: st.DataObject) -> None:
    """Lanes of other lengths, windows of other lengths in every lane, resets in between: always as one by one."""
    model = MODELS[name]
    tokens, side = music(model, 3, 40, random_seed)
    now, place = model.initial_state(3), torch.zeros(3, dtype=torch.int64)
    alone = [model.initial_state(1) for _ in range(3)]
    with torch.no_grad():
        for _ in range(3):
            lengths = torch.tensor(data.draw(st.lists(st.integers(0, 13), min_size=3, max_size=3)))
            index = (place[:, None] + torch.arange(13)).clamp(max=39)
            window = tokens.gather(1, index)
            window_side = None if side is None else torch.stack([side[b, index[b]] for b in range(3)])
            reset = torch.tensor(data.draw(st.lists(st.booleans(), min_size=3, max_size=3)))
            logits, now = model(window, window_side, state.reset(now, reset), lengths)
            for b, length in enumerate(lengths.tolist()):
                alone[b] = state.reset(alone[b], reset[b : b + 1])
                for t in range(length):
                    row = None if window_side is None else window_side[b : b + 1, t]
                    single, alone[b] = model.step(window[b : b + 1, t], row, alone[b])
                    torch.testing.assert_close(logits[b : b + 1, t], single, rtol=0, atol=1e-12)
            place += lengths
    for b in range(3):
        for one, other in zip(state.leaves(state.select(now, b)), state.leaves(alone[b]), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_window_in_which_nobody_moves() -> None:
    model = make("bilstm-gru")
    tokens, _ = music(model, 2, 4)
    with torch.no_grad():
        _, now = model(tokens, None, None, torch.zeros(2, dtype=torch.int64))
    for leaf, zero in zip(state.leaves(now), state.leaves(model.initial_state(2)), strict=True):
        assert torch.equal(leaf, zero)


@pytest.mark.parametrize("block_max", [1, 2])
def test_the_smallest_blocks(block_max: int) -> None:
    model = make("bilstm-gru", block_max=block_max)
    tokens, _ = music(model, 3, 15)
    with torch.no_grad():
        whole, _ = model(tokens)
        now = model.initial_state(3)
        for t in range(15):
            logits, now = model.step(tokens[:, t], None, now)
            torch.testing.assert_close(logits, whole[:, t], rtol=0, atol=1e-12)


def test_the_encoder_runs_once_per_finished_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generation pays for a bar when it ends, not for every token of it."""
    model = make("bilstm-gru", block_max=100)
    tokens = torch.full((1, 40), 1)
    tokens[0, ::8] = BAR
    lengths: list[int] = []
    forward = type(model.reader.encoder).forward

    def spy(self: BlockEncoder, *args: Any) -> Any:
        lengths.extend(args[3].length.tolist())
        return forward(self, *args)

    monkeypatch.setattr(type(model.reader.encoder), "forward", spy)
    now = model.initial_state(1)
    with torch.inference_mode():
        for t in range(40):
            _, now = model.step(tokens[:, t], None, now)
    assert lengths == [8, 8, 8, 8]


def test_s0_conditions_the_first_block_and_no_other() -> None:
    model = make("bilstm-gru", block_max=100)
    tokens = torch.tensor([[1, 2, 3, BAR, 5, 6, BAR, 7]])
    with torch.no_grad():
        for layer in model.stack.levels[0].cells:  # a decoder that remembers nothing
            layer.weight_hh.zero_()
            layer.bias_ih[6:12] = -1e4
        before, _ = model(tokens)
        model.reader.encoder.start += 1
        after, _ = model(tokens)
    assert ((after - before).abs().amax(-1)[0] > 1e-9).int().tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_sizes_of_the_state() -> None:
    model: Model = make("bilstm-gru-deep")
    _, (_, memory) = model.initial_state(5)
    assert [tuple(leaf.shape) for leaf in memory] == [(5, 10), (5,), (5, 11), (5, 11, 2), (5,)]
    assert model.config.vocab_size == V
