"""Sources, refusals, programs, timeline and the report."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pretty_midi
import pytest
import symusic
from midi_cases import EOT, GOOD, SCALE, TRACK, note, smf, vlq

from melodia.errors import ConfigError, MidiError
from melodia.midi import Finding, Limits, key_name, read_midi, read_score

TEMPO_90 = b"\x00\xff\x51\x03\x0a\x2c\x2b"  # 666,667 microseconds per quarter


def notes_of(score) -> list[tuple[int, int, int, int]]:
    """(start, duration, pitch, velocity) of all notes."""
    return sorted((n.time, n.duration, n.pitch, n.velocity) for track in score.tracks for n in track.notes)


def refusal(source, **options) -> str:
    with pytest.raises(MidiError) as raised:
        read_score(source, **options)
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_sources_agree(tmp_path):
    path = tmp_path / "good.mid"
    path.write_bytes(GOOD)
    expected = [(480 * step, 480, 60 + step, 64) for step in range(8)]
    with path.open("rb") as file:
        sources = [path, str(path), GOOD, bytearray(GOOD), memoryview(GOOD), io.BytesIO(GOOD), file]
        reports = []
        for source in sources:
            score, report = read_score(source)
            assert notes_of(score) == expected
            reports.append(report)
    assert [report.path for report in reports[:3]] == [str(path), str(path), "<bytes>"]
    assert reports[5].path == "<file object>"
    assert reports[6].path == str(path)
    assert len({report.sha256 for report in reports}) == 1


def test_missing_file(tmp_path):
    text = refusal(tmp_path / "nothing.mid")
    assert text == f"{tmp_path / 'nothing.mid'}: no such file; check the path"


def test_directory(tmp_path):
    assert "is a directory; give a MIDI file" in refusal(tmp_path)


def test_no_permission(tmp_path, monkeypatch):
    path = tmp_path / "secret.mid"
    path.write_bytes(GOOD)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything

        def denied(*_args):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", denied)
    assert "permission denied" in refusal(path)


def test_pipe_does_not_hang(tmp_path):
    path = tmp_path / "pipe.mid"
    os.mkfifo(path)
    assert "not a file" in refusal(path)


def test_endless_device():
    assert "not a file" in refusal("/dev/zero")


def test_dangling_link(tmp_path):
    path = tmp_path / "link.mid"
    path.symlink_to(tmp_path / "gone.mid")
    assert "no such file" in refusal(path)


def test_name_with_line_end(tmp_path):
    assert refusal(tmp_path / "a\nb.mid").count("a\\nb.mid") == 1


def test_null_in_name():
    assert "cannot be read" in refusal("a\0b.mid")


def test_open_as_text(tmp_path):
    path = tmp_path / "good.mid"
    path.write_text("x")
    with path.open() as file:
        assert "binary mode" in refusal(file)


def test_closed_file(tmp_path):
    path = tmp_path / "good.mid"
    path.write_bytes(GOOD)
    with path.open("rb") as file:
        pass
    assert "cannot be read" in refusal(file)


def test_not_a_source():
    assert "list is not a source of music" in refusal([1, 2])


@pytest.mark.parametrize(
    ("limit", "word"),
    [
        ({"size": 50}, "too large for MIDI"),
        ({"events": 10}, "more than 10 events"),
        ({"messages": 1}, "more than 1 events that are neither notes"),
        ({"notes": 7}, "has 8 notes, more than the limit of 7"),
        ({"tracks": 1}, "more than 1 tracks"),
    ],
)
def test_limits_refuse(limit, word):
    data = smf(b"\x00\xff\x01\x00" + TRACK, EOT)
    assert word in refusal(data, limits=Limits(**limit))
    if "size" in limit:
        assert word in refusal(io.BytesIO(data), limits=Limits(**limit))


def test_an_open_file_over_the_limit_is_read_no_further():
    file = io.BytesIO(bytes(3 << 20))
    assert "too large for MIDI (more than 1 MiB)" in refusal(file, limits=Limits(size=1 << 20))
    assert "too large for MIDI (3.0 MiB, limit 1 MiB)" in refusal(
        file.getvalue(), limits=Limits(size=1 << 20)
    )


def test_a_raw_stream_is_read_to_its_end():
    class Slow(io.RawIOBase):
        rest = GOOD

        def readable(self):
            return True

        def readinto(self, buffer):
            count = min(7, len(buffer), len(self.rest))
            buffer[:count], self.rest = self.rest[:count], self.rest[count:]
            return count

    assert notes_of(read_score(Slow())[0]) == notes_of(read_score(GOOD)[0])


def test_an_open_file_that_does_not_wait():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb", buffering=0) as file, os.fdopen(writer, "wb"):
        assert "has nothing to read yet; open it so that reading waits" in refusal(file)


def test_limits_are_exact():
    data = smf(
        b"\x00\xff\x01\x00" + TRACK
    )  # 18 events, of which text, first note-on and end mark are looked at
    score, _ = read_score(data, limits=Limits(size=len(data), events=18, messages=3, notes=8, tracks=1))
    assert score.note_num() == 8
    for limit in ({"size": len(data) - 1}, {"events": 17}, {"messages": 2}, {"notes": 7}):
        refusal(data, limits=Limits(**limit))


def test_limits_cut():
    score, report = read_score(GOOD, limits=Limits(quarters=3))
    assert [n[0] for n in notes_of(score)] == [0, 480, 960]
    assert Finding("dropped", "notes beyond the length limit", 5, "after 3 quarter notes") in report.findings
    score, report = read_score(GOOD, limits=Limits(bars=1))
    assert score.note_num() == 4
    score, report = read_score(smf(note(length=3000) + EOT), limits=Limits(note=2))
    assert notes_of(score) == [(0, 960, 60, 64)]
    late = smf(note(wait=2 * 1920) + EOT)
    message = (
        "no note begins within the limits of 1 bar and 50,000 quarter notes (the first one after 8 quarter"
    )
    assert message in refusal(late, limits=Limits(bars=1))
    assert "within the limits of 20,000 bars and 7 quarter notes" in refusal(late, limits=Limits(quarters=7))


def test_limits_are_checked():
    with pytest.raises(
        ConfigError, match=r"`Limits.notes` must be a whole number, at least 1 \(received 0\)"
    ):
        Limits(notes=0)
    with pytest.raises(ConfigError, match=r"`Limits.size` must be a whole number"):
        Limits(size="x")


def test_silence_keeps_bar_lines():
    # 3/4: a note in bar 0, then a long rest, then a note on the second beat of a bar.
    metre = b"\x00\xff\x58\x04\x03\x02\x18\x08"
    data = smf(metre + note() + note(wait=1000 * 1440 - 480 + 480) + EOT)
    score, report = read_score(data)
    first, second = notes_of(score)
    assert first == (0, 480, 60, 64)
    assert second[0] % 1440 == 480
    assert second[0] <= 2 * 1440 + 480
    assert "silence shortened" in report.lines()[5]


def test_silence_takes_the_timeline_along():
    late = vlq(2000 * 480) + b"\xff\x51\x03\x06\x1a\x80"  # 150 per minute after 2,000 quarters
    data = smf(note() + note(wait=4000 * 480) + EOT, late + EOT)
    score, report = read_score(data)
    second = notes_of(score)[1][0]
    assert [round(tempo.qpm) for tempo in score.tempos] == [120, 150]
    assert score.tempos[1].time <= second
    assert report.seconds < 12


def test_no_silence_is_touched_below_the_limit():
    score, report = read_score(smf(note() + note(wait=255 * 480) + EOT))
    assert notes_of(score)[1][0] == 256 * 480
    assert report.clean


def test_programs_of_channels_and_tracks():
    piano = note(channel=0)
    data = smf(
        b"\x00\xc1\x28\x00\xc2\x05" + EOT,  # a setup track names programs for channels 1 and 2
        b"\x00\xc0\x07" + piano + EOT,
        note(62, channel=1) + EOT,  # takes 40 from the setup track
        b"\x00\xc2\x06" + note(64, channel=2) + EOT,  # its own 6 wins over 5
        note(65, channel=0) + b"\x00\xc0\x13" + note(67, channel=0) + EOT,  # before its own change: 0
        note(38, channel=9) + EOT,
        b"\x00\x90\x48\x40\x00\xc0\x21\x60\x80\x48\x00"
        + EOT,  # a change just after the first note, same tick
    )
    score, report = read_score(data)
    found = [(track.program, track.is_drum, track.notes[0].pitch) for track in score.tracks]
    assert found == [(7, False, 60), (40, False, 62), (6, False, 64), (0, False, 65), (19, False, 67), (0, True, 38),
                     (33, False, 72)]  # fmt: skip
    assert report.programs == [-1, 0, 6, 7, 19, 33, 40]
    assert report.tracks == 7


def test_what_is_not_carried_is_said():
    events = (
        b"\x00\xff\x05\x02la\x00\xff\x06\x01A\x00\xf0\x02\x01\xf7\x00\xff\x7f\x01\x00\x00\xd0\x20\x00\xa0\x3c\x20"
        b"\x00\xb0\x78\x00"
    )
    _, report = read_score(smf(events + TRACK))
    found = {finding.what: finding.count for finding in report.findings if finding.kind == "not carried"}
    assert found == {
        "texts, lyrics and markers": 2,
        "system exclusive messages": 1,
        "other meta events": 1,
        "aftertouch": 2,
        "channel mode messages": 1,
    }
    assert report.clean


def test_track_names_are_printable():
    for payload, name in [
        (b"a\x00b\r\nc", "a b c"),
        ("Köln".encode(), "Köln"),
        ("Köln".encode("latin-1"), "Köln"),
        (b"  Piano ", "Piano"),
        (("曲" * 100).encode(), "曲" * 85),
        (("ß" * 128).encode("latin-1"), "ß" * 128),
    ]:
        score, _ = read_score(smf(b"\x00\xff\x03" + vlq(len(payload)) + payload + TRACK))
        assert score.tracks[0].name == name


def test_timeline_of_all_tracks_is_merged():
    data = smf(
        TEMPO_90 + b"\x00\xff\x58\x04\x06\x03\x24\x08\x00\xff\x59\x02\xfd\x01" + TRACK,
        b"\x83\x60\xff\x51\x03\x07\xa1\x20\x83\x60\xff\x51\x03\x07\xa1\x20" + EOT,
        b"\x83\x60\xff\x51\x03\x08\xa1\x20" + EOT,  # contradicts track 1 at the same tick
    )
    score, report = read_score(data)
    assert [(t.time, t.mspq) for t in score.tempos] == [(0, 666_667), (480, 500_000)]
    assert report.time_signatures == [(0, 6, 8)]
    assert report.key_signatures == [(0, -3, 1)]
    assert report.bars == 3  # eight quarters in 6/8
    assert report.seconds == pytest.approx(0.666667 + 7 * 0.5)
    whats = {finding.what: finding.count for finding in report.findings}
    assert whats["tempo events off track 0 merged"] == 3
    assert whats["tempo of another track that contradicts the first"] == 1


def test_format_2_begins_patterns_on_bar_lines():
    metre = b"\x00\xff\x58\x04\x03\x02\x18\x08"
    score, _ = read_score(smf(metre + note() + EOT, note(62) + EOT, midi_format=2))
    assert [n[0] for n in notes_of(score)] == [0, 1440]


def test_smpte_keeps_seconds():
    for division, seconds in [
        (0xE728, 8 * 0.48),
        (0xE350, 8 * 480 / (30_000 / 1001 * 80)),
        (0xE250, 8 * 0.2),
    ]:
        _, report = read_score(smf(TRACK, division=division))
        assert report.seconds == pytest.approx(seconds, rel=1e-3)


def test_smpte_takes_beats_from_the_tempo():
    score, report = read_score(smf(TEMPO_90 + TRACK, division=0xE728))  # a millisecond per tick
    assert score.ticks_per_quarter == 667
    assert report.tempi[0][1] == pytest.approx(90, rel=1e-3)


def test_report():
    data = smf(TEMPO_90 + b"\x00\xff\x59\x02\x01\x00" + SCALE + EOT)
    _, report = read_score(data)
    assert report.lines() == [
        "<bytes>",
        "  8 notes in 1 track, 2 bars, 0:05, 480 ticks per quarter, format 1",
        "  programs: 0",
        "  tempo: 90 quarters per minute",
        "  metre: 4/4",
        "  key: G major",
        "  note: no time signature: 4/4 assumed",
    ]
    assert "  1 note in 1 track, 1 bar, 0:00," in read_score(smf(note() + EOT))[1].lines()[1]
    again = json.loads(json.dumps(report.to_dict()))
    assert again["notes"] == 8
    assert again["findings"][0]["kind"] == "note"
    assert again["size"] == len(data)


def test_key_names():
    assert [key_name(sharps, 0) for sharps in (-7, 0, 7)] == ["Cb major", "C major", "C# major"]
    assert [key_name(sharps, 1) for sharps in (-7, 0, 7)] == ["Ab minor", "A minor", "A# minor"]


def test_pretty_midi_is_read():
    midi = pretty_midi.PrettyMIDI(resolution=480, initial_tempo=100)
    part = pretty_midi.Instrument(40, name="Violin")
    part.notes = [
        pretty_midi.Note(80, 69, 0.6, 1.2),
        pretty_midi.Note(90, 69, 0.9, 1.5),
        pretty_midi.Note(70, 71, 3, 3),
    ]
    part.control_changes = [pretty_midi.ControlChange(64, 100, 0.6)]
    part.pitch_bends = [pretty_midi.PitchBend(-500, 1.2)]
    drums = pretty_midi.Instrument(0, is_drum=True)
    drums.notes = [pretty_midi.Note(80, 36, 0.0, 0.1)]
    midi.instruments = [part, drums, pretty_midi.Instrument(3)]
    midi.time_signature_changes = [pretty_midi.TimeSignature(3, 4, 0), pretty_midi.TimeSignature(1, 4, 1.8)]
    midi.key_signature_changes = [pretty_midi.KeySignature(15, 0)]  # D sharp minor
    midi.lyrics = [pretty_midi.Lyric("la", 0.6)]
    score, report = read_score(midi)
    violin, drum = score.tracks
    assert [(n.time, n.duration, n.pitch, n.velocity) for n in violin.notes] == [
        (480, 240, 69, 80), (720, 480, 69, 90), (2400, 60, 71, 70)]  # fmt: skip
    assert (violin.program, violin.name, drum.is_drum) == (40, "Violin", True)
    assert [(c.time, c.number, c.value) for c in violin.controls] == [(480, 64, 100)]
    assert [(b.time, b.value) for b in violin.pitch_bends] == [(960, -500)]
    assert report.tempi == [(0, pytest.approx(100))]
    assert report.time_signatures == [(0, 3, 4), (1440, 1, 4)]
    assert report.key_signatures == [(0, 6, 1)]
    whats = {finding.what for finding in report.findings}
    assert {
        "overlapping notes of one pitch cut",
        "notes of no length lengthened",
        "texts, lyrics and markers",
    } <= whats


def test_what_a_pretty_midi_has_outside_the_limits_is_a_finding():
    midi = pretty_midi.PrettyMIDI()
    part = pretty_midi.Instrument(300)
    part.notes = [pretty_midi.Note(300, 60, -1.0, 1.0), pretty_midi.Note(0, 62, 1.0, 2.0)]
    part.notes += [pretty_midi.Note(64, -3, 2.0, 3.0), pretty_midi.Note(64, 200, 2.0, 3.0)]
    part.control_changes = [pretty_midi.ControlChange(64, -4, 0.0), pretty_midi.ControlChange(7, 128, -2.0)]
    part.pitch_bends = [pretty_midi.PitchBend(9000, 0.5), pretty_midi.PitchBend(-9000, 0.6)]
    midi.instruments = [part]
    score, report = read_score(midi)
    assert {str(finding) for finding in report.findings if finding.kind != "note"} == {
        "repaired: program above 127 lowered",
        "repaired: time below 0 raised (2)",
        "repaired: velocity above 127 lowered",
        "repaired: velocity below 1 raised",
        "repaired: pitch below 0 raised",
        "dropped: note event with a pitch above 127 (2)",
        "repaired: value of a controller below 0 raised",
        "repaired: value of a controller above 127 lowered",
        "repaired: pitch bend above 8191 lowered",
        "repaired: pitch bend below -8192 raised",
    }
    (track,) = score.tracks
    assert track.program == 127
    assert [(note.time, note.pitch, note.velocity) for note in track.notes] == [
        (0, 60, 127), (440, 62, 1), (880, 0, 64)]  # fmt: skip
    part.notes, part.program, part.control_changes, part.pitch_bends = part.notes[:1], 0, [], []
    part.notes[0].start, part.notes[0].velocity = -1e-9, 127
    assert read_score(midi)[1].clean, "what rounding takes away is no fault"


@pytest.mark.parametrize("fault", ["nan", "string", "huge", "negative", "empty"])
def test_broken_pretty_midi(fault):
    midi = pretty_midi.PrettyMIDI()
    part = pretty_midi.Instrument(0)
    part.notes = [pretty_midi.Note(64, 60, 0.0, 1.0)]
    midi.instruments = [part]
    if fault == "nan":
        part.notes[0].end = float("nan")
    elif fault == "string":
        part.notes[0].pitch = "c4"
    elif fault == "huge":
        part.notes[0].end = 1e300
    elif fault == "negative":
        part.notes[0].start, part.notes[0].pitch = -1.0, -3
    else:
        part.notes = []
    if fault in ("huge", "negative"):
        score, _ = read_score(midi)
        assert score.note_num() == 1
    else:
        assert refusal(midi).startswith("<PrettyMIDI>: ")


def test_read_midi_gives_pretty_midi(samples_dir):
    paths = sorted(samples_dir.glob("*.mid"))
    if not paths:
        pytest.skip("needs the files of midi_samples")
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = pretty_midi.PrettyMIDI(str(path))
        ours = read_midi(path)
        for midi in (theirs, ours):
            for part in midi.instruments:
                part.notes.sort(key=lambda n: (n.start, n.pitch, n.end))
        mine = sorted((n.start, n.pitch, n.end, n.velocity) for p in ours.instruments for n in p.notes)
        other = sorted((n.start, n.pitch, n.end, n.velocity) for p in theirs.instruments for n in p.notes)
        np.testing.assert_allclose(np.array(mine), np.array(other), atol=1e-6)
        assert ours.get_end_time() == pytest.approx(theirs.get_end_time())
        np.testing.assert_allclose(ours.get_tempo_changes(), theirs.get_tempo_changes(), rtol=1e-6)


def test_score_is_symusic():
    score, _ = read_score(GOOD)
    assert isinstance(score, type(symusic.Score(480)))


def test_importing_costs_nothing():
    code = "import sys, melodia.midi; print(sorted({'symusic', 'pretty_midi', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
