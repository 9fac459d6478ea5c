"""Repaired notes, controllers and timeline become a score."""

from __future__ import annotations

import numpy as np
import symusic
from numpy.typing import NDArray

from melodia.midi.limits import Limits
from melodia.midi.repair import DRUM_CHANNEL, Notes
from melodia.midi.report import Findings
from melodia.midi.smf import TRACK_NAME, SmfEvents
from melodia.midi.timeline import Squeeze, Timeline, cut_length, shorten_silence, squeeze_timeline

_CHANNEL_MODE = 120  # controllers from here on are orders to the instrument, not expression


def assemble(
    notes: Notes, events: SmfEvents, timeline: Timeline, limits: Limits, findings: Findings
) -> symusic.Score:
    """Put notes, controllers and timeline into a score, within the limits of length.

    Args:
        notes: repaired, at least one.
        events: gives controllers, programs and names.
        timeline: as read; changed in place where silence is shortened.
        limits: bounds.
        findings: collects what is cut.

    Returns:
        the score.
    """
    longest = limits.note * timeline.ticks_per_quarter
    long = notes.end - notes.start > longest
    if long.any():
        findings.add("repaired", f"notes longer than {limits.note} quarter notes cut", int(long.sum()))
        notes.end = np.minimum(notes.end, notes.start + longest)
    squeeze = shorten_silence(notes, timeline, limits, findings)
    squeeze_timeline(timeline, squeeze)
    notes.start, notes.end = squeeze(notes.start), squeeze(notes.end)
    notes = cut_length(notes, timeline, limits, findings)
    end = int(notes.end.max())

    score = symusic.Score(timeline.ticks_per_quarter)
    voice = (notes.track.astype(np.int64) << 4 | notes.channel) << 7 | _programs(notes, events)
    order = np.lexsort((notes.pitch, notes.start, voice))
    groups, firsts = np.unique(voice[order], return_index=True)
    bounds = np.append(firsts, len(order)).tolist()
    start, length = notes.start[order].astype(np.int32), (notes.end - notes.start)[order].astype(np.int32)
    pitch, velocity = notes.pitch[order].astype(np.int8), notes.velocity[order].astype(np.int8)
    names = {meta.track: _text(meta.payload) for meta in reversed(events.metas) if meta.kind == TRACK_NAME}
    for index, group in enumerate(groups.tolist()):
        drum = (group >> 7 & 0x0F) == DRUM_CHANNEL
        track = symusic.Track(
            name=names.get(group >> 11, ""), program=group & 0x7F, is_drum=drum, ttype="tick"
        )
        part = slice(bounds[index], bounds[index + 1])
        track.notes = type(track.notes).from_numpy(start[part], length[part], pitch[part], velocity[part])
        score.tracks.append(track)
    _add_controllers(score, groups, notes.order, voice, events, squeeze, end, findings)
    _add_timeline(score, timeline, end, findings)
    return score


def _text(payload: bytes) -> str:
    """A track name that can be printed, stored and written again."""
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        text = payload.decode("latin-1")
    text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())


def _programs(notes: Notes, events: SmfEvents) -> NDArray[np.int64]:
    """Program of each note, int64 [N].

    A track's own program changes count; a channel without any in its track takes those of other tracks. A program
    change at the tick of a channel's first note holds for that note, too.
    """
    changes = np.flatnonzero((events.status & 0xF0) == 0xC0)
    program = np.zeros(len(notes), np.int64)
    if not len(changes):
        return program
    value = np.minimum(events.data1[changes], 127).astype(np.int64)
    channel = (events.status[changes] & 0x0F).astype(np.int64)
    place = events.track[changes].astype(np.int64) << 4 | channel
    of_note = notes.track.astype(np.int64) << 4 | notes.channel
    by_place = np.argsort(of_note, kind="stable")
    places, firsts = np.unique(of_note[by_place], return_index=True)
    for which, group in zip(places.tolist(), np.split(by_place, firsts[1:]), strict=True):
        own = np.flatnonzero(place == which)
        if len(own) == 1:
            first = int(changes[own[0]])
            early = events.tick[notes.order[group]] < events.tick[first]
            program[group] = np.where(early & (notes.order[group] < first), 0, value[own[0]])
        elif len(own):
            at = np.searchsorted(changes[own], notes.order[group], "right") - 1
            tick = events.tick[notes.order[group]]
            at = np.where((at < 0) & (tick >= events.tick[changes[own[0]]]), 0, at)
            program[group] = np.where(at >= 0, value[own][np.maximum(at, 0)], 0)
        else:
            others = np.flatnonzero(channel == which & 0x0F)
            if len(others):
                by_tick = others[np.argsort(events.tick[changes[others]], kind="stable")]
                at = (
                    np.searchsorted(events.tick[changes[by_tick]], events.tick[notes.order[group]], "right")
                    - 1
                )
                program[group] = np.where(at >= 0, value[by_tick][np.maximum(at, 0)], 0)
    return program


def _add_controllers(
    score: symusic.Score,
    groups: NDArray[np.int64],
    note_order: NDArray[np.int64],
    voice: NDArray[np.int64],
    events: SmfEvents,
    squeeze: Squeeze,
    end: int,
    findings: Findings,
) -> None:
    """Give control changes and pitch bends to the tracks whose notes they shape."""
    family = events.status & 0xF0
    findings.add("not carried", "aftertouch", int(((family == 0xA0) | (family == 0xD0)).sum()))
    chosen = np.flatnonzero((family == 0xB0) | (family == 0xE0))
    if not len(chosen):
        return
    control = family[chosen] == 0xB0
    mode = control & (events.data1[chosen] >= _CHANNEL_MODE)
    findings.add("not carried", "channel mode messages", int(mode.sum()))
    chosen, control = chosen[~mode], control[~mode]
    tick = squeeze(events.tick[chosen])
    late = tick > end
    findings.add("dropped", "controllers after the last note", int(late.sum()))
    chosen, control, tick = chosen[~late], control[~late], tick[~late]
    number = np.where(control, events.data1[chosen], 128).astype(np.int64)
    owner = _owners(groups, note_order, voice, events, chosen)
    findings.add("dropped", "controllers of channels without notes", int((owner < 0).sum()))

    # Of several values of one controller at one tick only the last can be heard.
    kept = np.flatnonzero(owner >= 0)
    order = kept[np.lexsort((chosen[kept], number[kept], tick[kept], owner[kept]))]
    key = owner[order] << 8 | number[order]
    last = np.ones(len(order), bool)
    last[:-1] = (key[1:] != key[:-1]) | (tick[order][1:] != tick[order][:-1])
    findings.add("dropped", "controllers replaced at the same tick", int((~last).sum()))
    order = order[last]
    for index in np.unique(owner[order]).tolist():
        track = score.tracks[index]
        part = order[owner[order] == index]
        sets = part[number[part] < 128]
        if len(sets):
            value = np.minimum(events.data2[chosen[sets]], 127)
            time = tick[sets].astype(np.int32)
            track.controls = type(track.controls).from_numpy(time, number[sets].astype(np.uint8), value)
        bends = part[number[part] == 128]
        if len(bends):
            fine = np.minimum(events.data1[chosen[bends]], 127).astype(np.int32)
            coarse = np.minimum(events.data2[chosen[bends]], 127).astype(np.int32)
            time = tick[bends].astype(np.int32)
            track.pitch_bends = type(track.pitch_bends).from_numpy(time, (coarse << 7 | fine) - 8192)


def _owners(
    groups: NDArray[np.int64],
    note_order: NDArray[np.int64],
    voice: NDArray[np.int64],
    events: SmfEvents,
    chosen: NDArray[np.intp],
) -> NDArray[np.int64]:
    """Index of the score track for each event, -1 for none.

    That is the track of the next note of the same file track and channel, or else the last one; for a channel without
    notes in its file track the first score track of that channel.
    """
    by_order = np.argsort(note_order, kind="stable")
    note_order, voice = note_order[by_order], voice[by_order]
    place = (events.track[chosen].astype(np.int64) << 4) | (events.status[chosen] & 0x0F)
    owner = np.full(len(chosen), -1, np.int64)
    for which in np.unique(place).tolist():
        mine = place == which
        here = np.flatnonzero(voice >> 7 == which)
        if len(here):
            at = np.minimum(np.searchsorted(note_order[here], chosen[mine]), len(here) - 1)
            owner[mine] = np.searchsorted(groups, voice[here[at]])
        else:
            same_channel = np.flatnonzero((groups >> 7 & 0x0F) == which & 0x0F)
            if len(same_channel):
                owner[mine] = same_channel[0]
    return owner


def _add_timeline(score: symusic.Score, timeline: Timeline, end: int, findings: Findings) -> None:
    """Set tempi, time signatures and key signatures up to the end of the music."""
    before = len(timeline.tempi) + len(timeline.metres) + len(timeline.keys)
    timeline.tempi = [entry for entry in timeline.tempi if entry[0] < end]
    timeline.metres = [entry for entry in timeline.metres if entry[0] < end]
    timeline.keys = [entry for entry in timeline.keys if entry[0] < end]
    after = len(timeline.tempi) + len(timeline.metres) + len(timeline.keys)
    findings.add("dropped", "tempo, metre and key changes after the last note", before - after)
    for tick, tempo in timeline.tempi:
        score.tempos.append(symusic.Tempo(tick, mspq=tempo, ttype="tick"))
    for tick, top, bottom in timeline.metres:
        score.time_signatures.append(symusic.TimeSignature(tick, top, bottom, ttype="tick"))
    for tick, sharps, mode in timeline.keys:
        score.key_signatures.append(symusic.KeySignature(tick, sharps, mode, ttype="tick"))
