"""MIDI files made by hand, sound and damaged, and what a person expects of each."""

from __future__ import annotations

from dataclasses import dataclass

EOT = b"\x00\xff\x2f\x00"


def vlq(value: int) -> bytes:
    """A variable-length number."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


def chunk(content: bytes, name: bytes = b"MTrk", length: int | None = None) -> bytes:
    """A chunk; `length` lies about its size."""
    return name + (len(content) if length is None else length).to_bytes(4, "big") + content


def header(midi_format: int = 1, tracks: int = 1, division: int = 480) -> bytes:
    """A header chunk."""
    values = (midi_format, tracks, division & 0xFFFF)
    return chunk(b"".join(value.to_bytes(2, "big") for value in values), b"MThd")


def note(pitch: int = 60, length: int = 480, velocity: int = 64, channel: int = 0, wait: int = 0) -> bytes:
    """A note-on and its note-off."""
    on = vlq(wait) + bytes([0x90 | channel, pitch, velocity])
    return on + vlq(length) + bytes([0x80 | channel, pitch, 0])


def smf(*tracks: bytes, midi_format: int = 1, count: int | None = None, division: int = 480) -> bytes:
    """A file of tracks whose content is given with its end mark."""
    number = len(tracks) if count is None else count
    return header(midi_format, number, division) + b"".join(chunk(track) for track in tracks)


SCALE = b"".join(note(60 + step) for step in range(8))
TRACK = SCALE + EOT
GOOD = smf(TRACK)


def with_event(event: bytes) -> bytes:
    """The good file with something at its beginning."""
    return smf(event + TRACK)


@dataclass(frozen=True)
class Case:
    """A file and what is expected of it.

    Attributes:
        data: its bytes.
        notes: how many notes are read; 0 means that it is refused.
        words: what the findings (or the refusal) must say, each in one of them.
        clean: nothing may be repaired or dropped.
    """

    data: bytes
    notes: int
    words: tuple[str, ...] = ()
    clean: bool = False


_CC = b"\x00\xb0\x07\x64"

CASES: dict[str, Case] = {
    "00-good-reference": Case(GOOD, 8, ("120 quarters per minute assumed", "4/4 assumed"), clean=True),
    "zero-bytes": Case(b"", 0, ("empty", "complete copy")),
    "one-byte": Case(b"M", 0, ("cut off", "complete copy")),
    "header-only": Case(header(tracks=0), 0, ("no track", "complete copy")),
    "header-claims-5-tracks-has-1": Case(smf(TRACK, count=5), 8, ("5 declared, 1 found",)),
    "header-claims-1-has-3": Case(smf(TRACK, TRACK, TRACK, count=1), 24, ("1 declared, 3 found",)),
    "header-claims-65535": Case(smf(TRACK, count=65535), 8, ("65,535 declared",)),
    "header-truncated": Case(GOOD[:10], 0, ("cut off after 10 of 14 bytes",)),
    "header-len-10": Case(
        b"MThd\x00\x00\x00\x0a" + GOOD[8:14] + bytes(4) + GOOD[14:], 8, ("header longer than 6",), clean=True
    ),
    "header-len-huge": Case(b"MThd\xff\xff\xff\xff" + GOOD[8:], 8, ("wrong header length",)),
    "division-zero": Case(smf(TRACK, division=0), 8, ("repaired: division 0",)),
    "division-1": Case(smf(TRACK, division=1), 8, ("division that makes notes last for many bars",)),
    "division-32767": Case(smf(TRACK, division=32767), 8, clean=True),
    "division-smpte-25-40": Case(smf(TRACK, division=0xE728), 8, ("SMPTE time converted",), clean=True),
    "division-smpte-29-80": Case(smf(TRACK, division=0xE350), 8, ("SMPTE time converted",), clean=True),
    "division-smpte-bad-fps": Case(smf(TRACK, division=0xEF28), 8, ("invalid SMPTE division",)),
    "format0": Case(smf(TRACK, midi_format=0), 8, clean=True),
    "format0-two-tracks": Case(smf(TRACK, TRACK, midi_format=0), 16, ("format 0 with more than one track",)),
    "format2": Case(smf(TRACK, TRACK, midi_format=2), 16, ("patterns placed one after another",), clean=True),
    "format7": Case(smf(TRACK, midi_format=7), 8, ("unknown format read as format 1",)),
    "track-len-too-long": Case(header() + chunk(TRACK, length=len(TRACK) + 1000), 8, ("wrong track length",)),
    "track-len-too-short": Case(header() + chunk(TRACK, length=len(TRACK) - 14), 8, ("wrong track length",)),
    "track-len-4GiB": Case(header() + chunk(TRACK, length=0xFFFFFFFF), 8, ("wrong track length",)),
    "track-empty": Case(smf(b"", TRACK), 8),
    "no-eot": Case(smf(SCALE), 8, ("track without an end mark",)),
    "events-after-eot": Case(smf(TRACK + TRACK), 16, ("events after the end of a track read",)),
    "truncated-mid-event": Case(smf(TRACK)[:-9], 8, ("cut off", "note without an end closed")),
    "truncated-half": Case(smf(TRACK)[:49], 3, ("file cut off inside a track (49 bytes missing)",)),
    "garbage-prefix-128": Case(bytes(128) + GOOD, 8, ("bytes before the MIDI header skipped (128)",)),
    "garbage-suffix": Case(GOOD + bytes(45), 8, ("bytes outside any chunk skipped (45)",), clean=True),
    "riff-rmi": Case(
        b"RIFF"
        + (len(GOOD) + 12).to_bytes(4, "little")
        + b"RMIDdata"
        + len(GOOD).to_bytes(4, "little")
        + GOOD,
        8,
        ("RIFF (RMID) wrapper removed",),
        clean=True,
    ),
    "not-midi-png": Case(b"\x89PNG\r\n\x1a\n" + bytes(200), 0, ("a PNG picture", ".mid")),
    "not-midi-text": Case(b"X:1\nT:tune\nK:C\nCDEF|\n", 0, ("ABC text", ".mid")),
    "lfs-pointer": Case(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        0,
        ("Git LFS pointer", "git lfs pull"),
    ),
    "alien-chunk": Case(
        header() + chunk(b"hello", b"XFIH") + chunk(TRACK), 8, ("unknown chunk",), clean=True
    ),
    "running-status-first": Case(with_event(b"\x00\x3c\x40"), 8, ("data bytes without a status skipped",)),
    "running-status-after-meta": Case(
        smf(b"\x00\x90\x3c\x40\x00\xff\x01\x01A\x83\x60\x3c\x00" + EOT),
        1,
        ("running status kept",),
        clean=True,
    ),
    "data-byte-high": Case(smf(b"\x00\x90\x3c\xff\x60\x80\x3c\x00" + EOT), 1, ("data byte above 127",)),
    "control-value-143": Case(with_event(b"\x00\xb0\x07\x8f"), 8, ("data byte above 127",)),
    "vlq-5-bytes": Case(
        smf(b"\xff\xff\xff\xff\x7f\x90\x3c\x40\x00\x80\x3c\x00" + EOT), 1, ("negative delta", "no length")
    ),
    "vlq-max-delta": Case(
        smf(b"\xff\xff\xff\x7f\x90\x3c\x40\x60\x80\x3c\x00" + EOT), 1, ("silence shortened",)
    ),
    "meta-len-past-end": Case(smf(b"\x00\xff\x03\xff\x7fabc" + EOT), 0, ("no notes",)),
    "tempo-zero": Case(with_event(b"\x00\xff\x51\x03\x00\x00\x00"), 8, ("dropped: invalid tempo",)),
    "tempo-max": Case(with_event(b"\x00\xff\x51\x03\xff\xff\xff"), 8, clean=True),
    "tempo-len-2": Case(with_event(b"\x00\xff\x51\x02\x07\xa1"), 8, ("dropped: invalid tempo",)),
    "timesig-zero": Case(with_event(b"\x00\xff\x58\x04\x00\x00\x00\x00"), 8, ("invalid time signature",)),
    "timesig-den-2pow255": Case(
        with_event(b"\x00\xff\x58\x04\x04\xff\x18\x08"), 8, ("invalid time signature",)
    ),
    "timesig-len-2": Case(with_event(b"\x00\xff\x58\x02\x04\x02"), 8, ("of the wrong length read",)),
    "keysig-8-sharps": Case(with_event(b"\x00\xff\x59\x02\x08\x00"), 8, ("dropped: invalid key signature",)),
    "keysig-mode-5": Case(with_event(b"\x00\xff\x59\x02\x00\x05"), 8, ("dropped: invalid key signature",)),
    "sysex-unterminated": Case(with_event(b"\x00\xf0\x05\x7e\x7f\x09\x01\x01"), 8, ("without an end mark",)),
    "sysex-len-past-end": Case(smf(b"\x00\xf0\x87\x7f\x7e" + EOT), 0, ("no notes",)),
    "system-realtime-in-track": Case(
        smf(b"\x00\xf8" + SCALE + b"\x00\xfe" + EOT), 8, ("system message inside a track skipped (2)",)
    ),
    "song-position-in-track": Case(with_event(b"\x00\xf2\x01\x02"), 8, ("system message inside",)),
    "undefined-f4": Case(with_event(b"\x00\xf4"), 8, ("system message inside",)),
    "note-on-no-off": Case(
        smf(b"".join(b"\x60\x90" + bytes([60 + step, 64]) for step in range(4)) + EOT),
        4,
        ("without an end closed (4)",),
    ),
    "note-off-no-on": Case(
        smf(b"".join(b"\x60\x80" + bytes([60 + step, 64]) for step in range(4)) + EOT), 0, ("no notes",)
    ),
    "overlap-same-pitch": Case(
        smf(b"\x00\x90\x3c\x40\x60\x90\x3c\x50\x60\x80\x3c\x00\x60\x80\x3c\x00" + EOT),
        2,
        ("overlapping notes",),
    ),
    "zero-duration-notes": Case(
        smf(note(length=0, wait=96) * 4 + EOT), 4, ("notes of no length lengthened (4)",)
    ),
    "velocity-0-on-as-off": Case(smf(b"\x00\x90\x3c\x40\x60\x90\x3c\x00" + EOT), 1, clean=True),
    "note-extremes": Case(smf(note(0, velocity=1) + note(127, velocity=127) + EOT), 2, clean=True),
    "drums-channel-10": Case(smf(note(36, 120, 100, 9) + note(38, 120, 100, 9) + EOT), 2, clean=True),
    "16-channels": Case(smf(b"".join(note(channel=c, length=60) for c in range(16)) + EOT), 16, clean=True),
    "200-tracks": Case(smf(*[note() + EOT] * 200), 200, clean=True),
    "only-meta": Case(smf(b"\x00\xff\x03\x05empty\x00\xff\x51\x03\x07\xa1\x20" + EOT), 0, ("no notes",)),
    "text-latin1-utf16": Case(
        with_event(b"\x00\xff\x03\x04\xe9\xff\xfeA\x00\xff\x01\x03\x82\xa0\xff"), 8, clean=True
    ),
    "text-nul-and-newline": Case(with_event(b"\x00\xff\x03\x06a\x00b\r\nc"), 8, clean=True),
    "chord-128-notes": Case(
        smf(
            b"".join(b"\x00\x90" + bytes([pitch, 64]) for pitch in range(128))
            + b"".join(b"\x01\x80" + bytes([pitch, 0]) for pitch in range(128))
            + EOT
        ),
        128,
        clean=True,
    ),
    "program-change-midtrack": Case(
        smf(b"\x00\xc0\x00" + note() + b"\x00\xc0\x28" + note() + EOT), 2, clean=True
    ),
    "million-deltas": Case(with_event(_CC * 50_000), 8, ("controllers replaced at the same tick (49,999)",)),
    "big-gap": Case(smf(note() + note(wait=3600 * 4 * 480) + EOT), 2, ("silence shortened",)),
}

# More damage, of kinds that occur in files from the net.
MORE: dict[str, Case] = {
    "no header": Case(chunk(TRACK), 8, ("missing MIDI header",)),
    "header name damaged": Case(b"MTxd" + GOOD[4:], 8, ("damaged MIDI header",)),
    "header length 4": Case(b"MThd\x00\x00\x00\x04" + GOOD[8:], 8, ("wrong header length",)),
    "header without division": Case(
        b"MThd\x00\x00\x00\x04" + GOOD[8:12] + GOOD[14:], 8, ("without a division",)
    ),
    "track name damaged": Case(header() + chunk(TRACK, b"MXrk"), 8, ("wrong chunk name",)),
    "track under another name": Case(header() + chunk(TRACK, b"DATA"), 8, ("wrong chunk name",)),
    "second file behind": Case(GOOD + GOOD, 8, ("second MIDI file",)),
    "text before": Case(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD, 8, ("bytes before the MIDI header skipped",)),
    "long delta before damage": Case(
        with_event(b"\x80\x80\x80\x80\x00\xff\x01\xff\x7f"), 8, ("meta event longer than its track",)
    ),
    "long delta before a cut": Case(
        smf(b"\x80\x80\x80\x80\x00\xf2", TRACK), 8, ("event cut off at the end of its track",)
    ),
    "long delta before damage, no note": Case(
        smf(b"\x80\x80\x80\x80\x00\xff\x01\xff\x7f\x00\xc0\x05" + EOT), 0, ("no notes",)
    ),
    "letters of a track in a text": Case(
        with_event(b"\x00\xff\x01\x0cMTrk\x00\x00\x00\x04MTrk") + bytes(45),
        8,
        ("bytes outside any chunk skipped (45)",),
        clean=True,
    ),
    "text-mode transfer": Case(
        smf(b"\x00\xff\x51\x03\x07\x0d\x0a" + b"".join(note(10 + i, 10) for i in range(8)) + EOT).replace(
            b"\n", b"\r\n"
        ),
        8,
        ("text-mode transfer undone",),
    ),
    "long chunk swallows next": Case(
        header(tracks=2) + chunk(TRACK, length=2 * len(TRACK) + 8) + chunk(TRACK), 16, ("wrong track length",)
    ),
    "sysex too long": Case(with_event(b"\x00\xf0\x60\x7e\x7f\x09\x01\xf7"), 8, ()),
    "sysex too short": Case(
        with_event(b"\x00\xf0\x02\x7e\x7f\x09\x01\xf7"), 8, ("wrong length of a system ex",)
    ),
    "meta too long": Case(with_event(b"\x00\xff\x01\xff\x7fab"), 8, ("meta event longer than its track",)),
    "end mark with a length": Case(smf(SCALE + b"\x00\xff\x2f\x05"), 8),
    "program running status": Case(smf(b"\x00\xc0\x05\x00\x06" + TRACK), 8, clean=True),
    "pitch above 127": Case(smf(b"\x00\x90\xbc\x40" + TRACK), 8),
    "tempo off track 0": Case(
        smf(TRACK, b"\x83\x60\xff\x51\x03\x07\xa1\x21" + EOT), 8, ("tempo events off track 0 merged",)
    ),
    "contradicting metres": Case(
        smf(b"\x00\xff\x58\x04\x03\x02\x18\x08" + TRACK, b"\x00\xff\x58\x04\x04\x02\x18\x08" + EOT),
        8,
        ("time signature of another track",),
    ),
    "endless note": Case(
        smf(note(length=10 * 3600 * 960) + TRACK), 9, ("notes longer than 256 quarter notes cut",)
    ),
    "ten hours of silence": Case(smf(note(wait=10 * 3600 * 960) + TRACK), 9, ("silence shortened",)),
    "ten hours of silence, then the end": Case(smf(SCALE + vlq(10 * 3600 * 960) + EOT[1:]), 8, clean=True),
    "doubled notes": Case(smf(SCALE + EOT, SCALE.replace(b"\x90", b"\x90") + EOT), 16, clean=True),
    "doubled in one track": Case(
        smf(b"\x00\x90\x3c\x40\x00\x90\x3c\x50\x60\x80\x3c\x00\x60\x80\x3c\x00" + EOT),
        1,
        ("doubled at one time",),
    ),
    "gzip": Case(b"\x1f\x8b\x08" + bytes(50), 0, ("gzip", "gunzip")),
    "zip": Case(b"PK\x03\x04" + GOOD, 0, ("ZIP", "unpack")),
    "wav": Case(b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(30), 0, ("WAV audio", "transcribed")),
    "mp3": Case(b"ID3\x04" + bytes(60), 0, ("MP3 audio",)),
    "html": Case(b"<!DOCTYPE html><html><body>404 Not Found</body></html>", 0, ("a web page",)),
    "musicxml": Case(b'<?xml version="1.0"?><score-partwise/>', 0, ("MusicXML",)),
    "plain text": Case(b"file does not exist", 0, ("text, not MIDI",)),
    "nothing but zeros": Case(bytes(1000), 0, ("zero bytes",)),
    "random bytes": Case(bytes((i * 73 + i * i * 31) % 251 + 3 for i in range(500)), 0, ("not MIDI",)),
    "thousands of tracks": Case(smf(*[note() + EOT] * 3000), 0, ("more than 1,000 tracks", "merge")),
}
