"""Training: teacher forcing over windows of whole pieces, with carried state, validation and saving.

`train` is the only entry. A `Learner` makes the updates; what stands here is the schedule around them: the budget
and the learning rate, validations and the best weights, saving and resuming, and what the caller is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from melodia.corpus.shards import Corpus
from melodia.errors import TrainingError, show_path
from melodia.kernels import fast_precision
from melodia.model import ModelConfig
from melodia.model.checkpoint import save_checkpoint
from melodia.training.config import TrainingConfig
from melodia.training.distributed import World, join
from melodia.training.evaluate import evaluate
from melodia.training.folder import BEST, RESUME, look, pass_on_notices
from melodia.training.interrupt import Interrupt
from melodia.training.learner import Learner, Update, make_model
from melodia.training.lock import only_training
from melodia.training.logs import Logs
from melodia.training.memory import enough_memory
from melodia.training.meter import Clock, Meter, Validated, ratio
from melodia.training.progress import Plan, Progress, Step, TrainingSummary, Validation
from melodia.training.resume import (
    AGAIN,
    TrainingState,
    check_same_run,
    saved_model,
    write_state,
)
from melodia.training.streams import Preparer
from melodia.training.watch import Watch, corpus_warnings

VALIDATIONS = 20
"""Into how many parts a budget is cut by validations, if the config does not say."""
VALIDATION_SHARE = 0.1
"""Validations come so rarely that they take about this share of the time at most."""
VALIDATION_COST = 0.3
"""What validating a token costs, in units of what training on one does."""
WARMUP_ITERATIONS = 20
"""With a budget of minutes, the learning rate rises over at least so many iterations."""
LOG_EVERY = 20
"""The log has a row every so many iterations. On a GPU, where fetching a loss waits for the device, reports come no
oftener, and at these iterations, so that no row is missed."""


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
    again: str = AGAIN,
) -> TrainingSummary:
    """Train a model on a corpus; the best weights end up as a checkpoint in `out/best`.

    The state to go on from lies in `out/resume`, the logs in `out/training.csv` and `out/tensorboard`. Under
    torchrun all processes call this with the same arguments; the first one writes.

    Args:
        corpus: the token shards.
        model_config: what to train; None takes the one of `init`.
        config: how.
        out: folder of the training.
        progress: is told what happens.
        resume: go on where an earlier call with the same arguments stopped, however it stopped; from the
            beginning if it had not saved anything yet.
        init: a checkpoint whose weights to begin with (fine-tuning); its vocabulary must be the corpus's.
        force: begin anew in a folder that holds a checkpoint already.
        world: the processes, for a caller that has joined them already (`melodia.training.join`), and sees to it
            that nobody else trains in `out`.
        again: what the caller's user goes on with, for messages; another than `resume` has no `init` either.

    Raises:
        TrainingError: nothing to train on, a folder that cannot be written, a loss that is not finite, a
            `resume` that does not fit, a checkpoint in `out` without `resume` or `force`, or another training
            that is running there.
        ConfigError: configurations that contradict each other or the corpus.
        CheckpointError: `init` cannot be read.
    """
    if world is None:
        with join(config.device) as joined, only_training(Path(out), joined):
            return train(
                corpus, model_config, config, out,
                progress=progress, resume=resume, init=init, force=force, world=joined, again=again,
            )  # fmt: skip
    progress = progress if progress is not None and world.leads else Progress()
    folder = Path(out)
    world.check_same("corpus", corpus.fingerprint)
    with _threads(config.threads):
        saved = look(folder, world, resume, force)
        if saved is not None:
            init = None
            if model_config is None:
                model_config = saved_model(saved, folder)
        with enough_memory(config, folder, world.device, again):
            learner = Learner(
                corpus, make_model(corpus, model_config, config.random_seed, init), config, world
            )
            run = _Run(corpus, learner, folder, progress, saved, again, tuned=init is not None)
            try:
                return run.go()
            finally:
                run.close()


class _Run:
    """One call of `train`: everything that changes while it runs."""

    def __init__(
        self,
        corpus: Corpus,
        learner: Learner,
        out: Path,
        progress: Progress,
        saved: TrainingState | None,
        again: str,
        tuned: bool,
    ) -> None:
        self.corpus, self.learner, self.out, self.progress = corpus, learner, out, progress
        self.config, self.world, self.again, self.tuned = learner.config, learner.world, again, tuned
        self.held_out = corpus.pieces("valid")
        self.plain = Preparer(corpus.vocabulary, learner.model.config.side_inputs)
        self.total = learner.iterations()
        self.eval_every = self.config.eval_every or self._validation_interval()
        self.validated, self.watch, self.meter = Validated(), Watch(), Meter()
        self.finished: str | None = None
        self.identity = {
            "model": learner.model.config.to_dict(),
            "training": self.config.to_dict(),
            "corpus": corpus.fingerprint,
            "vocabulary": corpus.vocabulary.fingerprint,
        }
        elapsed = self._restore(saved) if saved is not None else 0.0
        self.clock = Clock(elapsed)
        self.resumed_at = learner.iteration
        self.saved_at = elapsed
        self.rate = 0.0
        self.pending: list[Update] = []  # those whose losses are still on the device
        self.logs = Logs(out, learner.iteration) if self.world.leads else None

    # -- the state to go on from ----------------------------------------------------------------------------

    def _restore(self, saved: TrainingState) -> float:
        """Take up a saved state; returns the seconds it had used."""
        check_same_run(self.identity, saved, self.out, self.learner.stream.keys)
        values = saved.values
        try:
            self.learner.restore(saved.tensors, values)
            self.validated, self.watch = Validated(**values["validated"]), Watch(**values["watch"])
            self.meter, self.finished = Meter(**values["meter"]), values["finished"]
            elapsed = float(values["elapsed"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise TrainingError(
                f"{show_path(self.out / RESUME)} does not fit this training ({error!r}); start over with `force`"
            ) from error
        patience = self.config.patience
        patient = patience is None or self.watch.without_progress < patience
        if patient and not self._over(elapsed):
            self.finished = None  # the budget or the patience has grown since it ended
        return elapsed

    def _save(self, now: float) -> None:
        """Write the state to go on from; all processes take part."""
        self._flush(now)
        tensors = self.learner.tensors()
        if self.world.leads:
            values: dict[str, Any] = {
                **self.learner.values(),
                "identity": self.identity,
                "validated": asdict(self.validated),
                "elapsed": self.clock.elapsed(),
                "watch": asdict(self.watch),
                "meter": asdict(self.meter),
                "finished": self.finished,
            }
            write_state(self.out / RESUME, tensors, values, self.again)
            self.progress.saved(self.learner.iteration)
        self.saved_at = now
        self.world.barrier()

    # -- the loop -------------------------------------------------------------------------------------------

    def go(self) -> TrainingSummary:
        """Train until the budget is used up, or the validation has stopped improving."""
        self._announce()
        stopped = self.finished
        if stopped is None:
            if self.learner.iteration == 0:
                self._save(0.0)
            with Interrupt() as interrupt:
                stopped = self.finished = self._loop(interrupt)
                self._save(self.saved_at)
                # During the last validation nobody has looked; what the caller does next may take as long again.
                if self.world.sum([float(interrupt.wanted)])[0]:
                    self._stop()
        summary = self._summary(stopped)
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
                self._stop()

    def _stop(self) -> NoReturn:
        """End as somebody wants it; the state is saved."""
        self._warn(
            f"interrupted after iteration {self.learner.iteration}, the state is saved: continue with {self.again}"
        )
        raise KeyboardInterrupt

    def _iterate(self, interrupt: Interrupt) -> tuple[float, bool]:
        """One update; returns the seconds used so far, and whether somebody wants to stop."""
        now = self.clock.elapsed() if self.world.leads else 0.0
        update = self.learner.update(
            [now, float(interrupt.wanted)],
            lambda signals: self._rate(signals[0]),
        )
        self.rate = update.rate
        self.pending.append(update)
        now, wanted = update.signals
        if self.world.device.type == "cpu" or self.learner.iteration % LOG_EVERY == 0:
            self._flush(now)
        return now, wanted > 0

    def _flush(self, now: float) -> None:
        """Fetch the losses of the last iterations, check them, and tell them."""
        if not self.pending:
            return
        updates, self.pending = self.pending, []
        count = len(updates)
        values = torch.stack([update.losses for update in updates]).double().cpu()
        sums = self.world.sum([*values[:, 0].tolist(), *(~values.isfinite()).sum(1).tolist()])
        for i, bad in enumerate(sums[count:]):
            if bad:
                raise TrainingError(
                    f"the loss stopped being finite at iteration {self.learner.iteration - count + 1 + i} (learning "
                    f"rate {updates[i].rate:.2g}, gradient norm {float(values[i, 1]):.3g}); the last good state and "
                    f"the best weights are kept in {show_path(self.out)}. Train again with a lower learning rate or "
                    "a smaller gradient clip"
                )
        self.meter.take(sums[:count], updates, now)
        norm = float(values[-1, 1])
        step = Step(
            iteration=self.learner.iteration,
            fraction=self._fraction(now),
            epoch=self.learner.epoch,
            seconds=now,
            eta=self._eta(now),
            tokens_per_second=self.meter.tokens_per_second,
            learning_rate=self.rate,
            nats_per_token=self.meter.smooth_per_token,
            nats_per_note=self.meter.smooth_per_note,
            gradient_norm=norm,
        )
        self.progress.stepped(step)
        if self.logs is not None and self.learner.iteration % LOG_EVERY == 0:
            self.logs.write(
                **self._row(now),
                gradient_norm=norm,
                tokens_per_second=step.tokens_per_second,
                recent_nats_per_token=step.nats_per_token,
                recent_nats_per_note=step.nats_per_note,
            )

    # -- validation -----------------------------------------------------------------------------------------

    def _validation_interval(self) -> int | None:
        """Iterations between two validations, from sizes alone, so that it is the same on every machine."""
        if self.total is None:
            return None
        stream = self.learner.stream
        steps = stream.steps_per_epoch / stream.windows_per_epoch * self.config.batch_size  # of an iteration
        dear = self.held_out.tokens * VALIDATION_COST / (VALIDATION_SHARE * steps)
        return math.ceil(max(self.total / VALIDATIONS, min(dear, self.total / 2)))

    def _validation_due(self, now: float) -> bool:
        if self.eval_every is not None:
            return self.learner.iteration - self.validated.iteration >= self.eval_every
        rest = max(60.0 * (self.config.minutes or 0.0) / VALIDATIONS, self.validated.cost / VALIDATION_SHARE)
        return now - self.validated.now >= rest

    def _validate(self, now: float) -> float:
        """Score the held-out pieces, keep the weights if they are the best; returns the seconds so far."""
        self._flush(now)
        numbers = range(self.world.rank, len(self.held_out), self.world.size)
        result = evaluate(self.learner.average.model, self.held_out, self.plain, numbers=numbers)
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
                f"the validation loss is {per_token} after iteration {self.learner.iteration}; the last "
                f"good state and the best weights are kept in {show_path(self.out)}. Train again with a lower learning "
                "rate"
            )
        train_per_token, train_per_note = self.meter.since_validation()
        best = self.watch.judge(self.learner.iteration, per_token, per_note, train_per_token)
        if best and self.world.leads:
            self._keep()
        told = Validation(
            self.learner.iteration, per_token, per_note, train_per_token, train_per_note, best, after - now
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
        self.validated = Validated(self.learner.iteration, after, after - now)
        self.meter.paused(after - now)
        return after

    def _keep(self) -> None:
        """Save the averaged weights as the checkpoint."""
        watch = self.watch
        training = {
            "iterations": self.learner.iteration,
            "epochs": self.learner.epoch,
            "seconds": self.clock.elapsed(),
            "train_nats_per_token": _number(watch.best_train_nats_per_token),
            "valid_nats_per_token": _number(watch.best_nats_per_token),
            "valid_nats_per_note": _number(watch.best_nats_per_note),
            "train_pieces": self.learner.stream.pieces_per_epoch,
            "train_tokens": self.learner.stream.tokens_per_epoch,
            "valid_pieces": len(self.held_out),
            "settings": self.config.to_dict(),
        }
        save_checkpoint(
            self.out / BEST,
            self.learner.average.model,
            vocabulary=self.corpus.vocabulary,
            tokenizer_json=self.corpus.tokenizer_json,
            training=training,
            corpus_fingerprint=self.corpus.fingerprint,
            write_more=partial(pass_on_notices, self.out),
        )

    # -- where we are ---------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        """Seconds after which the last validation must begin, with a budget of minutes."""
        budget = 60.0 * (self.config.minutes or 0.0)
        return max(budget - 1.1 * self.validated.cost, 0.5 * budget)

    def _fraction(self, now: float, ahead: int = 0) -> float:
        """Share of the budget used, `ahead` iterations from here."""
        if self.total is not None:
            return min(1.0, (self.learner.iteration + ahead) / self.total)
        return min(1.0, now / self._deadline())

    def _rate(self, now: float) -> float:
        """The learning rate of the next update. By the clock a slow machine could leap over the warm-up."""
        rate = self.config.learning_rate_at(self._fraction(now, ahead=1))
        rise = (self.learner.iteration + 1) / WARMUP_ITERATIONS
        return rate if self.total is not None else rate * min(1.0, rise)

    def _over(self, now: float) -> bool:
        return self.learner.iteration >= self.total if self.total is not None else now >= self._deadline()

    def _eta(self, now: float) -> float | None:
        if self.total is None:
            return max(0.0, 60.0 * (self.config.minutes or 0.0) - now)
        if self.meter.seconds_per_iteration is None:
            return None
        left = self.total - self.learner.iteration
        validations = math.ceil(left / self.eval_every) if self.eval_every else 0
        return left * self.meter.seconds_per_iteration + validations * self.validated.cost

    def _row(self, now: float) -> dict[str, float]:
        return {
            "iteration": self.learner.iteration,
            "epoch": self.learner.epoch,
            "seconds": now,
            "learning_rate": self.rate,
        }

    # -- telling --------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        stream, held_out = self.learner.stream, self.held_out
        pieces, tokens = stream.pieces_per_epoch, stream.tokens_per_epoch
        parameters = self.learner.model.parameter_count()
        self.progress.started(
            Plan(
                parameters=parameters,
                train_pieces=pieces,
                train_tokens=tokens,
                valid_pieces=len(held_out),
                valid_tokens=held_out.tokens,
                iterations=self.total,
                seconds=60.0 * self.config.minutes if self.config.minutes else None,
                steps_per_epoch=stream.steps_per_epoch,
                resumed_at=self.resumed_at,
                device=str(self.world.device),
                precision=self.config.precision,
                processes=self.world.size,
                keys=stream.keys,
            )
        )
        if not self.resumed_at:  # who resumes was told
            init = self.again == AGAIN
            for text in corpus_warnings(
                pieces, tokens, len(held_out), parameters, init=init, tuned=self.tuned
            ):
                self._warn(text)
        device = self.world.device
        if self.config.precision == "bf16" and device.type == "cpu" and fast_precision(device) != "bf16":
            self._warn(
                "bf16 is not known to be faster than fp32 here, and takes ten times as long or more on a processor "
                "that cannot multiply it (AMX, AVX512-BF16); precision auto chooses the faster"
            )
        if self.config.transpose_probability > 0 and self.corpus.vocabulary.expansions:
            self._warn(
                "with byte pair encoding most pieces cannot be transposed while training, since the shifted tokens do "
                "not exist; build the corpus with transposed copies instead"
            )

    def _warn(self, text: str) -> None:
        if text not in self.watch.notes:
            self.watch.notes.append(text)
        self.progress.warned(text)

    def _summary(self, stopped: str) -> TrainingSummary:
        watch = self.watch
        return TrainingSummary(
            checkpoint=self.out / BEST,
            stopped=stopped,
            iterations=self.learner.iteration,
            epochs=self.learner.epoch,
            seconds=self.clock.elapsed(),
            best_iteration=watch.best_iteration,
            valid_nats_per_token=watch.best_nats_per_token,
            valid_nats_per_note=watch.best_nats_per_note,
            train_nats_per_token=watch.best_train_nats_per_token,
            parameters=self.learner.model.parameter_count(),
            warnings=tuple(watch.notes),
        )

    def close(self) -> None:
        """Close the logs."""
        if self.logs is not None:
            self.logs.close()


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
