"""Between scores and `pretty_midi.PrettyMIDI`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick

from melodia.errors import MidiError
from melodia.midi.bars import metres_of
from melodia.midi.limits import Limits
from melodia.midi.report import Findings
from melodia.midi.smf import KEY_SIGNATURE, TEMPO, TIME_SIGNATURE, TRACK_NAME, Meta, SmfEvents

if TYPE_CHECKING:
    import pretty_midi

_MAX_TABLE = 4_000_000  # ticks; PrettyMIDI keeps a table with the time of every tick


def tempi_of(score: ScoreTick) -> list[tuple[int, int]]:
    """Tempi of a score as (tick, microseconds per quarter), the first at tick 0 (500,000 if it has none)."""
    tempi = sorted({tempo.time: (tempo.time, max(1, tempo.mspq)) for tempo in score.tempos}.values())
    if not tempi or tempi[0][0] > 0:
        tempi.insert(0, (0, 500_000))
    return tempi


def seconds_of(score: ScoreTick, ticks: NDArray[Any]) -> NDArray[np.float64]:
    """Times of ticks under the tempo map of a score.

    Args:
        score: in ticks.
        ticks: integers, any shape.

    Returns:
        seconds, float64, same shape.
    """
    tempi = tempi_of(score)
    places = np.array([tick for tick, _ in tempi], np.float64)
    slopes = np.array([tempo for _, tempo in tempi], np.float64) / (1e6 * score.ticks_per_quarter)
    before = np.concatenate(([0.0], np.cumsum(np.diff(places) * slopes[:-1])))
    index = np.maximum(0, np.searchsorted(places, ticks, "right") - 1)
    seconds: NDArray[np.float64] = before[index] + (np.asarray(ticks) - places[index]) * slopes[index]
    return seconds


def to_pretty_midi(score: ScoreTick) -> pretty_midi.PrettyMIDI:
    """Convert a score, one instrument per track.

    Args:
        score: in ticks.

    Returns:
        a PrettyMIDI with the score's notes, programs, controllers, pitch bends, tempi, time and key
        signatures. Its resolution is that of the score, or lower where PrettyMIDI's table of ticks would
        get huge.
    """
    import pretty_midi

    resolution = score.ticks_per_quarter
    last = int(score.end())
    while last * resolution > _MAX_TABLE * score.ticks_per_quarter and resolution > 1:
        resolution = (resolution + 1) // 2
    midi = pretty_midi.PrettyMIDI(resolution=resolution)
    scales: dict[int, float] = {}
    for tick, tempo in tempi_of(score):
        scales[tick * resolution // score.ticks_per_quarter] = tempo / (1e6 * resolution)
    midi._tick_scales = sorted(scales.items())
    midi._update_tick_to_time(last * resolution // score.ticks_per_quarter + 1)
    metres, keys = metres_of(score), list(score.key_signatures)
    times = seconds_of(score, np.array([metre[0] for metre in metres])).tolist()
    for (_, top, bottom), time in zip(metres, times, strict=True):
        midi.time_signature_changes.append(pretty_midi.TimeSignature(top, bottom, time))
    times = seconds_of(score, np.array([key.time for key in keys], np.int64)).tolist()
    for key, time in zip(keys, times, strict=True):
        number = (7 * key.key + (9 if key.tonality else 0)) % 12 + (12 if key.tonality else 0)
        midi.key_signature_changes.append(pretty_midi.KeySignature(number, time))
    for track in score.tracks:
        instrument = pretty_midi.Instrument(track.program, track.is_drum, track.name)
        columns = track.notes.numpy()
        start = seconds_of(score, columns["time"])
        end = seconds_of(score, columns["time"] + columns["duration"])
        instrument.notes = [
            pretty_midi.Note(*values)
            for values in zip(
                columns["velocity"].tolist(),
                columns["pitch"].tolist(),
                start.tolist(),
                end.tolist(),
                strict=True,
            )
        ]
        columns = track.controls.numpy()
        times = seconds_of(score, columns["time"]).tolist()
        instrument.control_changes = [
            pretty_midi.ControlChange(*values)
            for values in zip(columns["number"].tolist(), columns["value"].tolist(), times, strict=True)
        ]
        columns = track.pitch_bends.numpy()
        times = seconds_of(score, columns["time"]).tolist()
        instrument.pitch_bends = [
            pretty_midi.PitchBend(*values) for values in zip(columns["value"].tolist(), times, strict=True)
        ]
        midi.instruments.append(instrument)
    return midi


def events_of_pretty_midi(midi: pretty_midi.PrettyMIDI, findings: Findings, limits: Limits) -> SmfEvents:
    """Turn a PrettyMIDI into the events of a file, so that it is checked and repaired like one.

    Args:
        midi: the object.
        findings: collects what it has and a score has not.
        limits: bounds; `events` is used here.

    Returns:
        the events, one track per instrument.

    Raises:
        MidiError: no PrettyMIDI, over the limit, or it has values that MIDI cannot hold.
    """
    if not all(hasattr(midi, name) for name in ("instruments", "resolution", "get_tempo_changes")):
        raise MidiError(
            f"{type(midi).__name__} is not a source of music; give a path, bytes, a binary file or a PrettyMIDI"
        )
    try:
        return _events(midi, findings, limits)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MidiError(
            f"<PrettyMIDI>: has values that MIDI cannot hold ({error}); repair the object"
        ) from None


class _Clock:
    """Ticks of seconds under the tempi of a PrettyMIDI, whole microseconds per quarter as in a file.

    Attributes:
        tempi: microseconds per quarter, int64 [N]; N at least 1.
        places: where they begin, in ticks, float64 [N].
    """

    def __init__(self, midi: Any, resolution: int, findings: Findings) -> None:
        self._findings = findings
        times, qpm = (np.asarray(values, np.float64) for values in midi.get_tempo_changes())
        tempi = np.clip(np.rint(60e6 / np.maximum(qpm, 1e-3)), 1, 0xFFFFFF).astype(np.int64)
        if not len(times):
            times, tempi = np.zeros(1), np.array([500_000])
        self._times, self.tempi = times, tempi
        self._speed = resolution * 1e6 / tempi  # ticks per second
        self.places = np.concatenate(([0.0], np.cumsum(np.diff(times) * self._speed[:-1])))

    def __call__(self, seconds: Any) -> NDArray[np.int64]:
        seconds = np.asarray(seconds, np.float64)
        if not np.isfinite(seconds).all():
            raise ValueError("a time that is not finite")
        index = np.maximum(0, np.searchsorted(self._times, seconds, "right") - 1)
        exact = self.places[index] + (seconds - self._times[index]) * self._speed[index]
        places = np.clip(np.rint(exact), None, 1 << 40)
        return _limited("time", places, 0, np.inf, self._findings).astype(np.int64)


def _events(midi: Any, findings: Findings, limits: Limits) -> SmfEvents:
    resolution = int(midi.resolution)
    if not 1 <= resolution <= 32767:
        findings.add("repaired", "resolution out of range", detail=f"{resolution}, 480 assumed")
        resolution = 480
    ticks = _Clock(midi, resolution, findings)
    lyrics = len(getattr(midi, "lyrics", ())) + len(getattr(midi, "text_events", ()))
    findings.add("not carried", "texts, lyrics and markers", lyrics)
    parts = [_channel_events(index, part, ticks, findings) for index, part in enumerate(midi.instruments)]
    table = np.concatenate([np.zeros((6, 0), np.int64), *parts], axis=1)
    if table.shape[1] > limits.events:
        raise MidiError(
            f"<PrettyMIDI>: has {table.shape[1]:,} events, more than the limit of {limits.events:,}; "
            "split it into pieces"
        )
    table = table[:, np.lexsort((table[2], table[1], table[0]))]
    ends = [table[1][table[0] == index].max(initial=0) for index in range(len(parts))]
    return SmfEvents(
        midi_format=-1,
        division=resolution,
        track=table[0].astype(np.int32),
        tick=table[1],
        status=table[3].astype(np.uint8),
        data1=table[4].astype(np.uint8),
        data2=table[5].astype(np.uint8),
        metas=_metas(midi, ticks),
        track_ends=np.array(ends or [0], np.int64),
    )


def _metas(midi: Any, ticks: _Clock) -> list[Meta]:
    """Tempi, metres and keys, and the names of the tracks."""
    metas = [
        Meta(0, int(tick), TEMPO, int(tempo).to_bytes(3, "big"))
        for tick, tempo in zip(np.rint(ticks.places).tolist(), ticks.tempi.tolist(), strict=True)
    ]
    for sign in midi.time_signature_changes:
        power = int(sign.denominator).bit_length() - 1
        exact = 1 << power == sign.denominator and 0 < sign.numerator < 256
        payload = bytes([int(sign.numerator), power, 24, 8]) if exact else b""
        metas.append(Meta(0, int(ticks(sign.time)), TIME_SIGNATURE, payload))
    for sign in midi.key_signature_changes:
        minor = sign.key_number >= 12
        sharps = (7 * (sign.key_number % 12 - (9 if minor else 0)) + 5) % 12 - 5
        metas.append(Meta(0, int(ticks(sign.time)), KEY_SIGNATURE, bytes([sharps & 0xFF, minor])))
    names = (str(part.name or "").encode() for part in midi.instruments)
    return [*metas, *(Meta(index, 0, TRACK_NAME, name) for index, name in enumerate(names))]


def _limited(
    what: str, values: NDArray[np.float64], low: int, high: float, findings: Findings
) -> NDArray[np.float64]:
    """Values between limits, with findings of those that were not."""
    findings.add("repaired", f"{what} below {low} raised", int((values < low).sum()))
    findings.add("repaired", f"{what} above {high} lowered", int((values > high).sum()))
    limited: NDArray[np.float64] = np.clip(values, low, high)
    return limited


def _channel_events(index: int, part: Any, ticks: _Clock, findings: Findings) -> NDArray[np.int64]:
    """An instrument's events [6, N]: track, tick, rank among those of one tick, status, data1, data2."""
    channel = 9 if part.is_drum else 0
    notes = [(note.pitch, note.velocity, note.start, note.end) for note in part.notes]
    controls = [(change.number, change.value, change.time) for change in part.control_changes]
    bends = [(bend.pitch, bend.time) for bend in part.pitch_bends]
    pitch, velocity, start, end = np.array(notes, np.float64).reshape(-1, 4).T
    pitch = _limited("pitch", pitch, 0, np.inf, findings)  # higher ones are dropped where notes are paired
    velocity = _limited("velocity", velocity, 1, 127, findings)
    on, off = ticks(start), ticks(end)
    flat = off <= on
    number, value, when = np.array(controls, np.float64).reshape(-1, 3).T
    number = _limited("controller", number, 0, 127, findings)
    value = _limited("value of a controller", value, 0, 127, findings)
    bend, bent = np.array(bends, np.float64).reshape(-1, 2).T
    bend = _limited("pitch bend", bend, -8192, 8191, findings) + 8192
    program = _limited("program", np.array([float(part.program)]), 0, 127, findings)
    rows: list[tuple[Any, int, int, Any, Any]] = [
        (np.zeros(1), 0, 0xC0, program, 0),
        (ticks(when), 1, 0xB0, number, value),
        (ticks(bent), 1, 0xE0, bend % 128, bend // 128),
        (off[~flat], 2, 0x80, pitch[~flat], 0),
        (on, 3, 0x90, pitch, velocity),
        (on[flat], 4, 0x80, pitch[flat], 0),
    ]
    blocks = []
    for tick, rank, status, first, second in rows:
        block = np.zeros((6, len(tick)), np.int64)
        block[0], block[1], block[2], block[3] = index, tick, rank, status | channel
        block[4], block[5] = np.rint(np.minimum(first, 255)), np.rint(second)
        blocks.append(block)
    return np.concatenate(blocks, axis=1)
