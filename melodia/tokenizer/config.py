"""What a tokenizer writes: the scheme, the grid, the numbers of velocities and tempi."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from melodia.checks import whole_number
from melodia.errors import ConfigError
from melodia.grammar.tables import MICRO_RESOLUTION

SCHEMES = ("REMI", "TSD", "MIDILike", "Structured", "PerTok")

METRES: dict[int, tuple[int, ...]] = {4: tuple(range(1, 13)), 8: tuple(range(1, 13)), 16: (1, 3, 5, 7, 9, 11)}
"""Denominator -> the numerators that a TimeSig token exists for. Other metres are rewritten (see `grid`)."""

PITCHES = (0, 127)
DRUMS = (21, 88)
"""First and last pitch of Pitch and of PitchDrum tokens."""

TEMPO_RANGE = (20, 280)
"""Slowest and fastest tempo in quarter notes a minute."""

MICRO_STEPS = 3
"""PerTok: a note may lie this many eighths of a grid unit before or behind its grid point."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything a tokenizer depends on; it is saved with the tokenizer.

    Attributes:
        scheme: one of `SCHEMES`.
        positions_per_beat: grid units in a beat, 12 or 24. A beat is the unit that the metre's denominator
            names (in 6/8 an eighth note), for Structured and PerTok always a quarter note.
        velocities: number of velocity levels, 1 to 127.
        tempi: number of tempo levels, evenly spaced over `TEMPO_RANGE`: 66 are every fourth, with 60 and 120.
        bpe_vocab_size: size of the vocabulary after byte pair encoding, or None for none.

    Raises:
        ConfigError: a value lies outside its limits.
    """

    scheme: str = "REMI"
    positions_per_beat: int = 12
    velocities: int = 32
    tempi: int = 66
    bpe_vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ConfigError(f"`scheme` must be one of {', '.join(SCHEMES)} (received {self.scheme!r})")
        if self.positions_per_beat not in (12, 24):
            raise ConfigError(f"`positions_per_beat` must be 12 or 24 (received {self.positions_per_beat!r})")
        self._whole("positions_per_beat", 12, 24)
        self._whole("velocities", 1, 127)
        self._whole("tempi", 2, 256)
        if self.bpe_vocab_size is not None:
            self._whole("bpe_vocab_size", 1, 65535)

    def _whole(self, name: str, low: int, high: int) -> None:
        object.__setattr__(self, name, whole_number(name, getattr(self, name), low, high))

    @property
    def beat_resolution(self) -> dict[tuple[int, int], int]:
        """Durations: (first beat, end beat) -> units a beat; the last end is the longest note, in beats."""
        if self.scheme == "Structured":  # its time shifts share the table and cannot be chained
            return {(0, 16): self.positions_per_beat}
        return {(0, 4): self.positions_per_beat, (4, 12): 4, (12, 32): 1}

    @property
    def carries_metre(self) -> bool:
        """Whether time signatures and tempi are written."""
        return self.scheme != "Structured"

    @property
    def ticks_per_quarter(self) -> int:
        """Grid ticks in a quarter note: every grid unit of every metre is a whole number of them."""
        if self.scheme == "Structured":
            return self.positions_per_beat
        if self.scheme == "PerTok":
            return self.positions_per_beat * MICRO_RESOLUTION
        return self.positions_per_beat * max(METRES) // 4

    def unit(self, denominator: int) -> int:
        """Ticks in a grid unit under a metre of this denominator."""
        if self.scheme in ("Structured", "PerTok"):
            return self.ticks_per_quarter // self.positions_per_beat
        return max(METRES) // denominator

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenizerConfig:
        """The inverse of `to_dict`; raises ConfigError on unknown or missing fields."""
        names = {item.name for item in fields(cls)}
        if not isinstance(data, dict) or set(data) != names:
            raise ConfigError(
                f"a tokenizer config has the fields {', '.join(sorted(names))} (received {data!r})"
            )
        return cls(**data)
