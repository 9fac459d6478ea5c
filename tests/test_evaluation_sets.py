"""Comparing sets of pieces, and looking for collapse: hand-computed and constructed cases."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import symusic

from melodia.errors import ConfigError
from melodia.evaluation.collapse import BarLoop, collapse_report, entropy_drop, longest_bar_loop
from melodia.evaluation.comparison import (
    compare_sets,
    densities,
    difference_interval,
    distances,
    kullback_leibler,
    overlapping_area,
)
from melodia.evaluation.statistics import STATISTICS

TPQ = 480


def make(notes, drum=False):
    """A 4/4 score from (start, length in quarters, pitch[, track])."""
    score = symusic.Score(TPQ)
    tracks = {}
    for start, length, pitch, *track in notes:
        key = track[0] if track else 0
        tracks.setdefault(key, symusic.Track(program=key, is_drum=drum)).notes.append(
            symusic.Note(round(start * TPQ), round(length * TPQ), pitch, 80)
        )
    for key in sorted(tracks):
        score.tracks.append(tracks[key])
    score.time_signatures.append(symusic.TimeSignature(0, 4, 4))
    return score


def gaussian_kde(sample, at):
    """Scott's rule, written out: the definition in scipy's documentation."""
    sample = np.asarray(sample, dtype=float)
    width = sample.std(ddof=1) * len(sample) ** (-1 / 5)
    z = (at[:, None] - sample[None, :]) / width
    return np.exp(-0.5 * z * z).sum(axis=1) / (len(sample) * width * math.sqrt(2 * math.pi))


def test_densities_are_the_kernel_densities():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 40), rng.normal(3, 2, 60)
    grid, p, q = densities(a, b)
    np.testing.assert_allclose(p, gaussian_kde(a, grid), atol=2e-4)
    np.testing.assert_allclose(q, gaussian_kde(b, grid), atol=2e-4)
    step = grid[1] - grid[0]
    assert p.sum() * step == pytest.approx(1.0)
    assert q.sum() * step == pytest.approx(1.0)


def test_overlap_and_divergence_of_normal_samples():
    """Quantiles of two normal laws: overlap 2 Phi(-d / 2 sigma), divergence d^2 / 2 sigma^2 (kernels widen sigma)."""
    n = 20_000
    rng = np.random.default_rng(1)
    a = rng.normal(0.0, 1.0, n)
    b = rng.normal(1.0, 1.0, n)
    sigma = math.sqrt(1.0 + n**-0.4)
    assert overlapping_area(a, b) == pytest.approx(math.erfc(1.0 / (2 * sigma) / math.sqrt(2)), abs=0.01)
    assert kullback_leibler(a, b) == pytest.approx(1.0 / (2 * sigma**2), abs=0.02)


def test_overlap_and_divergence_at_the_edges():
    a = [1.0, 2.0, 4.0, 4.5]
    assert overlapping_area(a, a) == 1.0
    assert kullback_leibler(a, a) == 0.0
    assert overlapping_area(a, [100.0, 101.0, 103.0]) == pytest.approx(0.0, abs=1e-6)
    assert kullback_leibler(a, [100.0, 101.0, 103.0]) > 10
    # Samples of one value: equal or apart, never an error.
    assert overlapping_area([2.0, 2.0], [2.0]) == 1.0
    assert overlapping_area([2.0, 2.0], [3.0, 3.0]) == pytest.approx(0.0, abs=1e-6)
    assert kullback_leibler([2.0, 2.0], [2.0]) == 0.0
    assert overlapping_area([0.0, 0.0, 0.0], [0.0, 0.0, 5.0]) > 0.0


def test_distances():
    a = np.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(distances(a, a), [[0, 5], [5, 0]], atol=1e-7)
    np.testing.assert_array_equal(distances(np.array([[1.0], [4.0]]), np.array([[2.0]])), [[1.0], [2.0]])


def song(rng, scale=(0, 2, 4, 5, 7, 9, 11), length=32, loop=False):
    notes = []
    for i in range(length):
        pitch = 60 if loop else 60 + int(rng.choice(scale)) + 12 * int(rng.integers(0, 2))
        notes.append((i / 2, 0.5, pitch))
    return make(notes)


def test_compare_sets_tells_alike_from_unlike():
    rng = np.random.default_rng(2)
    real = [song(rng) for _ in range(12)]
    alike = compare_sets(real, [song(rng) for _ in range(12)])
    stuck = compare_sets(real, [song(rng, loop=True) for _ in range(12)])
    assert alike["pitch_class_entropy"].overlap > 0.7
    assert stuck["pitch_class_entropy"].overlap < 0.2
    assert stuck["pitch_class_entropy"].divergence > alike["pitch_class_entropy"].divergence
    assert stuck["pitch_class_entropy"].generated_mean == 0.0
    assert stuck["longest_repeated_run"].generated_mean == 32.0
    assert alike["pitch_class_histogram"].distance < 0.2
    assert stuck["pitch_class_histogram"].distance > 0.8
    assert math.isnan(alike["pitch_class_histogram"].real_mean)
    assert {row.name for row in alike.features} >= set(STATISTICS)
    with pytest.raises(KeyError):
        alike["beauty"]


def test_compare_sets_by_hand():
    """Notes a bar: real 4 and 8, generated 8: means, spread 2, distance |6 - 8| / 2."""
    four = make([(i, 1, 60 + i) for i in range(4)])
    eight = make([(i / 2, 0.5, 60 + i) for i in range(8)])
    row = compare_sets([four, eight], [eight])["notes_per_bar"]
    assert (row.real_mean, row.real_spread) == (6.0, 2.0)
    assert (row.generated_mean, row.generated_spread) == (8.0, 0.0)
    assert row.distance == 1.0
    rows = compare_sets([four, eight, four], [eight])
    assert rows["duration_histogram"].distance == pytest.approx(2 / 3)


def test_compare_sets_with_undefined_values_and_errors():
    silence = make([])
    drums = make([(i, 0.25, 36) for i in range(16)], drum=True)
    rng = np.random.default_rng(3)
    table = compare_sets([song(rng), song(rng), silence, drums], [silence])
    row = table["scale_consistency"]
    assert row.real_mean == pytest.approx(1.0)
    assert math.isnan(row.generated_mean)
    assert math.isnan(row.overlap)
    text = json.dumps(table.to_dict(), allow_nan=False)
    assert json.loads(text)["real"] == 4
    with pytest.raises(ConfigError, match="2 real pieces"):
        compare_sets([silence], [silence])
    with pytest.raises(ConfigError, match="received 2 and 0"):
        compare_sets([silence, silence], [])


def bar(index, pitches):
    return [(4 * index + i, 1, pitch) for i, pitch in enumerate(pitches)]


def varied(bars, seed=0):
    rng = np.random.default_rng(seed)
    scale = [60, 62, 64, 65, 67, 69, 71, 72]
    return [note for index in range(bars) for note in bar(index, rng.choice(scale, 4).tolist())]


def test_a_healthy_piece_has_no_findings():
    report = collapse_report(make(varied(24)))
    assert report.healthy
    assert report.bars == 24
    assert len(report.pitch_entropy) == 6
    assert str(report.key).startswith(("C", "A", "G", "F", "E", "D"))
    assert report.density == (4.0,) * 6


def test_one_note_for_ever():
    """8 bars of music, then quarters of one pitch."""
    notes = varied(8) + [(32 + i, 1, 79) for i in range(64)]
    report = collapse_report(make(notes))
    assert (report.note_loop, report.note_loop_bar) == (64, 8)
    assert any("64 times in a row from bar 9" in finding for finding in report.findings)
    assert any("repeated note for note 16 times from bar 9" in finding for finding in report.findings)
    assert report.bar_loops[0] == BarLoop(1, 16, 8)
    assert report.entropy_drop == 1.0
    assert report.pitch_entropy[-1] == 0.0
    assert not report.healthy


def test_signs_are_numbered_as_asked_and_compared_by_kind():
    piece = collapse_report(make(varied(8) + [(32 + i, 1, 79) for i in range(64)]))
    note = next(sign for sign in piece.signs if sign.kind == "note")
    assert note.words(17) == "one note or chord 64 times in a row from bar 25"
    fewer, more = (collapse_report(make([(i, 1, 79) for i in range(onsets)])) for onsets in (48, 80))
    assert not fewer.matches(note)
    assert more.matches(note)
    silent = collapse_report(make([(0, 1, 60), (91, 1, 62)]))
    assert silent.signs[0].strength > note.strength
    assert not silent.matches(note)
    assert silent.signs[0].words(17) == "a silence of 90 quarter notes"


def test_a_closing_note_in_a_bar_of_its_own_is_no_collapse():
    """Bars beyond the last whole window belong to it; no window of one bar stands for the last third."""
    report = collapse_report(make([*varied(8), (32, 4, 60)]))
    assert report.healthy
    assert len(report.pitch_entropy) == 2
    assert report.density == (4.0, 17 / 5)
    short = collapse_report(make(varied(3)))
    assert len(short.pitch_entropy) == 1
    assert collapse_report(make([])).pitch_entropy == ()


def test_a_pulse_under_a_melody_is_no_loop():
    """A bass that repeats its note, an octave of melody in another track twice as fast."""
    melody = [(i / 2, 0.5, pitch) for i, (_, _, pitch) in enumerate(varied(24))]
    bass = [(i, 1, 36, 1) for i in range(48)]
    report = collapse_report(make(melody + bass))
    assert report.note_loop == 48
    assert not any("note or chord" in finding for finding in report.findings)


def test_bars_repeated_word_for_word():
    two = [(60, 62, 64, 65), (67, 65, 64, 62)]
    notes = varied(3) + [note for i in range(10) for note in bar(3 + i, two[i % 2])] + [(4 * 13, 4, 60)]
    report = collapse_report(make(notes))
    assert report.bar_loops[1] == BarLoop(2, 5, 3)
    assert report.bar_loops[0].copies == 1
    assert report.bar_loops[2].copies == 2
    assert any("2 bars repeated note for note 5 times from bar 4" in finding for finding in report.findings)
    assert report.distinct_bars == pytest.approx(6 / 14)


def test_longest_bar_loop_by_hand():
    a, b, silent = ((0, 60, 12, 0),), ((0, 62, 12, 0),), ()
    assert longest_bar_loop([a, b, a, b, a], 2) == BarLoop(2, 2, 0)
    assert longest_bar_loop([a, b, a, b, a, b], 2) == BarLoop(2, 3, 0)
    assert longest_bar_loop([b, a, b, a, b], 1) == BarLoop(1, 1, 0)
    assert longest_bar_loop([silent] * 9, 1).copies == 0
    assert longest_bar_loop([a, silent, silent, silent, b], 1).copies == 1, "silence is no loop"
    assert longest_bar_loop([], 1) == BarLoop(1, 0, 0)


def test_entropy_drop_by_hand():
    assert entropy_drop((2.0, 2.0, 1.5, 1.0, 1.0, 1.0)) == pytest.approx(0.5)
    assert entropy_drop((1.0, 1.0, 2.0)) == pytest.approx(-1.0)
    assert entropy_drop((2.0, float("nan"), 2.0, 1.0)) == pytest.approx(0.5)
    assert math.isnan(entropy_drop((1.0, 1.0)))
    assert entropy_drop((0.0, 0.0, 0.0)) == 0.0


def test_key_drift_and_silence():
    """C major, then chromatic clusters: the end lies outside the key. And 20 quarters of silence."""
    notes = varied(16) + [(64 + i / 4, 0.25, 61 + [0, 2, 5, 7, 9][i % 5]) for i in range(96)]
    report = collapse_report(make(notes))
    assert report.in_key[0] > 0.9
    assert report.in_key[-1] < 0.6
    assert any("in the piece's key" in finding for finding in report.findings)
    gap = collapse_report(make([(0, 1, 60), (21, 1, 62)]))
    assert gap.silence == 20.0
    assert any("silence of 20" in finding for finding in gap.findings)


def test_silence_and_json():
    report = collapse_report(make([]))
    assert report.findings == ("no notes",)
    json.dumps(report.to_dict(), allow_nan=False)
    assert report.lines()[0] == "0 bars, – of them distinct; key unclear"
    drums = collapse_report(make([(beat, 0.25, 38) for beat in range(32)], drum=True))
    assert drums.lines()[3:5] == ["pitch entropy: – – bits every 4 bars", "in key: – –"]
    json.dumps(collapse_report(make(varied(8))).to_dict(), allow_nan=False)


def test_interval_of_the_difference_of_means():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.0, 1.0, 400), rng.normal(0.5, 2.0, 100)
    low, high = difference_interval(a, b)
    middle = b.mean() - a.mean()
    half = 1.96 * math.sqrt(a.var() / 400 + b.var() / 100)
    assert low == pytest.approx(middle - half, abs=0.05)
    assert high == pytest.approx(middle + half, abs=0.05)
    assert all(math.isnan(end) for end in difference_interval([], [1.0]))
    assert all(math.isnan(end) for end in difference_interval([1.0], [1.0, 2.0])), "one piece says nothing"
    pieces = [make([(i, 1, 60 + i % n) for i in range(16)]) for n in (2, 3, 4)]
    row = compare_sets(pieces, pieces[:2])["pitch_range"]
    assert row.low <= row.generated_mean - row.real_mean <= row.high
    assert math.isnan(compare_sets(pieces, pieces)["duration_histogram"].low)


@pytest.mark.parametrize("pieces", [2, 4, 10])
@pytest.mark.parametrize("paired", [False, True])
def test_equal_sets_seldom_differ_however_few(pieces, paired):
    """Both sides are of one law: 1 interval in 20 may leave out 0 (about 1 in 3 of 2 pieces did, 1 in 8 of 4)."""
    rng = np.random.default_rng(3)
    stars = 0
    for _ in range(400):
        low, high = difference_interval(*rng.normal(0.0, 1.0, (2, pieces)), paired=paired)
        stars += low > 0 or high < 0
    assert stars / 400 < 0.085


def test_pairs_are_compared_within():
    """Pieces that differ much from each other, each with one note a bar more on the other side."""
    rng = np.random.default_rng(4)
    real = rng.normal(0.0, 10.0, 12)
    made = real + 1.0 + rng.normal(0.0, 0.1, 12)
    apart, together = (difference_interval(real, made, paired=paired) for paired in (False, True))
    assert apart[0] < 0 < apart[1]
    assert 0.8 < together[0] < 1.0 < together[1] < 1.2
    made[3] = math.nan  # the pair goes, not the half of it
    low, high = difference_interval(real, made, paired=True)
    assert 0.8 < low < high < 1.2
    pieces = [make([(i / n, 1 / n, 60) for i in range(16 * n)]) for n in (1, 2, 4, 8)]
    more = [make([(i / n, 1 / n, 60) for i in range(16 * n)] + [(15.5, 0.4, 60)]) for n in (1, 2, 4, 8)]
    assert compare_sets(pieces, more)["notes_per_bar"].low < 0
    assert compare_sets(pieces, more, paired=True)["notes_per_bar"].low == pytest.approx(0.25)
    with pytest.raises(ConfigError, match=r"as many generated as real pieces \(received 3 and 4\)"):
        compare_sets(pieces, pieces[:3], paired=True)
