"""What learns: model, optimiser, averaged weights, the lanes and where they stand; and one update of it all.

A `Learner` is a function of its tensors, the stream's position and the iteration number: the noise of dropout
is seeded by (random seed, iteration, rank). So these three are all that is saved, and a learner that takes
them up goes on exactly as the one that saved them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from melodia.corpus.shards import Corpus
from melodia.errors import ConfigError, TrainingError, show_path
from melodia.model import Model, ModelConfig
from melodia.model import state as states
from melodia.model.checkpoint import load_checkpoint
from melodia.model.config import DROPOUT_FIELDS
from melodia.training.config import TrainingConfig
from melodia.training.distributed import World
from melodia.training.loss import nll_sum
from melodia.training.optimiser import (
    AveragedWeights,
    make_optimiser,
    optimiser_tensors,
    restore_optimiser,
    restore_parameters,
)
from melodia.training.streams import LaneStream, Preparer


@dataclass(frozen=True)
class Update:
    """What one iteration did; counts and signals are those of all processes together.

    Attributes:
        losses: float32 [2] on the device: this process's nats, and the norm of the gradient before clipping.
        scored: targets.
        notes: notes that the targets begin.
        signals: the caller's, added up.
        rate: the learning rate.
    """

    losses: Tensor
    scored: float
    notes: float
    signals: list[float]
    rate: float


class Learner:
    """See above.

    Args:
        corpus: whose training split is read.
        model: moved to the world's device and trained.
        config: how.
        world: the processes; each holds its share of the lanes.
    """

    def __init__(self, corpus: Corpus, model: Model, config: TrainingConfig, world: World) -> None:
        self.config, self.world = config, world
        self.model = model.to(world.device).train()
        self.optimiser = make_optimiser(self.model, config)
        self.average = AveragedWeights(self.model, config.ema)
        self.stream = LaneStream(
            corpus.pieces("train"),
            Preparer(corpus.vocabulary, self.model.config.side_inputs, config),
            lanes=config.batch_size,
            window=config.window,
            random_seed=config.random_seed,
            rank=world.rank,
            world_size=world.size,
        )
        self.state = self.model.initial_state(config.batch_size // world.size)
        self.iteration = 0
        self._parameters = list(self.model.parameters())

    def update(self, signals: list[float], rate: Callable[[list[float]], float]) -> Update:
        """One iteration.

        Args:
            signals: numbers to add up over all processes on the way.
            rate: the learning rate, once their sums are known.
        """
        config, device = self.config, self.world.device
        batch = self.stream.next()
        tokens, targets, lengths, starts = (
            self.world.send(array) for array in (batch.tokens, batch.targets, batch.lengths, batch.starts)
        )
        side = None if batch.side is None else self.world.send(batch.side)
        noise = np.random.SeedSequence([config.random_seed, self.iteration, self.world.rank])
        generator = torch.Generator(device).manual_seed(int(noise.generate_state(1, np.uint64)[0]))
        state = states.reset(self.state, starts)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits, after = self.model(
                tokens, side, state, lengths, generator=generator, recompute=config.recompute
            )
            objective, nats = nll_sum(logits, targets, config.label_smoothing)
        scored, notes, *signals = self.world.sum([batch.scored, batch.notes, *signals])
        (objective / max(scored, 1.0)).backward()
        self.world.sum_gradients(self._parameters)
        norm = clip_grad_norm_(self._parameters, config.gradient_clip or math.inf)
        learning_rate = rate(signals)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.iteration += 1
        self.average.update(self.iteration)
        kept = zip(states.leaves(after), states.leaves(self.state), strict=True)
        self.state = states.unflatten(self.state, [new.detach().to(old.dtype) for new, old in kept])
        return Update(torch.stack([nats.float(), norm.float()]), scored, notes, signals, learning_rate)

    @property
    def epoch(self) -> float:
        """Passes over the training pieces so far."""
        return self.iteration * self.config.batch_size / self.stream.windows_per_epoch

    def iterations(self) -> int | None:
        """How many iterations the budget allows; None where only the clock knows."""
        if self.config.iterations is not None:
            return self.config.iterations
        if self.config.epochs is not None:
            windows = self.config.epochs * self.stream.windows_per_epoch
            return max(1, math.ceil(windows / self.config.batch_size))
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Everything to save, by name; all processes take part, the lanes' states are those of all."""
        lanes = [self.world.gather(leaf) for leaf in states.leaves(self.state)]
        tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in self.model.named_parameters()}
        tensors.update(optimiser_tensors(self.optimiser, self.model))
        if self.config.ema:
            tensors.update({f"average.{name}": p for name, p in self.average.model.named_parameters()})
        tensors.update({f"lanes.{i}": leaf for i, leaf in enumerate(lanes)})
        return tensors

    def values(self) -> dict[str, Any]:
        """The rest, as JSON values."""
        return {"iteration": self.iteration, "position": self.stream.position()}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take up what `tensors` and `values` gave.

        Raises:
            KeyError, RuntimeError, ValueError, TypeError, TrainingError: they are another learner's.
        """
        restore_parameters(self.model, tensors, "model")
        restore_optimiser(self.optimiser, self.model, tensors)
        if self.config.ema:
            restore_parameters(self.average.model, tensors, "average")
        lanes = [self.world.share(tensors[f"lanes.{i}"]) for i in range(len(states.leaves(self.state)))]
        self.state = states.unflatten(self.state, lanes)
        self.stream.seek(values["position"])
        self.iteration = int(values["iteration"])


def make_model(
    corpus: Corpus, model_config: ModelConfig | None, random_seed: int, init: str | Path | None
) -> Model:
    """The model to train: new, or the one of the checkpoint `init`, whose dropout the config may change.

    Raises:
        TrainingError: the checkpoint has another vocabulary than the corpus.
        ConfigError: the config does not fit the corpus or the checkpoint, or there is none.
        CheckpointError: the checkpoint cannot be read.
    """
    ours = corpus.vocabulary
    if init is not None:
        checkpoint = load_checkpoint(init)
        theirs = checkpoint.vocabulary
        if theirs.fingerprint != ours.fingerprint:
            raise TrainingError(
                f"the checkpoint {show_path(init)} has another vocabulary ({theirs.scheme}, {theirs.size} tokens) than "
                f"the corpus ({ours.scheme}, {ours.size} tokens); build the corpus with the checkpoint's "
                "tokenizer"
            )
        if model_config is None:
            return checkpoint.model
        dropouts = {name: getattr(model_config, name) for name in DROPOUT_FIELDS}
        if model_config != replace(checkpoint.config, **dropouts):
            raise ConfigError(
                f"the checkpoint {show_path(init)} is a model of another shape; leave out `kind`, `size` and the like"
            )
        model = Model(model_config)
        model.load_state_dict(checkpoint.model.state_dict())
        return model
    if model_config is None:
        raise ConfigError("nothing says what to train: give a model config or a checkpoint to start from")
    if model_config.vocab_size != ours.size:
        raise ConfigError(
            f"the model has {model_config.vocab_size} tokens, the corpus {ours.size}; "
            "make the model config for this corpus"
        )
    return Model(model_config, random_seed=random_seed)
