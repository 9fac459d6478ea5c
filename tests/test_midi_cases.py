"""Damaged files: each is read with the right finding or refused with the right words."""

from __future__ import annotations

from pathlib import Path

import pytest
from midi_cases import CASES, MORE, Case

from melodia.errors import MidiError
from melodia.midi import ReadReport, read_score


def check(source: bytes | Path, case: Case) -> ReadReport | None:
    """Read one case and compare with what is expected of it."""
    if not case.notes:
        with pytest.raises(MidiError) as raised:
            read_score(source)
        text = str(raised.value)
        assert "\n" not in text
        assert text.startswith(str(source) if isinstance(source, Path) else "<bytes>")
        for word in case.words:
            assert word in text
        return None
    score, report = read_score(source)
    lines = [str(finding) for finding in report.findings]
    assert report.notes == case.notes, lines
    assert score.note_num() == case.notes
    for word in case.words:
        assert any(word in line for line in lines), (word, lines)
    assert report.clean or not case.clean, lines
    check_sound(score)
    return report


def check_sound(score) -> None:
    """Nothing in a score that a player can trip over."""
    assert score.tempos[0].time == 0
    assert score.time_signatures[0].time == 0
    for events in (score.tempos, score.time_signatures, score.key_signatures):
        times = [event.time for event in events]
        assert times == sorted(set(times))
    for track in score.tracks:
        assert len(track.notes)
        last: dict[int, int] = {}
        for note in track.notes:
            assert note.duration > 0
            assert note.time >= last.get(note.pitch, 0)
            assert 1 <= note.velocity <= 127
            last[note.pitch] = note.time + note.duration


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    check(CASES[name].data, CASES[name])


@pytest.mark.parametrize("name", MORE)
def test_more_cases(name):
    check(MORE[name].data, MORE[name])


def test_cases_of_the_development_data(data_dir):
    folder = data_dir / "malformed" / "synthetic"
    names = {path.stem for path in folder.glob("*.mid")}
    assert names == set(CASES)
    for name in sorted(names):
        check(folder / f"{name}.mid", CASES[name])


# Real damaged files: the notes that are read at least, and a word of a finding or refusal.
REAL: dict[str, tuple[int, str]] = {
    "drywetmidi/Extra_Track_Chunk/arkanoid_modified.mid": (1756, "wrong number of tracks"),
    "drywetmidi/Invalid_Channel_Event_Parameter_Value/exodus05.mid": (18, "data byte above 127 (14"),
    "drywetmidi/Invalid_Channel_Event_Parameter_Value/shoop3.mid": (24, "data byte above 127 (24"),
    "drywetmidi/Invalid_Channel_Event_Parameter_Value/statrek.mid": (8, "data byte above 127 (6"),
    "drywetmidi/Invalid_Key_Signature_Key/contry_v.mid": (2200, "invalid key signature"),
    "drywetmidi/Invalid_Key_Signature_Scale/locket3.mid": (77, "invalid key signature"),
    "drywetmidi/No_End_of_Track/adamsbd.mid": (1600, "track without an end mark"),
    "drywetmidi/No_Header_Chunk/namusic.mid": (0, "is text, not MIDI"),
    "drywetmidi/Not_Enough_Bytes/sledgehm1.mid": (0, "is text, not MIDI"),
    "drywetmidi/Unexpected_Running_Status/JAZZ18.MID": (2000, "text-mode transfer undone (7)"),
    "drywetmidi/Unexpected_Running_Status/addams.mid": (450, "text-mode transfer undone (3)"),
    "drywetmidi/Unknown_Channel_Event/dixie-nw.mid": (1850, "text-mode transfer undone (32)"),
    "drywetmidi/Unknown_Channel_Event/WC2_13.MID": (1800, "system message inside a track"),
    "drywetmidi/Unknown_Chunk_Id/arkanoid_modified.mid": (1756, "wrong chunk name"),
    "drywetmidi/Unknown_File_Format/boythorn.mid": (2400, "unknown format"),
    "mido-hex/test_single_message.mid": (1, "track without an end mark"),
    "mido-hex/test_two_tracks.mid": (2, "track without an end mark (2)"),
    "mido-hex/test_no_tracks.mid": (0, "no track"),
    "mido-hex/test_meta_messages.mid": (0, "no notes"),
}


def test_real_damaged_files(data_dir):
    folder = data_dir / "malformed"
    for name, (least, word) in REAL.items():
        if not least:
            with pytest.raises(MidiError, match=word):
                read_score(folder / name)
            continue
        score, report = read_score(folder / name)
        assert report.notes >= least, name
        assert any(word in str(finding) for finding in report.findings), (name, report.lines())
        check_sound(score)
