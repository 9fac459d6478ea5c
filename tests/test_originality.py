"""Planted copies are found with their file and bar; what everybody plays is not."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import symusic

from melodia.errors import CheckpointError
from melodia.originality import FILE, Chance, Index, Notes, Training, notes_of_score, shared_passages
from melodia.originality.index import DEPTH, SPACING
from melodia.originality.lines import GAP, interval_of, lines_of, steps_of
from melodia.originality.search import LEAST_VARIETY, variety_of

TPQ = 48
BAR = 4 * TPQ
RHYTHMS = (12, 24, 24, 48, 48, 72, 96)


def tune(rng: np.random.Generator, bars: int, *, low: int = 55, high: int = 80, program: int = 0) -> Notes:
    """A random walk in random note values."""
    onset, at = [], 0
    while at < bars * BAR:
        onset.append(at)
        at += int(rng.choice(RHYTHMS))
    start = np.array(onset)
    walk = np.cumsum(rng.integers(-5, 6, len(start)))
    pitch = low + np.abs((walk + 7) % (2 * (high - low)) - (high - low))
    return Notes(start, np.append(start[1:], bars * BAR), pitch, np.full(len(start), program))


def join(*parts: Notes) -> Notes:
    return Notes(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def moved(
    notes: Notes, by: int = 0, *, speed: float = 1.0, semitones: int = 0, program: int | None = None
) -> Notes:
    first = int(notes.onset.min())
    return Notes(
        np.rint((notes.onset - first) * speed).astype(np.int64) + by,
        np.rint((notes.end - first) * speed).astype(np.int64) + by,
        notes.pitch + semitones,
        notes.program if program is None else np.full(len(notes.onset), program),
    )


def part(notes: Notes, first: int, last: int) -> Notes:
    """The bars first..last - 1."""
    inside = (notes.onset >= first * BAR) & (notes.onset < last * BAR)
    return Notes(*(column[inside] for column in vars(notes).values()))


def bars(count: int) -> np.ndarray:
    return np.arange(count + 1) * BAR


@pytest.fixture(scope="module")
def pieces() -> list[Training]:
    """Forty pieces of two programs and 32 bars."""
    rng = np.random.default_rng(7)
    made = []
    for number in range(40):
        voice = tune(rng, 32, program=52)
        accompaniment = tune(rng, 32, low=40, high=54, program=0)
        made.append(Training(f"deep/{number}.mid", join(voice, accompaniment), bars(32)))
    return made


@pytest.fixture(scope="module")
def index(pieces: list[Training]) -> Index:
    return Index.build(pieces, fingerprint="abc")


@pytest.mark.parametrize("semitones", [-7, 0, 5])
@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0, 4 / 3])
@pytest.mark.parametrize("program", [52, 40])
def test_a_planted_copy_is_found(
    pieces: list[Training], index: Index, semitones: int, speed: float, program: int
) -> None:
    """Four bars of a voice: transposed, at another speed, on another instrument, between and above random notes."""
    rng = np.random.default_rng(int(10 * speed) + 10 + semitones)
    voice = Notes(*(column[pieces[17].notes.program == 52] for column in vars(pieces[17].notes).values()))
    copy = moved(part(voice, 9, 13), 4 * BAR, speed=speed, semitones=semitones, program=program)
    stop = 4 + round(4 * speed)
    before = tune(rng, 4, program=program)
    behind = moved(tune(rng, 4, program=program), int(copy.end.max()))
    others = tune(rng, stop + 4, low=20, high=38, program=33)
    music = join(before, copy, behind, others)
    found = shared_passages(index, music, bars(stop + 5))
    assert found.longest is not None
    assert found.longest.file == "deep/17.mid"
    # By chance the random notes before and behind can prolong it by one or two.
    assert found.longest.file_bar in (9, 10)
    assert len(copy.onset) <= found.longest.notes <= len(copy.onset) + 3
    assert found.longest.bars == pytest.approx(4 * speed, abs=0.9)
    assert found.longest.bar in (4, 5)
    assert not found.longest.of_seed


def test_a_copy_under_another_voice_and_among_chords(pieces: list[Training], index: Index) -> None:
    """A bass that is copied under a new tune of the same program; a tune whose copy has chords below it."""
    rng = np.random.default_rng(3)
    bass = moved(part(lines_as_notes(pieces[5], 0), 20, 26), semitones=-12, program=4)
    above = tune(rng, 6, low=70, high=90, program=4)
    found = shared_passages(index, join(bass, above), bars(6))
    assert found.longest is not None
    assert (found.longest.file, found.longest.file_bar, found.longest.bar) == ("deep/5.mid", 21, 1)
    voice = moved(part(lines_as_notes(pieces[30], 52), 2, 6), program=0)
    chords = [Notes(voice.onset, voice.end, voice.pitch - by, voice.program) for by in (12, 17)]
    between = tune(rng, 4, low=20, high=36, program=0)
    found = shared_passages(index, join(voice, *chords, between), bars(4))
    assert found.longest is not None
    assert (found.longest.file, found.longest.file_bar) == ("deep/30.mid", 3)
    assert found.longest.notes >= len(voice.onset) - 1, "the time before its first note is not known"


def lines_as_notes(piece: Training, program: int) -> Notes:
    return Notes(*(column[piece.notes.program == program] for column in vars(piece.notes).values()))


def test_what_everybody_plays_is_not_a_copy(index: Index) -> None:
    """The training music has scales, arpeggios, an Alberti bass and repeated notes; so has the music."""

    def even(pitches: list[int], length: int = 6) -> Notes:
        at = np.arange(len(pitches)) * length
        return Notes(at, at + length, np.array(pitches), at * 0)

    scale = [60 + 12 * octave + step for octave in range(3) for step in (0, 2, 4, 5, 7, 9, 11)]
    figures = {
        "scale up": scale * 3,
        "chromatic": list(range(40, 90)),
        "repeated": [60] * 200,
        "trill": [60, 62] * 100,
        "arpeggio": [48, 52, 55, 60, 64, 67] * 20,
        "alberti": [48, 55, 52, 55] * 40,
    }
    pieces = [Training(f"{name}.mid", even(pitches), bars(400)) for name, pitches in figures.items()]
    common = Index.build(pieces)
    for name, pitches in figures.items():
        found = shared_passages(common, even([pitch + 3 for pitch in pitches], 12), bars(400))
        assert found.longest is None, f"{name}: {found.longest}"
        assert found.lines()[0].startswith("no passage shared")
    nothing = Notes(*(np.zeros(0, dtype=np.int64) for _ in range(4)))
    assert shared_passages(index, nothing, bars(1)).longest is None
    assert shared_passages(index, even([60]), bars(1)).longest is None
    drums = replace(even(scale), program=np.full(len(scale), -1))
    assert lines_of(drums) == []
    assert shared_passages(index, even(scale), bars(4)).compared
    assert shared_passages(index, drums, bars(4)).lines()[0].startswith("nothing to compare")
    assert shared_passages(Index.build([]), even(scale), bars(4)).longest is None


def test_random_music_shares_nothing(index: Index) -> None:
    rng = np.random.default_rng(99)
    longest = [shared_passages(index, tune(rng, 16), bars(16)).notes for _ in range(60)]
    assert np.mean(np.array(longest) > 0) <= 0.05


def test_the_seeds_own_piece_is_named(pieces: list[Training], index: Index) -> None:
    seed = part(pieces[11].notes, 0, 8)
    goes_on = moved(part(pieces[11].notes, 8, 12))
    found = shared_passages(index, goes_on, bars(4), seed=moved(seed, semitones=2))
    assert found.longest is not None
    assert found.longest.of_seed
    assert "deep/11.mid bar 9 (the seed's own piece)" in str(found.longest)
    # Of a long seed the end counts, and costs no more than that.
    long = join(tune(np.random.default_rng(4), 2000), moved(seed, 2000 * BAR))
    assert len(long.onset) > 8000
    began = time.process_time()
    found = shared_passages(index, goes_on, bars(4), seed=long)
    assert time.process_time() - began < 0.2
    assert found.longest is not None
    assert found.longest.of_seed
    gone = join(seed, moved(tune(np.random.default_rng(5), 2000), 8 * BAR))
    found = shared_passages(index, goes_on, bars(4), seed=gone)
    assert found.longest is not None
    assert not found.longest.of_seed
    other = shared_passages(index, goes_on, bars(4), seed=part(pieces[12].notes, 0, 8))
    assert other.longest is not None
    assert not other.longest.of_seed
    assert found.to_dict()["passages"][0]["file"] == "deep/11.mid"


def test_the_passage_that_lasts_longest_may_be_a_slow_one(pieces: list[Training], index: Index) -> None:
    """Four bars at half speed have fewer notes than six bars of another piece, and last longer."""
    slow = moved(part(lines_as_notes(pieces[2], 52), 4, 8), speed=2.0)
    fast = moved(part(lines_as_notes(pieces[3], 52), 4, 11), 10 * BAR)
    found = shared_passages(index, join(slow, fast), bars(17))
    assert found.longest is not None
    assert found.lasting is not None
    assert (found.longest.file, found.lasting.file) == ("deep/3.mid", "deep/2.mid")
    assert found.bars == found.lasting.bars > found.longest.bars
    assert [passage.file for passage in found.passages] == ["deep/3.mid", "deep/2.mid"]


def test_every_place_has_its_file_and_bar(pieces: list[Training], index: Index) -> None:
    """Also behind rests of many bars, and where the first bars are empty."""
    late = tune(np.random.default_rng(1), 2)
    rests = join(moved(late, 5 * BAR), moved(late, 300 * BAR), moved(late, 303 * BAR))
    mixed = Index.build([*pieces[:3], Training("rests.mid", rests, bars(310)), *pieces[3:5]])
    number = 0
    for name, notes, starts in [(p.name, p.notes, p.bar_starts) for p in
                                [*pieces[:3], Training("rests.mid", rests, bars(310)), *pieces[3:5]]]:  # fmt: skip
        for line in lines_of(notes):
            for onset in line.onset.tolist():
                bar = int(np.searchsorted(starts, onset, side="right")) - 1
                assert mixed.place(number) == (name, bar)
                number += 1
    assert number == mixed.notes


def test_saved_and_mapped_is_the_same(tmp_path: Path, pieces: list[Training], index: Index) -> None:
    index = index.with_chance(Chance(10, 16, 0, 14))
    path = index.save(tmp_path)
    assert path.name == FILE
    mapped = Index.open(tmp_path)
    assert mapped is not None
    assert (mapped.names, mapped.fingerprint, mapped.chance) == (index.names, "abc", Chance(10, 16, 0, 14))
    for name in ("steps", "samples", "line_starts", "line_pieces", "new_bar", "rest_at", "rest_bars"):
        np.testing.assert_array_equal(getattr(mapped, name), getattr(index, name))
        assert not getattr(mapped, name).flags.owndata, "mapped, not read"
    music = part(pieces[20].notes, 4, 8)
    assert shared_passages(mapped, music, bars(8)) == shared_passages(index, music, bars(8))
    # A byte a note, samples and bars: under 2 bytes a note beside the names.
    assert path.stat().st_size < 2 * index.notes + 60 * index.pieces + 2000


def test_joined_index_knows_both(pieces: list[Training]) -> None:
    whole = Index.build(pieces[:6])
    both = Index.build(pieces[:3]).joined(Index.build(pieces[3:6]))
    np.testing.assert_array_equal(both.steps, whole.steps)
    np.testing.assert_array_equal(both.samples, whole.samples[np.isin(whole.samples, both.samples)])
    for note in range(0, whole.notes, 37):
        assert both.place(note) == whole.place(note)
    found = shared_passages(both, part(pieces[4].notes, 3, 7), bars(7))
    assert found.longest is not None
    assert (found.longest.file, found.longest.file_bar) == ("deep/4.mid", 4)


def test_joined_index_has_a_piece_of_both_once(pieces: list[Training]) -> None:
    """A folder grows, and its model is fine-tuned on all of it: nothing is found, or counted, twice."""
    resting = replace(pieces[4], bar_starts=pieces[4].bar_starts // 8)  # many bars without a note
    silent = Training("drums.mid", part(pieces[0].notes, 0, 0), np.array([0]))
    before = Index.build([pieces[0], resting, pieces[1], silent, pieces[2]])
    both = Index.build([pieces[3], pieces[1], silent, replace(pieces[0], name="moved/0.mid")]).joined(before)
    once = Index.build(
        [pieces[3], pieces[1], silent, replace(pieces[0], name="moved/0.mid"), resting, pieces[2]]
    )
    assert both.names == once.names
    for name in ("steps", "line_starts", "line_pieces", "new_bar", "rest_at", "rest_bars"):
        np.testing.assert_array_equal(getattr(both, name), getattr(once, name))
    assert Index.build(pieces[:2]).joined(Index.build(pieces[:2])).pieces == 2


def test_damaged_files_are_refused(tmp_path: Path, index: Index) -> None:
    assert Index.open(tmp_path) is None
    path = index.save(tmp_path)
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:4], b"", b"\xff" * 64, whole.replace(b'"U8"', b'"F8"')):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"is damaged.*--model {re.escape(str(tmp_path))} --index"):
            Index.open(tmp_path)
    path.write_bytes(whole.replace(b'format_version\\": 1', b'format_version\\": 9'))
    with pytest.raises(CheckpointError, match=r"format version 9.*update melodia"):
        Index.open(tmp_path)
    changed = replace(index, samples=np.array([index.notes], dtype="<u4"))
    changed.save(tmp_path)
    with pytest.raises(CheckpointError, match="outside the steps"):
        Index.open(tmp_path)


def test_steps_are_intervals_and_ratios() -> None:
    at, pitch = np.array([0, 4, 8, 16, 18, 30]), np.array([60, 62, 60, 72, 40, 41])
    steps = steps_of(at, pitch)
    assert steps[:2].tolist() == [GAP, GAP]
    assert interval_of(steps[2:]).tolist() == [-2, 12, -13, 1], "leaps beyond an octave are alike"
    np.testing.assert_array_equal(steps, steps_of(at * 3 + 7, pitch - 9))
    assert len(set(steps_of(np.array([0, 4, 8, 12, 16]), np.array([60] * 5))[2:])) == 1
    assert variety_of(steps[2:]) == 3
    assert variety_of(steps[:0]) == 0
    everything = {
        int(steps_of(np.array([0, 12, 12 + wait]), np.array([60, 60, 60 + interval]))[2])
        for wait in (3, 4, 6, 9, 12, 16, 24, 36, 48)
        for interval in range(-13, 14)
    }
    assert len(everything) == 27 * 9, "every class has a byte of its own"
    assert min(everything) == 1
    assert max(everything) == 243


def test_the_tune_is_what_nothing_sounds_above() -> None:
    # A held 72 over 60 64 67; then 71, with 55 below it; the accompaniment's notes are no part of the top.
    notes = Notes(*np.array([[0, 48, 72, 0], [0, 12, 60, 0], [12, 24, 64, 0], [24, 36, 67, 0], [48, 96, 71, 0],
                             [48, 60, 55, 0], [96, 108, 74, 0], [108, 120, 76, 0]]).T)  # fmt: skip
    top, bottom = lines_of(notes)
    assert top.onset.tolist() == [0, 48, 96, 108]
    assert bottom.onset.tolist() == [0, 12, 24, 48, 96, 108]
    # Played legato, each note a little into the next: the same top.
    fall = Notes(*np.array([[0, 13, 72, 0], [12, 25, 71, 0], [24, 37, 69, 0], [36, 48, 67, 0]]).T)
    (falling,) = lines_of(fall)
    assert falling.onset.tolist() == [0, 12, 24, 36]
    # Short under the end of a long note: covered, though little of the long one is left.
    held = Notes(
        *np.array([[0, 1000, 80, 0], [900, 1000, 60, 0], [1000, 1100, 81, 0], [1100, 1200, 83, 0]]).T
    )
    assert lines_of(held)[0].onset.tolist() == [0, 1000, 1100]
    octaves = join(notes, Notes(notes.onset, notes.end, notes.pitch, notes.program + 1))
    assert len(lines_of(octaves)) == 4
    assert len(lines_of(octaves, whole=True)) == 6


def test_scores_become_notes() -> None:
    score = symusic.Score(480)
    for program, drum in ((40, False), (0, True)):
        track = symusic.Track(program=program, is_drum=drum)
        track.notes.append(symusic.Note(480, 240, 60, 80))
        score.tracks.append(track)
    notes = notes_of_score(score)
    assert notes.program.tolist() == [40, -1]
    assert notes.end.tolist() == [720, 720]


def test_searching_is_fast_and_exact_against_every_place(pieces: list[Training], index: Index) -> None:
    """Against a search that looks at every place: nothing of SPACING + 5 steps or more is missed."""
    rng = np.random.default_rng(5)
    text = index.steps[: index.notes].tobytes()
    times = []
    for number in range(20):
        start = int(rng.integers(0, 24))
        copy = part(lines_as_notes(pieces[number], 52), start, start + 3)
        music = join(copy, moved(tune(rng, 5), 40 * BAR))
        began = time.perf_counter()
        found = shared_passages(index, music, bars(46))
        times.append(time.perf_counter() - began)
        best = 0
        for line in lines_of(music, whole=True):
            steps = line.steps.tobytes()
            for first in range(2, len(steps)):
                while steps[first : first + best + 1] in text and first + best + 1 <= len(steps):
                    best += 1
        if best >= SPACING + 5:
            assert found.notes == best + 1
    assert np.median(times) < 0.05
    assert index.steps[-DEPTH:].max() == GAP
    assert LEAST_VARIETY < SPACING + 5


def test_no_torch_on_the_way_to_a_search() -> None:
    code = (
        "import sys, numpy as np, melodia.evaluation.notes\n"
        "from melodia.originality import Index, Notes, shared_passages\n"
        "a = np.arange(20); i = Index.build([]); shared_passages(i, Notes(a, a + 1, a + 40, a * 0), a)\n"
        "print([m for m in ('torch', 'symusic', 'miditok', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
