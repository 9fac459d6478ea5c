"""The compiled choice of a token against `melodia.decode.choose`: the same token, always."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from melodia import engine
from melodia.decode import Noise, Opinion, SamplingConfig, choose
from melodia.decode.filters import MASS_UNIT, candidates
from melodia.errors import GrammarError, MelodiaError

pytestmark = pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")

SIZES = [1, 2, 5, 63, 64, 65, 300, 701]


def random_logits(generator: np.random.Generator) -> np.ndarray:
    """Logits of many shapes: nearly even, peaked, tied, far apart, with holes."""
    V = int(generator.choice(SIZES))
    logits = (generator.normal(size=V) * generator.choice([1e-6, 0.1, 1, 3, 30, 1e4])).astype(np.float32)
    shape = generator.integers(6)
    if shape == 0:
        logits = np.round(logits)
    elif shape == 1:
        logits[:] = logits[0]
    elif shape == 2:
        logits[generator.random(V) < 0.3] = -np.inf
        logits[generator.integers(V)] = 0
    return logits


def random_config(generator: np.random.Generator) -> SamplingConfig:
    penalty = float(generator.choice([1.0, 1.2, 2.0]))
    if generator.random() < 0.1:
        return SamplingConfig(greedy=True, repetition_penalty=penalty)
    return SamplingConfig(
        temperature=float(generator.choice([1.0, 0.7, 0.9, 1.3])),
        top_k=[None, None, 1, 5, 40][generator.integers(5)],
        top_p=[None, 1e-9, 0.5, 0.9, 0.95, 1 - 1e-12, 1.0, float(generator.uniform(0.01, 1))][
            generator.integers(8)
        ],
        min_p=[None, None, 0.05, 0.3, 1.0][generator.integers(5)],  # 1: all that share the first place
        repetition_penalty=penalty,
    )


def compare(
    logits: np.ndarray,
    legal: np.ndarray | None,
    recent: list[int],
    config: SamplingConfig,
    seed: int,
    at: int,
    opinion: Opinion | None = None,
) -> None:
    noise = None if config.greedy else Noise(seed, 3, len(logits)).at(at)
    expected = choose(logits, legal, recent, config, noise, opinion)
    got = engine.choose(
        logits, legal, recent, config, random_seed=seed, session=3, position=at, opinion=opinion
    )
    assert got.token == expected.token, (logits.tolist(), legal, recent, config, seed, at)
    assert got.nll == pytest.approx(expected.nll, abs=1e-9, rel=1e-12)
    tolerance = 1e-9
    if opinion is not None:  # two logarithms may round a float differently
        sizes = np.abs(logits[np.isfinite(logits)]), np.abs(opinion.row)
        tolerance += 1e-6 * float(sum(size.max() for size in sizes))
    assert got.entropy == pytest.approx(expected.entropy, abs=tolerance)


def compare_random(count: int, random_seed: int) -> None:
    generator = np.random.default_rng(random_seed)
    for at in range(count):
        logits = random_logits(generator)
        V = len(logits)
        legal = None
        if at % 4:
            legal = generator.random(V) < generator.choice([0.1, 0.33, 0.9])
            legal[np.argmax(logits)] = True
        recent = generator.integers(0, V, size=generator.integers(0, 20)).tolist()
        compare(
            logits,
            legal,
            recent,
            random_config(generator),
            int(generator.integers(2**63)),
            at,
            random_opinion(generator, V) if at % 3 == 0 else None,
        )


def random_opinion(generator: np.random.Generator, V: int) -> Opinion:
    row = (generator.normal(size=V) * generator.choice([0, 1, 20])).astype(np.float32)
    members = generator.random(V) < generator.choice([0.0, 0.2, 1.0])
    return Opinion(row, members, float(generator.choice([0.0, 0.3, 0.7, 1.0])))


def test_choice_is_that_of_decode() -> None:
    compare_random(3000, 0)


@pytest.mark.slow
def test_choice_is_that_of_decode_in_many_cases() -> None:
    compare_random(250_000, 1)


def test_top_p_at_its_very_edge() -> None:
    """Where p times the whole mass is a sum of masses, or next to one: a bound that is too loose shows here."""
    generator = np.random.default_rng(5)
    for at in range(400):
        logits = (generator.normal(size=40) * 2).astype(np.float32)
        if at % 2:
            logits = np.round(logits)
        kept = logits[candidates(logits)].astype(np.float64)
        masses = np.rint(np.exp(kept - kept[0]) * MASS_UNIT)
        edge = float(masses[: generator.integers(1, 40)].sum() / masses.sum())
        for p in (edge, np.nextafter(edge, 0), np.nextafter(edge, 1), edge + 1e-12):
            if 0 < p < 1:
                compare(logits, None, [], SamplingConfig(top_p=float(p)), at, at)


def test_a_chooser_of_several_vocabularies() -> None:
    generator = np.random.default_rng(6)
    for V in (9, 2000, 3, 130_000, 17):  # its memory is kept from call to call
        logits = generator.normal(size=V).astype(np.float32)
        config = SamplingConfig(temperature=0.9, top_p=0.95, repetition_penalty=1.5)
        compare(logits, None, [0, V - 1], config, 7, V)


def test_choice_from_nothing() -> None:
    place: dict[str, Any] = {"random_seed": 1, "session": 0, "position": 0}
    with pytest.raises(GrammarError, match="no token is allowed"):
        engine.choose(np.zeros(3, np.float32), np.zeros(3, bool), [], SamplingConfig(), **place)
    with pytest.raises(MelodiaError, match="nan"):
        engine.choose(np.full(3, np.nan, np.float32), None, [], SamplingConfig(), **place)
    with pytest.raises(MelodiaError, match="nan"):
        engine.choose(np.array([0, np.inf, np.inf], np.float32), None, [], SamplingConfig(top_p=0.5), **place)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinite numbers
@pytest.mark.parametrize(
    ("logits", "filters"),
    [([0, np.inf], {"top_p": 0.5, "min_p": 0.1}), ([-3e38, -3e38], {"temperature": 0.5, "top_p": 0.5})],
)
def test_infinite_logits_leave_nothing(logits: list[float], filters: dict[str, float]) -> None:
    row, config = np.array(logits, np.float32), SamplingConfig(**filters)
    with pytest.raises(MelodiaError, match="nan"):
        engine.choose(row, None, [], config, random_seed=1, session=0, position=0)
    with pytest.raises(MelodiaError, match="nan"):
        choose(row, None, (), config, np.zeros(2))
