"""What continuations keep of their seed beyond the grammar: its pitch classes and its programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_decode_checks import paired_tokenizer
from sampler_helpers import make_seed, scale, tiny_sampler

from melodia import engine
from melodia.decode import Bias, Noise, Opinion, SamplingConfig, choose, token_nll
from melodia.errors import ConfigError
from melodia.grammar.state import NONE
from melodia.sampler import Request, Sampler
from melodia.sampler.bias import ASTRAY, OUTSIDE, seed_bias
from melodia.sampler.loop import Loop
from melodia.sampler.plan import LAST_BARS
from melodia.sampler.players import REST_BARS, rests_of


def test_the_bias_by_hand() -> None:
    """Three Cs and a G: with one more of every class the shares are 4/16, 2/16 and ten times 1/16.

    Of four notes the range may be wider by 30 / 4 semitones.
    """
    sampler = tiny_sampler()
    seed = make_seed([(0, 1, 60, 0), (1, 1, 72, 0), (2, 1, 48, 0), (3, 1, 67, 0), (0, 1, 38, -1)])
    bias = seed_bias(sampler._classes, seed, Request(pitch_bias=0.5))
    assert bias is not None
    row = bias.of(0).row
    shares = {0: 4 / 16, 7: 2 / 16}  # of C and G; 1 / 16 of the others
    mean = np.mean([shares.get(pitch % 12, 1 / 16) ** 0.5 for pitch in range(48 - 7, 72 + 8)])
    vocabulary = sampler.vocabulary
    index = vocabulary.index
    for pitch, share in ((60, 4 / 16), (55, 2 / 16), (61, 1 / 16), (62, 1 / 16)):
        assert row[index[f"Pitch_{pitch}"]] == pytest.approx(0.5 * np.log(share) - np.log(mean), rel=1e-5)
    for pitch, distance, share in (
        (36, 4.5, 4 / 16),
        (79, 0, 2 / 16),
        (82, 2.5, 1 / 16),
    ):  # the range is 48 to 72
        expected = 0.5 * (np.log(share) - distance / OUTSIDE) - np.log(mean)
        assert row[index[f"Pitch_{pitch}"]] == pytest.approx(expected, rel=1e-5)
    others = [i for i, kind in enumerate(sampler.vocabulary.types) if kind != "Pitch"]
    assert not bias.rows[:, others].any()
    for program in (NONE, 40):  # one that the seed does not have, none at all: the range of all
        assert (bias.of(program).row == row).all()
    assert bias.exponent == 0.5
    assert [vocabulary.types[i] for i in np.flatnonzero(bias.members)] == ["Pitch"] * len(
        vocabulary.ids_of("Pitch")
    )
    assert seed_bias(sampler._classes, seed, Request()) is None
    drums = make_seed([(0, 1, 38, -1)])
    assert seed_bias(sampler._classes, drums, Request(pitch_bias=0.5)) is None


def test_music_beside_counts_by_its_classes_alone() -> None:
    sampler = tiny_sampler()
    request = Request(pitch_bias=0.5)
    index = sampler.vocabulary.index
    beside = make_seed([(0, 1, 60, 40), (1, 1, 72, 40), (2, 1, 48, 40), (3, 1, 67, 40)])
    bias = seed_bias(sampler._classes, None, request, beside)
    assert bias is not None
    low, high, other = (bias.of(0).row[index[f"Pitch_{pitch}"]] for pitch in (36, 96, 97))
    assert low == high == pytest.approx(other + 0.5 * np.log(4), rel=1e-5), "there is no range"
    seed = make_seed([(0, 1, 61, 0)])
    both = seed_bias(sampler._classes, seed, request, beside)
    assert both is not None
    of_c, of_c_sharp = (both.of(0).row[index[f"Pitch_{pitch}"]] for pitch in (60, 61))
    assert of_c - of_c_sharp == pytest.approx(0.5 * np.log(2), rel=1e-5)


def test_the_range_is_that_of_most_notes() -> None:
    """One of a hundred notes at either end does not widen it."""
    sampler = tiny_sampler()
    notes = [(k, 1, 55 + k % 20, 0) for k in range(98)]
    plain = seed_bias(sampler._classes, make_seed(notes), Request(pitch_bias=1.0))
    wide = seed_bias(
        sampler._classes, make_seed([*notes, (98, 1, 31, 0), (99, 1, 103, 0)]), Request(pitch_bias=1.0)
    )
    assert plain is not None
    assert wide is not None
    index = sampler.vocabulary.index
    for bias in (plain, wide):
        row = bias.of(0).row
        drop = row[index["Pitch_62"]] - row[index["Pitch_98"]]  # the same class, 24 above the range
        assert drop == pytest.approx(24 / OUTSIDE, abs=0.4)


def test_each_program_has_its_own_range() -> None:
    """A flute above a bass: the same classes, and the other's notes are far away for each."""
    sampler = tiny_sampler()
    both = [*((k, 1, 76 + k % 12, 73) for k in range(60)), *((k, 1, 36 + k % 12, 32) for k in range(60))]
    bias = seed_bias(sampler._classes, make_seed(both), Request(pitch_bias=1.0))
    assert bias is not None
    highest, high, low, lowest = (sampler.vocabulary.index[f"Pitch_{pitch}"] for pitch in (92, 80, 44, 32))
    for program, inside, astray in ((73, high, low), (32, low, high)):
        row = bias.of(program).row
        distance = (76 - 44 if program == 73 else 80 - 47) - 0.5  # 30 / 60 are left open
        assert (row[inside] - row[astray]) * ASTRAY == pytest.approx(distance, abs=1e-3)
    flute, bass = bias.of(73).row, bias.of(32).row
    assert (flute[high] - flute[highest]) * OUTSIDE == pytest.approx(92 - 87 - 0.25, abs=0.3)
    assert (bass[low] - bass[lowest]) * OUTSIDE == pytest.approx(36 - 32 - 0.25, abs=0.3)
    for program in (0, NONE):
        assert bias.of(program).row[high] == pytest.approx(bias.of(program).row[low])


def test_words_that_name_another_program() -> None:
    """Each note of a BPE token counts in the range of the program that plays it."""
    sampler = tiny_sampler(tokenizer=paired_tokenizer("REMI"))
    vocabulary = sampler.vocabulary
    both = [*((k, 1, 61 + k % 2, 0) for k in range(60)), *((k, 1, 100, 40) for k in range(60))]
    bias = seed_bias(sampler._classes, make_seed(both), Request(pitch_bias=1.0))
    assert bias is not None
    named = 0
    for token, parts in vocabulary.expansions.items():
        for present in (0, 40, 7, NONE):
            program, expected = present, 0.0
            for part in parts:
                kind, value = vocabulary.types[part], vocabulary.value(part)
                if kind == "Program":
                    program = int(value)
                elif kind == "Pitch":
                    expected += bias.of(program).row[part]
                    named += program != present
            assert bias.of(present).row[token] == pytest.approx(expected, abs=1e-4)
    assert named > 20


def test_instruments_keep_to_their_ranges() -> None:
    sampler = tiny_sampler()
    both = [
        *((k, 1, 84 + 2 * (k % 6), 73) for k in range(16)),
        *((k, 1, 36 + 2 * (k % 6), 32) for k in range(16)),
    ]
    sampler.prime(make_seed(both))

    def astray(weight: float) -> float:
        made = sampler.generate_many(8, bars=4, pitch_bias=weight, random_seed=1)
        notes = [note for one in made for note in one.events]
        assert len({note.program for note in notes}) == 2
        return float(np.mean([(note.pitch > 66) != (note.program == 73) for note in notes]))

    assert astray(0.0) > 0.25
    assert astray(1.0) < 0.02


def test_an_opinion_counts_before_the_filters_and_not_in_the_nll() -> None:
    logits = np.log(np.array([0.7, 0.2, 0.1], np.float32))
    opinion = Opinion(np.array([-9, 0, 3], np.float32), np.array([True, False, True]), 0.5)
    choice = choose(logits, None, (), SamplingConfig(top_k=1), Noise(1, 0, 3).at(0), opinion)
    assert choice.token == 2
    assert choice.nll == token_nll(logits, 2)
    assert choice.entropy == 0


def test_more_bias_more_of_the_seeds_classes() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(4)))  # whole tones

    def strange(weight: float) -> float:
        made = sampler.generate_many(8, bars=4, pitch_bias=weight, random_seed=1)
        pitches = [note.pitch for one in made for note in one.events]
        return float(np.mean([pitch % 2 for pitch in pitches]))

    none, some, much = (strange(weight) for weight in (0.0, 0.5, 1.0))
    assert none > some > much


@pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9, "temperature": 0.8}, {"repetition_penalty": 1.3}])
def test_bursts_and_tokens_agree(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    seed = make_seed([*scale(4), *((at, length, pitch - 24, 32) for at, length, pitch, _ in scale(4))])
    sampler = tiny_sampler()
    sampler.prime(seed)
    for bursts in (False, True):
        monkeypatch.setattr("melodia.sampler.sampler.Loop", lambda *them, b=bursts: Loop(*them, bursts=b))
        made += sampler.generate_many(2, bars=6, pitch_bias=0.7, random_seed=5, **settings)
    for one, other in zip(made[:2], made[2:], strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert (one.nll == other.nll).all()
        assert (one.entropy == other.entropy).all()
    plain = sampler.generate(bars=6, random_seed=5, **settings)
    assert plain.tokens.tolist() != made[2].tokens.tolist()
    reference = Sampler(sampler.model, sampler.tokenizer, backend="reference")
    reference.prime(seed)
    of_reference = reference.generate(bars=6, pitch_bias=0.7, random_seed=5, **settings)
    assert of_reference.tokens.tolist() == made[0].tokens.tolist()


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_weight_out_of_range(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"`pitch_bias` must be between 0 and 1"):
        Request(pitch_bias=weight)


# -- programs -----------------------------------------------------------------------------------------------------


def test_rests_by_hand() -> None:
    notes = [(0, 2, 60, 0), (7, 1, 62, 0), (39, 1, 60, 0)]  # rests of 5 and 31 quarters
    notes += [(beat, 1, 40, 32) for beat in range(40)]
    notes += [(0, 4, 70, 40)]  # silent for the last 36: it plays no more
    assert rests_of(make_seed(notes), None, 12) == {0: 31 * 12, 32: 0}
    assert rests_of(make_seed(notes), (0,), 12) == {}, "one program alone"
    assert rests_of(None, None, 12) == {}


def test_no_program_rests_longer_than_it_may() -> None:
    import torch

    seed = make_seed([*scale(8), *scale(8, program=40), *scale(8, program=-1)])
    sampler = tiny_sampler()
    with torch.no_grad():  # a model that plays one program only
        index = sampler.vocabulary.index
        sampler.model.head.bias[index["Program_0"]] += 9
        sampler.model.head.bias[[index["Program_40"], index["Program_-1"]]] -= 9
    sampler.prime(seed)
    made = sampler.generate(bars=16, random_seed=1)
    for program in (0, 40, -1):
        spans = [(e.onset, e.onset + e.duration) for e in made._notes if e.program == program]
        bar = 4 * sampler._classes.tables.ticks_per_quarter
        ends = [0, *(end for _, end in spans)]
        starts = [*(start for start, _ in spans), 16 * bar]
        longest = max(start - max(ends[: i + 1]) for i, start in enumerate(starts))
        assert longest <= (REST_BARS + 3) * bar, program  # the two are asked for one after the other
    free = sampler.generate(bars=16, random_seed=1, silent_bars=True)
    assert {note.program for note in free._notes} == {0}


@pytest.mark.parametrize("scheme", ["REMI", "PerTok", "TSD", "MIDILike", "Structured"])
def test_another_program_than_the_seeds(scheme: str) -> None:
    """The program at the seed's end is none of those that may play."""
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(4)))
    for programs in ((40,), (33, 73), (-1,)):
        made = sampler.generate_many(3, bars=4, programs=programs, random_seed=1)
        played = {note.program for one in made for note in one._notes}
        assert played
        assert played <= set(programs)


def test_the_model_is_told_the_last_bars_only() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(4)))
    lane = sampler._lane(sampler.state, Request(bars=8, random_seed=1))
    loop = sampler._loop([lane])
    told: dict[int, set[int | None]] = {}
    while loop.live:
        loop.step()
        told.setdefault(lane.plan._bar - 3, set()).add(lane.plan.bars_total)
    assert all(told[bar] == {None} for bar in range(1, 9 - LAST_BARS))
    assert all(told[bar] == {12} for bar in range(9 - LAST_BARS, 9))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (
            "rows",
            np.zeros((2, 4)),
            r"`rows` must be a contiguous array of finite float32 \[R, V\].*received float64 \[2, 4\]",
        ),
        ("rows", np.zeros(4, np.float32), r"`rows` must be .*received float32 \[4\]"),
        ("rows", np.zeros((2, 5), np.float32), r"`rows` must be .*received float32 \[2, 5\]"),
        ("rows", np.zeros((0, 4), np.float32), "`rows` must be .*R at least 1"),
        ("rows", np.zeros((2, 8), np.float32)[:, ::2], "`rows` must be .*a non-contiguous array"),
        ("rows", np.full((2, 4), np.nan, np.float32), "`rows` must be .*not finite"),
        ("rows", [[0.0]], "`rows` must be a contiguous array"),
        ("row_of", np.zeros(129), r"`row_of` must be a contiguous array of finite int32 \[129\]"),
        ("row_of", np.zeros(128, np.int32), "`row_of` must be"),
        ("row_of", np.full(129, 2, np.int32), r"`row_of` must be between 0 and 1.*received 2 to 2"),
        ("row_of", np.full(129, -1, np.int32), "`row_of` must be between 0 and 1"),
        ("members", np.zeros(4, np.int32), "`members` must be a contiguous array of finite bool"),
        ("exponent", float("nan"), "`exponent` must be finite"),
        ("exponent", 1.5, "`exponent` must be between 0 and 1"),
        ("exponent", "x", "`exponent` must be a number"),
    ],
)
def test_a_bias_of_the_wrong_form_reaches_no_compiled_code(part: str, value: Any, message: str) -> None:
    parts: dict[str, Any] = {
        "rows": np.zeros((2, 4), np.float32),
        "row_of": np.zeros(129, np.int32),
        "members": np.ones(4, np.bool_),
        "exponent": 0.5,
    }
    Bias(**parts)
    with pytest.raises(ConfigError, match=message):
        Bias(**parts | {part: value})


@pytest.mark.parametrize(
    ("opinion", "message"),
    [
        (
            Opinion(np.zeros(3, np.float32), np.ones(2, np.bool_), 0.5),
            r"`row` must be .*received float32 \[3\]",
        ),
        (Opinion(np.zeros(2, np.float32), np.ones(2), 0.5), "`members` must be"),  # type: ignore[arg-type]
        (Opinion(np.zeros(2, np.float32), np.ones(2, np.bool_), float("nan")), "`exponent` must be finite"),
        (Opinion(np.full(2, np.inf, np.float32), np.ones(2, np.bool_), 0.5), "`row` must be .*not finite"),
    ],
)
def test_an_opinion_of_the_wrong_form(opinion: Opinion, message: str) -> None:
    greedy = SamplingConfig(greedy=True)
    with pytest.raises(ConfigError, match=message):
        choose(np.zeros(2, np.float32), None, (), greedy, None, opinion)
    if engine.reason() is None:
        with pytest.raises(ConfigError, match=message):
            engine.choose(
                np.zeros(2, np.float32),
                None,
                (),
                greedy,
                random_seed=1,
                session=0,
                position=0,
                opinion=opinion,
            )
