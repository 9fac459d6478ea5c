"""A score on the grid to base token ids, in every scheme.

The ids are miditok's for the same score (its encoder is the oracle of the tests), but for PerTok, which is laid out
as REMI is, each Bar followed by its TimeSig: miditok 3.1 takes the length of a bar as numerator * denominator / 4
quarters, which is right for x/4 alone, and puts a tempo change where the note before it stands.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from melodia.grammar.tables import units_of
from melodia.notes import voice
from melodia.tokenizer.config import METRES, TokenizerConfig
from melodia.tokenizer.grid import GridScore, bar_of
from melodia.tokenizer.scores import DRUM_PROGRAM
from melodia.tokenizer.vocabularies import duration_values
from melodia.vocabulary import Vocabulary

_METRE, _TEMPO = (
    -2,
    -1,
)  # ranks of events at one place; then 2 voice for what ends, 2 voice + 1 for what begins

_Event = tuple[int, int, int]
"""Where on the grid, its rank there, which of its kind."""


class Encoder:
    """Writes the ids of scores.

    Args:
        config: of the tokenizer.
        vocabulary: its base vocabulary.
    """

    def __init__(self, config: TokenizerConfig, vocabulary: Vocabulary) -> None:
        self._config = config
        self._scheme = config.scheme
        self._index = index = vocabulary.index
        self._has_bars = "Bar_None" in index
        self._on_off = config.scheme == "MIDILike"
        units = {config.unit(denominator) for denominator in METRES}
        spans = [(units_of(value, config.positions_per_beat), value) for value in duration_values(config)]
        self._steps = {unit: [span * unit for span, _ in spans] for unit in units}
        self._shifts = [index.get(f"TimeShift_{value}", -1) for _, value in spans]
        self._durations = {
            unit: {span * unit: index.get(f"Duration_{value}", -1) for span, value in spans} for unit in units
        }

    def encode(self, grid: GridScore) -> NDArray[np.int32]:
        """Base token ids of a score on the grid, without BOS and EOS: int32 [N]."""
        ids = self._structured(grid) if self._scheme == "Structured" else self._metred(grid)
        return np.array(ids, dtype=np.int32)

    def _metred(self, grid: GridScore) -> list[int]:
        """All schemes but Structured: bars or shifts of time, then what stands at a place."""
        index, remi = self._index, self._scheme == "REMI"
        notes = _rows(grid)
        ids: list[int] = []
        now = bar_end = 0
        said = -1  # the place that the last Position token named
        bar_start, unit = 0, self._config.unit(4)
        program: int | None = None
        for place, rank, which in self._events(grid):
            while self._has_bars and place >= bar_end:
                _, numerator, denominator = bar_of(grid.metres, bar_end)
                ids += [index["Bar_None"], index[f"TimeSig_{numerator}/{denominator}"]]
                now = bar_start = bar_end
                bar_end += grid.ticks_per_quarter * 4 * numerator // denominator
                unit = self._config.unit(denominator)
            if self._has_bars and rank == _METRE:
                continue
            if remi and place != said:
                ids.append(index[f"Position_{(place - bar_start) // unit}"])
                said = place
            elif not remi and place > now:
                self._shift(ids, place - now, unit)
                now = place
            if rank == _METRE:
                _, numerator, denominator = grid.metres[which]
                ids.append(index[f"TimeSig_{numerator}/{denominator}"])
                unit = self._config.unit(denominator)
            elif rank == _TEMPO:
                ids.append(index[f"Tempo_{grid.tempi[which][1]}"])
            else:
                onset, part, pitch, velocity, duration = notes[which]
                if part != program:
                    ids.append(index[f"Program_{part}"])
                    program = part
                if self._on_off:
                    ids += self._strike(part, pitch, velocity, ends=rank % 2 == 0)
                else:
                    ids.append(index[f"{_pitch_type(part)}_{pitch}"])
                    if self._scheme == "PerTok":
                        ids.append(index[f"MicroTiming_{onset - place}"])
                    ids += [index[f"Velocity_{velocity}"], self._durations[unit][duration]]
        return ids

    def _events(self, grid: GridScore) -> list[_Event]:
        """Metres, tempi and notes in the order in which they are written."""
        places = grid.onset
        if self._scheme == "PerTok":  # a note's place is the grid point it is nearest to
            unit = self._config.unit(4)
            places = (grid.onset + unit // 2) // unit * unit
        voices = [2 * voice(program) for program in grid.program.tolist()]
        events = [(metre[0], _METRE, i) for i, metre in enumerate(grid.metres)]
        events += [(tempo[0], _TEMPO, i) for i, tempo in enumerate(grid.tempi)]
        events += [(place, voices[i] + 1, i) for i, place in enumerate(places.tolist())]
        if self._on_off:
            events += [(end, voices[i], i) for i, end in enumerate((grid.onset + grid.duration).tolist())]
        return sorted(events)

    def _strike(self, program: int, pitch: int, velocity: int, *, ends: bool) -> list[int]:
        """MIDILike: the end of a note, or its beginning."""
        kind = "Drum" if program == DRUM_PROGRAM else "Note"
        if ends:
            return [self._index[f"{kind}Off_{pitch}"]]
        return [self._index[f"{kind}On_{pitch}"], self._index[f"Velocity_{velocity}"]]

    def _shift(self, ids: list[int], ticks: int, unit: int) -> None:
        """Append the fewest time shifts, the longest first. What is less than a unit is left out."""
        steps = self._steps[unit]
        while ticks >= steps[0]:
            at = bisect_right(steps, ticks) - 1
            ids.append(self._shifts[at])
            ticks -= steps[at]

    def _structured(self, grid: GridScore) -> list[int]:
        """Structured: five tokens a note, the first one the time since the note before."""
        index, ids, now = self._index, [], 0
        unit = self._config.unit(4)
        shifts = dict(zip(self._steps[unit], self._shifts, strict=True)) | {0: index["TimeShift_0.0.1"]}
        for onset, program, pitch, velocity, duration in _rows(grid):
            ids += [
                shifts[onset - now],
                index[f"Program_{program}"],
                index[f"{_pitch_type(program)}_{pitch}"],
                index[f"Velocity_{velocity}"],
                self._durations[unit][duration],
            ]
            now = onset
        return ids


def _rows(grid: GridScore) -> list[tuple[int, int, int, int, int]]:
    """Onset, program, pitch, velocity and duration of each note."""
    columns = (grid.onset, grid.program, grid.pitch, grid.velocity, grid.duration)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _pitch_type(program: int) -> str:
    return "PitchDrum" if program == DRUM_PROGRAM else "Pitch"
