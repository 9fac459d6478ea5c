"""The table of a comparison: differences, and what the spread of trainings does to intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melodia.errors import ConfigError
from melodia.measure import Likelihood, difference
from melodia.workflows.compared import Comparison, Row


def test_differences_are_of_the_same_pieces() -> None:
    """Pieces differ by far more than kinds do: what is paired says which is better, what is not does not."""
    random = np.random.default_rng(3)
    tokens, notes = random.integers(100, 900, 40), random.integers(30, 300, 40)
    nats = tokens * random.uniform(1.0, 4.0, 40)
    others = {"parameters": 1, "hidden_size": 1, "step_microseconds": 1.0, "training_tokens_per_second": 1.0}
    best, other = (
        Row.of(name, Likelihood(figures, tokens, notes), **others, epochs=1.0)
        for name, figures in (("gru", nats), ("lstm", nats + tokens * random.uniform(0.02, 0.06, 40)))
    )
    assert other.low < best.nats_per_token < other.high
    again = Row.from_dict(json.loads(json.dumps(other.to_dict())))
    assert again == other
    ngrams = replace(best, name="n-grams", hidden_size=0, nats_per_token=0.1)
    text = Comparison([again, best, ngrams], {}, Path("unused"), {}).markdown()
    baseline, first, second = (line.split(" | ") for line in text.splitlines()[2:5])
    assert (baseline[0], baseline[7][:7]) == ("| n-grams", "+0.0000"), "kinds are compared with a kind"
    assert (first[0], first[7]) == ("| gru", "–")
    more = difference(other.likelihood, best.likelihood)
    assert 0.02 < more.low < more.value < more.high < 0.06
    assert second[7] == f"{more.value:+.4f} ({more.low:+.4f} to {more.high:+.4f})"
    assert more.value == pytest.approx(other.nats_per_token - best.nats_per_token)
    bare = [replace(row, piece_nats=(), piece_tokens=(), piece_notes=()) for row in (best, other)]
    text = Comparison(bare, {}, Path("unused"), {}).markdown()  # as earlier versions kept rows
    assert [line.split(" | ")[7] for line in text.splitlines()[2:4]] == ["–", "–"]
    with pytest.raises(ConfigError, match="the notes of these are not as many"):
        difference(other.likelihood, replace(best.likelihood, notes=notes + 1), "note")


def trained(name: str, figures: Any, random_seed: int = 0, hidden_size: int = 1) -> Row:
    """A row of a training that gave so many nats to pieces of 100 tokens."""
    nats = np.array(figures, np.float64)
    return Row.of(
        name, Likelihood(nats, np.full(len(nats), 100), np.full(len(nats), 30)), parameters=1, epochs=1.0,
        hidden_size=hidden_size, step_microseconds=1.0, training_tokens_per_second=1.0, random_seed=random_seed,
    )  # fmt: skip


def test_the_spread_of_trainings_is_in_the_intervals() -> None:
    """Two kinds that are alike: trained once each, one of them looks better beyond doubt."""
    random = np.random.default_rng(5)
    pieces = random.uniform(100, 300, 50)
    rows = [
        trained(kind, pieces + 100 * random.normal(0, 0.05) + random.normal(0, 0.2, 50), seed)
        for seed in range(6)
        for kind in ("gru", "lstm")
    ]
    ngrams = trained("n-grams", pieces + 90, hidden_size=0)

    def cells(rows: list[Row]) -> dict[str, list[str]]:
        lines = Comparison(rows, {}, Path("unused"), {}).markdown().splitlines()
        return {line.split(" | ")[0][2:]: line.strip("| ").split(" | ") for line in lines if "| 1 |" in line}

    def ends(cell: str) -> tuple[float, float]:
        low, _, high = cell[cell.index("(") + 1 : -1].partition(" to ")
        return float(low), float(high)

    once = cells([*rows[:2], ngrams])
    low, high = next(ends(row[7]) for name, row in once.items() if name != "n-grams" and row[7] != "–")
    assert 0 < low < high, "one training each: the pieces agree on what is chance"
    often = cells([*rows[::-1], ngrams])
    low, high = next(ends(row[7]) for name, row in often.items() if name != "n-grams" and row[7] != "–")
    assert low < 0 < high
    figures = [[row.nats_per_token for row in rows if row.name == kind] for kind in ("gru", "lstm")]
    for kind, found in zip(("gru", "lstm"), figures, strict=True):
        assert often[kind][9] == " ".join(f"{value:.4f}" for value in found), (
            "in the order of their random seeds"
        )
        assert often[kind][6].startswith(f"{np.mean(found):.4f} ")
    assert often["n-grams"][9] == "–"
    pooled = np.sqrt(np.mean([np.var(found, ddof=1) for found in figures]))
    text = Comparison(rows, {}, Path("unused"), {}).markdown()
    assert f"a standard deviation of {pooled:.4f} nats/token" in text
    assert "random seeds: 0 1 2 3 4 5; " in text
    # The n-grams are counted: of the difference only one side spreads, and pieces hardly do.
    best = min(figures, key=np.mean)
    low, high = ends(often["n-grams"][7])
    half = 2.228 * pooled / np.sqrt(6)
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert (high + low) / 2 == pytest.approx(np.mean(pieces + 90) / 100 - np.mean(best), abs=1e-3)


def test_intervals_of_trainings_hold_what_they_should() -> None:
    """95 % of those of the difference between two kinds, over pieces and trainings that are drawn anew."""
    random, held = np.random.default_rng(1), 0
    for _ in range(300):
        pieces, differs = random.uniform(100, 300, 30), random.normal(0, 4, 30)
        rows = []
        for seed in range(3):
            rows.append(trained("gru", pieces + random.normal(0, 3), seed))
            rows.append(trained("lstm", pieces + differs + 10 + random.normal(0, 3), seed))
        text = Comparison(rows, {}, Path("unused"), {}).markdown()
        worse = next(line for line in text.splitlines() if line.startswith("| lstm |")).split(" | ")[7]
        if worse == "–":
            continue
        low, _, high = worse[worse.index("(") + 1 : -1].partition(" to ")
        held += float(low) <= 0.1 <= float(high)
    assert 0.92 < held / 300 < 0.98
