"""AdamW, and the running average of the weights, with their states as named tensors."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from melodia.model import Model
from melodia.training.config import TrainingConfig


def make_optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; only matrices inside the network decay, no embedding, bias or gain does."""
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    embeddings = {
        id(p) for name, p in model.named_parameters() if "embedding" in name or name.startswith("input")
    }
    for parameter in model.parameters():
        is_matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
        (decayed if is_matrix else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def optimiser_tensors(optimiser: torch.optim.AdamW, model: nn.Module) -> dict[str, Tensor]:
    """AdamW's moments, named after the model's parameters."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{key}.{name}"] = value
    return tensors


def restore_optimiser(optimiser: torch.optim.AdamW, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`; raises KeyError on tensors of another model."""
    for name, parameter in model.named_parameters():
        prefixes = {key: f"optimiser.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
        if prefixes["step"] not in tensors:
            continue  # saved before the first update
        moments = {key: tensors[full].clone() for key, full in prefixes.items()}
        optimiser.state[parameter] = moments


@torch.no_grad()
def restore_parameters(model: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copy the tensors "prefix.name" into the parameters; KeyError or RuntimeError where they differ."""
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[f"{prefix}.{name}"])


class AveragedWeights:
    """A copy of the model whose weights are a running average: mean += (1 - decay) (weights - mean).

    Early on the decay is lower, (1 + n) / (10 + n) at iteration n, so that the average is soon free of the
    start.

    Args:
        model: the model in training.
        decay: per iteration; 0: the copy is the model itself.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model: Model = copy.deepcopy(model).requires_grad_(False) if decay else model
        self._mean: list[Tensor] = list(self.model.parameters()) if decay else []
        self._live: list[Tensor] = list(model.parameters())

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Take in the weights after `iteration` updates."""
        if self.decay:
            decay = min(self.decay, (1 + iteration) / (10 + iteration))
            torch._foreach_lerp_(self._mean, self._live, 1.0 - decay)
