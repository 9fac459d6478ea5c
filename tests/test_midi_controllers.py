"""Reading controllers: to which tracks they go, which of one tick stay."""

from __future__ import annotations

import pretty_midi
import pytest
from midi_cases import EOT, TRACK, note, smf

from melodia.midi import Finding, assemble, midi_bytes, read_score


def test_controllers_go_with_their_notes():
    pedal = b"\x00\xb0\x40\x7f"
    bend = b"\x00\xe0\x01\x41"
    data = smf(
        pedal
        + b"\x00\xc0\x05"
        + note()
        + pedal.replace(b"\x7f", b"\x00")
        + b"\x00\xc0\x06"
        + bend
        + note()
        + EOT,
        b"\x00\xb3\x07\x40" + EOT,  # no notes on this channel
        b"\x00\xb0\x0a\x10" + EOT,  # same channel as the first track
    )
    score, report = read_score(data)
    first, second = score.tracks
    assert [(c.time, c.number, c.value) for c in first.controls] == [(0, 64, 127), (0, 10, 16)]
    assert [(c.time, c.number, c.value) for c in second.controls] == [(0, 10, 16), (480, 64, 0)]
    assert [(b.time, b.value) for b in second.pitch_bends] == [(480, (0x41 << 7 | 1) - 8192)]
    assert Finding("not carried", "controllers of channels without notes", 1) in report.findings


@pytest.mark.parametrize("channel", [1, 5, 15])
def test_controllers_go_with_the_next_note_of_their_channel(channel: int):
    """Its program changes in the midst; another track of the file plays before."""

    def pedal(value: int) -> bytes:
        return bytes([0, 0xB0 | channel, 0x40, value])

    pieces = [
        part
        for program, value in ((5, 127), (6, 0))
        for part in (bytes([0, 0xC0 | channel, program]), pedal(value), note(channel=channel))
    ]
    score, _ = read_score(smf(TRACK, b"".join(pieces) + EOT))
    found = {track.program: [(c.time, c.value) for c in track.controls] for track in score.tracks}
    assert found == {0: [], 5: [(0, 127)], 6: [(480, 0)]}


def test_what_a_channel_is_set_to_holds_for_all_of_its_tracks():
    """Both hands of a piano, whose pedal, volume and bends stand in the track of the right one."""

    def sent(number: int, value: int, channel: int = 0) -> bytes:
        return bytes([0, 0xB0 | channel, number, value])

    right = sent(64, 127) + sent(7, 80) + sent(101, 0) + b"\x00\xe0\x01\x41" + note() + sent(64, 0) + note()
    left = sent(7, 90) + note(40) + note(40)
    drums = sent(7, 60, 9) + note(channel=9)
    score, report = read_score(
        smf(right + EOT, left + EOT, drums + EOT, note(channel=9) + EOT, note(channel=3) + EOT)
    )
    found = [[(c.time, c.number, c.value) for c in track.controls] for track in score.tracks]
    pedal = [(0, 64, 127), (480, 64, 0)]
    assert found == [
        [pedal[0], (0, 7, 80), (0, 101, 0), pedal[1]],
        [(0, 7, 90), (0, 101, 0), *pedal],  # its own volume
        [(0, 7, 60)],
        [],  # written on the channel of the other drums
        [],
    ]
    assert [len(track.pitch_bends) for track in score.tracks] == [1, 0, 0, 0, 0]
    again, _ = read_score(midi_bytes(score))
    assert [[(c.time, c.number, c.value) for c in track.controls] for track in again.tracks] == found
    assert not [finding for finding in report.findings if finding.kind == "not carried"]


def test_controllers_are_not_shared_without_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(assemble, "_MOST_SHARED", 9)
    pedals = b"\x01\xb0\x40\x7f\x01\xb0\x40\x00" * 5
    score, report = read_score(smf(pedals + note() + EOT, note() + EOT))
    assert [len(track.controls) for track in score.tracks] == [10, 0]
    assert Finding("not carried", "controllers for other tracks of their channel", 10) in report.findings


def test_instruments_of_a_prettymidi_share_nothing():
    """It has no channels: the others' notes do not get the pedal of the first."""
    midi = pretty_midi.PrettyMIDI()
    for program in (0, 40, 41):
        instrument = pretty_midi.Instrument(program)
        instrument.control_changes.append(pretty_midi.ControlChange(program % 40 + 7, 5, 0.0))
        midi.instruments.append(instrument)
    midi.instruments[0].control_changes.append(pretty_midi.ControlChange(64, 127, 0.0))
    for instrument in midi.instruments[:2]:
        instrument.notes.append(pretty_midi.Note(80, 60, 0.0, 1.0))
    score, report = read_score(midi)
    found = {track.program: [(c.number, c.value) for c in track.controls] for track in score.tracks}
    assert found == {0: [(7, 5), (64, 127)], 40: [(7, 5)]}
    assert Finding("not carried", "controllers of channels without notes", 1) in report.findings


def test_parameters_are_kept_whole():
    """The range of pitch bends, and behind it the null that ends the choice of a parameter."""
    sent = [(101, 0), (100, 0), (6, 12), (38, 0), (7, 90), (101, 127), (100, 127), (7, 80)]
    events = b"".join(bytes([0, 0xB0, number, value]) for number, value in sent)
    score, report = read_score(smf(events + note() + EOT))
    expected = [(0, number, value) for number, value in sent if (number, value) != (7, 90)]
    assert [(c.time, c.number, c.value) for c in score.tracks[0].controls] == expected
    assert Finding("note", "controllers replaced at the same tick", 1) in report.findings


def test_a_port_has_channels_of_its_own():
    """Notation programs put the seventeenth part on another port: it got the pedal and the program of the first one."""

    def port(number: int) -> bytes:
        return b"\x00\xff\x21\x01" + bytes([number])

    first = port(0) + b"\x00\xc0\x05\x00\xb0\x40\x7f" + note() + EOT
    conductor = port(1) + b"\x00\xb0\x07\x50" + EOT
    score, report = read_score(smf(first, note() + EOT, port(1) + note() + EOT, conductor))
    found = [(track.program, [(c.number, c.value) for c in track.controls]) for track in score.tracks]
    assert found == [(5, [(64, 127)]), (5, [(64, 127)]), (0, [(7, 80)])]
    assert Finding("not carried", "other meta events", 3) in report.findings
    score, _ = read_score(smf(first.replace(port(0), port(1)), note() + EOT))
    assert [track.program for track in score.tracks] == [
        5,
        5,
    ]  # one port only, which the second track names not


def test_the_range_of_bends_holds_for_all_tracks_of_a_channel():
    """It is set before a program change, and in one of two tracks: what the others bent went a sixth as far."""
    sent = [(101, 0), (100, 0), (6, 12), (101, 127), (100, 127)]
    chosen = b"".join(bytes([0, 0xB0, number, value]) for number, value in sent)
    bent = b"\x00\xe0\x01\x41" + note()
    score, _ = read_score(smf(chosen + note() + b"\x00\xc0\x05" + bent + EOT, bent + EOT))
    found = [[(c.time, c.number, c.value) for c in track.controls] for track in score.tracks]
    assert found == [[(0, number, value) for number, value in sent]] * 3

    own = chosen.replace(b"\x06\x0c", b"\x06\x05")
    score, _ = read_score(smf(chosen + note() + EOT, own + bent + EOT))
    assert [[c.value for c in track.controls if c.number == 6] for track in score.tracks] == [[12], [5]]


def test_controllers_of_silent_channels_only():
    score, report = read_score(smf(b"\x00\xb3\x07\x40" + TRACK))
    assert len(score.tracks[0].controls) == 0
    assert Finding("not carried", "controllers of channels without notes", 1) in report.findings
