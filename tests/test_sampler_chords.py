"""Music in a scale and under chords."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sampler_helpers import check_continuation, make_seed, notes_of, scale, tiny_sampler, tokenizer_of

from melodia.__main__ import main
from melodia.errors import ConfigError, GrammarError
from melodia.harmony import parse_chords, parse_scale
from melodia.midi import read_score
from melodia.notes import notes_of_score
from melodia.progression import BarGrid, Progression
from melodia.sampler import Continuation, Sampler, branching, chord_bias
from melodia.sampler.loop import Loop
from melodia.tokenizer import Tokenizer, TokenizerConfig

SCHEMES = ["REMI", "TSD", "Structured", "MIDILike", "PerTok"]


def chord_of_notes(made: Continuation, chords: str) -> list[tuple[int, Any]]:
    """Each pitched new note with the chord at its beginning; where the music begins at a bar line."""
    grid = BarGrid(
        0,
        made.score.ticks_per_quarter * 4 * made.report.metre[0] // made.report.metre[1],
        made.report.metre[0],
    )
    progression = Progression(parse_chords(chords))
    notes = notes_of_score(made.score)
    return [
        (int(pitch), progression.chord(int(onset), grid))
        for onset, pitch, program in zip(notes.onset, notes.pitch, notes.program, strict=True)
        if program >= 0
    ]


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chords so strong that no other note comes, and no bass of its own."""
    monkeypatch.setattr(chord_bias, "FOREIGN", 200.0)
    monkeypatch.setattr(chord_bias, "FOREIGN_BASS", 0.0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scale_is_kept(scheme: str) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(
        make_seed(scale(2) if scheme in ("TSD", "MIDILike") else [*scale(2), *scale(2, program=-1)])
    )
    classes = parse_scale("Eb pentatonic").classes
    pitched, drums = [], []
    for random_seed, branches in ((1, 1), (2, 3), (3, 1), (4, 1)):
        made = sampler.generate(bars=6, scale="Eb pentatonic", random_seed=random_seed, branches=branches)
        check_continuation(sampler, made, bars=6)
        for program, _, pitch, _, _ in notes_of(made.score):
            (pitched if program >= 0 else drums).append(pitch)
    assert len(pitched) > 5
    assert {pitch % 12 for pitch in pitched} <= classes
    assert not drums or not {pitch % 12 for pitch in drums} <= classes


def test_notes_outside_the_scale_may_end_but_hold_nothing_up() -> None:
    sampler = tiny_sampler("MIDILike")
    sampler.prime(make_seed(scale(4)))
    open_ends = 0
    for random_seed in range(4):
        before = sampler.generate(bars=2, random_seed=random_seed)
        open_ends += len(before.state.grammar.ends)
        made = sampler.generate(bars=8, state=before.state, random_seed=random_seed, scale="F# pentatonic")
        assert made.report.bars == 8
    assert open_ends


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("chords", "metre"), [("C F#", (4, 4)), ("C F# | G Bb B | N.C. | Am", (3, 4)), ("C F# | Bb", (6, 8))]
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_note_belongs_to_its_chord(scheme: str, metre: tuple[int, int], chords: str) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(2, metre), metre))
    heard = []
    for random_seed in range(4):
        made = sampler.generate(bars=8, chords=chords, random_seed=random_seed, pitch_bias=0.3)
        check_continuation(sampler, made, bars=8)
        heard += chord_of_notes(made, chords)
        assert made.report.chords is not None
        assert made.report.chords[0] > 0.8
        assert any("belongs to the chords" in line for line in made.report.lines())
    assert len({chord for _, chord in heard}) > 1 or scheme == "MIDILike"
    early = [pitch for pitch, chord in heard if chord is not None and pitch % 12 not in chord.classes]
    # notes of PerTok may begin a few ticks before their place on the grid
    assert len(early) <= (0.2 * len(heard) if scheme == "PerTok" else 0)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("bursts", [True, False])
@pytest.mark.parametrize("scheme", ["REMI", "MIDILike"])
def test_byte_pairs_follow_chords(scheme: str, bursts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of a position and a note that follows may change the chord inside: few notes are late."""
    base = tokenizer_of(scheme)
    pieces = [base.encode(make_seed(scale(8, program=program))).ids for program in (0, 5)]
    config = TokenizerConfig(scheme=scheme, bpe_vocab_size=base.vocabulary.size + 40)
    tokenizer = Tokenizer(config).train_bpe(pieces)
    sampler = tiny_sampler(scheme, tokenizer=tokenizer)
    sampler.prime(make_seed(scale(2)))
    monkeypatch.setattr("melodia.sampler.sampler.Loop", partial(Loop, bursts=bursts))
    made = sampler.generate(bars=6, chords="C F# | G B", random_seed=5)
    assert made.report.chords is not None
    assert made.report.chords[0] > 0.6


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("pitch_bias", [0.0, 0.3])
def test_the_engine_and_the_reference_agree(
    scheme: str, pitch_bias: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(2)))
    settings: dict[str, Any] = {
        "bars": 4, "chords": "Am | F G | N.C. | C Dm E", "pitch_bias": pitch_bias, "random_seed": 4
    }  # fmt: skip
    fast = sampler.generate(**settings).tokens.tolist()
    reference = Sampler(sampler.model, sampler.tokenizer, backend="reference")
    reference.prime(make_seed(scale(2)))
    assert reference.generate(**settings).tokens.tolist() == fast
    monkeypatch.setattr("melodia.sampler.sampler.Loop", partial(Loop, bursts=False))
    assert sampler.generate(**settings).tokens.tolist() == fast
    settings["chords"] = None
    assert (
        sampler.generate(**settings).tokens.tolist() != fast or scheme == "MIDILike"
    )  # few notes, many of them drums


def test_chords_that_hold_nowhere_change_nothing() -> None:
    """N.C. all along but in a bar that is not reached."""
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(2)))
    plain = sampler.generate(bars=3, random_seed=1)
    under = sampler.generate(bars=3, random_seed=1, chords="N.C. N.C. N.C. C")
    assert plain.tokens.tolist() == under.tokens.tolist()
    assert plain.report.chords is None
    assert under.report.chords is None


@pytest.mark.usefixtures("strict")
def test_chords_count_from_the_first_full_bar() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(2)[:-2]))  # two quarters are missing
    made = sampler.generate(bars=4, chords="F# C", random_seed=2)
    assert made.report.completed
    grid = BarGrid(4 * made.score.ticks_per_quarter, 4 * made.score.ticks_per_quarter, 4)
    progression = Progression(parse_chords("F# C"))
    notes = notes_of_score(made.score)
    chords = [progression.chord(int(onset), grid) for onset in notes.onset]
    assert any(chord is None for chord in chords)
    assert all(c is None or p % 12 in c.classes for c, p in zip(chords, notes.pitch.tolist(), strict=True))


@pytest.mark.usefixtures("strict")
def test_streams_follow_chords() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(2)))
    chords = parse_chords("C | F# G")
    progression, grid = Progression(chords), BarGrid(0, 1000, 4)
    bar = 4 * 60 / 96
    events = list(itertools.islice(sampler.stream(endless=True, chords=chords, random_seed=3), 90))
    assert events[-1].onset > 3 * bar
    for event in events:
        chord = progression.chord(round(1000 * event.onset / bar), grid)
        assert chord is not None
        assert event.pitch % 12 in chord.classes


def test_bars_come_again_under_the_same_chords_only() -> None:
    sampler = tiny_sampler()
    lengths = sampler.vocabulary.ids_of("Duration")
    with torch.no_grad():  # short notes: one that still sounds cannot be struck again
        sampler.model.head.bias[[k for k in lengths if sampler.vocabulary.value(k) >= "1"]] -= 8.0
    sampler.prime(make_seed(scale(16)))
    recalled = 0
    for random_seed in range(8):
        made = sampler.generate(bars=24, chords="C F# | G B | Am | E", recall=0.6, random_seed=random_seed)
        recalled += made.report.recalled
        length = 4 * made.score.ticks_per_quarter
        for begin, end in made._recalled:
            assert begin >= 4 * length  # none of the seed's bars
            assert end - begin == 2 * length
    assert recalled > 10
    for random_seed in range(8):  # no lag is a multiple of three bars
        made = sampler.generate(bars=24, chords="C F G", recall=0.6, random_seed=random_seed)
        assert made.report.recalled == 0


def test_branches_that_keep_to_the_chords_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chord_bias, "FOREIGN", 0.0)
    monkeypatch.setattr(chord_bias, "FOREIGN_BASS", 0.0)
    monkeypatch.setattr(branching, "CHORDS", 100.0)  # textures of random weights differ much
    sampler = tiny_sampler()
    sampler.prime(make_seed([*scale(4), *((2 * k, 2, 36 + 2 * (k % 5), 0) for k in range(8))]))
    kept: dict[int, list[float]] = {1: [], 8: []}
    for branches, random_seed in itertools.product(kept, range(8)):
        made = sampler.generate(bars=4, chords="F C Bb F", branches=branches, random_seed=random_seed)
        assert made.report.chords is not None
        kept[branches].append(made.report.chords[0])
    assert np.mean(kept[8]) > np.mean(kept[1]) + 0.03


def test_the_bass_is_the_seeds() -> None:
    low = [(k, 1, 36 + k % 4, 0) for k in range(8)]
    high = [(k, 1, 72 + k % 4, 0) for k in range(8)]
    assert 46 <= chord_bias.bass_of(make_seed([*low, *high])) <= 52
    assert chord_bias.bass_of(make_seed(high)) < 0
    assert chord_bias.bass_of(None) == chord_bias.bass_of(make_seed(scale(1, program=-1))) == chord_bias.BASS


def test_a_filling_follows_chords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chord_bias, "FOREIGN", 200.0)
    sampler = tiny_sampler()
    filling = sampler.fill(make_seed(scale(6)), (3, 4), chords="F# B", random_seed=1)[0]
    new = [note for note in notes_of(filling.score) if 8 <= note[1] < 16]
    assert new
    for _, onset, pitch, _, _ in new:
        assert pitch % 12 in ({6, 10, 1} if onset < 12 else {11, 3, 6})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chords": "Am Hm"}, "no chord is called 'Hm'"),
        ({"scale": "D happy"}, "no scale is called 'D happy'"),
        ({"chords": "C F", "metre_changes": True}, "`chords` need bars of one metre"),
        ({"chords": "C F#", "scale": "C major"}, "the chord F# has notes outside the scale C major"),
    ],
)
def test_wishes_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    sampler = tiny_sampler()
    with pytest.raises(ConfigError, match=message):
        sampler.generate(**settings)
    with pytest.raises(GrammarError, match="leave no program with a pitch"):
        sampler.generate(scale="C major", pitch_range=(61, 61))


def test_the_commands(samples_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed, out = samples_dir / "bach_bourree_c_minor.mid", tmp_path / "new.mid"
    wish = ["--chords", "G C | D7 | Em", "--scale", "G major", "--random-seed", "1"]
    assert main(["generate", "--seed", str(seed), "--bars", "4", *wish, "--out", str(out)]) == 0
    assert "belongs to the chords" in capsys.readouterr().out
    assert read_score(out)[0].tracks
    assert main(["generate", "--seed", str(seed), "--chords", "Xm", "--out", str(tmp_path / "no.mid")]) == 2
    assert "no chord is called 'Xm'" in capsys.readouterr().err
    assert not (tmp_path / "no.mid").exists()
    filled = tmp_path / "filled.mid"
    assert main(["fill", str(seed), "--bars", "3-4", *wish, "--out", str(filled)]) == 0
    assert "belongs to the chords" in capsys.readouterr().out
    assert filled.exists()


@pytest.mark.parametrize("cut", [3, 11, 30])
def test_a_stream_that_is_resumed_keeps_its_place_among_the_chords(tmp_path: Path, cut: int) -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(2)))
    wishes = {"chords": "C | F# G | Am | E", "endless": True, "random_seed": 7, "pitch_bias": 0.3}
    stream = sampler.stream(**wishes)
    for _ in range(cut):
        next(stream)
    stream.state.save(tmp_path / "a.state")
    state = sampler.load_state(tmp_path / "a.state")
    resumed = sampler.stream(state=state, **wishes)
    first, then = (list(itertools.islice(each, 40)) for each in (stream, resumed))
    assert [(event.pitch, event.duration_beats) for event in first] == [
        (event.pitch, event.duration_beats) for event in then
    ]
    others = list(itertools.islice(sampler.stream(state=state, **(wishes | {"chords": "Bb | Db"})), 40))
    assert [event.pitch for event in others] != [event.pitch for event in then]
    assert state.context.chords is not None
    ended = sampler.generate(bars=3, **{k: v for k, v in wishes.items() if k != "endless"}).state
    assert ended.context.chords is None, "behind an end the chords begin anew"
