"""What a training run is told, and the course of its learning rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from melodia.checks import device_name, real_number, truth_value, whole_number
from melodia.errors import ConfigError

PRECISIONS = ("fp32", "bf16")
BUDGETS = ("iterations", "epochs", "minutes")
MOST_BUDGET = 10**9
"""Minutes or epochs: longer than any machine runs; seconds and windows can still be counted."""
MOST_THREADS = 1024
"""More than any machine has a use for; where threads cannot be made, the OpenMP library ends the process."""
MOST_RANDOM_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Exactly one of `minutes`, `epochs` and `iterations` is the budget.

    With a budget of epochs or iterations the run is a function of its inputs: on the CPU with a fixed number
    of threads the same weights come out, bit for bit, interrupted or not. With minutes the learning rate
    follows the clock.

    Attributes:
        minutes: budget of wall-clock time, evaluation and saving included.
        epochs: budget in passes over the training pieces; need not be whole.
        iterations: budget in optimiser updates.
        batch_size: lanes, B; each walks through whole pieces. All processes together.
        window: steps between two updates, T; the state is carried over, the gradient is not.
        learning_rate: the highest rate, reached after the warm-up.
        final_learning_rate: the rate at the end of the cosine, as a fraction of `learning_rate`.
        warmup: fraction of the budget over which the rate rises.
        beta1: decay of AdamW's mean.
        beta2: decay of AdamW's mean of squares.
        weight_decay: AdamW's, on matrices other than embeddings.
        gradient_clip: largest norm of the gradient; 0 for none.
        label_smoothing: share of the target spread over all tokens; reported losses do not contain it.
        transpose_down: semitones a piece may be moved down, 0 or less.
        transpose_up: semitones it may be moved up, 0 or more.
        transpose_probability: share of piece passes that are moved.
        repeat_probability: share of piece passes in which the piece is played twice, nothing between, so that the
            model hears music begin again behind an end; for tokens with bar lines.
        program_probability: share of piece passes in which other instruments play: the programs with pitches become
            any others, in the same order, so that none is foreign to the model; for tokens with programs.
        hide_bars_left: share of piece passes that do not say how many bars are left.
        hide_density: share of piece passes that do not say how dense the piece is.
        ema: decay of the averaged weights, per iteration; 0 keeps none. The averaged weights are what is
            validated and saved.
        eval_every: iterations between two validations; None: a twentieth of the budget, or so
            rarely that they take about a tenth of the time.
        patience: validations without a better result after which training ends; None: never.
        save_every: seconds between two savings of the state to resume from.
        precision: "fp32", or "bf16" for the matrix products and what is kept of every step; weights, optimiser,
            states and validation stay in float32.
        recompute: keep only the states of the layers and make their gates again in the backward pass: about half
            the memory, a quarter more time.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: threads of the CPU; None leaves torch's choice.
        random_seed: of the weights, of the order of pieces and of all augmentation.

    Raises:
        ConfigError: a value outside its limits, or not exactly one budget.

    >>> TrainingConfig(epochs=3).budget
    ('epochs', 3)
    """

    minutes: float | None = None
    epochs: float | None = None
    iterations: int | None = None
    batch_size: int = 16
    window: int = 256
    learning_rate: float = 6e-3
    final_learning_rate: float = 0.02
    warmup: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    label_smoothing: float = 0.0
    transpose_down: int = -5
    transpose_up: int = 6
    transpose_probability: float = 1.0
    repeat_probability: float = 0.0
    program_probability: float = 0.0
    hide_bars_left: float = 0.5
    hide_density: float = 0.5
    ema: float = 0.99
    eval_every: int | None = None
    patience: int | None = 8
    save_every: float = 60.0
    precision: str = "fp32"
    recompute: bool = False
    device: str = "auto"
    threads: int | None = None
    random_seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                "give exactly one budget of minutes, epochs and iterations (received "
                f"{', '.join(given) or 'none'})"
            )
        for name in ("minutes", "epochs"):
            if getattr(self, name) is not None and not 0 < self._real(name) <= MOST_BUDGET:
                raise ConfigError(
                    f"`{name}` must be above 0 and at most {MOST_BUDGET} (received {getattr(self, name)})"
                )
        if self.iterations is not None:
            self._whole("iterations", 1, 1 << 40)
        for name in ("batch_size", "window"):
            self._whole(name, 1, 1 << 20)
        for name, most in (("eval_every", 1 << 40), ("patience", 1 << 40), ("threads", MOST_THREADS)):
            if getattr(self, name) is not None:
                self._whole(name, 1, most)
        if not 0 < self._real("learning_rate") <= 10:
            raise ConfigError(
                f"`learning_rate` must be above 0 and at most 10 (received {self.learning_rate})"
            )
        for name in (
            "final_learning_rate",
            "warmup",
            "transpose_probability",
            "repeat_probability",
            "program_probability",
            "hide_bars_left",
            "hide_density",
        ):
            self._real(name, 0, 1)
        for name in ("weight_decay", "gradient_clip", "save_every"):
            self._real(name, 0)
        for name in ("beta1", "beta2", "ema", "label_smoothing"):
            self._real(name, 0, 0.999999)
        self._whole("transpose_down", -24, 0)
        self._whole("transpose_up", 0, 24)
        self._whole("random_seed", 0, MOST_RANDOM_SEED)
        object.__setattr__(self, "recompute", truth_value("recompute", self.recompute))
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"`precision` must be one of {', '.join(PRECISIONS)} (received {self.precision!r})"
            )
        device_name("device", self.device)

    def _whole(self, name: str, low: int, high: int | None = None) -> None:
        object.__setattr__(self, name, whole_number(name, getattr(self, name), low, high))

    def _real(self, name: str, low: float = -math.inf, high: float = math.inf) -> float:
        value = real_number(name, getattr(self, name), low, high)
        if not isinstance(getattr(self, name), int):  # which is shown and saved as it was given
            object.__setattr__(self, name, value)
        return value

    @property
    def budget(self) -> tuple[str, float]:
        """Which budget, and how much of it."""
        name = next(name for name in BUDGETS if getattr(self, name) is not None)
        return name, getattr(self, name)

    def learning_rate_at(self, fraction: float) -> float:
        """The learning rate after this fraction of the budget: a linear rise, then a cosine down.

        >>> config = TrainingConfig(iterations=10, learning_rate=1.0, warmup=0.5, final_learning_rate=0.0)
        >>> [round(config.learning_rate_at(x), 3) for x in (0.0, 0.25, 0.5, 0.75, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
        """
        fraction = min(max(fraction, 0.0), 1.0)
        if fraction < self.warmup:
            return self.learning_rate * fraction / self.warmup
        share = (fraction - self.warmup) / (1.0 - self.warmup) if self.warmup < 1.0 else 0.0
        cosine = 0.5 * (1.0 + math.cos(math.pi * share))
        return self.learning_rate * (self.final_learning_rate + (1.0 - self.final_learning_rate) * cosine)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`; raises ConfigError on fields it does not know."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ConfigError(f"unknown training settings: {', '.join(unknown)}")
        return cls(**data)
