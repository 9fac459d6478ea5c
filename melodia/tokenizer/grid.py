"""A score on the tokenizer's grid: what the tokens can say, and findings for what they cannot.

Time is counted in whole grid ticks, fine enough that the grid unit of every metre is a whole number of them.
Onsets and ends snap to the unit of the metre they lie in. What snapping and joining the tracks of one program
makes overlap is repaired here: doubled notes are merged, and a note is cut where its pitch is struck again.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melodia.errors import TokenizerError
from melodia.grammar.tables import MICRO_RESOLUTION, units_of
from melodia.midi.report import Finding, Findings
from melodia.notes import program_of
from melodia.tokenizer.config import DRUMS, METRES, MICRO_STEPS, TokenizerConfig
from melodia.tokenizer.scores import DRUM_PROGRAM
from melodia.tokenizer.vocabularies import duration_values, tempo_levels, velocity_levels

if TYPE_CHECKING:
    from symusic.core import ScoreTick

_EPSILON = 1e-6


@dataclass
class GridScore:
    """Notes, tempi and metres in grid ticks; N notes, sorted by onset, then program (drums last), then pitch.

    Attributes:
        ticks_per_quarter: grid ticks in a quarter note.
        program, onset, duration, pitch, velocity: int64 [N]; program -1 is the drums.
        metres: (tick, numerator, denominator), ascending, the first at 0; each starts where a bar starts.
        tempi: (tick, quarter notes a minute), ascending, the first at 0.
        findings: what was quantised, repaired, dropped and is not carried.
        moved: how far note onsets and ends moved, in quarter notes: "onset" of the notes as given, "end" of the
            notes as they are.
    """

    ticks_per_quarter: int
    program: NDArray[np.int64]
    onset: NDArray[np.int64]
    duration: NDArray[np.int64]
    pitch: NDArray[np.int64]
    velocity: NDArray[np.int64]
    metres: list[tuple[int, int, int]] = field(default_factory=lambda: [(0, 4, 4)])
    tempi: list[tuple[int, float]] = field(default_factory=lambda: [(0, 120.0)])
    findings: list[Finding] = field(default_factory=list)
    moved: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def to_grid(score: ScoreTick, config: TokenizerConfig) -> GridScore:
    """Put a score on the grid of a tokenizer.

    Raises:
        TokenizerError: the score holds no notes that the tokenizer can write.
    """
    findings = Findings()
    scale = config.ticks_per_quarter / score.ticks_per_quarter
    columns = _note_columns(score, scale, findings)
    end = max(1.0, float(columns["end"].max(initial=0.0)))
    metres = _metres(score, scale, end, config, findings)
    grid = _Grid(metres, config)
    notes, moved = _snap_notes(columns, grid, config, findings)
    if not len(notes["onset"]):
        raise TokenizerError("the score has no notes that tokens can represent; give one with notes")
    if config.scheme == "Structured":
        _clip_gaps(notes, config, findings)
    last = int((notes["onset"] + notes["duration"]).max())
    metres = [metre for metre in metres if metre[0] < last]
    tempi: list[tuple[int, float]] = []
    if config.carries_metre:
        tempi = _tempi(score, scale, last, grid, config, findings)
    else:
        findings.add("not carried", "time signature", max(0, len(metres) - (metres[0][1:] == (4, 4))))
        findings.add("not carried", "tempo", len(score.tempos))
        metres = [(0, 4, 4)]
    _count_not_carried(score, findings)
    return GridScore(
        config.ticks_per_quarter,
        **notes,
        metres=metres,
        tempi=tempi,
        findings=findings.to_list(),
        moved=moved,
    )


class _Grid:
    """Where the grid lines lie: sections of one metre each."""

    def __init__(self, metres: list[tuple[int, int, int]], config: TokenizerConfig) -> None:
        self.starts = np.array([m[0] for m in metres], dtype=np.float64)
        self.units = np.array([config.unit(m[2]) for m in metres], dtype=np.float64)

    def section(self, times: NDArray[Any]) -> NDArray[np.int64]:
        """The index of the metre at each time [N]."""
        return np.maximum(np.searchsorted(self.starts, times + _EPSILON, side="right") - 1, 0)

    def snap(self, times: NDArray[np.float64]) -> NDArray[np.int64]:
        """The nearest grid line of each time [N]; halves go up."""
        at = self.section(times)
        start, unit = self.starts[at], self.units[at]
        return (start + np.floor((times - start) / unit + 0.5 + _EPSILON) * unit).astype(np.int64)

    def floor(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """The last grid line up to each time [N]."""
        at = self.section(times)
        start, unit = self.starts[at], self.units[at]
        return (start + (times - start) // unit * unit).astype(np.int64)


def _note_columns(score: ScoreTick, scale: float, findings: Findings) -> dict[str, NDArray[Any]]:
    """All notes of all tracks: program, onset and end in grid ticks (not yet whole), pitch, velocity."""
    parts: dict[str, list[NDArray[Any]]] = {
        key: [] for key in ("program", "onset", "end", "pitch", "velocity")
    }
    for track in score.tracks:
        if not len(track.notes):
            continue
        soa = track.notes.numpy()
        pitch = soa["pitch"].astype(np.int64)
        keep = np.ones(len(pitch), dtype=bool)
        if track.is_drum:
            keep = (pitch >= DRUMS[0]) & (pitch <= DRUMS[1])
            findings.add("dropped", f"drum note outside {DRUMS[0]} to {DRUMS[1]}", int((~keep).sum()))
        onset = soa["time"].astype(np.float64)
        parts["program"].append(np.full(int(keep.sum()), program_of(track), dtype=np.int64))
        parts["onset"].append(onset[keep] * scale)
        parts["end"].append((onset + soa["duration"])[keep] * scale)
        parts["pitch"].append(pitch[keep])
        parts["velocity"].append(soa["velocity"].astype(np.int64)[keep])
    floats = ("onset", "end")
    return {
        key: np.concatenate(values)
        if values
        else np.zeros(0, dtype=np.float64 if key in floats else np.int64)
        for key, values in parts.items()
    }


def representable(numerator: int, denominator: int) -> tuple[int, int] | None:
    """The metre of the same length that a TimeSig token exists for, or None.

    Halves and wholes become quarters, so that sixteenths stay on the grid: 2/2 is written as 4/4.

    >>> representable(2, 2), representable(6, 16), representable(13, 8)
    ((4, 4), (3, 8), None)
    """
    while denominator < 4:
        numerator, denominator = numerator * 2, denominator * 2
    while denominator > 4 and numerator % 2 == 0 and numerator not in METRES.get(denominator, ()):
        numerator, denominator = numerator // 2, denominator // 2
    return (numerator, denominator) if numerator in METRES.get(denominator, ()) else None


def _bar_pieces(numerator: int, denominator: int) -> list[tuple[int, int]] | None:
    """A bar that no TimeSig token fits, as several that do: 13/8 is 7/8 and 6/8."""
    while denominator < 4 or (denominator > 4 and numerator % 2 == 0):
        factor = 2 if denominator < 4 else 0.5
        numerator, denominator = int(numerator * factor), int(denominator * factor)
    if denominator not in METRES or numerator > 256:
        return None
    pieces: list[tuple[int, int]] = []
    largest = max(METRES[denominator])
    while numerator:
        count = -(-numerator // largest)
        piece = -(-numerator // count)
        fitting = representable(piece, denominator) or representable(1, denominator)
        assert fitting is not None
        pieces.append(fitting)
        numerator -= fitting[0] * denominator // fitting[1]
    return pieces


def _metres(
    score: ScoreTick, scale: float, end: float, config: TokenizerConfig, findings: Findings
) -> list[tuple[int, int, int]]:
    """The metre changes on the grid, each at the start of a bar."""
    quarter = config.ticks_per_quarter
    wanted = sorted(
        ((t.time * scale, t.numerator, t.denominator) for t in score.time_signatures), key=lambda m: m[0]
    )
    if not wanted or wanted[0][0] > 0.5:
        wanted.insert(0, (0.0, 4, 4))
    metres: list[tuple[int, int, int]] = []
    cursor = 0
    for index, (time, numerator, denominator) in enumerate(wanted):
        if time >= end and index:
            break
        until = min(wanted[index + 1][0], end) if index + 1 < len(wanted) else end
        if round(until) <= cursor:  # the next one stands at the same place
            continue
        last = index + 1 == len(wanted) or wanted[index + 1][0] >= end
        fitting = representable(numerator, denominator)
        bar = [fitting] if fitting else _bar_pieces(numerator, denominator)
        if bar is None:
            bar = [metres[-1][1:]] if metres else [(4, 4)]
            findings.add("dropped", f"time signature {numerator}/{denominator}", detail="no token for it")
        elif bar != [(numerator, denominator)]:
            written = " + ".join(f"{n}/{d}" for n, d in bar)
            findings.add("quantised", f"time signature {numerator}/{denominator} written as {written}")
        cursor = _lay_bars(metres, bar, cursor, until, quarter, last, findings)
    return metres


def _lay_bars(
    metres: list[tuple[int, int, int]],
    bar: list[tuple[int, int]],
    cursor: int,
    until: float,
    quarter: int,
    last: bool,
    findings: Findings,
) -> int:
    """Append bars from `cursor` to `until` (grid ticks); returns where the next metre may start."""

    def add(tick: int, metre: tuple[int, int]) -> None:
        if not metres or metres[-1][1:] != metre:
            metres.append((tick, *metre))

    lengths = [quarter * 4 * n // d for n, d in bar]
    if len(bar) > 1:
        while cursor < round(until):
            for metre, length in zip(bar, lengths, strict=True):
                add(cursor, metre)
                cursor += length
        return cursor
    length = lengths[0]
    whole, rest = divmod(round(until) - cursor, length)
    if last or rest == 0:
        add(cursor, bar[0])
        return cursor + (whole + (rest > 0)) * length
    cut = _metre_of(rest, quarter)
    if whole:
        add(cursor, bar[0])
    if cut is None:  # no metre for the short bar: the next time signature waits for the bar line
        if not whole:
            add(cursor, bar[0])
        findings.add("quantised", "time signature inside a bar moved to the next bar line")
        return cursor + (whole + 1) * length
    add(cursor + whole * length, cut)
    findings.add("quantised", f"bar cut short by a time signature written as {cut[0]}/{cut[1]}")
    return cursor + whole * length + rest


def _metre_of(ticks: int, quarter: int) -> tuple[int, int] | None:
    """The metre whose bar lasts exactly this many ticks, or None."""
    for denominator, numerators in METRES.items():
        beat = quarter * 4 // denominator
        if ticks % beat == 0 and ticks // beat in numerators:
            return ticks // beat, denominator
    return None


def _snap_notes(
    raw: dict[str, NDArray[Any]], grid: _Grid, config: TokenizerConfig, findings: Findings
) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.float64]]]:
    """Snap, merge, cut and give durations and velocities that exist, sorted; and how far times moved."""
    program, pitch = raw["program"], raw["pitch"]
    onset, end = grid.snap(raw["onset"]), grid.snap(raw["end"])
    if config.scheme == "PerTok":
        micro = np.clip(np.round(raw["onset"] - onset), -MICRO_STEPS, MICRO_STEPS).astype(np.int64)
        onset = np.maximum(onset + micro, 0)
        unit = np.full(len(onset), MICRO_RESOLUTION, dtype=np.int64)
        end = (
            onset
            + np.floor((raw["end"] - onset) / MICRO_RESOLUTION + 0.5).astype(np.int64) * MICRO_RESOLUTION
        )
    else:
        unit = grid.units[grid.section(onset)].astype(np.int64)
    moved = {"onset": np.abs(onset - raw["onset"]) / config.ticks_per_quarter}
    end = np.maximum(end, onset + unit)

    order = np.lexsort((-end, onset, pitch, program))
    program, pitch, onset, end = program[order], pitch[order], onset[order], end[order]
    unit, velocity = unit[order], raw["velocity"][order]
    true_onset, true_end = raw["onset"][order], raw["end"][order]
    same = np.zeros(len(onset), dtype=bool)
    same[1:] = (program[1:] == program[:-1]) & (pitch[1:] == pitch[:-1])
    if config.scheme == "PerTok":
        doubled = _closer_than_unit(onset, same)
    else:
        doubled = same.copy()
        doubled[1:] &= onset[1:] == onset[:-1]
    findings.add("repaired", "note doubled at one place merged", int(doubled.sum()))
    first = np.flatnonzero(~doubled)
    if len(first):
        velocity = np.maximum.reduceat(velocity, first)
        end = np.maximum.reduceat(end, first)
        true_end = np.maximum.reduceat(true_end, first)
    program, pitch, same = program[first], pitch[first], same[first]
    onset, unit, true_onset = onset[first], unit[first], true_onset[first]

    room = np.full(len(onset), np.iinfo(np.int64).max // 4, dtype=np.int64)
    again = np.flatnonzero(same[1:])  # the note behind is of the same pitch
    room[again] = onset[again + 1] - onset[again]
    findings.add("repaired", "note cut where its pitch is struck again", int((end - onset > room).sum()))
    if config.scheme != "MIDILike":  # a length that a token says exactly stays, whatever the grid at its end
        length = (true_end - true_onset) / unit
        exact = (np.abs(length - np.round(length)) < _EPSILON) & (np.abs(onset - true_onset) < _EPSILON)
        end = np.where(exact, onset + np.round(length).astype(np.int64) * unit, end)
    duration = _fit_durations(np.minimum(end - onset, room), room, unit, config, findings)
    if config.scheme == "MIDILike":  # an end is a place that time shifts reach; a clipped one may lie between
        duration = grid.floor(onset + duration) - onset
    moved["end"] = np.abs(onset + duration - true_end) / config.ticks_per_quarter
    for name, distance in moved.items():
        _count_moved(findings, f"note {name}", distance)

    levels = np.array(velocity_levels(config), dtype=np.int64)
    level = levels[_nearest(levels, velocity)]
    findings.add("quantised", "velocity", int((level != velocity).sum()), f"{config.velocities} levels")
    voice = np.where(program == DRUM_PROGRAM, 128, program)
    order = np.lexsort((pitch, voice, onset))
    columns = {"program": program, "onset": onset, "duration": duration, "pitch": pitch, "velocity": level}
    return {key: column[order] for key, column in columns.items()}, moved


def _closer_than_unit(onset: NDArray[np.int64], same: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which notes begin less than a grid unit behind the last kept one of their pitch."""
    doubled = np.zeros(len(onset), dtype=bool)
    kept = 0
    for i in range(len(onset)):
        if same[i] and onset[i] - kept < MICRO_RESOLUTION:
            doubled[i] = True
        else:
            kept = int(onset[i])
    return doubled


def _fit_durations(
    wanted: NDArray[np.int64],
    room: NDArray[np.int64],
    unit: NDArray[np.int64],
    config: TokenizerConfig,
    findings: Findings,
) -> NDArray[np.int64]:
    """The durations that exist: the nearest one that fits before the pitch is struck again."""
    table = np.array([units_of(value, config.positions_per_beat) for value in duration_values(config)])
    if config.scheme == "MIDILike":  # any length up to the longest, which is counted in quarters
        longest = np.full(len(wanted), table[-1] * config.unit(4), dtype=np.int64)
        fitted = np.minimum(wanted, longest)
    else:
        longest = table[-1] * unit
        in_units = wanted / unit
        fitted = table[_nearest(table, in_units)] * unit
        too_long = fitted > room
        floor = np.maximum(np.searchsorted(table, room / unit + _EPSILON, side="right") - 1, 0)
        fitted = np.where(too_long, table[floor] * unit, fitted)
    findings.add("quantised", "note longer than the longest duration clipped", int((wanted > longest).sum()))
    return fitted.astype(np.int64)


def _nearest(levels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """The index of the level nearest to each value; the lower one on a tie."""
    right = np.clip(np.searchsorted(levels, values), 1, max(1, len(levels) - 1))
    if len(levels) == 1:
        return np.zeros(len(values), dtype=np.int64)
    return right - (values - levels[right - 1] <= levels[right] - values)


def _clip_gaps(notes: dict[str, NDArray[np.int64]], config: TokenizerConfig, findings: Findings) -> None:
    """Structured: only one time shift stands before a note, so a longer silence is shortened."""
    longest = max(units_of(value, config.positions_per_beat) for value in duration_values(config))
    gaps = np.diff(notes["onset"], prepend=0)
    surplus = np.maximum(gaps - longest, 0)
    findings.add(
        "quantised", "silence longer than the longest time shift shortened", int((surplus > 0).sum())
    )
    notes["onset"] = notes["onset"] - np.cumsum(surplus)


def _tempi(
    score: ScoreTick, scale: float, last: int, grid: _Grid, config: TokenizerConfig, findings: Findings
) -> list[tuple[int, float]]:
    """Tempo changes on the grid: one at a place, none that changes nothing, the first at 0."""
    levels = np.array(tempo_levels(config))
    source = sorted(((t.time * scale, float(t.qpm)) for t in score.tempos), key=lambda item: item[0])
    if not source:
        source = [(0.0, 120.0)]
        findings.add("note", "no tempo in the score: 120 assumed")
    kept = [item for item in source if item[0] < last] or [(0.0, 120.0)]
    findings.add("dropped", "tempo change after the last note", len(source) - len(kept))
    source = kept
    times = grid.snap(np.array([time for time, _ in source]))
    if times[0] > 0:
        source.insert(0, (0.0, 120.0))
        times = np.insert(times, 0, 0)
    values = levels[_nearest(levels, np.array([qpm for _, qpm in source]))]
    at = dict(zip(times.tolist(), values.tolist(), strict=True))
    findings.add("quantised", "tempo change merged with another at one place", len(times) - len(at))
    tempi: list[tuple[int, float]] = []
    for time, value in at.items():
        if (not time or time < last) and (not tempi or tempi[-1][1] != value):
            tempi.append((time, value))
    worst = max(abs(value / qpm - 1) for value, (_, qpm) in zip(values.tolist(), source, strict=True))
    if worst > 0.001:
        findings.add("quantised", "tempo value", len(source), f"at most {worst:.1%}")
    return tempi


def _count_moved(findings: Findings, what: str, beats: NDArray[np.float64]) -> None:
    """Report how many times moved on the grid, and how far."""
    count = int((beats > 1e-9).sum())
    if count:
        detail = f"of {len(beats):,}; mean {beats.mean():.4f}, largest {beats.max():.4f} quarter notes"
        findings.add("quantised", what, count, detail)


def _count_not_carried(score: ScoreTick, findings: Findings) -> None:
    """Report what no token stands for."""
    findings.add("not carried", "key signature", len(score.key_signatures))
    findings.add("not carried", "marker", len(score.markers))
    for track in score.tracks:
        pedals = int((track.controls.numpy()["number"] == 64).sum()) if len(track.controls) else 0
        findings.add("not carried", "sustain pedal", pedals)
        findings.add("not carried", "control change", len(track.controls) - pedals)
        findings.add("not carried", "pitch bend", len(track.pitch_bends))
        findings.add("not carried", "lyric", len(track.lyrics))


def bar_of(metres: list[tuple[int, int, int]], tick: int) -> tuple[int, int, int]:
    """The metre entry that holds at a tick."""
    return metres[max(0, bisect_right([metre[0] for metre in metres], tick) - 1)]
