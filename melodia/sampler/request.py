"""What a caller asks of a generation."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, fields
from typing import Any

from melodia.decode import SamplingConfig
from melodia.decode.philox import check_random_seed
from melodia.errors import ConfigError

DEFAULT_BARS = 8
MOST = {"bars": 100_000, "seconds": 200_000, "tokens": 5_000_000}
"""The longest music that is made in one piece: two days of it, in half an hour. It is all in memory until it ends, and
far beyond, ticks no longer fit the numbers that hold them."""


@dataclass(frozen=True)
class Request:
    """Length, choice, and what is kept of the seed.

    Attributes:
        bars: exactly this many bars from the join. A bar that the seed left unfinished is completed before. No length
            is more than `MOST`.
        seconds: or this many seconds from the join, rounded up to a bar line.
        tokens: or this many tokens, and then to the next bar line. With no length: 8 bars.
        endless: or for ever; for streams.
        sampling: temperature and filters.
        random_seed: 0 to 2**64 - 1.
        session: 0 to 2**32 - 1; independent streams of one random seed.
        programs: General MIDI programs that may play, -1 for the drums; None: the seed's, or without a seed those that
            the model chooses in the first two bars, four at most.
        any_program: let the model choose others at any time.
        metre: numerator and denominator of the new bars; None: the seed's, or the model's choice without one.
        metre_changes: let the model change the metre.
        tempo: quarter notes a minute; None: the seed's, or the model's choice without one.
        tempo_changes: let the model change the tempo.
        pitch_range: lowest and highest pitch of melodic notes; None for all.
        max_polyphony: most notes at once; None for no limit.
        pitch_bias: how strongly new notes keep to the seed's pitch classes, and each program to its range there, 0 (not
            at all) to 1; see `melodia.sampler.bias`.
        branches: so many times every two bars are played, and what fits the seed best, and closes best at the end, is
            kept; see `melodia.sampler.branching`. 1: once. Not for streams, nor with `may_end`.
        may_end: let the model end the piece before its length is reached, after one bar at the earliest.
        silent_bars: allow bars in which nothing sounds. The first bar is never empty.

    Raises:
        ConfigError: a value lies outside its limits or contradicts another.

    >>> Request(bars=4, random_seed=1).length
    '4 bars'
    """

    bars: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    endless: bool = False
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    random_seed: int = 0
    session: int = 0
    programs: tuple[int, ...] | None = None
    any_program: bool = False
    metre: tuple[int, int] | None = None
    metre_changes: bool = False
    tempo: float | None = None
    tempo_changes: bool = False
    pitch_range: tuple[int, int] | None = None
    max_polyphony: int | None = None
    pitch_bias: float = 0.0
    branches: int = 1
    may_end: bool = False
    silent_bars: bool = False

    def __post_init__(self) -> None:
        check_random_seed(self.random_seed)
        lengths = [name for name in ("bars", "seconds", "tokens") if getattr(self, name) is not None]
        lengths += ["endless"] * self.endless
        if len(lengths) > 1:
            raise ConfigError(f"give one of {' and '.join(f'`{name}`' for name in lengths)}, not both")
        if not lengths:
            object.__setattr__(self, "bars", DEFAULT_BARS)
        for name in ("bars", "tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"`{name}` must be a whole number, at least 1 (received {value!r})")
        if self.seconds is not None and not self.seconds > 0:
            raise ConfigError(f"`seconds` must be more than 0 (received {self.seconds!r})")
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise ConfigError(
                    f"`{name}` must be at most {most:,} (received {value:,}); make longer music in parts, each from "
                    "the one before"
                )
        if (
            isinstance(self.session, bool)
            or not isinstance(self.session, int)
            or not 0 <= self.session < 2**32
        ):
            raise ConfigError(f"`session` must be within 0 and 2**32 - 1 (received {self.session!r})")
        if self.tempo is not None and not 4 <= self.tempo <= 1000:
            raise ConfigError(
                f"`tempo` must be within 4 and 1000 quarter notes a minute (received {self.tempo})"
            )
        if not 0 <= self.pitch_bias <= 1:
            raise ConfigError(
                f"`pitch_bias` must be within 0 and 1 (received {self.pitch_bias}); 0 turns it off"
            )
        if (
            isinstance(self.branches, bool)
            or not isinstance(self.branches, int)
            or not 1 <= self.branches <= 64
        ):
            raise ConfigError(
                f"`branches` must be a whole number within 1 and 64 (received {self.branches!r})"
            )
        if self.branches > 1 and (self.endless or self.may_end):
            other = "`endless`" if self.endless else "`may_end`"
            raise ConfigError(
                f"`branches` needs a known end, and {other} leaves it open; give one of the two"
            )
        if self.metre is not None:
            object.__setattr__(self, "metre", check_metre(self.metre))
            if self.metre_changes:
                raise ConfigError("`metre` fixes the metre and `metre_changes` frees it; give one of the two")
        if self.programs is not None:
            object.__setattr__(self, "programs", tuple(self.programs))
            if self.any_program:
                raise ConfigError(
                    "`programs` names programs and `any_program` allows all; give one of the two"
                )

    @property
    def length(self) -> str:
        """The asked length in words."""
        if self.endless:
            return "endless"
        for name in ("bars", "seconds", "tokens"):
            value = getattr(self, name)
            if value is not None:
                return f"{value:g} {name}"
        raise AssertionError("no length")


def check_metre(metre: object) -> tuple[int, int]:
    """A metre as two numbers, from such or from "3/4".

    >>> check_metre("6/8")
    (6, 8)
    """
    parts = metre.split("/") if isinstance(metre, str) else metre
    try:
        top, bottom = (int(part) for part in parts)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ConfigError(f"a metre is numerator and denominator, such as 3/4 (received {metre!r})") from None
    if not 1 <= top <= 64 or bottom not in (1, 2, 4, 8, 16, 32):
        raise ConfigError(f"a metre is such as 3/4 or 6/8 (received {top}/{bottom})")
    return top, bottom


def request_of(settings: dict[str, Any]) -> Request:
    """A request from keyword arguments; the settings of the choice may stand one by one."""
    single = {each.name: settings.pop(each.name) for each in fields(SamplingConfig) if each.name in settings}
    if single and settings.get("sampling") is not None:
        raise ConfigError(f"give `sampling` or {', '.join(f'`{name}`' for name in single)}, not both")
    if single:
        settings["sampling"] = SamplingConfig(**single)
    settings = {name: value for name, value in settings.items() if value is not None}
    settings.setdefault("random_seed", secrets.randbits(32))
    try:
        return Request(**settings)
    except TypeError as error:
        raise ConfigError(f"unknown settings of a generation ({error})") from error
