"""Recall: bars are played again from memory, as often and from as far back as is asked; all else stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_helpers import (
    check_continuation,
    decoded_after_join,
    make_seed,
    notes_of,
    quarters,
    scale,
    tiny_sampler,
    tokenizer_of,
)

from melodia.errors import ConfigError
from melodia.sampler import Request, Sampler
from melodia.sampler.classes import TokenClasses
from melodia.sampler.recall import (
    LAGS,
    NOTHING_HEARD,
    SEED_WEIGHT,
    USUAL,
    Memory,
    Recall,
    Recollection,
    recollect,
    share_of,
)
from melodia.sampler.request import MOST_RECALL

CLASSES = TokenClasses(tokenizer_of("REMI").vocabulary)
NOTE = "Velocity_63 Duration_1.0.12"


def ids_of(line: str) -> list[int]:
    index = CLASSES.vocabulary.index
    return [index[name if "_" in name else f"{name}_None"] for name in line.split()]


def names_of(ids: Any) -> str:
    return " ".join(CLASSES.vocabulary.tokens[i].removesuffix("_None") for i in ids)


def bar(number: int, program: str = "", metre: str = "4/4") -> str:
    return f"Bar TimeSig_{metre} Position_0 {program} Pitch_{60 + number} {NOTE}"


def memory_of(*bars: str, pieces: int = 1) -> Memory:
    memory = Memory(CLASSES, pieces)
    memory.read(ids_of(" ".join(bars)))
    return memory


# -- memory ------------------------------------------------------------------------------------------------------------


def test_bars_stand_in_memory_as_they_were_played() -> None:
    memory = memory_of(*map(bar, range(5)))
    assert names_of(memory.again(2, 2, -2)) == " ".join(" ".join((bar(3), bar(4))).split())
    assert names_of(memory.again(4, 1, -2)) == " ".join(bar(1).split())
    assert memory.again(8, 2, -2) == ()
    twin = memory.fork()
    twin.read(ids_of(bar(9)))
    assert names_of(twin.again(2, 2, -2)) == " ".join(" ".join((bar(4), bar(9))).split())
    assert names_of(memory.again(2, 1, -2)) == " ".join(bar(3).split())


def test_memory_is_as_long_as_the_longest_lag() -> None:
    longest = max(LAGS)
    memory = memory_of(*(bar(number % 40) for number in range(2 * longest)))
    assert names_of(memory.again(longest, 1, -2)) == " ".join(bar(longest).split())
    assert memory.again(longest + 4, 1, -2) == ()


def test_programs_are_named_where_another_one_plays_now() -> None:
    memory = memory_of(bar(0, "Program_40"), bar(1), bar(2, "Program_0"), bar(3))
    again = names_of(memory.again(4, 2, 0))
    assert again == " ".join(f"{bar(0, 'Program_40')} {bar(1)}".split())
    assert names_of(memory.again(4, 2, 40)) == " ".join(f"{bar(0)} {bar(1)}".split())
    assert names_of(memory.again(2, 2, 40)) == " ".join(f"{bar(2, 'Program_0')} {bar(3)}".split())


def test_tempi_do_not_come_again_and_silence_and_other_metres_are_none() -> None:
    fast = bar(0).replace("Position_0", "Position_0 Tempo_120.0")
    assert names_of(memory_of(fast, bar(1)).again(2, 1, -2)) == " ".join(bar(0).split())
    alone = bar(0) + " Position_12 Tempo_120.0"
    between = alone + f" Position_24 Pitch_70 {NOTE}"
    assert names_of(memory_of(alone, bar(1)).again(2, 1, -2)) == " ".join(bar(0).split())
    assert names_of(memory_of(between, bar(1)).again(2, 1, -2)) == " ".join(
        between.replace("Position_12 Tempo_120.0 ", "").split()
    )
    assert memory_of("Bar TimeSig_4/4", bar(1)).again(2, 2, -2) == ()
    assert memory_of(bar(0, metre="3/4"), bar(1)).again(2, 2, -2) == ()
    pieces = [bar(k, metre=metre) for k in range(3) for metre in ("12/8", "1/8")]
    found = memory_of(*pieces, pieces=2).again(2, 1, -2)
    assert names_of(found) == " ".join(" ".join(pieces[2:4]).split())


def test_nothing_is_kept_where_bars_are_no_tokens() -> None:
    for scheme in ("TSD", "MIDILike", "Structured"):
        tokenizer = tokenizer_of(scheme)
        memory = Memory(TokenClasses(tokenizer.vocabulary))
        memory.read(tokenizer.encode(make_seed(scale(8))).ids.tolist())
        assert memory.again(2, 2, 0) == ()


def test_the_share_of_a_seed() -> None:
    three = [bar(k) + f" Position_12 Pitch_{70 + k} {NOTE} Pitch_{80 + k} {NOTE}" for k in range(8)]
    few = [bar(k) for k in range(8)]
    assert share_of(CLASSES, ids_of(" ".join(three))) == (0, 4)
    assert share_of(CLASSES, ids_of(" ".join([*three[:4], *three[:3], three[7]]))) == (3, 4)
    assert share_of(CLASSES, ids_of(" ".join([*few[:4], *few[:4]]))) == (0, 0)
    louder = " ".join([*three[:4], *three[:4]]).rsplit("Velocity_63", 9)
    assert share_of(CLASSES, ids_of("Velocity_71".join(louder))) == (4, 4)
    assert share_of(CLASSES, []) == (0, 0)


# -- what is drawn -----------------------------------------------------------------------------------------------------


class Everything(Memory):
    """Music without a beginning, of which every token is its lag."""

    def __init__(self) -> None:
        super().__init__(CLASSES)

    def again(self, lag: int, bars: int, program: int) -> tuple[int, ...]:
        return (lag,) * bars


def drawn(share: float, stretches: int, random_seed: int = 3) -> list[int]:
    recall, lags = Recall(share, random_seed, 0), []
    for _ in range(stretches):
        recall, tokens = recall.next(Everything(), 2, 0)
        assert tokens == (recall.lag,) * 2 or (recall.lag, tokens) == (0, ())
        lags.append(recall.lag)
    return lags


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_as_many_stretches_come_again_as_are_asked(share: float) -> None:
    lags = np.array(drawn(share, 8000))
    assert np.mean(lags > 0) == pytest.approx(share, abs=0.04)
    starts = (lags > 0) & (np.roll(lags, 1) == 0)
    begun = {lag: np.mean(lags[starts] == lag) for lag in LAGS}
    assert begun == {lag: pytest.approx(LAGS[lag].begins / 100, abs=0.06) for lag in LAGS}


def test_none_come_again_unasked_and_a_number_gives_the_same_ones() -> None:
    assert drawn(0.0, 500) == [0] * 500
    assert drawn(0.4, 200, 5) == drawn(0.4, 200, 5) != drawn(0.4, 200, 6)


def test_the_first_stretch_is_no_close_again() -> None:
    first = {drawn(0.5, 1, random_seed)[0] for random_seed in range(300)}
    assert first == {0, *LAGS} - {min(LAGS)}


def seen(again: int, counted: int) -> Recollection:
    return replace(NOTHING_HEARD, seen=(again, counted))


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_seed_shifts_the_share(again: int, other: int) -> None:
    """Of the usual one; who asks for more always gets more, for none, none, and for the most, the most."""
    shares = [Recall.of(recall, seen(again, again + other), 0, 0).share for recall in np.linspace(0, 0.9, 10)]
    own = again / (again + other) if again + other else USUAL
    assert min(own, USUAL) - 1e-9 <= shares[3] <= max(own, USUAL) + 1e-9
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert MOST_RECALL <= shares[9] < 1
    assert shares[9] == MOST_RECALL or shares[9] == shares[3] < own
    half = Recall.of(USUAL, seen(SEED_WEIGHT, SEED_WEIGHT), 0, 0).share
    assert half == pytest.approx((1 + USUAL) / 2)


def test_without_a_seed_the_share_is_the_asked_one() -> None:
    for recall in (0.1, 0.3, 0.5, 0.9):
        assert Recall.of(recall, NOTHING_HEARD, 0, 0).share == pytest.approx(recall)


# -- whole continuations -----------------------------------------------------------------------------------------------


def by_bar(notes: list[Any], metre: tuple[int, int], first: float = 0.0) -> list[list[Any]]:
    """(program, onset in the bar, pitch) of the notes of each bar."""
    length = quarters(metre)
    found: dict[int, list[Any]] = {}
    for program, onset, pitch, _, _ in notes:
        number = int((onset - first + 1e-6) // length)
        found.setdefault(number, []).append((program, round(onset - first - number * length, 4), pitch))
    return [sorted(found.get(number, [])) for number in range(max(found) + 1)]


@pytest.mark.parametrize("metre", [(4, 4), (3, 4), (6, 8), (15, 8)])
@pytest.mark.parametrize(("branches", "bars"), [(1, 16), (3, 15)])
def test_bars_come_again(metre: tuple[int, int], branches: int, bars: int) -> None:
    """As often as the report says, and whole; the rest is new."""
    sampler = tiny_sampler()
    seed = make_seed(scale(12, metre) + [(k * quarters(metre), 1, 40 + k, 33) for k in range(12)], metre)
    sampler.prime(seed)
    recalled = 0
    for random_seed in range(6):
        made = sampler.generate(bars=bars, random_seed=random_seed, branches=branches, recall=0.9)
        check_continuation(sampler, made, bars=bars)
        assert decoded_after_join(sampler, made) == notes_of(made.score)
        before = by_bar(notes_of(sampler.tokenizer.decode(sampler.tokenizer.encode(seed).ids)), metre)
        heard = before + by_bar(notes_of(made.score), metre)
        same = sum(heard[k] in heard[:k] for k in range(len(before), len(heard)))
        assert same >= made.report.recalled
        recalled += made.report.recalled
        told = [line for line in made.report.lines() if line.startswith("repeated from memory: ")]
        assert len(told) == (made.report.recalled > 0)
    assert recalled > 12


def test_where_it_does_not_work_the_report_says_so() -> None:
    sampler = tiny_sampler("TSD")
    sampler.prime(make_seed(scale(4)))
    for recall, told in ((0.0, []), (0.5, ["note: no bar can repeat: this model has no bar tokens"])):
        made = sampler.generate(bars=4, random_seed=1, recall=recall)
        assert [str(finding) for finding in made.report.findings] == told


def test_without_recall_nothing_comes_again() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(12)))
    made = sampler.generate(bars=16, random_seed=1, branches=2)
    assert made.report.recalled == 0
    assert not any("again" in line for line in made.report.lines())


def test_a_seed_that_stops_inside_a_bar_is_completed_first() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(12)[:-3]))
    for random_seed in range(8):
        made = sampler.generate(bars=8, random_seed=random_seed, recall=0.5)
        check_continuation(sampler, made, bars=8)
        assert made.report.completed


def test_a_seed_is_read_once_for_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(12)))
    read: list[int] = []
    monkeypatch.setattr(
        "melodia.sampler.sampler.recollect",
        lambda classes, tokens, pieces: read.append(len(tokens)) or recollect(classes, tokens, pieces),
    )
    sampler.generate_many(3, bars=2, random_seed=1, recall=0.5)
    assert len(read) == 1


def test_music_from_nothing_remembers_itself() -> None:
    sampler = tiny_sampler()
    sampler.prime(None)
    made = [sampler.generate(bars=24, metre=(4, 4), random_seed=k, recall=0.5) for k in range(4)]
    assert sum(each.report.recalled for each in made) > 4
    for each in made:
        check_continuation(sampler, each, bars=24)


def test_what_may_not_come_does_not() -> None:
    """The seed's bars lie outside the range that is asked for: something else comes there."""
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(12)))
    for random_seed in range(4):
        made = sampler.generate(bars=12, random_seed=random_seed, recall=0.5, pitch_range=(80, 90))
        assert {note[2] for note in notes_of(made.score)} <= set(range(80, 91))
        assert made.report.bars == 12


def test_only_programs_that_may_play_come_again() -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(12) + scale(12, program=40)))
    made = sampler.generate(bars=12, random_seed=2, recall=0.5, programs=(40,))
    assert {note[0] for note in notes_of(made.score)} == {40}


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.slow), "auto"])
def test_the_same_in_one_or_many_and_from_a_saved_session(backend: str, tmp_path: Any) -> None:
    plain = tiny_sampler()
    sampler = Sampler(plain.model, plain.tokenizer, backend=backend)
    sampler.prime(make_seed(scale(12)))
    many = sampler.generate_many(3, bars=12, random_seed=5, branches=2, recall=0.5)
    for k, each in enumerate(many):
        alone = sampler.generate(bars=12, random_seed=5, session=k, branches=2, recall=0.5)
        assert alone.tokens.tolist() == each.tokens.tolist()
    assert len({tuple(each.tokens.tolist()) for each in many}) == 3
    further = many[0].state
    on = sampler.generate(bars=8, random_seed=6, recall=0.5, state=further)
    further.save(tmp_path / "session")
    sampler.load_state(tmp_path / "session")
    assert sampler.generate(bars=8, random_seed=6, recall=0.5).tokens.tolist() == on.tokens.tolist()


@settings(max_examples=15, deadline=None)
@given(random_seed=st.integers(0, 2**32), bars=st.integers(1, 9), seconds=st.booleans())
def test_any_length_is_kept(random_seed: int, bars: int, seconds: bool) -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(9) + scale(9, program=-1)))
    length: dict[str, Any] = {"seconds": bars * 2.5} if seconds else {"bars": bars}
    made = sampler.generate(random_seed=random_seed, recall=0.5, **length)
    check_continuation(sampler, made, bars=bars)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"recall": 0.95}, "`recall` must be between 0 and 0.9"),
        ({"recall": -0.1}, "`recall` must be between 0 and 0.9"),
        ({"recall": "often"}, "`recall` must be a number"),
    ],
)
def test_limits(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason.replace("(", r"\(")):
        Request(**asked)
