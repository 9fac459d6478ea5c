"""The engine against the model: every kind and option, weights, batches, sessions, bad input."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_zoo import ZOO, make, music

from melodia import engine
from melodia.decode import Noise, SamplingConfig, choose
from melodia.engine.description import describe
from melodia.errors import BackendError, ConfigError
from melodia.model import Model, ModelConfig
from melodia.model import state as states
from melodia.model.network import initial_state
from melodia.sampler.runner import Runner

pytestmark = pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")

REPOSITORY = Path(__file__).resolve().parent.parent
PLAIN = [name for name in ZOO if ZOO[name]["kind"] != "bidirectional"]
BLOCKS = [name for name in ZOO if name not in PLAIN]

# Largest difference of a logit, as a share of the largest logit, over 30 steps of a random model.
TOLERANCE = {
    "fp32": 6e-5,  # other order of sums, tanh within 4e-7; a LayerNorm of three numbers enlarges both
    "bf16": 2e-2,  # 8 bits of every weight, carried through 30 steps
    "int8": 1e-1,  # 7 bits of weights and activations
}


def run(model: Model, weights: str = "fp32", threads: int = 1, B: int = 3, T: int = 30) -> tuple[Any, ...]:
    """The engine's logits [T, B, V] and the model's own, the tokens and side inputs that made them, the engine."""
    tokens, side = music(model, B, T)
    with torch.inference_mode():
        expected = model(tokens, side)[0].transpose(0, 1).numpy()
    packed = engine.Engine(*describe(model, weights), threads=threads)
    heard = tokens.T.numpy()
    sides = None if side is None else side.transpose(0, 1).numpy()
    return engine.Lanes(packed, B).advance(heard, sides), expected, heard, sides, packed


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("hidden", [1, 3, 17, 64, 100])
@pytest.mark.parametrize("name", PLAIN)
def test_logits_equal_the_models(name: str, hidden: int) -> None:
    model = make(name, dtype=torch.float32, hidden_size=hidden)
    got, expected, heard, sides, packed = run(model)
    margin = relative(got, expected)
    print(f"{name} {hidden}: {margin:.1e} of {TOLERANCE['fp32']:.0e}")
    assert margin < TOLERANCE["fp32"]
    lanes, alone = engine.Lanes(packed, 3), engine.Lanes(packed, 1)
    for t in range(len(heard)):
        row = None if sides is None else sides[t]
        assert (lanes.step(heard[t], row) == got[t]).all(), "step by step differs from all at once"
        single = alone.step(heard[t, 1:2], None if row is None else row[1:2])
        assert (single[0] == got[t, 1]).all(), "a session in a batch differs from the session alone"


@pytest.mark.parametrize("weights", ["bf16", "int8"])
@pytest.mark.parametrize("name", PLAIN)
def test_small_weights_are_close(name: str, weights: str) -> None:
    got, expected, *_ = run(make(name, dtype=torch.float32, hidden_size=100), weights)
    assert 0 < relative(got, expected) < TOLERANCE[weights]


def test_many_sessions_and_threads_change_nothing() -> None:
    model = make("sequential-deep", dtype=torch.float32, hidden_size=200)
    for weights in ("fp32", "int8"):
        one, _, heard, sides, packed = run(model, weights, threads=1, B=9)
        two = run(model, weights, threads=2, B=9)[0]
        assert (one == two).all()
        last = engine.Lanes(packed, 9).advance(heard, sides, every=False)
        assert (last == one[-1]).all()


def test_embeddings_too_large_for_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melodia.engine.description.TABLE_BYTES", 0)
    for name in ("sequential-deep", "parallel-gated", "reversed"):
        got, expected, *_ = run(make(name, dtype=torch.float32, hidden_size=17))
        assert relative(got, expected) < TOLERANCE["fp32"]


def test_states_come_and_go() -> None:
    model = make("parallel", dtype=torch.float32)
    tokens, _ = music(model, 2, 20)
    with torch.inference_mode():
        _, state = model(tokens)
        expected, after = model.step(torch.tensor([1, 2]), None, state)
    runner = Runner(model, "auto")
    assert runner.runs == "native"
    stepper = runner.stepper([states.to_numpy(states.select(state, lane)) for lane in range(2)])
    assert relative(stepper.feed([1, 2], []), expected.numpy()) < TOLERANCE["fp32"]
    for lane in range(2):
        mine, theirs = stepper.state(lane), states.to_numpy(states.select(after, lane))
        assert list(mine) == list(theirs)
        for name in mine:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=1e-5)
    before = stepper.state(1)
    stepper.keep([1])
    for name, kept in stepper.state(0).items():
        assert (kept == before[name]).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_bidirectional_models(name: str) -> None:
    model = make(name, dtype=torch.float32)
    tokens, side = music(model, 3, 40)
    with torch.inference_mode():
        expected = model(tokens, side)[0].numpy()
    stepper = Runner(model, "native").stepper([initial_state(model.config)] * 3)
    for t in range(40):
        rows = [] if side is None else list(side[:, t].numpy().astype(np.int32))
        got = stepper.feed(tokens[:, t].tolist(), rows)
        assert relative(got, expected[:, t]) < TOLERANCE["fp32"]
        if t == 20:
            stepper.keep([0, 1, 2])


def test_several_python_threads() -> None:
    model = make("sequential", dtype=torch.float32, hidden_size=300)
    got, _, heard, _, packed = run(model, threads=2, B=1, T=60)
    wrong: list[int] = []

    def listen(number: int) -> None:
        lanes = engine.Lanes(packed, 1)
        for t in range(60):
            if not (lanes.step(heard[t]) == got[t]).all():
                wrong.append(number)

    threads = [threading.Thread(target=listen, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def program(code: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program without torch, ended."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


CODE = """
import sys
import numpy as np
from melodia import engine

given, out = np.load(sys.argv[1]), {}
for weights in ("fp32", "bf16", "int8"):
    packed = engine.Engine(given[weights], given["floats"], threads=1)
    out[weights] = engine.Lanes(packed, 3).advance(given["tokens"], given["sides"])
np.savez(sys.argv[2], name=engine.instruction_set(), **out)
"""


def test_instruction_sets_agree(tmp_path: Path) -> None:
    """Every one that this machine can run, forced in a process of its own."""
    model = make("sequential-deep", dtype=torch.float32, hidden_size=100)
    descriptions = {weights: describe(model, weights) for weights in ("fp32", "bf16", "int8")}
    given = {weights: ints for weights, (ints, _) in descriptions.items()}
    tokens, side = music(model, 3, 30)
    assert side is not None
    given |= {"tokens": tokens.T.numpy(), "sides": side.transpose(0, 1).numpy()}
    np.savez(tmp_path / "given.npz", floats=descriptions["fp32"][1], **given)
    made: dict[str, dict[str, np.ndarray]] = {}
    for name in ("portable", "avx2", "avx512", "avx512bf16", "neon", "neondot"):
        path = tmp_path / f"{name}.npz"
        done = program(CODE, tmp_path / "given.npz", path, MELODIA_CPU=name)
        if "cannot run it" in done.stderr:
            continue
        assert done.returncode == 0, done.stderr
        made[name] = dict(np.load(path))
        assert made[name].pop("name") == name
    print(f"ran {', '.join(made)}")
    assert engine.instruction_set() in made
    for name, logits in made.items():
        for weights, got in logits.items():
            # Without fused operations, and in the dot products of bf16, the last bit differs; that moves a code of
            # int8 by one, or the last of bf16's 8 bits.
            close = 2e-5 if weights == "fp32" else 2e-2
            assert relative(got, made["portable"][weights]) < close, (name, weights)
            fused = name in ("avx2", "avx512") or (name == "avx512bf16" and weights != "bf16")
            if fused and "avx2" in made:  # the same sums in the same order
                assert (got == made["avx2"][weights]).all(), (name, weights)


# -- what is refused ----------------------------------------------------------------------------------------------


def test_malformed_descriptions_are_refused() -> None:
    ints, floats = describe(make("parallel-gated", dtype=torch.float32))
    engine.Engine(ints, floats, threads=1)
    generator = np.random.default_rng(1)
    for length in range(len(ints)):
        with pytest.raises(ConfigError, match="refuses"):
            engine.Engine(ints[:length], floats, threads=1)
    for wrong in (floats[:-1], floats[:0], np.append(floats, np.float32(0))):
        with pytest.raises(ConfigError, match="end"):
            engine.Engine(ints, wrong, threads=1)
    for value in (np.nan, np.inf):
        broken = floats.copy()
        broken[generator.integers(len(floats))] = value
        with pytest.raises(ConfigError, match="not finite"):
            engine.Engine(ints, broken, threads=1)
    refused = 0
    for _ in range(300):  # one number changed: refused, or a network of the same size
        changed = ints.copy()
        changed[generator.integers(len(ints))] = generator.choice([-(2**63), -1, 0, 1, 2, 3, 7, 2**20, 2**62])
        try:
            engine.Engine(changed, floats, threads=1)
        except ConfigError:
            refused += 1
    assert refused > 100


def test_wrong_input_is_refused_and_changes_nothing() -> None:
    packed = engine.Engine(*describe(make("parallel-sum", dtype=torch.float32)), threads=1)
    lanes = engine.Lanes(packed, 2)
    sides = np.zeros((2, 2), np.int32)
    lanes.step([1, 2], sides)
    before = lanes.read(0)
    for tokens in ([1, 23], [-1, 0]):
        with pytest.raises(ValueError, match="vocabulary of 23"):
            lanes.step(tokens, sides)
    with pytest.raises(ValueError, match="side input 0 must lie from 0 to 6"):
        lanes.step([1, 1], sides + 7)
    with pytest.raises(ValueError, match="side inputs must be"):
        lanes.step([1, 1])
    with pytest.raises(ValueError, match="tokens must be"):
        lanes.step([1], sides)
    with pytest.raises(ValueError, match="no such session"):
        lanes.read(2)
    with pytest.raises(ValueError, match="finite"):
        lanes.write(0, np.full(lanes.state_size, np.nan, np.float32))
    with pytest.raises(ValueError, match="a state must be"):
        lanes.write(0, before[:-1])
    assert (lanes.read(0) == before).all()
    with pytest.raises(ConfigError, match="at least 1"):
        engine.Engine(*describe(make("gru", dtype=torch.float32)), threads=0)


def test_runner_says_what_runs_and_why() -> None:
    model = make("gru", dtype=torch.float32)
    runner = Runner(model, "auto", "int8")
    assert "int8 weights" in runner.why
    double = make("gru")
    assert "float64" in Runner(double, "auto").why
    with pytest.raises(BackendError, match="float64"):
        Runner(double, "native")
    with pytest.raises(BackendError, match="use fp32"):
        Runner(double, "auto", "bf16")
    with pytest.raises(ConfigError, match="fp32, bf16, int8"):
        Runner(model, "auto", "int4")


# -- whole sequences ----------------------------------------------------------------------------------------------


def diverges(model: Model, config: SamplingConfig, seed: int, count: int) -> tuple[int, float] | None:
    """Where the engine's tokens leave the reference's, and the gap of the scores there; None: nowhere."""
    V = model.config.vocab_size
    engine_stepper = Runner(model, "native").stepper([initial_state(model.config)])
    state, noise = model.initial_state(1), Noise(seed, 0, V)
    logits = mine = np.zeros(V, np.float32)
    recent: list[int] = []
    for position in range(count):
        at = None if config.greedy else noise.at(position)
        expected = choose(logits, None, recent, config, at).token
        got = engine.choose(mine, None, recent, config, random_seed=seed, session=0, position=position).token
        if got != expected:
            scores = logits if at is None else logits / config.temperature + at
            return position, float(scores[expected] - scores[got])
        recent = [*recent, expected][-8:]
        with torch.inference_mode():
            rows, state = model.step(torch.tensor([expected]), None, state)
        logits = rows[0].numpy()
        mine = engine_stepper.feed([expected], [])[0]
    return None


def check_sequences(models: int, count: int) -> None:
    """Sequences are the same; a difference is only forgiven where two candidates lie within rounding."""
    generator = np.random.default_rng(2)
    names = [name for name in ZOO if "side_inputs" not in ZOO[name]]
    differences = []
    for i in range(models):
        model = make(names[i % len(names)], dtype=torch.float32, hidden_size=int(generator.integers(4, 40)))
        config = [
            SamplingConfig(greedy=True, repetition_penalty=1.3),
            SamplingConfig(temperature=0.8, top_k=12),
            SamplingConfig(top_p=0.9, repetition_penalty=1.1),
            SamplingConfig(temperature=1.2, min_p=0.05),
            SamplingConfig(),
        ][i % 5]
        found = diverges(model, config, int(generator.integers(2**32)), count)
        if found is not None:
            differences.append((names[i % len(names)], config, *found))
    print(f"{len(differences)} of {models} sequences of {count} tokens differ: {differences}")
    assert all(abs(gap) < 1e-4 for *_, gap in differences)
    assert len(differences) <= models // 50


def test_same_tokens_as_the_reference() -> None:
    check_sequences(10, 60)


@pytest.mark.slow
def test_same_tokens_as_the_reference_at_length() -> None:
    check_sequences(60, 600)


@pytest.mark.slow
def test_memory_stays_flat() -> None:
    model = Model(ModelConfig(kind="gru", vocab_size=64, hidden_size=32, gru_layers=1)).eval()
    lanes = engine.Lanes(engine.Engine(*describe(model), threads=2), 1)
    lanes.advance(np.zeros((1000, 1), np.int32), every=False)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    for _ in range(1000):
        lanes.advance(np.zeros((1000, 1), np.int32), every=False)
    assert resident() - before < 2 << 20


@pytest.fixture
def description(tmp_path: Path) -> Path:
    """A file with a model's two rows."""
    ints, floats = describe(Model(ModelConfig("gru", vocab_size=50, hidden_size=128)))
    np.savez(tmp_path / "description.npz", ints=ints, floats=floats)
    return tmp_path / "description.npz"


FORKING = """
import os, sys, time
import numpy as np
from melodia import engine

description = np.load(sys.argv[1]).values()

def new():
    lanes = engine.Lanes(engine.Engine(*description, threads=2), 1)
    lanes.step([3])
    return lanes

lanes = new()
time.sleep(0.05)  # the other thread sleeps
if os.fork() == 0:
    lanes.step([1])
    another = new()  # its thread may have the handle of one that is not here
    lanes = None
    another = None
    sys.exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_drops_its_engine_and_ends(description: Path) -> None:
    done = program(FORKING, description)
    assert done.returncode == 0, done.stderr


def test_tokens_that_are_no_whole_numbers_of_32_bits() -> None:
    packed = engine.Engine(*describe(Model(ModelConfig("gru", vocab_size=50, hidden_size=4))), threads=1)
    lanes = engine.Lanes(packed, 1)
    for wrong in (np.array([2**32 + 3]), np.array([1.5])):
        with pytest.raises(ValueError, match="must be 32-bit integers"):
            lanes.step(wrong)


ENDING = """
import sys, threading, time
import numpy as np
from melodia import engine

description = np.load(sys.argv[1]).values()

def play():
    lanes = engine.Lanes(engine.Engine(*description, threads=1), 1)
    while True:
        lanes.advance(np.zeros((200, 1), np.int32))

threading.Thread(target=play, daemon=True).start()
time.sleep(0.1)
"""


def test_a_program_ends_while_a_daemon_thread_plays(description: Path) -> None:
    for _ in range(3):
        done = program(ENDING, description)
        assert done.returncode == 0, done.stderr
