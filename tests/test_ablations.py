"""benchmarks/ablations.py: every change can be made, runs are compared piece by piece, and what is there stays."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from training_helpers import small_corpus

from benchmarks import ablations
from melodia.model import ModelConfig
from melodia.training import TrainingConfig


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["ablations.py", *map(str, words)])
    return ablations.main()


@pytest.mark.parametrize("name", ablations.CHANGES)
def test_every_change_is_one_of_the_fields(name: str) -> None:
    change = ablations.CHANGES[name]
    model = ModelConfig(**{"kind": ablations.KIND, "vocab_size": 50, "hidden_size": 8, **change.model})
    assert all(getattr(model, field) == value for field, value in change.model.items())
    config = TrainingConfig(**{**ablations.TRAINING, "epochs": 1, **change.training})
    tokens = config.batch_size * config.window
    assert tokens == ablations.TRAINING["batch_size"] * ablations.TRAINING["window"], (
        "updates are of one size"
    )


def test_trained_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablations, "HIDDEN", 12)
    corpus = small_corpus(tmp_path / "corpus", pieces=6, valid=3)
    words = ("train", corpus.folder, "--out", tmp_path / "runs", "--epochs", 1, "--changes")
    assert run(monkeypatch, *words, "0,1,6") == 0
    results = ablations.results_in(tmp_path / "runs")
    assert [result["change"] for result in results] == [list(ablations.CHANGES)[i] for i in (0, 1, 6)]
    assert all(abs(r["parameters"] / results[0]["parameters"] - 1) < 0.01 for r in results)
    assert all(r["tokens"] == results[0]["tokens"] and r["nats"] != results[0]["nats"] for r in results[1:])
    assert all(r["processor_seconds"] > 0 for r in results)
    kept = (tmp_path / "runs" / "00" / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    assert run(monkeypatch, *words, "0") == 0
    assert not capsys.readouterr().out
    assert (tmp_path / "runs" / "00" / "result.json").stat().st_mtime_ns == kept
    page = tmp_path / "page.md"
    assert run(monkeypatch, "table", tmp_path / "runs", "--write", page) == 0
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    figures = [float(row[2]) for row in rows]
    assert figures == sorted(figures)
    for row in rows:
        if ablations.BASE not in row[0]:
            base = next(other for other in rows if ablations.BASE in other[0])
            assert float(row[4].split()[0]) == pytest.approx(float(row[2]) - float(base[2]), abs=2e-3)


def test_without_a_run_to_compare_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "table", tmp_path) == 1
    assert "nothing changed" in capsys.readouterr().err


def test_changes_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = small_corpus(tmp_path / "corpus", pieces=2, valid=1)
    words = ("train", corpus.folder, "--out", tmp_path / "runs", "--epochs", 1, "--changes", "0,x,-1,99")
    assert run(monkeypatch, *words) == 1
    last = len(ablations.CHANGES) - 1
    assert f"--changes are 0 to {last} (received -1, 99, x)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_likelihood() -> None:
    scored = ablations.likelihood({"nats": [6.0, 2.0], "tokens": [4, 4], "notes": [2, 2]})
    assert scored.nats_per_token == 1.0
    assert np.array_equal(scored.notes, [2, 2])
