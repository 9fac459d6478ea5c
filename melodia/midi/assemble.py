"""Repaired notes, controllers and timeline become a score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from symusic.core import KeySignatureTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

from melodia.errors import MidiError
from melodia.midi.limits import Limits
from melodia.midi.repair import DRUM_CHANNEL, FileNotes
from melodia.midi.report import Findings
from melodia.midi.smf import LONGEST_TEXT, PORT, TRACK_NAME, SmfEvents
from melodia.midi.timeline import Squeeze, Timeline, cut_length, shorten_silence, squeeze_timeline
from melodia.wording import counted

_CHANNEL_MODE = 120  # controllers from here on are orders to the instrument, not expression

PARAMETERS = (6, 38, 96, 97, 98, 99, 100, 101)
"""Controllers that choose a parameter, such as the range of pitch bends, and set it: each counts, in their order."""

_MOST_SHARED = 1 << 20
"""Events, at most, that tracks get from others of their channel."""


def assemble(
    notes: FileNotes, events: SmfEvents, timeline: Timeline, name: str, limits: Limits, findings: Findings
) -> ScoreTick:
    """Put notes, controllers and timeline into a score, within the limits of length.

    Args:
        notes: repaired, at least one.
        events: gives controllers, programs and names.
        timeline: as read; changed in place where silence is shortened.
        name: of the file, for messages.
        limits: bounds.
        findings: collects what is cut.

    Returns:
        the score.

    Raises:
        MidiError: no note begins within the limits of length, or more parts than the limit of tracks.
    """
    longest = limits.note * timeline.ticks_per_quarter
    long = notes.end - notes.start > longest
    if long.any():
        findings.add("repaired", f"notes longer than {limits.note} quarter notes cut", int(long.sum()))
        notes.end = np.minimum(notes.end, notes.start + longest)
    squeeze = shorten_silence(notes, timeline, limits, findings)
    squeeze_timeline(timeline, squeeze)
    notes.start, notes.end = squeeze(notes.start), squeeze(notes.end)
    first = int(notes.start.min())
    notes = cut_length(notes, timeline, limits, findings)
    if not len(notes):
        raise MidiError(
            f"{name}: no note begins within the limits of {counted(limits.bars, 'bar')} and "
            f"{counted(limits.quarters, 'quarter note')} (the first one after "
            f"{counted(first / timeline.ticks_per_quarter, 'quarter note')}); raise the limits, or cut the silence "
            "before it"
        )
    end = int(notes.end.max())

    score = ScoreTick(timeline.ticks_per_quarter)
    voice = (notes.track.astype(np.int64) << 4 | notes.channel) << 7 | _programs(notes, events)
    order = np.lexsort((notes.pitch, notes.start, voice))
    groups, firsts = np.unique(voice[order], return_index=True)
    if len(groups) > limits.tracks:
        raise MidiError(
            f"{name}: has {len(groups):,} parts (a program on a channel of a track), more than the limit of "
            f"{limits.tracks:,}; remove program changes, or merge tracks"
        )
    bounds = np.append(firsts, len(order)).tolist()
    start, length = notes.start[order].astype(np.int32), (notes.end - notes.start)[order].astype(np.int32)
    pitch, velocity = notes.pitch[order].astype(np.int8), notes.velocity[order].astype(np.int8)
    names = {meta.track: _text(meta.payload) for meta in reversed(events.metas) if meta.kind == TRACK_NAME}
    for index, group in enumerate(groups.tolist()):
        drum = (group >> 7 & 0x0F) == DRUM_CHANNEL
        track = TrackTick(names.get(group >> 11, ""), group & 0x7F, drum)
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
    except UnicodeDecodeError as error:
        cut = len(payload) == LONGEST_TEXT and error.reason == "unexpected end of data"
        text = payload[: error.start].decode("utf-8") if cut else payload.decode("latin-1")
    text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())


def _homes(places: NDArray[np.int64], events: SmfEvents) -> NDArray[np.int64]:
    """Places (file track, channel) as (port, channel), [N] each: a port has sixteen channels of its own."""
    named = {
        meta.track: meta.payload[0] for meta in reversed(events.metas) if meta.kind == PORT and meta.payload
    }
    ports = np.zeros(len(events.track_ends), np.int64)
    if len(set(named.values())) > 1:  # tracks that name none are on that of the others, if there is one only
        ports[list(named)] = list(named.values())
    return ports.take(places >> 4) << 4 | places & 0x0F


def _programs(notes: FileNotes, events: SmfEvents) -> NDArray[np.int64]:
    """Program of each note, int64 [N].

    A track's own program changes count; a channel without any in its track takes those of other tracks of its port. A
    program change at the tick of a channel's first note holds for that note, too.
    """
    changes = np.flatnonzero((events.status & 0xF0) == 0xC0)
    program = np.zeros(len(notes), np.int64)
    if not len(changes):
        return program
    tick = events.tick.take(notes.order)
    value = np.minimum(events.data1.take(changes), 127).astype(np.int64)
    since = events.tick.take(changes)
    place = events.track.take(changes).astype(np.int64) << 4 | (events.status.take(changes) & 0x0F)
    of_note = notes.track.astype(np.int64) << 4 | notes.channel

    # Nearly always: one change per channel of a track, before its notes.
    size = max(int(place.max()), int(of_note.max())) + 1
    first = np.full(size, 1 << 62)
    table = np.zeros(size, np.int64)
    table[place], first[place] = value, since
    simple = (np.bincount(place, minlength=size).take(of_note) == 1) & (tick >= first.take(of_note))
    program = np.where(simple, table.take(of_note), 0)
    if simple.all():
        return program
    home_of = _homes(np.arange(size), events)
    for which in set(of_note[~simple].tolist()):
        group = np.flatnonzero(of_note == which)
        own = np.flatnonzero(place == which)
        if len(own):
            at = np.searchsorted(changes[own], notes.order[group], "right") - 1
            at[(at < 0) & (tick[group] >= since[own[0]])] = 0
        else:
            own = np.flatnonzero(home_of.take(place) == home_of[which])
            own = own[np.argsort(since[own], kind="stable")]
            at = np.searchsorted(since[own], tick[group], "right") - 1
        program[group] = np.where(at >= 0, np.append(value[own], 0)[at], 0)
    return program


def _add_controllers(
    score: ScoreTick,
    groups: NDArray[np.int64],
    note_order: NDArray[np.int64],
    voice: NDArray[np.int64],
    events: SmfEvents,
    squeeze: Squeeze,
    end: int,
    findings: Findings,
) -> None:
    """Give control changes and pitch bends to the tracks whose notes they shape."""
    chosen, control, tick = _carried(events, squeeze, end, findings)
    if not len(chosen):
        return
    first = np.minimum(events.data1.take(chosen), 127).astype(np.int32)
    second = np.minimum(events.data2.take(chosen), 127).astype(np.int32)
    owner = _owners(groups, note_order, voice, events, chosen)

    homeless = owner < 0
    if homeless.any():
        findings.add("not carried", "controllers of channels without notes", int(homeless.sum()))
        (kept,) = (~homeless).nonzero()
        first, second, control = first.take(kept), second.take(kept), control.take(kept)
        owner, tick = owner.take(kept), tick.take(kept)
        if not len(kept):
            return

    # The instruments of a PrettyMIDI have no channels; in its events all are on one.
    shared = (
        []
        if events.midi_format < 0
        else _shared(_homes(groups >> 7, events), owner, np.where(control, first, -1))
    )
    more = sum(len(events) * len(sharers) for events, sharers in shared)
    if more > _MOST_SHARED:
        findings.add("not carried", "controllers for other tracks of their channel", more)
    elif more:
        again = np.concatenate(
            [np.arange(len(owner)), *(np.tile(events, len(sharers)) for events, sharers in shared)]
        )
        first, second = first.take(again), second.take(again)
        control, tick = control.take(again), tick.take(again)
        owner = np.concatenate([owner, *(np.repeat(sharers, len(events)) for events, sharers in shared)])

    kept = _heard(owner << 8 | np.where(control, first, 128), tick)
    findings.add("note", "controllers replaced at the same tick", len(tick) - len(kept))
    owner, tick = owner.take(kept), tick.take(kept)
    order = np.lexsort((tick, owner)) if len(groups) > 1 else tick.argsort(kind="stable")
    kept = kept.take(order)
    first, second, sets = first.take(kept), second.take(kept), control.take(kept)
    tick = tick.take(order).astype(np.int32)
    bounds = np.searchsorted(owner.take(order), np.arange(len(groups) + 1)).tolist()
    bends = not sets.all()
    for index, track in enumerate(score.tracks):
        part = slice(bounds[index], bounds[index + 1])
        if part.start == part.stop:
            continue
        mine = sets[part]
        number, value, time = first[part], second[part], tick[part]
        track.controls = type(track.controls).from_numpy(
            time[mine], number[mine].astype(np.uint8), value[mine].astype(np.uint8)
        )
        if bends:
            bend = (value << 7 | number)[~mine] - 8192
            track.pitch_bends = type(track.pitch_bends).from_numpy(time[~mine], bend)


def _shared(
    homes: NDArray[np.int64], owner: NDArray[np.int64], number: NDArray[np.int32]
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Events that hold for further score tracks, and for which: a pedal, a volume is of a channel, not of a track.

    A track that sets the controller itself is left alone; parameters, such as the range of bends, count as one, since
    they are chosen by one controller and set by another. Tracks of drums share a channel in what is written, too.

    Args:
        homes: the channels of the score tracks, by ports.
        owner: score track of each event [N].
        number: of their controllers, -1 for other events [N].
    """
    shared = []
    of_event = np.where(number < 0, -1, homes.take(owner))
    number = np.where(np.isin(number, PARAMETERS), PARAMETERS[0], number)
    several = np.flatnonzero(np.bincount(homes) > 1)
    for which in several[several & 0x0F != DRUM_CHANNEL].tolist():
        (mine,) = (of_event == which).nonzero()
        (members,) = (homes == which).nonzero()
        for controller in np.unique(number.take(mine)).tolist():
            events = mine[number.take(mine) == controller]
            shared.append((events, np.setdiff1d(members, owner.take(events))))
    return shared


def _carried(
    events: SmfEvents, squeeze: Squeeze, end: int, findings: Findings
) -> tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.int64]]:
    """The control changes and pitch bends that a score holds: which events, whether control changes, their ticks."""
    family = events.status & 0xF0
    (chosen,) = (family >= 0xA0).nonzero()
    kind = family.take(chosen)
    aftertouch = (kind == 0xA0) | (kind == 0xD0)
    control = kind == 0xB0
    mode = control & (events.data1.take(chosen) >= _CHANNEL_MODE)
    tick = squeeze(events.tick.take(chosen))
    late = tick > end
    findings.add("not carried", "aftertouch", int(aftertouch.sum()))
    findings.add("not carried", "channel mode messages", int(mode.sum()))
    kept = (control | (kind == 0xE0)) & ~mode
    findings.add("not carried", "controllers after the last note", int((kept & late).sum()))
    (kept,) = (kept & ~late).nonzero()
    return chosen.take(kept), control.take(kept), tick.take(kept)


def _heard(key: NDArray[np.int64], tick: NDArray[np.int64]) -> NDArray[np.intp]:
    """Of several values of one controller (its key) at one tick only the last can be heard: the places of these.

    Those of parameters are all there. Ticks ascend already, but where a track is given the controllers of another one.
    """
    order = _stable(key)
    sorted_key, sorted_tick = key.take(order), tick.take(order)
    fresh = sorted_key[1:] != sorted_key[:-1]
    if not (fresh | (sorted_tick[1:] >= sorted_tick[:-1])).all():
        order = np.lexsort((tick, key))
        sorted_key, sorted_tick = key.take(order), tick.take(order)
    last = np.append(fresh | (sorted_tick[1:] != sorted_tick[:-1]), True)
    last |= np.isin(sorted_key & 0xFF, PARAMETERS)
    return np.sort(order[last])


def _stable(key: NDArray[np.int64]) -> NDArray[np.intp]:
    """Stable order of numbers from 0; sixteen bits are sorted several times faster."""
    return (key.astype(np.uint16) if int(key.max(initial=0)) < 1 << 16 else key).argsort(kind="stable")


def _owners(
    groups: NDArray[np.int64],
    note_order: NDArray[np.int64],
    voice: NDArray[np.int64],
    events: SmfEvents,
    chosen: NDArray[np.intp],
) -> NDArray[np.int64]:
    """Index of the score track for each event, -1 for none.

    That is the track of the next note of the same file track and channel, or else the last one; for a
    channel without notes in its file track the first score track of that channel.
    """
    place = events.track.take(chosen).astype(np.int64) << 4 | (events.status.take(chosen) & 0x0F)
    of_group = (groups >> 7).tolist()
    table = np.full(max(of_group[-1], int(place.max())) + 1, -1)
    for index in range(len(of_group) - 1, -1, -1):
        table[of_group[index]] = index
    owner = table.take(place)
    if owner.min() < 0 <= events.midi_format:
        homes = _homes(groups >> 7, events).tolist()
        of_home = {home: index for index, home in reversed(list(enumerate(homes)))}
        lost = np.unique(place[owner < 0])
        for which, home in zip(lost.tolist(), _homes(lost, events).tolist(), strict=True):
            table[which] = of_home.get(home, -1)
        owner = table.take(place)
    if len(set(of_group)) < len(of_group):
        for which in {group for group in of_group if of_group.count(group) > 1}:
            mine = place == which
            here = np.flatnonzero(voice >> 7 == which)
            here = here[np.argsort(note_order[here], kind="stable")]
            at = np.minimum(np.searchsorted(note_order[here], chosen[mine]), len(here) - 1)
            owner[mine] = np.searchsorted(groups, voice[here[at]])
    return owner


def _add_timeline(score: ScoreTick, timeline: Timeline, end: int, findings: Findings) -> None:
    """Set tempi, time signatures and key signatures up to the end of the music."""
    before = len(timeline.tempi) + len(timeline.metres) + len(timeline.keys)
    timeline.tempi = [entry for entry in timeline.tempi if entry[0] < end]
    timeline.metres = [entry for entry in timeline.metres if entry[0] < end]
    timeline.keys = [entry for entry in timeline.keys if entry[0] < end]
    after = len(timeline.tempi) + len(timeline.metres) + len(timeline.keys)
    findings.add("not carried", "tempo, metre and key changes after the last note", before - after)
    for tick, tempo in timeline.tempi:
        score.tempos.append(TempoTick(tick, mspq=tempo))
    for tick, top, bottom in timeline.metres:
        score.time_signatures.append(TimeSignatureTick(tick, top, bottom))
    for tick, sharps, mode in timeline.keys:
        score.key_signatures.append(KeySignatureTick(tick, sharps, mode))
