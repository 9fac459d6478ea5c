"""Writing: round trips, nothing lost on a failure."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import mido
import pretty_midi
import pytest
import symusic
from midi_cases import CASES, EOT, GOOD, TRACK, note, smf, vlq

from melodia.errors import MidiError
from melodia.midi import convert, cut_score, midi_bytes, read_midi, read_score, to_pretty_midi, write_midi


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(score):
    """Everything that a round trip must keep."""
    tracks = [
        (
            track.is_drum,
            track.program,
            track.name,
            sorted((n.time, n.pitch, n.duration, n.velocity) for n in track.notes),
            sorted((c.time, c.number, c.value) for c in track.controls),
            sorted((b.time, b.value) for b in track.pitch_bends),
        )
        for track in score.tracks
    ]
    return (
        score.ticks_per_quarter,
        tracks,
        [(t.time, t.mspq) for t in score.tempos],
        [(s.time, s.numerator, s.denominator) for s in score.time_signatures],
        [(k.time, k.key, k.tonality) for k in score.key_signatures],
    )


def rich_score():
    """Two parts and drums, with changes of tempo, metre and key, pedal and bends."""
    score = symusic.Score(480)
    for program, drum, name in (
        (0, False, "Klavier links"),
        (0, False, "rechts"),
        (73, False, ""),
        (0, True, "Drums"),
    ):
        track = symusic.Track(name=name, program=program, is_drum=drum, ttype="tick")
        for step in range(20):
            track.notes.append(symusic.Note(step * 130, 129, 40 + step * 3, 1 + step * 6, ttype="tick"))
            track.notes.append(symusic.Note(step * 130, 130, 39, 100, ttype="tick"))
        track.controls.append(symusic.ControlChange(0, 64, 127, ttype="tick"))
        track.controls.append(symusic.ControlChange(700, 64, 0, ttype="tick"))
        track.pitch_bends.append(symusic.PitchBend(20, -8192, ttype="tick"))
        track.pitch_bends.append(symusic.PitchBend(30, 8191, ttype="tick"))
        score.tracks.append(track)
    for tick, mspq in ((0, 512_345), (960, 333_333)):
        score.tempos.append(symusic.Tempo(tick, mspq=mspq, ttype="tick"))
    for tick, top, bottom in ((0, 3, 4), (1440, 6, 8)):
        score.time_signatures.append(symusic.TimeSignature(tick, top, bottom, ttype="tick"))
    for tick, key, mode in ((0, -3, 1), (1440, 7, 0)):
        score.key_signatures.append(symusic.KeySignature(tick, key, mode, ttype="tick"))
    return score


def test_round_trip_is_exact():
    score = rich_score()
    data = midi_bytes(score)
    again, report = read_score(data)
    assert content(again) == content(score)
    assert report.clean
    assert midi_bytes(again) == data


def test_controllers_of_one_tick_stay_in_their_order():
    score = rich_score()
    controls = [(101, 0), (100, 0), (6, 12), (64, 127), (64, 0), (64, 99)]
    for number, value in controls:
        score.tracks[0].controls.append(symusic.ControlChange(900, number, value, ttype="tick"))
    written = mido.MidiFile(file=io.BytesIO(midi_bytes(score))).tracks[1]
    assert [(m.control, m.value) for m in written if m.type == "control_change"][2:] == controls


def test_a_bank_stands_before_the_program_that_it_is_of():
    """An instrument hears a bank with the next program change, and not before."""
    banks = (
        b"\x00\xb0\x00\x08\x00\xb0\x20\x01\x00\xc0\x05" + note() + b"\x00\xb0\x00\x09\x00\xc0\x05" + note()
    )
    score, _ = read_score(smf(banks + EOT))
    (track,) = mido.MidiFile(file=io.BytesIO(midi_bytes(score))).tracks[1:]
    now, found = 0, []
    for message in track:
        now += message.time
        if message.type in ("control_change", "program_change"):
            found.append((now, getattr(message, "control", "program"), getattr(message, "value", 5)))
    assert found == [(0, 0, 8), (0, 32, 1), (0, "program", 5), (480, 0, 9), (480, "program", 5)]
    assert content(read_score(midi_bytes(score))[0]) == content(score)


def test_parameters_set_at_one_tick_are_all_kept():
    # The range of pitch bends, the fine tuning, and then no parameter: each is chosen by the same two controllers.
    changes = [(101, 0), (100, 0), (6, 12), (101, 0), (100, 1), (6, 64), (101, 127), (100, 127)]
    events = b"".join(bytes([0, 0xB0, number, value]) for number, value in changes)
    score, report = read_score(smf(events + events + TRACK))
    assert report.clean
    for part in (score, read_score(midi_bytes(score))[0], cut_score(score, bars=1, side="end")[0]):
        assert [(c.time, c.number, c.value) for c in part.tracks[0].controls] == [
            (0, *c) for c in 2 * changes
        ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.tracks[0].notes.append(symusic.Note(-5, 9, 60, 64, ttype="tick")), "tick .*received -5"),
        (
            lambda s: s.tracks[0].notes.append(symusic.Note(1 << 30 | 1, 9, 60, 64, ttype="tick")),
            "tick .*received 1073",
        ),
        (lambda s: s.tracks[0].notes.append(symusic.Note(0, 9, -3, 64, ttype="tick")), "pitch .*received -3"),
        (lambda s: s.tempos.append(symusic.Tempo(-1, mspq=9, ttype="tick")), "tick .*received -1"),
        (
            lambda s: s.tracks[0].controls.append(symusic.ControlChange(0, 200, 1, ttype="tick")),
            "controller .*200",
        ),
        (lambda s: setattr(s.tracks[1], "program", 200), "program .*received 200"),
        (lambda s: s.time_signatures.append(symusic.TimeSignature(9, 4, 6, ttype="tick")), "received 4/6"),
        (lambda s: s.time_signatures.append(symusic.TimeSignature(9, 0, 4, ttype="tick")), "received 0/4"),
    ],
)
def test_what_no_file_can_say_is_refused(spoil, message):
    score = rich_score()
    spoil(score)
    with pytest.raises(MidiError, match=message):
        midi_bytes(score)


def test_others_read_what_is_written():
    score = rich_score()
    data = midi_bytes(score)
    expected = sorted((n.time, n.pitch, n.duration, n.velocity) for t in score.tracks for n in t.notes)
    theirs = symusic.Score.from_midi(data)
    assert (
        sorted((n.time, n.pitch, n.duration, n.velocity) for t in theirs.tracks for n in t.notes) == expected
    )
    parsed = mido.MidiFile(file=io.BytesIO(data))
    assert sum(message.type == "note_on" for track in parsed.tracks for message in track) == len(expected)
    assert parsed.length == pytest.approx(to_pretty_midi(score).get_end_time(), abs=1e-6)


def test_round_trip_through_pretty_midi():
    score = rich_score()
    again, _ = read_score(to_pretty_midi(score))
    for before, after in zip(content(score)[1], content(again)[1], strict=True):
        assert before == after
    assert content(again)[3:4] == content(score)[3:4]
    assert [(key.time, key.tonality) for key in again.key_signatures] == [(0, 1), (1440, 0)]
    assert again.key_signatures[1].key == -5  # PrettyMIDI has one name for C sharp and D flat major


def test_round_trip_of_samples(samples_dir):
    paths = sorted(samples_dir.glob("*.mid"))
    if not paths:
        pytest.skip("needs the files of midi_samples")
    for path in paths:
        score, report = read_score(path)
        assert report.clean, report.lines()
        again, _ = read_score(midi_bytes(score))
        assert content(again) == content(score)


def test_every_readable_case_is_written():
    for case in CASES.values():
        if case.notes:
            score, _ = read_score(case.data)
            assert read_score(midi_bytes(score))[1].notes == case.notes


def test_more_tracks_than_channels():
    score = symusic.Score(96)
    for index in range(40):
        track = symusic.Track(name=str(index), program=index % 20, is_drum=index == 7, ttype="tick")
        track.notes.append(symusic.Note(0, 96, 60, 64, ttype="tick"))
        score.tracks.append(track)
    again, report = read_score(midi_bytes(score))
    assert [(t.program, t.is_drum, t.name) for t in again.tracks] == [
        (t.program, t.is_drum, t.name) for t in score.tracks
    ]
    assert report.clean


def heard(data: bytes) -> list[tuple[int, int, tuple[int, int, int, int]]]:
    """Of each note of a file its tick, its track and the program, bank, volume and bend of its channel."""
    moves = []
    for index, track in enumerate(mido.MidiFile(file=io.BytesIO(data)).tracks[1:]):
        tick = 0
        for message in track:
            tick += message.time
            moves.append((tick, index, message))
    program, bend, bank = [0] * 16, [0] * 16, [0] * 16
    control: dict[tuple[int, int], int] = {}
    notes = []
    for tick, index, message in sorted(moves, key=lambda move: move[:2]):
        if message.type == "program_change":
            program[message.channel] = message.program
            bank[message.channel] = control.get((message.channel, 0), 0)
        elif message.type == "control_change":
            control[message.channel, message.control] = message.value
        elif message.type == "pitchwheel":
            bend[message.channel] = message.pitch
        elif message.type == "note_on":
            at = message.channel
            state = (program[at], bank[at], control.get((at, 7), 100), bend[at])
            notes.append((tick, index, state))
    return notes


def test_tracks_that_share_a_channel_keep_their_sound():
    """Twenty tracks by turns, two of which play all the time: each note has its own program, bank, volume and bend."""
    score = symusic.Score(96)
    for index in range(20):
        track = symusic.Track(program=index % 18, ttype="tick")
        starts = range(0, 40 * 96, 96) if index < 2 else (index * 96, (index + 20) * 96)
        track.notes.extend(symusic.Note(start, 96, 60, 64, ttype="tick") for start in starts)
        if index % 2:
            track.controls.append(symusic.ControlChange(0, 7, 20 + index, ttype="tick"))
            track.pitch_bends.append(symusic.PitchBend(5, 100 * index, ttype="tick"))
        if index % 5 == 2:
            track.controls.append(symusic.ControlChange(0, 0, index, ttype="tick"))
        score.tracks.append(track)
    data = midi_bytes(score)
    for tick, index, state in heard(data):
        odd = index % 2
        bank, volume = index if index % 5 == 2 else 0, 20 + index if odd else 100
        assert state == (index % 18, bank, volume, 100 * index if odd and tick else 0), (tick, index)
    channels = {(message.channel, index) for index, track in tracks_in(data) for message in track}
    assert len(channels) == 20
    assert len({channel for channel, _ in channels}) == 15
    assert [sum(channel == mine for channel, _ in channels) for mine in (0, 1)] == [
        1,
        1,
    ]  # they play all the time


def tracks_in(data: bytes):
    """The tracks of a file that hold notes, by number, without their meta events."""
    tracks = mido.MidiFile(file=io.BytesIO(data)).tracks[1:]
    return [
        (index, [message for message in track if not message.is_meta]) for index, track in enumerate(tracks)
    ]


def test_two_kits_by_turns():
    """A program change amid the drums: it stood at the beginning, so that one kit played all."""
    data = smf(b"\x00\xc9\x00" + note(channel=9) + b"\x00\xc9\x19" + note(channel=9) + EOT)
    score, _ = read_score(data)
    assert [state[0] for _, _, state in heard(midi_bytes(score))] == [0, 25]
    again, report = read_score(midi_bytes(score))
    assert content(again) == content(score)
    assert report.clean


@pytest.mark.parametrize(
    ("name", "kept"), [("a" * 126 + "é", "a" * 126), ("曲" * 50, "曲" * 42), ("a" * 130, "a" * 127)]
)
def test_a_long_name_is_cut_between_characters(name, kept):
    score = rich_score()
    score.tracks[0].name = name
    assert read_score(midi_bytes(score))[0].tracks[0].name == kept


def test_long_music_in_fine_ticks_is_written():
    # A note every 100 quarter notes, and a last one on another channel, which waits longer than one delta can say.
    notes = b"".join(note(length=32767, wait=32767 * 99) for _ in range(100))
    late = vlq((1 << 28) - 1) + b"\xff\x01\x00" + note(length=32767, channel=1, wait=100)
    score, _ = read_score(smf(notes + EOT, late + EOT, division=32767))
    assert score.end() > 1 << 28
    again, _ = read_score(midi_bytes(score))
    assert content(again) == content(score)


def test_the_tempi_are_listed_once_for_all_changes(monkeypatch):
    def lists(changes):
        made = []
        monkeypatch.setattr(convert, "tempi_of", lambda score: made.append(1) or [(0, 500_000)])
        score = rich_score()
        for index in range(changes):
            score.time_signatures.append(symusic.TimeSignature(index, 2 + index % 2, 4, ttype="tick"))
            score.key_signatures.append(symusic.KeySignature(index, index % 7, 0, ttype="tick"))
        to_pretty_midi(score)
        return len(made)

    assert lists(30) == lists(0)


def test_huge_ticks_do_not_make_a_huge_table():
    score = symusic.Score(32767)
    track = symusic.Track(program=0, is_drum=False, ttype="tick")
    track.notes.append(symusic.Note(2**30 - 32767, 32767, 60, 64, ttype="tick"))
    score.tracks.append(track)
    midi = to_pretty_midi(score)
    assert midi.resolution < 130
    assert midi.instruments[0].notes[0].end == pytest.approx(2**30 / 32767 / 2)


def test_written_file(tmp_path):
    path = write_midi(rich_score(), tmp_path / "new.mid")
    assert path == tmp_path / "new.mid"
    assert path.read_bytes() == midi_bytes(rich_score())
    assert names(tmp_path) == ["new.mid"]


def test_pretty_midi_is_written(tmp_path):
    midi = read_midi(GOOD)
    assert isinstance(midi, pretty_midi.PrettyMIDI)
    path = write_midi(midi, tmp_path / "new.mid")
    assert read_score(path)[1].notes == 8


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "old.mid"
    path.write_bytes(b"old")
    with pytest.raises(MidiError, match=r"old.mid: already exists; choose another name"):
        write_midi(rich_score(), path)
    assert path.read_bytes() == b"old"
    write_midi(rich_score(), path, force=True)
    assert read_score(path)[1].notes == 160
    assert names(tmp_path) == ["old.mid"]


def test_nothing_is_overwritten_in_a_race(tmp_path, monkeypatch):
    path = tmp_path / "old.mid"
    real = os.fsync

    def appears(descriptor):
        path.write_bytes(b"old")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", appears)
    with pytest.raises(MidiError, match="already exists"):
        write_midi(rich_score(), path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["old.mid"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, code):
    path = tmp_path / "old.mid"
    path.write_bytes(b"old")

    def full(_descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MidiError, match=r"cannot be written .*free space"):
        write_midi(rich_score(), path, force=True)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["old.mid"]


def test_full_device():
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(MidiError, match=r"/dev/full: already exists"):
        write_midi(rich_score(), "/dev/full")


def test_unwritable_folder(tmp_path):
    with pytest.raises(MidiError, match=r"cannot be written \(No such file or directory\)"):
        write_midi(rich_score(), tmp_path / "missing" / "new.mid")
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(MidiError, match=r"cannot be written \(Not a directory\)"):
        write_midi(rich_score(), file / "new.mid")
    for folder in (tmp_path, f"{tmp_path}/new/"):
        with pytest.raises(MidiError, match="is a directory"):
            write_midi(rich_score(), folder, force=True)
    assert list(tmp_path.iterdir()) == [file]


def test_read_only_folder(tmp_path, monkeypatch):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # root may write everywhere

        def denied(*_args, **_options):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(MidiError, match=r"cannot be written \(Permission denied\)"):
        write_midi(rich_score(), folder / "new.mid")
    folder.chmod(0o700)


@pytest.mark.parametrize("what", [None, 3, "score"])
def test_not_music(what, tmp_path):
    with pytest.raises(MidiError, match="written from a score in ticks or a PrettyMIDI"):
        write_midi(what, tmp_path / "new.mid")
    assert names(tmp_path) == []


def test_broken_pretty_midi(tmp_path):
    midi = pretty_midi.PrettyMIDI()
    part = pretty_midi.Instrument(0)
    part.notes = [pretty_midi.Note(200, 60, 0.0, 1.0)]
    midi.instruments = [part]
    with pytest.raises(MidiError, match="cannot be written as MIDI"):
        write_midi(midi, tmp_path / "new.mid")
    assert names(tmp_path) == []


def test_same_score_same_bytes():
    assert midi_bytes(rich_score()) == midi_bytes(rich_score())
