"""A training has its folder for itself, and goes on when nobody listens."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from training_helpers import ENVIRONMENT

from melodia.cli.console import LastingConsole
from melodia.cli.progress import ConsoleProgress
from melodia.errors import TrainingError
from melodia.training import Plan, Step, Validation, World, lock
from melodia.training.interrupt import Interrupt
from melodia.training.lock import FILE, only_training
from melodia.training.watch import corpus_warnings
from melodia.workflows.compare import Comparison, Row

NAN = float("nan")
HOLD = """
import sys
from pathlib import Path
from melodia.training import World
from melodia.training.lock import only_training
with only_training(Path(sys.argv[1]), World()):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_training(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "a" / "out"
    for _ in range(2):  # free again at the end
        with (
            only_training(out, World()),
            pytest.raises(TrainingError, match=r"another training is running in .*out; .*choose another"),
            only_training(out, World()),
        ):
            pass
        assert not list(tmp_path.iterdir()), "nothing came of it"


def test_a_folder_is_free_when_its_process_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TrainingError, match="another training"), only_training(tmp_path, World()):
            pass
        other.kill()
    assert (tmp_path / FILE).exists()
    with only_training(tmp_path, World()):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with (
            pytest.raises(TrainingError, match=r"cannot write .*; choose another folder"),
            only_training(out, World()),
        ):
            pass


def test_a_start_that_fails_leaves_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(lock, "_lock", full)
    with (
        pytest.raises(TrainingError, match=r"cannot write .*no space"),
        only_training(tmp_path / "a" / "out", World()),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_progress_that_nobody_reads_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as file:
        with ConsoleProgress("train", LastingConsole(file=file)) as progress:
            progress.say("nobody reads this")
            progress.read(1, 2, "a.mid")
            progress.warned("nor this")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # what is buffered has to go somewhere


def test_a_full_disk_under_the_report_is_no_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("w") as file, ConsoleProgress("train", LastingConsole(file=file)) as progress:
        progress.say("no room for this")
        progress.say("nor for this")
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # what is buffered has to go somewhere


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as file:
        progress = ConsoleProgress("train", Console(file=file, width=300))
        progress.started(Plan(9, 1, 9, 0, 0, None, 5400.0, 9, 0, "cpu", "fp32", 1, 12))
        progress.stepped(Step(1, 0.1, 0.1, 1.0, None, NAN, 1e-3, 2.5, NAN, 1.0))
        progress.validated(Validation(1, NAN, NAN, 2.5, 3.5, True, 0.1))
        file.seek(0)
        text = file.read()
    assert "of 1 piece in up to 12 keys, one of them an epoch (0 held out), 1:30:00 hours, cpu" in text
    assert "nan" not in text
    assert "– tokens/s" in text
    assert "iteration 1: training 2.5000 nats/token, 3.500 nats/note  saved" in text
    assert "held-out" not in text
    assert "best so far" not in text
    assert text.rstrip().endswith("saved")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_closed_terminal_ends_a_training_in_good_order() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests run under
    try:
        with Interrupt() as interrupt:
            for _ in range(2):  # it may come more than once
                os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.wanted
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.wanted
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_table_has_dashes_where_nothing_was_measured(tmp_path: Path) -> None:
    row = Row("gru", 1000, 16, NAN, NAN, NAN, 1.5, NAN, NAN, NAN)
    text = Comparison([row], {}, tmp_path / "comparison.md").markdown()
    assert "nan" not in text
    assert "| 1.5000 (–) | – |" in text


def test_whoever_has_no_held_out_pieces_learns_how_to_get_some() -> None:
    assert any("train/ and valid/" in text for text in corpus_warnings(100, 10**6, 0, 1000))
