"""How fast a model generates on this machine: every kind of weights, every number of threads, beside plain PyTorch.

One stream from its beginning, with the draw that `melodia generate` makes; the engine's has the grammar and the side
inputs in it. The ways take turns, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from melodia import engine, machine
from melodia.checks import file_path, real_number, whole_number
from melodia.decode.config import RECOMMENDED, SamplingConfig
from melodia.engine.description import WEIGHTS, describe
from melodia.engine.loop import Start, Terms, TokenLoop
from melodia.engine.rules import rules_of
from melodia.errors import CheckpointError, ConfigError
from melodia.grammar import Constraints, Grammar
from melodia.model.config import ModelConfig
from melodia.model.network import Network, tensor_shapes
from melodia.model.stored import read_checkpoint
from melodia.sampler.loading import bundled_model
from melodia.sampler.runner import engine_obstacle
from melodia.side_inputs import SideInputTracker
from melodia.tokenizer import Tokenizer
from melodia.vocabulary import Vocabulary
from melodia.wording import counted

SECONDS = 12.0
TOKEN_SECONDS = 0.5
TURNS = 6
BURST = 16
WARM_UP = 8  # tokens at most at the beginning of a turn that do not count; a quarter of the turn
PYTORCH = "PyTorch"
TEMPERATURE, TOP_P = RECOMMENDED["temperature"], RECOMMENDED["top_p"]
SAMPLING = SamplingConfig(temperature=TEMPERATURE, top_p=TOP_P)
_PAUSE = 0.004  # seconds between turns, in which the threads of the turn before go to sleep


@dataclass(frozen=True)
class Speed:
    """What one way of generating reached.

    Attributes:
        way: "fp32", "bf16", "int8" (weights of the engine), or "PyTorch" (fp32).
        threads: how many it had.
        tokens: how many were timed.
        tokens_per_second: made in bursts of `BURST` tokens.
        p50, p99: microseconds of a token that is asked for alone.
        times_pytorch: how many times PyTorch's speed, at PyTorch's better number of threads; None without PyTorch.
    """

    way: str
    threads: int
    tokens: int
    tokens_per_second: float
    p50: float
    p99: float
    times_pytorch: float | None = None


@dataclass(frozen=True)
class BenchResult:
    """What `bench` found.

    Attributes:
        model: which model was run, in a few words.
        parameters: how many numbers it has learned.
        instruction_set: of the engine; None without it.
        cores: processors that this process may use.
        speeds: in the order in which they were asked for; PyTorch first.
        notes: what is missing, and why; whether the machine had other work.
    """

    model: str
    parameters: int
    instruction_set: str | None
    cores: int
    speeds: list[Speed]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return asdict(self)


def default_threads(cores: int) -> list[int]:
    """1, 2, 4, 8 as far as there are cores, and their number itself where it is smaller than 8.

    >>> default_threads(1), default_threads(2), default_threads(6), default_threads(64)
    ([1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8])
    """
    most = min(8, cores)
    return sorted({1, most} | {count for count in (2, 4, 8) if count <= most})


def bench(
    model: str | os.PathLike[str] | None = None,
    *,
    weights: Sequence[str] = WEIGHTS,
    threads: Sequence[int] | None = None,
    seconds: float = SECONDS,
) -> BenchResult:
    """Measure.

    Args:
        model: a checkpoint folder; None: the model that comes with melodia, or a tiny random one where none does.
        weights: of the engine, some of "fp32", "bf16", "int8".
        threads: numbers of threads; None: `default_threads`.
        seconds: for all ways together, the time to load things not counted.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: weights, threads or seconds that make no sense here.

    >>> result = bench(weights=["fp32"], threads=[1], seconds=0.2)
    >>> {speed.way for speed in result.speeds} <= {"PyTorch", "fp32"}
    True
    """
    cores = machine.cores()
    model = None if model is None else file_path("model", model, CheckpointError)
    if threads is not None and not isinstance(threads, Iterable):
        raise ConfigError(f"`threads` must be a list of numbers (received {threads!r})")
    counts = default_threads(cores) if threads is None else list(threads)
    _check(weights, counts, seconds, cores)
    title, network, vocabulary, notes = _network(model)
    ways: list[tuple[str, int, _Way]] = []
    if importlib.util.find_spec("torch") is None:
        notes.append("PyTorch is not installed, so there is nothing to compare with")
    else:
        ways += [(PYTORCH, count, _PyTorch(network, count)) for count in counts]
    obstacle = engine.reason()
    if obstacle is None:
        for kind in weights:
            for count in counts:
                stream = Streams(network, vocabulary, SAMPLING, weights=kind, threads=count)
                ways.append((kind, count, stream))
    else:
        notes.append(f"the engine cannot run: {obstacle}")
    disturbed = busy()
    if disturbed:
        notes.append(disturbed)
    with _torch_threads_kept():
        found = _measure([way for _, _, way in ways], seconds)
    speeds = [_speed(name, count, times) for (name, count, _), times in zip(ways, found, strict=True)]
    base = max((speed.tokens_per_second for speed in speeds if speed.way == PYTORCH), default=None)
    if base is not None:
        speeds = [Speed(**(asdict(s) | {"times_pytorch": s.tokens_per_second / base})) for s in speeds]
    parameters = sum(array.size for array in network.tensors.values())
    return BenchResult(title, parameters, engine.instruction_set(), cores, speeds, notes)


def busy() -> str:
    """A remark where the machine has other work, which makes every figure worse; else nothing."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load <= 0.5:
        return ""
    return f"the machine is busy (load {load:.1f}): figures may be better when it is idle"


def token_way() -> str:
    """What `token_time` measures, in a few words.

    >>> "fp32" in token_way()
    True
    """
    way = PYTORCH if engine_obstacle("auto") else f"engine ({engine.instruction_set()})"
    return f"{way}, fp32, one stream, {counted(_most_threads(), 'thread')}"


def token_time(network: Network, vocabulary: Vocabulary) -> float:
    """The time of one token of one stream in microseconds: in bursts, so that an encoder's share is in it.

    In the engine, as `melodia generate` makes it, unless that cannot run here or the process was asked for the
    reference; then in plain PyTorch.
    """
    threads = _most_threads()
    way: _Way
    if engine_obstacle("auto") is None:
        way = Streams(network, vocabulary, SAMPLING, threads=threads)
    else:
        way = _PyTorch(network, threads)
    with _torch_threads_kept():
        (times,) = _measure([way], TOKEN_SECONDS)
    return 1e6 * sum(times.bursts) / (BURST * len(times.bursts))


def _most_threads() -> int:
    """As many as generating takes."""
    return default_threads(machine.cores())[-1]


def _check(weights: Sequence[str], threads: Sequence[int], seconds: float, cores: int) -> None:
    odd = [name for name in weights if name not in WEIGHTS]
    if odd or not weights:
        received = ", ".join(name or "an empty name" for name in odd) or "none"
        raise ConfigError(f"`weights` must be one or more of {', '.join(WEIGHTS)} (received {received})")
    for argument, wanted in (("weights", weights), ("threads", threads)):
        if len(set(wanted)) < len(wanted):
            shown = ", ".join(map(str, wanted))
            raise ConfigError(f"`{argument}` must not repeat values (received {shown})")
    if not threads:
        raise ConfigError("`threads` must be one or more numbers (received none)")
    for count in threads:
        whole_number("threads", count, 1, cores, limits=f" between 1 and {cores}, the cores of this process")
    if not 0 < real_number("seconds", seconds) <= 3600:
        raise ConfigError(f"`seconds` must be > 0 and at most 3600 (received {seconds})")


def _network(model: Path | None) -> tuple[str, Network, Vocabulary, list[str]]:
    """What to run: its name, the network, what its tokens stand for, remarks."""
    try:
        folder = bundled_model() if model is None else model
    except CheckpointError:
        vocabulary = Tokenizer().vocabulary
        config = ModelConfig.preset("sequential", "tiny", vocab_size=vocabulary.size)
        random = np.random.default_rng(1)
        tensors = {
            name: random.uniform(-0.1, 0.1, shape).astype(np.float32)
            for name, shape in tensor_shapes(config).items()
        }
        note = (
            "no model was found: these figures are for a tiny one with random weights; name one with `model`"
        )
        return f"random {_shape(config)}", Network(config, tensors), vocabulary, [note]
    checkpoint = read_checkpoint(folder)
    network = checkpoint.network
    name = "the model that comes with melodia" if model is None else folder.resolve().name
    return f"{name}: {_shape(network.config)}", network, checkpoint.vocabulary, []


def _shape(config: ModelConfig) -> str:
    layers = config.lstm_layers + config.gru_layers
    return f"{config.kind}, {layers} layers of {config.hidden_size}, {config.vocab_size} tokens"


class Streams:
    """B streams of the engine that never end: grammar, side inputs, model and choice in one call.

    Args:
        network: the model.
        vocabulary: of its tokens.
        sampling: of the choice.
        weights: "fp32", "bf16" or "int8".
        B: streams.
        threads: of the engine.

    Attributes:
        engine: the packed network.
        lanes: its sessions.

    Raises:
        BackendError: the engine is not there.
    """

    def __init__(
        self,
        network: Network,
        vocabulary: Vocabulary,
        sampling: SamplingConfig,
        *,
        weights: str = "fp32",
        B: int = 1,
        threads: int = 1,
    ) -> None:
        self.engine = self._packed(describe(network, weights), threads)
        self.lanes = engine.Lanes(self.engine, B)
        specs = network.config.side_inputs
        grammar = Grammar.compile(vocabulary, Constraints(allow_eos=False))
        state, side = grammar.start(), SideInputTracker(vocabulary, specs)
        grammar.advance(state, vocabulary.bos)
        row = side.advance(vocabulary.bos)
        logits = self.lanes.step([vocabulary.bos] * B, np.stack([row] * B) if specs else None)
        starts = [
            Start(
                logits=logits[b],
                grammar=state,
                side=side,
                sampling=sampling,
                random_seed=1,
                session=b,
                fed=1,
                recent=(),
            )
            for b in range(B)
        ]
        self._loop = TokenLoop(self.lanes, [rules_of(grammar, specs)] * B, starts)
        for b in range(B):
            self._loop.set_terms(b, Terms(1 << 62))

    def _packed(
        self, description: tuple[NDArray[np.int64], NDArray[np.float32]], threads: int
    ) -> engine.Engine:
        return engine.Engine(*description, threads=threads)

    def prepare(self) -> None:
        """Nothing: the threads are the engine's own."""

    def make(self, tokens: int) -> list[tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]]:
        """So many tokens of each of the B streams, in one call; with each, NLL and entropy (`TokenLoop.drain`)."""
        self._loop.run(steps=tokens)
        return [self._loop.drain(b) for b in range(self.lanes.count)]


class _PyTorch:
    """A stream of the same network in plain PyTorch, the draw included; no grammar."""

    def __init__(self, network: Network, threads: int) -> None:
        import torch

        self._torch, self._threads = torch, threads
        self._model = network.to_torch()
        count = len(
            network.config.side_inputs
        )  # which of their rows are read makes no difference to the time
        self._side = torch.zeros(1, count, dtype=torch.long) if count else None
        self._state = self._model.initial_state(1)
        self._token = torch.zeros(1, dtype=torch.long)

    def prepare(self) -> None:
        """Torch's operators take their threads from the process."""
        self._torch.set_num_threads(self._threads)

    def make(self, tokens: int) -> None:
        """So many tokens."""
        from melodia.kernels import use_backend

        torch = self._torch
        with torch.inference_mode(), use_backend("reference"):
            for _ in range(tokens):
                logits, self._state = self._model.step(self._token, self._side, self._state)
                ordered, ids = torch.softmax(logits[0] / TEMPERATURE, 0).sort(descending=True)
                kept = ordered * (ordered.cumsum(0) - ordered < TOP_P)
                self._token = ids[torch.multinomial(kept, 1)]


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Give torch back the number of threads that it had, where it is there."""
    torch = sys.modules.get("torch")
    before = 0 if torch is None else torch.get_num_threads()
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(before)


class _Way(Protocol):
    def prepare(self) -> None:
        """What must be done before a turn."""

    def make(self, tokens: int) -> object:
        """So many tokens."""


@dataclass(frozen=True)
class _Times:
    """Seconds of every token that was asked for alone, and of every burst of `BURST` tokens."""

    single: list[float] = field(default_factory=list)
    bursts: list[float] = field(default_factory=list)


def _measure(ways: Sequence[_Way], seconds: float) -> list[_Times]:
    """The times of each way. They take turns: a quarter of one warms up at most, the rest is half and half."""
    found = [_Times() for _ in ways]
    turn = seconds / TURNS / max(1, len(ways))
    for _ in range(TURNS):
        for times, way in zip(found, ways, strict=True):
            time.sleep(_PAUSE)
            way.prepare()
            begin = time.perf_counter()
            for _ in range(WARM_UP):
                way.make(1)
                if time.perf_counter() - begin > turn / 4:
                    break
            left = begin + turn - time.perf_counter()
            _repeat(way, 1, left / 2, times.single)
            _repeat(way, BURST, left / 2, times.bursts)
    return found


def _repeat(way: _Way, tokens: int, seconds: float, found: list[float]) -> None:
    """Call until the time is over, but for the last call; once at least in all turns."""
    before = time.perf_counter()
    end = before + seconds
    while not found or before < end:
        way.make(tokens)
        after = time.perf_counter()
        found.append(after - before)
        before = after


def _speed(way: str, threads: int, times: _Times) -> Speed:
    p50, p99 = (1e6 * float(np.quantile(times.single, share, method="inverted_cdf")) for share in (0.5, 0.99))
    tokens = BURST * len(times.bursts)
    return Speed(way, threads, len(times.single) + tokens, tokens / sum(times.bursts), p50, p99)
