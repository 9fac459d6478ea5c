"""Likelihood of a set of pieces: totals a piece, ratios over the set, bootstrap confidence intervals.

Every judge of token sequences (the n-gram model, the networks) returns the same `Likelihood`, so that their
numbers stand side by side. Ratios are of totals (all nats over all notes), never means of ratios. Letters: P
= pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melodia.errors import ConfigError
from melodia.vocabulary import Vocabulary

UNITS = ("token", "note", "bar", "second")


@dataclass(frozen=True)
class Interval:
    """A ratio over a set of pieces with its bootstrap confidence interval.

    Attributes:
        value: the ratio of totals, nats per unit.
        low: lower end of the interval.
        high: upper end of the interval.
        level: the coverage, such as 0.95.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Likelihood:
    """What a model gives to each piece of a set.

    Attributes:
        nats: negative log-likelihood of each piece, natural logarithm [P].
        tokens: how many tokens were scored in each piece (the end token counts, masked tokens do not) [P].
        notes: how many notes each piece begins [P].
        bars: how many bars each piece has [P], or None where nobody counted.
        seconds: how long each piece lasts [P], or None where nobody measured.

    >>> result = Likelihood(np.array([6.0, 2.0]), np.array([4, 4]), np.array([2, 2]))
    >>> result.per("token"), result.per("note")
    (1.0, 2.0)
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    notes: NDArray[np.int64]
    bars: NDArray[np.int64] | None = None
    seconds: NDArray[np.float64] | None = None

    @property
    def nats_per_token(self) -> float:
        """All nats over all scored tokens."""
        return self.per("token")

    @property
    def nats_per_note(self) -> float:
        """All nats over all notes."""
        return self.per("note")

    def units(self) -> tuple[str, ...]:
        """The units that `per` and `interval` know for this set."""
        return tuple(unit for unit in UNITS if getattr(self, f"{unit}s") is not None)

    def _denominator(self, unit: str) -> NDArray[Any]:
        if unit not in UNITS:
            raise ConfigError(f"`unit` must be one of {', '.join(UNITS)} (received {unit!r})")
        values: NDArray[Any] | None = getattr(self, f"{unit}s")
        if values is None:
            raise ConfigError(f"the {unit}s of these pieces were not counted; ask for one of {self.units()}")
        return values

    def per(self, unit: str) -> float:
        """Nats per "token", "note", "bar" or "second"; nan for a set that has none of them."""
        total = float(self._denominator(unit).sum())
        return float(self.nats.sum()) / total if total else float("nan")

    def interval(
        self, unit: str = "token", *, level: float = 0.95, resamples: int = 1000, random_seed: int = 0
    ) -> Interval:
        """`per(unit)` with a percentile bootstrap over pieces (Efron & Tibshirani 1993, chapter 13).

        Args:
            unit: one of `units()`.
            level: coverage, inside (0, 1).
            resamples: how many sets of P pieces are drawn with replacement.
            random_seed: of the draws.

        Raises:
            ConfigError: an unknown unit, or a level outside (0, 1).
        """
        if not 0.0 < level < 1.0:
            raise ConfigError(f"`level` must be above 0 and below 1 (received {level})")
        below = self._denominator(unit).astype(np.float64)
        pieces = len(self.nats)
        if not pieces:
            return Interval(float("nan"), float("nan"), float("nan"), level)
        if pieces == 1:  # nothing is known of how pieces differ
            return Interval(self.per(unit), float("nan"), float("nan"), level)
        draws = np.random.default_rng(random_seed).multinomial(
            pieces, np.full(pieces, 1.0 / pieces), size=resamples
        )
        totals = draws @ below
        ratios = (draws @ self.nats)[totals > 0] / totals[totals > 0]
        if not len(ratios):
            return Interval(float("nan"), float("nan"), float("nan"), level)
        low, high = np.quantile(ratios, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
        return Interval(self.per(unit), float(low), float(high), level)

    def to_dict(self, *, level: float = 0.95, random_seed: int = 0) -> dict[str, Any]:
        """A JSON-ready summary: pieces, totals, and nats per unit with intervals; None where undefined."""
        summary: dict[str, Any] = {
            "pieces": len(self.nats),
            "nats": float(self.nats.sum()),
            "tokens": int(self.tokens.sum()),
            "notes": int(self.notes.sum()),
        }
        for unit in self.units():
            interval = self.interval(unit, level=level, random_seed=random_seed)
            ends = {"value": interval.value, "low": interval.low, "high": interval.high}
            summary[f"nats_per_{unit}"] = plain(ends)
        return summary


def bare(piece: ArrayLike, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """The ids of a piece without a begin token in front or an end token behind [N]."""
    ids = np.asarray(piece).astype(np.int64, copy=False)
    start = 1 if len(ids) and ids[0] == vocabulary.bos else 0
    stop = len(ids) - 1 if len(ids) > start and ids[-1] == vocabulary.eos else len(ids)
    return ids[start:stop]


def count_notes_and_bars(
    pieces: Iterable[ArrayLike], vocabulary: Vocabulary
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """How many notes and bars each piece has, counted in its tokens.

    Bars are None where the scheme has no Bar token.
    """
    bars_of_token = np.array([kind == "Bar" for kind in vocabulary.types], dtype=np.int64)
    for token, parts in vocabulary.expansions.items():
        bars_of_token[token] = sum(vocabulary.types[part] == "Bar" for part in parts)
    notes: list[int] = []
    bars: list[int] = []
    for piece in pieces:
        ids = bare(piece, vocabulary)
        notes.append(int(vocabulary.notes_of_token[ids].sum()))
        bars.append(int(bars_of_token[ids].sum()))
    has_bars = bool(bars_of_token.any())
    return np.array(notes, dtype=np.int64), np.array(bars, dtype=np.int64) if has_bars else None


def velocity_mask(
    pieces: Sequence[ArrayLike], vocabulary: Vocabulary, constant: Sequence[bool] | None
) -> list[NDArray[np.bool_]] | None:
    """Which targets are scored, per piece [N + 1] (the last is the end token); None where all are.

    A piece whose notes all have one velocity says nothing about dynamics: its Velocity tokens are left out of
    training, so they are left out of the score too.

    Args:
        pieces: ids of each piece.
        vocabulary: of the ids. BPE tokens are never masked, since they mix velocities with notes.
        constant: for each piece, whether its velocity is constant.
    """
    if constant is None or not any(constant):
        return None
    is_velocity = np.array([kind == "Velocity" for kind in vocabulary.types])
    masks = []
    for piece, flat in zip(pieces, constant, strict=True):
        ids = bare(piece, vocabulary)
        scored = np.ones(len(ids) + 1, dtype=bool)
        if flat:
            scored[:-1] = ~is_velocity[ids]
        masks.append(scored)
    return masks


def plain(value: Any) -> Any:
    """A copy of nested data as JSON can hold it: what is not a number is None, tuples are lists.

    >>> plain({"low": float("nan"), "span": (1, 2.5)})
    {'low': None, 'span': [1, 2.5]}
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def span(low: float, high: float, digits: int = 3) -> str:
    """The ends of an interval for people; a dash where there is none, as of a single piece.

    >>> span(1.0, 2.5, 1), span(float("nan"), float("nan"))
    ('1.0 to 2.5', '–')
    """
    return number(math.nan) if math.isnan(low + high) else f"{number(low, digits)} to {number(high, digits)}"


def number(value: float, digits: int = 3) -> str:
    """A number for people; an undefined one is a dash.

    >>> number(0.12345), number(float("nan")), number(1234.5, 0)
    ('0.123', '–', '1,234')
    """
    return "–" if value != value else f"{value:,.{digits}f}"
