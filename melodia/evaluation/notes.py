"""A score as plain arrays.

What every statistic reads, whichever library the score came from. Letters: N = notes, M = bars.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melodia.errors import MidiError
from melodia.notes import bar_lines


@dataclass(frozen=True)
class NoteTable:
    """Notes in order of onset, then pitch, with bar lines and a tempo map; times in ticks.

    Attributes:
        start: onset of each note [N].
        end: where each note ends [N].
        pitch: MIDI pitch [N].
        velocity: 1 to 127 [N].
        track: index of the track each note stands in [N].
        drum: whether each note is percussion [N].
        bar_lines: where each bar starts, and behind the last bar where it ends [M + 1].
        tempo_ticks: where each tempo starts, the first at 0.
        tempo_bpm: quarter notes a minute of each tempo.
        resolution: ticks in a quarter note.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    pitch: NDArray[np.int64]
    velocity: NDArray[np.int64]
    track: NDArray[np.int64]
    drum: NDArray[np.bool_]
    bar_lines: NDArray[np.int64]
    tempo_ticks: NDArray[np.int64]
    tempo_bpm: NDArray[np.float64]
    resolution: int

    @property
    def bars(self) -> int:
        """M, the number of bars."""
        return len(self.bar_lines) - 1

    @cached_property
    def bar_of_note(self) -> NDArray[np.int64]:
        """The index of the bar in which each note begins [N]."""
        return np.clip(
            np.searchsorted(self.bar_lines, self.start, side="right") - 1, 0, max(self.bars - 1, 0)
        )

    @cached_property
    def _tempo_seconds(self) -> NDArray[np.float64]:
        lasting = np.diff(self.tempo_ticks) * 60.0 / (self.tempo_bpm[:-1] * self.resolution)
        return np.concatenate([[0.0], np.cumsum(lasting)])

    def seconds(self, ticks: ArrayLike) -> NDArray[np.float64]:
        """When the given ticks sound, in seconds."""
        at = np.asarray(ticks)
        i = np.clip(np.searchsorted(self.tempo_ticks, at, side="right") - 1, 0, len(self.tempo_ticks) - 1)
        within = (at - self.tempo_ticks[i]) * 60.0 / (self.tempo_bpm[i] * self.resolution)
        return np.asarray(self._tempo_seconds[i] + within, dtype=np.float64)

    @cached_property
    def duration_seconds(self) -> float:
        """From the first bar line to the end of the last note."""
        return float(self.seconds(self.end.max())) if len(self.end) else 0.0

    @cached_property
    def pitched(self) -> NoteTable:
        """The same music without percussion."""
        return self.select(~self.drum) if self.drum.any() else self

    def select(self, keep: NDArray[np.bool_]) -> NoteTable:
        """The notes where `keep` [N] is true, over the same bars and tempi."""
        return NoteTable(
            self.start[keep],
            self.end[keep],
            self.pitch[keep],
            self.velocity[keep],
            self.track[keep],
            self.drum[keep],
            self.bar_lines,
            self.tempo_ticks,
            self.tempo_bpm,
            self.resolution,
        )

    def bars_between(self, first: int, last: int) -> NoteTable:
        """The notes that begin in bars first..last - 1; times and bar lines stay where they are."""
        kept = self.select((self.bar_of_note >= first) & (self.bar_of_note < last))
        return NoteTable(
            kept.start,
            kept.end,
            kept.pitch,
            kept.velocity,
            kept.track,
            kept.drum,
            self.bar_lines[first : last + 1],
            self.tempo_ticks,
            self.tempo_bpm,
            self.resolution,
        )


def note_table(score: Any) -> NoteTable:
    """The notes of a symusic score or a `pretty_midi.PrettyMIDI`; a NoteTable is returned as it is.

    Raises:
        MidiError: an object of another kind, or a score of more than 200,000 bars.
    """
    if isinstance(score, NoteTable):
        return score
    if hasattr(score, "instruments") and hasattr(score, "get_tempo_changes"):
        return _from_pretty_midi(score)
    if hasattr(score, "tracks") and hasattr(score, "ticks_per_quarter"):
        return _from_symusic(score)
    raise MidiError(f"statistics need a symusic score or a PrettyMIDI (received {type(score).__name__})")


def _from_symusic(score: Any) -> NoteTable:
    if str(score.ttype).lower() != "tick":
        score = score.to("tick")
    columns: list[list[NDArray[np.int64]]] = [[], [], [], [], [], []]
    for index, track in enumerate(score.tracks):
        notes = track.notes.numpy()
        start = notes["time"].astype(np.int64)
        length = len(start)
        values = (
            start,
            start + notes["duration"],
            notes["pitch"].astype(np.int64),
            notes["velocity"].astype(np.int64),
            np.full(length, index, dtype=np.int64),
            np.full(length, int(track.is_drum), dtype=np.int64),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    signatures = [(int(s.time), int(s.numerator), int(s.denominator)) for s in score.time_signatures]
    tempi = [(int(t.time), float(t.qpm)) for t in score.tempos]
    return _build(columns, signatures, tempi, int(score.ticks_per_quarter))


def _from_pretty_midi(midi: Any) -> NoteTable:
    resolution = int(midi.resolution)
    times, bpm = midi.get_tempo_changes()
    if not len(times):
        times, bpm = np.array([0.0]), np.array([120.0])
    marks = np.concatenate([[0.0], np.cumsum(np.diff(times) * bpm[:-1] * resolution / 60.0)])

    def ticks(seconds: ArrayLike) -> NDArray[np.int64]:
        at = np.asarray(seconds, dtype=np.float64)
        i = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 1)
        return np.rint(marks[i] + (at - times[i]) * bpm[i] * resolution / 60.0).astype(np.int64)

    columns: list[list[NDArray[np.int64]]] = [[], [], [], [], [], []]
    for index, instrument in enumerate(midi.instruments):
        notes = instrument.notes
        values = (
            ticks([note.start for note in notes]),
            ticks([note.end for note in notes]),
            np.array([note.pitch for note in notes], dtype=np.int64),
            np.array([note.velocity for note in notes], dtype=np.int64),
            np.full(len(notes), index, dtype=np.int64),
            np.full(len(notes), int(instrument.is_drum), dtype=np.int64),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    signatures = [
        (int(ticks(s.time)), int(s.numerator), int(s.denominator)) for s in midi.time_signature_changes
    ]
    tempi = [(int(tick), float(tempo)) for tick, tempo in zip(np.rint(marks), bpm, strict=True)]
    return _build(columns, signatures, tempi, resolution)


def _build(
    columns: list[list[NDArray[np.int64]]],
    signatures: list[tuple[int, int, int]],
    tempi: list[tuple[int, float]],
    resolution: int,
) -> NoteTable:
    joined = [np.concatenate(column) if column else np.zeros(0, dtype=np.int64) for column in columns]
    start, end, pitch, velocity, track, drum = joined
    order = np.lexsort((track, pitch, start))
    start, end, pitch, velocity, track, drum = (column[order] for column in joined)
    stop = int(max(end.max(), start.max() + 1)) if len(end) else 0  # a note without length is in a bar, too
    lines = bar_lines(signatures, stop, resolution)
    tempi = sorted(tempi, key=lambda change: change[0])  # of several at one tick the last holds
    if not tempi or tempi[0][0] > 0:
        tempi.insert(0, (0, 120.0))
    return NoteTable(
        start,
        np.maximum(end, start),
        pitch,
        velocity,
        track,
        drum.astype(bool),
        lines,
        np.array([tick for tick, _ in tempi], dtype=np.int64),
        np.array([bpm for _, bpm in tempi], dtype=np.float64),
        resolution,
    )
