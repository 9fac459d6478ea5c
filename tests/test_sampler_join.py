"""The join: where new music begins, what it keeps, where it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sampler_helpers import (
    check_continuation,
    decoded_after_join,
    make_seed,
    notes_of,
    quarters,
    scale,
    tiny_sampler,
)
from symusic.core import ControlChangeTick, KeySignatureTick, TempoTick, TimeSignatureTick

from melodia.errors import ConfigError
from melodia.midi import midi_bytes, read_score
from melodia.sampler import Sampler

SCHEMES = ("REMI", "TSD", "MIDILike", "Structured", "PerTok")


@pytest.fixture(scope="module", params=SCHEMES)
def any_sampler(request: pytest.FixtureRequest) -> Sampler:
    return tiny_sampler(request.param)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return tiny_sampler()


# name: notes, metre, where new music must begin (quarter notes)
SEEDS: dict[str, tuple[list[Any], tuple[int, int], float]] = {
    "four_four_filled": (scale(2), (4, 4), 8.0),
    "three_four_filled": (scale(3, (3, 4)), (3, 4), 9.0),
    "six_eight_filled": (scale(2, (6, 8)), (6, 8), 6.0),
    "detached_last_note": (scale(2, length=0.5), (4, 4), 8.0),
    "two_beats_missing": (scale(2)[:-2], (4, 4), 6.0),
    "one_beat_missing": (scale(2, (3, 4))[:-1], (3, 4), 5.0),
    "half_a_six_eight_missing": (scale(2, (6, 8))[:-3], (6, 8), 4.5),
    "an_eighth_of_six_eight_missing": (scale(2, (6, 8))[:-1], (6, 8), 6.0),
    "pickup": ([(3, 1, 67, 0), *[(4 + i, 1, 60 + i, 0) for i in range(7)]], (4, 4), 11.0),
    "note_held_into_the_next_bar": ([*scale(1), (3.5, 2.5, 72, 0)], (4, 4), 6.0),
    "note_held_over_a_bar": ([*scale(1), (0, 8, 40, 0)], (4, 4), 8.0),
    "held_note_fills_the_last_bar": ([*scale(1), (4, 4, 40, 0), (4, 1, 64, 0)], (4, 4), 8.0),
    "drums": ([(i * 0.5, 0.1, 36 if i % 2 else 42, -1) for i in range(16)], (4, 4), 8.0),
    "drums_and_bass": (scale(2, program=33) + [(i, 0.1, 36, -1) for i in range(8)], (4, 4), 8.0),
    "seven_eight": (scale(2, (7, 8)), (7, 8), 7.0),
    "cut_common": (scale(2, (4, 4)), (2, 2), 8.0),
    "thirteen_eight_in_its_first_piece": (scale(2, (13, 8))[:-9], (13, 8), 8.5),
    "thirteen_eight_at_its_second_piece": (scale(2, (13, 8))[:-6], (13, 8), 10.0),
    "thirteen_eight_filled": (scale(1, (13, 8)), (13, 8), 6.5),
    "one_note": ([(0, 0.5, 60, 0)], (4, 4), 0.5),
}


@pytest.mark.parametrize("name", SEEDS)
def test_new_music_joins_hand_made_seeds(any_sampler: Sampler, name: str) -> None:
    if any_sampler.tokenizer.config.scheme == "MIDILike" and name == "thirteen_eight_at_its_second_piece":
        return  # the seed ends at the bar line, and MIDILike writes a metre only behind a time shift
    notes, metre, join = SEEDS[name]
    report = any_sampler.prime(make_seed(notes, metre))
    assert any_sampler.state.context.seed_join == join
    assert report.completes == (join % quarters(metre) != 0)
    made = any_sampler.generate(bars=2, random_seed=3)
    check_continuation(any_sampler, made, bars=2)
    assert notes_of(made.score) == decoded_after_join(any_sampler, made)
    assert made.report.metre == metre
    assert made.report.completed == report.completes


def test_a_bar_is_completed_before_the_bars_that_were_asked_for(sampler: Sampler) -> None:
    sampler.prime(make_seed(scale(2)[:-2]))
    made = sampler.generate(bars=3, random_seed=1)
    assert made._map.join / made._map.ticks_per_quarter == 2.0
    assert made._map.end / made._map.ticks_per_quarter == 4 + 3 * 4
    joined = made.joined_score
    assert (joined.end() / joined.ticks_per_quarter) <= 8 + 3 * 4
    assert made.joined_at == pytest.approx(6 * 60 / 96)


def test_a_sounding_note_of_the_seed_is_not_struck_again(sampler: Sampler) -> None:
    """The bass sounds far into the new music; every other pitch of the narrow range is taken or allowed."""
    held = [(0, 12, pitch, 0) for pitch in range(60, 72)]
    notes = [*scale(2, program=5), *held]
    sampler.prime(make_seed(notes), seed_bars=None)
    context = sampler.state.context
    assert context.seed_join == 12.0
    # cut at two bars, the chord ends there: it may be struck again at once
    report = sampler.prime(make_seed(notes), seed_bars=2)
    assert sampler.state.context.seed_join == 8.0
    assert any("cut" in finding.what for finding in report.findings)
    check_continuation(sampler, sampler.generate(bars=1, random_seed=2), bars=1)


@pytest.mark.parametrize(("bars", "join"), [(1, 3.0), (2, 6.0), (4, 12.0), (9, 12.0)])
def test_only_the_first_bars_of_a_seed_are_used(sampler: Sampler, bars: int, join: float) -> None:
    report = sampler.prime(make_seed(scale(4, (3, 4)), (3, 4)), seed_bars=bars)
    assert sampler.state.context.seed_join == join
    assert report.bars == min(bars, 4)
    check_continuation(sampler, sampler.generate(bars=1, random_seed=4), bars=1)


def test_the_cut_of_a_seed_is_where_new_music_begins_even_behind_silence(sampler: Sampler) -> None:
    notes = [*scale(1), *[(onset + 16, length, pitch, 0) for onset, length, pitch, _ in scale(1)]]
    sampler.prime(make_seed(notes), seed_bars=3)
    assert sampler.state.context.seed_join == 12.0
    check_continuation(sampler, sampler.generate(bars=1, random_seed=4), bars=1)


def test_the_first_seconds_of_a_seed_are_completed_to_a_bar(sampler: Sampler) -> None:
    report = sampler.prime(make_seed(scale(6), tempo=120), seed_seconds=5.0)  # bars last 2 s
    assert (report.bars, report.seconds) == (3, 6.0)


def test_tempo_metre_programs_and_pedal_of_the_seed_are_kept(sampler: Sampler) -> None:
    seed = make_seed(scale(3, (3, 4), program=12), (3, 4), tempo=93.7)
    seed.tracks[0].controls.append(ControlChangeTick(seed.ticks_per_quarter, 64, 127))
    sampler.prime(seed)
    made = sampler.generate(bars=2, random_seed=9)
    midi = made.midi
    assert made.report.tempo == pytest.approx(93.7, abs=0.01)
    assert midi.get_tempo_changes()[1] == pytest.approx([93.7], abs=0.01)
    assert [(t.numerator, t.denominator, t.time) for t in midi.time_signature_changes] == [(3, 4, 0)]
    assert {i.program for i in midi.instruments} == {12}
    joined = made.joined_score
    assert [t.mspq for t in joined.tempos] == [t.mspq for t in seed.tempos]
    assert len(joined.time_signatures) == 1
    pedal = [(c.time / joined.ticks_per_quarter, c.value) for c in joined.tracks[0].controls]
    assert pedal == [(1.0, 127), (9.0, 0)]


def test_what_only_the_model_does_not_see_is_no_loss_of_the_seed(sampler: Sampler) -> None:
    """The report says so, and what was written shows it."""
    seed = make_seed(scale(2))
    seed.key_signatures.append(KeySignatureTick(0, -1, 1))
    seed.tracks[0].controls.append(ControlChangeTick(0, 7, 99))
    for note in seed.tracks[0].notes:
        note.velocity = 61
    report = sampler.prime(seed)
    assert report.findings == []
    heading = report.lines().index("changed only for the model (the seed itself stays as it is):")
    assert report.lines()[heading + 1 :] == [
        "  quantised: velocity (8; 32 levels)",
        "  not carried: key signature",
        "  not carried: control change",
    ]
    joined = sampler.generate(bars=1, random_seed=1).joined_score
    assert [(key.key, key.tonality) for key in joined.key_signatures] == [(-1, 1)]
    assert [(each.number, each.value) for each in joined.tracks[0].controls] == [(7, 99)]
    assert {note.velocity for note in joined.tracks[0].notes if note.time < 8 * joined.ticks_per_quarter} == {
        61
    }
    sampler.prime(sampler.tokenizer.encode(seed).ids)
    assert sampler.prime_report is not None
    assert sampler.prime_report.unseen == []


def test_a_pedal_that_goes_down_where_the_seed_is_cut_does_not_hold_the_new_music(sampler: Sampler) -> None:
    seed = make_seed(scale(4))
    for bar in range(4):
        seed.tracks[0].controls.append(ControlChangeTick(bar * 4 * seed.ticks_per_quarter, 64, 127))
    sampler.prime(seed, seed_bars=2)
    joined, _ = read_score(midi_bytes(sampler.generate(bars=1, random_seed=3).joined_score))
    assert [(c.time / joined.ticks_per_quarter, c.value) for c in joined.tracks[0].controls][-1] == (8.0, 0)


def test_a_slowing_end_does_not_slow_what_follows(sampler: Sampler) -> None:
    seed = make_seed(scale(8), tempo=120)
    for i in range(4):
        seed.tempos.append(TempoTick((28 + i) * seed.ticks_per_quarter, qpm=100 - 15 * i))
    report = sampler.prime(seed)
    assert report.tempo == pytest.approx(120, abs=0.01)
    assert report.tempo_at_end == pytest.approx(55, abs=0.01)
    assert "at 120 quarter notes per minute (55 at the end), programs 0" in report.lines()[0]
    joined = sampler.generate(bars=1, random_seed=1).joined_score
    last = sorted((t.time / joined.ticks_per_quarter, t.qpm) for t in joined.tempos)[-1]
    assert last == (32.0, pytest.approx(120, abs=0.01))


def test_the_last_metre_of_a_seed_is_the_one_that_goes_on(sampler: Sampler) -> None:
    notes = [*scale(2), *[(8 + onset, length, pitch, 0) for onset, length, pitch, _ in scale(2, (3, 4))]]
    seed = make_seed(notes)
    seed.time_signatures.append(TimeSignatureTick(8 * seed.ticks_per_quarter, 3, 4))
    report = sampler.prime(seed)
    assert report.metre == (3, 4)
    check_continuation(sampler, sampler.generate(bars=2, random_seed=1), bars=2)


def test_a_metre_without_a_token_is_reported_and_kept(sampler: Sampler) -> None:
    seed = make_seed(scale(3, (13, 8)), (13, 8))
    report = sampler.prime(seed)
    assert report.metre == (13, 8)
    assert len(sampler.state.context.cycle) == 2
    assert any("13/8" in finding.what for finding in report.unseen)
    made = sampler.generate(bars=2, random_seed=6)
    check_continuation(sampler, made, bars=2)
    assert [(t.numerator, t.denominator) for t in made.midi.time_signature_changes] == [(13, 8)]


def test_the_seed_stays_off_the_grid_as_it_was(sampler: Sampler) -> None:
    notes = [(onset + 0.013, 0.9, pitch, 0) for onset, _, pitch, _ in scale(2)]
    seed = make_seed(notes, tpq=1024)
    sampler.prime(seed)
    made = sampler.generate(bars=1, random_seed=1)
    check_continuation(sampler, made, bars=1)
    before = [note for note in notes_of(made.joined_score) if note[1] < 8]
    assert before == notes_of(seed)


def test_a_note_just_before_the_cut_belongs_to_what_was_cut_off(sampler: Sampler) -> None:
    seed = make_seed([*scale(1), *[(4 + onset - 0.01, 1, 70, 0) for onset in range(4)]])
    report = sampler.prime(seed, seed_bars=1)
    assert report.notes == 4
    assert any(finding.kind == "dropped" and "at the cut" in finding.what for finding in report.findings)
    for seconds, limit in ((0.0, "more than 0"), (float("nan"), "finite")):
        with pytest.raises(ConfigError, match=f"`seed_seconds` must be {limit}"):
            sampler.prime(make_seed(scale(2)), seed_seconds=seconds)
    with pytest.raises(ConfigError, match=r"`seed_bars` must be a whole number.*received 2\.5"):
        sampler.prime(seed, seed_bars=2.5)
    with pytest.raises(ConfigError, match="the first bar of <score> holds no note"):
        sampler.prime(make_seed([(5, 1, 60, 0)]), seed_bars=1)


@pytest.mark.parametrize("tpq", [24, 96, 100, 220, 1023, 32767])
def test_seeds_of_any_resolution(sampler: Sampler, tpq: int) -> None:
    sampler.prime(make_seed(scale(2), tpq=tpq))
    made = sampler.generate(bars=1, random_seed=1)
    assert made.report.bars == 1
    _, report = read_score(midi_bytes(made.joined_score))
    assert [f for f in report.findings if f.kind in ("repaired", "dropped")] == []
    assert report.notes == 8 + made.report.notes


def test_every_sample_of_the_repository(sampler: Sampler, samples_dir: Path) -> None:
    paths = sorted(samples_dir.glob("*.mid"))
    assert len(paths) >= 8
    for path in paths:
        sampler.prime(path, seed_bars=6)
        made = sampler.generate(bars=2, random_seed=0)
        check_continuation(sampler, made, bars=2)
        sampler.prime(path)
        check_continuation(sampler, sampler.generate(bars=1, random_seed=0), bars=1)


@pytest.mark.slow
def test_seeds_from_the_corpora(data_dir: Path) -> None:
    sampler = tiny_sampler(sides=())
    paths = sorted(data_dir.rglob("*.mid"))[::97][:60]
    for path in paths:
        try:
            sampler.prime(path, seed_bars=12)
        except Exception as error:
            if type(error).__name__ in ("MidiError", "TokenizerError"):
                continue
            raise
        made = sampler.generate(bars=2, random_seed=0)
        assert made.report.bars == 2
        assert made.report.notes > 0


def test_tracks_of_the_new_music_alone_have_the_seeds_names(sampler: Sampler) -> None:
    seed = make_seed([*scale(2), *scale(2, program=5), *scale(2, program=7)])
    for track, name in zip(seed.tracks, ("tune", "left hand", ""), strict=True):
        track.name = name
    right = seed.tracks[1].copy()
    right.name = "right hand"
    seed.tracks.append(right)
    sampler.prime(seed)
    made = sampler.generate(bars=4, random_seed=1)
    names = {track.program: track.name for track in made.score.tracks}
    assert names == {0: "tune", 5: "", 7: ""}
