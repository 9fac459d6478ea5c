"""A model without torch: names, shapes and states are torch's; describing it gives the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_zoo import ZOO, make, music

from melodia.engine.description import describe
from melodia.model import Model, Network, load_checkpoint, read_checkpoint, save_checkpoint
from melodia.model import state as states
from melodia.model.network import checked_state, initial_state, tensor_shapes
from melodia.tokenizer import Tokenizer


@pytest.mark.parametrize("name", ZOO)
def test_weights_are_those_of_the_state_dict(name: str) -> None:
    model = make(name)
    shapes = tensor_shapes(model.config)
    assert list(shapes.items()) == [(key, tuple(t.shape)) for key, t in model.state_dict().items()]


@pytest.mark.parametrize("name", ZOO)
def test_the_first_state_is_the_models(name: str) -> None:
    model = make(name, dtype=torch.float32)
    mine, theirs = initial_state(model.config), states.to_numpy(model.initial_state(1))
    assert list(mine) == list(theirs)
    for key, part in mine.items():
        assert (part.dtype, part.shape) == (theirs[key].dtype, theirs[key].shape)
        assert not part.any()


@pytest.mark.parametrize("name", ["sequential-deep", "bilstm-gru-deep"])
def test_there_and_back(name: str) -> None:
    model = make(name, dtype=torch.float32)
    network = Network.of(model)
    again = network.to_torch()
    tokens, side = music(model, 2, 9)
    with torch.inference_mode():
        assert torch.equal(again(tokens, side)[0], model(tokens, side)[0])
    network.tensors["head.bias"][3] += 1.0  # one memory
    assert torch.equal(again.head.bias, model.head.bias)
    for mine, theirs in zip(describe(network), describe(model), strict=True):
        assert (mine == theirs).all()


def test_a_norm_is_described_with_torchs_epsilon() -> None:
    from melodia.engine.description import NORM_EPS

    assert make("gru-deep").stack.norms[0].eps == NORM_EPS  # type: ignore[index,union-attr]


def test_states_of_other_models_are_refused() -> None:
    config = make("sequential").config
    state = initial_state(config)
    assert list(checked_state(config, dict(reversed(state.items())))) == list(state)
    with pytest.raises(ValueError, match="parts differ"):
        checked_state(config, initial_state(make("lstm").config))
    with pytest.raises(ValueError, match=r"part 0\.0 is float32 \(1, 7\) and should be float32 \(1, 6\)"):
        checked_state(config, state | {"0.0": np.zeros((1, 7), np.float32)})
    with pytest.raises(ValueError, match="int64"):
        checked_state(config, state | {"0.1": np.zeros((1, 6), np.int64)})


@pytest.mark.parametrize("weights", ["fp32", "bf16", "fp16"])
def test_a_checkpoint_read_with_and_without_torch(weights: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer()
    model = make("parallel-gated", dtype=torch.float32, vocab_size=tokenizer.vocabulary.size)
    folder = save_checkpoint(
        tmp_path / "model",
        model,
        vocabulary=tokenizer.vocabulary,
        tokenizer_json=tokenizer.to_dict(),
        weights=weights,
    )
    stored, loaded = read_checkpoint(folder), load_checkpoint(folder)
    assert isinstance(loaded.model, Model)
    assert stored.config == loaded.config == model.config
    theirs = loaded.model.state_dict()
    assert list(stored.network.tensors) == list(theirs)
    exact = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[weights]
    for name, array in stored.network.tensors.items():
        assert array.dtype == np.float32
        assert torch.equal(torch.from_numpy(array), theirs[name])
        assert torch.equal(torch.from_numpy(array), model.state_dict()[name].to(exact).float())
