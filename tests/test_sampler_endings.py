"""Endings: the last bars are played several times from one place, and what closes best is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampler_helpers import check_continuation, decoded_after_join, make_seed, notes_of, scale, tiny_sampler

from melodia import engine
from melodia.errors import ConfigError
from melodia.grammar import NoteEvent
from melodia.sampler import Continuation, Request, Sampler
from melodia.sampler.endings import best_ending, branches, closure, key_of
from melodia.sampler.loop import Loop

BAR = 48  # grid ticks of a bar of 4/4
TRIAD = [(bar * 4 + beat, 1, pitch, 0) for bar in range(4) for beat, pitch in enumerate((48, 55, 64, 72))]
SEED = make_seed(TRIAD)


def close_of(made: Continuation) -> float:
    quarter = made._map.ticks_per_quarter
    return closure(made._notes, quarter, key_of(made.seed, made._notes), made.nll.tolist())


def first_difference(one: Continuation, other: Continuation) -> int:
    """Index of the first token that differs."""
    length = min(len(one.tokens), len(other.tokens))
    different = np.flatnonzero(one.tokens[:length] != other.tokens[:length])
    return int(different[0]) if different.size else length


@pytest.mark.parametrize("scheme", ["REMI", "TSD", "Structured", "MIDILike", "PerTok"])
def test_only_the_last_bars_differ(scheme: str) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(SEED)
    changed = 0
    for random_seed in range(6):
        plain = sampler.generate(bars=6, random_seed=random_seed)
        chosen = sampler.generate(bars=6, random_seed=random_seed, endings=6)
        check_continuation(sampler, chosen, bars=6)
        assert decoded_after_join(sampler, chosen) == notes_of(chosen.score)
        assert close_of(chosen) >= close_of(plain), "the first branch is what comes without endings"
        assert chosen.report.random_seed == random_seed
        before = [
            [note for note in made._notes if note.onset + note.duration < 4 * BAR] for made in (plain, chosen)
        ]
        assert before[0] == before[1]
        changed += first_difference(plain, chosen) < len(plain.tokens)
    assert changed >= 3, "six random endings, and the first is the best of them every time?"


@pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")
@pytest.mark.parametrize("scheme", ["REMI", "TSD"])
def test_bursts_tokens_and_the_reference_agree(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = tiny_sampler(scheme)
    settings: dict[str, Any] = {"bars": 5, "endings": 4, "pitch_bias": 0.5, "random_seed": 3}
    sampler.prime(SEED)
    made = [sampler.generate_many(3, **settings)]
    reference = Sampler(sampler.model, sampler.tokenizer, backend="reference")
    reference.prime(SEED)
    made.append(reference.generate_many(3, **settings))
    made.append([sampler.generate(session=session, **settings) for session in range(3)])
    monkeypatch.setattr("melodia.sampler.sampler.Loop", lambda *them: Loop(*them, bursts=False))
    made.append(sampler.generate_many(3, **settings))
    for others in made[1:]:
        assert [one.tokens.tolist() for one in others] == [one.tokens.tolist() for one in made[0]]


@pytest.mark.parametrize("length", [{"bars": 1}, {"bars": 2}, {"seconds": 9.0}, {"tokens": 90}])
def test_every_length(length: dict[str, Any]) -> None:
    """One bar is an ending as a whole; of a length in tokens the end is known too late, and it stays as it is."""
    sampler = tiny_sampler()
    sampler.prime(SEED)
    plain, chosen = (
        [sampler.generate(random_seed=seed, endings=endings, **length) for seed in range(6)]
        for endings in (1, 8)
    )
    assert [made.report.bars for made in chosen] == [made.report.bars for made in plain]
    changed = [a.tokens.tolist() != b.tokens.tolist() for a, b in zip(plain, chosen, strict=True)]
    assert any(changed) == ("tokens" not in length)


@pytest.mark.parametrize("metre", [(3, 4), (7, 8), (5, 4)])
def test_metres_and_unfinished_bars(metre: tuple[int, int]) -> None:
    """A bar of a metre that no token has is written as several; a bar that is completed is not counted."""
    sampler = tiny_sampler()
    notes = [note for note in scale(4, metre) if note[0] < 4 * 4 * metre[0] / metre[1] - 1.5]
    sampler.prime(make_seed(notes, metre))
    made = sampler.generate(bars=4, random_seed=2, endings=5)
    check_continuation(sampler, made, bars=4)


def test_the_state_behind_is_that_of_the_ending_that_was_kept() -> None:
    sampler = tiny_sampler(sides=())  # which tell the generation how many bars are left
    sampler.prime(SEED)
    made = sampler.generate(bars=4, random_seed=1, endings=8)
    ids = np.concatenate([sampler.tokenizer.encode(SEED).ids, made.tokens])
    again = tiny_sampler(sides=())
    again.prime(ids)
    np.testing.assert_allclose(made.state.logits, again.state.logits, atol=2e-5)
    more = sampler.generate(state=made.state, bars=2, random_seed=1)
    assert more.report.bars == 2


def test_branches_are_independent_of_each_other_and_of_their_root() -> None:
    sampler = tiny_sampler()
    sampler.prime(SEED)
    lane = sampler._lane(sampler.state, Request(bars=4, random_seed=7, endings=3))
    sampler._run([lane])
    assert not lane.ended
    assert lane.plan._bar == 4 + 1, "two of four new bars are to come"
    before = list(lane.tokens), list(lane.notes), lane.session.grammar.copy().to_array().tolist()
    tries = branches(lane)
    sampler._run(tries)
    assert (lane.tokens, lane.notes, lane.session.grammar.to_array().tolist()) == before
    assert len({tuple(branch.tokens) for branch in tries}) == 3
    assert all(branch.ended == "length" for branch in tries)
    alone = branches(lane)[2]
    sampler._run([alone])
    assert alone.tokens == tries[2].tokens
    assert best_ending(tries) in tries


def test_closure_by_hand() -> None:
    """Twelve ticks a quarter; before the last chord eight quarter notes, so that their mean is known."""

    def played(*pitches: int, length: int = 48, program: int = 0) -> list[NoteEvent]:
        before = [NoteEvent(12 * k, 12, 0, 60, 80) for k in range(8)]
        return [*before, *(NoteEvent(96, length, program, pitch, 80) for pitch in pitches)]

    def score(notes: list[NoteEvent], key: int = 0) -> float:
        return closure(notes, 12, key, [0.0])

    assert score(played(48, 64, 72)) == 1 + 1 + 0.5 + 1  # length, bass, top, triad
    assert score(played(48, 65, 72)) == 1 + 1 + 0.5 + 1 / 2  # C twice and F, which is not of the triad
    assert score(played(43, 60, 67)) == 1 + 0 + 0 + 1  # on the fifth
    assert score(played(45, 60, 72), key=12 + 9) == 1 + 1 + 0.5 + 1  # A minor, its third on top
    assert score(played(45, 64, 73), key=12 + 9) == pytest.approx(1 + 1 + 0 + 2 / 3)  # not its major third
    mean = (8 * 12 + 12) / 9
    assert score(played(60, length=12)) == pytest.approx(12 / (2 * mean) + 1 + 1 + 0.5)
    assert score(played(60, length=6)) == pytest.approx(1 + 1 + 0.5)  # shorter than a quarter
    drums = played(36, program=-1)
    assert score(drums) == score([note for note in drums if note.program == 0]), "drums do not count"
    assert closure(played(48), 12, -1, [1.0, 3.0]) == 1 - 0.5 * 2
    assert closure([], 12, 0, []) == 0


def test_the_key_is_the_seeds_or_that_of_the_music() -> None:
    assert key_of(SEED, []) == 0
    new = [NoteEvent(0, 12, 0, pitch, 80) for pitch in (57, 60, 64, 69, 71, 68)]
    assert key_of(None, new) == 12 + 9
    assert key_of(make_seed([(0, 1, 38, -1)]), new) == 12 + 9, "a seed of drums has no key"
    assert key_of(None, []) == -1


def test_what_cannot_be() -> None:
    for endings in (0, 65, True, 2.0):
        with pytest.raises(ConfigError, match=r"`endings` must be a whole number within 1 and 64"):
            Request(endings=endings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`may_end` leaves it open"):
        Request(endings=2, may_end=True)
    with pytest.raises(ConfigError, match="a stream cannot take back what was heard"):
        tiny_sampler().stream(bars=4, endings=2)
