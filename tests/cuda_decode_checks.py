"""Checks that compare the CUDA decode engine with the CPU's: on the emulator, and on a GPU.

As a program, `python tests/cuda_decode_checks.py LIBRARY...`: runs them on each library in a process of its own and
prints a line for each, "passed" or what went wrong first. Mutants have to fail.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda_decode_emulation import configure, load
from grammar_helpers import sample
from model_zoo import BAR, ZOO, V, make
from sampler_helpers import make_seed, scale, tiny_sampler, tokenizer_of

from melodia import engine
from melodia.decode import Bias, SamplingConfig
from melodia.decode.bias import PROGRAM_NUMBERS
from melodia.engine import cuda
from melodia.engine.description import describe
from melodia.engine.loop import Start, Stopped, Terms, TokenLoop
from melodia.engine.rules import pack, rules_of
from melodia.grammar import Constraints, Grammar
from melodia.grammar.state import REGISTERS
from melodia.model import Model, ModelConfig, Network
from melodia.tokenizer import Tokenizer

KINDS = list(ZOO)
BLOCKS = [name for name in KINDS if ZOO[name]["kind"] == "bidirectional"]
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2, "int8": 2e-2}
"""Sums in another order; a number that is rounded the other way moves a logit by 1 / 256 of a weight at most."""


def options(**changed: int) -> cuda.Options:
    """Small blocks, so that there are several."""
    return cuda.Options(**({"threads": 64, "least_units": 1} | changed))


@lru_cache(maxsize=64)
def described(name: str, weights: str, vocabulary: int = V) -> tuple[Any, Any, tuple[int, ...]]:
    """A model of the zoo as the engine reads it, and the sizes of its side inputs."""
    model = make(name, dtype=torch.float32, vocab_size=vocabulary)
    return *describe(model, weights), tuple(spec.size for spec in model.config.side_inputs)


def steps_of(name: str) -> int:
    """Enough for what a kind does: an encoder is to read several blocks of music."""
    return 26 if name in BLOCKS else 4


def random_input(sizes: tuple[int, ...], T: int, B: int, vocabulary: int = V) -> tuple[Any, Any]:
    """Tokens [T, B], with bars of other lengths in every lane, and side inputs [T, B, S] or None."""
    numbers = np.random.default_rng(T * 100 + B)
    sides = [numbers.integers(0, size, (T, B)) for size in sizes]
    tokens = numbers.integers(0, vocabulary, (T, B))
    bars = numbers.random((T, B)) < np.linspace(0.2, 0.5, B)
    return np.where(bars & (vocabulary > BAR), BAR, tokens), np.stack(sides, -1) if sides else None


def check_lanes(
    library: ctypes.CDLL, name: str, weights: str, T: int, B: int, vocabulary: int = V, **changed: int
) -> None:
    """Given tokens: every logit and the states of two calls, and no launch that fell back."""
    ints, floats, sizes = described(name, weights, vocabulary)
    compare_lanes(library, ints, floats, *random_input(sizes, T, B, vocabulary), weights, **changed)


def compare_lanes(
    library: ctypes.CDLL, ints: Any, floats: Any, tokens: Any, sides: Any, weights: str, **changed: int
) -> None:
    """As `check_lanes`, of any network and tokens [T, B]."""
    T, B = tokens.shape
    packed = cuda.CudaEngine(ints, floats, library=library, options=options(**changed))
    mine, other = engine.Lanes(packed, B), engine.Lanes(engine.Engine(ints, floats, threads=1), B)
    for part in (slice(0, T // 2), slice(T // 2, T)):
        rows = None if sides is None else sides[part]
        close(mine.advance(tokens[part], rows), other.advance(tokens[part], rows), TOLERANCE[weights])
    for lane in range(B):
        close(mine.read(lane), other.read(lane), TOLERANCE[weights])
    assert packed.facts()["stalls"] == 0, packed.fallback()


def close(one: Any, other: Any, tolerance: float) -> None:
    """Numbers within a tolerance; NaN is not."""
    assert np.abs(one - other).max() <= tolerance, f"{np.abs(one - other).max()} apart"


WHOLE = {"threads": 0, "least_units": 0}  # blocks as the device wants them


@lru_cache(maxsize=8)
def described_plain(kind: str, weights: str, H: int, V: int) -> tuple[Any, Any]:
    """A model of any size with the weights that it begins with, as the engine reads it."""
    return describe(Model(ModelConfig(kind, vocab_size=V, hidden_size=H), random_seed=3).eval(), weights)


def check_plain(
    library: ctypes.CDLL, kind: str, weights: str, T: int, B: int, H: int, V: int, **changed: int
) -> None:
    """As `check_lanes`, of such a model."""
    tokens, _ = random_input((), T, B, V)
    compare_lanes(library, *described_plain(kind, weights, H, V), tokens, None, weights, **changed)


def check_streams(library: ctypes.CDLL, kind: str, H: int, B: int, T: int, **changed: int) -> str:
    """Sessions of the benchmark's vocabulary choose the CPU's tokens; why the last launch fell back, or nothing."""
    from benchmarks.gpu_generation import network, streams_of
    from benchmarks.suite.ours import SAMPLING, small_vocabulary
    from melodia.workflows.bench import Streams

    model = network(kind, H)
    mine = streams_of(model, "fp32", B, library, changed)
    other = Streams(Network.of(model), small_vocabulary(), SAMPLING, weights="fp32", B=B)
    for session, (found, wanted) in enumerate(zip(mine.make(T), other.make(T), strict=True)):
        same_tokens(wanted, found, f"session {session}: ")
    return str(mine.engine.fallback())


@lru_cache(maxsize=2)
def paired_tokenizer(scheme: str) -> Tokenizer:
    """Byte pairs of music drawn at random, some of them over several notes."""
    base = tokenizer_of(scheme)
    grammar = Grammar.compile(base.vocabulary, Constraints(programs=(0, -1), pitch_range=(60, 62)))
    rng = np.random.default_rng(3)
    drawn = [np.array(sample(grammar, rng, tokens=90, by_type=True)) for _ in range(4)]
    return base.train_bpe(2 * drawn, base.vocabulary.size + 300)  # twice, so that every pair is frequent


def block_sampler(encoder: str, scheme: str = "REMI") -> Any:
    """A small bidirectional sampler, whose blocks are bars or at most nine tokens."""
    return tiny_sampler(scheme, "bidirectional", encoder=encoder, encoder_layers=2, block_max=9)


@lru_cache(maxsize=8)
def primed(
    scheme: str = "REMI", encoder: str | None = None, kind: str = "sequential", pairs: bool = False
) -> Any:
    """A small sampler behind two bars of a scale; at the beginning where there is no MIDI library (gpu_check.py)."""
    tokenizer = paired_tokenizer(scheme) if pairs else None
    sampler = (
        tiny_sampler(scheme, kind, tokenizer=tokenizer) if encoder is None else block_sampler(encoder, scheme)
    )
    sampler.prime(make_seed(scale(2)) if importlib.util.find_spec("symusic") else None)
    return sampler


def loops(
    library: ctypes.CDLL,
    B: int,
    config: SamplingConfig | None = None,
    scheme: str = "REMI",
    first_session: int = 0,
    grain: float = 0,
    encoder: str | None = None,
    kind: str = "sequential",
    pairs: bool = False,
    weights: str = "fp32",
    bias: Callable[[int], Bias | None] = lambda lane: None,
    **changed: int,
) -> tuple[TokenLoop, TokenLoop]:
    """The CPU's loop and the device's over the same lanes.

    bias: what is added to a lane's logits. grain: the first logits are multiples of it, with ties; 0: as they are.
    """
    sampler = primed(scheme, encoder, kind, pairs)
    state = sampler.state
    ints, floats = describe(sampler.model, weights)
    rules = rules_of(Grammar.compile(sampler.vocabulary), state.side.specs)
    flat = np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in state.model_state.values()])
    config = config or SamplingConfig()
    logits = np.round(state.logits / grain) * np.float32(grain) if grain else state.logits
    starts = [
        Start(
            logits,
            state.grammar,
            state.side,
            config,
            9,
            first_session + i,
            state.fed,
            (61, 62, 61, 70),
            bias(i),
        )
        for i in range(B)
    ]
    on_cpu = engine.Engine(ints, floats, threads=1)
    on_gpu = cuda.CudaEngine(ints, floats, library=library, options=options(**({"least_units": 4} | changed)))
    found: list[Any] = [engine.Lanes(on_cpu, B), engine.Lanes(on_gpu, B)]
    for lanes in found:
        for lane in range(B):
            lanes.write(lane, flat)
    return (
        TokenLoop(found[0], [rules] * B, starts),
        TokenLoop(found[1], [rules] * B, starts),
    )


def same_tokens(one: Sequence[Any], other: Sequence[Any], what: str = "") -> None:
    """Tokens of two streams agree; otherwise where they part, and whether that may be a matter of rounding.

    Each stream: its tokens, their negative log-likelihoods, and more that is not looked at. Where these differ by 1e-6
    before the streams part, a choice stood at its edge; where they differ by more, the logits are wrong.
    """
    tokens, others = one[0].tolist(), other[0].tolist()
    if tokens == others:
        return
    pairs = list(zip(tokens, others, strict=False))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    if at == len(pairs):
        raise AssertionError(f"{what}{len(tokens)} tokens and {len(others)}, the same as far as both go")
    before = np.abs(one[1][:at] - other[1][:at]).max(initial=0.0)
    raise AssertionError(
        f"{what}token {at} is {tokens[at]} (nll {one[1][at]:.6f}) and {others[at]} (nll {other[1][at]:.6f}); before it "
        f"the nlls differ by {before:.1e} at most"
    )


def same(one: TokenLoop, other: TokenLoop, lane: int, at_other: int | None = None) -> int:
    """Everything about a lane is the same; how many tokens came."""
    there = lane if at_other is None else at_other
    a, b = one.drain(lane), other.drain(there)
    same_tokens(a, b)
    assert np.allclose(a[1], b[1], atol=1e-4)
    assert np.allclose(a[2], b[2], atol=1e-4)
    for name in ("standing", "made", "fed"):
        assert one.facts[name][lane] == other.facts[name][there], name
    x, y = one.followers[lane].state, other.followers[there].state
    assert [getattr(x, name) for name in REGISTERS] == [getattr(y, name) for name in REGISTERS]
    assert x.ends == y.ends
    assert {p: row.tolist() for p, row in x.rows.items()} == {p: row.tolist() for p, row in y.rows.items()}
    assert np.array_equal(one.followers[lane].side.to_array(), other.followers[there].side.to_array())
    close(one.logits(lane), other.logits(there), 1e-4)
    close(one.lanes.read(lane), other.lanes.read(there), 1e-4)
    return len(a[0])


def bits(*kinds: str, pairs: bool = False) -> Any:
    """Token types as a mask."""
    vocabulary = primed(pairs=pairs).vocabulary
    return pack(np.isin(np.arange(vocabulary.size), vocabulary.ids_of(*kinds)))


FILTERS = SamplingConfig(
    temperature=0.9, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.3, repetition_window=3
)


def check_loop(
    library: ctypes.CDLL, B: int, steps: int, config: SamplingConfig | None = None, **changed: Any
) -> None:
    """Some tokens, a stop that is taken, tokens again."""
    pair = loops(library, B, config, **changed)
    assert isinstance(pair[1].lanes.engine, cuda.CudaEngine)
    for loop in pair:
        for lane in range(B):
            loop.set_terms(lane, Terms(1000))
        assert loop.run(steps=steps) == Stopped.STEPS
    for lane in range(B):
        assert same(*pair, lane) == steps
    for loop in pair:
        for lane in range(B):
            loop.set_terms(lane, Terms(1000, stop=bits("Pitch", pairs=changed.get("pairs", False))))
        while int(loop.facts["standing"].max()) < 3:
            loop.run()
    # Lanes of the device do not stop with the first: they all come to their own stop.
    for loop in pair:
        for lane in loop.waiting():
            loop.take(lane)
        for lane in range(B):
            loop.set_terms(lane, Terms(1))
        loop.run(steps=2)
    if B == 1:
        same(*pair, 0)
    assert pair[1].lanes.engine.facts()["stalls"] == 0, pair[1].lanes.engine.fallback()


def check_bias(library: ctypes.CDLL, **changed: int) -> None:
    """Lanes with many rows, with one and with none; each program has an octave of its own."""
    vocabulary = primed().vocabulary
    octaves = {0: 36, 7: 60, 9: 84}
    rows = np.zeros((4, vocabulary.size), np.float32)
    row_of = np.zeros(PROGRAM_NUMBERS, np.int32)
    for row, (program, low) in enumerate(octaves.items(), start=1):
        row_of[program + 1] = row
        rows[row, [vocabulary.index[f"Pitch_{pitch}"] for pitch in range(low, low + 12)]] = 30
        rows[:, vocabulary.index[f"Program_{program}"]] = 12
    one_row = np.zeros((1, vocabulary.size), np.float32)
    one_row[0, [vocabulary.index[f"Pitch_{pitch}"] for pitch in range(96, 108)]] = 30
    every = np.ones(vocabulary.size, np.bool_)
    biases = [Bias(rows, row_of, every, 0.6), Bias(one_row, np.zeros_like(row_of), every, 1.0), None]
    pair = loops(library, 3, bias=biases.__getitem__, **changed)
    for loop in pair:
        for lane in range(3):
            loop.set_terms(lane, Terms(1000))
        assert loop.run(steps=60) == Stopped.STEPS
    made = [[loop.drain(lane) for lane in range(3)] for loop in pair]
    for lane, (wanted, got) in enumerate(zip(*made, strict=True)):
        same_tokens(wanted, got, f"lane {lane}: ")
    drawn = [[vocabulary.tokens[token] for token in got[0].tolist()] for got in made[1]]
    found, program = set(), 0
    for token in drawn[0]:
        kind, _, value = token.partition("_")
        if kind == "Program":
            program = int(value)
        elif kind == "Pitch":
            assert 0 <= int(value) - octaves[program] < 12
            found.add(program)
    assert len(found) > 1
    heard = [[int(token[6:]) for token in lane if token.startswith("Pitch_")] for lane in drawn]
    inside = [np.mean([96 <= pitch < 108 for pitch in pitches]) for pitches in heard]
    assert inside[1] > 0.8 > 0.4 > inside[2]  # another pitch where all twelve sound


def check_giving_up(library: ctypes.CDLL, **changed: int) -> None:
    """Blocks that wait for a moment only: whatever gave up is done again stage by stage, from where it began."""
    lanes = range(6)  # so many that others wait for their sampler, longer than they may
    pair = loops(library, len(lanes), FILTERS, limit_us=1, samplers=1, **changed)
    for loop in pair:
        for lane in lanes:
            loop.set_terms(lane, Terms(1000))
        assert loop.run(steps=6) == Stopped.STEPS
    assert [same(*pair, lane) for lane in lanes] == [6] * len(lanes)
    engine_ = pair[1].lanes.engine
    assert engine_.fallback() == "a block gave up waiting for the others", engine_.fallback()
    assert library.melodia_emulator_faults() == 0  # nobody stores where somebody has left


def checks(library: ctypes.CDLL) -> Iterator[Any]:
    """What a mutant has to fail: one call after the other."""
    for schedule in range(1, 8):
        configure(library, schedule=schedule)
        yield lambda: check_lanes(library, "sequential-deep", "fp32", 4, 2)
        yield lambda: check_lanes(
            library, "lstm-tied", "fp32", 24, 1, 2, threads=32
        )  # most have no row of the head
        yield lambda: check_lanes(library, "parallel-gated", "int8", 4, 2)
        yield lambda: check_lanes(library, "lstm", "fp32", 2, 3, apart=1)
        yield lambda: check_lanes(library, "parallel-sum", "bf16", 4, 9, counted=1)
        yield lambda: check_lanes(library, "bilstm-gru-deep", "int8", 20, 2)
        yield lambda: check_lanes(library, "bigru-lstm", "fp32", 20, 3, counted=1)
        yield lambda: check_lanes(library, "bilstm-gru", "fp32", 20, 9, group=8)  # two groups read
        yield lambda: check_lanes(library, "bigru-lstm-deep", "bf16", 20, 2, blocks=3)
    for schedule in range(8, 200):  # a buffer that is written too early shows in one of fifty
        configure(library, schedule=schedule)
        yield lambda: check_lanes(library, "lstm-tied", "fp32", 24, 1, 2, threads=32)
    for schedule in range(200, 300):  # a block that begins late shows in one of twenty
        configure(library, schedule=schedule)
        yield lambda: check_loop(library, 1, 1, cluster=3)
    for schedule in range(1, 6):
        configure(library, schedule=schedule)
        yield lambda: check_loop(library, 2, 5, FILTERS, cluster=4)
        yield lambda: check_giving_up(library, cluster=4)
        yield lambda: check_loop(library, 1, 4, FILTERS)
        yield lambda: check_loop(library, 1, 4, pairs=True)
        yield lambda: check_loop(library, 1, 2, SamplingConfig(top_k=5), grain=1e6)
        yield lambda: check_loop(library, 1, 2, SamplingConfig(top_p=0.3), grain=1e6)
        yield lambda: check_loop(library, 2, 3, counted=1)
        yield lambda: check_lanes(library, "parallel", "bf16", 5, 25, counted=1, group=8)
        yield lambda: check_loop(library, 3, 3, FILTERS, samplers=-1)
        yield lambda: check_loop(library, 9, 3, counted=1, samplers=-1)


def verdict(path: str) -> str:
    """The word passed, or what went wrong first."""
    try:
        for check in checks(load(Path(path))):
            check()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " ")
    return "passed"


def main(paths: list[str]) -> None:
    """A line for each library; a library that kills its process says so."""
    torch.set_num_threads(1)  # a fork has none of torch's threads, and would wait for them for ever
    described("gru", "fp32"), primed()  # what every process needs
    for path in paths:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, verdict(path).encode())
            os._exit(0)
        os.close(write)
        _, status = os.waitpid(child, 0)
        text = os.read(read, 4096).decode()
        os.close(read)
        print(text or f"died ({status})", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
