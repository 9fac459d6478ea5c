"""The suite behind `python -m benchmarks`: its arithmetic, that everybody computes the same, and a whole run."""

from __future__ import annotations

import doctest
import importlib
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
import torch
from conftest import REPOSITORY

import benchmarks.suite
from benchmarks import __main__ as command
from benchmarks.suite import generation, machine, onnx_peer, ours, peers, per_note, quality, training
from benchmarks.suite.floor import Reading
from benchmarks.suite.measuring import Timing, Way, interleave, percentile
from benchmarks.suite.notochord_peer import Notochord
from benchmarks.suite.options import Options
from benchmarks.suite.page import Page, Section, Table, Target, figure
from melodia import engine
from melodia.model import KINDS, Model, ModelConfig, load_checkpoint, save_checkpoint
from melodia.tokenizer import Tokenizer

needs_engine = pytest.mark.skipif(engine.reason() is not None, reason=f"needs the engine: {engine.reason()}")
needs_onnx = pytest.mark.skipif(onnx_peer.missing() is not None, reason=f"{onnx_peer.missing()}")

NETWORKS = [
    ModelConfig("sequential", 512, 24),
    ModelConfig("sequential", 512, 24, lstm_layers=2),
    ModelConfig("parallel", 512, 24),
    ModelConfig("reversed", 512, 24, gru_layers=2),
]


def test_the_examples_in_the_suite_are_true() -> None:
    tried = 0
    for entry in pkgutil.iter_modules(benchmarks.suite.__path__):
        module = importlib.import_module(f"benchmarks.suite.{entry.name}")
        found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
        assert found.failed == 0, entry.name
        tried += found.attempted
    assert tried >= 4


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
    assert few["a"].median == pytest.approx(0.01, rel=0.5)


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
        few, many = (min(_timed(large, times) for _ in range(5)) for times in (1, 20))
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


# -- everybody computes the same --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: f"{config.kind}-{config.lstm_layers}")
@pytest.mark.parametrize("B", [1, 3])
def test_all_peers_compute_the_model(config: ModelConfig, B: int) -> None:
    model = Model(config, random_seed=5).eval()
    contestants: dict[str, peers.Peer] = {
        "eager": peers.Eager(model, B),
        "cells": peers.Cells(model, B),
    }
    if onnx_peer.missing() is None:
        contestants["onnx"] = onnx_peer.Onnx(model, B, 1)
    if engine.reason() is None:
        contestants["engine"] = ours.Ours(model, ours.small_vocabulary(), "fp32", B, 1)
    with torch.inference_mode():
        state = model.initial_state(B)
        if "engine" in contestants:  # it has read a token to begin with
            _, state = model.step(torch.full((B,), ours.small_vocabulary().bos), None, state)
            for name, peer in contestants.items():
                if name != "engine":
                    peer.logits(ours.small_vocabulary().bos)
        for token in (7, 0, 49, 7):
            wanted, state = model.step(torch.full((B,), token), None, state)
            for name, peer in contestants.items():
                np.testing.assert_allclose(peer.logits(token), wanted.numpy(), atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler calls what torch deprecates
@pytest.mark.parametrize("config", [NETWORKS[0], NETWORKS[2]], ids=lambda config: config.kind)
def test_the_compiled_peer_computes_the_model(config: ModelConfig) -> None:
    model = Model(config, random_seed=5).eval()
    peer = peers.Compiled(model, 3)
    with torch.inference_mode():
        state = model.initial_state(3)
        for _ in range(3):
            read = peer._token
            peer.step()
            logits, state = model.step(read, None, state)
            kept = logits.topk(peers.TOP_K).indices
            assert (kept == peer._token[:, None]).any(dim=1).all()
            for mine, theirs in zip(state, peer._state, strict=True):
                torch.testing.assert_close(tuple(theirs), tuple(mine), atol=1e-5, rtol=1e-4)


@needs_engine
def test_the_engine_makes_as_many_valid_tokens_as_it_says() -> None:
    from melodia.grammar import Constraints, Grammar

    vocabulary = ours.small_vocabulary()
    model = Model(ModelConfig("sequential", vocabulary.size, 16), random_seed=1).eval()
    streams = ours.Ours(model, vocabulary, "fp32", 3, 1)
    made = [
        np.concatenate(parts) for parts in zip(*(streams.make(n) for n in (1, 500, 1, 2_000)), strict=True)
    ]
    grammar = Grammar.compile(vocabulary, Constraints(allow_eos=False))
    for tokens in made:
        assert len(tokens) == 2_502
        state = grammar.start()
        for token in (vocabulary.bos, *tokens.tolist()):
            grammar.advance(state, token)  # raises where it may not come
    assert len({tokens.tobytes() for tokens in made}) == 3


def test_peers_draw_among_the_likeliest_in_proportion() -> None:
    torch.manual_seed(1)
    logits = torch.log(torch.arange(1.0, 51.0)).repeat(4000, 1)  # token k has a share of k + 1
    counts = np.bincount(peers.drawn(logits).numpy(), minlength=50)
    assert counts[: 50 - peers.TOP_K].sum() == 0
    shares = np.arange(11, 51) / np.arange(11, 51).sum()
    expected = 4000 * shares
    statistic = ((counts[10:] - expected) ** 2 / expected).sum()
    assert statistic < 73  # chi square of 39 degrees, one in a thousand


@needs_onnx
def test_the_draw_beside_onnx_runtime_is_the_same_distribution() -> None:
    model = Model(ModelConfig("sequential", 50, 4), random_seed=1).eval()
    with torch.no_grad():  # logits that depend on nothing but the head's bias
        model.head.weight.zero_()
        model.head.bias.copy_(torch.log(torch.arange(1.0, 51.0)))
    peer = onnx_peer.Onnx(model, 4000, 1)
    peer.step()
    counts = np.bincount(peer._inputs["token"], minlength=50)
    assert counts[:10].sum() == 0
    expected = 4000 * np.arange(11, 51) / np.arange(11, 51).sum()
    assert ((counts[10:] - expected) ** 2 / expected).sum() < 73


def test_peers_refuse_what_they_do_not_know() -> None:
    for config in (ModelConfig("parallel", 9, 4, combine="sum"), ModelConfig("gru", 9, 4, layer_norm=True)):
        with pytest.raises(ValueError, match="do not know"):
            peers.Eager(Model(config), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_training_compares_the_same_outputs_and_gradients(kind: str) -> None:
    mine, theirs = training.contest(kind, 3, 2 * training.BLOCK + 5, 8)
    out, other = mine.forward(), theirs.forward()
    torch.testing.assert_close(other, out, atol=1e-5, rtol=1e-4)
    mine(1)
    theirs(1)
    assert mine.model.input.weight.grad is not None
    torch.testing.assert_close(
        theirs.embedding.weight.grad, mine.model.input.weight.grad, atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_torch_counts(kind: str) -> None:
    """All but the first step's gradient with respect to the state before it, which nobody asks for."""
    from torch.utils.flop_counter import FlopCounterMode

    from melodia.kernels import use_backend

    B, T = 32, 3 * training.BLOCK + 1  # all blocks but the last token's are finished
    mine, _ = training.contest(kind, B, T, 16)
    with use_backend("reference"), FlopCounterMode(display=False) as counter:
        mine(1)
    counted = training.products(mine.model.config, B, T)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.006)


@needs_engine
def test_quality_scores_as_training_does(samples_dir: Path, tmp_path: Path) -> None:
    from melodia.training.evaluate import evaluate
    from melodia.training.streams import Preparer

    checkpoint = load_checkpoint(random_checkpoint(tmp_path))
    pieces = quality.held_out(samples_dir, checkpoint)
    preparer = Preparer(checkpoint.vocabulary, checkpoint.config.side_inputs)
    chosen = quality.passages(pieces, preparer, 1_000)
    total = sum(passage.inputs.size - 1 for passage in chosen)
    assert 1_000 <= total < int(pieces.lengths.sum())
    everything = quality.passages(pieces, preparer, 1 << 40)
    assert len(everything) == len(pieces)
    nats, scored = quality.engine_nats(checkpoint, "fp32", everything)
    wanted = evaluate(checkpoint.model, pieces, preparer)
    assert scored.sum() == wanted.tokens.sum()
    np.testing.assert_allclose(np.sort(nats), np.sort(wanted.nats), rtol=1e-5)
    assert quality.half_width(np.zeros(len(nats)), scored) == 0.0
    assert quality.half_width(nats - nats * 1.1, scored) > 0.0


def random_checkpoint(folder: Path) -> Path:
    """A checkpoint with random weights."""
    from melodia.side_inputs import default_specs

    tokenizer = Tokenizer()
    vocabulary = tokenizer.vocabulary
    config = ModelConfig("sequential", vocabulary.size, 16, side_inputs=default_specs(vocabulary)[:3])
    return save_checkpoint(
        folder / "model",
        Model(config, random_seed=2),
        vocabulary=vocabulary,
        tokenizer_json=tokenizer.to_dict(),
    )


def test_tokens_of_a_note_are_counted(samples_dir: Path) -> None:
    from melodia.midi import read_score

    tokenizer = Tokenizer()
    notes = sum(read_score(path)[1].notes for path in samples_dir.glob("*.mid"))
    tokens = sum(len(tokenizer.encode(read_score(path)[0]).ids) for path in samples_dir.glob("*.mid"))
    # Notes that double another one are not written.
    assert per_note.tokens_per_note(tokenizer, samples_dir) == pytest.approx(tokens / notes, rel=0.02)


def test_notochord_answers_from_its_own_process_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in of the package: what is tested is the talk between the processes."""
    with pytest.raises(RuntimeError, match="No module named 'notochord'"):
        Notochord(Path(sys.executable), 1)
    (tmp_path / "notochord.py").write_text(
        "import time, torch\n"
        "class Notochord(torch.nn.Linear):\n"
        "    def __init__(self): super().__init__(3, 4); self.step = 0\n"
        "    def reset(self): pass\n"
        "    def query(self): print('chatter'); time.sleep(0.004); return {'pitch': 60}\n"
        "    def feed(self, pitch): assert pitch == 60; self.step += 1; time.sleep(0.001)\n"
    )
    (tmp_path / "notochord-9.9.dist-info").mkdir()
    (tmp_path / "notochord-9.9.dist-info" / "METADATA").write_text("Name: notochord\nVersion: 9.9\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Notochord(Path(sys.executable), 1)
    try:
        assert (child.facts["parameters"], child.facts["notochord"]) == (16, "9.9")
        taken = [child.timed(events) for events in (1, 10)]
    finally:
        child.close()
    assert taken[1] > 0.05
    assert child.events == 11
    assert child.query > 0.044
    assert child.feed > 0.011
    assert sum(taken) >= child.query + child.feed


def test_what_is_not_there_is_a_row_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_peer, "missing", lambda: "onnxruntime is not installed")
    monkeypatch.setattr(machine, "thread_counts", lambda: [1])
    monkeypatch.setattr(generation, "thread_counts", lambda: [1])
    if engine.reason() is not None:
        pytest.skip("needs the engine")
    network = generation.networks(quick=True)[0]
    contest = generation.measure(Model(network.config).eval(), 1, 0.1, compiled=False)
    section = Section("generation", "Generation")
    generation._report(section, network, 1, contest)
    (row,) = [row for row in section.tables[0].rows if row[0].startswith("ONNX Runtime")]
    assert row == ["ONNX Runtime: onnxruntime is not installed", *[""] * (len(row) - 1)]
    verdicts = {target.verdict for target in section.targets if target.against == generation.ONNX}
    assert verdicts == {"not measured: onnxruntime is not installed"}
    eager = [target for target in section.targets if target.against == generation.EAGER]
    ratio = contest.timings[generation.EAGER, 1].median / contest.timings["int8", 1].median
    assert eager[2].value == ratio


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
