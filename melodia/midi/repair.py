"""From raw note events to notes that no player can trip over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.midi.report import Findings

DRUM_CHANNEL = 9
_OVERLAP = "overlapping notes of one pitch cut"
_BALANCED_MAX = 8  # more overlapping strikes than this in one go are taken for lost note-offs


@dataclass
class FileNotes:
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

    def select(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> FileNotes:
        """The notes under a mask or at indices."""
        return FileNotes(
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
) -> FileNotes:
    """Pair note-ons and note-offs per (track, channel, pitch).

    Where strikes of one pitch overlap and have as many offs, the first strike belongs to the first off;
    where an off is missing, the next strike ends a note. Then a re-struck note ends the earlier one, two
    strikes at one time become one, a note that nothing ends is closed after a bar at most, and a note of no
    length gets a thirty-second.

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
    (order,) = (status < 0xA0).nonzero()
    pitch = data1.take(order)
    if len(order) and pitch.max() > 127:
        wild = pitch > 127
        findings.add("dropped", "note event with a pitch above 127", int(wild.sum()))
        order, pitch = order[~wild], pitch[~wild]
    if not len(order):
        return _no_notes()
    kind = status.take(order)
    # Sixteen bits hold the voices of 32 tracks, and sixteen bits are sorted several times faster.
    wide: type[np.integer[Any]] = np.uint16 if track[-1] < 32 else np.int64
    key: NDArray[Any] = track.take(order).astype(wide) << 11 | (kind & 0x0F).astype(wide) << 7 | pitch
    by_voice = key.argsort(kind="stable")
    order, kind, voice = order.take(by_voice), kind.take(by_voice), key.take(by_voice).astype(np.int64)
    time, velocity = tick.take(order), data2.take(order)
    strike = (kind >= 0x90) & (velocity > 0)

    # Clean voices go strike, off, strike, off, ...; the others are looked at one by one.
    count = len(order)
    (begins,) = (voice[1:] != voice[:-1]).nonzero()
    begins = np.concatenate(([0], begins + 1, [count]))
    sizes = begins[1:] - begins[:-1]
    begins = begins[:-1]
    odd = (np.arange(count) - begins.repeat(sizes)) & 1
    dirty = (np.add.reduceat(strike == odd, begins) > 0) | (sizes & 1 == 1)
    index = (odd == 0).nonzero()[0]
    if dirty.any():
        index = index[~dirty.repeat(sizes).take(index)]
        more, start, end = _pair_dirty(begins[dirty], sizes[dirty], time, strike, findings)
        start, end = np.concatenate((time.take(index), start)), np.concatenate((time.take(index + 1), end))
        index = np.concatenate((index, more))
        by_start = np.lexsort((start, voice.take(index)))
        index, start, end = index.take(by_start), start.take(by_start), end.take(by_start)
    else:
        start, end = time.take(index), time.take(index + 1)
    loud = np.minimum(velocity.take(index), 127).astype(np.int64)
    voice = voice.take(index)
    drums = (voice >> 7 & 0x0F) == DRUM_CHANNEL
    start, end, loud, kept = _settle(voice, start, end, loud, drums, ticks_per_quarter, end_tick, findings)
    voice, index = voice[kept], index[kept]
    return FileNotes(
        track=(voice >> 11).astype(np.int32),
        channel=(voice >> 7 & 0x0F).astype(np.int32),
        pitch=(voice & 0x7F).astype(np.int32),
        velocity=loud.astype(np.int32),
        start=start,
        end=end,
        order=order[index],
    )


def _no_notes() -> FileNotes:
    short, long = np.zeros(0, np.int32), np.zeros(0, np.int64)
    return FileNotes(short, short, short, short, long, long, long)


def _pair_dirty(
    begins: NDArray[np.intp],
    sizes: NDArray[np.intp],
    time: NDArray[np.int64],
    strike: NDArray[np.bool_],
    findings: Findings,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Index, start and end of notes in voices in which strikes and offs do not alternate; -1: no end."""
    notes: list[tuple[int, int, int]] = []
    orphans = cut = 0
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
                cut += _pair_cluster(notes, cluster, times, strikes, begin)
                cluster = []
        if cluster:
            cut += _pair_cluster(notes, cluster, times, strikes, begin, lost=True)
    findings.add("note", "note-off without a note", orphans)
    findings.add("repaired", _OVERLAP, cut)
    index, start, end = np.array(notes, np.int64).reshape(-1, 3).T
    return index, start, end


def _offs_first(times: list[int], strikes: list[bool]) -> list[int]:
    """Order of a voice's events in which notes that already sound end before others start at a tick."""
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
    notes: list[tuple[int, int, int]],
    cluster: list[int],
    times: list[int],
    strikes: list[bool],
    begin: int,
    lost: bool = False,
) -> int:
    """Append the notes (index, start, end or -1) of one stretch in which a voice is never silent.

    Returns how many were cut here because they were struck anew.
    """
    ons = [place for place in cluster if strikes[place]]
    if not lost and len(ons) <= _BALANCED_MAX:
        offs = [place for place in cluster if not strikes[place]]
        notes += [(begin + on, times[on], times[off]) for on, off in zip(ons, offs, strict=True)]
        return 0
    cut = 0
    current = -1
    restruck = False
    for place in cluster:
        if strikes[place]:
            restruck = current >= 0
            if restruck:
                notes.append((begin + current, times[current], -1 if lost else times[place]))
                cut += not lost
            current = place
        elif current >= 0 and not (restruck and times[place] == times[current]):
            notes.append((begin + current, times[current], times[place]))
            current = -1
    if current >= 0:
        notes.append((begin + current, times[current], -1))
    return cut


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
    apart = (start[1:] >= end[:-1]) | (voice[1:] != voice[:-1])
    if apart.all() and (end > start).all():
        return start, end, velocity, kept
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
        heads = np.flatnonzero(np.concatenate(([True], ~twins[:-1])))
        end, velocity = np.maximum.reduceat(end, heads), np.maximum.reduceat(velocity, heads)
        last = np.append(heads[1:], count) - 1
        voice, start, drums, kept, same = voice[last], start[last], drums[last], kept[last], same[last]
    following = np.full(len(start), np.iinfo(np.int64).max)
    following[:-1][same[:-1]] = start[1:][same[:-1]]
    over = end > following
    if over.any():
        findings.add("repaired", _OVERLAP, int((over & ~stuck[kept]).sum()))
        end = np.minimum(end, following)
    flat = end <= start
    if flat.any():
        findings.add("repaired", "notes of no length lengthened", int(flat.sum()))
        end = np.where(flat, np.minimum(start + max(1, ticks_per_quarter // 8), following), end)
    return start, end, velocity, kept
