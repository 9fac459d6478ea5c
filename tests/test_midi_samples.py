"""The files in midi_samples/ are what their scores say, and the scores are sound music."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pretty_midi
import pytest
import symusic

FOLDER = Path(__file__).resolve().parent.parent / "midi_samples"


def load_script(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_samples", folder / "write_samples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script(FOLDER)
PIECES = {piece.slug: piece for piece in SCRIPT.PIECES}
NOTATION = sys.modules["scores.notation"]
each_piece = pytest.mark.parametrize("slug", PIECES)

# Lowest and highest pitch of the instruments by General MIDI program.
RANGES = {
    0: (21, 108), 6: (29, 89), 21: (53, 89), 24: (40, 83), 25: (40, 83), 32: (28, 67), 40: (55, 103),
    41: (48, 88), 42: (36, 76), 52: (40, 81), 56: (54, 82), 57: (40, 72), 58: (26, 65), 60: (35, 77),
    68: (58, 91), 70: (34, 75), 71: (50, 91), 72: (74, 108), 73: (60, 96), 77: (62, 98), 105: (48, 84),
    107: (38, 88), 110: (55, 103),
}  # fmt: skip


def test_the_script_finds_its_own_files_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    assert SCRIPT.main(["--check"]) == 0
    assert "as the scores say" in capsys.readouterr().out


def test_the_script_writes_the_same_bytes_elsewhere_and_finds_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SCRIPT, "FOLDER", tmp_path)
    assert SCRIPT.main(["--check"]) == 1
    assert SCRIPT.main([]) == 0
    assert SCRIPT.main(["--check"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in FOLDER.glob("*.mid")} | {"README.md"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name
    changed = bytearray((tmp_path / "sakura.mid").read_bytes())
    changed[-8] ^= 1
    (tmp_path / "sakura.mid").write_bytes(changed)
    shutil.copy(tmp_path / "sakura.mid", tmp_path / "stray.mid")
    capsys.readouterr()
    assert SCRIPT.main(["--check"]) == 1
    message = capsys.readouterr().err
    assert "sakura.mid" in message
    assert "stray.mid" in message


def test_the_table_in_the_readme_names_every_file_with_its_hash() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` .*\| (\d+) \| `([0-9a-f]{64})` \|$", (FOLDER / "README.md").read_text("utf-8"), re.M
    )
    assert {name for name, _, _ in rows} == {path.name for path in FOLDER.glob("*.mid")}
    for name, bars, digest in rows:
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
        assert PIECES[name.removesuffix(".mid")].read()[1] == int(bars)


def test_the_collection_is_varied() -> None:
    assert len(PIECES) >= 10
    assert {piece.metre for piece in PIECES.values()} >= {"2/4", "3/4", "4/4", "6/8", "3/8"}
    keys = {piece.key for piece in PIECES.values()}
    assert keys >= {"C", "G", "D", "F", "Bb", "Ab", "Am", "Em", "Gm", "Cm", "Dm"}
    assert sum(any(part.program is None for part in piece.parts) for piece in PIECES.values()) >= 2
    assert min(len(piece.parts) for piece in PIECES.values()) == 1
    assert sum(len(piece.parts) == 4 for piece in PIECES.values()) >= 4


@each_piece
def test_a_file_is_read_without_repairs_and_says_what_the_score_says(slug: str) -> None:
    from melodia.midi import read_score

    piece = PIECES[slug]
    parts, bars = piece.read()
    _, report = read_score(FOLDER / f"{slug}.mid")
    assert [finding for finding in report.findings if finding.kind != "note"] == []
    assert report.bars == bars
    assert report.notes == sum(map(len, parts))
    numerator, denominator = (int(part) for part in piece.metre.split("/"))
    assert [tuple(item) for item in report.time_signatures] == [(0, numerator, denominator)]
    sharps = {
        "C": 0,
        "G": 1,
        "D": 2,
        "F": -1,
        "Bb": -2,
        "Ab": -4,
        "Am": 0,
        "Em": 1,
        "Dm": -1,
        "Gm": -2,
        "Cm": -3,
    }
    assert [tuple(item) for item in report.key_signatures] == [
        (0, sharps[piece.key], int(piece.key[-1] == "m"))
    ]


@each_piece
def test_other_readers_find_the_notes_of_the_score(slug: str) -> None:
    piece = PIECES[slug]
    parts, bars = piece.read()
    want = sorted(
        (int(note.onset * 480), int(note.duration * 480), note.pitch, note.velocity)
        for notes in parts
        for note in notes
    )
    score = symusic.Score(FOLDER / f"{slug}.mid")
    have = sorted(
        (note.time, note.duration, note.pitch, note.velocity)
        for track in score.tracks
        for note in track.notes
    )
    assert have == want
    midi = pretty_midi.PrettyMIDI(str(FOLDER / f"{slug}.mid"))
    assert sorted(part.program for part in midi.instruments if not part.is_drum) == sorted(
        part.program for part in piece.parts if part.program is not None
    )
    assert midi.time_to_tick(midi.get_end_time()) > (bars - 1) * piece.bar_length * 480, (
        "the last bar is empty"
    )


@each_piece
def test_a_piece_lies_in_the_range_of_its_instruments_and_has_phrasing(slug: str) -> None:
    piece = PIECES[slug]
    parts, bars = piece.read()
    assert 16 <= bars <= 35
    velocities = {note.velocity for notes in parts for note in notes}
    assert len(velocities) >= 5
    assert min(velocities) >= 30
    assert max(velocities) <= 116
    for part, notes in zip(piece.parts, parts, strict=True):
        if part.program is not None:
            low, high = RANGES[part.program]
            assert low <= min(note.pitch for note in notes), part.name
            assert max(note.pitch for note in notes) <= high, part.name


@each_piece
def test_a_piece_keeps_its_key_and_ends_on_its_tonic(slug: str) -> None:
    piece = PIECES[slug]
    parts, _ = piece.read()
    foreign = sum(SCRIPT.outside_key(piece).values())
    assert foreign < Fraction(14, 100)
    last = max(parts[0], key=lambda note: (note.onset, note.pitch))
    tonic = NOTATION.pitch_number(piece.key.removesuffix("m").lower() + "4") % 12
    assert last.pitch % 12 == (4 if slug == "sakura" else tonic)  # the Japanese scale rests on its E


def test_the_round_is_a_canon_two_bars_apart() -> None:
    voices, _ = PIECES["frere_jacques"].read()
    shifts = [(0, 12), (8, 0), (16, 0), (24, -12)]
    tunes = [
        [(note.onset - delay, note.duration, note.pitch - octave) for note in notes]
        for notes, (delay, octave) in zip(voices, shifts, strict=True)
    ]
    assert all(tune == tunes[0] for tune in tunes)


@pytest.mark.parametrize(
    ("slug", "part", "pitches"),
    [
        ("beethoven_ode_to_joy", 0, [66, 66, 67, 69, 69, 67, 66, 64, 62, 62, 64, 66, 66, 64, 64]),
        ("petzold_minuet_g_major", 0, [74, 67, 69, 71, 72, 74, 67, 67, 76, 72, 74, 76, 78, 79, 67, 67]),
        ("beethoven_fur_elise", 0, [76, 75, 76, 75, 76, 71, 74, 72, 69, 60, 64, 69, 71, 64, 68, 71, 72]),
        ("haydn_emperor_hymn", 0, [67, 69, 71, 69, 72, 71, 69, 66, 67, 76, 74, 72, 71, 69, 71, 67, 74]),
        ("greensleeves", 0, [69, 72, 74, 76, 78, 76, 74, 71, 67, 69, 71, 72, 69, 69, 68, 69, 71, 68, 64]),
        ("frere_jacques", 1, [65, 67, 69, 65, 65, 67, 69, 65, 69, 70, 72, 69, 70, 72]),
    ],
)
def test_well_known_tunes_begin_as_everybody_knows(slug: str, part: int, pitches: list[int]) -> None:
    notes = PIECES[slug].read()[0][part]
    assert [note.pitch for note in notes[: len(pitches)]] == pitches


class TestNotation:
    """The small language, against hand-computed notes."""

    @staticmethod
    def read(text: str, metre: str = "4/4", drums: bool = False) -> list[tuple[Fraction, Fraction, int, int]]:
        notes, _ = NOTATION.read_voice(text, metre, drums, 0, "test")
        return [(note.onset, note.duration, note.pitch, note.velocity) for note in notes]

    def test_notes_chords_rests_ties_and_sticky_lengths(self) -> None:
        found = self.read("c4:1 eb4+g4 r:1/2 b3:3/2~ | b3:1 c4' c4 r")
        assert [(onset, length, pitch) for onset, length, pitch, _ in found] == [
            (0, 1, 60),
            (1, 1, 63),
            (1, 1, 67),
            (Fraction(5, 2), Fraction(5, 2), 59),
            (5, Fraction(1, 2), 60),
            (6, 1, 60),
        ]

    def test_loudness_accents_and_hairpins(self) -> None:
        # mp 62, f 88; strong beats add 6 and 3, off-beats take 3, an accent adds 14
        assert [v for *_, v in self.read("!mp c4:1 c4 c4 c4> | !f c4:1/2 c4 c4:3")] == [
            68,
            62,
            65,
            76,
            94,
            85,
            88,
        ]
        # from p 50 to f 88 over four quarter notes: 50, 59.5, 69, 78.5
        assert [v for *_, v in self.read("!p !< c4:1 c4 c4 c4 | !f c4:4")] == [56, 60, 72, 78, 94]

    def test_a_bar_is_repeated_by_a_percent_sign(self) -> None:
        assert [pitch for _, _, pitch, _ in self.read("c4:2 d4:1 | % | e4:3", "3/4")] == [60, 62, 60, 62, 64]

    def test_drums_are_named(self) -> None:
        assert [pitch for _, _, pitch, _ in self.read("bd+ch:1 sn bd sn", drums=True)] == [36, 42, 38, 36, 38]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("c4:1 c4 c4 | c4:4", "bar 1 holds 3 quarter notes instead of 4"),
            ("c4:4 | c4:4 d4:1", "bar 2 holds 5"),
            ("h4:4", "'h4' is not a pitch"),
            ("c4:4~ | d4:4", "tied to other pitches"),
        ],
    )
    def test_mistakes_are_told_with_their_bar(self, text: str, message: str) -> None:
        with pytest.raises(NOTATION.NotationError, match=re.escape(message)):
            self.read(text)

    def test_overlapping_and_uneven_voices_are_refused(self) -> None:
        def score(*voices: str) -> object:
            part = NOTATION.Part("piano", 0, list(voices))
            return NOTATION.Score("x", "x", "x", "x", "4/4", "C", "1:120", "x", [part])

        assert score("c4:4", "e4:4").read()[1] == 1
        with pytest.raises(NOTATION.NotationError, match="struck while it still sounds"):
            score("c4:4", "r:2 c4:2").read()
        with pytest.raises(NOTATION.NotationError, match="differ in length"):
            score("c4:4", "e4:4 | e4:4").read()
