"""New music in place of some bars of a score."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from symusic.core import ControlChangeTick, PitchBendTick, ScoreTick, TrackTick

from melodia.midi.channels import PEDALS
from melodia.midi.join import common_resolution
from melodia.midi.parts import Columns, first_strikes, programs_in, set_notes, share_out, tracks_of
from melodia.midi.report import Finding, Findings
from melodia.notes import program_of


def replace(
    score: ScoreTick,
    new: ScoreTick,
    start: int,
    stop: int,
    programs: Collection[int] | None = None,
    *,
    early: int = 0,
) -> tuple[ScoreTick, list[Finding]]:
    """Put new music in place of what begins between two ticks. All else stays as it is.

    The new notes go to the tracks of their program, the drums to the drums; of several such tracks, as of the two hands
    of a piano, to the one whose notes before and behind lie nearest (`melodia.midi.parts`); where there is none, to a
    new one. Pedals are up and bends at rest in between. Tempo, metre, key and all other controllers are the score's.

    Args:
        score: in ticks.
        new: what stands there then; its tick 0 comes to lie at `start`, and it ends at `stop` at the latest.
        start, stop: in ticks of the score.
        programs: only what these play goes, -1 for the drums; None: what any plays.
        early: a note that begins so many ticks before `start` or `stop`, at most, is meant to begin there.

    Returns:
        a new score at the score's resolution, or at a multiple of it on which the new notes lie; and what was cut.
    """
    resolution = common_resolution(score.ticks_per_quarter, new.ticks_per_quarter)
    findings = Findings()
    scale = resolution // score.ticks_per_quarter
    result = score.copy() if scale == 1 else score.resample(resolution, 1)
    start, stop, early = start * scale, stop * scale, early * scale
    new = new.resample(resolution, 1)
    for track in result.tracks:
        if programs is None or program_of(track) in programs:
            _clear(track, start, stop, early, findings)
    for tracks, notes in programs_in(new, start):
        for index in tracks_of(result, program_of(tracks[0])):
            _end_at_next(notes, result.tracks[index].notes.numpy(), stop - early)
        share_out(notes, result, tracks[0], start, stop)
    return result, findings.to_list()


def _clear(track: TrackTick, start: int, stop: int, early: int, findings: Findings) -> None:
    """Remove what begins in between, and end there what begins before (in place)."""
    columns = track.notes.numpy()
    begin = columns["time"].astype(np.int64)
    across = (begin < start - early) & (begin + columns["duration"] > start)
    columns["duration"][across] = (start - begin[across]).astype(columns["duration"].dtype)
    findings.add("repaired", "notes that sound into the new bars shortened", int(across.sum()))
    kept = (begin < start - early) | (begin >= stop - early)
    set_notes(track, {name: values[kept] for name, values in columns.items()})
    for number in PEDALS:
        pedal = _rested([(c.time, c.value) for c in track.controls if c.number == number], start, stop)
        others = [c for c in track.controls if c.number != number]
        moves = [ControlChangeTick(time, number, value) for time, value in pedal]
        track.controls = type(track.controls)(sorted(others + moves, key=lambda c: c.time))
    bends = _rested([(bend.time, bend.value) for bend in track.pitch_bends], start, stop)
    track.pitch_bends = type(track.pitch_bends)([PitchBendTick(time, value) for time, value in bends])


def _rested(changes: list[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """Changes (tick, value) of something that is at rest, 0, between two ticks, and outside as it was."""

    def in_force(tick: int) -> int:
        return next((value for time, value in reversed(changes) if time <= tick), 0)

    changes = sorted(changes, key=lambda change: change[0])
    kept = [change for change in changes if not start <= change[0] < stop]
    if len(kept) == len(changes) and not in_force(start):
        return changes
    kept.append((start, 0))
    if all(time != stop for time, _ in kept):
        kept.append((stop, in_force(stop)))
    return sorted(kept, key=lambda change: change[0])


def _end_at_next(notes: Columns, others: Columns, tick: int) -> None:
    """End notes where others with the same pitch begin from a tick on (in place)."""
    later = others["time"] >= tick
    follows = first_strikes({name: values[later] for name, values in others.items()})[notes["pitch"]]
    notes["duration"] = np.minimum(notes["duration"], np.maximum(1, follows - notes["time"]))
