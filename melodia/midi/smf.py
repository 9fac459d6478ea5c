"""A Standard MIDI File as arrays of events: tolerant, bounded, fast.

How it is fast without a compiler: for every byte position NumPy computes in one go how long an event would
be that starts there, if it is an ordinary one (a delta time, maybe a status, two data bytes). Python then
only hops from event to event; everything that is not ordinary takes the slow path. Times, channels and data
bytes are decoded by NumPy from the positions.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from melodia.errors import MidiError
from melodia.midi.container import ChunkWalk, TrackChunk, read_header, undo_text_mode
from melodia.midi.limits import Limits
from melodia.midi.report import Findings

TRACK_NAME, PORT, END_OF_TRACK, TEMPO, TIME_SIGNATURE, KEY_SIGNATURE = 0x03, 0x21, 0x2F, 0x51, 0x58, 0x59

LONGEST_TEXT = 256  # bytes of a meta event that are kept

_KNOWN_METAS = {0x20, PORT, END_OF_TRACK, TEMPO, 0x54, TIME_SIGNATURE, KEY_SIGNATURE, 0x7F}
_SYSTEM_DATA = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # data bytes of the system messages that have any
_RESYNC_WINDOW = 1 << 16  # positions tried after damage
_RESYNC_TOTAL = 1 << 19  # positions tried in one file
_PAD = 16


@dataclass(frozen=True)
class Meta:
    """A tempo, time signature, key signature, track name or port as the file has it."""

    track: int
    tick: int
    kind: int
    payload: bytes


@dataclass
class SmfEvents:
    """Everything in a file, undecided: N channel events in file order, track by track.

    Attributes:
        midi_format: as in the header.
        division: as in the header (negative: SMPTE).
        track: int32 [N], index of the track; tracks without events do not count.
        tick: int64 [N], ascending inside a track.
        status: uint8 [N], 0x80-0xEF.
        data1: uint8 [N]; above 127 only in damaged files.
        data2: uint8 [N]; 0 where the event has one data byte.
        metas: the meta events that a score can use, in file order.
        track_ends: int64 [tracks], tick of the last event of each track.
    """

    midi_format: int
    division: int
    track: NDArray[np.int32]
    tick: NDArray[np.int64]
    status: NDArray[np.uint8]
    data1: NDArray[np.uint8]
    data2: NDArray[np.uint8]
    metas: list[Meta]
    track_ends: NDArray[np.int64]


def parse_smf(data: bytes, name: str, findings: Findings, limits: Limits) -> SmfEvents:
    """Read every event that can be read.

    Args:
        data: the whole file.
        name: what to call the file in errors.
        findings: collects what was odd.
        limits: bounds; `events` and `tracks` are used here.

    Returns:
        the events.

    Raises:
        MidiError: no MIDI file, or over a limit.
    """
    data = undo_text_mode(data, findings)
    header = read_header(data, name, findings)
    parser = _Parser(data, name, findings, limits)
    walk = ChunkWalk(data, header, name, findings)
    chunks = 0
    while (chunk := walk.next_track()) is not None:
        chunks += 1
        walk.position = parser.read_track(chunk)
        if len(parser.bounds) - 1 > limits.tracks:
            raise MidiError(
                f"{name}: has more than {limits.tracks:,} tracks with events, more than any piece of music; "
                "merge or remove tracks"
            )
    if header.midi_format > 2:
        findings.add("repaired", "unknown format read as format 1", detail=f"format {header.midi_format}")
    if chunks != header.tracks:
        detail = f"{header.tracks:,} declared, {chunks:,} found"
        findings.add("repaired", "wrong number of tracks in the header", detail=detail)
    elif header.midi_format == 0 and chunks > 1:
        findings.add("note", "format 0 with more than one track", detail=f"{chunks} tracks")
    return parser.decode(header.midi_format, header.division)


class _Parser:
    """Event positions of all tracks of one file."""

    def __init__(self, data: bytes, name: str, findings: Findings, limits: Limits) -> None:
        self.data, self.name, self.findings, self.limits = data, name, findings, limits
        self.bytes = np.frombuffer(data + bytes(_PAD), np.uint8)
        self.lengths = _ordinary_lengths(self.bytes)
        self.never = bytes(len(self.lengths))
        self.positions = array("i")  # where each event starts, its delta time first
        self.bounds = [0]  # positions[bounds[i]:bounds[i + 1]] is track i
        self.metas: list[
            tuple[int, int, int, int]
        ] = []  # index in positions, kind, payload start, payload end
        self.single = array("q")  # indices of events with one data byte
        self.odd = array("q")  # position, delta, position of the status: deltas of more than four bytes
        self.resync_left = _RESYNC_TOTAL
        self.messages_left = limits.messages

    def read_track(self, chunk: TrackChunk) -> int:
        """Collect the events of a track; return where the next chunk should start."""
        data, findings, positions = self.data, self.findings, self.positions
        hop = positions.append
        position, end = chunk.start, chunk.end
        lengths = self.never  # hopping table: all zeros unless running status is of two data bytes
        running = 0  # last channel status
        ended = cut = False
        while position < end:
            budget_end = self._budget_end(position, end)
            while position < budget_end and (length := lengths[position]):
                hop(position)
                position += length
            if position >= budget_end:
                continue
            # The slow path: everything that is not two data bytes under a known status.
            self._count_message()
            delta, at = self._vlq(position, end)
            if at >= end:
                cut = True
                break
            status = data[at]
            if at - position > 4:
                delta = self._long_delta(delta, position)
                self.odd.extend((position, delta, at))
            if status < 0xF0:
                first = at + (status >= 0x80)
                now = status if status >= 0x80 else running
                if not now:
                    position = self._damage(position, end, "data bytes without a status skipped")
                    continue
                count = 1 if 0xC0 <= now < 0xE0 else 2
                if first + count > end:
                    cut = True
                    break
                if max(data[first : first + count]) >= 0x80:
                    if not self._follows(first + count, end, 4, lenient=True):
                        position = self._damage(position, end, "damaged event skipped")
                        continue
                    findings.add("repaired", "data byte above 127", detail=f"byte {first}")
                if count == 1:
                    self.single.append(len(positions))
                hop(position)
                running = now
                lengths = self.never if count == 1 else self.lengths
                position = first + count
            elif status in (0xFF, 0xF0, 0xF7):
                position, is_end = self._read_message(position, at, end)
                if is_end:
                    ended = True
                    if position >= end or data[position : position + 4] == b"MTrk":
                        break
                    if not self._follows(position, end, 3, explicit=True):
                        findings.add("note", "bytes after the end of a track skipped", end - position)
                        break
                    findings.add("repaired", "events after the end of a track read")
            else:
                findings.add("repaired", "system message inside a track skipped")
                hop(position)
                position = at + 1 + _SYSTEM_DATA.get(status, 0)
        if position > end:  # the last event took bytes that are not its own
            cut = True
            positions.pop()
            while self.metas and self.metas[-1][0] >= len(positions):
                self.metas.pop()
        return self._close(chunk, position, ended, cut)

    def _read_message(self, position: int, at: int, end: int) -> tuple[int, bool]:
        """Collect the meta event or system exclusive message whose status is `at`.

        Returns:
            where the next event starts; whether this one is the end mark of the track.
        """
        data, status = self.data, self.data[at]
        kind = data[at + 1] if status == 0xFF and at + 1 < end else -1
        size, start = self._vlq(at + 1 + (status == 0xFF), end)
        if start + size > end:
            if kind != END_OF_TRACK or start < end:
                word = "meta event" if status == 0xFF else "system exclusive message"
                return self._overrun(position, at, end, f"{word} longer than its track"), False
            start, size = min(start, end), 0
        elif kind > 0x0F and kind not in _KNOWN_METAS and not self._follows(start + size, end, 3):
            return self._damage(position, end, "meta event of unknown kind and length skipped"), False
        elif status == 0xF0 and size and data[start + size - 1] != 0xF7:
            size = self._sysex_size(start, size, end)
        self.metas.append((len(self.positions), kind, start, start + size))
        self.positions.append(position)
        return start + size, kind == END_OF_TRACK

    def _close(self, chunk: TrackChunk, position: int, ended: bool, cut: bool) -> int:
        """Say what was wrong with the track's end; return where the next chunk should start."""
        if cut:
            self.findings.add("dropped", "event cut off at the end of its track", detail=f"byte {chunk.end}")
        if len(self.positions) > self.bounds[-1]:
            self.bounds.append(len(self.positions))
        if not ended:
            missing = chunk.declared_end - len(self.data)
            if missing > 0 and (cut or missing < 1 << 24):
                self.findings.add(
                    "dropped", "file cut off inside a track", detail=f"{missing:,} bytes missing"
                )
            else:
                self.findings.add("repaired", "track without an end mark")
            return chunk.end
        if chunk.trusted and self.data[position : position + 4] != b"MTrk":
            return chunk.end
        if position != chunk.declared_end:
            detail = f"{chunk.declared_end - chunk.start:,} bytes declared, {position - chunk.start:,} found"
            self.findings.add("repaired", "wrong track length", detail=detail)
        return position

    def _budget_end(self, position: int, end: int) -> int:
        """A position before which the limit on events cannot be passed: an event has three bytes or more."""
        left = self.limits.events - len(self.positions)
        if left <= 0:
            raise MidiError(
                f"{self.name}: has more than {self.limits.events:,} events; split it into pieces, or thin "
                "out its controllers"
            )
        return min(end, position + 3 * left)

    def _count_message(self) -> None:
        self.messages_left -= 1
        if self.messages_left < 0:
            raise MidiError(
                f"{self.name}: has more than {self.limits.messages:,} events that are neither notes nor controllers; "
                "check that it is intact, or remove its texts and system messages"
            )

    # Damage.

    def _vlq(self, position: int, end: int) -> tuple[int, int]:
        """A variable-length number of up to ten bytes and the position after it."""
        data, value = self.data, 0
        for at in range(position, min(position + 10, end)):
            byte = data[at]
            value = value << 7 | (byte & 0x7F)
            if byte < 0x80:
                return value, at + 1
        return value, min(position + 10, end)

    def _long_delta(self, delta: int, position: int) -> int:
        """What a delta time of more than four bytes is taken for: a negative one for none."""
        if delta < 1 << 31:
            self.findings.add("repaired", "delta time of more than four bytes", detail=f"byte {position}")
            return delta
        self.findings.add("repaired", "negative delta time taken as 0", detail=f"byte {position}")
        return 0

    def _follows(
        self, position: int, end: int, count: int, *, explicit: bool = False, lenient: bool = False
    ) -> bool:
        """Whether `count` undamaged events (or the end) follow.

        `explicit`: the first must have its own status; `lenient`: a velocity above 127 is no damage.
        """
        data, lengths = self.data, self.lengths
        while count:
            if position >= end:
                return position == end
            length = lengths[position]
            if not length or explicit:
                _, at = self._vlq(position, end)
                if at + 1 >= end or at - position > 4 or (explicit and data[at] < 0x80):
                    return False
                status = data[at]
                if not length:
                    if 0xC0 <= status < 0xE0 and data[at + 1] < 0x80:
                        length = at + 2 - position
                    elif lenient and 0x80 <= status < 0xA0 and data[at + 1] < 0x80:
                        length = at + 3 - position
                    elif status in (0xFF, 0xF0, 0xF7):
                        size, start = self._vlq(at + 1 + (status == 0xFF), end)
                        if start + size > end:
                            return False
                        if status == 0xFF and data[at + 1] == END_OF_TRACK:
                            return size == 0
                        if status == 0xFF and data[at + 1] >= 0x80:
                            return False
                        length = start + size - position
                    else:
                        return False
            explicit = False
            position += length
            count -= 1
        return position <= end

    def _damage(self, position: int, end: int, what: str) -> int:
        """Look for the next place at which the track can be read again."""
        stop = min(end, position + _RESYNC_WINDOW, position + 1 + self.resync_left)
        for start in range(position + 1, stop):
            if self._follows(start, end, 5, explicit=True):
                self.resync_left -= start - position
                self.findings.add("dropped", what, detail=f"{start - position} bytes at byte {position}")
                return start
        self.resync_left -= max(0, stop - position - 1)
        detail = f"{end - position:,} bytes from byte {position}"
        self.findings.add("dropped", "rest of a damaged track", detail=detail)
        return end

    def _overrun(self, position: int, at: int, end: int, what: str) -> int:
        """Get over a message whose length leads out of the track."""
        if self.data[at] == 0xF0:
            mark = self.data.find(b"\xf7", at + 1, min(end, at + _RESYNC_WINDOW))
            if mark >= 0 and self._follows(mark + 1, end, 3):
                self.findings.add("dropped", what, detail=f"byte {at}")
                return mark + 1
        return self._damage(position, end, what)

    def _sysex_size(self, start: int, size: int, end: int) -> int:
        """Size of a system exclusive message that does not end as it should."""
        if not self._follows(start + size, end, 3):
            mark = self.data.find(b"\xf7", start, min(end, start + _RESYNC_WINDOW))
            if mark >= 0 and self._follows(mark + 1, end, 3):
                self.findings.add(
                    "repaired", "wrong length of a system exclusive message", detail=f"byte {start}"
                )
                return mark + 1 - start
        self.findings.add("note", "system exclusive message without an end mark", detail=f"byte {start}")
        return size

    # Decoding.

    def decode(self, midi_format: int, division: int) -> SmfEvents:
        """Turn the collected positions into arrays."""
        content = self.bytes
        place = np.array(self.positions, np.int64)
        bounds = np.array(self.bounds)
        sizes = bounds[1:] - bounds[:-1]
        byte = content.take(place)
        delta = (byte & 0x7F).astype(np.int64)
        at = place + 1  # becomes the position of the status
        (more,) = (byte >= 0x80).nonzero()
        for _ in range(3):
            if not len(more):
                break
            where = at.take(more)
            byte = content.take(where)
            delta[more] = delta.take(more) << 7 | (byte & 0x7F)
            at[more] = where + 1
            more = more[byte >= 0x80]
        if self.odd:
            odd = np.array(self.odd, np.int64).reshape(-1, 3)
            odd = odd[np.isin(odd[:, 0], place)]  # the others stand before events that cannot be read
            index = np.searchsorted(place, odd[:, 0])
            delta[index], at[index] = odd[:, 1], odd[:, 2]
        total = delta.cumsum()
        firsts = bounds[:-1]
        before = total.take(firsts) - delta.take(firsts)  # time that passed in the tracks before
        tick = total - before.repeat(sizes)
        track = np.arange(len(sizes), dtype=np.int32).repeat(sizes)

        status = content.take(at)
        channel = status < 0xF0
        running = status < 0x80
        if running.any():
            after_meta = int((running[1:] & ~channel[:-1]).sum())
            self.findings.add("note", "running status kept after a meta event", after_meta)
            explicit = channel & ~running
            last = np.maximum.accumulate(np.where(explicit, np.arange(len(status)), 0))
            status = status.take(last)
            first = at + explicit
        else:
            first = at + 1
        (chosen,) = channel.nonzero()
        first = first.take(chosen)
        data2 = content.take(first + 1)
        if self.single:
            data2[np.searchsorted(chosen, np.array(self.single, np.int64))] = 0
        return SmfEvents(
            midi_format=midi_format,
            division=division,
            track=track.take(chosen),
            tick=tick.take(chosen),
            status=status.take(chosen),
            data1=content.take(first),
            data2=data2,
            metas=self._metas(track, tick),
            track_ends=tick.take(bounds[1:] - 1),
        )

    def _metas(self, track: NDArray[np.int32], tick: NDArray[np.int64]) -> list[Meta]:
        """The meta events that a score can use; the others are counted."""
        found: list[Meta] = []
        text = other = exclusive = 0
        for index, kind, start, stop in self.metas:
            if kind in (TRACK_NAME, PORT, TEMPO, TIME_SIGNATURE, KEY_SIGNATURE):
                payload = self.data[start : min(stop, start + LONGEST_TEXT)]
                found.append(Meta(int(track[index]), int(tick[index]), kind, payload))
                other += kind == PORT  # says which channels are one; a score has none
            elif kind < 0:
                exclusive += 1
            elif kind < 0x10:
                text += 1
            elif kind != END_OF_TRACK:
                other += 1
        self.findings.add("not carried", "texts, lyrics and markers", text)
        self.findings.add("not carried", "system exclusive messages", exclusive)
        self.findings.add("not carried", "other meta events", other)
        return found


def _ordinary_lengths(content: NDArray[np.uint8]) -> bytes:
    """Length in bytes of the ordinary event that would start at each position, 0 where it would be none.

    Args:
        content: uint8 [N], the file and padding.

    Returns:
        N bytes. An ordinary event is a delta time of up to four bytes, a status of two data bytes or none
        (running status), and two data bytes.
    """
    low = content < 0x80
    high = ~low
    two = low.copy()  # two data bytes stand here
    two[:-1] &= low[1:]
    two[-1] = False
    status = high & ((content < 0xC0) | ((content >> 4) == 0xE))
    status[:-1] &= two[1:]
    status[-1] = False
    lengths = two.view(np.uint8) * 3 + status.view(np.uint8) * 4  # with a delta time of one byte before it
    lengths[:-1] = lengths[1:] * low[:-1]
    longer = lengths
    for _ in range(3):
        previous = longer
        longer = np.zeros_like(lengths)
        longer[:-1] = (previous[1:] + (previous[1:] > 0)) * high[:-1]
        lengths = lengths | longer
    return lengths.tobytes()
