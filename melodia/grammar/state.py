"""The registers of the grammar machine."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.errors import GrammarError

NONE = -2
"""A register that holds nothing yet: no program, no pitch, no tempo, no metre."""

FREE = -1
"""MIDILike: a pitch that does not sound."""

REGISTERS = (
    "has_bars",  # 1: bars are tokens (REMI, PerTok); 0: they follow from time and metre
    "on_off",  # 1: notes end with a token of their own (MIDILike)
    "kind",  # the type of the last token, an index into Grammar.types
    "bar",  # index of the bar being written, -1 before the first
    "bar_start",  # grid ticks
    "bar_length",  # grid ticks
    "unit",  # grid ticks in a grid unit of the present metre
    "metre",  # the present TimeSig token, or NONE
    "now",  # grid ticks
    "place",  # grid units of the last Position token of this bar, or -1
    "program",  # the present program, or NONE
    "pitch",  # the pitch being described, or NONE
    "onset",  # its onset, grid ticks
    "tempo",  # the last Tempo token, or NONE
    "heard",  # end of the note that ends last, grid ticks
    "notes",  # notes begun since the start
    "bar_notes",  # notes begun in this bar
    "min_bars",  # see Constraints
    "max_bars",  # see Constraints; -1 for no limit
    "require_note_in_bar",  # 1: no next bar and no end before this bar holds a note
    "min_position",  # no event of this bar before this many grid units
)
_HEADER = len(REGISTERS)
_MARGIN = 8
"""PerTok: a note may begin this many ticks before the place that has been reached."""


class GrammarState:
    """Where a sequence stands. A value: copied, saved, passed in; every number is a whole one.

    The registers are attributes (see `REGISTERS`). `rows` holds for each program that has played one number per
    pitch: until when it sounds (grid ticks); MIDILike: since when, or `FREE`. `ends` holds the same times of the
    notes that may still sound, MIDILike: of those that do, the oldest first.

    Some registers may be set by the caller between tokens:
        min_bars, max_bars: as in `Constraints`; counted from the start of the music, so behind a seed the
            caller sets them to the seed's bars plus what is wanted.
        require_note_in_bar: 1 forbids leaving the present bar, and ending, until it holds a note; 2 asks the
            same of every bar. 1 goes back to 0 by itself.
        min_position: no event before this place of the present bar, in grid units; goes back to 0 with the
            next bar.
    """

    __slots__ = (*REGISTERS, "ends", "rows")

    has_bars: int
    on_off: int
    kind: int
    bar: int
    bar_start: int
    bar_length: int
    unit: int
    metre: int
    now: int
    place: int
    program: int
    pitch: int
    onset: int
    tempo: int
    heard: int
    notes: int
    bar_notes: int
    min_bars: int
    max_bars: int
    require_note_in_bar: int
    min_position: int
    rows: dict[int, NDArray[np.int64]]
    ends: list[int]

    def __init__(self, **registers: int) -> None:
        for name in REGISTERS:
            setattr(self, name, registers[name])
        self.rows = {}
        self.ends = []

    @property
    def position(self) -> int:
        """The place in the bar that has been reached, in grid units."""
        return max(0, self.now - self.bar_start) // self.unit

    @property
    def bar_end(self) -> int:
        """The end of the present bar, in grid ticks (0 before the first bar)."""
        return self.bar_start + self.bar_length if self.bar >= 0 else 0

    @property
    def bars(self) -> int:
        """Bars begun so far; without Bar tokens, a bar line that time has only reached begins none."""
        return self.bar + 1 if self.has_bars else self.bar + (self.now > self.bar_start)

    def row(self, program: int) -> NDArray[np.int64]:
        """The times of a program's pitches, int64 [128]; made when first asked for."""
        row = self.rows.get(program)
        if row is None:
            row = self.rows[program] = np.full(128, FREE if self.on_off else 0, dtype=np.int64)
        return row

    def heard_row(self, program: int) -> NDArray[np.int64] | None:
        """The times of a program's pitches, int64 [128], not to be written to; None where it has not played."""
        return self.rows.get(program)

    def release(
        self,
        programs: Collection[int] | None,
        pitch_range: tuple[int, int] | None,
        pitch_classes: Collection[int] | None = None,
        drum_range: tuple[int, int] | None = None,
    ) -> None:
        """MIDILike: end the notes that no token may end under these constraints; without them time would stand still.

        Args:
            programs: those that may play; None for all.
            pitch_range: lowest and highest pitch of melodic notes; None for all.
            pitch_classes: of melodic notes; None for all.
            drum_range: lowest and highest pitch of the drums; None for all.
        """
        if not self.on_off:
            return
        others = [] if pitch_classes is None else sorted(set(range(12)) - set(pitch_classes))
        for program, row in self.rows.items():
            if programs and program not in programs:
                row[:] = FREE
                continue
            low, high = (pitch_range if program >= 0 else drum_range) or (0, 127)
            row[:low] = row[high + 1 :] = FREE
            for pitch_class in others if program >= 0 else ():
                row[pitch_class::12] = FREE
        self.ends = sorted(time for row in self.rows.values() for time in row[row >= 0].tolist())

    def sounding(self) -> int:
        """How many notes sound at the place that has been reached."""
        return len(self.ends) if self.on_off else sum(end > self.now for end in self.ends)

    def copy(self, *, share_rows: bool = False) -> GrammarState:
        """An independent copy; with `share_rows` its rows are this one's, not to be written to."""
        new = object.__new__(GrammarState)
        for name in REGISTERS:
            setattr(new, name, getattr(self, name))
        new.rows = dict(self.rows)
        if not share_rows:
            new.rows = {program: row.copy() for program, row in self.rows.items()}
        new.ends = list(self.ends)
        return new

    def to_array(self) -> NDArray[np.int64]:
        """The registers as one flat int64 array, then (program, pitch, time) of each pitch that sounds.

        What no longer matters (pitches that have ended) is left out, so equal states give equal arrays.
        """
        flat: list[int] = [int(getattr(self, name)) for name in REGISTERS]
        past = FREE if self.on_off else max(self.now - _MARGIN, 0)
        for program in sorted(self.rows):
            row = self.rows[program]
            for pitch in np.flatnonzero(row > past).tolist():
                flat += [program, pitch, int(row[pitch])]
        return np.array(flat, dtype=np.int64)

    @classmethod
    def from_array(cls, array: NDArray[np.integer[Any]]) -> GrammarState:
        """The inverse of `to_array`; raises GrammarError on an array of another form."""
        flat = np.asarray(array, dtype=np.int64).reshape(-1).tolist()
        if len(flat) < _HEADER or (len(flat) - _HEADER) % 3:
            raise GrammarError(f"not a grammar state: {len(flat)} numbers; save it again with this version")
        state = cls(**dict(zip(REGISTERS, flat[:_HEADER], strict=True)))
        for i in range(_HEADER, len(flat), 3):
            program, pitch, time = flat[i : i + 3]
            if not (-1 <= program <= 127 and 0 <= pitch <= 127):
                raise GrammarError("not a grammar state: program or pitch out of range; save it again")
            state.row(program)[pitch] = time
            state.ends.append(time)
        state.ends.sort()
        return state
