"""The filters, in their fixed order, and the choice.

Letters: V = vocabulary size. Logits are float32 [V]; a removed token stands at -inf. The arithmetic is part
of the contract, because compiled engines reproduce it token for token:

1. *grammar mask*: illegal tokens -> -inf. Then the opinion, where there is one, on its legal members: m = their
   greatest logit, d = double(logit) - double(m); A = the sum of rint(exp(d) * 2**36), B = that of rint(exp(e * d) *
   2**36), e its exponent; each becomes float32(m + (e * d + log(A / B))) + its number of the row (float32 sum).
   Nothing happens where m is infinite.
2. *repetition penalty* r: each distinct recent token once; float32: logit < 0 ? logit * r : logit / r.
3. *temperature* t: float32 division, logit / t.
4. *top-k*: the first k candidates in the order (logit descending, id ascending): ties go to the lowest id.
5. *top-p*: m = greatest logit; weight = rint(exp(double(logit) - double(m)) * 2**36), a whole number, so that
   sums are exact in a double (and in 64 bits) in any order, up to V = 2**17. Over the candidates in the
   order of 4, one is kept while the sum of the weights before it is < p * (sum of all weights).
6. *min-p*: keep double(logit) >= double(m) + log(p).
7. *choice*: argmax of double(logit) + gumbel(lane = id), or of the logits when greedy; ties to the lowest id.
   Greedy applies 1 and 2 only.

Ties are where this differs from Hugging Face transformers, which keeps every token tied with the k-th value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from melodia.decode.bias import Opinion
from melodia.decode.config import SamplingConfig
from melodia.errors import ConfigError, GrammarError, MelodiaError

MASS_UNIT = 2.0**36

Logits = NDArray[np.float32]
_REMOVED = np.float32(-np.inf)


class Choice(NamedTuple):
    """A chosen token.

    Attributes:
        token: its id.
        nll: -log of its probability under the model, before any filter, in nats.
        entropy: of the distribution that it was drawn from, after all filters, in nats (0 when greedy).
    """

    token: int
    nll: float
    entropy: float


def grammar_mask(logits: Logits, legal: NDArray[np.bool_]) -> Logits:
    """Remove the tokens that are not `legal` (bool [V]). Returns [V]."""
    return np.where(legal, logits, _REMOVED)


def pool(logits: Logits, opinion: Opinion) -> Logits:
    """The logarithmic pool of the model's probabilities among the members with an opinion (Genest & Zidek 1986).

    A product of two distributions that agree is sharper than either: the exponent below 1 takes that back. Returns [V].

    >>> logits = np.log(np.array([0.5, 0.4, 0.1], np.float32))
    >>> flat = Opinion(np.zeros(3, np.float32), np.array([True, True, False]), 0.0)
    >>> np.exp(pool(logits, flat)).round(3)
    array([0.45, 0.45, 0.1 ], dtype=float32)
    """
    here = opinion.members & (logits > _REMOVED)
    of_members = logits[here].astype(np.float64)
    if not len(of_members) or np.isinf(of_members.max()):
        return logits
    top = of_members.max()
    below = of_members - top
    own, flat = (np.rint(np.exp(e * below) * MASS_UNIT).sum() for e in (1.0, opinion.exponent))
    result = logits.copy()
    pooled = (top + (opinion.exponent * below + np.log(own / flat))).astype(np.float32)
    result[here] = pooled + opinion.row[here]
    return result


def repetition_penalty(logits: Logits, recent: Iterable[int], penalty: float) -> Logits:
    """Make the tokens in `recent` less likely, each once, whatever its count. Returns [V]."""
    ids = np.unique(np.fromiter(recent, dtype=np.int64))
    result = logits.copy()
    seen = logits[ids]
    factor = np.float32(penalty)
    result[ids] = np.where(seen < 0, seen * factor, seen / factor)
    return result


def temperature(logits: Logits, value: float) -> Logits:
    """Divide by the temperature, in float32. Returns [V]."""
    return logits / np.float32(value)


def candidates(logits: Logits) -> NDArray[np.intp]:
    """The ids that are not removed, by (logit descending, id ascending); [<= V]."""
    order = np.argsort(-logits, kind="stable")
    return order[: int(np.count_nonzero(logits > _REMOVED))]


def top_k(logits: Logits, k: int) -> Logits:
    """Keep the k likeliest tokens; of equal ones those with the lowest ids. Returns [V]."""
    return _keep(logits, candidates(logits)[:k])


def top_p(logits: Logits, p: float) -> Logits:
    """Keep the smallest set of likeliest tokens whose mass is at least p, one token at least. Returns [V]."""
    if p >= 1.0:
        return logits
    order = candidates(logits)
    kept = logits[order].astype(np.float64)
    weights = np.rint(np.exp(kept - kept[:1]) * MASS_UNIT)
    before = np.cumsum(weights) - weights
    return _keep(logits, order[before < p * weights.sum()])


def min_p(logits: Logits, p: float) -> Logits:
    """Keep the tokens at least p times as likely as the likeliest. Returns [V]."""
    threshold = float(logits.max()) + math.log(p)
    return np.where(logits.astype(np.float64) >= threshold, logits, _REMOVED)


def apply_filters(
    logits: Logits,
    legal: NDArray[np.bool_] | None,
    recent: Iterable[int],
    config: SamplingConfig,
    opinion: Opinion | None = None,
) -> Logits:
    """All filters in their order.

    Args:
        logits: float32 [V], as the model gives them.
        legal: bool [V] from the grammar, or None for no mask.
        recent: ids that the repetition penalty counts.
        config: the settings.
        opinion: pooled with the logits; None for nothing.

    Returns:
        float32 [V]; removed tokens at -inf; at least one token is left.

    Raises:
        MelodiaError: a logit is not a number, or infinite, so that nothing is left.
        GrammarError: no token is legal.
        ConfigError: the opinion is none on these tokens.
    """
    if np.isnan(logits).any():
        raise not_numbers()
    if legal is not None:
        logits = grammar_mask(logits, legal)
    if opinion is not None:
        opinion.check(len(logits))
        logits = pool(logits, opinion)
    if not (logits > _REMOVED).any():
        raise nothing_legal()
    if config.repetition_penalty != 1.0:
        logits = repetition_penalty(logits, recent, config.repetition_penalty)
    if config.greedy:
        return logits
    if config.temperature != 1.0:
        logits = temperature(logits, config.temperature)
    if config.top_k is not None:
        logits = top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p(logits, config.min_p)
    if not (logits > _REMOVED).any():
        raise not_numbers()  # an infinite logit
    return logits


def choose(
    logits: Logits,
    legal: NDArray[np.bool_] | None,
    recent: Iterable[int],
    config: SamplingConfig,
    noise: NDArray[np.float64] | None,
    opinion: Opinion | None = None,
) -> Choice:
    """Filter the logits and draw a token.

    Args:
        logits: float32 [V], as the model gives them.
        legal: bool [V] from the grammar, or None for no mask.
        recent: ids that the repetition penalty counts.
        config: the settings.
        noise: Gumbel noise of this place, float64 [V] (`philox.Noise`); None for a greedy choice.
        opinion: as in `apply_filters`.

    Raises:
        MelodiaError, GrammarError: as in `apply_filters`.

    >>> logits = np.log(np.array([0.7, 0.2, 0.1], dtype=np.float32))
    >>> choose(logits, None, (), SamplingConfig(greedy=True), None).token
    0
    """
    filtered = apply_filters(logits, legal, recent, config, opinion)
    if config.greedy:
        token = int(np.argmax(filtered))
        return Choice(token, token_nll(logits, token), 0.0)
    if noise is None:
        raise ConfigError("a choice that is not greedy needs noise; give the noise of its position")
    token = int(np.argmax(filtered + noise))  # in double
    return Choice(token, token_nll(logits, token), entropy(filtered))


def nothing_legal() -> GrammarError:
    """What is raised where the mask leaves no token."""
    return GrammarError("no token is allowed here; loosen the constraints")


def not_numbers() -> MelodiaError:
    """What is raised where a logit is not a number."""
    return MelodiaError(
        "the model's logits are not numbers (nan); its weights are damaged, so retrain or reload it"
    )


def token_nll(logits: Logits, token: int) -> float:
    """-log softmax(logits)[token], in nats, computed in double."""
    wide = logits.astype(np.float64)
    top = wide.max()
    return float(top + np.log(np.exp(wide - top).sum()) - wide[token])


def entropy(logits: Logits) -> float:
    """The entropy of softmax(logits), in nats, computed in double; removed tokens count nothing."""
    kept = logits[logits > _REMOVED].astype(np.float64)
    kept -= kept.max()
    weights = np.exp(kept)
    total = weights.sum()
    return max(0.0, float(np.log(total) - (weights * kept).sum() / total))


def _keep(logits: Logits, ids: NDArray[np.intp]) -> Logits:
    result = np.full_like(logits, _REMOVED)
    result[ids] = logits[ids]
    return result
