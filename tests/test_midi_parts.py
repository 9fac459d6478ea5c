"""Who plays the new notes where several tracks have one program."""

from __future__ import annotations

import time
from collections import Counter
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_helpers import notes_of, tiny_sampler
from test_midi_join import make

from melodia.midi import bar_table, midi_bytes, read_score, window
from melodia.midi.join import join
from melodia.midi.parts import CROWDED, RECENT, _cheapest
from melodia.midi.replace import replace
from melodia.notes import program_of

QUARTER, BAR = 480, 1920
JOIN = 4 * BAR


def line(*pitches: int, bars: int = 4) -> list[tuple[int, int, int]]:
    """Quarter notes that fill bars, these pitches over and over."""
    return [(QUARTER * step, QUARTER, pitches[step % len(pitches)]) for step in range(4 * bars)]


def chords(*pitches: int) -> list[tuple[int, int, int]]:
    return [(QUARTER * step, QUARTER, pitch) for step in range(16) for pitch in pitches]


def behind(
    seed, *new, tick: int = JOIN, program: int = 0, quarter: int = QUARTER
) -> list[list[tuple[int, int]]]:
    """Of each track of a seed the new notes (start, pitch) that it gets behind a tick."""
    result, _ = join(seed, make((program, new), quarter=quarter), tick)
    return [
        sorted((note.time - tick, note.pitch) for note in track.notes if note.time >= tick)
        for track in result.tracks
    ]


@pytest.mark.parametrize("chord", [(72, 76), (60, 64), (69, 70), (76, 77)])
def test_two_violins_share_a_chord(chord: tuple[int, int]) -> None:
    """However near their means are; of two that lie alike the first is the higher."""
    low, high = [(0, chord[0])], [(0, chord[1])]
    new = [(0, QUARTER, pitch) for pitch in chord]
    for first, second, expected in (
        (line(69, 71, 72), line(69, 71, 71), [high, low]),
        (line(69, 71, 71), line(69, 71, 72), [low, high]),
        (line(69, 71), line(69, 71), [high, low]),
    ):
        assert behind(make((40, first), (40, second)), *new, program=40) == expected


def test_a_hand_that_plays_chords_goes_on_with_chords() -> None:
    seed = make((0, chords(67, 72, 76)), (0, line(48, 52)))
    new = [(0, 480, 65), (0, 480, 69), (0, 480, 74), (480, 480, 50)]
    assert behind(seed, *new) == [[(0, 65), (0, 69), (0, 74)], [(480, 50)]]


def test_a_voice_that_holds_a_note_leaves_the_next_to_another() -> None:
    """Notes that overlap by a little are one voice; the seed's own notes are held, too."""
    seed = make((0, line(72, 74)), (0, line(65, 67)))
    long, short = (0, 960, 74), (0, 500, 74)
    assert behind(seed, long, (480, 480, 71)) == [[(0, 74)], [(480, 71)]]
    assert behind(seed, short, (480, 480, 71)) == [[(0, 74), (480, 71)], []]
    held = make((0, [*line(72, 74)[:-1], (JOIN - 480, 960, 74)]), (0, line(65, 67)))
    assert behind(held, (0, 480, 71)) == [[], [(0, 71)]]


def test_hands_do_not_cross_where_one_is_full() -> None:
    """Without the note that is held below, the left hand would be cheaper: 14.5 against 3.5 and an octave."""
    seed = make((0, line(65, 66)), (0, chords(52, 57)))
    assert behind(seed, (0, 960, 61), (240, 240, 69)) == [[(0, 61), (240, 69)], []]
    assert behind(seed, (0, 960, 72), (240, 240, 69)) == [[(0, 72)], [(240, 69)]]


def test_a_track_that_no_longer_plays_gets_nothing_unless_there_is_no_other() -> None:
    late = [(start + RECENT * QUARTER, length, pitch) for start, length, pitch in line(60, 62)]
    seed = make((0, line(72)), (0, late), (0, []))
    end = JOIN + RECENT * QUARTER
    assert behind(seed, (0, 480, 75), tick=end) == [[], [(0, 75)], []]
    assert behind(seed, (0, 480, 75), tick=end + RECENT * QUARTER) == [[(0, 75)], [], []]
    assert behind(make((1, line(72)), (0, []), (0, [])), (0, 480, 75)) == [[], [(0, 75)], []]


def test_the_last_bars_say_where_a_track_lies() -> None:
    """Two tracks that have changed places."""
    moved = [(start + RECENT * QUARTER, length, pitch) for start, length, pitch in line(72)]
    other = [(start, length, 60) for start, length, _ in moved]
    seed = make((0, [*line(60), *moved]), (0, [*line(72), *other]))
    assert behind(seed, (0, 480, 71), (480, 480, 61), tick=JOIN + RECENT * QUARTER) == [
        [(0, 71)],
        [(480, 61)],
    ]


def test_a_drum_goes_to_the_track_that_strikes_it() -> None:
    """Though a crash makes the mean of the kick's track higher than the snare's."""
    seed = make(
        (-1, [*line(36), (0, 10, 57), (960, 10, 57)]), (-1, line(38)), (-1, [*line(42, 46), (0, 10, 38)])
    )
    new = [(0, 10, pitch) for pitch in (36, 38, 42, 46, 57, 44)]
    assert behind(seed, *new, program=-1) == [[(0, 36), (0, 57)], [(0, 38)], [(0, 42), (0, 44), (0, 46)]]


def test_new_bars_are_shared_like_what_stands_around_them() -> None:
    """The second violin plays only behind them."""
    first, second = line(71, 72, bars=16), [note for note in line(70, 71, bars=16) if note[0] >= 4 * BAR]
    new = make((40, [(0, 480, 74), (0, 480, 77)]))
    whole, _ = replace(make((40, first), (40, second)), new, 2 * BAR, 3 * BAR)
    assert [[n.pitch for n in t.notes if 2 * BAR <= n.time < 3 * BAR] for t in whole.tracks] == [[77], [74]]


@given(st.data())
def test_a_chord_is_shared_at_the_least_cost(data: st.DataObject) -> None:
    """Of all ways that keep the order, each judged by itself."""
    parts = data.draw(st.integers(1, 4))
    chord = sorted(data.draw(st.lists(st.integers(40, 90), min_size=1, max_size=5)), reverse=True)
    distances = [data.draw(st.lists(st.integers(0, 30), min_size=parts, max_size=parts)) for _ in chord]
    free = data.draw(st.lists(st.integers(-1, 3), min_size=parts, max_size=parts))
    low = data.draw(st.lists(st.integers(0, 80), min_size=parts, max_size=parts))
    high = data.draw(st.lists(st.integers(50, 127), min_size=parts, max_size=parts))

    def cost(places: tuple[int, ...]) -> float:
        far = sum(row[place] for row, place in zip(distances, places, strict=True))
        crossing = sum(not low[p] <= pitch <= high[p] for pitch, p in zip(chord, places, strict=True))
        crowd = sum(max(0, taken - max(0, free[place])) for place, taken in Counter(places).items())
        return far + CROWDED * (crossing + crowd)

    found = _cheapest(chord, distances, free, low, high)
    ways = list(combinations_with_replacement(range(parts), len(chord)))
    assert tuple(found) in ways
    assert cost(tuple(found)) == min(map(cost, ways))


rows = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 90), st.integers(30, 100)), max_size=25)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=4), rows)
def test_every_note_finds_a_track_and_chords_stay_in_order(tracks, new) -> None:
    seed = make(*[(0, notes) for notes in tracks], quarter=24)
    got = behind(seed, *new, tick=600, quarter=24)
    assert sorted(note for notes in got for note in notes) == sorted(
        {(start, pitch) for start, _, pitch in new}
    )
    assert got == behind(seed, *new[::-1], tick=600, quarter=24)
    means = [np.mean([pitch for *_, pitch in notes]) if notes else -1.0 for notes in tracks]
    order = sorted(range(len(tracks)), key=lambda index: -means[index])
    for start in {start for start, *_ in new}:
        pitches = [pitch for index in order for at, pitch in sorted(got[index], reverse=True) if at == start]
        assert pitches == sorted(pitches, reverse=True)


PIECES = {  # how many notes find their own track behind the middle of a piece, and in its bars 5 to 8
    "bach_jesu_meine_freude": (0.85, 0.9),
    "bach_prelude_c_major": (0.95, 0.8),
    "beethoven_fur_elise": (0.9, 0.9),
    "brahms_waltz_a_flat": (0.9, 0.9),
    "haydn_emperor_hymn": (0.95, 0.95),
    "joplin_entertainer": (0.9, 0.9),
    "petzold_minuet_g_minor": (0.95, 0.95),
}


@pytest.mark.parametrize("name", PIECES)
def test_notes_of_a_piece_find_their_own_tracks(samples_dir: Path, name: str) -> None:
    piece, _ = read_score(samples_dir / f"{name}.mid")
    own = [{(note.time, note.pitch) for note in track.notes} for track in piece.tracks]
    table = bar_table(piece)

    def right(score, start: int, stop: int) -> float:
        new = [
            (k, n.time, n.pitch)
            for k, t in enumerate(score.tracks)
            for n in t.notes
            if start <= n.time < stop
        ]
        assert len(new) > 20
        return sum((tick, pitch) in own[k] for k, tick, pitch in new) / len(new)

    middle, (start, stop) = table.line(len(table) // 2), (table.line(4), table.line(8))
    joined, _ = join(piece, window(piece, middle, table.end)[0], middle)
    assert right(joined, middle, table.end) >= PIECES[name][0]
    filled, _ = replace(piece, window(piece, start, stop)[0], start, stop)
    assert right(filled, start, stop) >= PIECES[name][1]


def test_four_tracks_of_one_program_play_on(samples_dir: Path) -> None:
    """Through the sampler and the written file."""
    seed, _ = read_score(samples_dir / "bach_jesu_meine_freude.mid")
    for track in seed.tracks:
        track.program = 0
    sampler = tiny_sampler()
    sampler.prime(seed, seed_bars=8)
    made = sampler.generate(bars=4, random_seed=5)
    joined, report = read_score(midi_bytes(made.joined_score))
    assert report.clean
    assert [program_of(track) for track in joined.tracks] == [0] * 4
    line = 8 * 4 * joined.ticks_per_quarter
    new = [[note.pitch for note in track.notes if note.time >= line] for track in joined.tracks]
    assert sum(map(len, new)) == made.report.notes == len(notes_of(made.score))
    means = [np.mean(pitches) for pitches in new]
    assert means == sorted(means, reverse=True)


def test_many_notes_take_little_time() -> None:
    random = np.random.default_rng(1)
    seed = make(*[(0, line(72 - 6 * k, 74 - 6 * k)) for k in range(4)])
    new = [(120 * (k // 2), 240, int(random.integers(40, 80))) for k in range(10_000)]
    more = make((0, new))
    started = time.process_time()
    join(seed, more, JOIN)
    assert time.process_time() - started < 1.0  # a twentieth of it where nothing else runs
