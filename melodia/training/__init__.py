"""Training on token shards: streams of windows, the loop, validation, resuming, several processes."""

from __future__ import annotations

from melodia.training.config import TrainingConfig
from melodia.training.distributed import World, join
from melodia.training.evaluate import evaluate
from melodia.training.loop import train
from melodia.training.progress import Plan, Progress, Step, TrainingSummary, Validation
from melodia.training.streams import Preparer

__all__ = [
    "Plan",
    "Preparer",
    "Progress",
    "Step",
    "TrainingConfig",
    "TrainingSummary",
    "Validation",
    "World",
    "evaluate",
    "join",
    "train",
]
