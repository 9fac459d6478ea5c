"""Reading: a MIDI file, bytes, an open file or a PrettyMIDI becomes a score and a report."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import IO, TYPE_CHECKING, Union

import numpy as np
from symusic.core import ScoreTick

from melodia.errors import ConfigError, MelodiaError, MidiError, show_path
from melodia.midi.assemble import assemble
from melodia.midi.bars import bar_count
from melodia.midi.container import DEFAULT_DIVISION, REMEDY
from melodia.midi.convert import events_of_pretty_midi, seconds_of, to_pretty_midi
from melodia.midi.limits import Limits
from melodia.midi.repair import pair_notes
from melodia.midi.report import Findings, ReadReport
from melodia.midi.smf import SmfEvents, parse_smf
from melodia.midi.timeline import lay_in_sequence, read_timeline
from melodia.notes import program_of

if TYPE_CHECKING:
    import pretty_midi

Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes], "pretty_midi.PrettyMIDI"]


_COARSE = 24  # ticks per quarter below which the division may be a mistake
_ENDLESS = 64  # quarter notes that half of the notes would have to last


def read_score(source: Source, *, limits: Limits | None = None) -> tuple[ScoreTick, ReadReport]:
    """Read music, repair it, and say what was done.

    Args:
        source: path, bytes, binary file object, or `pretty_midi.PrettyMIDI`.
        limits: bounds of this read; `Limits()` if not given.

    Returns:
        the score in ticks, one track per (file track, channel, program), and the report. In the score no
        note is stuck, without length or overlaps one of the same pitch in its track; tempo and time
        signature are given from tick 0.

    Raises:
        MidiError: nothing to read: one line that names the file, the fault and the remedy.
        ConfigError: `limits` are none.

    >>> score, report = read_score("midi_samples/petzold_minuet_g_major.mid")
    >>> len(score.tracks) > 0, score.time_signatures[0].numerator
    (True, 3)
    """
    limits = Limits() if limits is None else limits
    if not isinstance(limits, Limits):
        raise ConfigError(f"`limits` must be a melodia.midi.Limits (received {limits!r})")
    if isinstance(source, (str, os.PathLike)):
        name = show_path(source)
        data = _read_file(source, name, limits)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name, data = "<bytes>", bytes(source)
    elif hasattr(source, "read"):
        name = show_path(getattr(source, "name", "<file object>"))
        data = _read_stream(source, name, limits)
    else:
        findings = Findings()
        events = events_of_pretty_midi(source, findings, limits)
        return _finish(events, "<PrettyMIDI>", b"", findings, limits)
    if len(data) > limits.size:
        raise too_large(name, len(data), limits)
    findings = Findings()
    return _finish(parse_smf(data, name, findings, limits), name, data, findings, limits)


def read_midi(source: Source, *, limits: Limits | None = None) -> pretty_midi.PrettyMIDI:
    """Read music as `read_score` does, as a PrettyMIDI.

    Args:
        source: path, bytes, binary file object, or `pretty_midi.PrettyMIDI`.
        limits: bounds of this read; `Limits()` if not given.

    Returns:
        the repaired music.

    Raises:
        MidiError: nothing to read: one line that names the file, the fault and the remedy.
        ConfigError: `limits` are none.

    >>> read_midi("midi_samples/petzold_minuet_g_major.mid").time_signature_changes[0].numerator
    3
    """
    return to_pretty_midi(read_score(source, limits=limits)[0])


def named(path: object, error: MelodiaError) -> str:
    """An error of a file in words that name the file; those of MIDI do so themselves."""
    return str(error) if isinstance(error, MidiError) else f"{show_path(path)}: {error}"


def too_large(name: str, size: int, limits: Limits) -> MidiError:
    """The error for a file over the limit of size."""
    most = f"{limits.size / 2**20:g} MiB"
    over = (
        size - limits.size > 0.1 * 2**20
    )  # else the rounded size says nothing, or only the first bytes were read
    found = f"{size / 2**20:.1f} MiB, limit {most}" if over else f"more than {most}"
    return MidiError(
        f"{name}: is too large for MIDI ({found}); split it, or check that it is a MIDI file at all"
    )


def missing(name: str) -> MidiError:
    """The error for a file that is not there."""
    return MidiError(f"{name}: no such file; check the path")


def _read_stream(source: IO[bytes], name: str, limits: Limits) -> bytes:
    """What an open file holds, up to one byte more than the limit; a raw one gives less at a time than is there."""
    data = b""
    try:
        while len(data) <= limits.size and (more := source.read(limits.size + 1 - len(data))) != b"":
            if more is None:
                raise MidiError(
                    f"{name}: has nothing to read yet; open it so that reading waits, or give its bytes"
                )
            if not isinstance(more, bytes):
                raise MidiError(f"{name}: is open as text; open it in binary mode ('rb')")
            data += more
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise MidiError(f"{name}: cannot be read ({error}); open the file again") from None
    return data


def _read_file(path: str | os.PathLike[str], name: str, limits: Limits) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError
            if not stat.S_ISREG(status.st_mode):
                raise MidiError(f"{name}: is a device, pipe or socket, not a file; {REMEDY}")
            if status.st_size > limits.size:
                raise too_large(name, status.st_size, limits)
            data = os.read(descriptor, status.st_size + 1)
            while len(data) <= limits.size and (more := os.read(descriptor, 1 << 16)):
                data += more
            return data
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise missing(name) from None
    except IsADirectoryError:
        raise MidiError(f"{name}: is a directory; give a MIDI file inside it") from None
    except PermissionError:
        raise MidiError(
            f"{name}: cannot be read (permission denied); change its permissions or copy it"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MidiError(f"{name}: cannot be read ({reason}); check the path and the disk") from None


def _finish(
    events: SmfEvents, name: str, data: bytes, findings: Findings, limits: Limits
) -> tuple[ScoreTick, ReadReport]:
    """From events to score and report."""
    lay_in_sequence(events, findings)
    timeline = read_timeline(events, findings)
    notes = pair_notes(
        events.track,
        events.tick,
        events.status,
        events.data1,
        events.data2,
        ticks_per_quarter=timeline.ticks_per_quarter,
        end_tick=int(events.track_ends.max()) if len(events.track_ends) else 0,
        findings=findings,
    )
    if timeline.ticks_per_quarter < _COARSE and len(notes):
        lengths = notes.end - notes.start
        if float(np.median(lengths)) > _ENDLESS * timeline.ticks_per_quarter:
            detail = f"{timeline.ticks_per_quarter} ticks per quarter, {DEFAULT_DIVISION} assumed"
            findings.add("repaired", "division that makes notes last for many bars", detail=detail)
            timeline.ticks_per_quarter = DEFAULT_DIVISION
    if not len(notes):
        raise MidiError(f"{name}: holds no notes, so there is nothing to read; give a file with notes")
    if len(notes) > limits.notes:
        raise MidiError(
            f"{name}: has {len(notes):,} notes, more than the limit of {limits.notes:,}; split it into pieces"
        )
    score = assemble(notes, events, timeline, name, limits, findings)
    end = score.end()
    report = ReadReport(
        path=name,
        sha256=hashlib.sha256(data).hexdigest() if data else "",
        size=len(data),
        midi_format=events.midi_format,
        ticks_per_quarter=timeline.ticks_per_quarter,
        tracks=len(score.tracks),
        notes=score.note_num(),
        bars=bar_count(timeline.metres, timeline.ticks_per_quarter, end),
        seconds=float(seconds_of(score, np.array(end))),
        programs=sorted({program_of(track) for track in score.tracks}),
        tempi=[(tick, 60e6 / tempo) for tick, tempo in timeline.tempi],
        time_signatures=timeline.metres,
        key_signatures=timeline.keys,
        findings=findings.to_list(),
    )
    return score, report
