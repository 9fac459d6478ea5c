"""Regularisation: what is dropped, how it is scaled, where its randomness comes from."""

from __future__ import annotations

import pytest
import torch
from model_zoo import ZOO, make, music

from melodia.model import layers
from melodia.model.layers import Dropper


def test_dropout_between_layers_is_one_mask_per_sequence() -> None:
    x = Dropper(dropout=0.5, generator=torch.Generator().manual_seed(0)).between(torch.ones(7, 3, 50))
    assert set(x.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(x, x[:1].expand_as(x)), "the same units at every step"
    assert not torch.equal(x[0, 0], x[0, 1]), "other units in every sequence"
    assert 0.3 < (x[0] == 0).float().mean() < 0.7


def test_embedding_dropout_drops_whole_rows_and_weight_drop_single_weights() -> None:
    dropper = Dropper(embedding_dropout=0.25, weight_drop=0.5, generator=torch.Generator().manual_seed(0))
    table = dropper.embedding(torch.ones(400, 5))
    assert torch.equal(table, table[:, :1].expand_as(table))
    torch.testing.assert_close(table.unique(), torch.tensor([0.0, 4 / 3]))
    assert 0.15 < (table[:, 0] == 0).float().mean() < 0.35
    weight = dropper.weight(torch.ones(40, 40))
    assert 0.4 < (weight == 0).float().mean() < 0.6
    assert not torch.equal(weight, weight[:, :1].expand_as(weight))


def test_masks_keep_the_expectation() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack(
        [Dropper(0.3, generator=generator).between(torch.ones(1, 1, 100)) for _ in range(500)]
    ).mean()
    assert mean.item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", ZOO)
def test_dropout_comes_from_the_generator_and_only_in_training(name: str) -> None:
    model = make(name, dropout=0.3, embedding_dropout=0.2, weight_drop=0.3)
    plain = make(name)
    tokens, side = music(model, 3, 30)
    assert torch.equal(model(tokens, side)[0], plain(tokens, side)[0]), "evaluation has no dropout"
    model.train()
    before = torch.get_rng_state()
    one, again, other = (
        model(tokens, side, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before), "torch's own random numbers are not touched"
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    model(tokens, side)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("option", ["dropout", "embedding_dropout", "weight_drop"])
def test_each_option_acts(option: str) -> None:
    model, plain = make("sequential", **{option: 0.5}).train(), make("sequential").train()
    tokens, _ = music(model, 3, 30)
    generator = torch.Generator().manual_seed(0)
    assert not torch.allclose(model(tokens, generator=generator)[0], plain(tokens, generator=generator)[0])


def test_a_dropped_token_is_not_heard_but_still_predicted() -> None:
    model = make("gru", embedding_dropout=0.5, tie_weights=True).train()
    tokens, _ = music(model, 1, 1)
    logits, heard = set(), set()
    for seed in range(40):
        out, _ = model(tokens, generator=torch.Generator().manual_seed(seed))
        heard.add(round(out[0, 0, 0].item(), 9))
        logits.add(bool((out == 0).any()))
    assert len(heard) == 2, "the only token is either there or not"
    assert logits == {False}, "the tied head keeps all its rows"


def test_the_table_of_products_sees_the_same_dropped_rows() -> None:
    """Short windows read embeddings, long ones a table of products; a mask drops the same tokens in both."""
    model = make("lstm", embedding_dropout=0.5).train()
    tokens, _ = music(model, 4, 30)
    long, _ = model(tokens, generator=torch.Generator().manual_seed(5))
    short, _ = model(tokens[:, :5], generator=torch.Generator().manual_seed(5))
    assert tokens[:, :5].numel() <= model.input.rows < tokens.numel()
    torch.testing.assert_close(long[:, :5], short, rtol=0, atol=1e-12)


def test_no_dropout_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    x = torch.ones(2, 2, 2)
    dropper = Dropper(generator=generator)
    assert dropper.between(x) is x
    assert dropper.embedding(x[0]) is not None
    assert torch.equal(generator.get_state(), before)
    assert layers.NO_DROPOUT.weight(x) is x
