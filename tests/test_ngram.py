"""The n-gram model against hand-computed values and an independent, slow implementation over dicts of tuples."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict

import numpy as np
import pytest

from melodia.errors import ConfigError
from melodia.evaluation.ngram import FALLBACK_DISCOUNTS, KneserNey, modified_discounts
from melodia.measure import Likelihood, bare, student, velocity_mask, widening
from melodia.vocabulary import Vocabulary

TOKENS = (
    "PAD_None",
    "BOS_None",
    "EOS_None",
    "Pitch_60",
    "Pitch_61",
    "Velocity_64",
    "Velocity_80",
    "Bar_None",
)
VOCABULARY = Vocabulary("REMI", TOKENS, {}, 12)
BOS, EOS = VOCABULARY.bos, VOCABULARY.eos


class SlowKneserNey:
    """Chen & Goodman 1998 written over tuples, straight from the definitions; for tests only."""

    def __init__(self, pieces, skip, n, size):
        self.n, self.uniform = n, 1.0 / (size - 2)
        occurrences = Counter()
        neighbours = defaultdict(set)
        for piece, left_out in zip(pieces, skip, strict=True):
            line = (BOS, *piece, EOS)
            for i in range(1, len(line)):
                if i in left_out:
                    continue
                for k in range(1, n + 1):
                    if i - k + 1 < 0:
                        continue
                    gram = line[i - k + 1 : i + 1]
                    occurrences[gram] += 1
                    if i - k >= 0:
                        neighbours[gram].add(line[i - k])
        self.counts = {}
        for gram, occurred in occurrences.items():
            raw = len(gram) == n or gram[0] == BOS
            self.counts[gram] = occurred if raw else len(neighbours[gram])
        self.discounts = {}
        for k in range(1, n + 1):
            values = np.array([c for g, c in self.counts.items() if len(g) == k])
            self.discounts[k] = modified_discounts(values)
        self.after = defaultdict(list)
        for gram, count in self.counts.items():
            self.after[gram[:-1]].append(count)

    def discount(self, k, count):
        return 0.0 if count == 0 else self.discounts[k][min(count, 3) - 1]

    def p(self, word, context):
        k = len(context) + 1
        lower = self.uniform if k == 1 else self.p(word, context[1:])
        after = self.after.get(context, [])
        if not after:
            return lower
        count = self.counts.get((*context, word), 0)
        total = sum(after)
        gamma = sum(self.discount(k, c) for c in after) / total
        return (count - self.discount(k, count)) / total + gamma * lower

    def nll(self, piece, left_out=()):
        line = (BOS, *piece, EOS)
        return [
            -math.log(self.p(line[i], line[max(0, i - self.n + 1) : i]))
            for i in range(1, len(line))
            if i not in left_out
        ]


def random_pieces(rng, count, longest=60):
    """Pieces of a skewed random walk over the music tokens, so that counts of counts are rich."""
    pieces = []
    for _ in range(count):
        length = int(rng.integers(0, longest))
        pieces.append([int(3 + (rng.random() ** 2.5) * 5) for _ in range(length)])
    return pieces


def test_hand_computed_bigrams():
    """BOS a b a b EOS; BOS a b b EOS. Every count of counts has a hole, so all discounts are 0.5, 1, 1.5."""
    a, b = 3, 4
    model = KneserNey.train([[a, b, a, b], [a, b, b]], VOCABULARY, order=2)
    assert model.discounts == (FALLBACK_DISCOUNTS, FALLBACK_DISCOUNTS)
    # Left neighbours: a {BOS, b}, b {a, b}, EOS {b}; 5 in all. Mass moved to uniform (1/6): (1 + 1 + 0.5) / 5 = 1/2.
    one = {a: 1 / 5 + 1 / 12, b: 1 / 5 + 1 / 12, EOS: 0.5 / 5 + 1 / 12}
    after_a = model.probabilities([a])
    assert after_a[b] == pytest.approx(1.5 / 3 + 1.5 / 3 * one[b])
    after_b = model.probabilities([b])
    assert after_b[EOS] == pytest.approx(1 / 4 + 2 / 4 * one[EOS])
    assert after_b[a] == pytest.approx(0.5 / 4 + 2 / 4 * one[a])
    # A context never seen hands over to order 1; BOS as context has a twice: (2 - 1) / 2 + 1/2 p(a).
    assert model.probabilities([7])[a] == pytest.approx(one[a])
    assert model.probabilities([], from_start=True)[a] == pytest.approx(1 / 2 + 1 / 2 * one[a])
    expected = -math.log(1 / 2 + one[a] / 2) - math.log(0.5 + 0.5 * one[b]) - math.log(0.25 + 0.5 * one[EOS])
    result = model.nll([[a, b]])
    assert result.nats[0] == pytest.approx(expected)
    assert (result.tokens[0], result.notes[0], result.bars[0]) == (3, 2, 0)


def test_discounts_by_hand_and_fallback():
    counts = np.array([1] * 10 + [2] * 4 + [3] * 2 + [4] * 1 + [9] * 5)
    y = 10 / 18
    expected = (1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 3 - 4 * y * 0.5)
    assert modified_discounts(counts) == pytest.approx(expected)
    assert modified_discounts(np.array([1, 1, 1])) == FALLBACK_DISCOUNTS
    assert modified_discounts(np.array([1] * 10 + [2] + [3] * 900 + [4])) == FALLBACK_DISCOUNTS


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_same_as_slow_implementation(order, masked):
    rng = np.random.default_rng(order + 10 * masked)
    train, test = random_pieces(rng, 40), random_pieces(rng, 15)
    flat_train = [bool(masked and i % 3 == 0) for i in range(len(train))]
    flat_test = [bool(masked and i % 2 == 0) for i in range(len(test))]

    def left_out(piece, flat):
        return {i + 1 for i, token in enumerate(piece) if flat and token in (5, 6)}

    skip = [left_out(piece, flat) for piece, flat in zip(train, flat_train, strict=True)]
    slow = SlowKneserNey(train, skip, order, VOCABULARY.size)
    model = KneserNey.train(train, VOCABULARY, order=order, constant_velocity=flat_train)
    result = model.nll(test, constant_velocity=flat_test)
    for i, (piece, flat) in enumerate(zip(test, flat_test, strict=True)):
        expected = slow.nll(piece, left_out(piece, flat))
        assert result.tokens[i] == len(expected)
        assert result.nats[i] == pytest.approx(sum(expected), rel=1e-12)
        assert result.notes[i] == sum(token in (3, 4) for token in piece)
    if order > 2 and not masked:
        assert any(discount != FALLBACK_DISCOUNTS for discount in model.discounts), (
            "estimated discounts not exercised"
        )


def test_probabilities_sum_to_one():
    rng = np.random.default_rng(3)
    model = KneserNey.train(random_pieces(rng, 50), VOCABULARY, order=5)
    for _ in range(200):
        context = rng.integers(2, VOCABULARY.size, size=int(rng.integers(0, 8)))
        for from_start in (False, True):
            p = model.probabilities(context, from_start=from_start)
            assert p.sum() == pytest.approx(1.0, abs=1e-12)
            assert (p[[VOCABULARY.pad, BOS]] == 0).all()
            assert (np.delete(p, [VOCABULARY.pad, BOS]) > 0).all()


def test_nll_agrees_with_probabilities_step_by_step():
    rng = np.random.default_rng(4)
    pieces = random_pieces(rng, 30)
    model = KneserNey.train(pieces, VOCABULARY, order=4)
    piece = [3, 4, 7, 5, 3, 3, 6]
    expected = 0.0
    for i, token in enumerate([*piece, EOS]):
        expected -= math.log(model.probabilities(piece[:i], from_start=True)[token])
    assert model.nll([piece]).nats[0] == pytest.approx(expected, rel=1e-12)


def test_begin_and_end_tokens_are_optional_and_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(5)
    pieces = random_pieces(rng, 30)
    dressed = [np.array([BOS, *piece, EOS], dtype=np.uint16) for piece in pieces]
    model = KneserNey.train(pieces, VOCABULARY)
    whole = model.nll(pieces)
    monkeypatch.setattr("melodia.evaluation.ngram.SCORE_BLOCK", 50)
    np.testing.assert_array_equal(KneserNey.train(dressed, VOCABULARY).nll(dressed).nats, whole.nats)
    assert whole.tokens.tolist() == [len(piece) + 1 for piece in pieces]


def test_a_large_vocabulary_does_not_overflow():
    """30,000 ids at order 6 need 90 bits when packed naively."""
    size = 30_000
    vocabulary = Vocabulary(
        "x", ("PAD_None", "BOS_None", "EOS_None", *(f"Pitch_{i}" for i in range(3, size))), {}, 12
    )
    piece = [size - 1, size - 2, size - 1, size - 2, size - 1, size - 2, size - 1]
    model = KneserNey.train([piece] * 3, vocabulary, order=6)
    assert model.probabilities(piece[:6])[size - 1] > 0.5
    assert model.probabilities([5, 6, 7])[9] < 1e-4


def test_errors():
    with pytest.raises(ConfigError, match="at least one piece"):
        KneserNey.train([], VOCABULARY)
    with pytest.raises(ConfigError, match="order must be at least 1"):
        KneserNey.train([[3]], VOCABULARY, order=0)
    with pytest.raises(ConfigError, match="between 0 and 7"):
        KneserNey.train([[99]], VOCABULARY)
    with pytest.raises(ConfigError, match="contains PAD or BOS"):
        KneserNey.train([[3, BOS, 3]], VOCABULARY)


def test_velocity_mask_and_bare():
    masks = velocity_mask([[3, 5, 7], [3, 5, 7]], VOCABULARY, [True, False])
    assert masks is not None
    assert masks[0].tolist() == [True, False, True, True]
    assert masks[1].all()
    assert velocity_mask([[3, 5]], VOCABULARY, [False]) is None
    assert bare([BOS, EOS], VOCABULARY).tolist() == []
    assert bare([BOS], VOCABULARY).tolist() == []
    assert bare([], VOCABULARY).tolist() == []


def test_likelihood_ratios_and_intervals():
    """Ratios are of totals: (10 + 2) / (10 + 10), not the mean of 1 and 0.2."""
    result = Likelihood(
        np.array([10.0, 2.0]),
        np.array([10, 10]),
        np.array([5, 1]),
        bars=np.array([2, 2]),
        seconds=np.array([4.0, 4.0]),
    )
    assert result.per("token") == pytest.approx(0.6)
    assert result.per("note") == pytest.approx(2.0)
    assert result.per("bar") == pytest.approx(3.0)
    assert result.per("second") == pytest.approx(1.5)
    interval = result.interval("token")
    # Drawn twice each, the pieces give 0.2 and 1.0: 0.4 away, and Student's t of one degree of freedom is 12.7062.
    away = 0.4 * 12.7062 / 1.95996 * math.sqrt(2)
    assert interval.low == pytest.approx(0.6 - away, rel=1e-4)
    assert interval.high == pytest.approx(0.6 + away, rel=1e-4)
    with pytest.raises(ConfigError, match="`unit` must be one of"):
        result.per("song")
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        result.interval("token", level=1.0)
    bare_result = Likelihood(result.nats, result.tokens, result.notes)
    assert bare_result.units() == ("token", "note")
    with pytest.raises(ConfigError, match="were not counted"):
        bare_result.per("second")


def test_interval_covers_like_the_normal_approximation():
    """For a mean of many pieces of one length the percentile bootstrap is close to +- 1.96 standard errors."""
    rng = np.random.default_rng(0)
    nats = rng.normal(5.0, 1.0, size=400)
    ones = np.ones(400, dtype=np.int64)
    interval = Likelihood(nats, ones, ones).interval("token", resamples=4000)
    error = nats.std() / math.sqrt(400)
    assert interval.low == pytest.approx(nats.mean() - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(nats.mean() + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize("pieces", [2, 3, 4, 8])
def test_intervals_of_few_pieces_hold_what_they_say(pieces):
    """Pieces of unlike length around 3 nats per token; without the widening 0.49 to 0.88 hold 3."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(500):
        tokens = rng.integers(500, 4000, pieces)
        interval = Likelihood(rng.normal(3, 0.3, pieces) * tokens, tokens, tokens).interval(resamples=300)
        hits.append(interval.low <= 3 <= interval.high)
    assert np.mean(hits) > (0.9 if pieces == 2 else 0.915)


def test_student_as_in_the_tables():
    """Two-sided 0.95 and 0.99 points, as every table of Student's law has them."""
    for freedom, usual, strict in [
        (1, 12.706, 63.657), (2, 4.303, 9.925), (3, 3.182, 5.841), (4, 2.776, 4.604), (9, 2.262, 3.250),
        (30, 2.042, 2.750), (120, 1.980, 2.617),
    ]:  # fmt: skip
        assert student(0.95, freedom) == pytest.approx(usual, abs=6e-4)
        assert student(0.99, freedom) == pytest.approx(strict, abs=6e-4)
    for level, freedom in [(0.95, 0), (1.0, 3)]:
        with pytest.raises(ConfigError, match="`freedom` must be at least 1"):
            student(level, freedom)
    with pytest.raises(ConfigError, match="at least 2 values"):
        widening(1)


@pytest.mark.slow
def test_five_million_tokens_in_a_minute():
    rng = np.random.default_rng(1)
    size = 500
    vocabulary = Vocabulary(
        "x", ("PAD_None", "BOS_None", "EOS_None", *(f"Pitch_{i}" for i in range(3, size))), {}, 12
    )
    pieces = [(3 + rng.random(5000) ** 3 * (size - 3)).astype(np.int64) for _ in range(1000)]
    started = time.process_time()
    model = KneserNey.train(pieces, vocabulary)
    assert time.process_time() - started < 60.0
    assert model.size > 1_000_000
