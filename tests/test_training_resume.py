"""Interrupted at any moment and resumed, training ends with the same weights; a full disk harms nothing."""

from __future__ import annotations

import csv
import dataclasses
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_helpers import CONFIG, ENVIRONMENT, form, read_state, small_corpus

from melodia.corpus.shards import Corpus
from melodia.errors import CheckpointError, TrainingError
from melodia.model.checkpoint import load_checkpoint
from melodia.training import Progress, Step, TrainingSummary, Validation, train

RUN = """
import sys
from pathlib import Path
from training_helpers import CONFIG, form
from melodia.corpus import Corpus
from melodia.training import Progress, train

class Tell(Progress):
    def stepped(self, step):
        print(step.iteration, flush=True)

corpus = Corpus.open(sys.argv[1])
train(corpus, form(corpus), CONFIG, sys.argv[2], resume=True, progress=Tell())
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), pieces=20)


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingSummary]:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, train(corpus, form(corpus), CONFIG, out)


def assert_same_run(out: Path, whole: Path) -> None:
    """The same best weights, last weights, moments, averages, lanes and log, bit for bit."""
    for name in ("model.safetensors",):
        assert (out / "best" / name).read_bytes() == (whole / "best" / name).read_bytes()
    ours, theirs = (read_state(folder) for folder in (out, whole))
    assert ours is not None
    assert theirs is not None
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        assert tensor.numpy().tobytes() == theirs.tensors[name].numpy().tobytes(), name
    for key in ("iteration", "position", "watch", "finished"):
        assert ours.values[key] == theirs.values[key], key
    assert rows(out) == rows(whole)


def rows(out: Path) -> list[tuple[str, ...]]:
    """The log without its clock."""
    with (out / "training.csv").open() as file:
        return [
            tuple(row[name] for name in row if name not in ("seconds", "tokens_per_second"))
            for row in csv.DictReader(file)
        ]


class Crash(BaseException):
    """Stands for the process's end."""


class CrashAt(Progress):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def stepped(self, step: Step) -> None:
        if step.iteration == self.iteration:
            raise Crash


@pytest.mark.parametrize("save_every", [0.0, 1e6])
def test_cut_off_anywhere_and_resumed(
    corpus: Corpus, whole: tuple[Path, TrainingSummary], tmp_path: Path, save_every: float
) -> None:
    """Cut off again and again, saved after every iteration or at validations only."""
    config = dataclasses.replace(CONFIG, save_every=save_every)
    for iteration in (1, 2, 6, 7, 8, 13, 14, 15, 29, 39, 40):
        with pytest.raises(Crash):
            train(corpus, form(corpus), config, tmp_path, resume=True, progress=CrashAt(iteration))
    summary = train(corpus, None, config, tmp_path, resume=True)
    assert_same_run(tmp_path, whole[0])
    assert dataclasses.replace(summary, checkpoint=whole[1].checkpoint, seconds=whole[1].seconds) == whole[1]


def kill_and_resume(corpus: Corpus, out: Path, waits: list[tuple[int, float]]) -> int:
    """Start the run as a process, kill it so long after it told of an iteration, again and again, then let it end.

    Returns:
        how many processes died by the signal.
    """
    command = [sys.executable, "-c", RUN, str(corpus.folder), str(out)]
    killed = 0
    for iteration, seconds in waits:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "done" or int(line) >= iteration:
                break
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        killed += process.returncode == -signal.SIGKILL
    last = subprocess.run(command, capture_output=True, env=ENVIRONMENT, text=True)
    assert last.returncode == 0, last.stderr
    assert last.stdout.splitlines()[-1] == "done"
    return killed


def test_killed_and_resumed(corpus: Corpus, whole: tuple[Path, TrainingSummary], tmp_path: Path) -> None:
    waits = [(3, random.uniform(0, 0.02)), (20, random.uniform(0, 0.02))]
    assert kill_and_resume(corpus, tmp_path, waits) == 2, waits
    assert_same_run(tmp_path, whole[0])


@pytest.mark.slow
def test_killed_twenty_times_and_resumed(
    corpus: Corpus, whole: tuple[Path, TrainingSummary], tmp_path: Path
) -> None:
    waits = [(2 * i, random.uniform(0, 0.1)) for i in range(20)]
    assert kill_and_resume(corpus, tmp_path, waits) >= 10, waits
    assert_same_run(tmp_path, whole[0])


def test_cut_off_inside_every_write(
    corpus: Corpus, whole: tuple[Path, TrainingSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die at the k-th fsync or rename, for k = 1, 2, …, until a run gets through."""
    left = 0

    def dying(original: object) -> object:
        def call(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise Crash
            return original(*arguments, **options)  # type: ignore[operator]

        return call

    monkeypatch.setattr(os, "fsync", dying(os.fsync))
    monkeypatch.setattr(Path, "replace", dying(Path.replace))
    monkeypatch.setattr(os, "replace", dying(os.replace))
    config = dataclasses.replace(CONFIG, save_every=1e6)
    deaths = 0
    for k in range(1, 60):
        left = k
        try:
            train(corpus, form(corpus), config, tmp_path, resume=True)
        except Crash:
            deaths += 1
            assert (tmp_path / "resume").exists() or k < 5, k  # training.csv comes first
        else:
            break
    assert deaths > 5
    assert_same_run(tmp_path, whole[0])


@pytest.mark.parametrize("presses", [1, 2])
def test_interrupted_by_hand(
    corpus: Corpus, whole: tuple[Path, TrainingSummary], tmp_path: Path, presses: int
) -> None:
    """The first Ctrl-C waits for the iteration and saves; the second does not wait."""

    class Press(Progress):
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def stepped(self, step: Step) -> None:
            if step.iteration == 10:
                for _ in range(presses):
                    os.kill(os.getpid(), signal.SIGINT)

        def warned(self, text: str) -> None:
            self.warnings.append(text)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
    press = Press()
    config = dataclasses.replace(CONFIG, save_every=1e6)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, form(corpus), config, tmp_path, progress=press)
    state = read_state(tmp_path)
    assert state is not None
    told = any("continue with `resume`" in text for text in press.warnings)
    # by the handler's check at the next iteration's start: one more is made
    assert (
        (state.values["iteration"] in (10, 11) and told) if presses == 1 else state.values["iteration"] == 7
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(corpus, form(corpus), config, tmp_path, resume=True)
    ours, theirs = (folder / "best" / "model.safetensors" for folder in (tmp_path, whole[0]))
    assert ours.read_bytes() == theirs.read_bytes()


def test_interrupted_during_the_last_validation(corpus: Corpus, tmp_path: Path) -> None:
    """What the caller does next, such as training another kind, does not begin."""
    config = dataclasses.replace(CONFIG, iterations=10)

    class Press(Progress):
        def validated(self, validation: Validation) -> None:
            if validation.iteration == 10:
                os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, form(corpus), config, tmp_path, progress=Press())
    state = read_state(tmp_path)
    assert state is not None
    assert (state.values["iteration"], state.values["finished"]) == (10, "budget")
    assert train(corpus, form(corpus), config, tmp_path, resume=True).iterations == 10


def test_a_longer_budget_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    short = dataclasses.replace(CONFIG, iterations=10)
    assert train(corpus, form(corpus), short, tmp_path).iterations == 10
    assert train(corpus, form(corpus), short, tmp_path, resume=True).iterations == 10
    assert train(corpus, form(corpus), CONFIG, tmp_path, resume=True).iterations == 40


def test_resuming_another_run_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, iterations=2)
    train(corpus, form(corpus), config, tmp_path / "out")
    other = dataclasses.replace(config, learning_rate=2e-2, window=8)
    with pytest.raises(TrainingError, match=r"`learning_rate` 0.01 is now 0.02; `window` 16 is now 8"):
        train(corpus, None, other, tmp_path / "out", resume=True)
    form8 = dataclasses.replace(form(corpus), hidden_size=8, embedding_size=8, encoder_hidden_size=4)
    with pytest.raises(TrainingError, match=r"`hidden_size` 16 is now 8"):
        train(corpus, form8, config, tmp_path / "out", resume=True)
    another = small_corpus(tmp_path / "corpus", random_seed=5)
    with pytest.raises(TrainingError, match="trained on another corpus"):
        train(another, None, config, tmp_path / "out", resume=True)


@pytest.mark.parametrize("keys", [1, 2])
def test_a_state_of_epochs_over_all_keys_is_refused(
    keys: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions wrote it; where no piece is stored in several keys, it was the same epoch, and goes on."""
    if keys > 1:
        corpus = small_corpus(tmp_path / "corpus", pieces=20, keys=keys)
    config, out = dataclasses.replace(CONFIG, iterations=2), tmp_path / "out"
    with monkeypatch.context() as earlier:
        earlier.setattr("melodia.training.resume.FORMAT_VERSION", 1)
        train(corpus, form(corpus), config, out)
    longer = dataclasses.replace(config, iterations=3)
    if keys > 1:
        with pytest.raises(
            TrainingError, match=r"up to 2 a piece\); .* start over with `force`, or .*`init`"
        ):
            train(corpus, None, longer, out, resume=True)
        train(corpus, form(corpus), config, out, force=True)
    assert train(corpus, None, longer, out, resume=True).iterations == 3
    with monkeypatch.context() as later:
        later.setattr("melodia.training.resume.FORMAT_VERSION", 3)
        train(corpus, form(corpus), config, out, force=True)
    with pytest.raises(TrainingError, match=r"has format 3, but this version reads up to 2"):
        train(corpus, None, longer, out, resume=True)


def test_a_damaged_state_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, iterations=2)
    train(corpus, form(corpus), config, tmp_path)
    path = tmp_path / "resume" / "state.safetensors"
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"", np.random.default_rng(0).bytes(500), data[:40]):
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"state.safetensors is damaged"):
            train(corpus, None, config, tmp_path, resume=True)


def test_folders_that_cannot_be_written(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match="cannot write"):
        train(corpus, form(corpus), CONFIG, tmp_path / "file" / "out")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(TrainingError, match="Permission denied"):
            train(corpus, form(corpus), CONFIG, tmp_path / "closed" / "out")


def test_a_full_disk_leaves_the_earlier_checkpoint_and_state(
    corpus: Corpus, whole: tuple[Path, TrainingSummary], tmp_path: Path
) -> None:
    """A limit on file size acts as a disk that is full: writing fails half-way."""
    with pytest.raises(Crash):
        train(corpus, form(corpus), CONFIG, tmp_path, progress=CrashAt(20))
    best = (tmp_path / "best" / "model.safetensors").read_bytes()
    kept = load_checkpoint(tmp_path / "best").training["iterations"]
    state = (tmp_path / "resume" / "state.safetensors").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, error in (
        (len(state) // 2, TrainingError),
        (len(best) // 2, (TrainingError, CheckpointError)),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(error, match=r"cannot write .*(state|checkpoint)"):
                train(corpus, None, CONFIG, tmp_path, resume=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert load_checkpoint(tmp_path / "best").training["iterations"] == kept
        assert (tmp_path / "resume" / "state.safetensors").read_bytes() == state
        assert not list((tmp_path / "resume").glob("*.part"))
    train(corpus, None, CONFIG, tmp_path, resume=True)
    assert_same_run(tmp_path, whole[0])


def test_a_finished_model_is_not_replaced_where_its_state_is_gone(corpus: Corpus, tmp_path: Path) -> None:
    best = tmp_path / "best"
    best.mkdir()
    (best / "config.json").write_text("mine")
    with pytest.raises(TrainingError, match=r"holds a checkpoint, but resume, .* is missing.*`init` .*best"):
        train(corpus, form(corpus), CONFIG, tmp_path, resume=True)
    assert (best / "config.json").read_text() == "mine"
