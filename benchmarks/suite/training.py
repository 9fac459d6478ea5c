"""Training on the CPU: forward and backward of every kind against `nn.LSTM` and `nn.GRU` of the same sizes."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from copy import copy

import torch
from torch import Tensor, nn

from benchmarks.suite.machine import thread_counts, torch_threads
from benchmarks.suite.measuring import Timing, Way, interleave
from benchmarks.suite.options import Options
from benchmarks.suite.page import Section, Table, Target, figure
from benchmarks.suite.peers import torch_layers
from melodia.kernels import backend_report, fast_precision
from melodia.model import KINDS, Model, ModelConfig
from melodia.model.layers import PairLevel
from melodia.training.memory import keep_freed_memory

SHAPES = ((32, 128, 256), (32, 128, 512), (64, 256, 512))
V = 512
BLOCK = 32
"""Tokens of a block of the bidirectional kind, about a bar."""
SQUARE = 1024
LIMIT, SHARE = 1.5, 0.8


class _NoHead(nn.Module):
    """Gives what the head would read: the head is a product that both sides make alike."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """X as it is."""
        return x


class Side(ABC):
    """One side of a contest, forward and backward; in bf16 under autocast, with weights in float32."""

    precision = torch.float32
    module: nn.Module
    tokens: Tensor
    gradient: Tensor

    @abstractmethod
    def forward(self) -> Tensor:
        """The stack's output, of the gradient's shape."""

    def __call__(self, times: int) -> None:
        """Forward and backward, so many times."""
        for _ in range(times):
            self.module.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision != torch.float32):
                out = self.forward()
            out.backward(self.gradient.to(out.dtype))


class Ours(Side):
    """A model of melodia without its head."""

    def __init__(self, config: ModelConfig, tokens: Tensor, gradient: Tensor) -> None:
        self.model = Model(config).train()
        self.model.head = _NoHead()  # type: ignore[assignment]
        self.module, self.tokens, self.gradient = self.model, tokens, gradient

    def forward(self) -> Tensor:
        """The stack's output [B, T, H]."""
        return self.model(self.tokens)[0]


class Theirs(Side):
    """The same computation from torch's own modules, with the weights of `ours`."""

    def __init__(self, ours: Ours) -> None:
        model = ours.model
        self._config = model.config
        self.tokens, self.gradient = ours.tokens, ours.gradient
        self.embedding = nn.Embedding.from_pretrained(model.input.weight.detach().clone(), freeze=False)
        levels = [list(level.cells) for level in model.stack.levels]
        self._stack: list[nn.Module]
        parts: list[nn.Module] = [self.embedding]
        self._encoder: list[nn.Module] = []
        self._join: nn.Linear | None = None
        if self._config.kind in ("lstm", "gru"):
            self._stack = [torch_layers([cells[0] for cells in levels])]
        elif self._config.kind == "parallel":
            self._stack = [torch_layers([cell]) for cell in levels[0]]
            level = model.stack.levels[0]
            assert isinstance(level, PairLevel)
            assert level.projection is not None
            self._join = nn.Linear(level.projection.in_features, level.projection.out_features)
            self._join.load_state_dict(level.projection.state_dict())
            parts.append(self._join)
        else:
            self._stack = [torch_layers(cells) for cells in levels]
        if model.reader is not None:
            forward, backward = model.reader.encoder.pairs[0]
            self._encoder = [torch_layers([forward]), torch_layers([backward])]
        self.module = nn.ModuleList([*parts, *self._stack, *self._encoder])

    def forward(self) -> Tensor:
        """The stack's output [B, T, H]."""
        x = self.embedding(self.tokens.T)  # [T, B, D]
        if self._encoder:
            x = torch.cat((x, self._summaries(x)), -1)
        if self._join is not None:
            x = self._join(torch.cat([module(x)[0] for module in self._stack], -1))
        else:
            for module in self._stack:
                x = module(x)[0]
        return x.transpose(0, 1)

    def _summaries(self, x: Tensor) -> Tensor:
        """What conditions each step: of the block before its own, both directions at its end [T, B, 2E]."""
        T, B, D = x.shape
        finished = (T - 1) // BLOCK  # a block is finished when the next one begins
        past = x[: finished * BLOCK]
        forward = self._encoder[0](past)[0].view(finished, BLOCK, B, -1)[:, -1]  # [M, B, E]
        turned = past.view(finished, BLOCK, B, D).flip(1).transpose(0, 1).reshape(BLOCK, finished * B, D)
        backward = self._encoder[1](turned)[0][-1].view(finished, B, -1)
        found = torch.cat((forward, backward), -1)  # [M, B, 2E]
        begin = found.new_zeros(1, B, found.shape[-1])
        return torch.cat((begin, found)).repeat_interleave(BLOCK, 0)[:T]


def contest(kind: str, B: int, T: int, H: int) -> tuple[Ours, Theirs]:
    """Both sides of one kind and size, with the same weights."""
    generator = torch.Generator().manual_seed(1)
    blocks = {"block_length": BLOCK} if kind == "bidirectional" else {}
    config = ModelConfig(kind, V, H, **blocks)
    tokens = torch.randint(0, V, (B, T), generator=generator)
    ours = Ours(config, tokens, torch.randn(B, T, H, generator=generator))
    return ours, Theirs(ours)


def in_bf16(side: Side) -> Way:
    """The same side under autocast."""
    other = copy(side)
    other.precision = torch.bfloat16
    return Way(other)


def products(config: ModelConfig, B: int, T: int) -> float:
    """Floating point operations of all matrix products, forward and backward.

    The bottom's input product is made once for every token of the vocabulary (where steps are fewer: once a step), all
    others once a step; the backward pass has twice the forward's. A multiplication with an addition counts two.
    """
    H, D, steps = config.hidden_size, config.embedding_size, B * T
    gates = {"lstm": 4 * H, "gru": 3 * H}
    forward = 0.0
    looked_up = min(V, steps)
    if config.kind == "parallel":
        both = gates["lstm"] + gates["gru"]
        forward += looked_up * both * D + steps * (both * H + 2 * H * H)
    else:
        lstm, gru = ["lstm"] * config.lstm_layers, ["gru"] * config.gru_layers
        cells = gru + lstm if config.kind == "reversed" else lstm + gru
        for index, cell in enumerate(cells):
            forward += gates[cell] * (steps * H + (steps * H if index else looked_up * D))
    if config.kind == "bidirectional":
        assert config.encoder_hidden_size is not None
        E = config.encoder_hidden_size
        encoder = (4 if config.encoder == "lstm" else 3) * E
        finished = (T - 1) // BLOCK
        forward += 2 * encoder * (looked_up * D + finished * BLOCK * B * E)
        decoder = gates["gru" if config.encoder == "lstm" else "lstm"]
        forward += decoder * 2 * E * B * (finished + 1)  # the summary's share of the gates
    return 3 * 2 * forward


def run(options: Options, section: Section) -> None:
    """Measure all kinds in all shapes."""
    threads = thread_counts()[-1]
    torch_threads(threads)
    keep_freed_memory()
    report = backend_report()
    section.intro = (
        f"Forward and backward from token ids to the stack's output (no head, no optimiser), fp32, {threads} threads, "
        f"V = {V}; same weights on both sides. torch.nn: `nn.Embedding` and `nn.LSTM`/`nn.GRU`; for the bidirectional "
        f"kind one of them in each direction over blocks of {BLOCK} tokens, and one that decodes. *Of the square*: "
        f"operations of melodia's matrix products a second, over those of a product of {SQUARE} × {SQUARE} measured in "
        f"the same turns. bf16: either side under autocast, as in `melodia train --precision bf16`; empty where "
        f"torch cannot, and where the processor does not multiply it. Freed memory is kept for both (`melodia train` "
        f"asks for that). melodia runs {report.runs}: {report.why}."
    )
    table = Table(
        [
            "kind; B, T, H", "torch.nn ms", "melodia ms", "tokens/s", "× torch.nn", "of the square",
            "torch.nn bf16 ms", "melodia bf16 ms", "tokens/s", "× torch.nn bf16", "spread",
        ]
    )  # fmt: skip
    section.tables.append(table)
    shares: list[float] = []
    square = torch.randn(SQUARE, SQUARE, generator=torch.Generator().manual_seed(1))

    def squared(times: int) -> None:
        for _ in range(times):
            torch.mm(square, square)

    for shape in ((4, 64, 32),) if options.quick else SHAPES:
        B, T, H = shape
        for kind in KINDS:
            name = f"{kind}; {B}, {T}, {H}"
            options.say(f"training: {name}")
            ours, theirs = contest(kind, B, T, H)
            ways = {"theirs": Way(theirs), "ours": Way(ours), "square": Way(squared)}
            if fast_precision(torch.device("cpu")) == "bf16":
                ways["ours bf16"] = in_bf16(ours)
                with contextlib.suppress(RuntimeError):  # what torch has no kernel for
                    way = in_bf16(theirs)
                    way.work(1)
                    ways["theirs bf16"] = way
            found = interleave(ways, options.seconds(5, 0.2), turn=0.05)
            ratio = found["theirs"].median / found["ours"].median
            operations = products(ours.model.config, B, T)
            share = operations / found["ours"].median / (2 * SQUARE**3 / found["square"].median)
            shares.append(share)
            table.rows.append(_row(name, found, B * T, ratio, share))
            section.figures[name] = {key: list(timing.turns) for key, timing in found.items()}
            section.targets.append(
                Target(f"CPU training, {name}", "nn.LSTM + nn.GRU of the same sizes", LIMIT, ratio)
            )
    if shares:
        section.targets.append(
            Target(
                "CPU training, median over all kinds and sizes",
                "rate of a square product",
                SHARE,
                _median(shares),
            )
        )


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _row(name: str, found: dict[str, Timing], tokens: int, ratio: float, share: float) -> list[str]:
    theirs, ours = found["theirs"], found["ours"]
    row = [name, figure(theirs.median * 1e3), figure(ours.median * 1e3), f"{tokens / ours.median:,.0f}"]
    row += [figure(ratio), figure(share)]
    bf16 = ["", "", "", ""]
    if (ours_bf16 := found.get("ours bf16")) is not None:
        bf16[1:3] = figure(ours_bf16.median * 1e3), f"{tokens / ours_bf16.median:,.0f}"
        if (theirs_bf16 := found.get("theirs bf16")) is not None:
            bf16[0] = figure(theirs_bf16.median * 1e3)
            bf16[3] = figure(theirs_bf16.median / ours_bf16.median)
    return [*row, *bf16, f"±{max(theirs.spread, ours.spread):.0%}"]
