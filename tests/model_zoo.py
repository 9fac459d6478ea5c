"""Small models of every kind and option, shared by the tests of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from melodia.model import Model, ModelConfig
from melodia.side_inputs import SideInputSpec

V, H = 23, 6  # tokens, hidden units: nothing is a multiple of anything
BAR, OTHER_BAR = 4, 9  # tokens that begin a block
SIDES = (SideInputSpec("position", 7), SideInputSpec("density", 9))

ZOO: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm"},
    "gru": {"kind": "gru"},
    "gru-deep": {"kind": "gru", "gru_layers": 3, "residual": True, "layer_norm": True, "side_inputs": SIDES},
    "lstm-tied": {"kind": "lstm", "lstm_layers": 1, "tie_weights": True},
    "sequential": {"kind": "sequential"},
    "sequential-deep": {
        "kind": "sequential",
        "lstm_layers": 2,
        "gru_layers": 2,
        "residual": True,
        "layer_norm": True,
        "side_inputs": SIDES,
        "tie_weights": True,
        "embedding_size": 5,
    },
    "reversed": {"kind": "reversed", "lstm_layers": 2, "embedding_size": 9},
    "parallel": {"kind": "parallel", "lstm_layers": 2, "gru_layers": 2},
    "parallel-sum": {"kind": "parallel", "combine": "sum", "side_inputs": SIDES},
    "parallel-gated": {
        "kind": "parallel",
        "combine": "gated",
        "lstm_layers": 2,
        "gru_layers": 2,
        "residual": True,
        "layer_norm": True,
    },
    "bilstm-gru": {"kind": "bidirectional", "block_starts": (BAR, OTHER_BAR), "block_max": 7},
    "bigru-lstm": {"kind": "bidirectional", "encoder": "gru", "block_length": 5, "side_inputs": SIDES},
    "bilstm-gru-deep": {
        "kind": "bidirectional",
        "block_starts": (BAR,),
        "block_max": 11,
        "encoder_layers": 2,
        "encoder_hidden_size": 5,
        "gru_layers": 2,
        "residual": True,
        "layer_norm": True,
        "side_inputs": SIDES,
        "tie_weights": True,
        "embedding_size": 4,
    },
    "bigru-lstm-deep": {
        "kind": "bidirectional",
        "encoder": "gru",
        "block_starts": (BAR,),
        "block_max": 64,
        "encoder_layers": 3,
        "lstm_layers": 2,
    },
}


def make(name: str, *, dtype: torch.dtype = torch.float64, **changes: Any) -> Model:
    """A model of the zoo, in evaluation mode, in fp64 so that only mistakes are visible."""
    settings = {"vocab_size": V, "hidden_size": H} | ZOO[name] | changes
    model = Model(ModelConfig(**settings), random_seed=3).to(dtype).eval()
    with torch.no_grad():  # biases and s_0 that begin at 0 would hide mistakes
        generator = torch.Generator().manual_seed(4)
        for parameter in model.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype) * 0.1
            )
    return model


def music(model: Model, B: int, T: int, random_seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """Random tokens [B, T], in which the bars of every lane have other lengths, and side inputs [B, T, S]."""
    generator = torch.Generator().manual_seed(random_seed)
    tokens = torch.randint(0, model.config.vocab_size, (B, T), generator=generator)
    chance = torch.linspace(0, 0.4, B)[:, None]  # the first lane has bars only by accident
    tokens = torch.where(torch.rand(B, T, generator=generator) < chance, BAR, tokens)
    columns = [torch.randint(0, spec.size, (B, T), generator=generator) for spec in model.config.side_inputs]
    return tokens, torch.stack(columns, -1) if columns else None
