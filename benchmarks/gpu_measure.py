"""The measurements of gpu_check.py. Each is a function without arguments that prints rows of its table.

They are meant for a GPU; tests/test_gpu_check.py runs them in small on the CPU and on the emulator. Baselines stand in
the same process and take turns with melodia; medians count. Those of training stand in gpu_training.py, those of the
decode engine in gpu_generation.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks import gpu_tools
from benchmarks.gpu_generation import decoding, generation, more_generation, network, streams_of
from benchmarks.gpu_primitives import primitives
from benchmarks.gpu_tools import (
    EXCHANGES,
    LIMIT_NS,
    PATHS,
    arguments,
    begins,
    captured,
    library,
    medians,
    normal,
    row,
    waves,
)
from benchmarks.gpu_training import lookups, more_training, training, training_step


def small(types: Sequence[str] = ("float32", "bfloat16"), library_of_engine: Any = None) -> int:
    """Small calls on every path, forward and backward: what the sanitizers watch; the decode engine comes first.

    Tests choose the types, and the emulator's library for the engine.
    """
    import torch

    from melodia import kernels

    status = 0
    for weights, B, blocks in itertools.product(("bf16", "fp32", "int8"), (1, 9), (0, 4)):
        if not begins(f"decode, {weights}, {B} sessions, clusters of {blocks}"):
            continue
        options = {"cluster": blocks, "limit_us": 60_000_000}  # sanitizers are slow
        streams = streams_of(network("parallel", 24), weights, B, library_of_engine, options)
        streams.make(3)
        fell_back = streams.engine.fallback()
        if fell_back and not (blocks and torch.cuda.get_device_capability() < (9, 0)):
            print(f"decode, {weights}, {B} sessions: {fell_back}", flush=True)
            status = 1
        print("decode", weights, B, "in clusters" if blocks else "", "done", flush=True)
    loaded = library()
    for path, exchange_ in (
        ("resident", "counter"),
        ("resident", "in_band"),
        ("steps", "automatic"),
        ("rows", "automatic"),
    ):
        loaded.melodia_cuda_configure(PATHS[path], EXCHANGES[exchange_], 20_000_000_000)
        for dtype in (getattr(torch, name) for name in types):
            if not begins(f"{path}, {exchange_}, {dtype}"):
                continue
            for kind in ("lstm", "gru"):
                inputs = [x.requires_grad_() for x in arguments(kind, 3, 9, 40, dtype)]
                with kernels.use_backend("native"):
                    outputs = getattr(kernels, f"{kind}_scan")(*inputs)
                sum(x.float().sum() for x in outputs).backward()
                torch.cuda.synchronize()
                print(path, exchange_, dtype, kind, "done", flush=True)
            cells = [arguments(kind, T, 9, 40, dtype) for kind, T in (("lstm", 3), ("gru", 2), ("gru", 4))]
            with kernels.use_backend("native"), torch.no_grad():
                kernels.wave_scan(*waves(cells))
                torch.backends.cuda.matmul.fp32_precision = "tf32"
                kernels.lstm_scan(*arguments("lstm", 3, 9, 40, dtype))
                torch.backends.cuda.matmul.fp32_precision = "ieee"
            torch.cuda.synchronize()
            print(path, exchange_, dtype, "wave, tf32", "done", flush=True)
            given, levels = stack(("gated", "lstm", "gru"), 9, 24, dtype)
            with kernels.use_backend("native"), torch.no_grad():
                kernels.hybrid_step(*given, levels)
            torch.cuda.synchronize()
            print(path, exchange_, dtype, "hybrid_step", "done", flush=True)
    return status


def exchange(
    T: int = 1024, sizes: Sequence[int] = (512, 1024, 256, 128, 64), batches: Sequence[int] = (64, 8, 1)
) -> int:
    """Microseconds per step of LSTM scans, forward and backward, by exchange; the product's share grows with H and B.

    `counter / words`: how many times as long counters take.
    """
    import torch

    loaded = library()
    for dtype, H, B in itertools.product((torch.bfloat16, torch.float32), sizes, batches):
        if not begins(f"{dtype}, H={H}, B={B}"):
            continue
        gates_x, h, c, weight, bias = arguments("lstm", T, B, H, dtype)
        given = (gates_x, h, c, weight, bias, None)
        loaded.melodia_cuda_configure(PATHS["automatic"], EXCHANGES["automatic"], LIMIT_NS)
        output, _, _, gates, cells = torch.ops.melodia.lstm_scan(*given, 2)
        kept = (normal(*output.shape, dtype=dtype), None, None, gates, cells, c, weight, None)
        passes: dict[str, Callable[[], object]] = {
            "forward": partial(torch.ops.melodia.lstm_scan, *given, 0),
            "backward": partial(torch.ops.melodia.lstm_scan_backward, *kept),
        }
        for name, run in passes.items():

            def scan(way: str, run: Callable[[], object] = run) -> None:
                loaded.melodia_cuda_configure(PATHS["resident"], EXCHANGES[way], LIMIT_NS)
                run()

            kind = str(dtype)[6:]
            ways = {way: partial(scan, way) for way in ("counter", "in_band")}
            took = medians(dict(ways), what=f"{name}, {kind}, H={H}, B={B}")
            counter, words = (1000 * took[way] / T if way in took else None for way in ways)
            us = {"counter (us/step)": counter, "words (us/step)": words}
            win = counter / words if counter and words else None
            row(**{"pass": name}, type=kind, H=H, B=B, **us, **{"counter / words": win})
    return 0


def wavefront(sizes: Sequence[tuple[int, int, int]] = ((256, 64, 512), (256, 8, 512), (512, 8, 1024))) -> int:
    """Stacks of two levels forward and backward, by the steps of a part of a wavefront; 0: level after level."""
    import torch

    from melodia import kernels
    from melodia.model import ModelConfig
    from melodia.model.layers import NO_DROPOUT
    from melodia.model.stacks import build_stack

    library()
    given = kernels.wavefront_steps
    for dtype, kind in itertools.product(
        (torch.bfloat16, torch.float32), ("sequential", "lstm", "gru", "reversed")
    ):
        for T, B, H in sizes:
            what = f"{kind}, {str(dtype)[6:]}, T={T}, B={B}, H={H}"
            if not begins(what):
                continue
            stack = build_stack(ModelConfig(kind, vocab_size=2, hidden_size=H), H)
            stack.initialise(torch.Generator().manual_seed(0), 1.0)
            stack = stack.to(gpu_tools.DEVICE, dtype)
            x = normal(T, B, H, dtype=dtype).requires_grad_()

            def run(steps: int, stack: Any = stack, x: Any = x, B: int = B) -> None:
                kernels.wavefront_steps = lambda _: steps
                gates = tuple(cell.gates(x) for cell in stack.bottom.cells)
                with kernels.use_backend("native"):
                    out, _ = stack.scan(gates, stack.initial_state(B), None, NO_DROPOUT)
                out.float().sum().backward()

            try:
                took = medians({f"{steps} (ms)": partial(run, steps) for steps in (0, 32, 64, 128)}, 5, what)
            finally:
                kernels.wavefront_steps = given
            row(kind=kind, type=str(dtype)[6:], T=T, B=B, H=H, **took)
    return 0


def stepping(steps: int = 64, sizes: Sequence[tuple[int, int]] = ((1, 512), (64, 512), (64, 1024))) -> int:
    """A chain of single steps of stacks and of cells, eager and captured, against torch's cells and formulas."""
    import torch
    from torch import nn

    from melodia import kernels

    library()

    def tell(kind: str, dtype: Any, B: int, H: int, ways: dict[str, Callable[[], None]]) -> None:
        what = f"{kind}, {str(dtype)[6:]}, B={B}, H={H}"
        if not begins(what):
            return
        took = medians(dict(ways) | captured(**ways), what=what)
        us = {f"{name} (us)": 1000 * t / steps for name, t in took.items()}
        row(kind=kind, type=str(dtype)[6:], B=B, H=H, **us)

    types, stacks = (
        (torch.bfloat16, torch.float32),
        (("lstm", "gru"), ("concat",), ("lstm", "lstm", "gru"), ("gated", "gated")),
    )
    for dtype, levels, (B, H) in itertools.product(types, stacks, sizes):
        (gates_x, first, weights), names = stack(levels, B, H, dtype)

        @torch.no_grad()
        def advance(
            backend: str, g: Any = gates_x, s: Any = first, w: Any = weights, names: Any = names
        ) -> None:
            with kernels.use_backend(backend):
                for _ in range(steps):
                    _, s = kernels.hybrid_step(g, s, w, names)

        ways: dict[str, Callable[[], None]] = {
            "torch": partial(advance, "reference"),
            "melodia": partial(advance, "native"),
        }
        tell(" ".join(levels), dtype, B, H, ways)
    for dtype, kind, (B, H) in itertools.product(types, ("lstm", "gru"), sizes):
        cell = (nn.LSTMCell if kind == "lstm" else nn.GRUCell)(H, H).to(gpu_tools.DEVICE, dtype)
        gates, *states, weight, bias = arguments(kind, 1, B, H, dtype)
        x = normal(B, H, dtype=dtype)

        @torch.no_grad()
        def torchs(cell: Any = cell, x: Any = x, states: Any = states, kind: str = kind) -> None:
            state = tuple(states) if kind == "lstm" else states[0]
            for _ in range(steps):
                state = cell(x, state)

        @torch.no_grad()
        def ours(
            g: Any = gates[0], s: Any = states, w: Any = weight, b: Any = bias, kind: str = kind
        ) -> None:
            state = tuple(s)
            with kernels.use_backend("native"):
                for _ in range(steps):
                    made = getattr(kernels, f"{kind}_step")(g, *state, w, b)
                    state = made if kind == "lstm" else (made,)

        tell(kind, dtype, B, H, {"torch": torchs, "melodia": ours})
    return 0


def stack(levels: tuple[str, ...], B: int, H: int, dtype: Any) -> tuple[tuple[Any, Any, Any], list[str]]:
    """gates_x, state and weights for `kernels.hybrid_step` on the GPU, and the levels."""

    def scaled(*shape: int) -> Any:
        return normal(*shape, dtype=dtype) / shape[-1] ** 0.5

    gates_x, state, weights = [], [], []
    for index, level in enumerate(levels):
        for cell in ("lstm", "gru") if level not in ("lstm", "gru") else (level,):
            G = 4 * H if cell == "lstm" else 3 * H
            if index == 0:
                gates_x.append(scaled(B, G))
            for _ in range(1 if index == 0 else 2):
                weights += [scaled(G, H), scaled(G)]
            state += [scaled(B, H) for _ in range(2 if cell == "lstm" else 1)]
        if level in ("concat", "gated"):
            weights += [scaled(H, 2 * H), scaled(H)]
    return (gates_x, state, weights), list(levels)


PARTS: dict[str, Callable[[], int]] = {
    "small": small,
    "primitives": primitives,
    "training": training,
    "generation": generation,
    "training-step": training_step,
    "lookup": lookups,
    "exchange": exchange,
    "decoding": decoding,
    "more-training": more_training,
    "more-generation": more_generation,
    "stepping": stepping,
    "wavefront": wavefront,
}
