"""Lengths and wishes: what is asked for is what comes, and what cannot be is refused."""

from __future__ import annotations

import itertools
import json
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from sampler_helpers import check_continuation, make_seed, notes_of, scale, tiny_sampler, tokenizer_of
from symusic.core import TempoTick

from melodia.decode import SamplingConfig
from melodia.errors import ConfigError, GrammarError
from melodia.grammar import TokenReader
from melodia.notes import bar_lines
from melodia.sampler import Continuation, Sampler, plan
from melodia.sampler.classes import TokenClasses
from melodia.sampler.loop import Loop
from melodia.sampler.players import OPEN_BARS, OPEN_PROGRAMS
from melodia.tokenizer import Tokenizer, TokenizerConfig

SCHEMES = ("REMI", "TSD", "MIDILike", "Structured", "PerTok")


pytestmark = pytest.mark.usefixtures("primed")


def tokens_of(sampler: Sampler, **settings: Any) -> list[int]:
    settings = {"bars": 2, "random_seed": 7} | settings
    return sampler.generate(**settings).tokens.tolist()


# -- lengths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bars", [1, 3, 8])
def test_exactly_so_many_bars(scheme: str, bars: int) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(2, (6, 8)), (6, 8)))
    made = sampler.generate(bars=bars, random_seed=bars)
    check_continuation(sampler, made, bars=bars)
    assert made.report.seconds == pytest.approx(bars * 3 * 60 / 96)


@pytest.mark.parametrize(("seconds", "bars"), [(0.1, 1), (2.5, 1), (2.6, 2), (10.0, 4), (10.1, 5)])
def test_seconds_are_rounded_up_to_a_bar_line(sampler: Sampler, seconds: float, bars: int) -> None:
    made = sampler.generate(seconds=seconds, random_seed=1)  # a bar lasts 2.5 s
    check_continuation(sampler, made, bars=bars)
    assert made.report.seconds == pytest.approx(2.5 * bars)


@pytest.mark.parametrize("scheme", ["REMI", "TSD", "MIDILike", "PerTok"])
def test_seconds_are_reached_although_the_tempo_changes(scheme: str) -> None:
    """The last bar is known while it is made: a faster tempo in the rest of it would make it end too early."""
    sampler = tiny_sampler(scheme)
    with torch.no_grad():
        sampler.model.head.bias[list(sampler.vocabulary.ids_of("Tempo"))] += 2
    sampler = Sampler(sampler.model, sampler.tokenizer)
    sampler.prime(make_seed(scale(2)))
    changed = 0
    for seconds, metre_changes in itertools.product((3.0, 5.0, 12.0), (False, True)):
        for random_seed in range(4):
            made = sampler.generate(
                seconds=seconds, tempo_changes=True, metre_changes=metre_changes, random_seed=random_seed
            )
            assert made.report.seconds >= seconds - 1e-6
            *before, last = [line for line in bar_ticks(made) if line < made._map.end]
            assert made._map.seconds(last) - made._map.seconds(made._map.join) < seconds or not before
            changed += len(made._map.tempi) > 2
    assert changed > 6


def bar_ticks(made: Continuation) -> list[int]:
    """The bar lines of a continuation that begins at one, in its ticks."""
    return bar_lines(list(made._map.metres), made._map.end, made._map.ticks_per_quarter).tolist()


@pytest.mark.parametrize("scheme", ["REMI", "MIDILike", "PerTok"])
@pytest.mark.parametrize("bursts", [True, False])
def test_tempi_inside_byte_pairs_are_tempi(
    scheme: str, bursts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moving(program: int) -> Any:
        score = make_seed(scale(8, program=program))
        for bar in range(8):
            score.tempos.append(TempoTick((4 * bar + 2 * (bar % 2)) * 480, qpm=100 + 20 * (bar % 3)))
        return score

    base = tokenizer_of(scheme)
    pieces = [base.encode(moving(program)).ids for program in (0, 5)]
    config = TokenizerConfig(scheme=scheme, bpe_vocab_size=base.vocabulary.size + 80)
    tokenizer = Tokenizer(config).train_bpe(pieces)
    sampler, vocabulary = tiny_sampler(scheme, tokenizer=tokenizer), tokenizer.vocabulary
    with_tempo = [
        token
        for token, parts in vocabulary.expansions.items()
        if any(vocabulary.types[part] == "Tempo" for part in parts)
    ]
    with torch.no_grad():
        sampler.model.head.bias[with_tempo] += 5
    sampler = Sampler(sampler.model, tokenizer)
    seed = make_seed(scale(2))
    sampler.prime(seed)
    monkeypatch.setattr("melodia.sampler.sampler.Loop", partial(Loop, bursts=bursts))
    made = sampler.generate(bars=6, tempo_changes=True, random_seed=1)
    assert set(made.tokens.tolist()) & set(with_tempo)
    reader = TokenReader(vocabulary)
    reader.read([*tokenizer.encode(seed).ids.tolist(), *made.tokens.tolist()])
    origin = sampler.state.context.origin
    written = [(tick - origin, tempo) for tick, tempo in reader.tempi if tick > origin]
    assert len(written) > 2
    assert [mark for mark in made._map.tempi if mark[0] > 0] == written


@pytest.mark.parametrize("scheme", ["REMI", "TSD", "MIDILike", "PerTok"])
def test_an_asked_metre_holds_where_byte_pairs_hold_metres(scheme: str) -> None:
    """A bar line and its metre are one token then: that of the seed's metre must not come in its new place."""
    base = tokenizer_of(scheme)
    pieces = [base.encode(make_seed(scale(4, metre), metre)).ids for metre in ((4, 4), (3, 4))] * 3
    tokenizer = base.train_bpe(pieces, size=base.vocabulary.size + 40)
    vocabulary, sampler = tokenizer.vocabulary, tiny_sampler(tokenizer=tokenizer)
    with torch.no_grad():
        sampler.model.head.bias[np.flatnonzero(TokenClasses(vocabulary).inner_metre).tolist()] += 3
    sampler = Sampler(sampler.model, tokenizer)
    sampler.prime(make_seed(scale(2, length=0.9)))
    for random_seed in range(4):
        made = sampler.generate(bars=3, metre=(3, 4), random_seed=random_seed)
        metres = {i for i in vocabulary.expand(made.tokens).tolist() if vocabulary.types[i] == "TimeSig"}
        assert metres == {vocabulary.index["TimeSig_3/4"]}
        check_continuation(sampler, made)
        assert len(list(sampler.stream(bars=3, metre=(3, 4), random_seed=random_seed))) == len(made.events)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tokens_are_completed_to_a_bar_line(scheme: str) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(2)))
    made = sampler.generate(tokens=40, random_seed=1)
    assert made.report.tokens >= 40 or made.report.ended == "model"
    check_continuation(sampler, made, bars=made.report.bars)
    if scheme == "REMI":
        bars = [i for i, t in enumerate(made.tokens) if sampler.vocabulary.types[t] == "Bar"]
        assert bars[-1] < 40


def test_eight_bars_by_default(sampler: Sampler) -> None:
    assert sampler.generate(random_seed=0).report.bars == 8


def test_the_model_may_end_the_piece_only_where_it_is_allowed_to() -> None:
    sampler = tiny_sampler()
    import torch

    with torch.no_grad():
        sampler.model.head.bias[sampler.vocabulary.eos] += 12
    sampler.prime(make_seed(scale(2)))
    kept = sampler.generate(bars=5, random_seed=1)
    assert (kept.report.bars, kept.report.ended) == (5, "length")
    free = sampler.generate(bars=5, random_seed=1, may_end=True)
    assert (free.report.bars, free.report.ended) == (1, "model")
    check_continuation(sampler, free, bars=1)


def test_bars_left_counts_down_to_one() -> None:
    """The model hears how many bars are left, so that it can end on purpose."""
    tiny = tiny_sampler(sides=("bars_left",))
    sampler = Sampler(tiny.model, tiny.tokenizer, backend="reference")  # whose model.step can be listened to
    sampler.prime(make_seed(scale(2)))
    heard: list[int] = []
    step = sampler.model.step

    def listen(tokens: Any, side: Any, state: Any) -> Any:
        heard.append(int(side[0, 0]))
        return step(tokens, side, state)

    sampler.model.step = listen  # type: ignore[method-assign]
    sampler.generate(bars=3, random_seed=1)
    assert heard[-1] == 1
    assert set(heard) - {0} == {1, 2, 3}
    assert heard == sorted(heard, key=lambda left: -left if left else -9)


# -- from nothing, and wishes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_music_from_nothing(scheme: str) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(None)
    made = sampler.generate(bars=3, max_polyphony=6, random_seed=3)
    check_continuation(sampler, made)
    assert made.report.bars == 3
    assert made.seed is None
    assert made.joined_at == 0.0


@pytest.mark.parametrize("scheme", ["REMI", "TSD"])
def test_music_from_nothing_keeps_the_programs_that_it_began_with(scheme: str) -> None:
    """A model of random weights would name a new one at every turn."""
    sampler = tiny_sampler(scheme)
    bar = 4 * sampler._classes.tables.ticks_per_quarter
    for random_seed in range(4):
        sampler.prime(None)
        made = sampler.generate(bars=8, metre=(4, 4), random_seed=random_seed)
        begun = {note.program for note in made._notes if note.onset < OPEN_BARS * bar}
        assert 1 <= len(made.report.programs) <= OPEN_PROGRAMS
        assert {note.program for note in made._notes} == begun
        on = made.state.fork()
        assert on.context.programs == tuple(sorted(begun))
    free = sampler.generate(bars=60, any_program=True, random_seed=1)
    assert len(free.report.programs) > OPEN_PROGRAMS


@pytest.mark.parametrize("at", [1, 30, 120])
def test_a_stream_from_nothing_goes_on_with_its_programs(at: int) -> None:
    sampler = tiny_sampler()
    sampler.prime(None)
    whole = list(islice(sampler.stream(endless=True, random_seed=5), 200))
    stream = sampler.stream(endless=True, random_seed=5)
    first = list(islice(stream, at))
    rest = list(islice(sampler.stream(endless=True, random_seed=5, state=stream.state), 200 - at))
    assert [(e.pitch, e.program) for e in first + rest] == [(e.pitch, e.program) for e in whole]


def test_the_length_behind_a_stream_is_that_of_the_new_music(sampler: Sampler) -> None:
    stream = sampler.stream(endless=True, random_seed=5)
    heard = list(islice(stream, 60))
    made = sampler.generate(bars=2, random_seed=1, state=stream.state)
    bar = 4 * 60 / made.report.tempo
    assert heard[-1].onset > 2 * bar
    assert bar < made.report.seconds <= 2 * bar
    assert made.events[0].onset >= heard[-1].onset


def test_music_from_nothing_in_a_metre_and_tempo(sampler: Sampler) -> None:
    sampler.prime(None)
    made = sampler.generate(bars=2, metre="3/4", tempo=71.5, programs=(40,), random_seed=3)
    assert made.report.metre == (3, 4)
    assert made.midi.get_tempo_changes()[1] == pytest.approx([71.5], abs=0.01)
    assert made.report.programs == (40,)
    assert made.report.seconds == pytest.approx(6 * 60 / 71.5)
    names = [sampler.vocabulary.tokens[t] for t in made.tokens[:4]]
    assert names[:3] == ["Bar_None", "TimeSig_3/4", "Position_0"]
    assert names[3].startswith("Tempo_7")


def test_a_new_metre_begins_with_the_first_full_bar(sampler: Sampler) -> None:
    sampler.prime(make_seed(scale(2)[:-2]))
    made = sampler.generate(bars=2, metre=(3, 4), random_seed=1)
    metres = [(t.time / made.score.ticks_per_quarter, t.numerator) for t in made.score.time_signatures]
    assert metres == [(0.0, 4), (4.0, 3)]
    assert made.report.metre == (3, 4), "that of the bars which are counted, not of the one that is completed"
    assert made._map.end / made.score.ticks_per_quarter == 4 + 6


@pytest.mark.parametrize("scheme", ["REMI", "TSD", "MIDILike", "PerTok"])
@pytest.mark.parametrize("metre", [(4, 4), (13, 8)])
def test_a_new_metre_of_several_pieces(scheme: str, metre: tuple[int, int]) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(2, metre)[:-5], metre))
    made = sampler.generate(bars=3, metre=(15, 16), random_seed=1)
    tpq = made.score.ticks_per_quarter
    metres = [(t.time / tpq, t.numerator, t.denominator) for t in made.score.time_signatures]
    line = 4 * metre[0] / metre[1]
    assert metres == [(0.0, *metre), (line, 15, 16)]
    assert made._map.end / tpq == line + 3 * 15 / 4
    after = sampler.generate(bars=2, random_seed=1, state=made.state)
    assert after.report.metre == (15, 16)
    assert after._map.end / tpq == 2 * 15 / 4
    stream = sampler.stream(endless=True, metre=(15, 16), random_seed=1)
    list(itertools.islice(stream, 15))
    snapshot = stream.state
    rest = list(itertools.islice(stream, 15))
    again = sampler.stream(endless=True, metre=(15, 16), random_seed=1, state=snapshot)
    assert list(itertools.islice(again, 15)) == rest


def test_metre_and_tempo_may_be_freed() -> None:
    sampler = tiny_sampler(sides=())
    sampler.prime(make_seed(scale(2)))
    made = sampler.generate(bars=8, metre_changes=True, tempo_changes=True, random_seed=3)
    assert len(made.score.time_signatures) > 1
    assert made.report.bars == 8
    kept = sampler.generate(bars=8, random_seed=3)
    assert (len(kept.score.time_signatures), len(kept.score.tempos)) == (1, 1)


def test_pitch_range_and_polyphony(sampler: Sampler) -> None:
    made = sampler.generate(bars=4, pitch_range=(60, 72), max_polyphony=2, random_seed=3)
    notes = notes_of(made.score)
    assert all(60 <= note[2] <= 72 for note in notes)
    for _, onset, _, _, _ in notes:
        assert sum(other[1] <= onset < other[3] for other in notes) <= 2


def test_a_bar_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = tiny_sampler()
    import torch

    with torch.no_grad():
        sampler.model.head.bias[list(sampler.vocabulary.ids_of("Bar"))] -= 30
    monkeypatch.setattr(plan, "BAR_TOKENS", 50)
    sampler.prime(make_seed(scale(2)))
    made = sampler.generate(bars=3, random_seed=1)
    assert made.report.tokens < 3 * 70
    assert any("cut short" in finding.what for finding in made.report.findings)
    check_continuation(sampler, made, bars=3)


def test_greedy_needs_no_random_seed(sampler: Sampler) -> None:
    first, second = (sampler.generate(bars=1, greedy=True, random_seed=n) for n in (1, 2))
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.report.entropy == 0


def test_settings_may_come_as_one_value(sampler: Sampler) -> None:
    sampling = SamplingConfig(temperature=0.8, top_k=9)
    assert tokens_of(sampler, sampling=sampling) == tokens_of(sampler, temperature=0.8, top_k=9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bars": 0}, r"`bars` must be a whole number, at least 1 \(received 0\)"),
        ({"bars": 2, "seconds": 3.0}, "give one of `bars` and `seconds`"),
        ({"seconds": -1.0}, "`seconds` must be more than 0"),
        ({"tokens": 2.5}, "`tokens` must be a whole number"),
        ({"random_seed": -1}, "`random_seed` must be a whole number between 0 and 2"),
        ({"random_seed": 1.5}, "`random_seed` must be a whole number"),
        ({"session": 2**32}, "`session` must be a whole number between"),
        ({"temperature": 0.0}, "`top_k` 1 takes the likeliest"),
        ({"metre": "x"}, "`metre` must be a numerator and a denominator"),
        ({"metre": (3, 5)}, "`metre` must be 1 to 64"),
        ({"metre": (4, 4), "metre_changes": True}, "give only one of the two"),
        ({"programs": (1,), "any_program": True}, "give only one of the two"),
        ({"bars": 100_001}, "`bars` must be at most 100,000 .*100,001.* in parts"),
        ({"tokens": 10**30}, "`tokens` must be at most"),
        ({"seconds": float("inf")}, "`seconds` must be finite .*inf"),
        ({"seconds": 1e9}, "`seconds` must be at most 200,000"),
        ({"seconds": float("nan")}, "`seconds` must be finite"),
        ({"tempo": 0.0}, "`tempo` must be between"),
        ({"endless": True}, "use `stream`"),
        ({"speed": 3}, "unknown generation settings: .*`speed`; known are bars, "),
        ({"programs": (200,)}, r"`programs` must be one or more numbers between .*received \(200,\)"),
        ({"programs": ()}, r"`programs` must be one or more .*received \(\).*leave it out"),
        ({"programs": 40}, "`programs` must be one or more numbers"),
        ({"programs": (0, "drums")}, "`programs` must be one or more numbers"),
        (
            {"pitch_range": (80, 20)},
            r"`pitch_range` must be the lowest and the highest .*received \(80, 20\)",
        ),
        ({"pitch_range": (0, 128)}, "`pitch_range` must be"),
        ({"pitch_range": (60,)}, "`pitch_range` must be"),
        ({"pitch_range": "ab"}, "`pitch_range` must be"),
        ({"max_polyphony": 0}, "`max_polyphony` must be a whole number between 1 and 16512 .*for no limit"),
        ({"max_polyphony": 2**62}, "`max_polyphony` must be a whole number between 1 and 16512"),
        ({"max_polyphony": 10**30}, "`max_polyphony` must be a whole number between 1 and 16512"),
        ({"max_polyphony": 2.5}, "`max_polyphony` must be a whole number"),
        ({"metre": (3.5, 4)}, "`metre` must be a numerator and a denominator"),
        ({"seconds": "4"}, "`seconds` must be a number"),
        ({"tempo": [90]}, "`tempo` must be a number"),
        ({"greedy": "no"}, "`greedy` must be True or False"),
        ({"may_end": "no"}, "`may_end` must be True or False"),
        ({"sampling": {"top_k": 3}}, "`sampling` must be a melodia.decode.SamplingConfig"),
        ({"progress": 5}, "`progress` must be callable"),
    ],
)
def test_wishes_that_cannot_be(sampler: Sampler, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, GrammarError), match=message):
        sampler.generate(**settings)


def test_numbers_of_numpy_are_as_good(sampler: Sampler) -> None:
    plain = {"bars": 2, "session": 1, "top_k": 5, "temperature": 0.5, "pitch_range": (40, 80), "branches": 2}
    ours = {
        name: np.array(v) if isinstance(v, tuple) else type(np.array(v)[()])(v) for name, v in plain.items()
    }
    assert tokens_of(sampler, **ours, random_seed=np.uint64(3)) == tokens_of(sampler, **plain, random_seed=3)
    made = sampler.generate(**ours, random_seed=np.uint64(3))
    json.dumps(made.report.to_dict())  # they are Python's again
    assert sampler.generate_many(np.int64(2), bars=np.int32(1))[1].report.bars == 1  # type: ignore[arg-type]
    assert sampler.prime(make_seed(scale(3)), seed_bars=np.int64(1)).bars == 1  # type: ignore[arg-type]


def test_sampling_as_a_whole_or_in_parts(sampler: Sampler) -> None:
    parts = {"temperature": 0.8, "repetition_penalty": 1.5, "repetition_window": 3}
    whole = SamplingConfig(**parts)  # type: ignore[arg-type]
    assert tokens_of(sampler, sampling=whole) == tokens_of(sampler, **parts)
    assert tokens_of(sampler, **parts) != tokens_of(sampler, **parts | {"repetition_window": 60}), (
        "the window counts"
    )
    with pytest.raises(ConfigError, match="not both"):
        tokens_of(sampler, sampling=whole, temperature=0.5)


@pytest.mark.parametrize("wish", [{"programs": (40,)}, {"pitch_range": (90, 91)}])
def test_notes_that_may_not_end_hold_nothing_up(wish: dict[str, Any]) -> None:
    """MIDILike: behind music whose notes still sound to the grammar, and may play no more."""
    sampler = tiny_sampler("MIDILike")
    sampler.prime(make_seed(scale(4)))
    open_ends = 0
    for random_seed in range(4):
        before = sampler.generate(bars=2, random_seed=random_seed)
        open_ends += len(before.state.grammar.ends)
        made = sampler.generate(bars=12, state=before.state, random_seed=random_seed, **wish)
        assert made.report.bars == 12
        if "programs" in wish:
            assert {note.program for note in made._notes} == {40}
    assert open_ends


@pytest.mark.parametrize("scheme", ["TSD", "Structured", "MIDILike"])
def test_the_first_bar_is_not_passed_where_bars_may_be_silent(scheme: str) -> None:
    """Behind a bar that is completed, in schemes whose time shifts may be longer than a bar."""
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed([*scale(1, (3, 4)), (3, 1, 60, 0)], (3, 4)))
    for random_seed in range(40):
        made = sampler.generate(bars=6, silent_bars=True, random_seed=random_seed)
        check_continuation(sampler, made, bars=6)


@pytest.mark.parametrize("scheme", ["REMI", "TSD", "MIDILike", "PerTok"])
@pytest.mark.parametrize("metre", [(3, 2), (15, 8)])
def test_music_goes_on_behind_music_of_free_metres(scheme: str, metre: tuple[int, int]) -> None:
    """Where no token has the seed's own name of the metre (3/2 is written as 6/4)."""
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(3, metre), metre))
    for random_seed in range(4):
        before = sampler.generate(bars=1, metre_changes=True, random_seed=random_seed)
        made = sampler.generate(bars=2, state=before.state, random_seed=random_seed)
        assert made.report.bars == 2
        line = made._map.join
        assert (
            made._map.end - line
            == 2 * made.score.ticks_per_quarter * 4 * made.report.metre[0] / made.report.metre[1]
        )
