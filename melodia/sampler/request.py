"""What a caller asks of a generation."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, fields
from typing import Any

from melodia.checks import real_number, truth_value, whole_number
from melodia.decode import SamplingConfig
from melodia.decode.philox import check_random_seed
from melodia.errors import ConfigError
from melodia.grammar.constraints import MOST_POLYPHONY
from melodia.harmony import Scale, parse_chords, parse_scale

DEFAULT_BARS = 8
MOST = {"bars": 100_000, "seconds": 200_000, "tokens": 5_000_000}
"""The longest music that is made in one piece: two days of it, in half an hour. It is all in memory until it ends, and
far beyond, ticks no longer fit the numbers that hold them."""

MOST_SAMPLES = 100_000
"""Continuations that are made at once; they are all in memory, too."""

MOST_SESSION = 2**32 - 1
MOST_RECALL = 0.9

FLAGS = ("endless", "any_program", "metre_changes", "tempo_changes", "may_end", "silent_bars")


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
            the model chooses in the first two bars, four at most. Those that do not play at the seed's end join
            the others (`melodia.sampler.strangers`), and then no bars come again; drums that join keep to those of
            General MIDI.
        any_program: let the model choose others at any time.
        metre: numerator and denominator of the new bars; None: the seed's, or the model's choice without one.
        metre_changes: let the model change the metre.
        tempo: quarter notes a minute; None: the seed's, or the model's choice without one.
        tempo_changes: let the model change the tempo.
        pitch_range: lowest and highest pitch of melodic notes; None for all.
        scale: the scale of melodic notes by its name, such as "D minor"; no other pitch comes. None for all.
        chords: a chord for each of the new full bars, such as "Am F C G", or with bar lines, "Dm | Gm A7 | Dm"; after
            the last they begin again. Notes lean towards them, and branches that keep to them are chosen: passing notes
            still come. See `melodia.harmony.parse_chords` and `melodia.sampler.chord_bias`. Not where the metre may
            change.
        max_polyphony: most notes at once; None for no limit.
        pitch_bias: how strongly new notes keep to the seed's pitch classes, and each program to its range there, 0 (not
            at all) to 1; see `melodia.sampler.bias`.
        branches: so many times every two bars are played, four times as often where none of them is like the seed, the
            last two eight times as often (not `beside` other music), and what fits the seed best, and closes best at
            the end, is kept; see `melodia.sampler.branching`. 1: once. Not for streams, nor with `may_end`.
        recall: how many of the bars come again, 0 (none, but by chance) to 0.9: two at a time are played as 2, 4, 8, 16
            or 32 bars before, but never the last two. A seed in which more or fewer come again shifts what lies in
            between, 0.3 most; see `melodia.sampler.recall`. Where bars are tokens, and tokens no byte pairs; elsewhere
            nothing comes again. With `chords` only new bars do, under the same chords.
        following: music that comes behind the new bars, in any form that a seed has: they lead there instead of
            closing; see `melodia.sampler.following`. Needs branches.
        beside: music that sounds at the same time, from the join on, in any form that a seed has. It stays, and is no
            part of the music that comes out, but of its tokens: new notes, of `programs` that do not play in it,
            accompany it; see `melodia.sampler.kept`. Only with REMI, without byte pairs. Behind no seed `metre` and
            `tempo` must be given, those of that music.
        may_end: let the model end the piece before its length is reached, after one bar at the earliest.
        silent_bars: allow bars in which nothing sounds. The first bar is never empty.

    Raises:
        ConfigError: a value lies outside its limits or contradicts another.

    >>> Request(bars=4, random_seed=1).bars
    4
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
    scale: Any = None
    chords: Any = None
    max_polyphony: int | None = None
    pitch_bias: float = 0.0
    branches: int = 1
    recall: float = 0.0
    following: Any = None
    beside: Any = None
    may_end: bool = False
    silent_bars: bool = False

    def __post_init__(self) -> None:
        self._keep("random_seed", check_random_seed(self.random_seed))
        self._keep(
            "session",
            whole_number("session", self.session, 0, MOST_SESSION, limits=" between 0 and 2**32 - 1"),
        )
        self._keep("branches", whole_number("branches", self.branches, 1, 64))
        if not isinstance(self.sampling, SamplingConfig):
            raise ConfigError(
                f"`sampling` must be a melodia.decode.SamplingConfig (received {self.sampling!r}); or give its "
                "settings one by one"
            )
        for name in FLAGS:
            self._keep(name, truth_value(name, getattr(self, name)))
        self._check_length()
        if self.tempo is not None:
            self._keep("tempo", real_number("tempo", self.tempo, 4, 1000, unit="quarter notes a minute"))
        for name, most in (("pitch_bias", 1), ("recall", MOST_RECALL)):
            self._keep(name, real_number(name, getattr(self, name), 0, most, remedy="0 turns it off"))
        if self.branches > 1 and (self.endless or self.may_end):
            other = "`endless`" if self.endless else "`may_end`"
            raise ConfigError(
                f"`branches` needs a known end, but {other} leaves it open; give only one of the two"
            )
        if self.following is not None and self.branches == 1:
            raise ConfigError(
                "`following` needs several `branches`, to keep those that lead there (received 1); give 2 or more, or "
                "leave it out for streams, which have none"
            )
        if self.beside is not None:
            if self.programs is None:
                raise ConfigError("`beside` needs `programs`: those that accompany the music")
            if self.recall:
                raise ConfigError("`recall` repeats bars, which may not fit the `beside` music; leave it out")
            for name in ("pitch_range", "scale", "max_polyphony"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"`{name}` would also forbid notes of the `beside` music; leave it out")
        if self.metre is not None:
            self._keep("metre", check_metre(self.metre))
            if self.metre_changes:
                raise ConfigError(
                    "`metre` fixes the metre and `metre_changes` frees it; give only one of the two"
                )
        if self.programs is not None:
            self._keep("programs", check_programs(self.programs))
            if self.any_program:
                raise ConfigError(
                    "`programs` names programs and `any_program` allows all; give only one of the two"
                )
        if self.pitch_range is not None:
            self._keep("pitch_range", check_pitch_range(self.pitch_range))
        if self.scale is not None and not isinstance(self.scale, Scale):
            self._keep("scale", parse_scale(self.scale))
        if self.chords is not None:
            self._check_chords()
        if self.max_polyphony is not None:
            limit = whole_number(
                "max_polyphony", self.max_polyphony, 1, MOST_POLYPHONY, remedy="leave it out for no limit"
            )
            self._keep("max_polyphony", limit)

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_chords(self) -> None:
        bars = parse_chords(self.chords)
        self._keep("chords", bars)
        if self.metre_changes:
            raise ConfigError(
                "`chords` need bars of one metre, but `metre_changes` frees it; give only one of the two"
            )
        for chord in (chord for bar in bars for chord in bar if chord is not None and self.scale is not None):
            if not chord.classes <= self.scale.classes:
                raise ConfigError(
                    f"the chord {chord.name} has notes outside the scale {self.scale.name}; give other `chords`, or no "
                    "`scale`"
                )

    def _check_length(self) -> None:
        lengths = [name for name in MOST if getattr(self, name) is not None]
        lengths += ["endless"] * self.endless
        if len(lengths) > 1:
            raise ConfigError(f"give one of {' and '.join(f'`{name}`' for name in lengths)}, not both")
        if not lengths:
            self._keep("bars", DEFAULT_BARS)
        for name, most in MOST.items():
            value: Any = getattr(self, name)
            if value is None:
                continue
            value = real_number(name, value) if name == "seconds" else whole_number(name, value, 1)
            if not value > 0:
                raise ConfigError(f"`{name}` must be more than 0 (received {value!r})")
            if value > most:
                raise ConfigError(
                    f"`{name}` must be at most {most:,} (received {value:,}); make longer music in parts, each from "
                    "the one before"
                )
            self._keep(name, value)


def check_samples(num_samples: object, session: int = 0) -> int:
    """How many continuations are made at once, the first of them with this session.

    >>> check_samples(3)
    3
    """
    remedy = "make more in parts, each with another `session`"
    found = whole_number("num_samples", num_samples, 1, MOST_SAMPLES, remedy=remedy)
    if session + found - 1 > MOST_SESSION:
        raise ConfigError(
            f"`num_samples` count up from `session`, to at most 2**32 - 1 (received {found} from {session}); give a "
            "smaller `session`"
        )
    return found


def check_metre(metre: object) -> tuple[int, int]:
    """A metre as two numbers, from such or from "3/4".

    >>> check_metre("6/8")
    (6, 8)
    """
    try:
        parts = [int(part) for part in metre.split("/")] if isinstance(metre, str) else metre
        top, bottom = (whole_number("metre", part, 0) for part in parts)  # type: ignore[attr-defined]
    except (ConfigError, TypeError, ValueError):
        raise ConfigError(
            f"`metre` must be a numerator and a denominator, such as 3/4 (received {metre!r})"
        ) from None
    if not 1 <= top <= 64 or bottom not in (1, 2, 4, 8, 16, 32):
        raise ConfigError(
            f"`metre` must be 1 to 64 over 1, 2, 4, 8, 16 or 32, such as 3/4 (received {top}/{bottom})"
        )
    return top, bottom


def check_programs(programs: object) -> tuple[int, ...]:
    """Programs as whole numbers, each once.

    >>> check_programs([40, 0, 40])
    (40, 0)
    """
    try:
        found = tuple(dict.fromkeys(whole_number("programs", each, -1, 127) for each in programs))  # type: ignore[attr-defined]
    except (ConfigError, TypeError):
        found = ()
    if not found:
        raise ConfigError(
            "`programs` must be one or more numbers between 0 and 127, or -1 for drums, such as (0, 40) "
            f"(received {programs!r}); leave it out for the seed's"
        )
    return found


def check_pitch_range(pitch_range: object) -> tuple[int, int]:
    """The lowest and the highest pitch.

    >>> check_pitch_range([48, 84])
    (48, 84)
    """
    try:
        low, high = (whole_number("pitch_range", each, 0, 127) for each in pitch_range)  # type: ignore[attr-defined]
    except (ConfigError, TypeError, ValueError):
        low, high = 1, 0
    if low > high:
        raise ConfigError(
            "`pitch_range` must be the lowest and the highest pitch, between 0 and 127, such as (48, 84) "
            f"(received {pitch_range!r})"
        )
    return low, high


def request_of(settings: dict[str, Any]) -> Request:
    """A request from keyword arguments; the settings of the choice may stand one by one."""
    known = [each.name for each in fields(Request)]
    of_choice = [each.name for each in fields(SamplingConfig)]
    single = {name: settings.pop(name) for name in of_choice if name in settings}
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"unknown generation settings: {', '.join(f'`{name}`' for name in unknown)}; known are "
            f"{', '.join((*known, *of_choice))}"
        )
    if single and settings.get("sampling") is not None:
        raise ConfigError(f"give `sampling` or {', '.join(f'`{name}`' for name in single)}, not both")
    if single:
        settings["sampling"] = SamplingConfig(**single)
    settings = {name: value for name, value in settings.items() if value is not None}
    settings.setdefault("random_seed", secrets.randbits(32))
    return Request(**settings)
