"""The processes that read files: what is stuck, hungry or broken has its verdict, and nobody else has it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from melodia.corpus import worker as worker_module
from melodia.corpus.worker import FileLimits, map_files
from melodia.errors import CorpusError


def test_the_pool_outlives_bad_files(tmp_path, monkeypatch):
    """Stuck, hungry, crashing and failing files get their verdict, and all the others their tokens."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    names = ["a", "sleep", "spin", "bb", "hungry", "ccc", "crash", "raise", "dddd"]
    paths = [tmp_path / name for name in names]
    limits = FileLimits(seconds=1.5, patience=2.0, memory=300 << 20)
    results = {
        names[result.index]: result
        for result in map_files(
            paths, {"note": "fine"}, workers=2, limits=limits, prepare="corpus_preparers:make"
        )
    }
    assert set(results) == set(names)
    reasons = {name: result.row["reason"] for name, result in results.items()}
    assert reasons["sleep"] == "time limit (1.5 s)", "asleep: the wall clock"
    assert reasons["spin"] == "time limit (1.5 s)", "busy: the processor's clock"
    assert reasons["hungry"] == "memory limit (300 MB)"
    assert "exit status 7" in reasons["crash"]
    assert "KeyError" in reasons["raise"]
    for name in ("a", "bb", "ccc", "dddd"):
        assert results[name].row == {"verdict": "used", "reason": "fine"}
        assert results[name].tokens.tolist() == list(range(len(name)))


def test_time_that_runs_out_behind_an_answer_is_no_verdict_of_the_next_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    receive = worker_module.receive

    def late(stream):
        """Every answer comes, and then the clock strikes."""
        answer = receive(stream)
        if "verdict" in answer[0]:
            time.sleep(1.2)
        return answer

    monkeypatch.setattr(worker_module, "receive", late)
    paths = [tmp_path / name for name in ("a", "bb")]
    results = map_files(
        paths, {}, workers=1, limits=FileLimits(seconds=0.5, patience=2.0), prepare="corpus_preparers:make"
    )
    assert [result.row["verdict"] for result in results] == ["used", "used"]


def test_what_lies_in_the_working_folder_is_not_run(tmp_path, monkeypatch):
    """A folder of music may hold anything, and its owner may stand in it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue.py").write_text("raise SystemExit('run from the working folder')", "utf-8")
    (result,) = map_files([tmp_path / "a"], {}, workers=1, prepare="corpus_preparers:make")
    assert result.row["verdict"] == "used"


def test_a_worker_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with pytest.raises(CorpusError, match="no such luck"):
        list(map_files([Path("a")], {}, workers=1, prepare="corpus_preparers:broken"))


def test_leaving_early_ends_the_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    started = time.monotonic()
    results = map_files(
        [tmp_path / "a", *[tmp_path / f"sleep{i}" for i in range(20)]],
        {},
        workers=2,
        limits=FileLimits(seconds=50.0),
        prepare="corpus_preparers:make",
    )
    assert next(results).row["verdict"] == "used"
    results.close()
    assert time.monotonic() - started < 20.0
