"""A score as arrays, as the file of a session keeps it: whatever it holds comes back as it was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from symusic.core import ScoreTick

OF_SCORE = ("tempos", "time_signatures", "key_signatures")
OF_TRACK = ("notes", "controls", "pitch_bends", "pedals")


def score_to_arrays(score: ScoreTick) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]]]:
    """What JSON holds of a score, and its numbers.

    Returns:
        resolution, tracks and texts; and of each kind of event int64 [N, C]: the track's number, where it is a track's,
        and the columns that symusic gives.
    """
    tracks = list(score.tracks)
    about = {
        "ticks_per_quarter": score.ticks_per_quarter,
        "tracks": [[track.name, track.program, bool(track.is_drum)] for track in tracks],
        "lyrics": [[i, text.time, text.text] for i, track in enumerate(tracks) for text in track.lyrics],
        "markers": [[text.time, text.text] for text in score.markers],
    }
    arrays = {name: _table(getattr(score, name)) for name in OF_SCORE}
    for name in OF_TRACK:
        tables = [_table(getattr(track, name), i) for i, track in enumerate(tracks)]
        arrays[name] = np.concatenate(tables) if tables else np.zeros((0, 0), np.int64)
    return about, arrays


def score_from_arrays(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ScoreTick:
    """The inverse of `score_to_arrays`; raises KeyError, TypeError and ValueError where they are none."""
    from symusic.core import ScoreTick, TextMetaTick, TrackTick

    score = ScoreTick(about["ticks_per_quarter"])
    for name in OF_SCORE:
        setattr(score, name, _list_like(getattr(score, name), arrays[name]))
    lyrics = defaultdict(list)  # of each track
    for own, time, text in about["lyrics"]:
        lyrics[own].append((time, text))
    for i, (label, program, is_drum) in enumerate(about["tracks"]):
        track = TrackTick(label, program, is_drum)
        for name in OF_TRACK:
            table = arrays[name]
            setattr(track, name, _list_like(getattr(track, name), table[table[:, 0] == i, 1:]))
        for time, text in lyrics[i]:
            track.lyrics.append(TextMetaTick(time, text))
        score.tracks.append(track)
    for time, text in about["markers"]:
        score.markers.append(TextMetaTick(time, text))
    return score


def _table(events: Any, track: int | None = None) -> NDArray[np.int64]:
    """The columns of a list of symusic's, [N, C]; the track's number before them."""
    columns = [column.astype(np.int64) for column in events.numpy().values()]
    first = [] if track is None else [np.full(len(events), track, np.int64)]
    return np.stack([*first, *columns], axis=1)


def _list_like(events: Any, table: NDArray[Any]) -> Any:
    """A list of the same kind with the events of a table [N, C]."""
    types = [column.dtype for column in events.numpy().values()]
    columns = [np.ascontiguousarray(column.astype(of)) for column, of in zip(table.T, types, strict=True)]
    if any((column != given).any() for column, given in zip(columns, table.T, strict=True)):
        raise ValueError("numbers of the seed lie outside their limits")
    return type(events).from_numpy(*columns)
