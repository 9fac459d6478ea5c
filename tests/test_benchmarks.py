"""The suite behind `python -m benchmarks`: its arithmetic, its page, and a whole run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import math
import os
import pkgutil
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_helpers import random_checkpoint
from conftest import REPOSITORY

import benchmarks.suite
from benchmarks import __main__ as command
from benchmarks.suite import machine
from benchmarks.suite.floor import Reading
from benchmarks.suite.measuring import Timing, Way, interleave, percentile
from benchmarks.suite.options import Options
from benchmarks.suite.page import Page, Section, Table, Target, figure
from melodia import engine

needs_engine = pytest.mark.skipif(engine.reason() is not None, reason=f"needs the engine: {engine.reason()}")


def test_the_examples_in_the_benchmarks_are_true() -> None:
    tried = 0
    for entry in pkgutil.walk_packages(benchmarks.__path__, "benchmarks."):
        spec = importlib.util.find_spec(entry.name)
        assert spec is not None
        assert spec.origin is not None
        if ">>> " not in Path(spec.origin).read_text("utf-8"):  # others may need what is not installed
            continue
        found = doctest.testmod(importlib.import_module(entry.name), optionflags=doctest.ELLIPSIS)
        assert found.failed == 0, entry.name
        tried += found.attempted
    assert tried >= 10


# -- measuring --------------------------------------------------------------------------------------------------------


def test_ways_take_turns_and_medians_are_of_turns() -> None:
    """A clock that is told: one way takes 1 ms a time, the other 2 ms, and 1 s in its second measured turn."""
    calls: list[str] = []

    def timed(name: str, each: float) -> Way:
        turns = 0

        def seconds(times: int) -> float:
            nonlocal turns
            calls.append(name)
            if times == 100:  # a turn, no calibration and no warm-up
                turns += 1
            return 1.0 if name == "slow" and turns == 2 and times == 100 else each * times

        return Way(lambda times: None, timed=seconds)

    found = interleave({"fast": timed("fast", 1e-3), "slow": timed("slow", 1e-3)}, 0.0, turn=0.1, rounds=5)
    assert found["fast"].times == 100
    assert found["fast"].turns == (1e-3,) * 5
    assert found["slow"].turns == (1e-3, 1e-2, 1e-3, 1e-3, 1e-3)
    assert found["slow"].median == 1e-3
    turns = calls[-4 * 5 :: 2]  # each turn is a warm-up and the measured calls
    assert turns == ["fast", "slow", "slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]


def test_a_way_is_prepared_before_every_turn_and_not_timed_while_it_is() -> None:
    import time

    prepared = 0

    def prepare() -> None:
        nonlocal prepared
        prepared += 1
        time.sleep(0.01)

    found = interleave({"a": Way(lambda times: None, prepare)}, 0.0, turn=1e-4, rounds=4)
    assert prepared == 5  # and before the calibration
    assert found["a"].median < 1e-3


def test_rounds_go_on_while_there_is_time() -> None:
    import time

    few = interleave({"a": Way(lambda times: time.sleep(0.01 * times))}, 0.0, turn=0.01, rounds=3)
    many = interleave({"a": Way(lambda times: time.sleep(0.01 * times))}, 0.4, turn=0.01, rounds=3)
    assert len(few["a"].turns) == 3
    assert len(many["a"].turns) > 6
    assert 0.01 <= few["a"].median < 0.1  # a busy machine wakes it late


def test_percentiles_and_spread_are_those_of_others() -> None:
    values = np.random.default_rng(1).exponential(size=997).tolist()
    for share in (0.01, 0.5, 0.99, 0.999, 1.0):
        assert percentile(values, share) == np.quantile(values, share, method="inverted_cdf")
    low, high = np.quantile(values, (0.25, 0.75))
    timing = Timing(tuple(values), 1)
    assert timing.median == statistics.median(values)
    assert timing.spread == pytest.approx((high - low) / 2 / timing.median)
    with pytest.raises(ValueError, match="values"):
        percentile([], 0.5)


def test_a_floor_reads_the_bytes_it_says_with_every_thread() -> None:
    for threads in (1, 2):
        reading = Reading(1_000_000, threads, "or")
        assert abs(reading.size - 1_000_000) < 64
        assert sum(part.nbytes for part in reading._parts) == reading.size
        large = Reading(16_000_000, threads, "max")
        few, many = (min(_timed(large, times) for _ in range(20)) for times in (1, 20))
        assert many > 4 * few  # a view that repeats the buffer is really read again


def _timed(way: Reading, times: int) -> float:
    import time

    began = time.perf_counter()
    way(times)
    return time.perf_counter() - began


def test_other_work_is_seen(tmp_path: Path) -> None:
    if machine.other_work(0.01) is None:
        pytest.skip("needs /proc")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        try:
            busy = machine.other_work(0.5)
        finally:
            loop.kill()
    assert busy is not None
    assert busy > 0.3


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "met", "verdict", "limit"),
    [
        (Target("a", "b", 9, 9.0), True, "met", "≥ 9×"),
        (Target("a", "b", 9, 8.1), False, "**missed** by 10%", "≥ 9×"),
        (Target("a", "b", 1.3, 1.3, at_most=True), True, "met", "≤ 1.3×"),
        (Target("a", "b", 1.0, 1.5, unit=" s", at_most=True), False, "**missed** by 50%", "≤ 1 s"),
        (Target("a", "b", 0.01, -0.1, at_most=True), True, "met", "≤ 0.01×"),
        (Target("a", "b", 2, None, why="no GPU"), None, "not measured: no GPU", "≥ 2×"),
    ],
)
def test_a_target_says_whether_it_is_met(target: Target, met: bool | None, verdict: str, limit: str) -> None:
    assert target.met is met
    assert target.verdict == verdict
    assert target.cells()[2] == limit


def test_figures_have_three_digits() -> None:
    random = np.random.default_rng(1)
    for value in (10.0 ** random.uniform(-4, 7, 500)).tolist():
        text = figure(value)
        assert "e" not in text
        assert float(text.replace(",", "")) == pytest.approx(value, rel=5.1e-3)
        assert len(text.replace(",", "").replace(".", "").lstrip("0")) == max(
            3, math.floor(math.log10(value)) + 1
        )


def page() -> Page:
    table = Table(["way", "µs"], [["a | b", "1.5"]], caption="small")
    good = Section(
        "generation", "Generation", "How.", [table], [Target("speed", "others", 2, 3.0)], ["a note"]
    )
    bad = Section("busy", "A busy machine", failed="RuntimeError: no cores")
    return Page({"date": "today"}, [good, bad], left_out=["quality"], remarks=["Quick."])


def test_a_page_has_facts_targets_tables_failures_and_what_was_left_out(tmp_path: Path) -> None:
    made = page()
    made.write(tmp_path / "B.md")
    text = (tmp_path / "B.md").read_text("utf-8")
    for words in (
        "- date: today",
        "**Quick.**",
        "| speed | others | ≥ 2× | 3.00× | met |",
        "## Generation",
        "| a / b | 1.5 |",
        "- a note",
        "This part failed:** `RuntimeError: no cores`",
        "Not part of this run: quality.",
    ):
        assert words in text
    values = json.loads((tmp_path / "B.json").read_text("utf-8"))
    assert values["sections"][0]["targets"][0]["met"] is True
    assert values["sections"][1]["failed"] == "RuntimeError: no cores"
    assert {path.name for path in tmp_path.iterdir()} == {"B.md", "B.json"}
    with pytest.raises(ValueError, match="a row of 1"):
        Table(["a", "b"], [["only one"]]).lines()


# -- the command ------------------------------------------------------------------------------------------------------


def fake_topics(monkeypatch: pytest.MonkeyPatch, **runs: object) -> None:
    """Topics whose modules are made up."""
    monkeypatch.setattr(command, "TOPICS", {name: (name, name.title()) for name in runs})
    modules = {f"benchmarks.suite.{name}": SimpleNamespace(run=run) for name, run in runs.items()}
    monkeypatch.setattr(command.importlib, "import_module", modules.__getitem__)


def test_a_topic_that_fails_does_not_lose_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "deep" / "B.md"
    seen_before: list[str] = []

    def works(options: Options, section: Section) -> None:
        section.tables.append(Table(["way"], [["works"]]))

    def breaks(options: Options, section: Section) -> None:
        section.tables.append(Table(["way"], [["before it broke"]]))
        raise RuntimeError("it broke in '/home/me/a.txt'\nin two lines")

    def last(options: Options, section: Section) -> None:
        seen_before.append(out.read_text("utf-8"))

    fake_topics(monkeypatch, one=works, two=breaks, three=last)
    monkeypatch.setattr(command, "other_work", lambda: 1.5)
    assert command.main(["--out", str(out), "--only", "three,two,one"]) == 1
    text = out.read_text("utf-8")
    assert "Other processes were using 1.5 cores" in text
    assert "| works |" in text
    assert "| before it broke |" in text
    assert "`RuntimeError: it broke in '…/a.txt'`" in text
    assert "stopped before its end" not in text
    assert "| before it broke |" in seen_before[0]
    assert "stopped before its end" in seen_before[0]


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def works(options: Options, section: Section) -> None:
        section.notes.append("kept")

    def interrupted(options: Options, section: Section) -> None:
        raise KeyboardInterrupt

    fake_topics(monkeypatch, one=works, two=interrupted)
    assert command.main(["--out", str(tmp_path / "B.md"), "--only", "one,two"]) == 130
    text = (tmp_path / "B.md").read_text("utf-8")
    assert "kept" in text
    assert "stopped before its end" in text


def test_only_knows_its_topics_and_the_page_names_no_folders() -> None:
    assert command.topics_of("training, generation") == ["generation", "training"]
    with pytest.raises(SystemExit):
        command.parse(["--only", "generation,singing"])
    assert "home" not in command.shown_command(["--model", "/home/me/model", "--quick"])
    for module, _ in command.TOPICS.values():
        assert callable(importlib.import_module(f"benchmarks.suite.{module}").run)


@pytest.mark.slow
@needs_engine
def test_a_quick_run_writes_every_section(tmp_path: Path, samples_dir: Path) -> None:
    """The whole suite as a process of its own, with a model and music."""
    out = tmp_path / "B.md"
    words = [
        "--quick",
        "--model",
        str(random_checkpoint(tmp_path)),
        "--corpus",
        str(samples_dir),
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    text = out.read_text("utf-8")
    for _, title in command.TOPICS.values():
        assert f"\n## {title}\n" in text
    assert "This part failed" not in text
    assert "notochord is not installed" in text
    for network in ("i-a: ", "i-b: ", "ii: "):
        assert f"**{network}" in text
    assert "A quick run" in text
    assert str(tmp_path) not in text
    values = json.loads(out.with_suffix(".json").read_text("utf-8"))
    assert [section["topic"] for section in values["sections"]] == list(command.TOPICS)
    assert all(
        math.isfinite(t["value"]) for s in values["sections"] for t in s["targets"] if t["value"] is not None
    )
