"""The transformer that the model card compares with: a fair opponent is causal and remembers what it says it does."""

from __future__ import annotations

import pytest
import torch

from benchmarks.transformer import Transformer

V = 30


@pytest.fixture
def model() -> Transformer:
    return Transformer(V, (), width=64, layers=2, context=8, random_seed=1).eval()


@torch.no_grad()
def test_no_logit_before_a_changed_token_moves(model: Transformer) -> None:
    tokens = torch.randint(V, (2, 12), generator=torch.Generator().manual_seed(1))
    other = tokens.clone()
    other[:, 7] = (other[:, 7] + 1) % V
    before, after = model(tokens, None)[0], model(other, None)[0]
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(dim=-1).all()


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 3, 8, 11])
def test_windows_are_the_whole(model: Transformer, cut: int) -> None:
    """What a step sees does not depend on where windows end."""
    tokens = torch.randint(V, (3, 12), generator=torch.Generator().manual_seed(2))
    whole = model(tokens, None)[0]
    first, state = model(tokens[:, :cut], None)
    second, _ = model(tokens[:, cut:], None, state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_memory_ends_where_it_says(model: Transformer) -> None:
    """Two layers see 16 steps back; what lies before that is forgotten."""
    tokens = torch.randint(V, (1, 40), generator=torch.Generator().manual_seed(3))
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % V
    before, after = model(tokens, None)[0], model(other, None)[0]
    assert (before[:, 16] != after[:, 16]).any()
    torch.testing.assert_close(before[:, 17:], after[:, 17:])


def test_lanes_that_begin_anew_remember_nothing(model: Transformer) -> None:
    from melodia.model import state as states

    tokens = torch.randint(V, (2, 6), generator=torch.Generator().manual_seed(4))
    _, state = model(tokens, None)
    state = states.reset(state, torch.tensor([True, False]))
    logits, _ = model(tokens, None, state)
    fresh, _ = model(tokens, None)
    torch.testing.assert_close(logits[0], fresh[0])
    assert (logits[1, 0] != fresh[1, 0]).any()
