"""Volume and expression at the join: what a fade has left low comes back, as the written file is played."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_helpers import make_seed, scale, tiny_sampler
from symusic.core import ControlChangeTick
from test_midi_join import QUARTERS, make

from melodia.midi import Finding, midi_bytes, read_score, write_midi
from melodia.midi.join import join
from melodia.midi.parts import RECENT

JOIN = 8 * 1920
NEW = make((0, [(0, 480, 60), (480, 480, 64)]))
DEFAULT = {7: 100, 11: 127}


def messages_of(data: bytes) -> list[tuple[int, int, Any]]:
    """The messages of a file with their ticks and parts, track by track: a part is a track, -1 all drums together."""
    mido = pytest.importorskip("mido")
    messages = []
    for number, track in enumerate(mido.MidiFile(file=io.BytesIO(data)).tracks):
        now = 0
        for message in track:
            now += message.time
            drums = not message.is_meta and message.channel == 9
            messages.append((now, -1 if drums else number - 1, message))
    return messages


def played(data: bytes, number: int) -> list[tuple[int, int, int, int | None]]:
    """Of each note of a file its tick, length, part and the value of a controller that it begins under."""
    value: dict[int, int] = {}
    sounding: dict[tuple[int, int], list[tuple[int, int | None]]] = {}
    notes = []
    for tick, part, message in sorted(messages_of(data), key=lambda entry: entry[0]):
        if message.type == "control_change" and message.control == number:
            value[message.channel] = message.value
        elif message.type == "note_on":
            sounding.setdefault((part, message.note), []).append((tick, value.get(message.channel)))
        elif message.type == "note_off":
            start, level = sounding[part, message.note].pop(0)
            notes.append((start, tick - start, part, level))
    return sorted(notes, key=lambda note: note[:3])


def levels(score, number: int = 7, tick: int = JOIN) -> set[tuple[int, int | None]]:
    """The parts of the notes from a tick on, and the values that these begin under, in the written file."""
    return {(part, level) for start, _, part, level in played(midi_bytes(score), number) if start >= tick}


def set_controls(score, index: int, number: int, *changes: tuple[int, int]) -> None:
    for tick, value in changes:
        score.tracks[index].controls.append(ControlChangeTick(tick, number, value))


def seed_with(*changes: tuple[int, int], number: int = 7):
    seed = make((0, QUARTERS))
    set_controls(seed, 0, number, *changes)
    return seed


FADE = [(JOIN - 1920 + 20 * step, 90 - step) for step in range(91)]


@pytest.mark.parametrize(("number", "name"), [(7, "volume"), (11, "expression")])
def test_a_fade_does_not_go_on(number: int, name: str) -> None:
    result, findings = join(seed_with((0, 90), *FADE, number=number), NEW, JOIN)
    assert levels(result, number) == {(0, 90)}
    assert findings == [Finding("note", f"{name} restored at the join", 1)]
    assert [c.value for c in result.tracks[0].controls][:-1] == [90, *(value for _, value in FADE)]


def test_both_controllers_come_back() -> None:
    seed = seed_with((0, 80), (JOIN - 100, 0))
    set_controls(seed, 0, 11, (0, 120), (JOIN - 50, 10))
    result, findings = join(seed, NEW, JOIN)
    assert (levels(result, 7), levels(result, 11)) == ({(0, 80)}, {(0, 120)})
    assert len(findings) == 2


@pytest.mark.parametrize(
    ("last", "expected"), [(49, 100), (50, 50), (99, 99), (127, 127), (0, 100)], ids=lambda value: str(value)
)
def test_less_than_half_has_fallen_and_nothing_is_lowered(last: int, expected: int) -> None:
    result, findings = join(seed_with((0, 100), (JOIN - 960, last)), NEW, JOIN)
    assert levels(result) == {(0, expected)}
    assert len(findings) == (last < 50)


@pytest.mark.parametrize("number", [7, 11])
def test_what_was_never_set_is_the_default_of_general_midi(number: int) -> None:
    """A file may say nothing before its fade; a track that never has the controller stays without."""
    result, _ = join(seed_with((JOIN - 960, 40), (JOIN - 480, 0), number=number), NEW, JOIN)
    assert levels(result, number) == {(0, DEFAULT[number])}
    result, findings = join(make((0, QUARTERS)), NEW, JOIN)
    assert levels(result, number) == {(0, None)}
    assert not findings


def test_only_tracks_that_get_new_notes() -> None:
    seed = make((0, QUARTERS), (40, QUARTERS), (0, [(start, 480, 30) for start, *_ in QUARTERS]))
    for index in range(3):
        set_controls(seed, index, 7, (0, 100), (JOIN - 10, 0))
    result, findings = join(seed, NEW, JOIN)
    assert [[c.value for c in track.controls] for track in result.tracks] == [
        [100, 0, 100],
        [100, 0],
        [100, 0],
    ]
    assert findings == [Finding("note", "volume restored at the join", 1)]


@pytest.mark.parametrize(("until", "expected"), [(0.55, 100), (0.45, 60)])
def test_what_prevails_is_the_median(until: float, expected: int) -> None:
    result, _ = join(seed_with((0, 100), (round(until * JOIN), 60), (JOIN - 10, 0)), NEW, JOIN)
    assert levels(result) == {(0, expected)}


def test_what_prevails_counts_by_time() -> None:
    """Every note swells from nothing, and the last one dies away."""
    swells = [
        (start + late, value) for start, *_ in QUARTERS for late, value in ((0, 0), (60, 90), (420, 30))
    ]
    result, _ = join(seed_with(*swells, number=11), NEW, JOIN)
    assert levels(result, 11) == {(0, 90)}


def test_a_soft_last_section_stays_soft_and_a_silent_one_does_not() -> None:
    music = [(480 * step, 480, 60 + step % 12) for step in range(3 * RECENT)]
    end = 3 * RECENT * 480
    for last, expected in ((30, 30), (0, 100)):
        seed = make((0, music))
        set_controls(seed, 0, 7, (0, 100), (end - RECENT * 480, last))
        result, _ = join(seed, NEW, end)
        assert levels(result, tick=end) == {(0, expected)}


def test_a_track_that_was_never_heard_stays_silent() -> None:
    result, findings = join(seed_with((0, 0)), NEW, JOIN)
    assert levels(result) == {(0, 0)}
    assert not findings


def test_the_continuations_own_volume_is_the_last_word() -> None:
    new = NEW.copy()
    set_controls(new, 0, 7, (0, 20), (480, 30))
    result, _ = join(seed_with((0, 100), (JOIN - 10, 0)), new, JOIN)
    assert levels(result) == {(0, 20), (0, 30)}


def test_drums_in_several_tracks_share_a_channel() -> None:
    """The hats' track would be loud by itself, but the kick's has faded, and both are channel 10."""
    beats = [(start, 100) for start, *_ in QUARTERS]
    seed = make((-1, [(*beat, 42) for beat in beats]), (-1, [(*beat, 36) for beat in beats]))
    set_controls(seed, 0, 7, (0, 100))
    set_controls(seed, 1, 7, (0, 100), (JOIN - 100, 5))
    result, _ = join(seed, make((-1, [(0, 100, 42)])), JOIN)
    assert [[c.value for c in track.controls] for track in result.tracks] == [[100, 100], [100, 5]]
    assert levels(result) == {(-1, 100)}


def test_more_tracks_than_channels() -> None:
    """One of the new music is the sixteenth: two share a channel, and each is heard as by itself."""
    seed = make(*[(index, QUARTERS) for index in range(15)])
    set_controls(seed, 3, 7, (0, 90), (JOIN - 480, 3))
    set_controls(seed, 4, 11, (JOIN - 480, 3))
    new = make(*[(program, [(0, 480, 60)]) for program in (*range(15), 70)])
    result, _ = join(seed, new, JOIN)
    for number, changed in ((7, {3: 90}), (11, {4: 127})):
        default = DEFAULT[number]
        found = {part: default if level is None else level for part, level in levels(result, number)}
        assert found == {part: changed.get(part, default) for part in range(16)}


TICKS = 400  # of 4 a quarter note, so that the last 16 bars are 256 of them
controls = st.lists(
    st.tuples(
        st.integers(0, TICKS - 1), st.sampled_from([7, 11]), st.sampled_from([0, 1, 20, 49, 50, 90, 127])
    ),
    max_size=8,
)
notes = st.lists(st.tuples(st.integers(0, TICKS - 1), st.integers(1, 200), st.integers(60, 64)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 40, -1]), notes, controls), max_size=5),
    st.lists(st.sampled_from([0, 40, -1, 7]), min_size=1, max_size=3, unique=True),
    st.booleans(),
)
def test_every_new_note_is_heard_like_those_before(tracks, programs, crowded) -> None:
    """Counted tick by tick in the written file."""
    tracks += [(program, [(0, 1, 50)], []) for program in range(50, 65) if crowded]
    seed = make(*[(program, rows) for program, rows, _ in tracks], quarter=4)
    for index, (_, _, changes) in enumerate(tracks):
        for tick, number, value in changes:
            set_controls(seed, index, number, (tick, value))
    result, _ = join(seed, make(*[(program, [(0, 4, 62)]) for program in programs], quarter=4), TICKS)
    data = midi_bytes(result)
    for number, default in DEFAULT.items():
        old = [note for note in played(data, number) if note[0] < TICKS]
        new = [note for note in played(data, number) if note[0] >= TICKS]
        assert len(new) == len(programs)
        for _, _, part, level in new:
            changes = sorted(controls_in(data, part, number), key=lambda change: change[0])
            force = [default] * (TICKS + 1)
            for tick, value in changes:
                if tick < TICKS:
                    force[tick:] = [value] * (TICKS + 1 - tick)
            usual = force[TICKS]
            for since in (TICKS - 4 * RECENT, 0):
                heard = sorted(
                    force[tick]
                    for start, length, other, _ in old
                    for tick in range(max(start, since), min(start + length, TICKS))
                    if other == part and force[tick]
                )
                if heard:
                    usual = heard[len(heard) // 2]
                    break
            expected = usual if force[TICKS] < usual / 2 else force[TICKS]
            assert (default if level is None else level) == expected


def controls_in(data: bytes, part: int, number: int) -> list[tuple[int, int]]:
    """The changes of a controller in a part of a file, track by track."""
    return [
        (tick, message.value)
        for tick, other, message in messages_of(data)
        if message.type == "control_change" and (other, message.control) == (part, number)
    ]


def test_a_fading_seed_through_the_sampler(tmp_path: Path) -> None:
    seed = make_seed([*scale(8), *scale(8, program=40)])
    quarter = seed.ticks_per_quarter
    for index in range(2):
        set_controls(seed, index, 7, (0, 110))
        set_controls(seed, index, 7, *[(quarter * (24 + step), 110 - 15 * step) for step in range(8)])
    write_midi(seed, tmp_path / "seed.mid")
    sampler = tiny_sampler()
    sampler.prime(tmp_path / "seed.mid")
    joined = sampler.generate(bars=2, random_seed=3).joined_score
    assert {level for _, level in levels(joined, tick=32 * quarter)} == {110}
    again, _ = read_score(midi_bytes(joined))
    assert levels(again, tick=32 * quarter) == levels(joined, tick=32 * quarter)
