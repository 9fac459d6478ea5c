"""Statistics against hand-computed values, and the same from symusic and from pretty_midi."""

from __future__ import annotations

import math
from time import process_time

import numpy as np
import pretty_midi
import pytest
import symusic

from melodia.errors import ConfigError, MidiError
from melodia.evaluation import statistics as st
from melodia.evaluation.notes import note_table
from melodia.notes import bar_lines

TPQ = 480


def make(notes, *, signatures=((0, 4, 4),), tempi=((0, 120.0),), drum=False):
    """A score from (start, length in quarters, pitch[, velocity[, track]])."""
    score = symusic.Score(TPQ)
    tracks = {}
    for start, length, pitch, *rest in notes:
        velocity, track = (*rest, 80, 0)[:2] if len(rest) != 1 else (rest[0], 0)
        if track not in tracks:
            tracks[track] = symusic.Track(program=track, is_drum=drum)
        note = symusic.Note(round(start * TPQ), round(length * TPQ), pitch, velocity)
        tracks[track].notes.append(note)
    for key in sorted(tracks):
        score.tracks.append(tracks[key])
    for time, numerator, denominator in signatures:
        score.time_signatures.append(symusic.TimeSignature(round(time * TPQ), numerator, denominator))
    for time, qpm in tempi:
        score.tempos.append(symusic.Tempo(round(time * TPQ), qpm=qpm))
    return score


SILENCE = make([])


def test_pitch_class_entropy():
    assert st.pitch_class_entropy(make([(i, 1, 60 + 12 * i) for i in range(4)])) == 0.0
    assert st.pitch_class_entropy(make([(i, 1, 60 + i) for i in range(12)])) == pytest.approx(math.log2(12))
    # C C D E: 1/2, 1/4, 1/4 -> 1.5 bits.
    assert st.pitch_class_entropy(make([(0, 1, 60), (1, 1, 72), (2, 1, 62), (3, 1, 64)])) == pytest.approx(
        1.5
    )
    assert math.isnan(st.pitch_class_entropy(SILENCE))
    assert math.isnan(st.pitch_class_entropy(make([(0, 1, 36)], drum=True))), "drums have no pitch class"


def test_scale_consistency_and_pitch_in_scale():
    scale = make([(i, 1, 60 + step) for i, step in enumerate((0, 2, 4, 5, 7, 9, 11))])
    assert st.scale_consistency(scale) == 1.0
    assert st.pitch_in_scale(scale, 0) == 1.0
    assert st.pitch_in_scale(scale, 9, "minor") == 1.0
    # In D flat major only C and F of these seven are left.
    assert st.pitch_in_scale(scale, 1) == pytest.approx(2 / 7)
    chromatic = make([(i, 1, 60 + i) for i in range(12)])
    assert st.scale_consistency(chromatic) == pytest.approx(7 / 12)
    assert math.isnan(st.scale_consistency(SILENCE))
    with pytest.raises(ConfigError, match="a tonic in"):
        st.pitch_in_scale(scale, 12)
    with pytest.raises(ConfigError, match="dorian"):
        st.pitch_in_scale(scale, 0, "dorian")


def test_key_estimate():
    tune = [60, 60, 67, 67, 69, 69, 67, 67, 65, 65, 64, 64, 62, 62, 60, 60]
    assert str(st.estimate_key(make([(i, 1, p) for i, p in enumerate(tune)]))) == "C major"
    assert str(st.estimate_key(make([(i, 1, p + 3) for i, p in enumerate(tune)]))) == "Eb major"
    # An arpeggio of A minor with its leading tone.
    key = st.estimate_key(make([(i, 1, p) for i, p in enumerate([57, 60, 64, 68, 69, 64, 60, 57, 69])]))
    assert (key.tonic, key.mode) == (9, "minor")
    profile = st.KEY_PROFILES["minor"]
    exact = make([(i, profile[i], 60 + (i + 2) % 12) for i in range(12)])
    assert str(st.estimate_key(exact)) == "D minor"
    assert st.estimate_key(exact).correlation == pytest.approx(1.0, abs=1e-4)
    assert st.estimate_key(SILENCE) is None
    assert st.estimate_key(make([(i, 1, 60 + i) for i in range(12)])) is None, "all alike: no key"


def kicks(bars, beats=(0, 1, 2, 3)):
    return [(4 * bar + beat, 0.25, 36) for bar in bars for beat in beats]


def test_groove_consistency_of_identical_bars_and_of_silence():
    """The two cases that other implementations get wrong."""
    assert st.groove_consistency(make(kicks([0, 1]), drum=True)) == 1.0
    # One bar of silence, then one of kicks: nothing in common.
    assert st.groove_consistency(make(kicks([1]), drum=True)) == 0.0
    # The published form: 4 of 48 steps differ.
    assert st.groove_similarity(make(kicks([1]), drum=True)) == pytest.approx(1 - 4 / 48)
    assert st.groove_similarity(make(kicks([0, 1]), drum=True)) == 1.0
    # Bars: 4 kicks, 4 kicks, silence, silence, 4 kicks: pairs 1, 0, (left out), 0.
    assert st.groove_consistency(make(kicks([0, 1, 4]), drum=True)) == pytest.approx(1 / 3)
    # Beats 0, 1 against 1, 2: one in both of three in either.
    assert st.groove_consistency(make(kicks([0], (0, 1)) + kicks([1], (1, 2)))) == pytest.approx(1 / 3)
    assert math.isnan(st.groove_consistency(SILENCE))
    assert math.isnan(st.groove_consistency(make(kicks([0])))), "one bar has no neighbour"


def test_groove_of_unlike_bars_and_of_early_onsets():
    changing = make([(0, 1, 60), (3, 1, 60), (7, 1, 60)], signatures=[(0, 3, 4), (3, 4, 4), (7, 4, 4)])
    # 3/4 beside 4/4 is left out; the two bars of 4/4 start alike.
    assert st.groove_consistency(changing) == 1.0
    early = make([(0, 1, 60), (3.99, 1, 60), (8, 1, 60)])
    assert st.groove_consistency(early) == 1.0, "a hair before the bar line is the bar line"


def test_density():
    score = make([(0, 1, 60), (1, 1, 62), (4, 4, 64)])
    assert st.notes_per_bar(score) == pytest.approx(1.5)
    assert st.notes_per_second(score) == pytest.approx(3 / 4)
    slower = make([(0, 1, 60), (1, 1, 62), (4, 4, 64)], tempi=[(0, 120.0), (4, 60.0)])
    assert note_table(slower).duration_seconds == pytest.approx(2 + 4)
    assert math.isnan(st.notes_per_bar(SILENCE))
    assert math.isnan(st.notes_per_second(SILENCE))


def test_polyphony_and_silence():
    # 0-2 one note, 2-4 two notes, 4-7 silence, 7-8 one note: (2 + 4 + 1) / 5.
    score = make([(0, 4, 60), (2, 2, 64), (7, 1, 60)])
    assert st.polyphony(score) == pytest.approx(7 / 5)
    assert st.longest_silence(score) == pytest.approx(3.0)
    assert st.empty_bar_share(score) == 0.0
    assert st.longest_silence(make([(0, 1, 60), (1, 1, 62)])) == 0.0
    # Bars 0 and 2 of three have onsets.
    assert st.empty_bar_share(make([(0, 6, 60), (8, 4, 62)])) == pytest.approx(1 / 3)
    assert math.isnan(st.polyphony(SILENCE))
    assert math.isnan(st.longest_silence(SILENCE))
    assert math.isnan(st.empty_bar_share(SILENCE))


def test_velocity_pitch_and_duration():
    score = make([(0, 1, 60, 40), (1, 2, 60, 80), (3, 1, 72, 40), (4, 4, 64, 80)])
    assert st.velocity_spread(score) == pytest.approx(20.0)
    assert st.velocity_levels(score) == 2.0
    assert st.commonest_pitch_share(score) == pytest.approx(0.5)
    assert st.pitch_range(score) == 12.0
    assert st.mean_pitch(score) == 64.0
    assert st.mean_duration(score) == pytest.approx(2.0)


def test_repeated_run():
    loop = [(0, 1, 64), (1, 1, 65)] + [(2 + 0.5 * i, 0.5, 60) for i in range(9)] + [(7, 1, 60), (8, 1, 67)]
    # The nine eighths; the tenth 60 comes a full beat later.
    assert st.repeated_run(note_table(make(loop)))[:2] == (9, 0)
    assert st.longest_repeated_run(make([(i, 1, 60 + i) for i in range(8)])) == 1.0
    chords = [(i, 1, p) for i in range(5, 9) for p in (60, 64, 67)]
    assert st.repeated_run(note_table(make([(4, 1, 60), *chords])))[:2] == (4, 1)
    # Alternating with another track does not break a run; alternating within a track does.
    assert st.longest_repeated_run(make([(i, 1, 60, 80, i % 2) for i in range(10)])) == 5.0
    late = make([(0, 1, 62), *((3 + i, 1, 60) for i in range(5))])  # the time before the first one is another
    assert st.longest_repeated_run(late) == 5.0
    slower = make([(place, 1, 60) for place in (0, 1, 2, 4, 6, 8, 10)])
    assert st.longest_repeated_run(slower) == 5.0
    assert st.longest_repeated_run(make([(i, 1, 60 + i % 2) for i in range(10)])) == 1.0
    assert st.repeated_run(note_table(make(kicks(range(9)), drum=True)))[:2] == (0, 0), (
        "drums repeat by trade"
    )


def test_histograms():
    score = make([(0, 1, 60), (1, 0.5, 64), (1.5, 0.5, 62), (2, 2, 62), (2, 2, 50)])
    durations = st.duration_histogram(score)
    assert durations[st.RHYTHM_EDGES.index(0.9)] == 1
    assert durations[st.RHYTHM_EDGES.index(0.415)] == 2
    assert durations[st.RHYTHM_EDGES.index(1.75)] == 2
    assert durations.sum() == 5
    intervals = st.interval_histogram(score)
    # Top notes 60 64 62 62: +4, -2, 0.
    assert {int(i) - 24: int(intervals[i]) for i in np.flatnonzero(intervals)} == {4: 1, -2: 1, 0: 1}
    onsets = st.onset_interval_histogram(score)
    assert onsets[st.RHYTHM_EDGES.index(0.9)] == 1
    assert onsets[st.RHYTHM_EDGES.index(0.415)] == 2
    assert onsets.sum() == 3
    wide = st.interval_histogram(make([(0, 1, 20), (1, 1, 100), (2, 1, 20)]))
    assert (wide[0], wide[-1]) == (1, 1)


def test_bar_lines():
    assert bar_lines([], 8, 1).tolist() == [0, 4, 8]
    assert bar_lines([(0, 6, 8)], 7, 2).tolist() == [0, 6, 12]
    # A change in the middle of a bar cuts it.
    assert bar_lines([(0, 4, 4), (5, 3, 4)], 9, 1).tolist() == [0, 4, 5, 8, 11]
    assert bar_lines([(0, 4, 4), (100, 3, 4)], 8, 1).tolist() == [0, 4, 8]
    assert bar_lines([(2, 3, 4)], 5, 1).tolist() == [0, 2, 5]
    assert bar_lines([], 0, 480).tolist() == [0]
    assert bar_lines([(0, 3, 8)], 76, 25).tolist() == [0, 37, 75, 112]
    assert bar_lines([(0, 6, 8), (0, 3, 4), (0, 2, 4)], 4, 1).tolist() == [0, 2, 4]
    with pytest.raises(MidiError, match="a piece has at most 200000 bars"):
        bar_lines([(0, 1, 128)], 10**9, 480)


def test_bars_of_many_metres_are_found_at_once():
    metres = [(4 * step, 2 + step % 2, 4) for step in range(19_000)]
    begun = process_time()
    lines = bar_lines(metres, 4 * 19_000, 1)
    assert process_time() - begun < 2  # quadratic: 12 s
    assert len(lines) == 2 * 19_000 + 1  # of 3/4, the second is cut


def test_silence_is_undefined_everywhere_and_never_fails():
    values = st.piece_statistics(SILENCE)
    assert set(values) == set(st.STATISTICS)
    assert all(math.isnan(v) or v == 0 for v in values.values())
    assert all(np.isnan(h).all() for h in st.piece_histograms(SILENCE).values())
    assert all(math.isfinite(v) for v in st.piece_statistics(make([(0, 1, 60), (4, 1, 62)])).values())


def test_notes_without_length_have_a_bar():
    for onset, bars in ((0, 1), (4, 2)):
        score = make([(onset, 0, 60)])
        assert note_table(score).bars == bars
        assert st.piece_statistics(score)["notes_per_bar"] == 1 / bars
        assert st.empty_bar_share(score) == 1 - 1 / bars


def test_same_from_pretty_midi(tmp_path):
    notes = [(0, 1, 60, 40), (1.5, 0.5, 64, 50), (3, 2, 67, 60, 1), (5, 1, 61, 70), (8, 3, 62, 80)]
    score = make(notes, signatures=[(0, 3, 4), (6, 4, 4)], tempi=[(0, 100.0), (3, 50.0), (7, 75.0)])
    path = tmp_path / "a.mid"
    score.dump_midi(path)
    ours, theirs = note_table(score), note_table(pretty_midi.PrettyMIDI(str(path)))
    for name in ("start", "end", "pitch", "velocity", "bar_lines"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    assert ours.duration_seconds == pytest.approx(theirs.duration_seconds, abs=1e-4)
    a, b = st.piece_statistics(score), st.piece_statistics(pretty_midi.PrettyMIDI(str(path)))
    assert a == pytest.approx(b, abs=1e-4)
    # symusic's own seconds.
    assert ours.duration_seconds == pytest.approx(score.to("second").end(), abs=1e-3)


def test_other_objects_are_refused():
    with pytest.raises(MidiError, match="received str"):
        st.polyphony("song.mid")


def test_one_note_and_identical_bars_in_every_statistic():
    """Worked out by hand; what needs two of something is undefined for one."""
    nan = float("nan")
    # One quarter note C4, velocity 80, at 120 quarters a minute: a bar of 4/4, music for half a second.
    alone = {
        "pitch_class_entropy": 0.0,
        "scale_consistency": 1.0,
        "pitch_in_key": 1.0,
        "groove_consistency": nan,
        "groove_similarity": nan,
        "notes_per_bar": 1.0,
        "notes_per_second": 2.0,
        "polyphony": 1.0,
        "mean_duration": 1.0,
        "mean_pitch": 60.0,
        "pitch_range": 0.0,
        "velocity_spread": 0.0,
        "velocity_levels": 1.0,
        "commonest_pitch_share": 1.0,
        "longest_repeated_run": 1.0,
        "empty_bar_share": 0.0,
        "longest_silence": 0.0,
    }
    assert st.piece_statistics(make([(0, 1, 60)])) == pytest.approx(alone, nan_ok=True)
    # Four equal bars: C4 for a half note, then E4 and G4 together for a half note.
    bars = [
        note for bar in range(4) for note in ((4 * bar, 2, 60), (4 * bar + 2, 2, 64), (4 * bar + 2, 2, 67))
    ]
    equal = alone | {
        "pitch_class_entropy": math.log2(3),
        "groove_consistency": 1.0,
        "groove_similarity": 1.0,
        "notes_per_bar": 3.0,
        "notes_per_second": 12 / 8,
        "polyphony": 1.5,
        "mean_duration": 2.0,
        "mean_pitch": (60 + 64 + 67) / 3,
        "pitch_range": 7.0,
        "commonest_pitch_share": 1 / 3,
    }
    assert st.piece_statistics(make(bars)) == pytest.approx(equal)


def test_pitch_in_key():
    # C major's scale and chord with one F sharp among ten notes.
    tune = [60, 64, 67, 60, 62, 64, 65, 67, 66, 60]
    assert st.pitch_in_key(make([(i, 1, p) for i, p in enumerate(tune)])) == pytest.approx(0.9)
    assert math.isnan(st.pitch_in_key(SILENCE))
    assert math.isnan(st.pitch_in_key(make([(i, 1, 60 + i) for i in range(12)])))
