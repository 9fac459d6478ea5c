"""Two processes with half the lanes each do what one process with all lanes does."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_helpers import ENVIRONMENT, read_state, small_corpus

from melodia.corpus.shards import Corpus
from melodia.errors import TrainingError
from melodia.model import ModelConfig
from melodia.training import Progress, Step, TrainingConfig, World, train
from melodia.training.distributed import choose_device, join

RUN = """
import os
import sys
from test_training_distributed import PressAt10, config, form
from melodia.corpus import Corpus
from melodia.training import join, train

def say(*words):  # in one write: both processes have the same standard output
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

corpus = Corpus.open(sys.argv[1])
with join("cpu") as world:
    try:
        train(corpus, form(corpus), config(), sys.argv[2], progress=PressAt10(), world=world)
    except KeyboardInterrupt:
        say("interrupted")
summary = train(corpus, form(corpus), config(), sys.argv[2], resume=True)
say("summary", summary.valid_nats_per_token, summary.iterations)
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="needs gloo"
)


def config() -> TrainingConfig:
    return TrainingConfig(
        iterations=24,
        batch_size=6,
        window=16,
        learning_rate=5e-3,
        eval_every=8,
        save_every=1e6,
        threads=1,
        device="cpu",
    )


def form(corpus: Corpus) -> ModelConfig:
    """Without dropout: its noise depends on how lanes are shared out."""
    size = corpus.vocabulary.size
    return ModelConfig(
        kind="sequential", vocab_size=size, hidden_size=16, side_inputs=(("position", 8), ("bars_left", 9))
    )


class PressAt10(Progress):
    """Presses Ctrl-C once; told of it is the first process only, stop must both."""

    def stepped(self, step: Step) -> None:
        if step.iteration == 10:
            os.kill(os.getpid(), signal.SIGINT)


def assert_close(out: Path, whole: Path) -> None:
    ours, theirs = (read_state(folder) for folder in (out, whole))
    assert ours is not None
    assert theirs is not None
    assert ours.values["position"] == theirs.values["position"]
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        if name.startswith(("model", "average", "lanes")):
            torch.testing.assert_close(ours.tensors[name], tensor, atol=2e-4, rtol=2e-3, msg=name)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Under torchrun, interrupted in one of them and resumed on the way."""
    corpus = small_corpus(tmp_path / "corpus", pieces=20, valid=5)
    whole = train(corpus, form(corpus), config(), tmp_path / "whole")
    script = tmp_path / "run.py"
    script.write_text(RUN)
    run = subprocess.run(
        [*TORCHRUN, str(script), str(corpus.folder), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("interrupted") == 2
    (first, second) = (line.split() for line in run.stdout.splitlines() if line.startswith("summary"))
    assert first == second
    assert float(first[1]) == pytest.approx(whole.valid_nats_per_token, rel=1e-4)
    assert_close(tmp_path / "two", tmp_path / "whole")
    logs = []
    for name in ("two", "whole"):
        with (tmp_path / name / "training.csv").open() as file:
            logs.append(list(csv.DictReader(file)))
    for ours, theirs in zip(*logs, strict=True):
        for column in (
            "recent_nats_per_token",
            "recent_nats_per_note",
            "train_nats_per_token",
            "train_nats_per_note",
            "valid_nats_per_token",
            "gradient_norm",
        ):
            if theirs[column]:
                assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=2e-3), column


def test_a_world_of_one_leaves_everything_as_it_is() -> None:
    with join("cpu") as world:
        assert (world.rank, world.size, world.leads) == (0, 1, True)
        assert world.sum([1.5, 2.0]) == [1.5, 2.0]
        tensor = torch.arange(4.0)
        assert world.gather(tensor) is tensor
        assert world.share(tensor) is tensor
        world.barrier()
    assert not torch.distributed.is_initialized()


def test_lanes_are_shared_out_in_order() -> None:
    tensor = torch.arange(6.0)
    assert [World(rank, 3).share(tensor).tolist() for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(TrainingError, match=r"CUDA devices \(received cuda:99\)"):
        choose_device("cuda:99")
