"""A vocabulary compiled to numbers: what each token does, as flat tables.

The tables are all that a machine needs to follow tokens, in Python here and in C++ or CUDA elsewhere: an
operation and an operand per token. V = vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from melodia.errors import GrammarError
from melodia.vocabulary import Vocabulary

MAX_SILENCE = 256
"""Quarter notes in which nothing sounds, at most; the MIDI reader shortens what is longer."""

MICRO_RESOLUTION = 8
"""PerTok: grid ticks in a grid unit."""


class Op:
    """What a token does; its operand stands behind the colon.

    Plain numbers: an Enum, compared with NumPy's, swallows a Ctrl-C in Python 3.11, since NumPy then asks its class for
    attributes in Python and drops whatever error comes.
    """

    PAD = 0  # nothing
    BOS = 1  # nothing: the machine starts behind it
    EOS = 2  # ends the piece
    BAR = 3  # begins the next bar
    TIME_SIGNATURE = 4  # sets the metre: (ticks in a bar, ticks in a unit)
    POSITION = 5  # moves to a place in the bar: grid units
    TIME_SHIFT = 6  # moves on: grid units
    TEMPO = 7  # sets the tempo: hundredths of quarter notes a minute
    PROGRAM = 8  # sets the program: 0 to 127, -1 for the drums
    PITCH = 9  # begins a note: pitch
    DRUM = 10  # begins a note of the drums: pitch
    VELOCITY = 11  # gives the note its velocity: 1 to 127
    DURATION = 12  # ends the description of a note: grid units
    NOTE_OFF = 13  # ends a sounding note: pitch
    DRUM_OFF = 14  # ends a sounding note of the drums: pitch
    MICRO = 15  # moves the note off its grid point: ticks
    BPE = 16  # several tokens at once


_OPS = {
    "PAD": Op.PAD,
    "BOS": Op.BOS,
    "EOS": Op.EOS,
    "Bar": Op.BAR,
    "TimeSig": Op.TIME_SIGNATURE,
    "Position": Op.POSITION,
    "TimeShift": Op.TIME_SHIFT,
    "Tempo": Op.TEMPO,
    "Program": Op.PROGRAM,
    "Pitch": Op.PITCH,
    "NoteOn": Op.PITCH,
    "PitchDrum": Op.DRUM,
    "DrumOn": Op.DRUM,
    "Velocity": Op.VELOCITY,
    "Duration": Op.DURATION,
    "NoteOff": Op.NOTE_OFF,
    "DrumOff": Op.DRUM_OFF,
    "MicroTiming": Op.MICRO,
    "BPE": Op.BPE,
}


@dataclass(frozen=True)
class Tables:
    """Per token [V]: `ops`, `values` (operands), and for TimeSig tokens `bar_lengths` and `units` (ticks).

    Attributes:
        ticks_per_quarter: grid ticks in a quarter note.
        default_bar, default_unit: ticks in a bar and in a grid unit before any TimeSig token (4/4).
        metres: numerator and denominator of each TimeSig token.
        has_bars: bars are tokens (REMI, PerTok), not counted from time.
        on_off: notes end with a token of their own (MIDILike), not with a duration.
    """

    ops: tuple[int, ...]
    values: tuple[int, ...]
    bar_lengths: tuple[int, ...]
    units: tuple[int, ...]
    ticks_per_quarter: int
    default_bar: int
    default_unit: int
    metres: dict[int, tuple[int, int]]
    has_bars: bool
    on_off: bool


@lru_cache(maxsize=8)
def _compile(scheme: str, tokens: tuple[str, ...], positions_per_beat: int) -> Tables:
    metres = {
        i: (int(top), int(bottom))
        for i, token in enumerate(tokens)
        if token.startswith("TimeSig_")
        for top, _, bottom in [token[8:].partition("/")]
    }
    finest = max((bottom for _, bottom in metres.values()), default=4)
    relative = scheme != "PerTok"  # a grid unit is a part of the metre's beat, not of a quarter note
    quarter = positions_per_beat * (finest // 4 if relative else MICRO_RESOLUTION)
    unit = quarter // positions_per_beat
    ops, values = [], []
    for token in tokens:
        kind, _, value = token.partition("_")
        op = _OPS.get(kind)
        if op is None:
            raise GrammarError(
                f"no grammar for tokens of type {kind!r}; use a vocabulary that melodia's tokenizer made"
            )
        ops.append(op)
        values.append(_operand(op, value, positions_per_beat))
    bars, units = [0] * len(tokens), [0] * len(tokens)
    for i, (top, bottom) in metres.items():
        bars[i] = quarter * 4 * top // bottom
        units[i] = finest // bottom if relative else unit
    return Tables(
        ops=tuple(ops),
        values=tuple(values),
        bar_lengths=tuple(bars),
        units=tuple(units),
        ticks_per_quarter=quarter,
        default_bar=quarter * 4,
        default_unit=unit,
        metres=metres,
        has_bars=Op.BAR in ops,
        on_off=Op.NOTE_OFF in ops,
    )


def units_of(value: str, positions_per_beat: int) -> int:
    """Grid units of a "beats.parts.parts in a beat" value.

    >>> units_of("1.2.4", 12)
    18
    """
    beats, parts, resolution = map(int, value.split("."))
    return (beats * resolution + parts) * positions_per_beat // resolution


def _operand(op: int, value: str, positions_per_beat: int) -> int:
    """The number behind a token's type."""
    if op in (Op.DURATION, Op.TIME_SHIFT):
        return units_of(value, positions_per_beat)
    if op == Op.TEMPO:
        return round(float(value) * 100)
    if op in (Op.POSITION, Op.PROGRAM, Op.PITCH, Op.DRUM, Op.VELOCITY, Op.NOTE_OFF, Op.DRUM_OFF, Op.MICRO):
        return int(value)
    return 0


def compile_tables(vocabulary: Vocabulary) -> Tables:
    """The tables of a vocabulary (kept for the last few).

    Raises:
        GrammarError: the vocabulary holds tokens that no melodia tokenizer makes.
    """
    return _compile(vocabulary.scheme, vocabulary.tokens, vocabulary.positions_per_beat)
