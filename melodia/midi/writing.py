"""Writing: a score or a PrettyMIDI becomes a file, all of it or nothing."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick, TrackTick

from melodia.errors import MidiError
from melodia.files import asked_file, asked_target
from melodia.midi.bars import metres_of
from melodia.midi.channels import BANK_SELECT, BEND, PROGRAM, Said, assign_channels, program_ticks, said_again
from melodia.midi.convert import tempi_of
from melodia.midi.limits import LAST_TICK

if TYPE_CHECKING:
    import pretty_midi

_LONGEST_DELTA = (1 << 28) - 1  # what four bytes of seven bits hold
_META, _NOTE_OFF, _BANK, _PROGRAM, _CONTROL, _NOTE_ON = range(6)  # order at one tick


def write_midi(
    midi: ScoreTick | pretty_midi.PrettyMIDI, path: str | os.PathLike[str], *, force: bool = False
) -> Path:
    """Write a MIDI file (format 1).

    The file appears whole or not at all: it is written under another name in the same folder, flushed to
    the disk and renamed.

    Args:
        midi: what to write.
        path: where.
        force: replace a file that is there.

    Returns:
        the path.

    Raises:
        MidiError: the file is there already (without `force`), or cannot be written; an old file stays as
            it was.
        ConfigError: `path` is no path, or `force` no truth value.

    >>> import tempfile
    >>> from melodia.midi import read_score
    >>> score, _ = read_score("midi_samples/petzold_minuet_g_major.mid")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_midi(score, folder + "/copy.mid")
    ...     read_score(path)[0].note_num() == score.note_num()
    True
    """
    target = asked_target(path, MidiError, "the MIDI file", force=force)
    data = midi_bytes(midi)
    with asked_file(target, MidiError, force=force) as part:
        part.write_bytes(data)
    return target


def midi_bytes(midi: ScoreTick | pretty_midi.PrettyMIDI) -> bytes:
    """The bytes of a MIDI file (format 1).

    A score is written with its own ticks; the same score gives the same bytes. Up to 15 melodic tracks get
    a channel of their own. Tracks that share one say their program, bank, controllers and bend again where another
    one has said something else; those of drums, their program.

    Args:
        midi: a score in ticks or a PrettyMIDI.

    Returns:
        the file.

    Raises:
        MidiError: it holds values that cannot stand in a MIDI file.

    >>> from melodia.midi import read_score
    >>> score, _ = read_score("midi_samples/petzold_minuet_g_major.mid")
    >>> data = midi_bytes(score)
    >>> data[:4], read_score(data)[0].note_num() == score.note_num()
    (b'MThd', True)
    """
    if hasattr(midi, "instruments"):
        buffer = io.BytesIO()
        try:
            cast("pretty_midi.PrettyMIDI", midi).write(buffer)
        except Exception as error:  # PrettyMIDI checks nothing before it writes
            raise MidiError(
                f"this PrettyMIDI cannot be written as MIDI ({error}); repair its values"
            ) from error
        return buffer.getvalue()
    if not isinstance(midi, ScoreTick):
        raise MidiError(
            f"MIDI is written from a score in ticks or a PrettyMIDI, not from {type(midi).__name__}; convert it (other "
            'symusic scores have `to("tick")`)'
        )
    _check(midi)
    channels = assign_channels(midi)
    parts = zip(midi.tracks, channels, said_again(midi, channels), strict=True)
    tracks = [_conductor(midi), *(_track(part, channel, said) for part, channel, said in parts)]
    resolution = midi.ticks_per_quarter
    if not 1 <= resolution <= 32767:
        raise MidiError(
            f"a MIDI file has 1 to 32767 ticks per quarter (received {resolution}); resample the score"
        )
    header = (
        b"MThd"
        + (6).to_bytes(4, "big")
        + b"".join(value.to_bytes(2, "big") for value in (1, len(tracks), resolution))
    )
    return header + b"".join(b"MTrk" + len(track).to_bytes(4, "big") + track for track in tracks)


def _check(score: ScoreTick) -> None:
    """Raise MidiError for what no MIDI file can say."""
    for _, top, bottom in metres_of(score):
        if not 1 <= top <= 255 or bottom < 1 or bottom & (bottom - 1):
            raise MidiError(
                f"a MIDI file has metres of 1 to 255 halves, quarters, eighths and so on (received {top}/{bottom}); "
                "correct the time signatures"
            )
    for name in ("tempos", "time_signatures", "key_signatures"):
        _check_values("tick", np.array([event.time for event in getattr(score, name)]), LAST_TICK)
    for track in score.tracks:
        notes, controls, bends = track.notes.numpy(), track.controls.numpy(), track.pitch_bends.numpy()
        for columns in (notes, controls, bends):
            _check_values("tick", columns["time"], LAST_TICK)
        _check_values("end of a note", notes["time"].astype(np.int64) + notes["duration"], LAST_TICK)
        for what, values in (
            ("program", np.array([track.program])),
            ("pitch", notes["pitch"]),
            ("controller", controls["number"]),
            ("value of a controller", controls["value"]),
        ):
            _check_values(what, values, 127)


def _check_values(what: str, values: NDArray[Any], most: int) -> None:
    wrong = values[(values < 0) | (values > most)]
    if len(wrong):
        raise MidiError(
            f"in a MIDI file a {what} lies between 0 and {most} (received {wrong[0]}); correct the score"
        )


def _conductor(score: ScoreTick) -> bytes:
    events: list[tuple[int, int, int, bytes]] = []
    for tick, tempo in tempi_of(score):
        events.append((tick, _META, 0, b"\xff\x51\x03" + min(tempo, 0xFFFFFF).to_bytes(3, "big")))
    for tick, top, bottom in metres_of(score):
        power = bottom.bit_length() - 1
        events.append((tick, _META, 1, bytes([0xFF, 0x58, 4, top, power, 24, 8])))
    for key in score.key_signatures:
        events.append((key.time, _META, 2, bytes([0xFF, 0x59, 2, key.key & 0xFF, key.tonality])))
    return _encode(events)


def _track(track: TrackTick, channel: int, said: list[Said]) -> bytes:
    events: list[tuple[int, int, int, bytes]] = []
    if track.name:
        text = (
            track.name.encode("utf-8", "replace")[:127].decode("utf-8", "ignore").encode()
        )  # whole characters
        events.append((0, _META, 0, bytes([0xFF, 0x03, len(text)]) + text))
    again = {each.tick for each in said if each.number == PROGRAM}
    for tick in sorted(again.union(program_ticks(track))):
        events.append((tick, _PROGRAM, 0, bytes([0xC0 | channel, track.program])))
    columns = track.controls.numpy()
    controls = [*zip(*(columns[name].tolist() for name in ("time", "number", "value")), strict=True)]
    for tick, number, value in [*controls, *(each for each in said if each.number < BEND)]:
        order = _BANK if number in BANK_SELECT else _CONTROL
        events.append((tick, order, 0, bytes([0xB0 | channel, number, value])))
    columns = track.pitch_bends.numpy()
    bends = [*zip(columns["time"].tolist(), columns["value"].tolist(), strict=True)]
    for tick, value in [*bends, *((each.tick, each.value) for each in said if each.number == BEND)]:
        value = min(max(value, -8192), 8191) + 8192
        events.append((tick, _CONTROL, 1, bytes([0xE0 | channel, value & 0x7F, value >> 7])))
    columns = track.notes.numpy()
    names = ("time", "duration", "pitch", "velocity")
    for tick, length, pitch, velocity in zip(*(columns[name].tolist() for name in names), strict=True):
        events.append((tick, _NOTE_ON, pitch, bytes([0x90 | channel, pitch, max(1, velocity)])))
        events.append((tick + max(1, length), _NOTE_OFF, pitch, bytes([0x80 | channel, pitch, 0])))
    return _encode(events)


def _encode(events: list[tuple[int, int, int, bytes]]) -> bytes:
    """Events (tick, order, order, message) as the content of a track chunk; equal ones stay in their order."""
    out = bytearray()
    now = 0
    for tick, _, _, message in sorted(events, key=lambda event: event[:3]):
        delta, now = tick - now, tick
        while delta > _LONGEST_DELTA:  # an empty text breaks the wait
            out += b"\xff\xff\xff\x7f\xff\x01\x00"
            delta -= _LONGEST_DELTA
        if delta < 0x80:
            out.append(delta)
        else:
            groups = [delta & 0x7F]
            while delta := delta >> 7:
                groups.append(delta & 0x7F | 0x80)
            out += bytes(reversed(groups))
        out += message
    return bytes(out + b"\x00\xff\x2f\x00")
