"""Who plays: new notes are shared out among the tracks of their program."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick, TrackTick

from melodia.notes import program_of

Columns = dict[str, NDArray[Any]]
"""Notes as symusic gives them: time, duration, pitch and velocity, [N] each."""

RECENT = 64
"""So many quarter notes around new music, 16 bars of 4/4, say how a track plays, if it plays there."""

CROWDED = 12.0
"""A note too many at once, or across another track's, is as bad as one so many semitones farther away: an octave.

Behind a cut in 683 pieces with several tracks of one program 85 % of the notes find their own track (80 % by the mean
pitches alone; 54 % are the first track's); with 8 or 16 semitones less than half a percent fewer do.
"""

_LEGATO = 8  # notes that overlap for this part of a quarter note at most are no two voices


class _Part(NamedTuple):
    """How a track plays: its mean pitch, how many notes at once, and those (end, pitch) that sound at the start."""

    centre: float
    room: int
    held: list[tuple[int, int]]


def set_notes(track: TrackTick, columns: Columns) -> None:
    """Replace the notes of a track, sorted by (time, pitch)."""
    order = np.lexsort((columns["pitch"], columns["time"]))
    track.notes = type(track.notes).from_numpy(
        columns["time"][order].astype(np.int32),
        columns["duration"][order].astype(np.int32),
        columns["pitch"][order].astype(np.int8),
        columns["velocity"][order].astype(np.int8),
    )


def stacked(rows: list[Columns]) -> Columns:
    """Columns one behind the other; at least one."""
    return {name: np.concatenate([columns[name] for columns in rows]) for name in rows[0]}


def first_strikes(columns: Columns) -> NDArray[np.int64]:
    """The tick at which each pitch is struck first [128]; the end of all time where it is not."""
    first = np.full(128, np.iinfo(np.int64).max)
    np.minimum.at(first, columns["pitch"], columns["time"])
    return first


def tracks_of(score: ScoreTick, program: int) -> list[int]:
    """The tracks of a program, -1 for the drums."""
    return [index for index, track in enumerate(score.tracks) if program_of(track) == program]


def programs_in(score: ScoreTick, tick: int) -> Iterator[tuple[list[TrackTick], Columns]]:
    """The tracks of each program that plays in a score, and all their notes, moved behind a tick."""
    tracks: dict[int, list[TrackTick]] = {}
    for track in score.tracks:
        if len(track.notes):
            tracks.setdefault(program_of(track), []).append(track)
    for playing in tracks.values():
        columns = stacked([track.notes.numpy() for track in playing])
        columns["time"] = columns["time"] + np.int32(tick)
        yield playing, columns


def share_out(notes: Columns, score: ScoreTick, like: TrackTick, start: int, stop: int) -> list[int]:
    """Give each note to that track of its program whose notes lie nearest (in place).

    Notes that begin together go to the tracks in their order, high notes to high tracks, so that their distances from
    the mean pitches of the tracks are least. A track that sounds as many notes as it usually does, held ones too, takes
    another one only if it lies nearer by an octave: two violins share a chord, the right hand of a piano plays all of
    it. The same holds for a note that crosses one which another track holds. A track that does not play around the new
    music gets notes only if none does. A drum goes to the track that strikes it most.

    Args:
        notes: the new ones, all of one program.
        score: what stands around them; a track like `like` is added where there is none of the program.
        like: a track of the program.
        start, stop: where the new notes lie, in ticks of the score.

    Returns:
        the tracks that got notes, ascending.
    """
    places = _places(notes, score, like, start, stop)
    given: list[int] = np.unique(places).tolist()
    for index in given:
        mine = {name: values[places == index] for name, values in notes.items()}
        set_notes(score.tracks[index], stacked([score.tracks[index].notes.numpy(), mine]))
    return given


def _places(notes: Columns, score: ScoreTick, like: TrackTick, start: int, stop: int) -> NDArray[np.int64]:
    """The track of each note [N]; see `share_out`."""
    homes = tracks_of(score, program_of(like))
    if not homes:
        homes = [len(score.tracks)]
        score.tracks.append(TrackTick(like.name, like.program, like.is_drum))
    reach = RECENT * score.ticks_per_quarter
    whole = [(index, score.tracks[index].notes.numpy()) for index in homes]
    near = [(index, _between(columns, start - reach, stop + reach)) for index, columns in whole]
    played = [found for found in near if len(found[1]["time"])]
    played = played or [found for found in whole if len(found[1]["time"])] or whole[:1]
    if len(played) == 1:
        return np.full(len(notes["time"]), played[0][0])
    # From the top down; where two tracks lie alike, the first in the score is the higher one.
    played.sort(key=lambda found: -float(found[1]["pitch"].mean()))
    rows = [columns for _, columns in played]
    if like.is_drum:
        chosen = _strikers(rows)[notes["pitch"]]
    else:
        slack = score.ticks_per_quarter // _LEGATO
        order = np.lexsort((-notes["pitch"].astype(np.int64), notes["time"]))
        chosen = np.empty(len(order), np.int64)
        parts = [_part(columns, start, slack) for columns in rows]
        chosen[order] = _by_chords({name: values[order] for name, values in notes.items()}, parts, slack)
    return np.array([index for index, _ in played])[chosen]


def _between(columns: Columns, first: int, last: int) -> Columns:
    """The notes that begin between two ticks."""
    inside = (columns["time"] >= first) & (columns["time"] < last)
    return {name: values[inside] for name, values in columns.items()}


def _strikers(drums: list[Columns]) -> NDArray[np.int64]:
    """Which of several tracks of drums strikes each pitch most [128]; the nearest one where none does."""
    counts = np.array([np.bincount(columns["pitch"], minlength=128) for columns in drums])
    centres = np.array([columns["pitch"].mean() for columns in drums])
    nearest = np.abs(np.arange(128) - centres[:, None]).argmin(axis=0)
    most: NDArray[np.int64] = np.where(counts.any(axis=0), counts.argmax(axis=0), nearest)
    return most


def _part(columns: Columns, start: int, slack: int) -> _Part:
    """How a track plays. Notes count as sounding together if they overlap for more than `slack` ticks."""
    onset = columns["time"].astype(np.int64)
    end = np.maximum(onset + columns["duration"], onset + slack + 1)
    begun = np.searchsorted(np.sort(onset), onset, "right")
    ended = np.searchsorted(np.sort(end), onset + slack, "right")
    usual = np.sort(begun - ended)[len(onset) // 2]
    sounds = (onset < start) & (end > start)
    held = list(zip(end[sounds].tolist(), columns["pitch"][sounds].tolist(), strict=True))
    return _Part(float(columns["pitch"].mean()), int(usual), held)


def _by_chords(notes: Columns, parts: list[_Part], slack: int) -> list[int]:
    """The part of each note, chord by chord.

    Args:
        notes: by time, at one time from the top down.
        parts: from the top down.
        slack: as of `_part`.
    """
    time, pitches = notes["time"].tolist(), notes["pitch"].tolist()
    ends = (notes["time"].astype(np.int64) + notes["duration"]).tolist()
    away = np.abs(notes["pitch"] - np.array([part.centre for part in parts])[:, None])
    nearest, distances = away.argmin(axis=0).tolist(), away.T.tolist()
    held = [(end, pitch, place) for place, part in enumerate(parts) for end, pitch in part.held]
    chosen: list[int] = []
    for first, stop in pairwise([0, *(np.flatnonzero(np.diff(notes["time"])) + 1).tolist(), len(time)]):
        until = time[first] + slack
        held = [note for note in held if note[0] > until]
        free = [part.room for part in parts]
        low, high = [0] * len(parts), [127] * len(parts)  # beyond these a part crosses what another one holds
        for _, pitch, place in held:
            free[place] -= 1
            for above in range(place):
                low[above] = max(low[above], pitch)
            for below in range(place + 1, len(parts)):
                high[below] = min(high[below], pitch)
        chord, places = pitches[first:stop], nearest[first:stop]
        for pitch, place in zip(chord, places, strict=True):
            if places.count(place) > free[place] or not low[place] <= pitch <= high[place]:
                places = _cheapest(chord, distances[first:stop], free, low, high)
                break
        chosen += places
        held += zip(ends[first:stop], chord, places, strict=True)
    return chosen


def _cheapest(
    chord: list[int], distances: list[list[float]], free: list[int], low: list[int], high: list[int]
) -> list[int]:
    """The part of each note of a chord at the least cost. Notes and parts go from the top down, in order.

    Args:
        chord: pitches [N].
        distances: of each note, from the centre of each part [N, K].
        free: how many more notes each part has room for [K].
        low, high: between which pitches each part crosses no other [K].
    """
    least = [0.0] + [math.inf] * len(chord)  # by how many notes the parts so far take
    takes: list[list[int]] = []  # of each part, by the same number
    for part, room in enumerate(free):
        cheapest, take = least[:], [0] * len(least)
        costs = [
            row[part] + (0.0 if low[part] <= pitch <= high[part] else CROWDED)
            for pitch, row in zip(chord, distances, strict=True)
        ]
        for taken, cost in enumerate(least[:-1]):
            for more, own in enumerate(costs[taken:], 1):
                cost += own if more <= room else own + CROWDED
                if cost < cheapest[taken + more]:
                    cheapest[taken + more], take[taken + more] = cost, more
        least = cheapest
        takes.append(take)
    places: list[int] = []
    for part in reversed(range(len(free))):
        places[:0] = [part] * takes[part][len(chord) - len(places)]
    return places
