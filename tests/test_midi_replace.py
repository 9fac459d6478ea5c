"""New bars in place of others: what goes, what stays, who plays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from symusic.core import ControlChangeTick, PitchBendTick
from test_midi_join import make, parts

from melodia.midi.join import common_resolution
from melodia.midi.replace import replace

BAR = 1920
PIECE = [(BAR * bar + 480 * beat, 480, 60 + beat) for bar in range(4) for beat in range(4)]


def test_the_new_notes_stand_where_the_old_ones_stood():
    new = make((0, [(0, 24, 72), (72, 24, 74)]), quarter=24)
    whole, findings = replace(make((0, PIECE)), new, BAR, 2 * BAR)
    kept = [note for note in PIECE if not BAR <= note[0] < 2 * BAR]
    assert parts(whole) == [(0, sorted([*kept, (BAR, 480, 72), (BAR + 1440, 480, 74)]))]
    assert findings == []
    assert whole.ticks_per_quarter == 480


def test_a_grid_that_does_not_fit_makes_the_resolution_finer():
    new = make((0, [(0, 1, 72)]), quarter=28)
    whole, _ = replace(make((0, PIECE), tempi=((0, 500_000), (BAR, 400_000))), new, BAR, 2 * BAR)
    assert whole.ticks_per_quarter == 3360 == common_resolution(480, 28)
    assert (7 * BAR, 120, 72) in parts(whole)[0][1]
    assert [tempo.time for tempo in whole.tempos] == [0, 7 * BAR]


@pytest.mark.parametrize("quarter", [24, 28])
def test_what_begins_a_little_early_belongs_behind_the_bar_line(quarter):
    piece = [(BAR - 30, 400, 60), (BAR - 31, 400, 61), (2 * BAR - 30, 400, 62), (2 * BAR - 31, 400, 63)]
    whole, _ = replace(make((0, piece)), make((0, []), quarter=quarter), BAR, 2 * BAR, early=30)
    scale = whole.ticks_per_quarter // 480
    assert scale == common_resolution(480, quarter) // 480
    kept = [(BAR - 31, 31, 61), (2 * BAR - 30, 400, 62)]
    assert parts(whole) == [(0, [(scale * time, scale * length, pitch) for time, length, pitch in kept])]


def test_what_sounds_into_the_new_bars_ends_there():
    whole, findings = replace(make((0, [(0, 5000, 40), (4000, 10, 50)])), make((0, [])), BAR, 2 * BAR)
    assert parts(whole) == [(0, [(0, BAR, 40), (4000, 10, 50)])]
    assert [str(finding) for finding in findings] == [
        "repaired: notes that sound into the new bars shortened (1)"
    ] or len(findings) == 1


def test_new_notes_end_where_the_next_of_their_pitch_begins():
    """Other pitches sound on; a note that begins early still begins behind the new bars."""
    piece = make((0, [(2 * BAR - 5, 480, 60), (2 * BAR + 240, 480, 62)]))
    new = make((0, [(0, 3000, 60), (480, 3000, 62), (960, 3000, 64)]))
    whole, _ = replace(piece, new, BAR, 2 * BAR, early=10)
    assert parts(whole)[0][1] == [
        (BAR, BAR - 5, 60),
        (BAR + 480, BAR - 240, 62),
        (BAR + 960, 3000, 64),
        (2 * BAR - 5, 480, 60),
        (2 * BAR + 240, 480, 62),
    ]


def test_two_hands_get_the_notes_that_lie_near_them():
    right, left = [(0, 480, 76), (3 * BAR, 480, 72)], [(0, 480, 45), (3 * BAR, 480, 50)]
    piece = make((0, right), (0, left), (40, [(0, 480, 60)]))
    new = make((0, [(0, 480, 70), (0, 480, 52)]), (40, [(0, 480, 90)]), (-1, [(0, 10, 38)]))
    whole, _ = replace(piece, new, BAR, 2 * BAR)
    assert parts(whole) == [
        (0, sorted([*right, (BAR, 480, 70)])),
        (0, sorted([*left, (BAR, 480, 52)])),
        (40, [(0, 480, 60), (BAR, 480, 90)]),
        (-1, [(BAR, 10, 38)]),
    ]


def test_pedals_and_bends_rest_in_the_new_bars_and_go_on_behind_them():
    piece = make((0, PIECE))
    for tick, number, value in ((100, 64, 127), (BAR + 5, 64, 0), (BAR + 9, 64, 100), (BAR + 1, 7, 90)):
        piece.tracks[0].controls.append(ControlChangeTick(tick, number, value))
    piece.tracks[0].pitch_bends.append(PitchBendTick(50, 500))
    whole, _ = replace(piece, make((0, [])), BAR, 2 * BAR)
    controls = sorted((c.time, c.number, c.value) for c in whole.tracks[0].controls)
    assert controls == [(100, 64, 127), (BAR, 64, 0), (BAR + 1, 7, 90), (2 * BAR, 64, 100)]
    bends = [(bend.time, bend.value) for bend in whole.tracks[0].pitch_bends]
    assert bends == [(50, 500), (BAR, 0), (2 * BAR, 500)]
    still, _ = replace(make((0, PIECE)), make((0, [])), BAR, 2 * BAR)
    assert not len(still.tracks[0].controls)
    assert not len(still.tracks[0].pitch_bends)


@given(
    st.lists(st.tuples(st.integers(0, 4 * BAR), st.integers(1, 3000), st.integers(0, 127)), max_size=20),
    st.lists(st.tuples(st.integers(0, BAR - 1), st.just(1), st.integers(0, 127)), max_size=8),
)
def test_all_else_stays(old, new):
    whole, _ = replace(make((5, old)), make((5, new)), BAR, 2 * BAR)
    notes = sorted(note for _, found in parts(whole) for note in found)
    outside = sorted(
        (time, min(length, BAR - time) if time < BAR else length, pitch)
        for time, length, pitch in old
        if not BAR <= time < 2 * BAR
    )
    assert [note for note in notes if not BAR <= note[0] < 2 * BAR] == outside
    assert [note for note in notes if BAR <= note[0] < 2 * BAR] == sorted((BAR + t, d, p) for t, d, p in new)


@pytest.mark.parametrize(("first", "second"), [(480, 24), (96, 480), (32767, 24), (1, 32767)])
def test_resolutions(first, second):
    found = common_resolution(first, second)
    assert found % first == 0
    assert found <= 32767
