"""The filters and the choice, against Hugging Face transformers' logits processors and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from melodia.decode import Opinion, SamplingConfig, apply_filters, choose, filters, gumbel
from melodia.errors import ConfigError, GrammarError, MelodiaError

torch = pytest.importorskip("torch")
hf: Any = pytest.importorskip("transformers.generation.logits_process")

V = 97
INF = float("inf")


def draw_logits(case: int, size: int = V) -> np.ndarray:
    rng = np.random.default_rng(case)
    return (rng.standard_normal(size) * rng.uniform(0.3, 6)).astype(np.float32)


def oracle(logits: np.ndarray, *processors: Any, recent: tuple[int, ...] = ()) -> np.ndarray:
    ids = torch.tensor([list(recent)], dtype=torch.int64)
    scores = torch.from_numpy(logits.copy())[None]
    return hf.LogitsProcessorList(processors)(ids, scores)[0].numpy()


def vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize("case", range(8))
def test_each_filter_equals_its_oracle(case: int) -> None:
    logits = draw_logits(case)
    rng = np.random.default_rng(100 + case)
    recent = tuple(rng.integers(0, V, 20).tolist())
    for value in (0.5, 0.93, 1.7):
        expected = oracle(logits, hf.TemperatureLogitsWarper(value))
        np.testing.assert_array_equal(filters.temperature(logits, value), expected)
    for value in (1.1, 1.5):
        expected = oracle(logits, hf.RepetitionPenaltyLogitsProcessor(value), recent=recent)
        np.testing.assert_array_equal(filters.repetition_penalty(logits, recent, value), expected)
    for k in (1, 5, V, 10 * V):
        np.testing.assert_array_equal(filters.top_k(logits, k), oracle(logits, hf.TopKLogitsWarper(k)))
    for p in (0.01, 0.5, 0.9, 0.99, 1.0):
        np.testing.assert_array_equal(filters.top_p(logits, p), oracle(logits, hf.TopPLogitsWarper(p)))
        np.testing.assert_array_equal(filters.min_p(logits, p), oracle(logits, hf.MinPLogitsWarper(p)))


@pytest.mark.parametrize("case", range(40))
def test_all_filters_in_order_equal_the_oracles_list(case: int) -> None:
    rng = np.random.default_rng(case)
    logits, legal = draw_logits(case), rng.random(V) < 0.6
    recent = tuple(rng.integers(0, V, 12).tolist())
    config = SamplingConfig(
        temperature=float(rng.uniform(0.4, 2)),
        top_k=int(rng.integers(1, V)),
        top_p=float(rng.uniform(0.1, 1)),
        min_p=float(rng.uniform(0.001, 0.3)),
        repetition_penalty=float(rng.uniform(1.01, 2)),
    )
    expected = oracle(
        np.where(legal, logits, np.float32(-INF)),
        hf.RepetitionPenaltyLogitsProcessor(config.repetition_penalty),
        hf.TemperatureLogitsWarper(config.temperature),
        hf.TopKLogitsWarper(config.top_k),
        hf.TopPLogitsWarper(config.top_p),
        hf.MinPLogitsWarper(config.min_p),
        recent=recent,
    )
    np.testing.assert_array_equal(apply_filters(logits, legal, recent, config), expected)


def test_ties_at_the_kth_value_go_to_the_lowest_id_where_the_oracle_keeps_all() -> None:
    logits = vector(1, 3, 2, 2, 2, 0)
    np.testing.assert_array_equal(filters.top_k(logits, 2), vector(-INF, 3, 2, -INF, -INF, -INF))
    np.testing.assert_array_equal(oracle(logits, hf.TopKLogitsWarper(2)), vector(-INF, 3, 2, 2, 2, -INF))
    # With the boundary between ties and the next value, the two agree.
    np.testing.assert_array_equal(filters.top_k(logits, 4), oracle(logits, hf.TopKLogitsWarper(4)))


def test_ties_in_top_p_keep_the_lowest_ids() -> None:
    equal = vector(0, 0, 0, 0)  # a quarter each: 0.5 needs exactly two
    np.testing.assert_array_equal(filters.top_p(equal, 0.5), vector(0, 0, -INF, -INF))
    np.testing.assert_array_equal(filters.top_p(equal, 0.5000001), vector(0, 0, 0, -INF))
    np.testing.assert_array_equal(filters.top_p(equal, 1e-9), vector(0, -INF, -INF, -INF))


def test_top_p_by_hand() -> None:
    logits = np.log(vector(0.1, 0.5, 0.15, 0.25))
    kept = [
        set(np.flatnonzero(np.isfinite(filters.top_p(logits, p))).tolist()) for p in (0.4, 0.6, 0.8, 0.95)
    ]
    assert kept == [{1}, {1, 3}, {1, 2, 3}, {0, 1, 2, 3}]


def test_top_p_leaves_removed_tokens_removed() -> None:
    logits = vector(-INF, 1, -INF, 0)
    np.testing.assert_array_equal(filters.top_p(logits, 1.0), logits)
    np.testing.assert_array_equal(filters.top_p(logits, 0.9999), logits)


def test_min_p_by_hand() -> None:
    logits = np.log(vector(0.6, 0.3, 0.09, 0.01))
    np.testing.assert_array_equal(np.isfinite(filters.min_p(logits, 0.1)), [True, True, True, False])
    np.testing.assert_array_equal(np.isfinite(filters.min_p(logits, 1.0)), [True, False, False, False])


def test_sums_of_the_mass_are_exact_in_any_order() -> None:
    logits = draw_logits(1, 60_000)
    weights = np.rint(np.exp(logits.astype(np.float64) - float(logits.max())) * filters.MASS_UNIT)
    shuffled = np.random.default_rng(0).permutation(weights)
    assert np.cumsum(weights)[-1] == np.cumsum(shuffled)[-1] == sum(int(w) for w in weights)


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0])
def test_pooling_equals_the_product_of_the_distributions(exponent: float) -> None:
    """p^e exp(row) among the legal members, whose mass is kept before the row counts."""
    rng = np.random.default_rng(4)
    logits = rng.normal(size=40).astype(np.float32) * 3
    logits[5] = -np.inf
    members = rng.random(40) < 0.5
    members[5] = True
    row = rng.normal(size=40).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    flat = np.where(members & (p > 0), p**exponent, 0)
    expected = np.where(members, flat * p[members].sum() / flat.sum() * np.exp(row.astype(np.float64)), p)
    with np.errstate(divide="ignore"):
        assert filters.pool(logits, Opinion(row, members, exponent)) == pytest.approx(
            np.log(expected), abs=2e-5
        )
    nobody = Opinion(row, np.zeros(40, np.bool_), exponent)
    assert (filters.pool(logits, nobody) == logits).all()
    logits[members] = np.inf
    assert (filters.pool(logits, Opinion(row, members, exponent)) == logits).all()


def test_the_choice_follows_softmax_of_the_filtered_logits() -> None:
    logits = np.log(vector(0.4, 0.3, 0.2, 0.1))
    config = SamplingConfig(temperature=0.7, top_k=3)
    draws = 20_000
    noise = gumbel(5, 1, 0, 4, count=draws)
    tokens = [choose(logits, None, (), config, row).token for row in noise]
    expected = np.array([0.4, 0.3, 0.2, 0.0]) ** (1 / 0.7)
    expected[3] = 0
    expected *= draws / expected.sum()
    counts = np.bincount(tokens, minlength=4)
    assert counts[3] == 0
    assert ((counts[:3] - expected[:3]) ** 2 / expected[:3]).sum() < 18.4  # chi-square, 2 degrees: p = 0.0001


def test_greedy_takes_the_lowest_of_equal_ids_and_honours_mask_and_penalty() -> None:
    logits, greedy = vector(1, 5, 5, 4.9), SamplingConfig(greedy=True)
    assert choose(logits, None, (), greedy, None).token == 1
    assert choose(logits, np.array([True, False, False, True]), (), greedy, None).token == 3
    penalised = SamplingConfig(greedy=True, repetition_penalty=1.5)
    assert choose(logits, None, (1, 2, 1), penalised, None).token == 3


def test_equal_scores_go_to_the_lowest_id_and_sampling_needs_noise() -> None:
    assert choose(vector(2, 2, 2), None, (), SamplingConfig(), np.array([0.0, 1.0, 1.0])).token == 1
    with pytest.raises(ConfigError, match="needs noise"):
        choose(vector(2, 2, 2), None, (), SamplingConfig(), None)


def test_nll_is_the_models_and_entropy_the_filtered() -> None:
    logits = np.log(vector(0.5, 0.25, 0.125, 0.125))
    choice = choose(logits, None, (), SamplingConfig(top_k=2), gumbel(1, 0, 0, 4)[0])
    assert choice.nll == pytest.approx(-np.log([0.5, 0.25][choice.token]), abs=1e-6)
    assert choice.entropy == pytest.approx(-(2 / 3) * np.log(2 / 3) - (1 / 3) * np.log(1 / 3), abs=1e-6)
    only = np.array([False, False, True, False])
    masked = choose(logits, only, (), SamplingConfig(), gumbel(1, 0, 0, 4)[0])
    assert (masked.token, masked.entropy) == (2, 0.0)
    assert masked.nll == pytest.approx(np.log(8), abs=1e-6)


def test_damaged_logits_and_empty_masks_are_errors() -> None:
    with pytest.raises(MelodiaError, match="not numbers"):
        apply_filters(vector(1, float("nan")), None, (), SamplingConfig())
    with pytest.raises(GrammarError, match="no token is allowed"):
        apply_filters(vector(1, 2), np.zeros(2, dtype=bool), (), SamplingConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, r"`temperature` must be > 0 \(received 0.0\); `top_k` 1 takes the likeliest"),
        ({"temperature": -1}, r"received -1"),
        ({"temperature": float("nan")}, "finite"),
        ({"temperature": "hot"}, "must be a number"),
        ({"top_k": 0}, r"`top_k` must be a whole number between 1 and \d+ \(received 0\); leave it out"),
        ({"top_k": 2.5}, "whole number"),
        ({"top_p": 0.0}, r"`top_p` must be above 0 and at most 1 \(received 0.0\)"),
        ({"top_p": 1.5}, "received 1.5"),
        ({"min_p": -0.1}, "`min_p`"),
        ({"repetition_penalty": 0.5}, "between 1 and 100"),
        ({"repetition_window": 0}, "`repetition_window`"),
        ({"greedy": True, "top_k": 3}, "`top_k` has no effect"),
    ],
)
def test_settings_outside_their_limits_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**settings)
