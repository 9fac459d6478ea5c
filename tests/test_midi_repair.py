"""Pairing and repairing notes, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melodia.midi.repair import pair_notes
from melodia.midi.report import Findings

OVERLAP, STUCK = "overlapping notes of one pitch cut", "note without an end closed"
TWIN, FLAT, ORPHAN = (
    "notes doubled at one time merged",
    "notes of no length lengthened",
    "note-off without a note",
)


def pair(events, *, channel=0, quarter=96, end=100_000):
    """Pair (tick, velocity or 0 for off[, pitch]) events of one channel; returns notes and counts of findings."""
    rows = [(tick, velocity, *rest) if rest else (tick, velocity, 60) for tick, velocity, *rest in events]
    findings = Findings()
    count = len(rows)
    notes = pair_notes(
        np.zeros(count, np.int32),
        np.array([row[0] for row in rows], np.int64),
        np.full(count, 0x90 | channel, np.uint8),
        np.array([row[2] for row in rows], np.uint8),
        np.array([row[1] for row in rows], np.uint8),
        ticks_per_quarter=quarter,
        end_tick=end,
        findings=findings,
    )
    found = list(zip(notes.start.tolist(), notes.end.tolist(), notes.velocity.tolist(), strict=True))
    return found, {finding.what: finding.count for finding in findings}


@pytest.mark.parametrize(
    ("events", "notes", "repairs"),
    [
        ([(0, 64), (10, 0), (20, 65), (30, 0)], [(0, 10, 64), (20, 30, 65)], {}),
        # a repeated note whose off comes after the next on, at the same tick, is no overlap
        ([(0, 64), (10, 65), (10, 0), (20, 0)], [(0, 10, 64), (10, 20, 65)], {}),
        # two strikes and two offs: the second strike ends the first note, the second off the second
        ([(0, 64), (10, 65), (20, 0), (30, 0)], [(0, 10, 64), (10, 30, 65)], {OVERLAP: 1}),
        # three strikes, three offs
        ([(0, 1), (5, 2), (6, 3), (7, 0), (8, 0), (9, 0)], [(0, 5, 1), (5, 6, 2), (6, 9, 3)], {OVERLAP: 2}),
        # an off is missing: the notes after it keep their own ends
        ([(0, 1), (50, 2), (60, 0), (80, 3), (90, 0)], [(0, 50, 1), (50, 60, 2), (80, 90, 3)], {STUCK: 1}),
        # nothing ends the note: a bar at most
        ([(0, 1)], [(0, 4 * 96, 1)], {STUCK: 1}),
        # an off without a note
        ([(0, 0), (5, 1), (9, 0), (12, 0)], [(5, 9, 1)], {ORPHAN: 2}),
        # no length: a thirty-second, or until the next strike
        ([(0, 1), (0, 0), (50, 2), (60, 0)], [(0, 12, 1), (50, 60, 2)], {FLAT: 1}),
        ([(0, 1), (0, 0), (5, 2), (60, 0)], [(0, 5, 1), (5, 60, 2)], {FLAT: 1}),
        # a note ends and a note of no length follows at the same tick
        ([(0, 1), (50, 0), (50, 2), (50, 0)], [(0, 50, 1), (50, 62, 2)], {FLAT: 1}),
        # struck twice at once: the longer and the louder
        ([(0, 9), (0, 5), (10, 0), (20, 0)], [(0, 20, 9)], {TWIN: 1}),
        ([], [], {}),
    ],
)
def test_one_voice(events, notes, repairs):
    found, counts = pair(events)
    assert found == notes
    assert {what: counts.get(what, 0) for what in repairs} == repairs
    assert set(counts) <= {*repairs, OVERLAP}
    if OVERLAP not in repairs and TWIN not in repairs:
        assert OVERLAP not in counts


def test_stuck_notes_end_with_the_file():
    assert pair([(10, 1)], end=50)[0] == [(10, 50, 1)]
    assert pair([(10, 1)], end=10)[0] == [(10, 10 + 96, 1)]  # nothing comes after it: a quarter


def test_stuck_drums_are_short():
    assert pair([(10, 1)], channel=9)[0] == [(10, 10 + 24, 1)]


def test_many_lost_offs_do_not_stretch_notes():
    # The first off is lost, and a spare one stands at the end: each note keeps its own off.
    events = [(0, 1)]
    for step in range(1, 20):
        events += [(100 * step, 1), (100 * step + 10, 0)]
    events.append((5000, 0))
    found, counts = pair(events)
    assert found[1:] == [(100 * step, 100 * step + 10, 1) for step in range(1, 20)]
    assert counts


def test_voices_do_not_mix():
    found, counts = pair([(0, 1, 60), (1, 2, 61), (2, 0, 60), (3, 0, 61)])
    assert found == [(0, 2, 1), (1, 3, 2)]
    assert not counts


def test_pitch_above_127_is_dropped():
    found, counts = pair([(0, 1, 200), (1, 2, 61), (2, 0, 200), (3, 0, 61)])
    assert found == [(1, 3, 2)]
    assert counts == {"note event with a pitch above 127": 2}


events = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from([0, 0, 1, 64, 127]), st.sampled_from([60, 61])), max_size=40
)


@settings(max_examples=300, deadline=None)
@given(events, st.sampled_from([0, 9]))
def test_any_events_give_sound_notes(moves, channel):
    now, rows = 0, []
    for step, velocity, pitch in moves:
        now += step if step < 20 else 0
        rows.append((now, velocity, pitch))
    findings = Findings()
    notes = pair_notes(
        np.zeros(len(rows), np.int32),
        np.array([row[0] for row in rows], np.int64),
        np.full(len(rows), 0x90 | channel, np.uint8),
        np.array([row[2] for row in rows], np.uint8),
        np.array([row[1] for row in rows], np.uint8),
        ticks_per_quarter=8,
        end_tick=now,
        findings=findings,
    )
    strikes = {(row[0], row[2]) for row in rows if row[1]}
    assert {
        (start, pitch) for start, pitch in zip(notes.start.tolist(), notes.pitch.tolist(), strict=True)
    } == strikes
    assert len(notes) == len(strikes)  # no strike is lost, but for doubled ones
    for pitch in (60, 61):
        mine = notes.pitch == pitch
        start, end = notes.start[mine], notes.end[mine]
        assert (end > start).all()
        assert (start[1:] >= end[:-1]).all()
