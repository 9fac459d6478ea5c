"""How much of a MIDI file is taken. A value per call; no library's global is ever changed."""

from __future__ import annotations

from dataclasses import dataclass, fields

from melodia.checks import whole_number

LAST_TICK = 1 << 30
"""Where music ends at the latest, read or written: symusic keeps ticks in 32 bits."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one read. The defaults keep every file under 500 MB of memory and a few seconds.

    A file over `size`, `events`, `messages`, `tracks` or `notes` is refused; silence and notes that are too
    long are shortened, music after `quarters` or `bars` is cut, and the report says so.

    Attributes:
        size: bytes of the file.
        events: events in all tracks together.
        messages: of these the ones that are no notes or controllers (tempi, texts, system exclusive, ...).
        tracks: tracks that hold events; also tracks of the score, one for each program on a channel of a track.
        notes: notes.
        silence: quarter notes in which nothing sounds.
        note: quarter notes that one note may last.
        quarters: quarter notes in the whole piece.
        bars: bars in the whole piece.
    """

    size: int = 8 << 20
    events: int = 1_000_000
    messages: int = 200_000
    tracks: int = 1_000
    notes: int = 250_000
    silence: int = 256
    note: int = 256
    quarters: int = 50_000
    bars: int = 20_000

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = whole_number(f"Limits.{entry.name}", getattr(self, entry.name), 1)
            object.__setattr__(self, entry.name, value)
