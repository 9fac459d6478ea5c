"""The programs that play at the end of a seed, and how long each of them rests there."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from symusic.core import ScoreTick

RECENT_QUARTERS = 32.0
"""A program that is silent for the last 32 quarter notes of the seed plays no more."""


def rests_of(
    seed: ScoreTick | None, programs: Collection[int] | None, ticks_per_quarter: int
) -> dict[int, int]:
    """The longest rest between two notes of each program that plays at the seed's end, in grid ticks.

    Args:
        seed: the music before; None for none.
        programs: those that may play on, -1 for the drums; None for all.
        ticks_per_quarter: of the grid.

    Returns:
        by program; empty where fewer than two play.
    """
    if seed is None:
        return {}
    spans: dict[int, list[tuple[int, int]]] = {}
    for track in seed.tracks:
        program = -1 if track.is_drum else int(track.program)
        if len(track.notes) and (programs is None or program in programs):
            notes = track.notes.numpy()
            starts, lengths = notes["time"].tolist(), notes["duration"].tolist()
            spans.setdefault(program, []).extend(
                (start, start + length) for start, length in zip(starts, lengths, strict=True)
            )
    end, quarter = seed.end(), seed.ticks_per_quarter
    found = {}
    for program, notes_of in spans.items():
        start, stop = np.array(sorted(notes_of)).T
        heard = np.maximum.accumulate(stop)
        if heard[-1] >= end - RECENT_QUARTERS * quarter:
            longest = max(0, int((start[1:] - heard[:-1]).max(initial=0)))
            found[program] = longest * ticks_per_quarter // quarter
    return found if len(found) > 1 else {}
