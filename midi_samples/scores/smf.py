"""Write a score as a Standard MIDI File: format 1, the same bytes on every machine."""

from __future__ import annotations

import struct
import unicodedata
from fractions import Fraction

from scores.notation import Note, Part, Score

TICKS_PER_QUARTER = 480
SHARPS = {
    "C": 0,
    "G": 1,
    "D": 2,
    "A": 3,
    "E": 4,
    "B": 5,
    "F#": 6,
    "F": -1,
    "Bb": -2,
    "Eb": -3,
    "Ab": -4,
    "Db": -5,
}
DRUM_CHANNEL = 9


def key_signature(key: str) -> tuple[int, bool]:
    """Sharps (flats negative) and whether the key is minor.

    >>> key_signature("Eb"), key_signature("Gm")
    ((-3, False), (-2, True))
    """
    if key.endswith("m"):
        tonic = key[:-1]
        relative = {"A": "C", "E": "G", "B": "D", "D": "F", "G": "Bb", "C": "Eb", "F": "Ab"}[tonic]
        return SHARPS[relative], True
    return SHARPS[key], False


def variable_length(value: int) -> bytes:
    """A number in seven-bit groups, as delta times are written."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


def ticks(time: Fraction) -> int:
    """Quarter notes to ticks; a time off the grid of ticks is an error."""
    value = time * TICKS_PER_QUARTER
    if value.denominator != 1:
        raise ValueError(f"{time} quarter notes are not a whole number of ticks")
    return int(value)


def chunk(events: list[tuple[int, int, bytes]], end: int) -> bytes:
    """A track chunk from (tick, order within the tick, message) and the tick where the track ends."""
    body, now = b"", 0
    for tick, _, message in sorted(events):
        body += variable_length(tick - now) + message
        now = tick
    body += variable_length(end - now) + b"\xff\x2f\x00"
    return b"MTrk" + struct.pack(">I", len(body)) + body


def meta(kind: int, data: bytes) -> bytes:
    """A meta event."""
    return b"\xff" + bytes([kind]) + variable_length(len(data)) + data


def ascii_text(text: str) -> bytes:
    """Text without accents, which every reader decodes in the same way."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore")


def conductor(score: Score, end: int) -> bytes:
    """The first track: title, metre, key and tempi."""
    numerator, denominator = (int(part) for part in score.metre.split("/"))
    sharps, minor = key_signature(score.key)
    clocks = 36 if denominator == 8 else 24  # MIDI clocks a metronome click: dotted quarters in 6/8 and 3/8
    events = [
        (0, 0, meta(0x03, ascii_text(score.title))),
        (0, 1, meta(0x58, bytes([numerator, denominator.bit_length() - 1, clocks, 8]))),
        (0, 2, meta(0x59, struct.pack(">bB", sharps, minor))),
    ]
    for time, qpm in score.tempi():
        events.append((ticks(time), 3, meta(0x51, round(60_000_000 / qpm).to_bytes(3, "big"))))
    return chunk(events, end)


def track(part: Part, notes: list[Note], channel: int, end: int) -> bytes:
    """The track of one part; notes end before others begin at the same tick."""
    events = [(0, 0, meta(0x03, ascii_text(part.name)))]
    if part.program is not None:
        events.append((0, 1, bytes([0xC0 | channel, part.program])))
    for note in notes:
        start, stop = ticks(note.onset), ticks(note.onset + note.duration)
        events.append((start, 3, bytes([0x90 | channel, note.pitch, note.velocity])))
        events.append((stop, 2, bytes([0x80 | channel, note.pitch, 64])))
    return chunk(events, end)


def write(score: Score) -> bytes:
    """The bytes of the file of a score."""
    parts, bars = score.read()
    end = ticks(bars * score.bar_length)
    tracks = [conductor(score, end)]
    free = [channel for channel in range(16) if channel != DRUM_CHANNEL]
    for part, notes in zip(score.parts, parts, strict=True):
        channel = DRUM_CHANNEL if part.program is None else free.pop(0)
        tracks.append(track(part, notes, channel, end))
    header = struct.pack(">4sIHHH", b"MThd", 6, 1, len(tracks), TICKS_PER_QUARTER)
    return header + b"".join(tracks)
