"""Chords and scales by name, and chords along bars."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melodia.errors import ConfigError
from melodia.harmony import MODES, QUALITIES, parse_chord, parse_chords, parse_scale
from melodia.key_finding import find_key
from melodia.notes import Notes, notes_of_events
from melodia.progression import BarGrid, Progression

ROOTS = {"C": 0, "Db": 1, "C#": 1, "E#": 5, "F♯": 6, "G": 7, "B♭": 10, "B": 11, "Cb": 11}


@pytest.mark.parametrize("quality", QUALITIES)
def test_every_quality_stands_above_any_root(quality: str) -> None:
    for root, pitch_class in ROOTS.items():
        chord = parse_chord(root + quality)
        assert chord is not None
        assert chord.root == chord.bass == pitch_class
        assert {(each - pitch_class) % 12 for each in chord.classes} == set(QUALITIES[quality])


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("Caug", "C E G#"), ("Cdim", "C Eb Gb"), ("Cdim7", "C Eb Gb A"), ("Cm7b5", "C Eb Gb Bb"), ("C5", "C G"),
        ("Csus2", "C D G"), ("Csus4", "C F G"), ("C7sus4", "C F G Bb"), ("C6", "C E G A"), ("Cm6", "C Eb G A"),
        ("C7", "C E G Bb"), ("Cmaj7", "C E G B"), ("Cm7", "C Eb G Bb"), ("CmM7", "C Eb G B"), ("Cadd9", "C D E G"),
        ("C9", "C D E G Bb"), ("Cmaj9", "C D E G B"), ("Cm9", "C D Eb G Bb"), ("C7b9", "C Db E G Bb"),
    ],
)  # fmt: skip
def test_chords_by_their_notes(name: str, notes: str) -> None:
    chord, wanted = parse_chord(name), {parse_scale(f"{note} major").tonic for note in notes.split()}
    assert chord is not None
    assert chord.classes == wanted


def test_a_bass_belongs_to_its_chord() -> None:
    chord = parse_chord("C/Bb")
    assert chord is not None
    assert (chord.root, chord.bass, chord.classes) == (0, 10, {0, 4, 7, 10})


@pytest.mark.parametrize(
    ("name", "key"), [("C", 0), ("Am", 21), ("G7", 7), ("Ddim", 14), ("F5", 5), ("E7#9", 4)]
)
def test_the_key_of_a_chord(name: str, key: int) -> None:
    chord = parse_chord(name)
    assert chord is not None
    assert chord.key == key


@pytest.mark.parametrize("mode", ["major", "minor", "harmonic minor"])
@pytest.mark.parametrize("tonic", ["C", "Eb", "F#", "A"])
def test_the_key_of_a_scale_is_the_one_that_is_found_in_its_notes(mode: str, tonic: str) -> None:
    scale = parse_scale(f"{tonic} {mode}")
    weights = [int(k in scale.classes) for k in range(12)]
    for above, more in ((0, 4), (7, 3), (3 if "minor" in mode else 4, 2)):
        weights[(scale.tonic + above) % 12] += more
    assert find_key(weights) == scale.key


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("C major", "C D E F G A B"), ("D dorian", "C D E F G A B"), ("E phrygian", "C D E F G A B"),
        ("F lydian", "C D E F G A B"), ("G mixolydian", "C D E F G A B"), ("A minor", "C D E F G A B"),
        ("B locrian", "C D E F G A B"), ("A harmonic minor", "A B C D E F G#"),
        ("A melodic minor", "A B C D E F# G#"), ("C pentatonic", "C D E G A"),
        ("A minor pentatonic", "C D E G A"), ("A blues", "A C D Eb E G"), ("C whole tone", "C D E F# G# A#"),
    ],
)  # fmt: skip
def test_scales_by_their_notes(name: str, notes: str) -> None:
    assert parse_scale(name).classes == {parse_scale(f"{note} major").tonic for note in notes.split()}


@pytest.mark.parametrize("name", [" d  Harmonic   minor ", "D harmonic minor"])
def test_scales_are_read_kindly(name: str) -> None:
    assert parse_scale(name).name == "D harmonic minor"
    assert parse_scale("b minor").tonic == 11
    assert parse_scale("bb").classes == parse_scale("Bb major").classes
    assert parse_scale("Fm").classes == parse_scale("F minor").classes
    assert parse_scale("FM").classes == parse_scale("F major").classes


@pytest.mark.parametrize("name", ["", "H minor", "D happy", "minor", "D# # major", "Cm blues", 7, None])
def test_scales_that_are_none(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"no scale is called .* one of major, minor, .*such as D minor"):
        parse_scale(name)
    assert all(len(set(steps)) == len(steps) and steps[0] == 0 for steps in MODES.values())


@pytest.mark.parametrize("name", ["", "H", "am", "Cmin9b13", "C/", "C/x", "7", "Am|F", "C maj7"])
def test_chords_that_are_none(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"no chord is called .*A to G with # or b.* such as C, F#m7 or Am/E"
    ):
        parse_chord(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("am", "Am"), ("bb", "Bb"), ("f#m7/c#", "F#m7/C#"), ("CMaj7", "Cmaj7 or .*"), ("Dm7b6", "Dm7b5 or .*")],
)
def test_the_nearest_chords_are_suggested(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"no chord is called {name!r} \(did you mean {meant}\?\);"):
        parse_chord(name)


def test_a_slash_in_a_kind_is_no_bass() -> None:
    chord = parse_chord("C6/9/E")
    assert chord is not None
    assert (chord.classes, chord.bass) == ({0, 2, 4, 7, 9}, 4)
    six = parse_chord("C6/G")
    assert six is not None
    assert (six.classes, six.bass) == ({0, 4, 7, 9}, 7)


@pytest.mark.parametrize(
    ("text", "bars"),
    [
        ("Am F C G", "Am,F,C,G"),
        ("Am, F, C, G", "Am,F,C,G"),
        ("| Am | F G |", "Am,F G"),
        ("Am | % | N.C. | G", "Am,Am,N.C.,G"),
        ("C | F G | %", "C,F G,F G"),
        (["Am", "F G"], "Am,F G"),
    ],
)
def test_chords_of_bars(text: Any, bars: str) -> None:
    found = parse_chords(text)
    assert found == tuple(tuple(parse_chord(name) for name in bar.split()) for bar in bars.split(","))
    assert parse_chords(found) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "give at least one chord"),
        (" | | ", "give at least one chord"),
        ("N.C. NC", "give at least one chord"),
        ("% Am", "no chord is called '%'"),
        ("| C D E F G A B C D |", "1 to 8 chords .received 9"),
        ([1], "a bar of chords is a text"),
        ([()], "a bar of chords is a text"),
        (5, "chords are a text such as"),
    ],
)
def test_chords_that_cannot_be(text: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_chords(text)


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    beats=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 9, 12]),
    unit=st.integers(1, 13),
    line=st.integers(0, 100),
)
def test_every_tick_has_one_chord_and_changes_are_where_it_changes(
    counts: list[int], beats: int, unit: int, line: int
) -> None:
    names = iter(["C", "D", "E", "F", "G", "A", "B"] * 8)
    bars = parse_chords([" ".join(next(names) for _ in range(count)) for count in counts])
    grid, progression = BarGrid(line, 8 * beats * unit, beats), Progression(bars)
    for bar in range(len(bars) + 1):
        start = line + bar * grid.length
        ticks = range(start, start + grid.length)
        heard = [progression.chord(tick, grid) for tick in ticks]
        assert [c for k, c in enumerate(heard) if not k or c is not heard[k - 1]] == list(
            bars[bar % len(bars)]
        )
        later = None
        for place in reversed(range(len(ticks))):
            if place + 1 < len(ticks) and heard[place + 1] is not heard[place]:
                later = ticks[place + 1]
            assert progression.change(ticks[place], grid) == later
    assert progression.chord(line - 1, grid) is None
    assert progression.change(line - 1, grid) is None


def test_chords_change_on_beats() -> None:
    progression = Progression(parse_chords("C D | E F G | A B C D"))
    begins = {}
    for beats in (3, 4, 6):
        grid = BarGrid(0, 12 * beats, beats)
        begins[beats] = [
            [t // 12 for t in range(bar * 12 * beats, (bar + 1) * 12 * beats)
             if progression.chord(t, grid) != progression.chord(t - 1, grid)]
            for bar in range(3)
        ]  # fmt: skip
    assert begins[4] == [[0, 2], [4, 5, 7], [8, 9, 10, 11]]
    assert begins[3][:2] == [[0, 2], [3, 4, 5]]
    assert begins[6] == [[0, 3], [6, 8, 10], [12, 14, 15, 17]]


def test_how_well_notes_keep_to_chords() -> None:
    grid, progression = BarGrid(0, 48, 4), Progression(parse_chords("C | F/A | N.C."))
    notes = notes_of_events(
        [
            *((0, 24, 0, pitch) for pitch in (48, 64, 67)),  # C E G
            (24, 48, 0, 62),  # D, of which the first half counts, up to the bar line
            (0, 48, -1, 38),  # drums
            (60, 12, 0, 53),  # F, below the A that begins later
            (84, 12, 0, 45),
            (100, 40, 0, 61),  # under no chord
        ]
    )
    assert progression.kept(notes, grid) == (pytest.approx(96 / 120), 0.5)
    nothing = Notes(*(np.zeros(0, np.int64) for _ in range(4)))
    assert progression.kept(nothing, grid) is None
