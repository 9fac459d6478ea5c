"""What an argument or option `backend` asks for, in every job that runs a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from melodia import kernels
from melodia.evaluation import likelihood
from melodia.kernels import native
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


def test_threads_choose_each_for_itself() -> None:
    """The first that enters its block leaves it first: what it found is not what the other had."""
    entered, left = threading.Event(), threading.Event()
    found: list[str] = []

    def first() -> None:
        with kernels.use_backend("reference"):
            entered.set()
            assert left.wait(30)
            found.append(kernels.backend_report().chosen)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(30)
    assert kernels.backend_report().chosen == "auto"
    with kernels.use_backend("auto"):
        left.set()
        thread.join()
    assert found == ["reference"]
    assert kernels.backend_report().chosen == "auto"
    kernels.set_backend("reference")
    try:
        thread = threading.Thread(target=lambda: found.append(kernels.backend_report().chosen))
        thread.start()
        thread.join()
    finally:
        kernels.set_backend("auto")
    assert found[1] == "reference", "what is chosen for the process holds in all"


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_gates_are_made_again_by_the_backend_that_made_them(backend: str) -> None:
    """In the backward pass, which has threads of its own on a GPU."""
    if backend == "native" and native.reason() is not None:
        pytest.skip(f"no native library: {native.reason()}")
    asked: list[str] = []

    def make(x: Tensor) -> Tensor:
        asked.append(kernels.backend_report().chosen)
        return x * 2

    x, h, weight, bias = (torch.ones(size, requires_grad=True) for size in ((2, 1, 6), (1, 2), (6, 2), (6,)))
    with kernels.use_backend(backend):
        output, _ = kernels.gru_scan(kernels.Recipe(make, (x,)), h, weight, bias)
    thread = threading.Thread(target=output.sum().backward)
    thread.start()
    thread.join()
    assert x.grad is not None
    assert asked == [backend] * 2
