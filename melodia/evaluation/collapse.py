"""Collapse: does a piece get stuck? Loops of one note, bars repeated word for word, entropy and key that drift away.

Recurrent generators fail in these ways. Real music repeats too, so the limits of `signs` are set where a few in a
hundred real pieces lie; a report says what is there, not that it is wrong. Letters: M = bars, W = windows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from melodia.evaluation.notes import NoteTable, note_table
from melodia.evaluation.statistics import (
    RHYTHM_EDGES,
    Key,
    Run,
    entropy,
    estimate_key,
    longest_silence,
    pitch_in_scale,
    repeated_run,
)
from melodia.measure import number
from melodia.wording import counted

NAN = float("nan")
STEPS_PER_QUARTER = 12
WINDOW_BARS = 4

LOOP_ONSETS = 24
LOOP_SHARE = 0.8
LOOP_BARS = 4
LOOP_PERIODS = (1, 2, 4)
LOOP_COPIES = 4
ENTROPY_DROP = 0.5
SILENT_QUARTERS = 16.0
OUT_OF_KEY = 0.6


@dataclass(frozen=True)
class BarLoop:
    """A passage that repeats itself word for word.

    Attributes:
        bars: length of what is repeated.
        copies: how often it stands there, the first time included.
        first_bar: where it begins, counted from 0.
    """

    bars: int = 0
    copies: int = 0
    first_bar: int = 0


class Sign(NamedTuple):
    """Something that looks like collapse.

    Attributes:
        kind: only signs of one kind can be compared.
        strength: of two of a kind, the higher one is the worse.
        what: it is, in words.
        bar: in which it begins, counted from 0; None where it concerns the whole.
    """

    kind: str
    strength: float
    what: str
    bar: int | None = None

    def words(self, first_bar: int = 1) -> str:
        """The sign in words, in music whose first bar has this number."""
        return self.what if self.bar is None else f"{self.what} from bar {first_bar + self.bar}"


@dataclass(frozen=True)
class CollapseReport:
    """What `collapse_report` found.

    Attributes:
        bars: M.
        note_loop: onsets in the longest run of one pitch or chord at one distance in one track.
        note_loop_bar: the bar in which it begins.
        bar_loops: for 1, 2 and 4 bars, the passage with the most copies in a row.
        distinct_bars: share of the bars with onsets that no earlier bar equals.
        pitch_entropy: entropy of the pitches in each window of 4 bars, bits [W]; the last has the bars left over, too.
        rhythm_entropy: entropy of the onset intervals in each window, bits [W].
        entropy_drop: share of the pitch entropy of the first third that is lost in the last; negative if it grows.
        key: of the whole piece, or None.
        in_key: share of each window's notes in that key's scale [W].
        density: notes a bar of each window [W].
        silence: longest silence in quarter notes.
        signs: what looks like collapse; empty for a healthy piece.
    """

    bars: int
    note_loop: int
    note_loop_bar: int
    bar_loops: tuple[BarLoop, ...]
    distinct_bars: float
    pitch_entropy: tuple[float, ...]
    rhythm_entropy: tuple[float, ...]
    entropy_drop: float
    key: Key | None
    in_key: tuple[float, ...]
    density: tuple[float, ...]
    silence: float
    signs: tuple[Sign, ...]

    @property
    def findings(self) -> tuple[str, ...]:
        """What looks like collapse, in words."""
        return tuple(sign.words() for sign in self.signs)

    @property
    def healthy(self) -> bool:
        """Whether nothing looks like collapse."""
        return not self.signs

    def matches(self, sign: Sign) -> bool:
        """Whether a sign that other music shows is found here, too, and no weaker."""
        return any(own.kind == sign.kind and own.strength >= sign.strength for own in self.signs)

    def lines(self) -> list[str]:
        """The report as text."""
        loop = max(self.bar_loops, key=lambda found: found.bars * (found.copies - 1), default=BarLoop())
        text = [
            f"{counted(self.bars, 'bar')}, {_share(self.distinct_bars)} of them distinct; key {self.key or 'unclear'}",
            f"longest note loop: {self.note_loop} onsets from bar {self.note_loop_bar + 1}",
            f"longest bar loop: {loop.bars} x {loop.copies} bars from bar {loop.first_bar + 1}",
            f"pitch entropy: {_curve(self.pitch_entropy)} bits every {WINDOW_BARS} bars",
            f"in key: {_curve(self.in_key)}",
        ]
        return text + [f"collapse: {finding}" for finding in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy; what is undefined is None."""
        data = asdict(self)
        del data["signs"]
        data["findings"] = self.findings
        data["key"] = str(self.key) if self.key else None
        for name, value in data.items():
            if isinstance(value, tuple) and name in ("pitch_entropy", "rhythm_entropy", "in_key", "density"):
                data[name] = [None if item != item else item for item in value]
            elif isinstance(value, float) and value != value:
                data[name] = None
        return data


def collapse_report(score: Any) -> CollapseReport:
    """Look for loops and drift in a piece.

    Args:
        score: a symusic score, a `pretty_midi.PrettyMIDI` or a NoteTable.
    """
    table = note_table(score)
    run = repeated_run(table)
    words = bar_words(table)
    loops = tuple(longest_bar_loop(words, period) for period in LOOP_PERIODS)
    filled = [word for word in words if word]
    key = estimate_key(table)
    windows = [table.bars_between(first, end) for first, end in windows_of(table.bars)]
    pitch = tuple(entropy(np.bincount(window.pitched.pitch, minlength=128)) for window in windows)
    rhythm = tuple(entropy(_intervals(window)) for window in windows)
    inside = tuple(pitch_in_scale(window, key.tonic, key.mode) if key else NAN for window in windows)
    density = tuple(len(window.start) / max(window.bars, 1) for window in windows)
    silence = longest_silence(table)
    drop = entropy_drop(pitch)
    return CollapseReport(
        table.bars,
        run.onsets,
        run.bar,
        loops,
        len(set(filled)) / len(filled) if filled else NAN,
        pitch,
        rhythm,
        drop,
        key,
        inside,
        density,
        silence,
        tuple(_signs(run, loops, drop, inside, silence, table)),
    )


def windows_of(bars: int) -> list[tuple[int, int]]:
    """The first bar of each window, and the first behind it [W].

    Bars left over belong to the last one: a closing chord alone in its bar is no music that got stuck.

    >>> windows_of(9)
    [(0, 4), (4, 9)]
    """
    count = max(1, bars // WINDOW_BARS)
    ends = [WINDOW_BARS * (w + 1) for w in range(count - 1)] + [bars]
    return list(zip([0, *ends[:-1]], ends, strict=True)) if bars else []


def bar_words(table: NoteTable) -> list[tuple[tuple[int, ...], ...]]:
    """What stands in each bar: (place, pitch, length, track) of its notes in order, on 12 steps a quarter [M]."""
    step = table.resolution / STEPS_PER_QUARTER
    bar = table.bar_of_note
    place = np.rint((table.start - table.bar_lines[bar]) / step).astype(np.int64) if len(bar) else bar
    length = np.rint((table.end - table.start) / step).astype(np.int64)
    words: list[list[tuple[int, ...]]] = [[] for _ in range(table.bars)]
    notes = zip(place.tolist(), table.pitch.tolist(), length.tolist(), table.track.tolist(), strict=True)
    for b, note in zip(bar.tolist(), notes, strict=True):
        words[b].append(note)
    return [tuple(sorted(word)) for word in words]


def longest_bar_loop(words: list[tuple[tuple[int, ...], ...]], period: int) -> BarLoop:
    """The passage of `period` bars that stands most often in a row, word for word; silent passages do not count.

    >>> a, b = ((0, 60, 12, 0),), ((0, 62, 12, 0),)
    >>> longest_bar_loop([b, a, a, a, b], 1)
    BarLoop(bars=1, copies=3, first_bar=1)
    """
    best = BarLoop(period, 1 if any(words) else 0, 0)
    run = 0
    for i in range(period, len(words)):
        run = run + 1 if words[i] == words[i - period] else 0
        copies = run // period + 1
        first = i - run - period + 1
        if copies > best.copies and any(words[i - period + 1 : i + 1]):
            best = BarLoop(period, copies, first)
    return best


def entropy_drop(curve: tuple[float, ...]) -> float:
    """The share of the first third's mean that the last third has lost; nan for fewer than 3 defined windows."""
    known = np.array([value for value in curve if value == value])
    third = len(known) // 3
    if not third:
        return NAN
    before, after = float(known[:third].mean()), float(known[-third:].mean())
    return 1.0 - after / before if before > 0 else 0.0


def _intervals(window: NoteTable) -> NDArray[np.int64]:
    onsets = np.unique(window.start)
    return np.histogram(np.diff(onsets) / window.resolution, RHYTHM_EDGES)[0]


def _signs(
    run: Run,
    loops: tuple[BarLoop, ...],
    drop: float,
    inside: tuple[float, ...],
    silence: float,
    table: NoteTable,
) -> list[Sign]:
    found = []
    if run.onsets >= LOOP_ONSETS:
        # A pulse under a melody is music; it is a loop where little else happens.
        onsets = np.unique(table.pitched.start)
        meanwhile = int(((onsets >= run.start) & (onsets <= run.end)).sum())
        if run.onsets >= LOOP_SHARE * meanwhile:
            found.append(Sign("note", run.onsets, f"one note or chord {run.onsets} times in a row", run.bar))
    for loop in loops:
        if loop.copies >= LOOP_COPIES + (loop.bars == 1) and loop.bars * loop.copies >= LOOP_BARS:
            what = "a bar" if loop.bars == 1 else f"{loop.bars} bars"
            what = f"{what} repeated note for note {loop.copies} times"
            found.append(Sign("bars", loop.bars * loop.copies, what, loop.first_bar))
            break
    if drop >= ENTROPY_DROP:
        what = f"the variety of pitches falls by {drop:.0%} from the first third to the last"
        found.append(Sign("variety", drop, what))
    if silence >= SILENT_QUARTERS:
        found.append(Sign("silence", silence, f"a silence of {silence:g} quarter notes"))
    late = [value for value in inside[-max(1, len(inside) // 3) :] if value == value]
    if len(inside) >= 3 and late and (share := float(np.mean(late))) < OUT_OF_KEY:
        what = f"only {share:.0%} of the last third's notes lie in the piece's key"
        found.append(Sign("key", 1 - share, what))
    if not len(table.start):
        found.append(Sign("notes", 1, "no notes"))
    return found


def _curve(values: tuple[float, ...]) -> str:
    return " ".join(number(value, 2) for value in values) or "none"


def _share(value: float) -> str:
    return number(value) if value != value else f"{value:.0%}"
