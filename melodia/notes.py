"""Notes as columns, from scores and from events; and the bar lines that they lie between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
        velocity: MIDI velocity; 0 where it is not known.
    """

    onset: NDArray[np.int64]
    end: NDArray[np.int64]
    pitch: NDArray[np.int64]
    program: NDArray[np.int64]
    velocity: NDArray[np.int64] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.velocity is None:
            object.__setattr__(self, "velocity", np.zeros(len(self.onset), np.int64))

    def select(self, chosen: NDArray[np.bool_]) -> Notes:
        """Some of the notes, by a mask [N]."""
        return Notes(*(column[chosen] for column in vars(self).values()))


def program_of(track: Any) -> int:
    """The program of a symusic track or a PrettyMIDI instrument, -1 for the drums."""
    return -1 if track.is_drum else int(track.program)


LAST_VOICE = 128
"""That of the drums."""


def voice(program: int) -> int:
    """Where a program stands among those that sound at one place: ascending, the drums last."""
    return LAST_VOICE if program < 0 else program


def programs_of(score: Any) -> tuple[int, ...]:
    """The programs that play in a symusic score, ascending, -1 for the drums."""
    return tuple(sorted({program_of(track) for track in score.tracks if len(track.notes)}))


def notes_of_events(events: Iterable[Sequence[int]]) -> Notes:
    """The notes of events such as `melodia.grammar.NoteEvent`: onset, duration, program, pitch, ..."""
    table = np.array([(*event, 0)[:5] for event in events], dtype=np.int64).reshape(-1, 5)
    return Notes(table[:, 0], table[:, 0] + table[:, 1], table[:, 3], table[:, 2], table[:, 4])


def notes_of_score(score: Any) -> Notes:
    """The notes of a symusic score in ticks, as they lie in time; parts are told from each other by program."""
    return notes_of_tracks(score.tracks)


def notes_of_tracks(tracks: Iterable[Any]) -> Notes:
    """The notes of some of its tracks."""
    columns: list[list[NDArray[np.int64]]] = [[] for _ in range(5)]
    for track in tracks:
        notes = track.notes.numpy()
        onset = notes["time"].astype(np.int64)
        values = (
            onset,
            onset + notes["duration"],
            notes["pitch"].astype(np.int64),
            np.full(len(onset), program_of(track), dtype=np.int64),
            notes["velocity"].astype(np.int64),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return Notes(*(np.concatenate(column) if column else np.zeros(0, dtype=np.int64) for column in columns))


class Stretch(NamedTuple):
    """Bars of one metre: `bars` of them from tick `start` on. The last one may be cut; it ends at tick `end`."""

    start: int
    numerator: int
    denominator: int
    bars: int
    end: int

    def lines(self, resolution: int) -> NDArray[np.int64]:
        """Where they begin [bars], in ticks of so many a quarter note."""
        bar = 4 * resolution * self.numerator
        return self.start + np.arange(self.bars, dtype=np.int64) * bar // self.denominator


def metres_from_start(signatures: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Time signatures (tick, numerator, denominator) in order, the first at tick 0: 4/4 holds until there is one.

    Of several at one tick the last holds.

    >>> metres_from_start([(8, 3, 4), (8, 6, 8)])
    [(0, 4, 4), (8, 6, 8)]
    """
    metres = sorted({metre[0]: metre for metre in signatures}.values())
    if not metres or metres[0][0] > 0:
        metres.insert(0, (0, 4, 4))
    return metres


def bar_stretches(signatures: Iterable[tuple[int, int, int]], end: int, resolution: int) -> list[Stretch]:
    """The bars up to a tick, at least one: a new time signature begins a new bar, wherever it stands.

    Args:
        signatures: as of `metres_from_start`.
        end: the tick up to which there is music.
        resolution: ticks in a quarter note.

    Raises:
        MidiError: a time signature is none, or there are more than 200,000 bars.

    >>> [stretch.lines(25).tolist() for stretch in bar_stretches([(0, 3, 8)], 80, 25)]
    [[0, 37, 75]]
    """
    metres = metres_from_start(signatures)
    found: list[Stretch] = []
    total = 0
    for index, (start, top, bottom) in enumerate(metres):
        if start >= end and index > 0:
            break
        if top < 1 or bottom < 1:
            raise MidiError(f"a time signature has numbers above 0 (received {top}/{bottom}); correct it")
        last = index + 1 == len(metres) or metres[index + 1][0] >= end
        stop = max(end, start + 1) if last else metres[index + 1][0]
        whole = 4 * resolution * top  # ticks of a bar, times the denominator
        bars = max(1, -(-(stop - start) * bottom // whole))
        found.append(Stretch(start, top, bottom, bars, start + bars * whole // bottom if last else stop))
        total += bars
        if total > MAX_BARS:
            raise MidiError(f"a piece has at most {MAX_BARS} bars (received more); check the time signatures")
    return found


def beat_of(metre: tuple[int, int]) -> float:
    """A beat in quarter notes: three eighths in 6/8, 9/8, 12/8, as many sixteenths in 6/16; else the metre's unit.

    >>> [beat_of(metre) for metre in ((3, 4), (6, 8), (3, 8), (12, 16))]
    [1.0, 1.5, 0.5, 0.75]
    """
    top, bottom = metre
    return 4 / bottom * (3 if bottom >= 8 and top % 3 == 0 and top > 3 else 1)


def bar_lines(signatures: Iterable[tuple[int, int, int]], end: int, resolution: int) -> NDArray[np.int64]:
    """Where bars start, and where the last one ends [M + 1]; no bars where there is no music.

    Arguments and errors as in `bar_stretches`.

    >>> bar_lines([(0, 3, 4), (6, 4, 4)], 12, 2).tolist()
    [0, 6, 14]
    """
    if end <= 0:
        return np.zeros(1, dtype=np.int64)
    stretches = bar_stretches(signatures, end, resolution)
    starts = np.concatenate([stretch.lines(resolution) for stretch in stretches])
    return np.append(starts, stretches[-1].end)
