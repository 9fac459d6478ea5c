"""Bars inside a piece, made anew; and music towards other music."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sampler_helpers import make_seed, notes_of, scale, tiny_sampler

from melodia.__main__ import main
from melodia.cli.fill import bar_numbers
from melodia.errors import ConfigError
from melodia.midi import bar_table, read_score, window
from melodia.sampler import Filling, Sampler, branching
from melodia.sampler.feeding import CHUNK, nll_behind
from melodia.sampler.filling import GIVEN
from melodia.sampler.following import Following

SCHEMES = ["REMI", "TSD", "Structured", "MIDILike", "PerTok"]


def outside(score, first: float, last: float):
    """The notes that begin outside of a span in quarter notes."""
    return [note for note in notes_of(score) if not first <= note[1] < last]


def check(filling: Filling, piece, first: float, last: float) -> None:
    """All else is as it was, note by note, and the new notes lie inside."""
    before = [  # what sounds into the new bars ends there
        (program, onset, pitch, min(end, first) if onset < first else end, velocity)
        for program, onset, pitch, end, velocity in outside(piece, first, last)
    ]
    assert outside(filling.score, first, last) == before
    new = [note for note in notes_of(filling.score) if first <= note[1] < last]
    assert new
    assert all(end <= last + 1e-6 for *_, end, _ in new)
    assert len(new) == filling.continuation.report.notes


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("metre", [(4, 4), pytest.param((3, 4), marks=pytest.mark.slow), (6, 8)])
def test_only_the_new_bars_are_new(scheme: str, metre: tuple[int, int]) -> None:
    sampler = tiny_sampler(scheme)
    piece = make_seed([*scale(8, metre, length=0.9), *scale(8, metre, program=40)], metre)
    bar = 4 * metre[0] / metre[1]
    fillings = sampler.fill(piece, (3, 5), num_samples=2, random_seed=1)
    assert len({tuple(filling.continuation.tokens.tolist()) for filling in fillings}) == 2
    for filling in fillings:
        check(filling, piece, 2 * bar, 5 * bar)
        assert filling.continuation.report.bars == 3
        assert {program for program, *_ in notes_of(filling.score)} <= {0, 40}
        assert len(bar_table(filling.score)) == 8
        assert filling.span == pytest.approx((2 * bar * 60 / 96, 5 * bar * 60 / 96))
        assert filling.following_nll is not None
        assert "bars 3 to 5 rewritten" in filling.lines()[0]
    again = sampler.fill(piece, (3, 5), num_samples=2, random_seed=1)
    assert [notes_of(one.score) for one in again] == [notes_of(one.score) for one in fillings]


def test_the_first_and_the_last_bars() -> None:
    sampler = tiny_sampler()
    piece = make_seed(scale(6, program=73))
    (opening,) = sampler.fill(piece, (1, 2), random_seed=1)
    check(opening, piece, 0, 8)
    assert {program for program, *_ in notes_of(opening.score)} == {73}
    assert opening.continuation.report.tempo == pytest.approx(96, rel=0.05)
    (close,) = sampler.fill(piece, (5, 6), random_seed=1)
    check(close, piece, 16, 24)
    assert (close.following_nll, close.following_nll_before) == (None, None)
    (whole,) = sampler.fill(piece, (1, 6), random_seed=1)
    check(whole, piece, 0, 24)


@pytest.mark.parametrize("quarters", [32, 30, 35], ids=["whole", "ends within a bar", "begins late, too"])
def test_the_first_bars_are_like_those_behind_them(quarters: int) -> None:
    """Which are of one velocity: so are they."""
    rest = 12 if quarters == 35 else 0
    piece = make_seed([note for note in scale(9) if rest <= note[0] < quarters])
    filling = tiny_sampler().fill(piece, (1, 2), random_seed=3)[0]
    check(filling, piece, 0, 8)
    old = {velocity for *_, velocity in notes_of(piece)}
    new = {velocity for _, onset, *_, velocity in notes_of(filling.score) if onset < 8}
    assert len(old) == len(new) == 1
    assert abs(old.pop() - new.pop()) <= 2, "the nearest level"


@pytest.mark.parametrize("quarters", [5, 7])
def test_nothing_whole_behind_the_first_bars(quarters: int) -> None:
    piece = make_seed(scale(2)[:quarters])
    check(tiny_sampler().fill(piece, (1, 1), random_seed=3)[0], piece, 0, 4)


def test_a_rest_before_the_bars() -> None:
    piece = make_seed([(onset + 8, length, pitch, 0) for onset, length, pitch, _ in scale(4)])
    (filling,) = tiny_sampler().fill(piece, (2, 3), random_seed=2)
    check(filling, piece, 4, 12)
    (filling,) = tiny_sampler().fill(piece, (1, 2), random_seed=2)
    check(filling, piece, 0, 8)
    assert filling.following_nll_before is None
    assert "nats per token" in filling.lines()[1]


def test_an_upbeat_as_a_short_bar_before_the_bars() -> None:
    """A bar that a new metre cuts short is no bar to complete."""
    from symusic.core import TimeSignatureTick

    piece = make_seed(scale(8))
    piece.time_signatures.append(TimeSignatureTick(480 * 6, 3, 4))
    for random_seed in range(3):
        (filling,) = tiny_sampler().fill(piece, (3, 4), random_seed=random_seed)
        check(filling, piece, 6, 12)
    piece.time_signatures[1].time = 480 * 6 + 7
    with pytest.raises(ConfigError, match="between two 32nds"):
        tiny_sampler().fill(piece, (3, 4))


def test_notes_that_come_a_little_early_belong_to_their_bar() -> None:
    piece = make_seed([(onset - 0.02, length, pitch, 0) for onset, length, pitch, _ in scale(7)[1:]])
    (filling,) = tiny_sampler().fill(piece, (3, 4), random_seed=1)
    before, after = notes_of(piece), notes_of(filling.score)
    assert [note for note in after if note[1] >= 15.9] == [note for note in before if note[1] >= 15.9]
    assert not [note for note in after if 7.9 < note[1] < 8], "no stub of the old downbeat"
    early = make_seed([(3.99, 1, 60, 0), *scale(6)[5:]])
    assert tiny_sampler().fill(early, (2, 3), random_seed=1)[0].continuation.report.bars == 2


def test_what_begins_in_the_bars_is_nothing_behind_them() -> None:
    """A note that rings on beyond the bars goes, and nobody leads to it."""
    piece = make_seed([*scale(4)[:12], (12, 4.5, 48, 0)])
    (filling,) = tiny_sampler().fill(piece, (4, 4), random_seed=1)
    assert filling.following_nll is None
    ringing = make_seed([*scale(8, program=40), (6, 4, 50, 48)])
    (filling,) = tiny_sampler().fill(ringing, (3, 3), random_seed=1)
    assert filling.notes_before == 4
    assert 48 not in filling.continuation.report.programs


def test_rests_before_what_follows_are_read() -> None:
    sampler = tiny_sampler()
    piece = make_seed([note for note in scale(8) if not 8 <= note[0] < 16])
    (filling,) = sampler.fill(piece, (3, 4), random_seed=1)
    sampler.prime(piece, seed_bars=2)
    index = sampler.vocabulary.index
    rests = [index["Bar_None"], index["TimeSig_4/4"]] * 2
    music = window(piece, 16 * 480, 32 * 480)[0]
    following = Following(sampler._reader(), music, sampler.tokenizer)
    (of_rests,) = nll_behind(sampler._reader(), [sampler.state], np.array(rests, np.int32))
    sampler.prime(np.array(rests, np.int32), append=True)
    (behind,) = nll_behind(sampler._reader(), [sampler.state], following.ids)
    assert filling.following_nll_before == pytest.approx(
        (behind * len(following.ids) + of_rests * 4) / (len(following.ids) + 4), rel=1e-5
    )


@pytest.mark.parametrize("name", GIVEN)
def test_what_the_piece_says(name: str) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` comes from the piece"):
        tiny_sampler().fill(make_seed(scale(6)), (2, 3), **{name: 1})


def test_rests_behind_the_bars() -> None:
    """What follows is read up to its first notes."""
    piece = make_seed([note for note in scale(12) if not 16 <= note[0] < 32])
    (filling,) = tiny_sampler().fill(piece, (3, 4), random_seed=2)
    check(filling, piece, 8, 16)
    assert filling.following_nll is not None


def test_other_programs_on_request() -> None:
    piece = make_seed(scale(6))
    (filling,) = tiny_sampler().fill(piece, (3, 4), programs=(40,), random_seed=1)
    assert {program for program, onset, *_ in notes_of(filling.score) if 8 <= onset < 16} == {40}


def test_the_session_stays() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(2)))
    before = sampler.generate(bars=1, random_seed=1).tokens.tolist()
    sampler.fill(make_seed(scale(6)), (3, 4), random_seed=1)
    assert sampler.generate(bars=1, random_seed=1).tokens.tolist() == before


def test_bars_of_another_metre_than_before() -> None:
    from symusic.core import TimeSignatureTick

    piece = make_seed(scale(8))
    piece.time_signatures.append(TimeSignatureTick(4 * 4 * 480, 3, 4))
    sampler = tiny_sampler()
    (filling,) = sampler.fill(piece, (5, 6), random_seed=1)
    check(filling, piece, 16, 22)
    assert filling.continuation.report.metre == (3, 4)
    with pytest.raises(ConfigError, match=r"metre changes at bar 5.*fill 3 to 4 and 5 to 6"):
        sampler.fill(piece, (3, 6))
    piece.time_signatures.append(TimeSignatureTick(round(23.5 * 480), 4, 4))
    with pytest.raises(ConfigError, match="bar 7 is cut short"):
        sampler.fill(piece, (6, 7))


@pytest.mark.parametrize(
    ("bars", "received"),
    [
        ((0, 2), "0 to 2"), ((3, 2), "3 to 2, the last one first); turn them round"), ((5, 7), "5 to 7"), ((7, 7), "7"),
        ((1,), "(1,)"), (3, "3"), ("1-2", "'1-2'"), ((1.5, 2), "(1.5, 2)"), ((True, 2), "(True, 2)"), (None, "None"),
    ],
)  # fmt: skip
def test_bars_that_are_not_there(bars: object, received: str) -> None:
    with pytest.raises(ConfigError, match=rf"between 1 and 6 .received {re.escape(received)}"):
        tiny_sampler().fill(make_seed(scale(6)), bars)  # type: ignore[arg-type]


def test_too_many_bars_at_once() -> None:
    with pytest.raises(ConfigError, match="at most 64 bars"):
        tiny_sampler().fill(make_seed(scale(70)), (2, 66))


def test_a_filling_needs_branches() -> None:
    with pytest.raises(
        ConfigError, match=r"`branches` must be a whole number between 2 and 64 \(received 1\)"
    ):
        tiny_sampler().fill(make_seed(scale(4)), (2, 3), branches=1)


def test_following_needs_branches() -> None:
    sampler = tiny_sampler()
    with pytest.raises(ConfigError, match="`following` needs several `branches`"):
        sampler.generate(bars=2, following=make_seed(scale(2)))
    with pytest.raises(ConfigError, match="`branches`"):
        sampler.stream(following=make_seed(scale(2)), branches=2)


@pytest.mark.parametrize(
    "scheme", ["REMI", "TSD", *(pytest.param(scheme, marks=pytest.mark.slow) for scheme in SCHEMES[2:])]
)
def test_what_is_kept_leads_to_what_follows(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind music that is judged by what follows, that surprises less than behind music that closes."""
    monkeypatch.setattr(branching, "FOLLOWING", 1000.0)
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(4)))
    following = make_seed(scale(4, program=40))
    settings = {"bars": 2, "branches": 8, "random_seed": 3}
    leading = sampler.generate_many(6, following=following, **settings)
    closing = sampler.generate_many(6, **settings)
    nlls = [
        np.mean([sampler.nll(following, state=made.state) for made in many]) for many in (leading, closing)
    ]
    assert nlls[0] < nlls[1]
    assert all(made.report.ended == "length" for made in leading)


def test_nll_is_the_likelihood_of_the_tokens() -> None:
    """Of the first two bars, as the whole model in torch gives it."""
    sampler = tiny_sampler(sides=())
    seed, music = make_seed(scale(3)), make_seed(scale(5))
    sampler.prime(seed)
    before = sampler.tokenizer.encode(seed, bos=True).ids
    ids = sampler.tokenizer.encode(make_seed(scale(2))).ids
    whole = torch.from_numpy(np.concatenate([before, ids])).long()
    with torch.no_grad():
        logits = sampler.model(whole[None])[0][0].log_softmax(-1)
    likely = logits[len(before) - 1 : -1].gather(1, whole[len(before) :, None])
    assert sampler.nll(music) == pytest.approx(-float(likely.mean()), rel=1e-4)


def test_the_numbers_of_bars() -> None:
    assert [bar_numbers(text) for text in ("9-12", " 9 - 12 ", "7")] == [(9, 12), (9, 12), (7, 7)]


def test_the_command(samples_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    song = samples_dir / "petzold_minuet_g_major.mid"
    out = tmp_path / "new"
    arguments = ["fill", str(song), "--bars", "9-12", "--out", f"{out}/", "--random-seed", "1"]
    assert main([*arguments, "--num-samples", "2", "--plot"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 samples made in ")
    assert said.count("tokens/s") == 1
    assert "bars 9 to 12 rewritten" in said
    assert "what follows: " in said
    names = {f"petzold_minuet_g_major-filled-{k}.{kind}" for k in (1, 2) for kind in ("mid", "png")}
    assert {path.name for path in out.iterdir()} == names
    piece, _ = read_score(song)
    for name in sorted(names):
        if name.endswith("mid"):
            filled, _ = read_score(out / name)
            assert outside(filled, 24, 36) == outside(piece, 24, 36)
    for wrong, words in (
        (["--bars", "33-34"], "between 1 and 32 (received 33 to 34)"),
        (["--bars", "12-9"], "(received 12 to 9, the last one first); turn them round"),
        (["--bars", "a"], "such as 9-12"),
        (["--bars", "9-12", "--branches", "1"], "--branches"),
    ):
        assert main(["fill", str(song), *wrong]) == 2
        assert words in capsys.readouterr().err
    assert main(["fill", str(tmp_path / "none.mid"), "--bars", "1"]) == 1
    assert main([*arguments, "--num-samples", "2"]) == 1, "files that are there stay"
    assert main(["fill", str(song), "--bars", "1", "--out", str(song), "--force"]) == 1
    assert "is the input file" in capsys.readouterr().err


def test_a_sampler_of_arrays_fills_too(samples_dir: Path) -> None:
    sampler = Sampler.load(weights="int8")
    filling = sampler.fill(samples_dir / "sakura.mid", (3, 4), random_seed=1)[0]
    assert filling.midi.get_end_time() > 0


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_behind_many_sessions_at_once(backend: str) -> None:
    """As behind each by itself; the sessions stay where they are."""
    tiny = tiny_sampler()
    sampler = Sampler(tiny.model, tiny.tokenizer, backend=backend)
    sessions = []
    for bars in (1, 2, 3):
        sampler.prime(make_seed(scale(bars)))
        sessions.append(sampler.state)
    ids = sampler.tokenizer.encode(make_seed(scale(40, program=40))).ids
    assert len(ids) * len(sessions) > CHUNK
    alone = [nll_behind(sampler._reader(), [session], ids).item() for session in sessions]
    assert len(set(alone)) == 3
    for _ in range(2):
        assert nll_behind(sampler._reader(), sessions, ids).tolist() == pytest.approx(alone, rel=1e-5)
