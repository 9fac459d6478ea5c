"""Time of one token on the CPU: the engine against torch's own layers, all in one process, interleaved.

`python -m benchmarks.generation` prints a table. The model is an LSTM under a GRU, the vocabulary has 512 tokens.
Every way gets a turn in each round; a way's number is the median of its rounds' medians. The floor is the time to
read a buffer as large as the packed weights once, with one thread. On a busy machine torch's threads wait for one
another: `OMP_NUM_THREADS=1` gives torch its best time there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from melodia import engine
from melodia.decode import SamplingConfig
from melodia.engine.description import describe
from melodia.model import Model, ModelConfig

Step = Callable[[], None]


class Eager:
    """`nn.Embedding`, `nn.LSTM`, `nn.GRU`, `nn.Linear`, softmax, top-k and multinomial, a token at a time."""

    def __init__(self, V: int, H: int, cells: bool) -> None:
        self.embedding = nn.Embedding(V, H)
        self.lstm = nn.LSTMCell(H, H) if cells else nn.LSTM(H, H)
        self.gru = nn.GRUCell(H, H) if cells else nn.GRU(H, H)
        self.head = nn.Linear(H, V)
        shape = (1, H) if cells else (1, 1, H)
        self.h, self.c, self.g = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
        self.token = torch.zeros(1 if cells else (1, 1), dtype=torch.long)
        self.cells = cells

    def __call__(self) -> None:
        """Make a token."""
        with torch.inference_mode():
            x = self.embedding(self.token)
            if self.cells:
                self.h, self.c = self.lstm(x, (self.h, self.c))
                x = self.g = self.gru(self.h, self.g)
            else:
                x, (self.h, self.c) = self.lstm(x, (self.h, self.c))
                x, self.g = self.gru(x, self.g)
            values, ids = self.head(x).view(-1).topk(40)
            chosen = torch.multinomial(torch.softmax(values, 0), 1)
            self.token = ids[chosen].view_as(self.token)


class Compiled:
    """The engine, its choice included, called from Python at every token."""

    def __init__(self, model: Model, weights: str, threads: int) -> None:
        self.packed = engine.Engine(*describe(model, weights), threads=threads)
        self.lanes = engine.Lanes(self.packed, 1)
        self.config = SamplingConfig(top_k=40)
        self.token, self.position = 0, 0

    def __call__(self) -> None:
        """Make a token."""
        logits = self.lanes.step([self.token])[0]
        self.position += 1
        self.token = engine.choose(
            logits, None, [], self.config, random_seed=1, session=0, position=self.position
        ).token


def floor(size: int) -> Step:
    """Read a buffer of `size` bytes once."""
    buffer = np.ones(size // 8, np.int64)
    return lambda: void(np.bitwise_or.reduce(buffer))


def void(_: object) -> None:
    """Do nothing."""


def measure(ways: dict[str, Step], rounds: int, tokens: int) -> dict[str, float]:
    """Median seconds of a token, by way."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in ways.items():
            times = []
            for i in range(tokens + 5):
                began = time.perf_counter()
                step()
                if i >= 5:
                    times.append(time.perf_counter() - began)
            found[name].append(statistics.median(times))
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=40)
    options = parser.parse_args()
    V, H = options.vocabulary, options.hidden
    model = Model(ModelConfig(kind="sequential", vocab_size=V, hidden_size=H)).eval()
    ways: dict[str, Step] = {
        "nn.LSTM + nn.GRU": Eager(V, H, cells=False),
        "LSTMCell + GRUCell": Eager(V, H, cells=True),
    }
    floors = {}
    for weights in ("fp32", "bf16", "int8"):
        for threads in sorted({1, min(2, engine.cores())}):
            compiled = Compiled(model, weights, threads)
            ways[f"engine {weights}, {threads} thread{'s' * (threads > 1)}"] = compiled
        size = compiled.packed.facts()["step_bytes"]
        floors[weights] = f"reading {size / 1e6:.1f} MB"
        ways[floors[weights]] = floor(size)
    found = measure(ways, options.rounds, options.tokens)
    print(f"LSTM {H} -> GRU {H}, V = {V}, one stream, {engine.instruction_set()}, {engine.cores()} cores,")
    print(f"torch {torch.__version__} with {torch.get_num_threads()} threads\n")
    print("| way | µs per token | times nn.LSTM + nn.GRU | times LSTMCell + GRUCell | of the floor |")
    print("|---|---|---|---|---|")
    for name, seconds in found.items():
        base = [found["nn.LSTM + nn.GRU"] / seconds, found["LSTMCell + GRUCell"] / seconds]
        kind = name.split()[1].rstrip(",") if name.startswith("engine") else ""
        share = f"{seconds / found[floors[kind]]:.2f}" if kind else ""
        print(f"| {name} | {seconds * 1e6:.1f} | {base[0]:.1f} | {base[1]:.1f} | {share} |")


if __name__ == "__main__":
    main()
