"""Notes as columns, from scores and from events; and the bar lines that they lie between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.errors import MidiError

MAX_BARS = 200_000
"""Guards against absurd time signatures."""


@dataclass(frozen=True)
class Notes:
    """Notes of one piece as columns [N], in any order; times in ticks of any resolution.

    Attributes:
        onset: where each begins.
        end: where each ends.
        pitch: MIDI pitch.
        program: General MIDI program, or any other number that tells parts from each other; below 0 for percussion.
    """

    onset: NDArray[np.int64]
    end: NDArray[np.int64]
    pitch: NDArray[np.int64]
    program: NDArray[np.int64]

    def select(self, chosen: NDArray[np.bool_]) -> Notes:
        """Some of the notes, by a mask [N]."""
        return Notes(self.onset[chosen], self.end[chosen], self.pitch[chosen], self.program[chosen])


def program_of(track: Any) -> int:
    """The program of a symusic track, -1 for the drums."""
    return -1 if track.is_drum else int(track.program)


def programs_of(score: Any) -> tuple[int, ...]:
    """The programs that play in a symusic score, ascending, -1 for the drums."""
    return tuple(sorted({program_of(track) for track in score.tracks if len(track.notes)}))


def notes_of_events(events: Iterable[Sequence[int]]) -> Notes:
    """The notes of events such as `melodia.grammar.NoteEvent`: onset, duration, program, pitch, ..."""
    table = np.array([event[:4] for event in events], dtype=np.int64).reshape(-1, 4)
    return Notes(table[:, 0], table[:, 0] + table[:, 1], table[:, 3], table[:, 2])


def notes_of_score(score: Any) -> Notes:
    """The notes of a symusic score in ticks, as they lie in time; parts are told from each other by program."""
    columns: list[list[NDArray[np.int64]]] = [[], [], [], []]
    for track in score.tracks:
        notes = track.notes.numpy()
        onset = notes["time"].astype(np.int64)
        values = (
            onset,
            onset + notes["duration"],
            notes["pitch"].astype(np.int64),
            np.full(len(onset), program_of(track), dtype=np.int64),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return Notes(*(np.concatenate(column) if column else np.zeros(0, dtype=np.int64) for column in columns))


def bar_lines(signatures: list[tuple[int, int, int]], end: int, resolution: int) -> NDArray[np.int64]:
    """Where bars start, and where the last one ends [M + 1]; enough bars to hold `end`.

    Args:
        signatures: (tick, numerator, denominator); 4/4 holds until the first. A change inside a bar cuts that
            bar.
        end: the tick up to which there is music.
        resolution: ticks in a quarter note.

    Raises:
        MidiError: more than 200,000 bars.

    >>> bar_lines([(0, 3, 4), (6, 4, 4)], 12, 2).tolist()
    [0, 6, 14]
    """
    changes = sorted(signatures)
    if not changes or changes[0][0] > 0:
        changes.insert(0, (0, 4, 4))
    pieces: list[NDArray[np.int64]] = []
    total = 0
    last = 0
    for i, (tick, numerator, denominator) in enumerate(changes):
        if tick >= end and tick > 0:
            break
        length = max(1, round(4 * resolution * numerator / denominator))
        stop = min(changes[i + 1][0], end) if i + 1 < len(changes) else end
        count = max(-(-(stop - tick) // length), 0)
        total += count
        if total > MAX_BARS:
            raise MidiError(
                f"statistics read at most {MAX_BARS} bars (received more); check the time signatures"
            )
        pieces.append(tick + length * np.arange(count, dtype=np.int64))
        last = max(last, tick + length * count) if stop == end else last
    starts = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
    return np.append(starts, last)
