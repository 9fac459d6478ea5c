"""Watching the validations: which was best, when to stop, and what a person should be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from melodia.wording import counted

FEW_PIECES = 20
FEW_TOKENS = 100_000
TOKENS_PER_PARAMETER = 0.1


def corpus_warnings(
    pieces: int, tokens: int, valid_pieces: int, parameters: int, *, init: bool = True, tuned: bool = False
) -> list[str]:
    """What is worrying about a corpus before training begins, a sentence or two each.

    Args:
        pieces, tokens: to train on.
        valid_pieces: held out.
        parameters: of the model.
        init: the caller can begin with a trained checkpoint.
        tuned: it does.
    """
    warnings = []
    better = (
        ", or start from the model that comes with melodia (`init` bundled)" if init and not tuned else ""
    )
    if pieces < FEW_PIECES or tokens < FEW_TOKENS:
        warnings.append(
            f"the corpus is small: {counted(pieces, 'piece')} with {tokens:,} tokens to train on (models begin to "
            f"generalise from about {FEW_PIECES} pieces and {FEW_TOKENS:,} tokens); expect it to memorise pieces, so "
            f"add more music{better}"
        )
    elif tokens < TOKENS_PER_PARAMETER * parameters and not tuned:
        warnings.append(
            f"the model is large for the corpus: {parameters:,} parameters for {tokens:,} tokens; "
            "a smaller `size` will likely do as well and train faster"
        )
    if valid_pieces == 0:
        warnings.append(
            "no piece is held out for validation: neither the best weights nor overfitting can be detected; split the "
            "music into two sub-folders of the corpus, train/ and valid/"
        )
    return warnings


@dataclass
class Watch:
    """The course of the validations; its fields are JSON values.

    Attributes:
        best_iteration: -1 before the first validation.
        best_nats_per_token: of the best validation.
        best_nats_per_note: of the same.
        best_train_nats_per_token: mean training loss before it.
        without_progress: validations since the best.
        warned: whether overfitting has been told.
        notes: everything told so far.
    """

    best_iteration: int = -1
    best_nats_per_token: float = math.inf
    best_nats_per_note: float = math.inf
    best_train_nats_per_token: float = math.inf
    without_progress: int = 0
    warned: bool = False
    notes: list[str] = field(default_factory=list)

    def judge(self, iteration: int, per_token: float, per_note: float, train_per_token: float) -> bool:
        """Take in a validation; returns whether it is the best so far."""
        if (
            math.isnan(per_token) or per_token < self.best_nats_per_token
        ):  # nan: no pieces; the latest is the best
            self.best_iteration = iteration
            self.best_nats_per_token, self.best_nats_per_note = per_token, per_note
            self.best_train_nats_per_token = train_per_token
            self.without_progress = 0
            return True
        self.without_progress += 1
        return False

    def overfitting(self, per_token: float, train_per_token: float) -> str | None:
        """What to say, once, when validation has risen for two validations while training goes on falling."""
        rising = self.without_progress >= 2 and per_token > self.best_nats_per_token * 1.01
        if self.warned or not rising or not train_per_token < self.best_train_nats_per_token:
            return None
        self.warned = True
        return (
            f"overfitting has begun: the validation loss has risen from {self.best_nats_per_token:.3f} "
            f"(iteration {self.best_iteration}) to {per_token:.3f} nats per token while the training loss "
            "still falls; the best weights are kept. More music, a smaller `size` or more dropout would "
            "help"
        )
