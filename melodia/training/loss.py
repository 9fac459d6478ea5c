"""The negative log-likelihood of the scored targets."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from melodia.training.streams import IGNORED


def nll_sum(
    logits: Tensor,  # [B, T, V]
    targets: Tensor,  # [B, T] int64
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Sum of the negative log-likelihoods of all targets that are scored, in nats.

    Returns:
        what to minimise (smoothed, with a gradient) and the plain sum (without one), both scalars in float32.
        They are one number where nothing is smoothed.

    >>> import torch
    >>> objective, nats = nll_sum(torch.zeros(1, 2, 4), torch.tensor([[3, -100]]))
    >>> round(nats.item(), 4)
    1.3863
    """
    flat = logits.float().flatten(0, 1)
    wanted = targets.flatten()
    objective = F.cross_entropy(
        flat, wanted, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )
    if label_smoothing == 0.0:
        return objective, objective.detach()
    return objective, F.cross_entropy(flat.detach(), wanted, ignore_index=IGNORED, reduction="sum")


def nll_each(
    logits: Tensor,  # [B, T, V]
    targets: Tensor,  # [B, T] int64
) -> Tensor:
    """The negative log-likelihood of each target [B, T] in nats, 0 where it is not scored."""
    flat = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view_as(targets)
