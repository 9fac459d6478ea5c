"""The loop in compiled code: the same music as a token at a time, and as the reference; and where it stops."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sampler_helpers import make_seed, scale, tiny_sampler, tokenizer_of

from melodia import engine
from melodia.decode import Bias, SamplingConfig
from melodia.decode.bias import PROGRAM_NUMBERS
from melodia.engine.choice import sampling_of
from melodia.engine.description import describe
from melodia.engine.loop import Start, Stopped, Terms, TokenLoop
from melodia.engine.rules import pack, rules_of
from melodia.errors import ConfigError, GrammarError, MelodiaError
from melodia.grammar import Grammar
from melodia.sampler import Sampler
from melodia.sampler.loop import Loop
from melodia.tokenizer import SCHEMES, Tokenizer, TokenizerConfig

pytestmark = pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")

REPOSITORY = Path(__file__).resolve().parent.parent
WISHES: list[dict[str, Any]] = [
    {"bars": 2},
    {"bars": 2, "metre": (3, 4), "top_p": 0.9},
    {"bars": 1, "metre": (13, 8)},
    {"tokens": 40, "sampling": SamplingConfig(repetition_penalty=1.3, repetition_window=5000)},
    {"seconds": 5.0, "tempo_changes": True, "metre_changes": True},
    {"seconds": 4.0, "tempo": 90.0, "greedy": True},
    {"bars": 2, "may_end": True, "any_program": True},
    {"bars": 2, "silent_bars": True, "max_polyphony": 2, "programs": (0, 1)},
]
SEEDS = {
    "nothing": None,
    "whole bars": make_seed(scale(2)),
    "inside a bar": make_seed(scale(3, (3, 4))[:-1], (3, 4)),
}


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """What a body gives a token at a time, and in bursts."""

    def both(body: Callable[[], Any]) -> tuple[Any, Any]:
        found = []
        for bursts in (False, True):
            monkeypatch.setattr("melodia.sampler.sampler.Loop", lambda *them, b=bursts: Loop(*them, bursts=b))
            found.append(body())
        return found[0], found[1]

    return both


def same(one: Any, other: Any) -> bool:
    return (
        one.tokens.tolist() == other.tokens.tolist()
        and one.events == other.events
        and (one.nll == other.nll).all()
        and (one.entropy == other.entropy).all()
        and one.report.ended == other.report.ended
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bursts_change_nothing(scheme: str, ways: Any) -> None:
    sampler = tiny_sampler(scheme)
    for number, seed in enumerate(SEEDS.values()):
        if seed is not None:
            sampler.prime(seed)
        for wish in WISHES[number::3]:
            one, other = ways(lambda wish=wish: sampler.generate(random_seed=3, **wish))
            assert same(one, other), wish


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme", [s for s in SCHEMES if s != "Structured"]
)  # of random weights it hardly ends
def test_bursts_change_nothing_at_length(scheme: str, ways: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "melodia.sampler.plan.BAR_TOKENS", 256
    )  # random weights would stay in some bars for minutes
    sampler = tiny_sampler(scheme)
    began = time.perf_counter()
    for random_seed in range(3):
        for name, seed in SEEDS.items():
            if seed is not None:
                sampler.prime(seed)
            for wish in WISHES:
                if time.perf_counter() - began < 20:
                    made = {"random_seed": random_seed, **wish}
                    one, other = ways(lambda made=made: sampler.generate(**made))
                    assert same(one, other), (name, made)


def test_a_bias_of_the_wrong_shape() -> None:
    sampler = tiny_sampler()
    state, V = sampler.state, sampler.vocabulary.size
    rules = rules_of(Grammar.compile(sampler.vocabulary), state.side.specs)
    lanes = engine.Lanes(engine.Engine(*describe(sampler.model, "fp32"), threads=1), 1)
    nowhere, every = np.zeros(PROGRAM_NUMBERS, np.int32), np.ones(V, np.bool_)
    bias = Bias(np.zeros((2, V - 1), np.float32), nowhere, every[1:], 1.0)
    start = Start(state.logits, state.grammar, state.side, SamplingConfig(), 1, 0, state.fed, (), bias)
    with pytest.raises(ValueError, match=rf"a bias must be \[R, {V}\] \(received \[2, {V - 1}\]\)"):
        TokenLoop(lanes, [rules], [start])
    loop = lanes.native.loop([rules.native])
    for row_of, exponent, message in (  # what compiled code refuses itself
        (nowhere + 2, 1, r"row of the bias must lie from 0 to 1 \(received 2\)"),
        (nowhere - 1, 1, r"from 0 to 1 \(received -1\)"),
        (nowhere[1:], 1, r"row_of"),
        (nowhere, 1.5, r"exponent of a bias must lie from 0 to 1 \(received 1.5"),
        (nowhere, np.nan, r"exponent of a bias"),
    ):
        with pytest.raises((ValueError, GrammarError), match=message):
            loop.set_bias(0, np.zeros((2, V), np.float32), row_of, pack(every), exponent)
    odd = np.frombuffer(bytes(8 * V + 1), np.uint8)[1:].view(np.float32).reshape(2, V)
    with pytest.raises(ValueError, match=r"bias must be float32 \[N, \d+\] .*, at an odd address\)"):
        loop.set_bias(0, odd, nowhere, pack(every), 1.0)


def test_what_a_lane_cannot_begin_with_changes_nothing() -> None:
    sampler = tiny_sampler()
    state = sampler.state
    rules = rules_of(Grammar.compile(sampler.vocabulary), state.side.specs)
    lanes = engine.Lanes(engine.Engine(*describe(sampler.model, "fp32"), threads=1), 1)
    loop = lanes.native.loop([rules.native])
    sampling = sampling_of(SamplingConfig(repetition_penalty=1.3))
    loop.begin(0, sampling, 8, 1, 2, 30, [1, 2])
    for window, recent, message in (
        (0, [1], r"the window of the penalty must lie from 1 to 1048576 \(received 0\)"),
        (8, [1, sampler.vocabulary.size], "a recent token is not in the vocabulary"),
        (8, [-1], "a recent token is not in the vocabulary"),
    ):
        with pytest.raises((ValueError, GrammarError), match=message):
            loop.begin(0, sampling, window, 1, 2, 60, recent)
    assert loop.facts["fed"].tolist() == [30]


@pytest.mark.parametrize("kind", ["lstm", "gru", "reversed", "parallel", "bidirectional"])
def test_every_kind(kind: str, ways: Any) -> None:
    sampler = tiny_sampler("TSD" if kind == "lstm" else "REMI", kind)
    sampler.prime(SEEDS["whole bars"])
    assert same(*ways(lambda: sampler.generate(bars=2, random_seed=3)))


def test_byte_pairs(ways: Any) -> None:
    base = tokenizer_of("REMI")
    pieces = [base.encode(make_seed(scale(8, program=p))).ids for p in (0, 5)]
    tokenizer = Tokenizer(TokenizerConfig(bpe_vocab_size=base.vocabulary.size + 40)).train_bpe(pieces)
    sampler = tiny_sampler(tokenizer=tokenizer)
    sampler.prime(SEEDS["whole bars"])
    with torch.no_grad():
        sampler.model.head.bias[list(tokenizer.vocabulary.expansions)] += 4
    one, other = ways(lambda: sampler.generate(bars=2, random_seed=2))
    assert same(one, other)
    assert set(one.tokens.tolist()) & set(tokenizer.vocabulary.expansions)


def test_many_lanes(ways: Any) -> None:
    sampler = tiny_sampler()
    sampler.prime(SEEDS["inside a bar"])
    for one, other in zip(*ways(lambda: sampler.generate_many(5, seconds=4.0, random_seed=1)), strict=True):
        assert same(one, other)


@pytest.mark.parametrize("scheme", ["REMI", "MIDILike", "PerTok"])
def test_streams_and_their_states(scheme: str, ways: Any, tmp_path: Path) -> None:
    """A state in the middle of a bar, saved and loaded, goes on as the stream does."""
    sampler = tiny_sampler(scheme)
    sampler.prime(SEEDS["whole bars"])

    def body() -> list[Any]:
        stream = sampler.stream(endless=True, random_seed=4)
        events = [next(stream) for _ in range(17)]
        state = stream.state
        path = state.save(tmp_path / f"state{len(list(tmp_path.iterdir()))}")
        loaded = type(state).load(path, sampler.model.config, sampler.vocabulary, state.fingerprint)
        branches = [sampler.stream(state=start, endless=True, random_seed=4) for start in (state, loaded)]
        further = [[next(of) for _ in range(15)] for of in (stream, *branches)]
        assert further[0] == further[1] == further[2]
        return [events, further]

    one, other = ways(body)
    assert one == other


def test_endless_music_is_not_kept() -> None:
    stream = tiny_sampler().stream(endless=True, random_seed=2)
    for _ in range(300):
        next(stream)
    lane = stream._lane
    assert lane.count > 1000
    assert lane.tokens == lane.nll == lane.entropy == []
    assert len(lane.notes) == 1
    assert len(lane._recent) <= 2048
    assert len(lane._tail_ids) <= 2048


# -- the loop by itself -------------------------------------------------------------------------------------------


def loop_of(
    sampler: Sampler, lanes: int = 1, config: SamplingConfig | None = None, session: int = 0
) -> TokenLoop:
    stepper = sampler._runner.stepper([sampler.state.model_state] * lanes)
    state = sampler.state
    rules = rules_of(Grammar.compile(sampler.vocabulary), state.side.specs)
    starts = [
        Start(
            state.logits, state.grammar, state.side, config or SamplingConfig(), 9, session + i, state.fed, ()
        )
        for i in range(lanes)
    ]
    return TokenLoop(stepper.lanes, [rules] * lanes, starts)


def test_a_lane_stops_where_its_terms_say() -> None:
    sampler = tiny_sampler()
    vocabulary = sampler.vocabulary
    V = vocabulary.size

    def bits(*kinds: str) -> Any:
        return pack(np.isin(np.arange(V), vocabulary.ids_of(*kinds)))

    loop = loop_of(sampler)
    assert loop.run() == Stopped.LANE  # no terms: the caller is asked
    loop.set_terms(0, Terms(1000, exclude=bits("EOS")))
    assert loop.run(steps=7) == Stopped.STEPS
    tokens, nll, entropy = loop.drain(0)
    assert len(tokens) == len(nll) == len(entropy) == 7
    assert (nll > 0).all()
    assert loop.facts["fed"][0] == sampler.state.fed + 7
    assert len(loop.drain(0)[0]) == 0

    loop.set_terms(0, Terms(5, exclude=bits("EOS")))
    assert loop.run() == Stopped.LANE
    assert loop.facts["made"][0] == 5
    with pytest.raises(GrammarError, match="does not wait"):
        loop.take(0)

    loop.set_terms(0, Terms(10_000, exclude=bits("EOS"), stop=bits("Bar")))
    assert loop.run() == Stopped.LANE
    token, bar = int(loop.facts["token"][0]), loop.followers[0].state.bar
    assert vocabulary.types[token] == "Bar"
    assert "Bar" not in [vocabulary.types[i] for i in loop.drain(0)[0][1:]]
    loop.take(0)
    assert loop.followers[0].state.bar == bar + 1

    everything = pack(np.ones(V, bool))  # where nothing would be left the grammar's mask stands
    loop.set_terms(0, Terms(30, exclude=everything))
    loop.run()
    assert loop.facts["made"][0] == 31
    loop.drain(0)
    loop.set_terms(0, Terms(1000, exclude=bits("EOS")), pause=True)
    assert loop.run() == Stopped.PAUSE
    assert vocabulary.types[loop.drain(0)[0][-1]] == "Duration"


def test_ticks_stop_a_lane() -> None:
    sampler = tiny_sampler("TSD")
    loop = loop_of(sampler)
    for tick in (40, 100, 500):
        shifts = pack(np.isin(np.arange(sampler.vocabulary.size), sampler.vocabulary.ids_of("TimeShift")))
        eos = pack(np.arange(sampler.vocabulary.size) == sampler.vocabulary.eos)
        loop.set_terms(0, Terms(5000, exclude=eos, stop_tick=tick, late=((shifts, tick + 12),)))
        assert loop.run() == Stopped.LANE
        state = loop.followers[0].state
        assert state.now < tick
        loop.take(0)
        assert tick <= state.now < tick + 12


def test_time_and_flags_stop_a_call() -> None:
    sampler = tiny_sampler()
    eos = pack(np.arange(sampler.vocabulary.size) == sampler.vocabulary.eos)
    loop = loop_of(sampler)
    loop.set_terms(0, Terms(1 << 40, exclude=eos))
    assert loop.run(microseconds=2000) == Stopped.TIME
    assert loop.facts["made"][0] > 0
    flag = np.zeros(1, np.int32)
    timer = threading.Timer(0.05, lambda: flag.fill(1))
    timer.start()
    assert loop.run(flag=flag) == Stopped.FLAG  # Python's other threads run meanwhile
    assert loop.run(flag=flag) == Stopped.FLAG
    timer.join()
    before = loop.drain(0)[0]
    again = loop_of(sampler)
    again.set_terms(0, Terms(len(before), exclude=eos))
    again.run()
    assert (again.drain(0)[0] == before).all(), "an interrupted loop makes other tokens"


def test_lanes_and_threads_do_not_hear_one_another() -> None:
    sampler = tiny_sampler()
    eos = pack(np.arange(sampler.vocabulary.size) == sampler.vocabulary.eos)

    def play(lanes: int, session: int) -> list[list[int]]:
        loop = loop_of(sampler, lanes, SamplingConfig(top_k=30, repetition_penalty=1.2), session)
        for lane in range(lanes):
            loop.set_terms(lane, Terms(300, exclude=eos))
        assert loop.run() == Stopped.LANE
        return [loop.drain(lane)[0].tolist() for lane in range(lanes)]

    together = play(4, 0)
    assert [play(1, session)[0] for session in range(4)] == together
    assert len({tuple(tokens) for tokens in together}) == 4
    heard: dict[int, list[list[int]]] = {}
    threads = [threading.Thread(target=lambda i=i: heard.update({i: play(1, i)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [heard[i][0] for i in range(4)] == together


def test_what_is_refused() -> None:
    sampler = tiny_sampler()
    other = rules_of(Grammar.compile(tokenizer_of("TSD").vocabulary), sampler.state.side.specs)
    bare = rules_of(Grammar.compile(sampler.vocabulary))
    stepper = sampler._runner.stepper([sampler.state.model_state])
    for rules, why in ((other, "another vocabulary"), (bare, "side inputs")):
        with pytest.raises(ConfigError, match=why):
            TokenLoop(stepper.lanes, [rules], [])
    loop = loop_of(sampler)
    with pytest.raises(GrammarError, match="does not wait"):
        loop.choose(0, np.ones(sampler.vocabulary.size, bool))
    loop.run()
    with pytest.raises(GrammarError, match="no such lane"):
        loop.set_terms(1, None)
    loop.choose(0, np.zeros(sampler.vocabulary.size, bool))
    with pytest.raises(GrammarError, match="no token is allowed"):
        loop.take(0)
    broken = loop_of(sampler)
    broken._native.logits(0)[:] = np.nan
    broken.set_terms(0, Terms(5))
    assert broken.run() == Stopped.LANE
    with pytest.raises(MelodiaError, match="nan"):
        broken.take(0)


# -- against the reference ----------------------------------------------------------------------------------------

FILTERS: list[dict[str, Any]] = [
    {"temperature": 0.8, "top_k": 12},
    {"top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 1.2, "min_p": 0.05},
    {"greedy": True, "repetition_penalty": 1.3},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
]
KINDS = ["lstm", "gru", "sequential", "reversed", "parallel", "bidirectional"]


def agree(number: int, tokens: int) -> None:
    """Engine and PyTorch make the same tokens."""
    scheme, kind = SCHEMES[number % 5], KINDS[number % 6]
    sampler = tiny_sampler(scheme, kind)
    reference = Sampler(sampler.model, sampler.tokenizer, backend="reference")
    wish = {"tokens": tokens, "random_seed": number, **FILTERS[number % len(FILTERS)]}
    for each in (sampler, reference):
        each.prime(SEEDS["inside a bar" if number % 2 else "whole bars"])
    got, expected = sampler.generate(**wish), reference.generate(**wish)
    assert (got.report.backend, expected.report.backend) == ("native on cpu", "reference on cpu")
    assert got.tokens.tolist() == expected.tokens.tolist(), (scheme, kind, wish)


@pytest.mark.parametrize("number", range(6))
def test_the_reference_makes_the_same(number: int) -> None:
    agree(number, 40)


@pytest.mark.slow
def test_the_reference_makes_the_same_at_length() -> None:
    began, count = time.perf_counter(), 0
    while count < 60 and time.perf_counter() - began < 100:
        agree(10 + count, 150)
        count += 1
    assert count >= 5


# -- sanitizers ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizers: str, tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    flags = ["-std=c++17", "-O1", "-g", "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-pthread"]
    flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-Icsrc"]
    avx512 = [f"-mavx512{part}" for part in ("f", "dq", "bw", "vl", "vnni")] + ["-mfma"]
    machine = {"kernels_avx2": ["-mavx2", "-mfma"], "kernels_avx512": avx512}
    machine["kernels_avx512bf16"] = [*avx512, "-mavx512bf16"]
    names = ["blocks", "dispatch", "engine", "kernels_portable", "loop", "plan", "rules", "team", "voices"]
    if platform.machine().lower() in ("x86_64", "amd64"):
        names += list(machine)
    elif platform.machine().lower() in ("aarch64", "arm64"):
        machine["kernels_neondot"] = ["-march=armv8.2-a+dotprod"]
        names += ["kernels_neon", "kernels_neondot"]
    sources = [(REPOSITORY / "csrc/engine" / f"{name}.cpp", machine.get(name, [])) for name in names]
    objects = []
    for source, extra in [*sources, (REPOSITORY / "csrc/tests/loop_test.cpp", [])]:
        objects.append(str(tmp_path / f"{source.stem}.o"))
        command = [compiler, *flags, *extra, "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, cwd=REPOSITORY, check=True, timeout=300)
    program = str(tmp_path / "loop_test")
    linked = subprocess.run([compiler, *flags, *objects, "-o", program], capture_output=True, text=True)
    if linked.returncode != 0 and "san" in linked.stderr:
        pytest.skip(f"this compiler has no such sanitizer: {linked.stderr.splitlines()[-1]}")
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr
