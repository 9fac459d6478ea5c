"""Bars, cutting and joining, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import symusic
from hypothesis import given, settings
from hypothesis import strategies as st
from test_midi_cases import check_sound

from melodia.errors import ConfigError, MidiError
from melodia.midi import Finding, bar_table, cut_score, end_on_bar, seconds_of, window
from melodia.midi.join import join


def make(*parts, metres=((0, 4, 4),), tempi=((0, 500_000),), keys=(), quarter=480):
    """A score of (program or -1 for drums, notes as (start, duration, pitch))."""
    score = symusic.Score(quarter)
    for program, notes in parts:
        track = symusic.Track(
            name=f"part {program}", program=max(0, program), is_drum=program < 0, ttype="tick"
        )
        for start, duration, pitch in notes:
            track.notes.append(symusic.Note(start, duration, pitch, 64, ttype="tick"))
        score.tracks.append(track)
    for tick, top, bottom in metres:
        score.time_signatures.append(symusic.TimeSignature(tick, top, bottom, ttype="tick"))
    for tick, mspq in tempi:
        score.tempos.append(symusic.Tempo(tick, mspq=mspq, ttype="tick"))
    for tick, key, mode in keys:
        score.key_signatures.append(symusic.KeySignature(tick, key, mode, ttype="tick"))
    return score


def parts(score):
    return [
        (-1 if t.is_drum else t.program, sorted((n.time, n.duration, n.pitch) for n in t.notes))
        for t in score.tracks
    ]


QUARTERS = [(480 * step, 480, 60 + step % 12) for step in range(32)]  # eight bars of 4/4


def test_bars_of_one_metre():
    table = bar_table(make((0, QUARTERS)))
    assert len(table) == 8
    assert table.starts.tolist() == [1920 * bar for bar in range(8)]
    assert table.end == 8 * 1920
    assert set(table.numerators.tolist()) == {4}
    assert [table.index(tick) for tick in (0, 1919, 1920, 15359, 15360)] == [0, 0, 1, 7, 8]
    assert [table.line(bar) for bar in (0, 7, 8)] == [0, 13440, 15360]


def test_bars_of_changing_metres():
    # two bars of 3/4, then 6/8 that begins in the middle of a bar, then 4/4
    score = make((0, [(0, 4500, 60)]), metres=((0, 3, 4), (2000, 6, 8), (3440, 4, 4)))
    table = bar_table(score)
    assert table.starts.tolist() == [0, 1440, 2000, 3440]
    assert table.numerators.tolist() == [3, 3, 6, 4]
    assert table.denominators.tolist() == [4, 4, 8, 4]
    assert table.end == 3440 + 1920
    assert len(bar_table(score, 3440)) == 3
    assert len(bar_table(score, 3441)) == 4


def test_bars_that_are_no_whole_ticks():
    table = bar_table(make((0, [(0, 20, 60)]), metres=((0, 3, 8),), quarter=1))  # a bar and a half of a tick
    assert table.starts[:6].tolist() == [0, 1, 3, 4, 6, 7]


def test_bars_of_no_metre_are_refused():
    with pytest.raises(MidiError, match="received 0/4"):
        bar_table(make((0, QUARTERS), metres=((0, 0, 4),)))


def test_empty_score_has_a_bar():
    assert len(bar_table(make())) == 1


def test_seconds():
    score = make((0, QUARTERS), tempi=((0, 500_000), (960, 1_000_000)))
    np.testing.assert_allclose(seconds_of(score, np.array([0, 480, 960, 1440])), [0, 0.5, 1.0, 2.0])


@pytest.mark.parametrize("side", ["start", "end"])
def test_cut_to_bars(side):
    score = make((0, QUARTERS), (-1, [(0, 100, 36), (15000, 100, 38)]), metres=((0, 4, 4), (7680, 4, 4)))
    part, findings = cut_score(score, bars=2, side=side)
    if side == "start":
        assert parts(part) == [(0, QUARTERS[:8]), (-1, [(0, 100, 36)])]
    else:
        assert parts(part) == [
            (0, [(start - 11520, duration, pitch) for start, duration, pitch in QUARTERS[24:]]),
            (-1, [(3480, 100, 38)]),
        ]
    assert findings == []
    assert [(s.time, s.numerator) for s in part.time_signatures] == [(0, 4)]


def test_cut_takes_what_is_in_force():
    score = make(
        (0, [(0, 4000, 60), (1900, 100, 62), (3840, 10, 64)]),
        metres=((0, 4, 4), (1920, 3, 4)),
        tempi=((0, 500_000), (100, 600_000)),
        keys=((0, 1, 0), (1920, 2, 0)),
    )
    for tick, value in ((0, 127), (1000, 30), (2000, 90)):
        score.tracks[0].controls.append(symusic.ControlChange(tick, 64, value, ttype="tick"))
        score.tracks[0].pitch_bends.append(symusic.PitchBend(tick, value, ttype="tick"))
    part, findings = window(score, 1920, 3840)
    assert parts(part) == [(0, [(0, 80, 62), (0, 1920, 60)])]
    assert [(s.time, s.numerator) for s in part.time_signatures] == [(0, 3)]
    assert [(t.time, t.mspq) for t in part.tempos] == [(0, 600_000)]
    assert [(k.time, k.key) for k in part.key_signatures] == [(0, 2)]
    assert [(c.time, c.value) for c in part.tracks[0].controls] == [(0, 30), (80, 90)]
    assert [(b.time, b.value) for b in part.tracks[0].pitch_bends] == [(0, 30), (80, 90)]
    assert findings == [
        Finding("repaired", "notes that sound across the cut shortened", 2),
        Finding("repaired", "notes shortened to end at the cut", 1),
    ]


@pytest.mark.parametrize(("seconds", "bars"), [(0.1, 1), (2.0, 1), (2.1, 2), (4.0, 2), (7.9, 4), (1000, 8)])
@pytest.mark.parametrize("side", ["start", "end"])
def test_cut_to_seconds(seconds, bars, side):
    part, _ = cut_score(make((0, QUARTERS)), seconds=seconds, side=side)
    assert len(bar_table(part)) == bars


@pytest.mark.parametrize(
    "options", [{}, {"bars": 1, "seconds": 2}, {"bars": 0}, {"seconds": 0}, {"bars": 1, "side": "middle"}]
)
def test_cut_rejects(options):
    with pytest.raises(ConfigError):
        cut_score(make((0, QUARTERS)), **options)


@pytest.mark.parametrize("bars", [2.5, "2", True])
def test_cut_takes_whole_bars(bars):
    with pytest.raises(ConfigError, match=r"`bars` must be a whole number, at least 1 \(received"):
        cut_score(make((0, QUARTERS)), bars=bars)


def test_places_are_ticks():
    score = make((0, QUARTERS))
    for start, stop in ((-1, 480), (0.5, 480), (0, "x"), (0, True)):
        with pytest.raises(ConfigError, match=r"`st(art|op)` must be a whole number, at least 0"):
            window(score, start, stop)
    for tick in (-1, 0.5, "x"):
        with pytest.raises(ConfigError, match="`at_tick` must be a whole number, at least 0"):
            join(score, score, tick)


@pytest.mark.parametrize("seconds", ["a", float("nan"), True])
def test_cut_takes_a_number_of_seconds(seconds):
    with pytest.raises(ConfigError, match="`seconds` must be"):
        cut_score(make((0, QUARTERS)), seconds=seconds)


def test_more_bars_than_there_are():
    score = make((0, QUARTERS))
    assert parts(cut_score(score, bars=100)[0]) == parts(score)


def test_join_puts_the_continuation_behind_the_seed():
    seed = make(
        (0, QUARTERS[:8]),
        (40, [(0, 3840, 72)]),
        metres=((0, 3, 4),),
        tempi=((0, 400_000),),
        keys=((0, 2, 0),),
    )
    new = make((40, [(0, 480, 70)]), (7, [(480, 480, 50)]), (-1, [(0, 10, 36)]))
    result, findings = join(seed, new, 3840)
    assert parts(result) == [
        (0, QUARTERS[:8]),
        (40, [(0, 3840, 72), (3840, 480, 70)]),
        (7, [(4320, 480, 50)]),
        (-1, [(3840, 10, 36)]),
    ]
    assert [track.name for track in result.tracks] == ["part 0", "part 40", "part 7", "part -1"]
    assert [(s.time, s.numerator) for s in result.time_signatures] == [(0, 3)]
    assert [(t.time, t.mspq) for t in result.tempos] == [(0, 400_000)]
    assert [(k.time, k.key) for k in result.key_signatures] == [(0, 2)]
    assert findings == []
    assert parts(seed)[1] == (40, [(0, 3840, 72)])  # the seed is left alone


def test_join_has_no_doubled_and_no_overlapping_note():
    seed = make((0, [(0, 960, 60), (0, 960, 61), (480, 480, 62), (480, 1, 63)]), (0, [(0, 700, 64)]))
    new = make((0, [(0, 480, 60), (240, 240, 61), (0, 100, 64), (600, 10, 62)]))
    result, findings = join(seed, new, 480)
    assert parts(result) == [
        (0, [(0, 480, 60), (0, 720, 61), (480, 480, 60), (720, 240, 61), (1080, 10, 62)]),
        (0, [(0, 480, 64), (480, 100, 64)]),
    ]
    assert findings == [
        Finding("repaired", "seed notes ended by a new strike after the join", 3),
        Finding("dropped", "seed notes after the join", 2),
    ]


def test_join_drops_doubled_notes_of_the_continuation():
    new = make((0, [(0, 100, 60), (100, 50, 61)]), (0, [(0, 300, 60), (120, 50, 61)]))
    result, findings = join(make((0, QUARTERS[:4])), new, 1920)
    assert parts(result)[0][1][4:] == [(1920, 300, 60), (2020, 20, 61), (2040, 50, 61)]
    assert {finding.what: finding.count for finding in findings} == {
        "notes doubled after the join": 1,
        "overlapping notes cut after the join": 1,
    }


def test_join_keeps_changes_of_the_continuation():
    new = make(
        (0, [(0, 4000, 60)]),
        metres=((0, 4, 4), (1920, 3, 4)),
        tempi=((0, 1), (960, 300_000)),
        keys=((5, 1, 0),),
    )
    seed = make((0, QUARTERS[:4]))
    result, _ = join(seed, new, 1920)
    assert [(s.time, s.numerator) for s in result.time_signatures] == [(0, 4), (3840, 3)]
    assert [(t.time, t.mspq) for t in result.tempos] == [(0, 500_000), (2880, 300_000)]
    assert [(k.time, k.key) for k in result.key_signatures] == [(1925, 1)]
    result, _ = join(seed, new, 1920, keep_changes=False)
    assert len(result.time_signatures) == len(result.tempos) == 1


def test_join_takes_other_resolutions():
    result, _ = join(make((0, QUARTERS[:4])), make((0, [(24, 12, 60)]), quarter=24), 1920)
    assert parts(result)[0][1][-1] == (2400, 240, 60)


def test_join_with_controllers():
    seed, new = make((0, QUARTERS[:4])), make((0, [(0, 10, 60)]))
    for score, tick, value in ((seed, 0, 127), (seed, 1920, 0), (seed, 2000, 99), (new, 10, 64)):
        score.tracks[0].controls.append(symusic.ControlChange(tick, 64, value, ttype="tick"))
        score.tracks[0].pitch_bends.append(symusic.PitchBend(tick, value, ttype="tick"))
    result, _ = join(seed, new, 1920)
    assert [(c.time, c.value) for c in result.tracks[0].controls] == [(0, 127), (1920, 0), (1930, 64)]
    assert [(b.time, b.value) for b in result.tracks[0].pitch_bends] == [(0, 127), (1920, 0), (1930, 64)]


def test_join_lifts_pedals_and_ends_bends():
    seed = make((0, QUARTERS[:4]), (1, QUARTERS[:4]))
    for tick, number, value in ((0, 64, 127), (5, 67, 90), (0, 7, 100), (9, 67, 10)):
        seed.tracks[0].controls.append(symusic.ControlChange(tick, number, value, ttype="tick"))
    seed.tracks[1].pitch_bends.append(symusic.PitchBend(5, 300, ttype="tick"))
    result, findings = join(seed, make((0, [(0, 10, 60)])), 1920)
    assert [(c.number, c.value) for c in result.tracks[0].controls if c.time == 1920] == [(64, 0)]
    assert [(b.time, b.value) for b in result.tracks[1].pitch_bends] == [(5, 300), (1920, 0)]
    assert findings == [
        Finding("note", "pedals lifted at the join", 1),
        Finding("note", "pitch bends ended at the join", 1),
    ]


def test_a_pedal_and_a_bend_that_begin_at_the_join_are_dropped():
    seed = make((0, QUARTERS[:4]))
    for number, value in ((7, 90), (64, 127)):
        seed.tracks[0].controls.append(symusic.ControlChange(1920, number, value, ttype="tick"))
    seed.tracks[0].pitch_bends.append(symusic.PitchBend(1920, 300, ttype="tick"))
    result, findings = join(seed, make((0, [(0, 10, 60)])), 1920)
    assert not result.tracks[0].controls
    assert not result.tracks[0].pitch_bends
    assert not findings


def test_join_at_the_very_start_is_the_continuation():
    result, _ = join(make((0, QUARTERS)), make((0, QUARTERS[:2])), 0)
    assert parts(result) == [(0, QUARTERS[:2])]
    assert len(result.tempos) == 1
    with pytest.raises(ConfigError):
        join(make(), make(), -1)


def test_end_on_bar():
    score = make((0, QUARTERS), (40, [(3000, 5000, 72), (4000, 10, 73)]))
    result, findings = end_on_bar(score, 3500)
    assert parts(result) == [(0, QUARTERS[:8]), (40, [(3000, 840, 72)])]
    assert bar_table(result).end == 3840
    assert findings == [
        Finding("repaired", "notes cut at the final bar line", 1),
        Finding("dropped", "notes after the final bar line", 25),
    ]
    assert bar_table(end_on_bar(score, 3840)[0]).end == 3840  # already on a bar line
    assert bar_table(end_on_bar(score, 3841)[0]).end == 5760


notes = st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 900), st.integers(60, 62)), max_size=30)


def sound(rows):
    """Notes of which no two of one pitch overlap."""
    found, until = [], {}
    for start, duration, pitch in sorted(rows):
        if start >= until.get(pitch, 0):
            found.append((start, duration, pitch))
            until[pitch] = start + duration
    return found


@settings(max_examples=100, deadline=None)
@given(notes, notes, notes, st.integers(0, 4000))
def test_join_is_sound(first, second, new, tick):
    seed = make(*[(0, sound(rows)) for rows in (first, second) if rows], quarter=96)
    more = make((0, sound(new)), quarter=96)
    result, _ = join(seed, more, tick)
    kept = [row for _, rows in parts(seed) for row in rows if row[0] < tick]
    joined = [row for _, rows in parts(result) for row in rows]
    assert sorted(row[0] for row in joined) == sorted(
        [row[0] for row in kept] + [row[0] + tick for row in sound(new)]
    )
    for start, _, pitch in joined:  # nothing that sounds anywhere is struck again
        sounding = [row for row in joined if row[2] == pitch and row[0] < start < row[0] + row[1]]
        assert start < tick or not sounding
    while any(not len(track.notes) for track in result.tracks):
        del result.tracks[[len(track.notes) > 0 for track in result.tracks].index(False)]
    check_sound(result)
    ended, _ = end_on_bar(result, tick)
    line = bar_table(result, max(1, tick)).end
    assert all(start + duration <= line for _, rows in parts(ended) for start, duration, _ in rows)
