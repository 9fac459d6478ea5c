"""A small notation for music in plain text, read into notes.

A voice is a string of tokens, separated by spaces and line ends:

=============  ======================================================================================
``g4:1``       a note and its length in quarter notes (``:1/2``, ``:3/2``); a length stays until changed
``bb3 f#5``    flats and sharps; ``c4`` is middle C (MIDI pitch 60)
``c4+e4+g4``   a chord
``r:2``        a rest
``c5:1~``      a tie to the same pitches in the next token
``c5'``        staccato: sounds for half its length
``c5>``        an accent
``|``          a bar line; the bar before it must be full
``%``          the bar before once more
``!mf``        loudness from here on: pp p mp mf f ff
``!<`` ``!>``  a hairpin: louder or softer, in equal steps, until the next loudness
``bd+ch:1/2``  drums, by the names in `DRUMS`
=============  ======================================================================================

Velocities come from the loudness, plus a little for strong beats, so that phrases and metre can be heard.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LOUDNESS = {"pp": 38, "p": 50, "mp": 62, "mf": 74, "f": 88, "ff": 102}
STEPS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
DRUMS = {
    "bd": 36,  # bass drum
    "rs": 37,  # side stick
    "sn": 38,  # snare
    "ch": 42,  # closed hi-hat
    "lt": 45,  # low tom
    "oh": 46,  # open hi-hat
    "mt": 47,  # middle tom
    "cr": 49,  # crash
    "ht": 50,  # high tom
    "tb": 54,  # tambourine
}
PITCH = re.compile(r"([a-g])(bb|##|b|#)?(-?\d)$")


class NotationError(ValueError):
    """The text of a voice is not music: the message says which bar and which token."""


@dataclass(frozen=True)
class Note:
    """A note; times in quarter notes from the beginning of the piece."""

    onset: Fraction
    duration: Fraction
    pitch: int
    velocity: int


@dataclass
class Part:
    """An instrument: its General MIDI program (None for drums) and its voices, each a text of notation.

    ``balance`` is added to every velocity, so that an accompaniment stays behind its melody.
    """

    name: str
    program: int | None
    voices: list[str]
    balance: int = 0


@dataclass
class Score:
    """A piece: what the README tells about it, and its parts."""

    slug: str
    title: str
    composer: str
    date: str
    metre: str  # "3/4"
    key: str  # "G", "Gm", "Bb"
    tempo: str  # "1:112 31:96": quarter notes a minute from the beginning of these bars (1 is the first)
    texture: str
    parts: list[Part]
    scale_note: str = ""  # what the key signature does not say (a mode)
    remark: str = ""

    @property
    def bar_length(self) -> Fraction:
        """Length of a bar in quarter notes."""
        numerator, denominator = self.metre.split("/")
        return Fraction(4 * int(numerator), int(denominator))

    def tempi(self) -> list[tuple[Fraction, int]]:
        """Onsets in quarter notes and quarter notes a minute."""
        pairs = [item.split(":") for item in self.tempo.split()]
        return [((Fraction(bar) - 1) * self.bar_length, int(qpm)) for bar, qpm in pairs]

    def read(self) -> tuple[list[list[Note]], int]:
        """Read every part.

        Returns:
            The notes of each part, sorted, and the number of bars.

        Raises:
            NotationError: a bar is not full, voices differ in length, or a pitch is struck while it sounds.
        """
        parts, lengths = [], {}
        for part in self.parts:
            notes: list[Note] = []
            for number, text in enumerate(part.voices, start=1):
                where = f"{self.slug}, {part.name}, voice {number}"
                voice, bars = read_voice(text, self.metre, part.program is None, part.balance, where)
                notes += voice
                lengths[where] = bars
            notes.sort(key=lambda note: (note.onset, note.pitch))
            check_overlaps(notes, f"{self.slug}, {part.name}", self.bar_length)
            parts.append(notes)
        if len(set(lengths.values())) != 1:
            raise NotationError(f"voices differ in length: {lengths}")
        return parts, next(iter(lengths.values()))


def pitch_number(name: str, drums: bool = False) -> int:
    """The MIDI pitch of a note or drum name.

    >>> pitch_number("c4"), pitch_number("bb3"), pitch_number("sn", drums=True)
    (60, 58, 38)
    """
    if drums:
        if name not in DRUMS:
            raise NotationError(f"no drum is called {name!r}")
        return DRUMS[name]
    match = PITCH.match(name)
    if not match:
        raise NotationError(f"{name!r} is not a pitch")
    step, accidental, octave = match.groups()
    shift = {None: 0, "b": -1, "#": 1, "bb": -2, "##": 2}[accidental]
    return 12 * (int(octave) + 1) + STEPS[step] + shift


def accent(position: Fraction, metre: str) -> int:
    """What a place in the bar (in quarter notes) adds to the velocity."""
    numerator, denominator = (int(part) for part in metre.split("/"))
    compound = denominator == 8 and numerator % 3 == 0
    beat = Fraction(3, 2) if compound else Fraction(4, denominator)
    if position == 0:
        return 6
    if position % beat != 0:
        return -3 if position % Fraction(1, 2) == 0 else -5
    middle = Fraction(4 * numerator, denominator) / 2
    return 3 if position == middle and numerator % 2 == 0 else 0


@dataclass
class _Mark:
    """A loudness or a hairpin at a time."""

    time: Fraction
    level: int | None  # None: a hairpin begins


def _level(marks: list[_Mark], time: Fraction) -> Fraction:
    level, since, hairpin = Fraction(LOUDNESS["mf"]), Fraction(0), False
    for mark in marks:
        if mark.time > time:
            if hairpin and mark.level is not None:
                return level + (mark.level - level) * (time - since) / (mark.time - since)
            return level
        if mark.level is None:
            hairpin, since = True, mark.time
        else:
            level, since, hairpin = Fraction(mark.level), mark.time, False
    return level


def read_voice(text: str, metre: str, drums: bool, balance: int, where: str) -> tuple[list[Note], int]:
    """Read the text of one voice.

    Args:
        text: notation, as in the docstring of this module.
        metre: time signature, ``"6/8"``.
        drums: read drum names instead of pitches.
        balance: added to every velocity.
        where: who is speaking, for error messages.

    Returns:
        The notes in order, and the number of bars.

    Raises:
        NotationError: a token is not understood, or a bar is not full.
    """
    numerator, denominator = (int(part) for part in metre.split("/"))
    bar_length = Fraction(4 * numerator, denominator)
    duration = Fraction(1)
    events: list[list] = []  # onset, length, sounding length, pitches, accented, tied to the next
    marks: list[_Mark] = []
    bars = [piece.split() for piece in text.strip().strip("|").split("|")]
    for index, tokens in enumerate(bars):
        if tokens == ["%"]:
            tokens = bars[index] = bars[index - 1]
        time, end = index * bar_length, (index + 1) * bar_length
        for token in tokens:
            if token in ("!<", "!>"):
                marks.append(_Mark(time, None))
                continue
            if token.startswith("!"):
                marks.append(_Mark(time, LOUDNESS[token[1:]]))
                continue
            tied, token = token.endswith("~"), token.rstrip("~")
            accented, token = token.endswith(">"), token.rstrip(">")
            staccato, token = token.endswith("'"), token.rstrip("'")
            name, _, length = token.partition(":")
            duration = Fraction(length) if length else duration
            try:
                pitches = [] if name == "r" else [pitch_number(part, drums) for part in name.split("+")]
            except NotationError as error:
                raise NotationError(f"{where}, bar {index + 1}: {error}") from None
            sounding = duration / 2 if staccato else duration
            if events and events[-1][5]:
                before = events[-1]
                if before[3] != pitches:
                    raise NotationError(f"{where}, bar {index + 1}: {token!r} is tied to other pitches")
                before[2] += sounding
                before[5] = tied
            else:
                events.append([time, duration, sounding, pitches, accented, tied])
            time += duration
        if time != end:
            filled = time - index * bar_length
            raise NotationError(
                f"{where}, bar {index + 1} holds {filled} quarter notes instead of {bar_length}: {tokens}"
            )
    notes = []
    for onset, _, sounding, pitches, accented, _ in events:
        loudness = (
            _level(marks, onset) + accent(onset % bar_length, metre) + (14 if accented else 0) + balance
        )
        velocity = min(max(round(loudness), 1), 127)
        notes += [Note(onset, sounding, pitch, velocity) for pitch in pitches]
    return notes, len(bars)


def check_overlaps(notes: list[Note], where: str, bar_length: Fraction) -> None:
    """Refuse a pitch that is struck again while it sounds in the same part."""
    until: dict[int, Fraction] = {}
    for note in notes:
        if until.get(note.pitch, Fraction(0)) > note.onset:
            bar = note.onset // bar_length + 1
            raise NotationError(f"{where}, bar {bar}: pitch {note.pitch} is struck while it still sounds")
        until[note.pitch] = note.onset + note.duration


def bars(*pieces: str) -> str:
    """Join pieces of notation, each of whole bars, by bar lines."""
    return " | ".join(piece.strip().strip("|").strip() for piece in pieces)
