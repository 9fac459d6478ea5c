"""Reports: on a GPU, which fetches losses rarely, as on the CPU; what is told of bf16, small corpora, overfitting."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import small_corpus

from melodia import kernels
from melodia.corpus.shards import Corpus
from melodia.errors import TrainingError
from melodia.model import ModelConfig
from melodia.training import Progress, Step, TrainingConfig, World, train
from melodia.training.learner import Learner, Update
from melodia.training.watch import Watch, corpus_warnings

SMALL = {"batch_size": 2, "window": 16, "learning_rate": 1e-2, "threads": 1, "save_every": 1e6}

pytestmark = pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")


class FarAway(str):
    """A device that computes on the CPU and is taken for a GPU."""

    type = "cuda"


class Record(Progress):
    """The iterations that were told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def stepped(self, step: Step) -> None:
        self.told.append(step.iteration)


@pytest.fixture(autouse=True)
def nothing_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a GPU reads from needs one."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def form(corpus: Corpus) -> ModelConfig:
    return ModelConfig(kind="gru", vocab_size=corpus.vocabulary.size, hidden_size=8, dropout=0.1)


def far() -> World:
    return World(device=FarAway("cpu"))  # type: ignore[arg-type]


def logged(folder: Path) -> list[dict[str, str]]:
    """The rows of the log, without what the clock says."""
    with (folder / "training.csv").open() as file:
        return [
            {name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")}
            for row in csv.DictReader(file)
        ]


def test_a_gpu_logs_the_rows_of_the_cpu(corpus: Corpus, tmp_path: Path) -> None:
    """Validations fetch the losses between the reports, at iterations that fit nothing."""
    config = TrainingConfig(iterations=61, **SMALL, eval_every=17)  # type: ignore[arg-type]
    record = Record()
    train(corpus, form(corpus), config, tmp_path / "near", world=World())
    train(corpus, form(corpus), config, tmp_path / "far", world=far(), progress=record)
    rows = logged(tmp_path / "far")
    assert [int(row["iteration"]) for row in rows if row["gradient_norm"]] == [20, 40, 60]
    assert [int(row["iteration"]) for row in rows if row["valid_nats_per_token"]] == [17, 34, 51, 61]
    assert rows == logged(tmp_path / "near")
    for row in rows:  # a name for a quantity
        assert (
            bool(row["recent_nats_per_token"])
            == bool(row["recent_nats_per_note"])
            == bool(row["gradient_norm"])
        )
        assert bool(row["train_nats_per_token"]) == bool(row["train_nats_per_note"])
        assert bool(row["train_nats_per_token"]) == bool(row["valid_nats_per_token"])
    assert record.told == [17, 20, 34, 40, 51, 60, 61]


def test_a_gpu_says_where_the_loss_stopped_being_finite(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    original = Learner.update

    def poisoned(self: Learner, *arguments: Any) -> Update:
        update = original(self, *arguments)
        rates.append(update.rate)
        losses = update.losses * (math.nan if self.iteration >= 8 else 1.0)
        return dataclasses.replace(update, losses=losses)

    monkeypatch.setattr(Learner, "update", poisoned)
    config = TrainingConfig(iterations=30, **SMALL, eval_every=30)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"stopped being finite at iteration 8 ") as caught:
        train(corpus, form(corpus), config, tmp_path, world=far())
    assert len(rates) == 20
    assert f"(learning rate {rates[7]:.2g}," in str(caught.value)
    assert f"{rates[7]:.2g}" != f"{rates[19]:.2g}"


@pytest.mark.parametrize(("isa", "told"), [("amx", False), ("avx2", True)])
def test_slow_bfloat16_is_told(
    isa: str, told: bool, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = kernels.BackendReport("auto", "native", "", isa)
    monkeypatch.setattr(kernels, "backend_report", lambda: report)
    monkeypatch.setattr(kernels.native, "instruction_set", lambda: isa)
    config = TrainingConfig(iterations=1, **SMALL, device="cpu", precision="bf16")  # type: ignore[arg-type]
    summary = train(corpus, form(corpus), config, tmp_path)
    assert any("precision auto chooses the faster" in note for note in summary.warnings) == told


def test_a_sliver_of_an_epoch_is_one_iteration(corpus: Corpus, tmp_path: Path) -> None:
    config = TrainingConfig(epochs=1e-6, **SMALL)  # type: ignore[arg-type]
    assert train(corpus, form(corpus), config, tmp_path).iterations == 1


def test_watch_does_not_cry_wolf() -> None:
    watch = Watch()
    assert watch.judge(1, 3.0, 9.0, 3.1)
    assert not watch.judge(2, 3.2, 9.6, 3.2)
    assert not watch.judge(3, 3.2, 9.6, 3.2)
    assert watch.overfitting(3.2, 3.2) is None  # training does not fall either
    assert watch.overfitting(3.02, 2.0) is None  # within one per cent
    assert "overfitting" in (watch.overfitting(3.2, 2.0) or "")
    assert watch.overfitting(3.3, 1.9) is None  # told already


def test_corpus_warnings() -> None:
    assert corpus_warnings(500, 2_000_000, 50, 2_000_000) == []
    (small,) = corpus_warnings(1, 2_000_000, 50, 100)
    assert "the corpus is small: 1 piece with" in small
    assert "(`init` bundled)" in small
    for options in ({"tuned": True}, {"init": False}):
        (small,) = corpus_warnings(1, 2_000_000, 50, 100, **options)
        assert small.endswith("add more music")
    assert corpus_warnings(500, 1_000_000, 50, 50_000_000, tuned=True) == []
    (large,) = corpus_warnings(500, 1_000_000, 50, 50_000_000)
    assert "50,000,000 parameters for 1,000,000 tokens" in large
    (none,) = corpus_warnings(500, 2_000_000, 0, 100)
    assert "held out" in none
