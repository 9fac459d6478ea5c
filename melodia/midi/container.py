"""The outside of a MIDI file: what a file is at all, its header, its chunks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from melodia.errors import MidiError
from melodia.midi.report import Findings

_SEARCH = 1 << 16  # bytes in which a header may hide behind something else
DEFAULT_DIVISION = 480
_MOST_CHUNKS = 10_000

_SIGNATURES: list[tuple[bytes, str, str]] = [
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull` to fetch the file",
    ),
    (b"\x89PNG", "a PNG picture, not MIDI", ""),
    (b"\xff\xd8\xff", "a JPEG picture, not MIDI", ""),
    (b"GIF8", "a GIF picture, not MIDI", ""),
    (b"%PDF", "a PDF document, not MIDI", "export MIDI from the notation program"),
    (b"PK\x03\x04", "a ZIP archive (or compressed MusicXML), not MIDI", "unpack it, or export MIDI"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with `gunzip` first"),
    (b"BZh", "compressed with bzip2", "unpack it with `bunzip2` first"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it with `unxz` first"),
    (b"7z\xbc\xaf", "a 7z archive, not MIDI", "unpack it first"),
    (b"Rar!", "a RAR archive, not MIDI", "unpack it first"),
    (b"ID3", "MP3 audio, not MIDI", "audio must be transcribed to MIDI first"),
    (b"\xff\xfb", "MP3 audio, not MIDI", "audio must be transcribed to MIDI first"),
    (b"OggS", "Ogg audio, not MIDI", "audio must be transcribed to MIDI first"),
    (b"fLaC", "FLAC audio, not MIDI", "audio must be transcribed to MIDI first"),
    (b"\x7fELF", "a program, not MIDI", ""),
]
REMEDY = "give a Standard MIDI File (.mid)"


@dataclass(frozen=True)
class Header:
    """What stands in the header chunk.

    Attributes:
        midi_format: 0, 1, 2, or whatever else the file says.
        tracks: declared number of tracks.
        division: ticks per quarter, or the SMPTE division as a negative 16-bit number.
        first_chunk: position of the chunk after the header.
        end: position after the last byte that belongs to the MIDI data.
    """

    midi_format: int
    tracks: int
    division: int
    first_chunk: int
    end: int


def undo_text_mode(data: bytes, findings: Findings) -> bytes:
    """Undo a transfer in text mode, which puts a byte 13 before every byte 10.

    Args:
        data: the whole file.
        findings: collects the repair.

    Returns:
        the data as it was, if that makes every chunk as long as it says; otherwise the data.
    """
    if b"\r\n" not in data or not data.startswith(b"MThd") or _is_chain(data):
        return data
    undone = data.replace(b"\r\n", b"\n")
    if not _is_chain(undone):
        return data
    findings.add("repaired", "damage from a text-mode transfer undone", len(data) - len(undone))
    return undone


def _is_chain(data: bytes) -> bool:
    """Whether the lengths of all chunks lead exactly to the end of the file."""
    position = 0
    for _ in range(_MOST_CHUNKS):
        if position == len(data):
            return True
        if data[position : position + 2] != b"MT" or position + 8 > len(data):
            return False
        position += 8 + int.from_bytes(data[position + 4 : position + 8], "big")
    return False


def read_header(data: bytes, name: str, findings: Findings) -> Header:
    """Find and read the header, wherever it hides.

    Args:
        data: the whole file.
        name: what to call the file in errors.
        findings: collects what was odd.

    Returns:
        the header.

    Raises:
        MidiError: this is no MIDI file, or nothing stands behind its header.
    """
    start = data.find(b"MThd", 0, _SEARCH)
    if start < 0 or (start > 0 and not _may_wrap(data)):
        return _no_header(data, name, findings)
    end = len(data)
    if start > 0:
        end = _open_wrapper(data, start, findings)
    if end - start < 14:
        raise MidiError(
            f"{name}: the MIDI header is cut off after {end - start} of 14 bytes; get a complete copy"
        )
    length = int.from_bytes(data[start + 4 : start + 8], "big")
    midi_format = int.from_bytes(data[start + 8 : start + 10], "big")
    tracks = int.from_bytes(data[start + 10 : start + 12], "big")
    division = int.from_bytes(data[start + 12 : start + 14], "big", signed=True)
    first_chunk = start + 8 + length
    if length != 6:
        if length > 6 and _is_chunk(data, first_chunk, end):
            findings.add("note", "header longer than 6 bytes", detail=f"{length} bytes")
        else:
            findings.add("repaired", "wrong header length", detail=f"{length} bytes declared")
            first_chunk = data.find(b"MTrk", start + 8, end)
            if 0 <= first_chunk < start + 14:
                division = DEFAULT_DIVISION
                findings.add(
                    "repaired", "header without a division", detail=f"{division} ticks per quarter assumed"
                )
    if first_chunk < 0 or first_chunk >= end:
        raise MidiError(
            f"{name}: has a MIDI header but no tracks, so no notes; get a complete copy of the file"
        )
    return Header(midi_format, tracks, division, first_chunk, end)


def _may_wrap(data: bytes) -> bool:
    """False if the file is plainly something else in which the letters MThd stand by chance (or archived)."""
    return not any(data.startswith(magic) for magic, _, _ in _SIGNATURES) and data[257:262] != b"ustar"


def _open_wrapper(data: bytes, start: int, findings: Findings) -> int:
    """Say what stands before the header at `start`; return where the MIDI data ends."""
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":
        findings.add("note", "RIFF (RMID) wrapper removed")
        if data[start - 8 : start - 4] == b"data":
            length = int.from_bytes(data[start - 4 : start], "little")
            end = start + length
            if length >= 14 and (len(data) - end in (0, 1) or data[end : end + 4].isalpha()):
                return end
        return len(data)
    findings.add("repaired", "bytes before the MIDI header skipped", start)
    return len(data)


def _no_header(data: bytes, name: str, findings: Findings) -> Header:
    """Accept a file whose header chunk is lost, raise for everything else."""
    if not data:
        raise MidiError(f"{name}: is empty (0 bytes); get a complete copy of the file")
    if data == b"MThd"[: len(data)]:
        raise MidiError(
            f"{name}: the MIDI header is cut off after {len(data)} of 14 bytes; get a complete copy"
        )
    for magic, fault, remedy in _SIGNATURES:
        if data.startswith(magic):
            raise MidiError(f"{name}: is {fault}; {remedy or REMEDY}")
    if data[:4] == b"RIFF":
        kind = data[8:12].decode("latin-1")
        if kind == "WAVE":
            raise MidiError(f"{name}: is WAV audio, not MIDI; audio must be transcribed to MIDI first")
        if kind != "RMID":
            raise MidiError(f"{name}: is a RIFF file of kind {kind!r}, not MIDI; {REMEDY}")
    if data[257:262] == b"ustar":
        raise MidiError(f"{name}: is a tar archive, not MIDI; unpack it first")
    first_chunk = data.find(b"MTrk", 0, _SEARCH)
    if first_chunk >= 14 and data[first_chunk - 10 : first_chunk - 6] == b"\0\0\0\x06":
        findings.add("repaired", "damaged MIDI header")
        midi_format = int.from_bytes(data[first_chunk - 6 : first_chunk - 4], "big")
        tracks = int.from_bytes(data[first_chunk - 4 : first_chunk - 2], "big")
        division = int.from_bytes(data[first_chunk - 2 : first_chunk], "big", signed=True)
        return Header(midi_format, tracks, division, first_chunk, len(data))
    if first_chunk >= 0:
        division = DEFAULT_DIVISION
        findings.add("repaired", "missing MIDI header", detail=f"{division} ticks per quarter assumed")
        return Header(1, data.count(b"MTrk"), division, first_chunk, len(data))
    if not data.strip(b"\0"):
        raise MidiError(
            f"{name}: contains nothing but {len(data):,} zero bytes; get a complete copy of the file"
        )
    head = data[:1024]
    if _is_text(head):
        kind = "text"
        lowered = head.lower()
        if b"<html" in lowered or b"<!doctype html" in lowered:
            kind = "a web page"
        elif b"score-partwise" in lowered or b"score-timewise" in lowered:
            kind = "MusicXML"
        elif re.search(rb"^X:\s*\d", head, re.MULTILINE) and re.search(rb"^K:", head, re.MULTILINE):
            kind = "ABC text"
        raise MidiError(f"{name}: is {kind}, not MIDI; {REMEDY}")
    raise MidiError(
        f"{name}: is not MIDI (no MThd header in the first {min(len(data), _SEARCH):,} bytes); {REMEDY}"
    )


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)


def _is_chunk(data: bytes, position: int, end: int) -> bool:
    """Whether a chunk header can stand at a position."""
    name = data[position : position + 4]
    if name in (b"MTrk", b"MThd"):
        return True
    if len(name) < 4 or not (name.isascii() and name.isalnum()):
        return False
    return position + 8 + int.from_bytes(data[position + 4 : position + 8], "big") <= end


def _is_renamed_track(data: bytes, position: int, end: int) -> bool:
    """Whether a chunk of another name holds a track: the name is nearly right, or an end of track ends it."""
    name = data[position : position + 4]
    if len(name) < 4 or name == b"MThd":
        return False
    if sum(ours != theirs for ours, theirs in zip(name, b"MTrk", strict=True)) <= 1:
        return True
    stop = position + 8 + int.from_bytes(data[position + 4 : position + 8], "big")
    return position + 12 <= stop <= end and data[stop - 3 : stop] == b"\xff\x2f\0"


@dataclass(frozen=True)
class TrackChunk:
    """Where a track's events stand.

    Attributes:
        start: position of the first event.
        end: position after the last byte that can belong to the track.
        declared_end: position after the last byte as the chunk says.
        trusted: the declared length leads to another chunk, behind an end mark or to the end of the file.
    """

    start: int
    end: int
    declared_end: int
    trusted: bool


class ChunkWalk:
    """A walk over the track chunks of a file.

    Args:
        data: the whole file.
        header: as read.
        name: what to call the file in errors.
        findings: collects what is skipped.
    """

    def __init__(self, data: bytes, header: Header, name: str, findings: Findings) -> None:
        self.data, self.end, self.name, self.findings = data, header.end, name, findings
        self.position = header.first_chunk  # where the next chunk should start; the caller moves it on
        self._left = _MOST_CHUNKS

    def next_track(self) -> TrackChunk | None:
        """The next track chunk at or after `position`, or None; other chunks and junk are skipped.

        Raises:
            MidiError: more chunks than any piece of music has.
        """
        data, end, findings = self.data, self.end, self.findings
        while self.position < end:
            self._left -= 1
            if self._left < 0:
                raise MidiError(
                    f"{self.name}: has more than {_MOST_CHUNKS:,} chunks, more than any piece of music; {REMEDY}"
                )
            position = self.position
            name = data[position : position + 4]
            if name != b"MTrk" and _is_renamed_track(data, position, end):
                findings.add("repaired", "track with a wrong chunk name read", detail=repr(name)[1:])
                name = b"MTrk"
            if name == b"MTrk":
                return self._track(position)
            if name == b"MThd":
                findings.add("dropped", "second MIDI file in the same file")
                return None
            if _is_chunk(data, position, end):
                following = position + 8 + int.from_bytes(data[position + 4 : position + 8], "big")
                if following == end or _is_chunk(data, following, end):
                    findings.add("note", "unknown chunk skipped", detail=name.decode("latin-1"))
                    self.position = following
                    continue
            following = data.find(b"MTrk", position, end)
            self.position = following if following >= 0 else end
            findings.add("note", "bytes outside any chunk skipped", self.position - position)
        return None

    def _track(self, position: int) -> TrackChunk | None:
        data, end = self.data, self.end
        start = position + 8
        if start > end:
            self.findings.add("dropped", "track cut off in its header")
            return None
        declared_end = start + int.from_bytes(data[position + 4 : start], "big")
        ended = declared_end < end and data[declared_end - 3 : declared_end] == b"\xff\x2f\0"
        if declared_end == end or ended or _is_chunk(data, declared_end, end):
            return TrackChunk(start, declared_end, declared_end, True)
        following = data.find(b"MTrk", start, end)
        return TrackChunk(start, following if following >= 0 else end, declared_end, False)
