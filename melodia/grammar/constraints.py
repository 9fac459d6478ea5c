"""What a caller may ask of the music, beyond that it be valid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from melodia.checks import truth_value, whole_number
from melodia.errors import ConfigError, GrammarError

MOST_POLYPHONY = 129 * 128
"""Notes that can sound at once: every pitch of every program and of the drums."""

GENERAL_MIDI_DRUMS = (35, 81)
"""The lowest and the highest pitch for which every General MIDI drum kit has a sound."""

MOST_BARS = 1 << 30


@dataclass(frozen=True)
class Constraints:
    """Limits on the music; the default is none.

    Attributes:
        programs: General MIDI programs that may play (0 to 127, -1 for the drums); None for all.
        pitch_range: lowest and highest pitch of melodic notes, both allowed; None for all. Drums are not
            concerned.
        drum_range: lowest and highest pitch of the drums, both allowed, such as `GENERAL_MIDI_DRUMS`; None for all.
        pitch_classes: the pitch classes of melodic notes, 0 (C) to 11 (B); None for all.
        time_signatures: metres that may be written, such as ("3/4", "6/8"); None for all.
        allow_metre_changes: whether the metre may change once there is one.
        allow_tempo_changes: whether Tempo tokens may come once there has been one; with `allow_tempo` False
            none may.
        allow_tempo: whether Tempo tokens may come at all.
        max_polyphony: most notes that may sound at once, all programs together; None for no limit. In PerTok, no note
            then begins before its place on the grid.
        min_bars: EOS is forbidden before this many bars have been begun.
        max_bars: no bar may be begun behind this many, and no note behind their end; None for no limit.
        allow_eos: whether EOS may come; a stream that never ends has False.

    Raises:
        ConfigError: a value is of the wrong kind or outside its limits.
        GrammarError: a limit contradicts itself or another.

    >>> Constraints(programs=(0, -1), pitch_range=(48, 84), time_signatures=("3/4",)).max_polyphony is None
    True
    """

    programs: tuple[int, ...] | None = None
    pitch_range: tuple[int, int] | None = None
    drum_range: tuple[int, int] | None = None
    pitch_classes: tuple[int, ...] | None = None
    time_signatures: tuple[str, ...] | None = None
    allow_metre_changes: bool = True
    allow_tempo: bool = True
    allow_tempo_changes: bool = True
    max_polyphony: int | None = None
    min_bars: int = 0
    max_bars: int | None = None
    allow_eos: bool = True

    def __post_init__(self) -> None:
        if self.programs is not None:
            self._numbers("programs", -1, 127, " between 0 and 127, or -1 for the drums")
            _require(bool(self.programs), "programs must name at least one program; give None for all")
        for name in ("pitch_range", "drum_range"):
            if getattr(self, name) is not None:
                self._numbers(name, 0, 127)
                pair = getattr(self, name)
                _require(
                    len(pair) == 2 and pair[0] <= pair[1],
                    f"{name} must be the lowest and highest pitch, between 0 and 127 (received {pair})",
                )
        if self.pitch_classes is not None:
            self._numbers("pitch_classes", 0, 11)
            self._set("pitch_classes", tuple(sorted(set(self.pitch_classes))))
            _require(bool(self.pitch_classes), "pitch_classes must name at least one; give None for all")
        if self.time_signatures is not None:
            self._set("time_signatures", _names(self.time_signatures))
            _require(
                bool(self.time_signatures), "time_signatures must name at least one metre; give None for all"
            )
        for name, low, most in (
            ("max_polyphony", 1, MOST_POLYPHONY),
            ("min_bars", 0, MOST_BARS),
            ("max_bars", 1, MOST_BARS),
        ):
            if getattr(self, name) is not None:
                self._set(name, whole_number(name, getattr(self, name), low, most))
        for name in ("allow_metre_changes", "allow_tempo", "allow_tempo_changes", "allow_eos"):
            self._set(name, truth_value(name, getattr(self, name)))
        if self.max_bars is not None:
            _require(
                self.min_bars <= self.max_bars,
                f"min_bars must not be above max_bars (received {self.min_bars} and {self.max_bars})",
            )
            _require(self.allow_eos, "max_bars needs allow_eos: nothing else can follow the last bar")

    def _numbers(self, name: str, low: int, high: int, limits: str = "") -> None:
        values = getattr(self, name)
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ConfigError(f"`{name}` must be a list of whole numbers (received {values!r})")
        numbers = [
            whole_number(f"{name}[{place}]", value, low, high, limits=limits)
            for place, value in enumerate(values)
        ]
        self._set(name, tuple(numbers))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _names(metres: Iterable[str]) -> tuple[str, ...]:
    names = (metres,) if isinstance(metres, str) else tuple(metres) if isinstance(metres, Iterable) else ()
    if not all(isinstance(name, str) for name in names) or not isinstance(metres, Iterable):
        raise ConfigError(f'`time_signatures` must be metres such as "3/4" (received {metres!r})')
    return names


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise GrammarError(message)
