"""Tempo, metre and key of a whole file, and the taming of hours of silence."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.midi.bars import bar_line
from melodia.midi.container import DEFAULT_DIVISION
from melodia.midi.limits import LAST_TICK, Limits
from melodia.midi.repair import FileNotes
from melodia.midi.report import Findings
from melodia.midi.smf import KEY_SIGNATURE, TEMPO, TIME_SIGNATURE, Meta, SmfEvents

DEFAULT_TEMPO = 500_000  # microseconds per quarter: 120 quarters per minute
_FASTEST = 10_000  # microseconds per quarter: 6,000 quarters per minute
_FRAME_RATES = {24: 24.0, 25: 25.0, 29: 30_000 / 1001, 30: 30.0}


@dataclass
class Timeline:
    """What governs all tracks at once.

    Attributes:
        ticks_per_quarter: resolution, 1-32767.
        tempi: (tick, microseconds per quarter), the first at tick 0.
        metres: (tick, numerator, denominator), the first at tick 0.
        keys: (tick, sharps -7..7, 0 major or 1 minor); may be empty.
    """

    ticks_per_quarter: int
    tempi: list[tuple[int, int]]
    metres: list[tuple[int, int, int]]
    keys: list[tuple[int, int, int]]

    def bar_at(self, tick: int) -> tuple[int, float, int]:
        """The start of the metre at a tick, its bar length in ticks, and where the next metre starts."""
        index = max(0, bisect_right(self.metres, (tick, 1 << 20, 0)) - 1)
        start, top, bottom = self.metres[index]
        following = self.metres[index + 1][0] if index + 1 < len(self.metres) else 1 << 62
        return start, 4 * self.ticks_per_quarter * top / bottom, following


def read_timeline(events: SmfEvents, findings: Findings) -> Timeline:
    """Merge and check the tempi, time signatures and key signatures of all tracks.

    Args:
        events: as parsed.
        findings: collects what was wrong.

    Returns:
        the timeline, with 120 quarters per minute and 4/4 where the file says nothing.
    """
    tempi = _merge(events.metas, TEMPO, _tempo, "tempo", findings)
    metres = _merge(events.metas, TIME_SIGNATURE, _metre, "time signature", findings)
    keys = _merge(events.metas, KEY_SIGNATURE, _key, "key signature", findings)
    off_first = sum(meta.kind == TEMPO and meta.track > 0 for meta in events.metas)
    if events.midi_format != 2:
        findings.add("repaired", "tempo events off track 0 merged", off_first)
    if not tempi:
        findings.add("note", "no tempo: 120 quarters per minute assumed")
    if not metres:
        findings.add("note", "no time signature: 4/4 assumed")
    single = [(tick, value[0]) for tick, value in tempi]
    resolution, single = _resolution(events.division, single, findings)
    if not single or single[0][0] > 0:
        single.insert(0, (0, DEFAULT_TEMPO))
    whole = [(tick, value[0], value[1]) for tick, value in metres]
    if not whole or whole[0][0] > 0:
        whole.insert(0, (0, 4, 4))
    timeline = Timeline(resolution, _changes(single), _changes(whole), [(t, k[0], k[1]) for t, k in keys])
    timeline.keys = _changes(timeline.keys)
    return timeline


def _merge(
    metas: list[Meta], kind: int, read: object, word: str, findings: Findings
) -> list[tuple[int, tuple[int, ...]]]:
    """Valid values by tick; at one tick the lowest track wins, and within it the last value."""
    found: dict[int, tuple[int, tuple[int, ...]]] = {}
    for meta in metas:
        if meta.kind != kind:
            continue
        value, fault, repaired = read(meta.payload)  # type: ignore[operator]
        if value is None:
            findings.add("dropped", f"invalid {word}", detail=f"{fault}, tick {meta.tick}")
            continue
        if repaired:
            findings.add("repaired", f"{word} of the wrong length read", detail=f"{len(meta.payload)} bytes")
        known = found.get(meta.tick)
        if known is None or known[0] == meta.track:
            found[meta.tick] = (meta.track, value)
        elif known[1] != value:
            findings.add(
                "dropped", f"{word} of another track that contradicts the first", detail=f"tick {meta.tick}"
            )
    return sorted((tick, value) for tick, (_, value) in found.items())


_Read = tuple[tuple[int, ...] | None, str, bool]


def _tempo(payload: bytes) -> _Read:
    if len(payload) < 3:
        return None, f"{len(payload)} bytes", False
    value = int.from_bytes(payload[:3], "big")
    if value < _FASTEST:
        return None, f"{value} microseconds per quarter", False
    return (value,), "", len(payload) > 3


def _metre(payload: bytes) -> _Read:
    if len(payload) < 2:
        return None, f"{len(payload)} bytes", False
    top, power = payload[0], payload[1]
    if power > 6 or not 1 / 8 <= 4 * top / (1 << power) <= 64:
        return None, f"{top}/2^{power}", False
    return (top, 1 << power), "", len(payload) != 4


def _key(payload: bytes) -> _Read:
    if len(payload) < 2:
        return None, f"{len(payload)} bytes", False
    sharps, mode = int.from_bytes(payload[:1], "big", signed=True), payload[1]
    if not -7 <= sharps <= 7 or mode > 1:
        return None, f"{sharps} sharps, mode {mode}", False
    return (sharps, mode), "", len(payload) > 2


def _changes(values: list[Any]) -> list[Any]:
    """The entries that differ from the one before."""
    return [entry for at, entry in enumerate(values) if at == 0 or entry[1:] != values[at - 1][1:]]


def _resolution(
    division: int, tempi: list[tuple[int, int]], findings: Findings
) -> tuple[int, list[tuple[int, int]]]:
    """Ticks per quarter, and the tempi that go with it."""
    if division > 0:
        return division, tempi
    if division == 0:
        findings.add("repaired", "division 0", detail=f"{DEFAULT_DIVISION} ticks per quarter assumed")
        return DEFAULT_DIVISION, tempi
    frames, per_frame = -(division >> 8), division & 0xFF
    rate = _FRAME_RATES.get(frames)
    if rate is None or per_frame == 0:
        detail = f"{frames} frames of {per_frame} ticks per second"
        rate, per_frame = rate or 25.0, per_frame or 40
        findings.add(
            "repaired", "invalid SMPTE division", detail=f"{detail}; {rate:g} of {per_frame} assumed"
        )
    ticks = rate * per_frame  # per second
    tempo = tempi[0][1] if tempi else DEFAULT_TEMPO
    resolution = round(ticks * tempo / 1e6)
    if not 1 <= resolution <= 32767:
        resolution = min(max(1, round(ticks / 2)), 32767)
    findings.add("note", "SMPTE time converted to beats", detail=f"{ticks:.6g} ticks per second")
    findings.add("not carried", "tempo changes that do not govern SMPTE time", len(tempi) - 1)
    return resolution, [(0, round(resolution / ticks * 1e6))]


def lay_in_sequence(events: SmfEvents, findings: Findings) -> None:
    """Put the patterns of a format 2 file one after another, each on a bar line (in place)."""
    count = len(events.track_ends)
    if events.midi_format != 2 or count < 2:
        return
    findings.add("note", "format 2: patterns placed one after another", detail=f"{count} patterns")
    quarter = events.division if events.division > 0 else DEFAULT_DIVISION
    metres: dict[int, tuple[int, ...]] = {}
    for meta in events.metas:
        if meta.kind == TIME_SIGNATURE and (value := _metre(meta.payload)[0]) is not None:
            metres[meta.track] = value
    offsets = np.zeros(count, np.int64)
    metre: tuple[int, ...] = (4, 4)
    for track in range(1, count):
        metre = metres.get(track - 1, metre)
        bar = max(1, 4 * quarter * metre[0] // metre[1])
        offsets[track] = offsets[track - 1] - (-int(events.track_ends[track - 1]) // bar) * bar
    events.tick += offsets[events.track]
    events.track_ends += offsets
    events.metas = [replace(meta, tick=meta.tick + int(offsets[meta.track])) for meta in events.metas]


@dataclass
class Squeeze:
    """A map of ticks that leaves out stretches of time: everything from `starts[i]` to `stops[i]`."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    def __call__(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where ticks come to lie."""
        if not len(self.starts):
            return ticks
        removed = np.concatenate(([0], np.cumsum(self.stops - self.starts)))
        index = np.searchsorted(self.starts, ticks, "right")  # stretches that start at or before the tick
        inside = np.where(index > 0, np.maximum(0, self.stops[index - 1] - ticks), 0)
        return ticks - removed[index] + inside


def shorten_silence(notes: FileNotes, timeline: Timeline, limits: Limits, findings: Findings) -> Squeeze:
    """Find the silences that are too long, and what to leave out so that bar lines stay where they were.

    Args:
        notes: all notes, any order.
        timeline: as read.
        limits: `silence` is used here.
        findings: collects what is left out.

    Returns:
        the map; notes and timeline are not changed.
    """
    most = limits.silence * timeline.ticks_per_quarter
    by_start = np.argsort(notes.start, kind="stable")
    starts = notes.start[by_start]
    heard = np.concatenate(([0], np.maximum.accumulate(notes.end[by_start])[:-1]))
    stretches: list[tuple[int, int]] = []
    for gap in np.flatnonzero(starts - heard > most).tolist():
        quiet, loud = int(heard[gap]), int(starts[gap])
        origin, bar, following = timeline.bar_at(quiet)
        left = min(origin - int((origin - quiet) // bar * bar), following)
        origin, bar, _ = timeline.bar_at(loud)
        right = origin + int((loud - origin) // bar * bar)
        if loud - right + left - quiet >= most or right <= left:
            left, right = quiet, loud - most // 2
        stretches.append((left, right))
    if stretches:
        quarters = sum(stop - start for start, stop in stretches) / timeline.ticks_per_quarter
        findings.add(
            "repaired",
            "silence shortened",
            len(stretches),
            f"{quarters:,.0f} quarter notes of silence removed",
        )
    array = np.array(stretches, np.int64).reshape(-1, 2)
    return Squeeze(array[:, 0], array[:, 1])


def squeeze_timeline(timeline: Timeline, squeeze: Squeeze) -> None:
    """Move tempi, metres and keys (in place); of those that fall together the last one stays."""
    for name in ("tempi", "metres", "keys"):
        entries = getattr(timeline, name)
        ticks = squeeze(np.array([entry[0] for entry in entries], np.int64)).tolist()
        moved = {tick: (tick, *entry[1:]) for tick, entry in zip(ticks, entries, strict=True)}
        setattr(timeline, name, _changes(list(moved.values())))


def cut_length(notes: FileNotes, timeline: Timeline, limits: Limits, findings: Findings) -> FileNotes:
    """Drop what lies after the limit of length, and cut notes at it.

    Args:
        notes: all notes.
        timeline: gives the resolution.
        limits: `quarters` and `bars` are used here.
        findings: collects what is dropped.

    Returns:
        the notes that stay.
    """
    last = min(limits.quarters * timeline.ticks_per_quarter, LAST_TICK)
    last = min(last, bar_line(timeline.metres, timeline.ticks_per_quarter, limits.bars))
    late = notes.start >= last
    if late.any():
        detail = f"after {last / timeline.ticks_per_quarter:,.0f} quarter notes"
        findings.add("dropped", "notes beyond the length limit", int(late.sum()), detail)
        notes = notes.select(~late)
    notes.end = np.minimum(notes.end, last)
    return notes
