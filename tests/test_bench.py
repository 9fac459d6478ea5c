"""`melodia bench`: what it prints, what it refuses, and that the engine's rows need no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from melodia import engine
from melodia.cli import main
from melodia.errors import CheckpointError, ConfigError
from melodia.model import Model, ModelConfig, save_checkpoint
from melodia.tokenizer import Tokenizer
from melodia.workflows import bench as workflow
from melodia.workflows.bench import bench, default_threads

needs_engine = pytest.mark.skipif(engine.reason() is not None, reason=f"needs the engine: {engine.reason()}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with side inputs and LayerNorm."""
    from melodia.side_inputs import default_specs

    tokenizer = Tokenizer()
    vocabulary = tokenizer.vocabulary
    config = ModelConfig(
        "parallel",
        vocab_size=vocabulary.size,
        hidden_size=12,
        layer_norm=True,
        side_inputs=default_specs(vocabulary)[:2],
    )
    folder = tmp_path_factory.mktemp("bench") / "my-model"
    return save_checkpoint(
        folder, Model(config, random_seed=3), vocabulary=vocabulary, tokenizer_json=tokenizer.to_dict()
    )


@needs_engine
def test_every_way_has_a_row_with_figures_that_fit_together(model: Path) -> None:
    result = bench(model, threads=[1], seconds=0.3)
    assert result.model == f"my-model: parallel, 2 layers of 12, {Tokenizer().vocabulary.size} tokens"
    assert result.parameters == sum(p.numel() for p in _loaded(model).parameters())
    assert [(speed.way, speed.threads) for speed in result.speeds] == [
        ("PyTorch", 1),
        ("fp32", 1),
        ("bf16", 1),
        ("int8", 1),
    ]
    base = result.speeds[0]
    assert base.times_pytorch == 1.0
    for speed in result.speeds:
        assert speed.tokens >= 1
        assert 0 < speed.p50 <= speed.p99
        assert speed.times_pytorch == pytest.approx(speed.tokens_per_second / base.tokens_per_second)


def _loaded(folder: Path) -> Model:
    from melodia.model import load_checkpoint

    return load_checkpoint(folder).model


@needs_engine
def test_the_engine_and_pytorch_measure_the_same_network(model: Path) -> None:
    """The likeliest tokens that the grammar allows, with PyTorch's logits, are those that the engine writes."""
    import torch

    from melodia.decode import SamplingConfig
    from melodia.grammar import Constraints, Grammar
    from melodia.model import read_checkpoint
    from melodia.side_inputs import SideInputTracker

    checkpoint = read_checkpoint(model)
    vocabulary, specs = checkpoint.vocabulary, checkpoint.config.side_inputs
    stream = workflow.Streams(checkpoint.network, vocabulary, SamplingConfig(greedy=True), B=2)
    parts = [[tokens for tokens, _, _ in stream.make(n)] for n in (1, 30, 9)]
    written = [np.concatenate(made).tolist() for made in zip(*parts, strict=True)]
    theirs = workflow._PyTorch(checkpoint.network, 1)._model
    grammar, side = (
        Grammar.compile(vocabulary, Constraints(allow_eos=False)),
        SideInputTracker(vocabulary, specs),
    )
    followed, state, token = grammar.start(), theirs.initial_state(1), vocabulary.bos
    for wanted in written[0]:
        grammar.advance(followed, token)
        row = torch.from_numpy(side.advance(token).astype(np.int64))[None]
        with torch.inference_mode():
            logits, state = theirs.step(torch.tensor([token]), row, state)
        token = int(np.where(grammar.mask(followed), logits[0].numpy(), -np.inf).argmax())
        assert token == wanted
    assert len(written[0]) == 40
    assert written[0] == written[1]
    assert len(set(written[0])) > 4


def test_without_a_model_a_random_one_is_run_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise CheckpointError("there is none")

    monkeypatch.setattr(workflow, "bundled_model", none)
    result = bench(weights=["fp32"], threads=[1], seconds=0.1)
    assert result.model.startswith("random sequential")
    assert any("random weights" in note for note in result.notes)


@needs_engine
def test_without_torch_the_engine_is_measured_and_torch_stays_out(model: Path) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
        "from melodia.workflows.bench import bench\n"
        f"r = bench({str(model)!r}, weights=['int8'], threads=[1], seconds=0.1)\n"
        "print([s.way for s in r.speeds], r.speeds[0].times_pytorch, r.notes[0], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    words = "['int8'] None PyTorch is not installed, so there is nothing to compare with False"
    assert done.stdout.strip() == words


def test_without_the_engine_pytorch_is_measured_and_the_reason_told(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow.engine, "reason", lambda: "it was not built")
    result = bench(model, threads=[1], seconds=0.1)
    assert [speed.way for speed in result.speeds] == ["PyTorch"]
    assert "the engine cannot run: it was not built" in result.notes


def test_torch_keeps_its_number_of_threads(model: Path) -> None:
    import torch

    before = torch.get_num_threads()
    bench(model, weights=["fp32"], threads=[1], seconds=0.1)
    assert torch.get_num_threads() == before


def test_turns_are_shared_out_and_warm_up_is_left_out() -> None:
    """Both ways get about the same time, however long a token takes."""

    class Sleeper:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def prepare(self) -> None:
            pass

        def make(self, tokens: int) -> None:
            time.sleep(self.seconds * tokens)

    slow, fast = workflow._measure([Sleeper(0.002), Sleeper(0.0002)], 1.5)
    assert len(fast.single) > 2 * len(slow.single)
    assert min(slow.single) >= 0.002
    assert min(slow.bursts) >= 0.002 * workflow.BURST
    assert sum(slow.single + slow.bursts) < 1.5
    speed = workflow._speed("fp32", 1, workflow._Times([1e-3] * 99 + [1.0], [0.1, 0.3]))
    assert (speed.p50, speed.p99) == (pytest.approx(1000), pytest.approx(1000))
    assert speed.tokens_per_second == pytest.approx(2 * workflow.BURST / 0.4)
    assert speed.tokens == 100 + 2 * workflow.BURST


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weights": ["fp4"]}, "fp4"),
        ({"weights": []}, "none"),
        ({"weights": ["fp32", ""]}, "an empty name"),
        ({"threads": [0]}, "threads"),
        ({"threads": [100_000]}, "the cores of this process"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
    ],
)
def test_senseless_settings_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bench(**arguments)


def test_thread_counts_never_exceed_the_cores() -> None:
    for cores in range(1, 100):
        counts = default_threads(cores)
        assert counts[0] == 1
        assert counts[-1] == min(8, cores)
        assert np.all(np.diff(counts) > 0)


@needs_engine
def test_the_command_prints_a_table_or_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--model", str(model), "--threads", "1", "--seconds", "0.3"]
    assert main(words) == 0
    table = capsys.readouterr().out
    for word in ("PyTorch", "fp32", "bf16", "int8", "tokens/s", "p50", "p99", "parallel"):
        assert word in table
    assert main([*words, "--weights", "int8", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [speed["way"] for speed in result["speeds"]] == ["PyTorch", "int8"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--threads", "two"], 2, "--threads"),
        (["--threads", "0"], 2, "threads"),
        (["--weights", "fp8"], 2, "fp8"),
        (["--seconds", "-1"], 2, "seconds"),
        (["--model", "nowhere"], 1, "nowhere"),
    ],
)
def test_the_command_refuses(
    words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == status
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
