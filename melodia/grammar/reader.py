"""Tokens to notes, one at a time, without a MIDI library.

The reader follows a stream of base token ids and gives a note as soon as its last token has come. It takes any
sequence: a token that makes no sense where it stands is passed over and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from melodia.grammar.tables import Op, Tables, compile_tables
from melodia.vocabulary import Vocabulary


class NoteEvent(NamedTuple):
    """A note in grid ticks; program -1 is the drums."""

    onset: int
    duration: int
    program: int
    pitch: int
    velocity: int


@dataclass
class TokenReader:
    """Reads tokens; `feed` gives the notes that a token completes.

    Attributes:
        vocabulary: what the ids stand for.
        tempi: (tick, quarter notes a minute) so far.
        metres: (tick, numerator, denominator) so far.
        bar_starts: tick of each bar's first line so far.

    >>> from melodia.tokenizer import Tokenizer, TokenizerConfig
    >>> vocabulary = Tokenizer(TokenizerConfig()).vocabulary
    >>> reader = TokenReader(vocabulary)
    >>> line = "Bar_None TimeSig_4/4 Position_12 Program_0 Pitch_60 Velocity_63 Duration_1.0.12"
    >>> [note for token in line.split() for note in reader.feed(vocabulary.index[token])]
    [NoteEvent(onset=48, duration=48, program=0, pitch=60, velocity=63)]
    """

    vocabulary: Vocabulary
    tempi: list[tuple[int, float]] = field(default_factory=list)
    metres: list[tuple[int, int, int]] = field(default_factory=list)
    bar_starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tables: Tables = compile_tables(self.vocabulary)
        self._now = 0
        self._bar = -1
        self._bar_start = 0
        self._bar_length = self._tables.default_bar
        self._unit = self._tables.default_unit
        self._program: int | None = None
        self._drum = False
        self._pitch: int | None = None
        self._onset = 0
        self._velocity: int | None = None
        self._open: dict[tuple[int, int], tuple[int, int]] = {}

    @property
    def ticks_per_quarter(self) -> int:
        """Grid ticks in a quarter note."""
        return self._tables.ticks_per_quarter

    @property
    def now(self) -> int:
        """The place that has been reached, in grid ticks."""
        return self._now

    @property
    def bar_end(self) -> int:
        """The end of the bar that is being read, in grid ticks."""
        return self._bar_start + self._bar_length if self._bar >= 0 else 0

    def read(self, ids: Iterable[int]) -> list[NoteEvent]:
        """Feed many tokens and finish: all their notes, in the order of their tokens."""
        notes: list[NoteEvent] = []
        for token in ids:
            notes.extend(self.feed(int(token)))
        notes.extend(self.finish())
        return notes

    def finish(self) -> list[NoteEvent]:
        """Close the notes that still sound (MIDILike alone has such notes) at the present place."""
        notes = [
            NoteEvent(onset, self._now - onset, program, pitch, velocity)
            for (program, pitch), (onset, velocity) in self._open.items()
            if self._now > onset
        ]
        self._open.clear()
        return notes

    def feed(self, token: int) -> list[NoteEvent]:
        """Read one token, base or BPE; the notes that it completes.

        Raises:
            IndexError: the id is not in the vocabulary.
        """
        parts = self.vocabulary.expansions.get(token)
        if parts is None:
            note = self._feed_base(token)
            return [] if note is None else [note]
        return [note for part in parts if (note := self._feed_base(part)) is not None]

    def _feed_base(self, token: int) -> NoteEvent | None:
        tables = self._tables
        op, value = tables.ops[token], tables.values[token]
        if op == Op.PITCH or op == Op.DRUM:
            self._pitch = None
            if self._program is not None and (op == Op.DRUM) == (self._program < 0):
                self._pitch, self._velocity, self._onset = value, None, self._now
        elif op == Op.VELOCITY:
            if self._pitch is not None and self._velocity is None:
                if tables.on_off:
                    self._open.setdefault((self._program or 0, self._pitch), (self._now, value))
                    self._pitch = None
                else:
                    self._velocity = value
        elif op == Op.MICRO:
            self._onset = max(0, self._now + value)
        elif op == Op.DURATION:
            pitch, velocity = self._pitch, self._velocity
            self._pitch = self._velocity = None
            if pitch is not None and velocity is not None and self._program is not None:
                return NoteEvent(self._onset, value * self._unit, self._program, pitch, velocity)
        elif op == Op.NOTE_OFF or op == Op.DRUM_OFF:
            found = None if self._program is None else self._open.pop((self._program, value), None)
            if found is not None and found[0] < self._now:
                return NoteEvent(found[0], self._now - found[0], self._program or 0, value, found[1])
        elif op == Op.PROGRAM:
            self._program = value
        elif op == Op.TEMPO:
            self.tempi.append((self._now, value / 100))
        elif op == Op.BAR:
            self._begin_bar(self._bar_start + self._bar_length if self._bar >= 0 else 0)
            self._now = self._bar_start
        elif op == Op.TIME_SIGNATURE:
            self._change_metre(token)
        elif op == Op.POSITION:
            self._now = self._bar_start + value * self._unit
        elif op == Op.TIME_SHIFT:
            self._now += value * self._unit
            self._follow_bars()
        return None

    def _begin_bar(self, start: int) -> None:
        self._bar += 1
        self._bar_start = start
        self.bar_starts.append(start)

    def _follow_bars(self) -> None:
        """Without Bar tokens, the bars follow from time and metre."""
        if self._tables.has_bars:
            return
        if self._bar < 0:
            self._begin_bar(0)
        while self._now >= self._bar_start + self._bar_length:
            self._begin_bar(self._bar_start + self._bar_length)

    def _change_metre(self, token: int) -> None:
        numerator, denominator = self._tables.metres[token]
        self._follow_bars()
        self._bar_length = self._tables.bar_lengths[token]
        self._unit = self._tables.units[token]
        if not self.metres or self.metres[-1][1:] != (numerator, denominator):
            self.metres.append((self._bar_start, numerator, denominator))
