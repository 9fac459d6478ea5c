"""Training: teacher forcing over windows of whole pieces, with carried state, validation and saving.

`train` is the only entry. One iteration reads one window of every lane, sums the loss over all scored targets of all
processes, divides by their number, and takes one step of AdamW. What an iteration does depends on the saved state
alone: the noise of dropout is seeded by (random seed, iteration, rank), the stream's place is a few integers.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from melodia.corpus.shards import Corpus
from melodia.errors import ConfigError, TrainingError
from melodia.model import Model, ModelConfig
from melodia.model import state as states
from melodia.model.checkpoint import load_checkpoint, save_checkpoint
from melodia.training.config import TrainingConfig
from melodia.training.distributed import World, join
from melodia.training.evaluate import evaluate
from melodia.training.interrupt import Interrupt
from melodia.training.logs import Logs
from melodia.training.loss import nll_sum
from melodia.training.meter import Clock, Meter, Validated, ratio
from melodia.training.optimiser import (
    AveragedWeights,
    make_optimiser,
    optimiser_tensors,
    restore_optimiser,
    restore_parameters,
)
from melodia.training.progress import Plan, Progress, Step, TrainingSummary, Validation
from melodia.training.resume import TrainingState, check_same_run, read_state, write_state
from melodia.training.streams import LaneStream, Preparer
from melodia.training.watch import Watch, corpus_warnings

BEST, RESUME = "best", "resume"
"""Inside the folder of a training: the checkpoint of the best weights, and the state to go on from."""
VALIDATIONS = 20
"""Into how many parts a budget is cut by validations, if the config does not say."""
VALIDATION_SHARE = 0.1
"""With a budget of minutes, validations come so rarely that they take at most this share of the time."""
LOG_EVERY = 20
GPU_REPORT_EVERY = 20


def train(
    corpus: Corpus,
    model_config: ModelConfig | None,
    config: TrainingConfig,
    out: str | Path,
    *,
    progress: Progress | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    force: bool = False,
    world: World | None = None,
) -> TrainingSummary:
    """Train a model on a corpus; the best weights end up as a checkpoint in `out/best`.

    The state to go on from lies in `out/resume`, the logs in `out/training.csv` and `out/tensorboard`. Under torchrun
    all processes call this with the same arguments; the first one writes.

    Args:
        corpus: the token shards.
        model_config: what to train; None takes the one of `init`.
        config: how.
        out: folder of the training.
        progress: is told what happens.
        resume: go on where an earlier call with the same arguments stopped, however it stopped; from the beginning
            if it had not saved anything yet.
        init: a checkpoint whose weights to begin with (fine-tuning); its vocabulary must be the corpus's.
        force: begin anew in a folder that holds a checkpoint already.
        world: the processes, for a caller that has joined them already (`melodia.training.join`).

    Raises:
        TrainingError: nothing to train on, a folder that cannot be written, a loss that is not finite, a `resume` that
            does not fit, or a checkpoint in `out` without `resume` or `force`.
        ConfigError: configurations that contradict each other or the corpus.
        CheckpointError: `init` cannot be read.
    """
    if world is None:
        with join(config.device) as joined:
            return train(
                corpus, model_config, config, out,
                progress=progress, resume=resume, init=init, force=force, world=joined,
            )  # fmt: skip
    progress = progress if progress is not None and world.leads else Progress()
    with _threads(config.threads):
        run = _Run(corpus, model_config, config, Path(out), progress, world, resume, init, force)
        try:
            return run.go()
        finally:
            run.close()


class _Run:
    """One call of `train`: everything that changes while it runs."""

    def __init__(
        self,
        corpus: Corpus,
        model_config: ModelConfig | None,
        config: TrainingConfig,
        out: Path,
        progress: Progress,
        world: World,
        resume: bool,
        init: str | Path | None,
        force: bool,
    ) -> None:
        self.corpus, self.config, self.out, self.progress, self.world = corpus, config, out, progress, world
        saved = self._look(resume, force)
        self.model = _make_model(corpus, model_config, config, init, saved).to(world.device).train()
        self.parameters = list(self.model.parameters())
        self.optimiser = make_optimiser(self.model, config)
        self.average = AveragedWeights(self.model, config.ema)
        specs = self.model.config.side_inputs
        self.stream = LaneStream(
            corpus.pieces("train"),
            Preparer(corpus.vocabulary, specs, config),
            lanes=config.batch_size,
            window=config.window,
            random_seed=config.random_seed,
            rank=world.rank,
            world_size=world.size,
        )
        self.held_out = corpus.pieces("valid")
        self.plain = Preparer(corpus.vocabulary, specs)
        self.state = self.model.initial_state(config.batch_size // world.size)
        self.total = self._iterations()
        self.eval_every = config.eval_every or (math.ceil(self.total / VALIDATIONS) if self.total else None)
        self.iteration = 0
        self.validated = Validated()
        self.watch, self.meter = Watch(), Meter()
        self.finished: str | None = None
        self.identity = {
            "model": self.model.config.to_dict(),
            "training": config.to_dict(),
            "corpus": corpus.fingerprint,
            "vocabulary": corpus.vocabulary.fingerprint,
        }
        elapsed = 0.0
        if saved is not None:
            check_same_run(self.identity, saved, out)
            elapsed = self._restore(saved)
        self.clock = Clock(elapsed)
        self.resumed_at = self.iteration
        self.saved_at = elapsed
        self.rate = 0.0
        self.pending: list[Tensor] = []  # [2] each: nats of the iteration, norm of its gradient
        self.logs = Logs(out, self.iteration) if world.leads else None

    def _iterations(self) -> int | None:
        """How many iterations the budget allows; None where only the clock knows."""
        if self.config.iterations is not None:
            return self.config.iterations
        if self.config.epochs is not None:
            return max(
                1, math.ceil(self.config.epochs * self.stream.windows_per_epoch / self.config.batch_size)
            )
        return None

    # -- the state to resume from ---------------------------------------------------------------------------------

    def _look(self, resume: bool, force: bool) -> TrainingState | None:
        """What lies in the folder already: the state to go on from, or what must not be overwritten."""
        if resume:
            return read_state(self.out / RESUME, self.world.device)
        holds = [name for name in (BEST, RESUME) if (self.out / name).exists()]
        self.world.barrier()  # nobody writes before all have looked
        if holds and not force:
            raise TrainingError(
                f"{self.out} holds a training already ({', '.join(holds)}); go on with it (--resume), "
                "replace it (--force) or choose another folder"
            )
        if self.world.leads:
            shutil.rmtree(self.out / "tensorboard", ignore_errors=True)
        return None

    def _restore(self, saved: TrainingState) -> float:
        """Take up a saved state; returns the seconds it had used."""
        tensors, values = saved.tensors, saved.values
        try:
            restore_parameters(self.model, tensors, "model")
            restore_optimiser(self.optimiser, self.model, tensors)
            if self.config.ema:
                restore_parameters(self.average.model, tensors, "average")
            lanes = [self.world.share(tensors[f"lanes.{i}"]) for i in range(len(states.leaves(self.state)))]
            self.state = states.unflatten(self.state, lanes)
            self.stream.seek(values["position"])
            self.iteration = int(values["iteration"])
            self.validated, self.watch = Validated(**values["validated"]), Watch(**values["watch"])
            self.meter, self.finished = Meter(**values["meter"]), values["finished"]
            elapsed = float(values["elapsed"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise TrainingError(
                f"{self.out / 'resume'} does not fit this training ({error!r}); begin anew with --force"
            ) from error
        if self.finished == "budget" and not self._over(elapsed):
            self.finished = None
        return elapsed

    def _save(self, now: float) -> None:
        """Write the state to resume from; all processes take part."""
        self._flush(now)
        lanes = [self.world.gather(leaf) for leaf in states.leaves(self.state)]
        if self.world.leads:
            tensors = {f"model.{name}": p for name, p in self.model.named_parameters()}
            tensors |= optimiser_tensors(self.optimiser, self.model)
            if self.config.ema:
                tensors |= {f"average.{name}": p for name, p in self.average.model.named_parameters()}
            tensors |= {f"lanes.{i}": leaf for i, leaf in enumerate(lanes)}
            values = {
                "identity": self.identity,
                "iteration": self.iteration,
                "validated": asdict(self.validated),
                "elapsed": self.clock.elapsed(),
                "position": self.stream.position(),
                "watch": asdict(self.watch),
                "meter": asdict(self.meter),
                "finished": self.finished,
            }
            write_state(self.out / RESUME, tensors, values)
            self.progress.saved(self.iteration)
        self.saved_at = now
        self.world.barrier()

    # -- the loop -------------------------------------------------------------------------------------------------

    def go(self) -> TrainingSummary:
        """Train until the budget is used up, or the validation has stopped improving."""
        self._announce()
        if self.finished is None:
            if self.iteration == 0:
                self._save(0.0)
            with Interrupt() as interrupt:
                self.finished = self._loop(interrupt)
            self._save(self.saved_at)
        summary = self._summary()
        self.progress.finished(summary)
        return summary

    def _loop(self, interrupt: Interrupt) -> str:
        while True:
            now, interrupted = self._iterate(interrupt)
            over = self._over(now)
            if over or self._validation_due(now):
                now = self._validate(now)
                if over:
                    return "budget"
                if self.config.patience is not None and self.watch.without_progress >= self.config.patience:
                    return "patience"
                self._save(now)
            elif interrupted or now - self.saved_at >= self.config.save_every:
                self._save(now)
            if interrupted:
                self._warn(
                    f"interrupted after iteration {self.iteration}, the state is saved: go on with --resume"
                )
                raise KeyboardInterrupt

    def _iterate(self, interrupt: Interrupt) -> tuple[float, bool]:
        """One update; returns the seconds used so far and whether somebody wants to stop, the same for all."""
        config, device = self.config, self.world.device
        batch = self.stream.next()
        side = None if batch.side is None else torch.from_numpy(batch.side).to(device)
        state = states.reset(self.state, torch.from_numpy(batch.starts).to(device))
        lengths = torch.from_numpy(batch.lengths).to(device)
        noise = np.random.SeedSequence([config.random_seed, self.iteration, self.world.rank])
        generator = torch.Generator(device).manual_seed(int(noise.generate_state(1, np.uint64)[0]))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            tokens = torch.from_numpy(batch.tokens).to(device)
            logits, after = self.model(tokens, side, state, lengths, generator=generator)
            targets = torch.from_numpy(batch.targets).to(device)
            objective, nats = nll_sum(logits, targets, config.label_smoothing)
        mine = [float(batch.scored), float(batch.notes), self.clock.elapsed(), float(interrupt.wanted)]
        if not self.world.leads:
            mine[2] = 0.0
        scored, notes, now, wanted = self.world.sum(mine)
        (objective / max(scored, 1.0)).backward()
        self.world.sum_gradients(self.parameters)
        norm = clip_grad_norm_(self.parameters, config.gradient_clip or math.inf)
        self.rate = config.learning_rate_at(self._fraction(now, 1))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.iteration += 1
        self.average.update(self.iteration)
        kept = zip(states.leaves(after), states.leaves(self.state), strict=True)
        self.state = states.unflatten(self.state, [new.detach().to(old.dtype) for new, old in kept])
        self.pending.append(torch.stack([nats.float(), norm.float()]))
        self.meter.count(scored, notes)
        if device.type == "cpu" or len(self.pending) >= GPU_REPORT_EVERY:
            self._flush(now)
        return now, wanted > 0

    def _flush(self, now: float) -> None:
        """Fetch the losses of the last iterations, check them, and tell them."""
        if not self.pending:
            return
        values = torch.stack(self.pending).double().cpu()
        self.pending.clear()
        nats, bad = self.world.sum([float(values[:, 0].sum()), float((~values.isfinite()).sum())])
        norm = float(values[-1, 1])
        if bad:
            raise TrainingError(
                f"the loss stopped being finite at iteration {self.iteration} (learning rate {self.rate:.2g}, gradient "
                f"norm {norm:.3g}); the last good state and the best weights are kept in {self.out}. Train again with "
                "a lower learning rate or a smaller gradient clip"
            )
        self.meter.take(nats, now)
        step = Step(
            iteration=self.iteration,
            fraction=self._fraction(now),
            epoch=self.epoch,
            seconds=now,
            eta=self._eta(now),
            tokens_per_second=self.meter.tokens_per_second,
            learning_rate=self.rate,
            nats_per_token=self.meter.smooth_per_token,
            nats_per_note=self.meter.smooth_per_note,
            gradient_norm=norm,
        )
        self.progress.stepped(step)
        if self.logs is not None and self.iteration % LOG_EVERY == 0:
            self.logs.write(
                **self._row(now),
                gradient_norm=norm,
                tokens_per_second=step.tokens_per_second,
                train_nats_per_token=step.nats_per_token,
                train_nats_per_note=step.nats_per_note,
            )

    # -- validation -----------------------------------------------------------------------------------------------

    def _validation_due(self, now: float) -> bool:
        if self.eval_every is not None:
            return self.iteration - self.validated.iteration >= self.eval_every
        rest = max(60.0 * (self.config.minutes or 0.0) / VALIDATIONS, self.validated.cost / VALIDATION_SHARE)
        return now - self.validated.now >= rest

    def _validate(self, now: float) -> float:
        """Score the held-out pieces, keep the weights if they are the best; returns the seconds used so far."""
        self._flush(now)
        numbers = range(self.world.rank, len(self.held_out), self.world.size)
        result = evaluate(self.average.model, self.held_out, self.plain, numbers=numbers)
        nats, tokens, notes, after = self.world.sum(
            [
                float(result.nats.sum()),
                float(result.tokens.sum()),
                float(result.notes.sum()),
                self.clock.elapsed() if self.world.leads else 0.0,
            ]
        )
        per_token, per_note = ratio(nats, tokens), ratio(nats, notes)
        if tokens and not math.isfinite(per_token):
            raise TrainingError(
                f"the validation loss is {per_token} after iteration {self.iteration}; the last good state and the "
                f"best weights are kept in {self.out}. Train again with a lower learning rate"
            )
        train_per_token, train_per_note = self.meter.since_validation()
        best = self.watch.judge(self.iteration, per_token, per_note, train_per_token)
        if best and self.world.leads:
            self._keep()
        told = Validation(
            self.iteration, per_token, per_note, train_per_token, train_per_note, best, after - now
        )
        self.progress.validated(told)
        if self.logs is not None:
            self.logs.write(
                **self._row(after),
                train_nats_per_token=train_per_token,
                train_nats_per_note=train_per_note,
                valid_nats_per_token=per_token,
                valid_nats_per_note=per_note,
            )
        concern = self.watch.overfitting(per_token, train_per_token)
        if concern:
            self._warn(concern)
        self.validated = Validated(self.iteration, after, after - now)
        self.meter.paused(after - now)
        return after

    def _keep(self) -> None:
        """Save the averaged weights as the checkpoint."""
        watch = self.watch
        training = {
            "iterations": self.iteration,
            "epochs": self.epoch,
            "seconds": self.clock.elapsed(),
            "train_nats_per_token": _number(watch.best_train_nats_per_token),
            "valid_nats_per_token": _number(watch.best_nats_per_token),
            "valid_nats_per_note": _number(watch.best_nats_per_note),
            "train_pieces": len(self.stream.pieces),
            "train_tokens": self.stream.pieces.tokens,
            "valid_pieces": len(self.held_out),
            "settings": self.config.to_dict(),
        }
        save_checkpoint(
            self.out / BEST,
            self.average.model,
            vocabulary=self.corpus.vocabulary,
            tokenizer_json=self.corpus.tokenizer_json,
            training=training,
            corpus_fingerprint=self.corpus.fingerprint,
        )

    # -- where we are ---------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> float:
        """Passes over the training pieces so far."""
        return self.iteration * self.config.batch_size / self.stream.windows_per_epoch

    def _deadline(self) -> float:
        """Seconds after which the last validation must begin, with a budget of minutes."""
        budget = 60.0 * (self.config.minutes or 0.0)
        return max(budget - 1.1 * self.validated.cost, 0.5 * budget)

    def _fraction(self, now: float, ahead: int = 0) -> float:
        """Share of the budget used, `ahead` iterations from here."""
        if self.total is not None:
            return min(1.0, (self.iteration + ahead) / self.total)
        return min(1.0, now / self._deadline())

    def _over(self, now: float) -> bool:
        return self.iteration >= self.total if self.total is not None else now >= self._deadline()

    def _eta(self, now: float) -> float | None:
        if self.total is None:
            return max(0.0, 60.0 * (self.config.minutes or 0.0) - now)
        if self.meter.seconds_per_iteration is None:
            return None
        left = self.total - self.iteration
        validations = math.ceil(left / self.eval_every) if self.eval_every else 0
        return left * self.meter.seconds_per_iteration + validations * self.validated.cost

    def _row(self, now: float) -> dict[str, float]:
        return {"iteration": self.iteration, "epoch": self.epoch, "seconds": now, "learning_rate": self.rate}

    # -- telling --------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        pieces, held_out = self.stream.pieces, self.held_out
        parameters = self.model.parameter_count()
        self.progress.started(
            Plan(
                parameters=parameters,
                train_pieces=len(pieces),
                train_tokens=pieces.tokens,
                valid_pieces=len(held_out),
                valid_tokens=held_out.tokens,
                iterations=self.total,
                seconds=60.0 * self.config.minutes if self.config.minutes else None,
                steps_per_epoch=self.stream.steps_per_epoch,
                resumed_at=self.resumed_at,
                device=str(self.world.device),
                processes=self.world.size,
            )
        )
        for text in corpus_warnings(len(pieces), pieces.tokens, len(held_out), parameters):
            self._warn(text)
        wanted = (
            self.config.transpose_probability > 0 and self.config.transpose_down < self.config.transpose_up
        )
        if wanted and not self.stream.preparer.transposes:
            self._warn("pieces are not transposed: a BPE vocabulary has no token for every moved token")

    def _warn(self, text: str) -> None:
        if text not in self.watch.notes:
            self.watch.notes.append(text)
        self.progress.warned(text)

    def _summary(self) -> TrainingSummary:
        watch = self.watch
        return TrainingSummary(
            checkpoint=self.out / BEST,
            stopped=self.finished or "budget",
            iterations=self.iteration,
            epochs=self.epoch,
            seconds=self.clock.elapsed(),
            best_iteration=watch.best_iteration,
            valid_nats_per_token=watch.best_nats_per_token,
            valid_nats_per_note=watch.best_nats_per_note,
            train_nats_per_token=watch.best_train_nats_per_token,
            parameters=self.model.parameter_count(),
            warnings=tuple(watch.notes),
        )

    def close(self) -> None:
        """Close the logs."""
        if self.logs is not None:
            self.logs.close()


def _make_model(
    corpus: Corpus,
    model_config: ModelConfig | None,
    config: TrainingConfig,
    init: str | Path | None,
    saved: TrainingState | None,
) -> Model:
    """The model to train: new, from the checkpoint `init`, or of the form that a saved state has."""
    if saved is not None and model_config is None:
        return Model(ModelConfig.from_dict(saved.values["identity"]["model"]))
    if init is not None and saved is None:
        checkpoint = load_checkpoint(init)
        theirs, ours = checkpoint.vocabulary, corpus.vocabulary
        if theirs.fingerprint != ours.fingerprint:
            raise TrainingError(
                f"the checkpoint {init} has another vocabulary ({theirs.scheme}, {theirs.size} tokens) than the corpus "
                f"({ours.scheme}, {ours.size} tokens); build the corpus with the checkpoint's tokenizer"
            )
        if model_config is not None and model_config != checkpoint.config:
            raise ConfigError(
                f"the checkpoint {init} is a model of another form; leave out kind, size and their like"
            )
        return checkpoint.model
    if model_config is None:
        raise ConfigError("nothing says what to train: give a model config or a checkpoint to begin with")
    if model_config.vocab_size != corpus.vocabulary.size:
        raise ConfigError(
            f"the model has {model_config.vocab_size} tokens, the corpus {corpus.vocabulary.size}; "
            "make the model config for this corpus"
        )
    return Model(model_config, random_seed=config.random_seed)


def _number(value: float) -> float | None:
    """The value as JSON can hold it."""
    return value if math.isfinite(value) else None


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads for a while."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
