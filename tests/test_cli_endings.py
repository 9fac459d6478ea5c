"""How a command ends when it is not left in peace: Ctrl-C, no memory, no library, a reader that has gone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import CONFIG, form, small_corpus

from melodia.cli import main
from melodia.cli.loading import loading
from melodia.corpus.shards import Corpus
from melodia.errors import TrainingError, out_of_memory
from melodia.model import Model, ModelConfig
from melodia.model.checkpoint import save_checkpoint
from melodia.tokenizer import Tokenizer
from melodia.training import train
from melodia.training.learner import Learner

SHIM = (
    'torch_call_dispatcher( "aten::new_empty", "", stack.data(), (1ULL)) API call failed at ops.h, line 939'
)
NO_MEMORY = [
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:115] data. DefaultCPUAllocator: not enough memory: you tried"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("std::bad_alloc"),
    RuntimeError(SHIM),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned nothing."""
    tokenizer = Tokenizer()
    config = ModelConfig(kind="gru", vocab_size=tokenizer.vocabulary.size, hidden_size=16, gru_layers=1)
    return save_checkpoint(
        tmp_path_factory.mktemp("model") / "best",
        Model(config, random_seed=1),
        vocabulary=tokenizer.vocabulary,
        tokenizer_json=tokenizer.to_dict(),
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def test_ctrl_c_ends_a_generation_in_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    over = threading.Event()

    def press() -> None:
        """Again and again: one that arrives in a callback of the garbage collector, hypothesis's say, is lost."""
        while not over.wait(0.5):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored
    presser = threading.Thread(target=press)
    presser.start()
    try:
        arguments = ["generate", "--model", str(model), "--bars", "100000", "--out", str(tmp_path / "a.mid")]
        assert main(arguments) == 130
    finally:
        over.set()
        presser.join()
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr() == ("", "melodia: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_command_line_without_its_library_ends_in_words() -> None:
    """As after `pip install --no-deps`; in a process of its own, since the library is loaded in this one."""
    code = "import sys; sys.modules['typer'] = None; from melodia.cli import main; sys.exit(main(['info']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("melodia: the command line needs typer, which cannot be imported (")
    assert line.endswith("); install it")


def test_ctrl_c_waits_for_imports_to_end() -> None:
    loaded = []

    def load() -> None:
        with loading():
            os.kill(os.getpid(), signal.SIGINT)
            loaded.append("torch")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            load()
        assert loaded
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with loading():
            pass
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: f"{type(error).__name__}: {error}"[:50])
def test_a_training_without_memory_says_what_to_do(
    error: Exception, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Learner.update

    def short(self: Learner, *given: Any) -> Any:
        if self.iteration == 3:
            raise error
        return whole(self, *given)

    config = dataclasses.replace(CONFIG, iterations=5)
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "update", short)
        message = rf"out of memory on cpu with `batch_size` 4 .*{re.escape(str(tmp_path))} has saved is kept"
        with pytest.raises(
            TrainingError,
            match=rf"{message}, and `resume` .*\(`force`\) with a smaller `batch_size`.*or with `rec",
        ) as caught:
            train(corpus, form(corpus), config, tmp_path)
    assert caught.value.__cause__ is error
    assert train(corpus, form(corpus), config, tmp_path, resume=True).iterations == 5


def test_a_training_that_had_no_memory_to_begin(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*given: Any, **named: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("melodia.training.loop.Learner", short)
    config = dataclasses.replace(CONFIG, recompute=True)
    with pytest.raises(TrainingError, match=r"nothing has been saved yet\. Retrain with a smaller") as caught:
        train(corpus, form(corpus), config, tmp_path)
    assert "`recompute`" not in str(caught.value)


def test_other_commands_without_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(error: Exception) -> int:
        def short(*given: Any, **named: Any) -> None:
            raise error

        monkeypatch.setattr("melodia.workflows.generate.generate_files", short)
        return main(["generate", "--out", str(tmp_path / "a.mid")])

    for error in NO_MEMORY:
        assert fails(error) == 1
        assert (
            capsys.readouterr().err
            == "melodia: out of memory; close other programs, or ask for less at once\n"
        )
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not out_of_memory(other)
    with pytest.raises(RuntimeError, match="mat1"):
        fails(other)  # a mistake of ours, to be reported with all that is known


def unread(arguments: list[str]) -> int:
    """Run a command whose standard output is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, contextlib.redirect_stdout(stream):
        status = main(arguments)
        stream.flush()  # what was left would fail here, as at the end of the program
    return status


class Trained:
    """Stands for what a training gives back."""

    def lines(self) -> list[str]:
        return ["trained 3 iterations", "checkpoint best", "sample 1.mid"]


def test_a_report_that_nobody_reads_fails_no_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("melodia.workflows.train.train_folder", lambda *given, **named: Trained())
    assert unread(["train", str(tmp_path), "--out", str(tmp_path / "out")]) == 0


def test_a_report_that_nobody_reads_fails_no_generation(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.mid"
    assert unread(["generate", "--model", str(model), "--bars", "1", "--out", str(out)]) == 0
    assert out.is_file()


def test_tables_that_nobody_reads_cost_no_file(model: Path, tmp_path: Path, samples_dir: Path) -> None:
    found = tmp_path / "found.json"
    piece = sorted(samples_dir.glob("*.mid"))[0]
    assert unread(["evaluate", str(piece), "--model", str(model), "--json", str(found)]) == 0
    assert found.is_file()


def test_files_that_nobody_wants_to_know_of_are_not_read(
    samples_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from melodia.workflows.inspect import inspect_file

    read: list[Path] = []
    monkeypatch.setattr(
        "melodia.workflows.inspect.inspect_file", lambda path: read.append(path) or inspect_file(path)
    )
    files = sorted(samples_dir.glob("*.mid"))[:3]
    assert unread(["inspect", *map(str, files)]) == 0
    assert read == files[:1]


def test_no_kind_is_broken_over_two_lines_of_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default is there to be copied, less what is not to be trained."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    for kind in ("lstm", "gru", "sequential", "reversed", "parallel", "bidirectional"):
        assert kind in text
