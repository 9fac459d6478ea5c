"""What a caller may ask of the music, beyond that it be valid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from melodia.errors import GrammarError


@dataclass(frozen=True)
class Constraints:
    """Limits on the music; the default is none.

    Attributes:
        programs: General MIDI programs that may play (0 to 127, -1 for the drums); None for all.
        pitch_range: lowest and highest pitch of melodic notes, both allowed; None for all. Drums are not
            concerned.
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
        GrammarError: a limit contradicts itself or another.

    >>> Constraints(programs=(0, -1), pitch_range=(48, 84), time_signatures=("3/4",)).max_polyphony is None
    True
    """

    programs: tuple[int, ...] | None = None
    pitch_range: tuple[int, int] | None = None
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
            object.__setattr__(self, "programs", tuple(self.programs))
            _require(bool(self.programs), "programs must name at least one program; give None for all")
            wrong = [p for p in self.programs if not -1 <= p <= 127]
            _require(not wrong, f"programs must be between 0 and 127, or -1 for drums (received {wrong})")
        if self.pitch_range is not None:
            low, high = self.pitch_range
            _require(
                0 <= low <= high <= 127,
                f"pitch_range must be the lowest and highest pitch, between 0 and 127 (received {self.pitch_range})",
            )
        if self.pitch_classes is not None:
            object.__setattr__(self, "pitch_classes", tuple(sorted(set(self.pitch_classes))))
            _require(
                bool(self.pitch_classes) and set(self.pitch_classes) <= set(range(12)),
                f"pitch_classes must be one or more numbers between 0 and 11 (received {self.pitch_classes})",
            )
        if self.time_signatures is not None:
            object.__setattr__(self, "time_signatures", _names(self.time_signatures))
            _require(
                bool(self.time_signatures), "time_signatures must name at least one metre; give None for all"
            )
        if self.max_polyphony is not None:
            _require(
                self.max_polyphony >= 1, f"max_polyphony must be at least 1 (received {self.max_polyphony})"
            )
        _require(self.min_bars >= 0, f"min_bars must be at least 0 (received {self.min_bars})")
        if self.max_bars is not None:
            _require(self.max_bars >= 1, f"max_bars must be at least 1 (received {self.max_bars})")
            _require(
                self.min_bars <= self.max_bars,
                f"min_bars must not be above max_bars (received {self.min_bars} and {self.max_bars})",
            )
            _require(self.allow_eos, "max_bars needs allow_eos: nothing else can follow the last bar")


def _names(metres: Iterable[str]) -> tuple[str, ...]:
    return (metres,) if isinstance(metres, str) else tuple(metres)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise GrammarError(message)
