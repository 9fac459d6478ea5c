"""The settings of the choice of a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from melodia.checks import real_number, truth_value, whole_number
from melodia.errors import ConfigError

RECOMMENDED: Mapping[str, Any] = MappingProxyType(
    {"temperature": 1.0, "top_p": 0.95, "pitch_bias": 0.3, "branches": 4, "recall": 0.3}
)
"""What the command line chooses, by `benchmarks/continuations.py`; in Python: `sampler.generate(**RECOMMENDED)`.

Stronger filters make music sink: the notes of a chord are written upwards, and what lies high is what they cut off.
The bias keeps the key (`melodia.sampler.bias`), the branches keep the texture and close (`melodia.sampler.branching`),
as many bars come again as in real music (`melodia.sampler.recall`). A stream has no `branches`."""

FILL_BRANCHES = 8
"""`branches` of `melodia fill` and `Sampler.fill`, which make few bars, unless told otherwise."""

FILTERS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""The settings of the choice that the command line has, too."""

MAX_WHOLE = 2**31 - 1  # what the engine's int holds


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is chosen from the logits. None or 1.0 turns a filter off.

    The filters run in this order: grammar mask, pool of opinions (the request's `pitch_bias`), repetition penalty,
    temperature, top-k, top-p, min-p.

    Attributes:
        temperature: > 0; logits are divided by it. Below 1 safer, above 1 wilder.
        top_k: keep the k likeliest tokens, k >= 1.
        top_p: keep the smallest set of likeliest tokens with at least this share of the mass, in (0, 1].
        min_p: keep the tokens at least this many times as likely as the likeliest, in (0, 1].
        repetition_penalty: >= 1; the logits of recent tokens are divided (where positive) or multiplied
            (where negative) by it. The sampler counts pitches only: bar lines must repeat.
        repetition_window: how many tokens back count as recent, >= 1; the sampler remembers 1,024.
        greedy: take the likeliest token; no random numbers. Such music soon repeats one bar for ever: it is for
            tests and comparisons.

    Raises:
        ConfigError: a value lies outside its limits, or `greedy` stands beside a filter that it makes
            useless.

    >>> SamplingConfig(temperature=0.0)
    Traceback (most recent call last):
    ...
    melodia.errors.ConfigError: `temperature` must be > 0 (received 0.0); `top_k` 1 takes the likeliest token
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    greedy: bool = False

    def __post_init__(self) -> None:
        for name in (*FILTERS, "repetition_window"):
            value: Any = getattr(self, name)
            if value is None and name in ("top_k", "top_p", "min_p"):
                continue
            if name in ("top_k", "repetition_window"):
                remedy = "leave it out for no limit" if name == "top_k" else ""
                value = whole_number(name, value, 1, MAX_WHOLE, remedy=remedy)
            else:
                value = real_number(name, value)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "greedy", truth_value("greedy", self.greedy))
        if self.temperature <= 0:
            raise ConfigError(
                f"`temperature` must be > 0 (received {self.temperature}); `top_k` 1 takes the likeliest token"
            )
        if not 1e-3 <= self.temperature <= 1e3:
            raise ConfigError(f"`temperature` must be between 0.001 and 1000 (received {self.temperature})")
        for name, remedy in (("top_p", "1 turns it off"), ("min_p", "leave it out to keep all")):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"`{name}` must be above 0 and at most 1 (received {value}); {remedy}")
        if not 1 <= self.repetition_penalty <= 100:
            raise ConfigError(
                f"`repetition_penalty` must be between 1 and 100 (received {self.repetition_penalty}); "
                "1 turns it off"
            )
        if self.greedy:
            for name, off in (("temperature", 1.0), ("top_k", None), ("top_p", None), ("min_p", None)):
                if getattr(self, name) != off:
                    raise ConfigError(
                        f"greedy=True takes the likeliest token, so `{name}` has no effect "
                        f"(received {getattr(self, name)}); drop one of the two"
                    )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)
