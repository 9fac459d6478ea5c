"""Statistics of one piece: tonality, rhythm, texture, repetition. An undefined value is nan, never made up.

Sources: Mogren 2016 (scale consistency), Wu & Yang 2020 (grooving similarity), Dong et al. 2020 (MusPy),
Krumhansl & Kessler 1982 (key profiles), Yang & Lerch 2018 (histograms). Percussion counts for rhythm and not
for pitch. All functions take a symusic score, a `pretty_midi.PrettyMIDI` or a `NoteTable`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from melodia.errors import ConfigError
from melodia.evaluation.notes import NoteTable, note_table
from melodia.key_finding import MAJOR, MINOR

NAN = float("nan")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
NOTE_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
KEY_PROFILES = {
    mode: tuple(hundredths / 100 for hundredths in profile)
    for mode, profile in (("major", MAJOR), ("minor", MINOR))
}
# Upper edges of duration and onset-interval bins, in quarter notes; between two musical values each.
RHYTHM_EDGES = (0.0, 0.1, 0.19, 0.29, 0.415, 0.6, 0.9, 1.25, 1.75, 2.5, 3.5, 5.0, np.inf)
GROOVE_STEPS_PER_QUARTER = 12
LARGEST_INTERVAL = 24


@dataclass(frozen=True)
class Key:
    """An estimated key.

    Attributes:
        tonic: pitch class, 0 = C.
        mode: "major" or "minor".
        correlation: Pearson correlation with the profile, -1 to 1.
    """

    tonic: int
    mode: str
    correlation: float

    def __str__(self) -> str:
        return f"{NOTE_NAMES[self.tonic]} {self.mode}"


def entropy(weights: NDArray[Any]) -> float:
    """Shannon entropy in bits of weights that need not sum to one; nan where they sum to zero.

    >>> entropy(np.array([1, 1, 0, 2]))
    1.5
    """
    total = float(weights.sum())
    if total <= 0:
        return NAN
    p = weights[weights > 0] / total
    return float(-(p * np.log2(p)).sum()) + 0.0


def pitch_class_histogram(score: Any, *, by_duration: bool = False) -> NDArray[np.float64]:
    """How often (or, `by_duration`, how long in ticks) each pitch class sounds, C first [12]."""
    table = note_table(score).pitched
    weights = (table.end - table.start).astype(np.float64) if by_duration else None
    return np.bincount(table.pitch % 12, weights=weights, minlength=12).astype(np.float64)


def pitch_class_entropy(score: Any) -> float:
    """Entropy of the pitch-class histogram in bits.

    0 for one pitch class, log2(12) = 3.585 for all alike (Wu & Yang 2020).
    """
    return entropy(pitch_class_histogram(score))


def pitch_in_scale(score: Any, tonic: int, mode: str = "major") -> float:
    """Share of the notes in the natural major or minor scale on `tonic` (0 = C); nan without pitch.

    Raises:
        ConfigError: a tonic outside 0..11 or an unknown mode.
    """
    if mode not in SCALES or not 0 <= tonic < 12:
        raise ConfigError(
            f"a key is a tonic in 0..11 and one of {', '.join(SCALES)} (received {tonic}, {mode!r})"
        )
    return _share_in_scale(pitch_class_histogram(score), tonic, mode)


def _share_in_scale(histogram: NDArray[np.float64], tonic: int, mode: str) -> float:
    inside = histogram[[(tonic + step) % 12 for step in SCALES[mode]]].sum()
    return float(inside / histogram.sum()) if histogram.sum() else NAN


def scale_consistency(score: Any) -> float:
    """The largest `pitch_in_scale` over all major and minor scales (Mogren 2016; MusPy)."""
    histogram = pitch_class_histogram(score)
    if not histogram.sum():
        return NAN
    return max(_share_in_scale(histogram, tonic, mode) for tonic in range(12) for mode in SCALES)


def estimate_key(score: Any) -> Key | None:
    """The Krumhansl-Schmuckler key: the profile that correlates best with how long pitch classes sound.

    None without pitch.
    """
    histogram = pitch_class_histogram(score, by_duration=True)
    if not histogram.sum() or np.ptp(histogram) == 0:
        return None
    found = [
        Key(tonic, mode, float(np.corrcoef(np.roll(profile, tonic), histogram)[0, 1]))
        for mode, profile in KEY_PROFILES.items()
        for tonic in range(12)
    ]
    return max(found, key=lambda key: key.correlation)


def pitch_in_key(score: Any) -> float:
    """`pitch_in_scale` in the scale of the piece's own key (`estimate_key`); nan where it has none."""
    table = note_table(score)
    key = estimate_key(table)
    return NAN if key is None else pitch_in_scale(table, key.tonic, key.mode)


def _grooves(table: NoteTable) -> list[NDArray[np.bool_]]:
    """Which of 12 steps a quarter have an onset, for each bar; bars may differ in length."""
    step = table.resolution / GROOVE_STEPS_PER_QUARTER
    lengths = np.maximum(np.rint(np.diff(table.bar_lines) / step).astype(np.int64), 1)
    grooves = [np.zeros(length, dtype=bool) for length in lengths.tolist()]
    bar = table.bar_of_note
    place = np.rint((table.start - table.bar_lines[bar]) / step).astype(np.int64)
    for b, at in set(zip(bar.tolist(), place.tolist(), strict=True)):
        # An onset played a little before the bar line belongs to the next bar's first step.
        if at >= len(grooves[b]):
            if b + 1 < len(grooves):
                grooves[b + 1][0] = True
            continue
        grooves[b][at] = True
    return grooves


def groove_consistency(score: Any) -> float:
    """How alike neighbouring bars' rhythms are, 0 to 1: onsets in both over onsets in either, mean of pairs.

    1 for identical bars; 0 for silence beside a rhythm; a pair of silent bars, or of bars of unlike length,
    says nothing and is left out; nan without pairs. `groove_similarity` is the published form, which counts
    the many steps where neither bar has an onset as agreement and so gives almost 1 to silence beside a kick
    drum.
    """
    grooves = _grooves(note_table(score))
    ratios = []
    for a, b in pairwise(grooves):
        if len(a) == len(b) and (a.any() or b.any()):
            ratios.append(float((a & b).sum() / (a | b).sum()))
    return float(np.mean(ratios)) if ratios else NAN


def groove_similarity(score: Any) -> float:
    """1 - mean of XOR over steps, mean over neighbouring bars of one length (Wu & Yang 2020, equation 3).

    Nan without.
    """
    grooves = _grooves(note_table(score))
    ratios = [1.0 - float((a ^ b).mean()) for a, b in pairwise(grooves) if len(a) == len(b)]
    return float(np.mean(ratios)) if ratios else NAN


def notes_per_bar(score: Any) -> float:
    """Notes over bars, empty bars included."""
    table = note_table(score)
    return len(table.start) / table.bars if table.bars else NAN


def notes_per_second(score: Any) -> float:
    """Notes over seconds from the first bar line to the end of the last note."""
    table = note_table(score)
    return len(table.start) / table.duration_seconds if table.duration_seconds > 0 else NAN


def _sounding(table: NoteTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ticks of each stretch between note beginnings and ends, and how many notes sound in it."""
    times = np.concatenate([table.start, table.end])
    change = np.concatenate(
        [np.ones(len(table.start), dtype=np.int64), -np.ones(len(table.end), dtype=np.int64)]
    )
    order = np.argsort(times, kind="stable")
    return np.diff(times[order]), np.cumsum(change[order])[:-1]


def polyphony(score: Any) -> float:
    """Mean number of pitched notes sounding together while any sounds (MusPy's, without a grid)."""
    table = note_table(score).pitched
    if not len(table.start):
        return NAN
    length, notes = _sounding(table)
    time = float(length[notes > 0].sum())
    return float((length * notes).sum()) / time if time else NAN


def longest_silence(score: Any) -> float:
    """Quarter notes of the longest stretch without sound between the first onset and the last end."""
    table = note_table(score)
    if not len(table.start):
        return NAN
    length, notes = _sounding(table)
    silent = length[notes == 0]
    return float(silent.max() / table.resolution) if len(silent) else 0.0


def empty_bar_share(score: Any) -> float:
    """Share of the bars in which no note begins."""
    table = note_table(score)
    return 1.0 - len(np.unique(table.bar_of_note)) / table.bars if table.bars and len(table.start) else NAN


def velocity_spread(score: Any) -> float:
    """Standard deviation of the velocities."""
    table = note_table(score)
    return float(table.velocity.std()) if len(table.start) else NAN


def velocity_levels(score: Any) -> float:
    """How many different velocities there are."""
    return float(len(np.unique(note_table(score).velocity)))


def commonest_pitch_share(score: Any) -> float:
    """Share of the notes on the commonest pitch."""
    table = note_table(score).pitched
    return float(np.bincount(table.pitch).max() / len(table.pitch)) if len(table.pitch) else NAN


def pitch_range(score: Any) -> float:
    """Semitones between the lowest and the highest pitch."""
    table = note_table(score).pitched
    return float(np.ptp(table.pitch)) if len(table.pitch) else NAN


def mean_pitch(score: Any) -> float:
    """Mean MIDI pitch."""
    table = note_table(score).pitched
    return float(table.pitch.mean()) if len(table.pitch) else NAN


def mean_duration(score: Any) -> float:
    """Mean note length in quarter notes."""
    table = note_table(score).pitched
    return float((table.end - table.start).mean() / table.resolution) if len(table.start) else NAN


class Run(NamedTuple):
    """Equal onsets one after the other: how many, the bar of the first, and its and the last one's tick."""

    onsets: int
    bar: int
    start: int
    end: int


def repeated_run(table: NoteTable) -> Run:
    """The longest run of equal onsets in one track: same pitches, same time since the onset before.

    A single note is a run of 1; without pitched notes the run has 0 onsets.
    """
    best = Run(0, 0, 0, 0)
    for track in np.unique(table.track).tolist():
        part = table.select((table.track == track) & ~table.drum)
        onsets, first = np.unique(part.start, return_index=True)
        if not len(onsets):
            continue
        chords = [tuple(chunk.tolist()) for chunk in np.split(part.pitch, first[1:])]
        gaps = np.diff(onsets).tolist()
        begin = 0
        for i in range(len(chords)):
            if i and chords[i] != chords[i - 1]:
                begin = i
            elif i - begin >= 2 and abs(gaps[i - 1] - gaps[i - 2]) * 24 > table.resolution:
                begin = i - 1
            if i - begin + 1 > best.onsets:
                bar = int(part.bar_of_note[first[begin]])
                best = Run(i - begin + 1, bar, int(onsets[begin]), int(onsets[i]))
    return best


def longest_repeated_run(score: Any) -> float:
    """Onsets in the longest run of one pitch (or chord) repeated at one distance in one track."""
    return float(repeated_run(note_table(score)).onsets)


def duration_histogram(score: Any) -> NDArray[np.float64]:
    """Note lengths of pitched notes in quarter notes over `RHYTHM_EDGES`, as counts [12]."""
    table = note_table(score).pitched
    return np.histogram((table.end - table.start) / table.resolution, RHYTHM_EDGES)[0].astype(np.float64)


def onset_interval_histogram(score: Any) -> NDArray[np.float64]:
    """Quarter notes between neighbouring onsets of the piece over `RHYTHM_EDGES`, as counts [12]."""
    table = note_table(score)
    return np.histogram(np.diff(np.unique(table.start)) / table.resolution, RHYTHM_EDGES)[0].astype(
        np.float64
    )


def interval_histogram(score: Any) -> NDArray[np.float64]:
    """Semitones from each onset's highest note to the next one's, per track, clipped to -24..24 [49]."""
    table = note_table(score).pitched
    result = np.zeros(2 * LARGEST_INTERVAL + 1)
    for track in np.unique(table.track).tolist():
        part = table.select(table.track == track)
        last = np.flatnonzero(np.append(np.diff(part.start) > 0, True))
        steps = np.clip(np.diff(part.pitch[last]), -LARGEST_INTERVAL, LARGEST_INTERVAL)
        result += np.bincount(steps + LARGEST_INTERVAL, minlength=len(result))
    return result


STATISTICS: dict[str, Callable[[Any], float]] = {
    function.__name__: function
    for function in (
        pitch_class_entropy,
        scale_consistency,
        pitch_in_key,
        groove_consistency,
        groove_similarity,
        notes_per_bar,
        notes_per_second,
        polyphony,
        mean_duration,
        mean_pitch,
        pitch_range,
        velocity_spread,
        velocity_levels,
        commonest_pitch_share,
        longest_repeated_run,
        empty_bar_share,
        longest_silence,
    )
}
HISTOGRAMS: dict[str, Callable[[Any], NDArray[np.float64]]] = {
    function.__name__: function
    for function in (pitch_class_histogram, duration_histogram, onset_interval_histogram, interval_histogram)
}


def piece_statistics(score: Any) -> dict[str, float]:
    """All scalar statistics of a piece, by name; nan where one is undefined."""
    table = note_table(score)
    return {name: function(table) for name, function in STATISTICS.items()}


def piece_histograms(score: Any) -> dict[str, NDArray[np.float64]]:
    """All histograms of a piece, each summing to one (all nan for a piece without notes to count)."""
    table = note_table(score)
    result = {}
    for name, function in HISTOGRAMS.items():
        counts = function(table)
        total = counts.sum()
        result[name] = counts / total if total else np.full(len(counts), NAN)
    return result
