"""Scores to tokens and back, by hand and on the repository's own files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_files import corpus_files
from grammar_helpers import content, faults, grammar_of, tokenizer_of
from symusic import ControlChange, KeySignature, Note, PitchBend, Score, Tempo, TextMeta, TimeSignature, Track

from melodia.errors import ConfigError, TokenizerError
from melodia.grammar import Grammar
from melodia.midi import read_score
from melodia.tokenizer import SCHEMES, Tokenizer, TokenizerConfig
from melodia.vocabulary import Vocabulary

QUARTER = 480


def make(
    *tracks: tuple[int, list[tuple[float, float, int, int]]],
    metres: list[tuple[float, int, int]] | None = None,
    tempi: list[tuple[float, float]] | None = None,
) -> Any:
    """A score of (program, [(onset, length, pitch, velocity)]), times in quarter notes; program -1 is the drums."""
    score = Score(QUARTER)
    for program, notes in tracks:
        track = Track(program=max(program, 0), is_drum=program < 0)
        for onset, length, pitch, velocity in notes:
            track.notes.append(Note(round(onset * QUARTER), round(length * QUARTER), pitch, velocity))
        score.tracks.append(track)
    for time, top, bottom in metres or [(0, 4, 4)]:
        score.time_signatures.append(TimeSignature(round(time * QUARTER), top, bottom))
    for time, qpm in tempi or [(0, 120)]:
        score.tempos.append(Tempo(round(time * QUARTER), qpm=qpm))
    return score


def strings(score: Any, scheme: str = "REMI") -> str:
    """The token strings of a score without their types' None."""
    tokenizer = tokenizer_of(scheme)
    ids = tokenizer.encode(score).ids
    return " ".join(tokenizer.vocabulary.tokens[i].removesuffix("_None") for i in ids)


def found(score: Any, scheme: str = "REMI") -> dict[str, int]:
    """The findings of an encoding: "kind: what" -> count."""
    return {f"{f.kind}: {f.what}": f.count for f in tokenizer_of(scheme).encode(score).findings}


WALTZ = make(
    (0, [(0, 1, 60, 63), (1, 0.5, 64, 63), (3, 2, 60, 95)]),
    (-1, [(1, 0.25, 38, 127)]),
    metres=[(0, 3, 4)],
    tempi=[(0, 120), (3, 100)],
)
BY_HAND = {
    "REMI": "Bar TimeSig_3/4 Position_0 Tempo_120.0 Program_0 Pitch_60 Velocity_63 Duration_1.0.12 "
    "Position_12 Pitch_64 Velocity_63 Duration_0.6.12 Program_-1 PitchDrum_38 Velocity_127 Duration_0.3.12 "
    "Bar TimeSig_3/4 Position_0 Tempo_100.0 Program_0 Pitch_60 Velocity_95 Duration_2.0.12",
    "TSD": "TimeSig_3/4 Tempo_120.0 Program_0 Pitch_60 Velocity_63 Duration_1.0.12 "
    "TimeShift_1.0.12 Pitch_64 Velocity_63 Duration_0.6.12 Program_-1 PitchDrum_38 Velocity_127 Duration_0.3.12 "
    "TimeShift_2.0.12 Tempo_100.0 Program_0 Pitch_60 Velocity_95 Duration_2.0.12",
    "MIDILike": "TimeSig_3/4 Tempo_120.0 Program_0 NoteOn_60 Velocity_63 TimeShift_1.0.12 NoteOff_60 "
    "NoteOn_64 Velocity_63 Program_-1 DrumOn_38 Velocity_127 TimeShift_0.3.12 DrumOff_38 "
    "TimeShift_0.3.12 Program_0 NoteOff_64 TimeShift_1.6.12 Tempo_100.0 NoteOn_60 Velocity_95 "
    "TimeShift_2.0.12 NoteOff_60",
    "Structured": "TimeShift_0.0.1 Program_0 Pitch_60 Velocity_63 Duration_1.0.12 "
    "TimeShift_1.0.12 Program_0 Pitch_64 Velocity_63 Duration_0.6.12 "
    "TimeShift_0.0.1 Program_-1 PitchDrum_38 Velocity_127 Duration_0.3.12 "
    "TimeShift_2.0.12 Program_0 Pitch_60 Velocity_95 Duration_2.0.12",
    "PerTok": "Bar TimeSig_3/4 Tempo_120.0 Program_0 Pitch_60 MicroTiming_0 Velocity_63 Duration_1.0.12 "
    "TimeShift_1.0.12 Pitch_64 MicroTiming_0 Velocity_63 Duration_0.6.12 "
    "Program_-1 PitchDrum_38 MicroTiming_0 Velocity_127 Duration_0.3.12 "
    "Bar TimeSig_3/4 Tempo_100.0 Program_0 Pitch_60 MicroTiming_0 Velocity_95 Duration_2.0.12",
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_written_by_hand(scheme: str) -> None:
    assert strings(WALTZ, scheme) == BY_HAND[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_own_files_there_and_back(scheme: str, samples_dir: Path) -> None:
    tokenizer = tokenizer_of(scheme)
    grammar = Grammar.compile(tokenizer.vocabulary)
    for path in sorted(samples_dir.glob("*.mid")):
        ids = tokenizer.encode(read_score(path)[0], bos=True, eos=True).ids
        assert grammar.accepts(ids.tolist()) is None, path.name
        score = tokenizer.decode(ids)
        assert faults(score) == [], path.name
        again = tokenizer.encode(score)
        assert np.array_equal(again.ids, ids[1:-1]), path.name
        assert not [f for f in again.findings if f.kind in ("repaired", "dropped", "quantised")], path.name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_is_lost_on_the_grid(scheme: str) -> None:
    """Sixteenths and triplets, every velocity level, and a note tied over bars come back as they were."""
    tokenizer = tokenizer_of(scheme)
    levels = [int(tokenizer.vocabulary.value(i)) for i in tokenizer.vocabulary.ids_of("Velocity")]
    notes = [(i / 4, 1 / 4, 48 + i, levels[i]) for i in range(32)]
    notes += [(8 + i / 3, 1 / 3, 60 + i, 63) for i in range(12)]
    notes += [(12, 8, 60, 63)]
    score = make((0, notes), (40, [(0, 4, 72, 63)]), (-1, [(0, 1, 38, 63)]))
    back = tokenizer.decode(tokenizer.encode(score).ids)
    scale = back.ticks_per_quarter / QUARTER
    expected = sorted(
        (p, round(on * QUARTER) * scale, pitch, round(length * QUARTER) * scale, velocity)
        for p, part in ((0, notes), (40, [(0, 4, 72, 63)]), (-1, [(0, 1, 38, 63)]))
        for on, length, pitch, velocity in part
    )
    assert content(back)[0] == expected
    kinds = {f.kind for f in tokenizer.encode(score).findings}
    assert "dropped" not in kinds
    assert "repaired" not in kinds


def test_compound_metre_counts_in_its_own_beats() -> None:
    """In 6/8 a beat is an eighth: twelve positions each, and a dotted quarter lasts three beats."""
    score = make((0, [(0, 1.5, 60, 63), (1.5, 1.5, 62, 63), (3, 3, 64, 63)]), metres=[(0, 6, 8)])
    assert strings(score) == (
        "Bar TimeSig_6/8 Position_0 Tempo_120.0 Program_0 Pitch_60 Velocity_63 Duration_3.0.12 "
        "Position_36 Pitch_62 Velocity_63 Duration_3.0.12 "
        "Bar TimeSig_6/8 Position_0 Pitch_64 Velocity_63 Duration_6.0.4"
    )


def test_metre_changes_at_bar_lines() -> None:
    score = make(
        (0, [(0, 3, 60, 63), (3, 1.5, 62, 63), (4.5, 4, 64, 63)]), metres=[(0, 3, 4), (3, 3, 8), (4.5, 4, 4)]
    )
    tokenizer = tokenizer_of("REMI")
    back = tokenizer.decode(tokenizer.encode(score).ids)
    assert content(back)[2] == [(0, 3, 4), (144, 3, 8), (216, 4, 4)]
    assert [n[1] for n in content(back)[0]] == [0, 144, 216]


def test_metre_of_halves_becomes_one_of_quarters() -> None:
    """So that sixteenths stay on the grid; the finding says it."""
    score = make((0, [(0.25, 0.25, 60, 63), (4, 4, 62, 63)]), metres=[(0, 2, 2)])
    assert strings(score).startswith("Bar TimeSig_4/4 Position_0 Tempo_120.0 Position_3 Program_0 Pitch_60")
    assert found(score)["quantised: time signature 2/2 written as 4/4"] == 1


def test_metre_without_token_becomes_several() -> None:
    score = make((0, [(i * 6.5, 1, 60, 63) for i in range(3)]), metres=[(0, 13, 8)])
    back = tokenizer_of("REMI").decode(tokenizer_of("REMI").encode(score).ids)
    assert [n[1] for n in content(back)[0]] == [0, 312, 624]
    metres = [(m.numerator, m.denominator) for m in back.time_signatures]
    assert metres == [(7, 8), (6, 8), (7, 8), (6, 8), (7, 8)]
    assert found(score)["quantised: time signature 13/8 written as 7/8 + 6/8"] == 1


def test_bar_cut_short_by_a_metre_gets_a_metre_of_its_own() -> None:
    """4/4, but the second bar is cut behind three quarters: the third bar line stays where it was."""
    score = make((0, [(0, 4, 60, 63), (4, 3, 62, 63), (7, 2, 64, 63)]), metres=[(0, 4, 4), (7, 2, 4)])
    back = tokenizer_of("REMI").decode(tokenizer_of("REMI").encode(score).ids)
    assert content(back)[2] == [(0, 4, 4), (192, 3, 4), (336, 2, 4)]
    assert found(score)["quantised: bar cut short by a time signature written as 3/4"] == 1


def test_metre_that_cannot_start_where_it_stands_waits_for_the_bar_line() -> None:
    off = 4 + 1 / 7
    score = make((0, [(0, 4, 60, 63), (off, 1, 62, 63), (9, 3, 64, 63)]), metres=[(0, 4, 4), (off, 3, 4)])
    back = tokenizer_of("REMI").decode(tokenizer_of("REMI").encode(score).ids)
    assert content(back)[2] == [(0, 4, 4), (384, 3, 4)]
    assert found(score)["quantised: time signature inside a bar moved to the next bar line"] == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("length", [0.75 + 1 / 24, 40])
def test_a_note_that_ends_between_grid_lines_delays_nothing(scheme: str, length: float) -> None:
    """The grid of 7/16 is finer than that of 4/4: the note ends there between two lines, and time goes on as it was."""
    notes = [(1 + 1 / 48, length, 60, 63)] + [(1.75 + i, 1, 64, 63) for i in range(44)]
    score = make((0, notes), metres=[(0, 7, 16), (1.75, 4, 4)])
    tokenizer = tokenizer_of(scheme)
    ids = tokenizer.encode(score).ids
    back = tokenizer.decode(ids)
    onsets = [n[1] / tokenizer.config.ticks_per_quarter for n in content(back)[0] if n[2] == 64]
    moved = onsets[0] - 1.75  # Structured knows no 7/16, whose bar line is between its lines
    assert onsets == pytest.approx([1.75 + moved + i for i in range(44)])
    assert abs(moved) < (1 / 24 if scheme == "Structured" else 1e-6)
    assert grammar_of(scheme).accepts(ids.tolist()) is None
    assert np.array_equal(tokenizer.encode(back).ids, ids)


def test_notes_doubled_by_joined_tracks_are_merged() -> None:
    """Two tracks of one program: the doubled note keeps the longer length and the louder velocity."""
    score = make((40, [(0, 1, 60, 31)]), (40, [(0, 2, 60, 95)]), (41, [(0, 1, 60, 63)]))
    back = tokenizer_of("REMI").decode(tokenizer_of("REMI").encode(score).ids)
    assert content(back)[0] == [(40, 0, 60, 96, 95), (41, 0, 60, 48, 63)]
    assert found(score)["repaired: note doubled at one place merged"] == 1


def test_a_note_is_cut_where_its_pitch_is_struck_again() -> None:
    score = make((40, [(0, 4, 60, 63)]), (40, [(1, 1, 60, 63)]))
    back = tokenizer_of("REMI").decode(tokenizer_of("REMI").encode(score).ids)
    assert content(back)[0] == [(40, 0, 60, 48, 63), (40, 48, 60, 48, 63)]
    assert found(score)["repaired: note cut where its pitch is struck again"] == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_longest_note(scheme: str) -> None:
    """Sixteen quarters survive in every scheme; what is longer than the longest duration is clipped and counted."""
    tokenizer = tokenizer_of(scheme)
    longest = 16 if scheme == "Structured" else 32
    for length, expected in ((16, 16), (100, longest)):
        score = make((0, [(0, length, 60, 63), (0, 1, 64, 63)]))
        note = content(tokenizer.decode(tokenizer.encode(score).ids))[0][0]
        assert note[3] == expected * tokenizer.config.ticks_per_quarter
        clipped = found(score, scheme).get("quantised: note longer than the longest duration clipped", 0)
        assert clipped == (length > longest)


def test_what_is_not_carried_is_said() -> None:
    score = make((0, [(0, 1, 60, 64)]))
    track = score.tracks[0]
    track.controls.append(ControlChange(0, 64, 127))
    track.controls.append(ControlChange(480, 64, 0))
    track.controls.append(ControlChange(0, 7, 100))
    track.pitch_bends.append(PitchBend(0, 100))
    track.lyrics.append(TextMeta(0, "la"))
    score.key_signatures.append(KeySignature(0, 2, 0))
    assert found(score) == {
        "quantised: velocity": 1,
        "not carried: key signature": 1,
        "not carried: sustain pedal": 2,
        "not carried: control change": 1,
        "not carried: pitch bend": 1,
        "not carried: lyric": 1,
    }
    structured = found(make((0, [(0, 1, 60, 63)]), metres=[(0, 3, 4)]), "Structured")
    assert structured == {"not carried: time signature": 1, "not carried: tempo": 1}


def test_quantised_times_are_counted_with_their_error() -> None:
    score = make((0, [(0, 1, 60, 63), (1.03, 1.97, 62, 63)]))
    findings = {f.what: f for f in tokenizer_of("REMI").encode(score).findings}
    assert str(findings["note onset"]).startswith("quantised: note onset (1 of 2; mean ")
    assert "largest 0.0292" in findings["note onset"].detail  # 1.03 is 494 / 480


def test_tempi_are_thinned_to_what_changes() -> None:
    """One at a place (the last), none that changes nothing, none behind the last note; 120 where there is none."""
    score = make((0, [(0, 4, 60, 63)]), tempi=[(0, 120), (1, 120), (2, 90), (2.001, 100), (9, 60)])
    back = tokenizer_of("REMI").decode(tokenizer_of("REMI").encode(score).ids)
    assert [(t.time, round(t.qpm)) for t in back.tempos] == [(0, 120), (96, 100)]
    bare = make((0, [(0, 4, 60, 63)]))
    bare.tempos.clear()
    bare.time_signatures.clear()
    assert strings(bare).startswith("Bar TimeSig_4/4 Position_0 Tempo_120.0")


def test_drum_pitches_without_a_token_are_dropped() -> None:
    score = make((-1, [(0, 1, 5, 63), (0, 1, 38, 63)]))
    assert found(score)["dropped: drum note outside 21 to 88"] == 1
    assert strings(score).count("PitchDrum") == 1


def test_micro_timing_keeps_what_the_grid_moves() -> None:
    """PerTok: an onset 1/48 of a quarter late comes back late, and negative offsets come back early."""
    score = make((0, [(1 + 1 / 48, 0.5, 60, 63), (2 - 1 / 48, 0.5, 62, 63), (3, 1, 64, 63)]))
    tokenizer = tokenizer_of("PerTok")
    back = tokenizer.decode(tokenizer.encode(score).ids)
    assert [n[1] / back.ticks_per_quarter for n in content(back)[0]] == [1 + 1 / 48, 2 - 1 / 48, 3]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_long_silence(scheme: str) -> None:
    score = make((0, [(0, 1, 60, 63), (60, 1, 62, 63)]))
    tokenizer = tokenizer_of(scheme)
    onsets = [
        n[1] / tokenizer.config.ticks_per_quarter
        for n in content(tokenizer.decode(tokenizer.encode(score).ids))[0]
    ]
    shortened = found(score, scheme).get("quantised: silence longer than the longest time shift shortened", 0)
    assert (onsets, shortened) == (([0, 16], 1) if scheme == "Structured" else ([0, 60], 0))


def test_nothing_to_write_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="no notes"):
        tokenizer_of("REMI").encode(make((0, [])))
    with pytest.raises(TokenizerError, match="no notes"):
        tokenizer_of("REMI").encode(make((-1, [(0, 1, 3, 63)])))


def test_decode_takes_anything_in_the_vocabulary() -> None:
    """Orphans are passed over; ids that are not there are an error."""
    tokenizer = tokenizer_of("REMI")
    index = tokenizer.vocabulary.index
    line = "Velocity_63 Duration_1.0.12 Pitch_60 Bar_None Program_0 Pitch_60 Pitch_62 Velocity_63 Duration_1.0.12"
    score = tokenizer.decode([index[t] for t in line.split()])
    assert content(score)[0] == [(0, 0, 62, 48, 63)]
    rng = np.random.default_rng(0)
    tokenizer.decode(rng.integers(0, tokenizer.vocabulary.size, 2000))
    for wrong in ([-1], [tokenizer.vocabulary.size], [3, 10**9]):
        with pytest.raises(TokenizerError, match="token ids must be between"):
            tokenizer.decode(wrong)
    assert len(tokenizer.decode([]).tracks) == 0


def test_save_and_load(tmp_path: Path) -> None:
    for scheme in SCHEMES:
        tokenizer = Tokenizer(TokenizerConfig(scheme=scheme, positions_per_beat=24, velocities=8, tempi=30))
        path = tokenizer.save(str(tmp_path / "tokenizer.json"), force=scheme != SCHEMES[0])
        again = Tokenizer.load(path)
        assert again.config == tokenizer.config
        assert again.vocabulary == tokenizer.vocabulary
        assert np.array_equal(again.encode(WALTZ).ids, tokenizer.encode(WALTZ).ids)
        before = path.read_bytes()
        with pytest.raises(TokenizerError, match="already exists"):
            Tokenizer().save(path)
        assert path.read_bytes() == before
    with pytest.raises(TokenizerError, match="cannot be written"):
        Tokenizer().save(tmp_path / "nowhere" / "tokenizer.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format 1"),
        ({"config": {"scheme": "REMI"}}, "not a tokenizer"),
        ({"config": 3}, "not a tokenizer"),
        ({"pairs": [[1]]}, "not a tokenizer"),
        ({"pairs": [[10**6, 1]]}, "names no token before it"),
        ({"fingerprint": "0"}, "another vocabulary"),
    ],
)
def test_a_file_that_is_not_a_tokenizer(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_of("REMI").to_dict() | change))
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", "{not json", "\x00\xff"])
def test_a_file_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TokenizerError):
        Tokenizer.load(path)
    with pytest.raises(TokenizerError, match="cannot read"):
        Tokenizer.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "wrong",
    [
        {"scheme": "ABC"},
        {"positions_per_beat": 10},
        {"velocities": 0},
        {"velocities": 128},
        {"velocities": 2.5},
        {"velocities": "x"},
        {"positions_per_beat": 12.0},
        {"tempi": 1},
        {"bpe_vocab_size": 0},
        {"bpe_vocab_size": 1 << 16},
    ],
)
def test_configurations_out_of_their_limits(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"^`{name}` must be"):
        TokenizerConfig(**wrong)


def test_a_vocabulary_survives_json() -> None:
    vocabulary = tokenizer_of("MIDILike").vocabulary
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


def test_light_modules_import_no_midi_library() -> None:
    """The grammar, the side inputs and decoding need NumPy alone, the tokenizer no miditok."""
    code = (
        "import sys, melodia.grammar, melodia.side_inputs, melodia.transpose, melodia.vocabulary; "
        "heavy = {'torch', 'miditok', 'symusic', 'mido', 'pretty_midi', 'melodia.midi', 'melodia.tokenizer'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "import melodia.tokenizer as t; t.Tokenizer().encode(t.Tokenizer().decode([3, 674, 264, 542, 64, 147, 175])); "
        "assert not {'torch', 'miditok'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def _check_file(name: str, data: bytes, scheme: str, most: int) -> None:
    tokenizer = tokenizer_of(scheme)
    ids = tokenizer.encode(read_score(data)[0], bos=True, eos=True).ids
    score = tokenizer.decode(ids)
    assert faults(score) == [], name
    assert np.array_equal(tokenizer.encode(score).ids, ids[1:-1]), name
    assert grammar_of(scheme).accepts(ids[:most].tolist()) is None, name


def test_corpus_sample(data_dir: Path) -> None:
    for i, (name, data) in enumerate(corpus_files(data_dir, 150)):
        _check_file(name, data, SCHEMES[i % len(SCHEMES)], 2000)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_corpus_share(data_dir: Path, scheme: str) -> None:
    for name, data in corpus_files(data_dir, 3 if scheme == "REMI" else 20):
        _check_file(name, data, scheme, 10**9)
