"""From raw note events to notes that no player can trip over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from melodia.midi.report import Findings

DRUM_CHANNEL = 9
_BALANCED_MAX = 8  # more overlapping strikes than this in one go are taken for lost note-offs


@dataclass
class Notes:
    """N notes, in no particular order.

    Attributes:
        track: int32 [N], index of the file track.
        channel: int32 [N], 0-15; 9 is drums.
        pitch: int32 [N], 0-127.
        velocity: int32 [N], 1-127.
        start: int64 [N], ticks.
        end: int64 [N], ticks, after `start`.
        order: int64 [N], index of the note-on among the events of the file.
    """

    track: NDArray[np.int32]
    channel: NDArray[np.int32]
    pitch: NDArray[np.int32]
    velocity: NDArray[np.int32]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)

    def select(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> Notes:
        """The notes under a mask or at indices."""
        return Notes(
            self.track[index],
            self.channel[index],
            self.pitch[index],
            self.velocity[index],
            self.start[index],
            self.end[index],
            self.order[index],
        )


def pair_notes(
    track: NDArray[np.int32],
    tick: NDArray[np.int64],
    status: NDArray[np.uint8],
    data1: NDArray[np.uint8],
    data2: NDArray[np.uint8],
    *,
    ticks_per_quarter: int,
    end_tick: int,
    findings: Findings,
) -> Notes:
    """Pair note-ons and note-offs per (track, channel, pitch).

    Where strikes of one pitch overlap and have as many offs, the first strike belongs to the first off; where an off is
    missing, the next strike ends a note. Then a re-struck note ends the earlier one, two strikes at one time become
    one, a note that nothing ends is closed after a bar at most, and a note of no length gets a thirty-second.

    Args:
        track: int32 [N] of channel events in file order, as are the other arrays.
        tick: int64 [N].
        status: uint8 [N], 0x80-0xEF.
        data1: uint8 [N].
        data2: uint8 [N].
        ticks_per_quarter: resolution.
        end_tick: where the file ends.
        findings: collects the repairs.

    Returns:
        the notes, sorted by (track, channel, pitch, start).
    """
    order = np.flatnonzero(status < 0xA0)
    wild = data1[order] > 127
    if wild.any():
        order = order[~wild]
        findings.add("dropped", "note event with a pitch above 127", int(wild.sum()))
    voice = track[order].astype(np.int64) << 11 | (status[order] & 0x0F).astype(np.int64) << 7 | data1[order]
    by_voice = np.argsort(voice, kind="stable")
    order, voice = order[by_voice], voice[by_voice]
    time = tick[order]
    strike = (status[order] >= 0x90) & (data2[order] > 0)
    velocity = np.minimum(data2[order], 127).astype(np.int64)

    # Clean voices go strike, off, strike, off, ...; the others are looked at one by one.
    count = len(order)
    fresh = np.ones(count, bool)
    fresh[1:] = voice[1:] != voice[:-1]
    begins = np.flatnonzero(fresh)
    sizes = np.diff(np.append(begins, count))
    place = np.arange(count) - np.repeat(begins, sizes)
    wrong = strike != (place % 2 == 0)
    dirty = (np.add.reduceat(wrong, begins) > 0) | (sizes % 2 == 1) if count else np.zeros(0, bool)
    clean = np.repeat(~dirty, sizes)
    on = np.flatnonzero(clean & (place % 2 == 0))
    parts = [(on, time[on], time[on + 1] if count else time[on], velocity[on])]
    if dirty.any():
        parts.append(_pair_dirty(begins[dirty], sizes[dirty], time, strike, velocity, findings))
    index, start, end, loud = (np.concatenate(column) for column in zip(*parts, strict=True))

    by_start = np.lexsort((start, voice[index]))
    index, start, end, loud = index[by_start], start[by_start], end[by_start], loud[by_start]
    voice = voice[index]
    drums = (voice >> 7 & 0x0F) == DRUM_CHANNEL
    start, end, loud, kept = _settle(voice, start, end, loud, drums, ticks_per_quarter, end_tick, findings)
    voice, index = voice[kept], index[kept]
    return Notes(
        track=(voice >> 11).astype(np.int32),
        channel=(voice >> 7 & 0x0F).astype(np.int32),
        pitch=(voice & 0x7F).astype(np.int32),
        velocity=loud.astype(np.int32),
        start=start,
        end=end,
        order=order[index],
    )


_Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _pair_dirty(
    begins: NDArray[np.intp],
    sizes: NDArray[np.intp],
    time: NDArray[np.int64],
    strike: NDArray[np.bool_],
    velocity: NDArray[np.int64],
    findings: Findings,
) -> _Columns:
    """Pair the voices in which strikes and offs do not alternate; an end of -1 stands for a missing off."""
    notes: list[tuple[int, int, int, int]] = []  # index, start, end, velocity
    orphans = 0
    for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True):
        times = time[begin : begin + size].tolist()
        strikes = strike[begin : begin + size].tolist()
        cluster: list[int] = []  # events since the voice was last silent
        depth = 0
        for place in _offs_first(times, strikes):
            if strikes[place]:
                depth += 1
            elif not depth:
                orphans += 1
                continue
            else:
                depth -= 1
            cluster.append(place)
            if not depth:
                notes += _pair_cluster(cluster, times, strikes, begin)
                cluster = []
        if cluster:
            notes += _pair_cluster(cluster, times, strikes, begin, lost=True)
    findings.add("dropped", "note-off without a note", orphans)
    if not notes:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty, empty
    index, start, end = np.array(notes, np.int64)[:, :3].T
    return index, start, end, velocity[index]


def _offs_first(times: list[int], strikes: list[bool]) -> list[int]:
    """Order of a voice's events in which notes that sound before a tick end before others start at that tick."""
    order: list[int] = []
    depth = place = 0
    while place < len(times):
        stop = place + 1
        while stop < len(times) and times[stop] == times[place]:
            stop += 1
        if stop - place == 1:
            order.append(place)
            depth = max(0, depth + (1 if strikes[place] else -1))
        else:
            early = [at for at in range(place, stop) if not strikes[at]][:depth]
            chosen = set(early)
            late = [at for at in range(place, stop) if at not in chosen]
            depth -= len(early)
            for at in late:
                depth = max(0, depth + (1 if strikes[at] else -1))
            order += early + late
        place = stop
    return order


def _pair_cluster(
    cluster: list[int], times: list[int], strikes: list[bool], begin: int, lost: bool = False
) -> list[tuple[int, int, int, int]]:
    """Notes (index, start, end or -1, 0) of one stretch in which a voice is never silent."""
    ons = [place for place in cluster if strikes[place]]
    if not lost and len(ons) <= _BALANCED_MAX:
        offs = [place for place in cluster if not strikes[place]]
        return [(begin + on, times[on], times[off], 0) for on, off in zip(ons, offs, strict=True)]
    notes: list[tuple[int, int, int, int]] = []
    current = -1
    restruck = False
    for place in cluster:
        if strikes[place]:
            restruck = current >= 0
            if restruck:
                notes.append((begin + current, times[current], -1 if lost else times[place], 0))
            current = place
        elif current >= 0 and not (restruck and times[place] == times[current]):
            notes.append((begin + current, times[current], times[place], 0))
            current = -1
    if current >= 0:
        notes.append((begin + current, times[current], -1, 0))
    return notes


def _settle(
    voice: NDArray[np.int64],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    velocity: NDArray[np.int64],
    drums: NDArray[np.bool_],
    ticks_per_quarter: int,
    end_tick: int,
    findings: Findings,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.intp]]:
    """Close, merge, cut and lengthen notes that are sorted by (voice, start)."""
    count = len(start)
    kept = np.arange(count)
    same = np.zeros(count, bool)  # the next note is of the same voice
    same[:-1] = voice[1:] == voice[:-1]
    stuck = end < 0
    if stuck.any():
        findings.add("repaired", "note without an end closed", int(stuck.sum()))
        longest = np.where(drums, max(1, ticks_per_quarter // 4), 4 * ticks_per_quarter)
        available = np.where(end_tick > start, end_tick - start, ticks_per_quarter)
        end = np.where(stuck, start + np.minimum(longest, available), end)
    twins = same.copy()
    twins[:-1] &= start[1:] == start[:-1]
    if twins.any():
        findings.add("repaired", "notes doubled at one time merged", int(twins.sum()))
        end, velocity = end.copy(), velocity.copy()
        groups = np.cumsum(np.concatenate(([0], ~twins[:-1])))
        heads = np.flatnonzero(np.concatenate(([True], ~twins[:-1])))
        end, velocity = np.maximum.reduceat(end, heads), np.maximum.reduceat(velocity, heads)
        last = np.flatnonzero(np.concatenate((groups[1:] != groups[:-1], [True])))
        voice, start, drums, kept, same = voice[last], start[last], drums[last], kept[last], same[last]
    following = np.full(len(start), np.iinfo(np.int64).max)
    following[:-1][same[:-1]] = start[1:][same[:-1]]
    over = end > following
    if over.any():
        findings.add("repaired", "overlapping notes of one pitch cut", int((over & ~stuck[kept]).sum()))
        end = np.minimum(end, following)
    flat = end <= start
    if flat.any():
        findings.add("repaired", "notes of no length lengthened", int(flat.sum()))
        end = np.where(flat, np.minimum(start + max(1, ticks_per_quarter // 8), following), end)
    return start, end, velocity, kept
