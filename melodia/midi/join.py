"""Cutting scores and joining them: what stands before, and what comes after."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from symusic.core import ControlChangeTick, PitchBendTick, ScoreTick, TrackTick

from melodia.checks import real_number, whole_number
from melodia.errors import ConfigError
from melodia.midi.assemble import PARAMETERS
from melodia.midi.bars import BarTable, bar_table
from melodia.midi.channels import PEDALS
from melodia.midi.convert import seconds_of
from melodia.midi.parts import (
    RECENT,
    Columns,
    first_strikes,
    programs_in,
    set_notes,
    share_out,
    stacked,
    tracks_of,
)
from melodia.midi.report import Finding, Findings
from melodia.notes import program_of

__all__ = ["bar_table", "cut_score", "end_on_bar", "join", "window"]

_LEVELS = {7: ("volume", 100), 11: ("expression", 127)}
"""What a fade leaves low: a controller, its name, and what General MIDI has in force where a file says nothing."""

HIGHEST_RESOLUTION = 32767
"""Ticks per quarter note that a MIDI file can say."""


def common_resolution(first: int, second: int) -> int:
    """Ticks per quarter note at which two resolutions lie on one grid; the first where no file could say it.

    >>> common_resolution(480, 24), common_resolution(220, 24), common_resolution(32000, 7)
    (480, 1320, 32000)
    """
    resolution = math.lcm(first, second)
    while resolution > HIGHEST_RESOLUTION and resolution % 2 == 0:
        resolution //= 2
    return first if resolution > HIGHEST_RESOLUTION or resolution % first else resolution


def cut_score(
    score: ScoreTick,
    *,
    bars: int | None = None,
    seconds: float | None = None,
    side: Literal["start", "end"] = "start",
) -> tuple[ScoreTick, list[Finding]]:
    """Keep the first or the last part of a score.

    Args:
        score: in ticks.
        bars: how many bars to keep, at least 1.
        seconds: or how many seconds, more than 0; cut to whole bars, at least one, so that the metre stays.
        side: keep the "start" or the "end".

    Returns:
        the part, a new score that begins at tick 0, and what the cut took from notes that lie across it.

    Raises:
        ConfigError: not exactly one of `bars` and `seconds`, or of the wrong kind or out of range.
        MidiError: a time signature is none, or there are more than 200,000 bars.

    >>> from melodia.midi import read_score
    >>> score, _ = read_score("midi_samples/petzold_minuet_g_major.mid")
    >>> part, findings = cut_score(score, bars=4)
    >>> len(bar_table(part)), findings
    (4, [])
    """
    if (bars is None) == (seconds is None):
        raise ConfigError("give exactly one of `bars` and `seconds`")
    if side not in ("start", "end"):
        raise ConfigError(f'`side` must be "start" or "end" (received {side!r})')
    table = bar_table(score)
    count = len(table)
    if bars is not None:
        wanted = min(whole_number("bars", bars, 1), count)
    else:
        seconds = real_number("seconds", seconds)
        if not seconds > 0:
            raise ConfigError(f"`seconds` must be more than 0 (received {seconds})")
        wanted = _bars_of_seconds(score, table, seconds, side)
    if side == "start":
        return window(score, 0, table.line(wanted))
    return window(score, table.line(count - wanted), table.end)


def _bars_of_seconds(score: ScoreTick, table: BarTable, seconds: float, side: str) -> int:
    lines = seconds_of(score, np.append(table.starts, table.end))
    lengths = lines - lines[0] if side == "start" else (lines[-1] - lines)[::-1]
    return min(len(table), max(1, int(np.searchsorted(lengths, seconds - 1e-9, "left"))))


def window(score: ScoreTick, start: int, stop: int) -> tuple[ScoreTick, list[Finding]]:
    """The music from tick `start` up to tick `stop`, moved to tick 0.

    Notes that sound at `start` begin there, notes that sound at `stop` end there; tempo, metre, key and
    controllers are those in force.

    Args:
        score: in ticks.
        start: first tick to keep.
        stop: tick after the last one to keep.

    Returns:
        a new score with all tracks that have notes in it, and what was cut.

    Raises:
        ConfigError: `start` or `stop` is no tick.

    >>> from melodia.midi import read_score
    >>> score, _ = read_score("midi_samples/petzold_minuet_g_major.mid")
    >>> table = bar_table(score)
    >>> part, _ = window(score, table.line(8), table.line(16))
    >>> len(bar_table(part))
    8
    """
    start, stop = whole_number("start", start, 0), whole_number("stop", stop, 0)
    findings = Findings()
    part = ScoreTick(score.ticks_per_quarter)
    for name in ("tempos", "time_signatures", "key_signatures"):
        events = getattr(part, name)
        for event in _in_force(list(getattr(score, name)), start, stop):
            events.append(event)
    for track in score.tracks:
        columns: Columns = track.notes.numpy()
        begin, end = (
            columns["time"].astype(np.int64),
            (columns["time"] + columns["duration"]).astype(np.int64),
        )
        inside = (end > start) & (begin < stop)
        if not inside.any():
            continue
        findings.add(
            "repaired", "notes that sound across the cut shortened", int((inside & (begin < start)).sum())
        )
        findings.add("repaired", "notes shortened to end at the cut", int((inside & (end > stop)).sum()))
        begin, end = np.maximum(begin[inside], start), np.minimum(end[inside], stop)
        copy = TrackTick(track.name, track.program, track.is_drum)
        pitch, velocity = columns["pitch"][inside], columns["velocity"][inside]
        set_notes(
            copy, {"time": begin - start, "duration": end - begin, "pitch": pitch, "velocity": velocity}
        )
        _cut_controllers(track, copy, start, stop)
        part.tracks.append(copy)
    return part, findings.to_list()


def _in_force(events: list[Any], start: int, stop: int) -> list[Any]:
    """Copies of the events in a window, the last one before it moved to its start."""
    events = sorted(events, key=lambda event: event.time)
    before = [event for event in events if event.time <= start][-1:]
    found = []
    for event in before + [event for event in events if start < event.time < stop]:
        event = event.copy()
        event.time = max(0, event.time - start)
        found.append(event)
    return found


def _cut_controllers(source: TrackTick, target: TrackTick, start: int, stop: int) -> None:
    columns = source.controls.numpy()
    order = np.argsort(columns["time"], kind="stable")
    time, number, value = (columns[name][order] for name in ("time", "number", "value"))
    early = np.flatnonzero(time <= start)
    last = {int(number[index]): int(index) for index in early}  # the last value of each controller
    last_or_parameter = sorted({*last.values(), *early[np.isin(number[early], PARAMETERS)].tolist()})
    kept = np.array(last_or_parameter + np.flatnonzero((time > start) & (time <= stop)).tolist(), np.int64)
    moved = np.maximum(0, time[kept].astype(np.int64) - start).astype(np.int32)
    target.controls = type(target.controls).from_numpy(
        moved, number[kept].astype(np.uint8), value[kept].astype(np.uint8)
    )
    columns = source.pitch_bends.numpy()
    order = np.argsort(columns["time"], kind="stable")
    time, value = columns["time"][order], columns["value"][order]
    kept = np.concatenate(
        (np.flatnonzero(time <= start)[-1:], np.flatnonzero((time > start) & (time <= stop)))
    )
    moved = np.maximum(0, time[kept].astype(np.int64) - start).astype(np.int32)
    target.pitch_bends = type(target.pitch_bends).from_numpy(moved, value[kept].astype(np.int32))


def join(
    seed: ScoreTick, continuation: ScoreTick, at_tick: int, *, keep_changes: bool = True
) -> tuple[ScoreTick, list[Finding]]:
    """Put a continuation behind a seed.

    The continuation's tick 0 comes to lie at `at_tick`. Its notes go to the seed's tracks of the same program
    (the drums to the drums), of several to the one whose notes lie nearest (`melodia.midi.parts`), or to a new
    track. Seed notes that begin at `at_tick` or later are dropped, and so are its controllers and bends there;
    notes that still sound go on until they end or the continuation strikes their pitch. Pedals are lifted and
    bends ended at the join, and volume and expression that a fade left low come back for the new notes. Tempo,
    metre and key of the seed go on.

    Args:
        seed: what stands before; its resolution is kept.
        continuation: what comes after.
        at_tick: where it begins, in ticks of the seed.
        keep_changes: take over the continuation's own changes of tempo, metre and key after its tick 0.

    Returns:
        a new score, and what was dropped or cut at the join.

    Raises:
        ConfigError: `at_tick` is no tick.
    """
    at_tick = whole_number("at_tick", at_tick, 0)
    findings = Findings()
    resolution = seed.ticks_per_quarter
    if continuation.ticks_per_quarter != resolution:
        continuation = continuation.resample(resolution, 1)
    result = seed.copy()
    _clear_after(result, at_tick, findings)
    _release(result, at_tick, findings)
    shared = []
    for tracks, notes in programs_in(continuation, at_tick):
        new = _without_overlaps(notes, findings)
        for index in tracks_of(result, program_of(tracks[0])):
            _end_at_strikes(result.tracks[index], new, findings)
        shared.append((tracks, share_out(new, result, tracks[0], at_tick, at_tick)))
    _restore(result, {index for _, homes in shared for index in homes}, at_tick, findings)
    for tracks, homes in shared:
        for index in homes:
            for track in tracks:
                _add_controllers(result.tracks[index], track, at_tick)
    if keep_changes:
        for name in ("tempos", "time_signatures", "key_signatures"):
            events = getattr(result, name)
            for event in getattr(continuation, name):
                if event.time > 0:
                    moved = event.copy()
                    moved.time += at_tick
                    events.append(moved)
    return result, findings.to_list()


def _clear_after(score: ScoreTick, tick: int, findings: Findings) -> None:
    """Remove what begins at a tick or later (in place)."""
    for name in ("tempos", "time_signatures", "key_signatures"):
        kept = [event for event in getattr(score, name) if event.time < max(tick, 1)]
        events = getattr(score, name)
        events.clear()
        for event in kept:
            events.append(event)
    for track in score.tracks:
        columns = track.notes.numpy()
        late = columns["time"] >= tick
        if late.any():
            findings.add("dropped", "seed notes after the join", int(late.sum()))
            set_notes(track, {name: values[~late] for name, values in columns.items()})
        for name in ("controls", "pitch_bends"):
            events = getattr(track, name)
            columns = events.numpy()
            kept = columns["time"] < tick
            if not kept.all():
                setattr(track, name, type(events).from_numpy(*(values[kept] for values in columns.values())))


def _release(score: ScoreTick, tick: int, findings: Findings) -> None:
    """Lift pedals that are down at a tick and let bends go back (in place): nobody would do it later."""
    for track in score.tracks:
        value: dict[int, int] = {}
        for control in sorted(track.controls, key=lambda control: control.time):
            value[control.number] = control.value
        for number in PEDALS:
            if value.get(number, 0) >= 64:
                track.controls.append(ControlChangeTick(tick, number, 0))
                findings.add("note", "pedals lifted at the join")
        bends = sorted(track.pitch_bends, key=lambda bend: bend.time)
        if bends and bends[-1].value:
            track.pitch_bends.append(PitchBendTick(tick, 0))
            findings.add("note", "pitch bends ended at the join")


def _restore(score: ScoreTick, given: set[int], tick: int, findings: Findings) -> None:
    """Bring back volume and expression where they have fallen before a tick (in place): nobody would do it later.

    Fallen is less than half of what prevailed: by General MIDI's curve that is 12 dB, so that music played as before
    would sound less than half as loud. Tracks of drums, which share a channel of the file, share what is in force.

    Args:
        score: without controllers from the tick on.
        given: the tracks that get new notes.
        tick: where these begin.
        findings: gets what is restored.
    """
    drums = [index for index, track in enumerate(score.tracks) if track.is_drum]
    alone = [[index] for index in sorted(given.difference(drums))]
    for together in alone + [drums] * (not given.isdisjoint(drums)):
        notes, controls = (
            stacked([getattr(score.tracks[index], name).numpy() for index in together])
            for name in ("notes", "controls")
        )
        order = np.argsort(controls["time"], kind="stable")
        for number, (name, default) in _LEVELS.items():
            chosen = order[controls["number"][order] == number]
            value = np.append(default, controls["value"][chosen])
            edges = np.concatenate(([0], controls["time"][chosen], [tick]))
            usual = _prevailing(value, edges, notes, RECENT * score.ticks_per_quarter)
            if value[-1] < usual / 2:
                homes = given.intersection(together)
                for index in homes:
                    score.tracks[index].controls.append(ControlChangeTick(tick, number, usual))
                findings.add("note", f"{name} restored at the join", len(homes))


def _prevailing(value: NDArray[Any], edges: NDArray[Any], notes: Columns, recent: int) -> int:
    """The median of a controller by the time of the notes under it, without those that it silences.

    Args:
        value: one after the other [K].
        edges: the ticks between which each is in force [K + 1].
        notes: all that it governs.
        recent: what counts is the last so many ticks if anything is heard there; all, if not.

    Returns:
        the median; the last value where nothing is heard.
    """
    for since in (edges[-1] - recent, 0):
        heard = np.diff(_sounded(notes, np.maximum(edges, since))) * (value > 0)
        if heard.any():
            order = np.argsort(value)
            reached = np.cumsum(heard[order])
            return int(value[order][np.searchsorted(reached, reached[-1] / 2, "right")])
    return int(value[-1])


def _sounded(notes: Columns, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
    """How long notes have sounded before ticks, all of them together."""
    onset = np.sort(notes["time"].astype(np.int64))
    end = np.sort(notes["time"].astype(np.int64) + notes["duration"])
    begun, ended = np.searchsorted(onset, ticks), np.searchsorted(end, ticks)
    since, until = (np.concatenate(([0], np.cumsum(moments))) for moments in (onset, end))
    sounded: NDArray[np.int64] = (begun * ticks - since[begun]) - (ended * ticks - until[ended])
    return sounded


def _without_overlaps(notes: Columns, findings: Findings) -> Columns:
    """Notes of one program, of which no two of one pitch overlap, by pitch and time."""
    order = np.lexsort((notes["time"], notes["pitch"]))
    notes = {name: values[order] for name, values in notes.items()}
    same, gap = np.diff(notes["pitch"]) == 0, np.diff(notes["time"])
    over = np.flatnonzero(same & (gap > 0) & (notes["duration"][:-1] > gap))
    notes["duration"][over] = gap[over]
    doubled = np.append(same & (gap == 0), False)
    findings.add("dropped", "notes doubled after the join", int(doubled.sum()))
    findings.add("repaired", "overlapping notes cut after the join", len(over))
    return {name: values[~doubled] for name, values in notes.items()}


def _end_at_strikes(track: TrackTick, new: Columns, findings: Findings) -> None:
    """End the notes of a track that sound where new ones strike their pitch (in place)."""
    columns: Columns = track.notes.numpy()
    struck = first_strikes(new)[columns["pitch"]]
    cut = columns["time"] + columns["duration"] > struck
    columns["duration"][cut] = struck[cut] - columns["time"][cut]
    findings.add("repaired", "seed notes ended by a new strike after the join", int(cut.sum()))
    set_notes(track, columns)


def _add_controllers(home: TrackTick, track: TrackTick, at_tick: int) -> None:
    """Add a track's controllers and bends behind those of another one (in place)."""
    for name in ("controls", "pitch_bends"):
        events, more = getattr(home, name), getattr(track, name).numpy()
        more["time"] = more["time"] + np.int32(at_tick)
        setattr(home, name, type(events).from_numpy(*stacked([events.numpy(), more]).values()))


def end_on_bar(score: ScoreTick, tick: int) -> tuple[ScoreTick, list[Finding]]:
    """End a score on the first bar line at or after a tick.

    Args:
        score: in ticks.
        tick: where the music should end.

    Returns:
        a new score in which nothing begins or sounds after that bar line, and what was dropped and cut.

    Raises:
        MidiError: as of `bar_table`.

    >>> from melodia.midi import read_score
    >>> score, _ = read_score("midi_samples/petzold_minuet_g_major.mid")
    >>> part, findings = end_on_bar(score, 4000)
    >>> part.end(), [finding.what for finding in findings]
    (4320, ['notes after the final bar line'])
    """
    table = bar_table(score, max(1, tick))
    result, found = window(score, 0, table.end)
    findings = Findings()
    late = sum(int((track.notes.numpy()["time"] >= table.end).sum()) for track in score.tracks)
    findings.add("dropped", "notes after the final bar line", late)
    for finding in found:
        findings.add(finding.kind, "notes cut at the final bar line", finding.count)
    return result, findings.to_list()
