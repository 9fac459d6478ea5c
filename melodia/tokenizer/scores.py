"""Notes to symusic scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melodia.grammar.reader import NoteEvent
from melodia.notes import voice

if TYPE_CHECKING:
    from symusic.core import ScoreTick

DRUM_PROGRAM = -1


def columns_of(notes: Iterable[NoteEvent]) -> dict[str, NDArray[np.int64]]:
    """Notes as columns for `build_score`."""
    rows = np.array(list(notes), dtype=np.int64).reshape(-1, len(NoteEvent._fields))
    return {name: rows[:, i] for i, name in enumerate(NoteEvent._fields)}


def build_score(
    ticks_per_quarter: int,
    notes: dict[str, NDArray[np.int64]],
    tempi: Sequence[tuple[int, float]],
    metres: Sequence[tuple[int, int, int]],
) -> ScoreTick:
    """A symusic score in ticks, one track per program.

    Args:
        ticks_per_quarter: resolution.
        notes: int64 [N] each: program (-1 for the drums), onset, duration, pitch, velocity.
        tempi: (tick, quarter notes a minute).
        metres: (tick, numerator, denominator).
    """
    import symusic

    score: Any = symusic.Score(ticks_per_quarter)
    order = np.lexsort((notes["pitch"], notes["onset"]))
    sorted_notes = {key: column[order] for key, column in notes.items()}
    for program in sorted(set(notes["program"].tolist()), key=voice):
        pick = sorted_notes["program"] == program
        drum = program == DRUM_PROGRAM
        track: Any = symusic.Track(program=0 if drum else program, is_drum=drum, name="Drums" if drum else "")
        track.notes = symusic.Note.from_numpy(
            time=sorted_notes["onset"][pick].astype(np.int32),
            duration=sorted_notes["duration"][pick].astype(np.int32),
            pitch=sorted_notes["pitch"][pick].astype(np.int8),
            velocity=sorted_notes["velocity"][pick].astype(np.int8),
        )
        score.tracks.append(track)
    for tick, qpm in tempi:
        score.tempos.append(symusic.Tempo(tick, qpm=qpm))
    for tick, numerator, denominator in metres:
        score.time_signatures.append(symusic.TimeSignature(tick, numerator, denominator))
    return score
