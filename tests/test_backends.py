"""What an argument or option `backend` asks for, in every job that runs a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from melodia import kernels
from melodia.evaluation import likelihood
from melodia.workflows import compare, evaluate, train

Job = Callable[[str], Any]


class StoppedError(Exception):
    """Ends a job where the kernels would run; says what they were asked for."""


@pytest.fixture(params=["train", "compare", "evaluate"])
def job(request: pytest.FixtureRequest, tmp_path: Path, samples_dir: Path, monkeypatch: Any) -> Job:
    """A job that is stopped where the kernels would run."""

    def stop(*_: Any, **__: Any) -> None:
        raise StoppedError(kernels.backend_report().chosen)

    monkeypatch.setattr(train, "open_corpus", stop)
    monkeypatch.setattr(compare, "open_corpus", stop)
    monkeypatch.setattr(likelihood, "model_likelihood", stop)
    sample, out = samples_dir / "sakura.mid", tmp_path / "out"
    jobs: dict[str, Job] = {
        "train": lambda backend: train.train_folder(samples_dir, out, backend=backend),
        "compare": lambda backend: compare.compare_kinds(samples_dir, out, backend=backend),
        "evaluate": lambda backend: evaluate.evaluate_folder(sample, None, backend=backend, device="cpu"),
    }
    return jobs[request.param]


@pytest.fixture
def reference() -> Iterator[None]:
    """As with MELODIA_BACKEND=reference."""
    with kernels.use_backend("reference"):
        yield


def test_a_named_backend_is_asked_for(job: Job) -> None:
    with pytest.raises(StoppedError, match="reference"):
        job("reference")
    assert kernels.backend_report().chosen == "auto"


@pytest.mark.usefixtures("reference")
def test_auto_leaves_the_choice_to_the_process(job: Job) -> None:
    with pytest.raises(StoppedError, match="reference"):
        job("auto")
