"""Random seeds in every scheme, metre and resolution: what every continuation fulfils, and the tokenizer as oracle."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sampler_helpers import check_continuation, decoded_after_join, make_seed, notes_of, tiny_sampler

from melodia.errors import ConfigError
from melodia.sampler import Event

SCHEMES = ("REMI", "TSD", "MIDILike", "Structured", "PerTok")
METRES = (
    (4, 4),
    (3, 4),
    (6, 8),
    (2, 4),
    (5, 8),
    (7, 8),
    (12, 8),
    (2, 2),
    (13, 8),
    (5, 4),
    (9, 16),
    (15, 16),
    (1, 4),
)


def random_notes(rng: random.Random, length: float) -> list[tuple[float, float, int, int]]:
    """Notes on and off the grid, none of which overlaps another of its pitch."""
    drawn = []
    for _ in range(rng.randint(1, 25)):
        onset = rng.random() * length if rng.random() < 0.4 else rng.randrange(max(1, int(length * 4))) / 4
        span = rng.choice([0.1, 0.25, 0.5, 1, 1.5, 2, 4, 9])
        drawn.append((onset, span, rng.randint(40, 80), rng.choice([0, 0, 33, -1])))
    kept: list[tuple[float, float, int, int]] = []
    for onset, span, pitch, program in sorted(drawn):
        if all((p, g) != (pitch, program) or onset >= o + d + 0.05 for o, d, p, g in kept):
            kept.append((onset, span, pitch, program))
    return kept


def rounded(notes: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [tuple(round(value, 4) for value in note) for note in notes]


def key(event: Event) -> tuple[float, int, int]:
    return event.onset_beats, event.program, event.pitch


def check_random_seeds(scheme: str, cases: range) -> None:
    sampler = tiny_sampler(scheme)
    for case in cases:
        rng = random.Random(case)
        metre, tpq = rng.choice(METRES), rng.choice([96, 120, 384, 480, 1000])
        if scheme == "MIDILike" and metre in ((13, 8), (15, 16)):
            continue  # written in pieces, whose metre MIDILike can only say behind a time shift
        length = rng.randint(1, 5) * 4 * metre[0] / metre[1]
        seed = make_seed(random_notes(rng, length), metre, rng.choice([60, 97.3, 180]), tpq)
        cut: dict[str, Any] = rng.choice(
            [{}, {}, {"seed_bars": rng.randint(1, 4)}, {"seed_seconds": rng.uniform(0.1, 6)}]
        )
        bars = rng.randint(1, 4)
        try:
            sampler.prime(seed, **cut)
        except ConfigError as error:
            assert "no note" in str(error)  # noqa: PT017  # some beginnings are empty
            continue
        made = sampler.generate(bars=bars, random_seed=case)
        try:
            check_continuation(sampler, made, bars=bars)
            if scheme != "PerTok":  # whose notes may begin a hair before the place of their token
                assert rounded(notes_of(made.score)) == rounded(decoded_after_join(sampler, made))
            heard = sampler.stream(bars=bars, random_seed=case)
            assert sorted(heard, key=key) == sorted(made.events, key=key)
        except AssertionError as error:
            raise AssertionError(
                f"{scheme}, case {case}: {metre}, {tpq} ticks, {cut}, {bars} bars"
            ) from error


@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_seeds(scheme: str) -> None:
    check_random_seeds(scheme, range(12))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_many_random_seeds(scheme: str) -> None:
    check_random_seeds(scheme, range(100, 300))
