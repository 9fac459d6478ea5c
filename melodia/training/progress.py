"""What training tells its caller while it runs; the command line draws it, a program may ignore it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """Told once, before the first iteration.

    Attributes:
        parameters: of the model.
        train_pieces: pieces of the training split, without transposed copies.
        train_tokens: their tokens.
        valid_pieces: pieces of the validation split.
        valid_tokens: their tokens.
        iterations: how many the budget allows; None with a budget of minutes.
        seconds: how long the budget allows; None with a budget of epochs or iterations.
        steps_per_epoch: tokens to predict in one pass over the training pieces.
        resumed_at: the iteration a resumed run goes on from, else 0.
        device: where it runs.
        precision: "fp32" or "bf16".
        processes: how many take part.
        keys: in how many keys, at most, the corpus stores a piece; one of them is read an epoch.
    """

    parameters: int
    train_pieces: int
    train_tokens: int
    valid_pieces: int
    valid_tokens: int
    iterations: int | None
    seconds: float | None
    steps_per_epoch: int
    resumed_at: int
    device: str
    precision: str
    processes: int
    keys: int = 1


@dataclass(frozen=True)
class Step:
    """Told after every iteration (every few on a GPU).

    Attributes:
        iteration: updates made so far.
        fraction: share of the budget that is used, 0 to 1.
        epoch: passes over the training pieces so far.
        seconds: since training began, interruptions not counted.
        eta: seconds until the budget is used up, None while unknown.
        tokens_per_second: targets trained on per second, lately.
        learning_rate: of the last update.
        nats_per_token: training loss, smoothed over the last iterations.
        nats_per_note: the same per note; nan where no note was.
        gradient_norm: of the last update, before clipping.
    """

    iteration: int
    fraction: float
    epoch: float
    seconds: float
    eta: float | None
    tokens_per_second: float
    learning_rate: float
    nats_per_token: float
    nats_per_note: float
    gradient_norm: float


@dataclass(frozen=True)
class Validation:
    """Told after every validation.

    Attributes:
        iteration: updates made so far.
        nats_per_token: over all tokens of the validation pieces, each once.
        nats_per_note: the same nats over all notes.
        train_nats_per_token: mean training loss since the last validation.
        train_nats_per_note: the same per note.
        best: whether it is the best so far, and hence saved.
        seconds: how long the validation took.
    """

    iteration: int
    nats_per_token: float
    nats_per_note: float
    train_nats_per_token: float
    train_nats_per_note: float
    best: bool
    seconds: float


@dataclass(frozen=True)
class TrainingSummary:
    """How training ended.

    Attributes:
        checkpoint: the folder of the best weights.
        stopped: "budget" or "patience" (no better result for too long); Ctrl-C raises KeyboardInterrupt.
        iterations: updates made.
        epochs: passes over the training pieces.
        seconds: duration, interruptions not counted.
        best_iteration: the iteration whose weights were kept.
        valid_nats_per_token: of the kept weights; nan without validation pieces.
        valid_nats_per_note: of the kept weights.
        train_nats_per_token: mean training loss before the kept weights.
        parameters: of the model.
        warnings: everything `Progress.warned` was told.
    """

    checkpoint: Path
    stopped: str
    iterations: int
    epochs: float
    seconds: float
    best_iteration: int
    valid_nats_per_token: float
    valid_nats_per_note: float
    train_nats_per_token: float
    parameters: int
    warnings: tuple[str, ...] = ()


class Progress:
    """Receives what happens; override what is of interest. Called in the first process only."""

    def started(self, plan: Plan) -> None:
        """Training is about to begin."""

    def stepped(self, step: Step) -> None:
        """An iteration is done."""

    def validated(self, validation: Validation) -> None:
        """A validation is done."""

    def warned(self, text: str) -> None:
        """Something the person should know, in a sentence or two."""

    def saved(self, iteration: int) -> None:
        """The state to resume from has been written."""

    def finished(self, summary: TrainingSummary) -> None:
        """Training has ended."""
