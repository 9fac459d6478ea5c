"""The peers of `python -m benchmarks`: everybody computes the same, and what is not there has no number."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_helpers import random_checkpoint

from benchmarks.suite import generation, machine, onnx_peer, ours, peers, per_note, quality, training
from benchmarks.suite.notochord_peer import Notochord
from benchmarks.suite.page import Section
from melodia import engine
from melodia.model import KINDS, Model, ModelConfig, load_checkpoint
from melodia.tokenizer import Tokenizer

needs_engine = pytest.mark.skipif(engine.reason() is not None, reason=f"needs the engine: {engine.reason()}")
needs_onnx = pytest.mark.skipif(onnx_peer.missing() is not None, reason=f"{onnx_peer.missing()}")

NETWORKS = [
    ModelConfig("sequential", 512, 24),
    ModelConfig("sequential", 512, 24, lstm_layers=2),
    ModelConfig("parallel", 512, 24),
    ModelConfig("reversed", 512, 24, gru_layers=2),
]


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
    parts = [[tokens for tokens, _, _ in streams.make(n)] for n in (1, 500, 1, 2_000)]
    made = [np.concatenate(each) for each in zip(*parts, strict=True)]
    grammar = Grammar.compile(vocabulary, Constraints(allow_eos=False))
    for tokens in made:
        assert len(tokens) == 2_502
        state = grammar.start()
        for token in (vocabulary.bos, *tokens.tolist()):
            grammar.advance(state, token)  # raises where it may not come
    assert len({tokens.tobytes() for tokens in made}) == 3


def test_a_chain_begins_at_the_same_tensors_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph needs: its inputs stay."""
    peer = peers.Eager(Model(ModelConfig("sequential", vocab_size=9, hidden_size=5)).eval(), 2)
    run = peer.chain(2)
    read: list[tuple[int, int]] = []
    forward = peer._forward

    def spy(token: torch.Tensor) -> torch.Tensor:
        read.append((token.data_ptr(), peer._states[0][0][0].data_ptr()))
        return forward(token)

    monkeypatch.setattr(peer, "_forward", spy)
    run()
    run()
    assert read[0] == read[2]
    assert read[0] != read[1]


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


@pytest.mark.parametrize(
    "kind",
    [kind if kind == "bidirectional" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
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


def test_tokens_of_a_note_are_counted(samples_dir: Path) -> None:
    from melodia.midi import read_score

    tokenizer = Tokenizer()
    notes = sum(read_score(path)[1].notes for path in samples_dir.glob("*.mid"))
    tokens = sum(len(tokenizer.encode(read_score(path)[0]).ids) for path in samples_dir.glob("*.mid"))
    # Notes that double another one are not written.
    assert per_note.tokens_per_note(tokenizer, samples_dir) == pytest.approx(tokens / notes, rel=0.02)


@pytest.mark.slow  # a process that imports torch, twice
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
