"""The measurements of gpu_check.py. Each is a function without arguments that prints rows of its table.

Nothing here runs without a GPU, but for what tests/test_gpu_check.py runs on the emulator. Baselines stand in the same
process and take turns with melodia; medians count. Those of the decode engine stand in gpu_generation.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu_generation import decoding, generation, network, streams_of
from benchmarks.gpu_primitives import primitives
from benchmarks.gpu_tools import (
    EXCHANGES,
    LIMIT_NS,
    PATHS,
    arguments,
    captured,
    chosen,
    library,
    medians,
    row,
    waves,
)


def small() -> int:
    """Small scans on every path, forward and backward: what the sanitizers watch."""
    import torch

    from melodia import kernels

    loaded = library()
    for path, exchange_ in (
        ("resident", "counter"),
        ("resident", "in_band"),
        ("steps", "automatic"),
        ("rows", "automatic"),
    ):
        loaded.melodia_cuda_configure(PATHS[path], EXCHANGES[exchange_], 20_000_000_000)
        for dtype in (torch.float32, torch.bfloat16):
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
    for weights, B, blocks in itertools.product(("fp32", "bf16", "int8"), (1, 9), (0, 4)):
        options = {"cluster": blocks, "limit_us": 60_000_000}  # sanitizers are slow
        streams = streams_of(network("parallel", 24), weights, B, options=options)
        streams.make(3)
        fell_back = streams.engine.fallback()
        if fell_back and not (blocks and torch.cuda.get_device_capability() < (9, 0)):
            raise RuntimeError(f"decode, {weights}, {B} sessions: {fell_back}")
        print("decode", weights, B, "in clusters" if blocks else "", "done", flush=True)
    return 0


def exchange() -> int:
    """Microseconds per step of scans, forward and backward, by exchange; the product's share grows with H and B.

    `counter / words`: how many times as long counters take.
    """
    import torch

    loaded = library()
    T = 1024
    for H, B, dtype in itertools.product(
        (64, 128, 256, 512, 1024), (1, 8, 64), (torch.bfloat16, torch.float32)
    ):
        gates_x, h, c, weight, bias = arguments("lstm", T, B, H, dtype)
        given = (gates_x, h, c, weight, bias, None)
        output, _, _, gates, cells = torch.ops.melodia.lstm_scan(*given, 2)
        kept = (torch.randn_like(output), None, None, gates, cells, c, weight, None)
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


def pieces(kind: str, H: int, dtype: Any) -> list[Any]:
    """The torch modules of a kind of one layer each, from the input upwards; the halves of a pair in a tuple."""
    from torch import nn

    lstm, gru = (module(H, H).cuda().to(dtype) for module in (nn.LSTM, nn.GRU))
    return {
        "lstm": [lstm],
        "gru": [gru],
        "sequential": [lstm, gru],
        "reversed": [gru, lstm],
        "parallel": [(lstm, gru)],
    }[kind]


def run_cudnn(parts: list[Any], x: Any) -> Any:
    """What torch's own layers make of x [T, B, H]."""
    for part in parts:
        x = part[0](x)[0] + part[1](x)[0] if isinstance(part, tuple) else part(x)[0]
    return x


def run_scans(parts: list[Any], x: Any, backend: str, watch: Callable[[], None] | None = None) -> Any:
    """The same by melodia's scans, with torch's weights; `watch` is called behind every scan and its gradient."""
    from torch import nn
    from torch.nn import functional as F

    from melodia import kernels

    def share(module: Any) -> tuple[Any, list[Any], list[Any]]:
        weight_ih, weight_hh, bias_ih, bias_hh = module.parameters()
        zero = x.new_zeros(x.shape[1], x.shape[2])
        states = [zero, zero] if isinstance(module, nn.LSTM) else [zero]
        return F.linear(x, weight_ih, bias_ih), states, [weight_hh, bias_hh]

    with kernels.use_backend(backend):
        for part in parts:
            if isinstance(part, tuple):
                (gates, gs, gw), (ux, us, uw) = map(share, part)
                lstm, gru, *_ = kernels.pair_scan(gates, ux, *gs, *us, *gw, *uw)
                x = lstm + gru
            else:
                gates, states, weights = share(part)
                scan: Any = kernels.lstm_scan if len(states) == 2 else kernels.gru_scan
                x = scan(gates, *states, *weights)[0]
            if watch is not None:
                watch()
                gates.register_hook(lambda _: watch())
    return x


def paths(parts: list[Any], x: Any, loaded: Any) -> str:
    """The paths that melodia's scans take, forward and then backward, or what went wrong."""
    import torch

    seen: list[str] = []
    try:
        run_scans(parts, x, "native", lambda: seen.append(chosen(loaded))).float().sum().backward()
    except RuntimeError as error:
        torch.cuda.synchronize()  # an error that stays ends the part
        return str(error).splitlines()[0]
    return " ".join([*seen[: len(parts)], "/", *seen[len(parts) :]])


def square_rate(dtype: Any) -> float:
    """Floating-point operations per second of a large square product."""
    import torch

    a, b = (torch.randn(4096, 4096, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * 4096**3 / (medians({"product": lambda: a @ b})["product"] / 1000)


def training() -> int:
    """Forward and backward of every kind, input products included, against cuDNN, eager steps and CUDA graphs.

    `path`: that of each scan, forward / backward. `of the GEMM rate`: the operations of all products by the time, over
    the rate of a square product measured here. What decides most comes first.
    """
    import torch

    loaded = library()
    for dtype, tf32 in (
        (torch.bfloat16, False),
        (torch.float32, False),
        (torch.float32, True),
        (torch.float16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        rate = square_rate(dtype)
        for kind in ("lstm", "gru", "sequential", "reversed", "parallel"):
            for T, B, H in ((512, 64, 512), (512, 64, 1024), (512, 8, 512), (512, 256, 512), (128, 64, 512)):
                parts = pieces(kind, H, dtype)
                x = torch.randn(T, B, H, device="cuda", dtype=dtype, requires_grad=True)

                def way(
                    run: Callable[..., Any], *more: Any, parts: Any = parts, x: Any = x
                ) -> Callable[[], None]:
                    return lambda: run(parts, x, *more).float().sum().backward()

                path = paths(parts, x, loaded)
                ways = {"cuDNN": way(run_cudnn), "melodia": way(run_scans, "native")}
                if T == 128:  # a step of eager torch is a dozen launches
                    ways["eager"] = way(run_scans, "reference")
                number = str(dtype)[6:] + (" (tf32)" if tf32 else "")
                took = medians(dict(ways) | captured(**ways), 5, f"{kind}, {number}, T={T}, B={B}, H={H}")
                ours, theirs = took.get("melodia"), took.get("cuDNN")
                work = 3 * 2 * T * B * {"lstm": 4, "gru": 3}.get(kind, 7) * H * 2 * H
                row(
                    kind=kind,
                    type=number,
                    T=T,
                    B=B,
                    H=H,
                    path=path,
                    ratio=theirs / ours if ours and theirs else None,
                    **{"of the GEMM rate": work / (ours / 1000) / rate if ours else None},
                    **{f"{n} (ms)": t for n, t in took.items()},
                )
    return 0


def wavefront() -> int:
    """Stacks of two levels forward and backward, by the steps of a part of a wavefront; 0: level after level."""
    import torch

    from melodia import kernels
    from melodia.model import ModelConfig
    from melodia.model.layers import NO_DROPOUT
    from melodia.model.stacks import build_stack

    library()
    given = kernels.wavefront_steps
    for kind, dtype in itertools.product(
        ("lstm", "gru", "sequential", "reversed"), (torch.bfloat16, torch.float32)
    ):
        for T, B, H in ((256, 8, 512), (256, 64, 512), (512, 8, 1024)):
            stack = build_stack(ModelConfig(kind, vocab_size=2, hidden_size=H), H)
            stack.initialise(torch.Generator().manual_seed(0), 1.0)
            stack = stack.cuda().to(dtype)
            x = torch.randn(T, B, H, device="cuda", dtype=dtype, requires_grad=True)

            def run(steps: int, stack: Any = stack, x: Any = x, B: int = B) -> None:
                kernels.wavefront_steps = lambda _: steps
                gates = tuple(cell.gates(x) for cell in stack.bottom.cells)
                with kernels.use_backend("native"):
                    out, _ = stack.scan(gates, stack.initial_state(B), None, NO_DROPOUT)
                out.float().sum().backward()

            try:
                took = medians({f"{steps} (ms)": partial(run, steps) for steps in (0, 32, 64, 128)}, turns=5)
            finally:
                kernels.wavefront_steps = given
            row(kind=kind, type=str(dtype)[6:], T=T, B=B, H=H, **took)
    return 0


def stepping() -> int:
    """A chain of single steps, eager and captured, against torch's cells."""
    import torch
    from torch import nn

    from melodia import kernels

    library()
    steps = 64
    for kind in ("lstm", "gru"):
        for B, H in ((1, 512), (64, 512), (64, 1024)):
            for dtype in (torch.float32, torch.bfloat16):
                cell = (nn.LSTMCell if kind == "lstm" else nn.GRUCell)(H, H).cuda().to(dtype)
                gates, *states, weight, bias = arguments(kind, 1, B, H, dtype)
                x = torch.randn(B, H, device="cuda", dtype=dtype)

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

                took = medians({"torch": torchs, "melodia": ours} | captured(torch=torchs, melodia=ours))
                per_step = {f"{name} (us)": 1000 * t / steps for name, t in took.items()}
                row(kind=kind, type=str(dtype)[6:], B=B, H=H, **per_step)
    for levels in (("lstm", "gru"), ("lstm", "lstm", "gru"), ("concat",), ("gated", "gated")):
        for B, H in ((1, 512), (64, 512), (64, 1024)):
            for dtype in (torch.float32, torch.bfloat16):
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
                took = medians(dict(ways) | captured(**ways))
                per_step = {f"{name} (us)": 1000 * t / steps for name, t in took.items()}
                row(kind=" ".join(levels), type=str(dtype)[6:], B=B, H=H, **per_step)
    return 0


def stack(levels: tuple[str, ...], B: int, H: int, dtype: Any) -> tuple[tuple[Any, Any, Any], list[str]]:
    """gates_x, state and weights for `kernels.hybrid_step` on the GPU, and the levels."""
    import torch

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, device="cuda", dtype=dtype) / shape[-1] ** 0.5

    gates_x, state, weights = [], [], []
    for index, level in enumerate(levels):
        for cell in ("lstm", "gru") if level not in ("lstm", "gru") else (level,):
            G = 4 * H if cell == "lstm" else 3 * H
            if index == 0:
                gates_x.append(normal(B, G))
            for _ in range(1 if index == 0 else 2):
                weights += [normal(G, H), normal(G)]
            state += [normal(B, H) for _ in range(2 if cell == "lstm" else 1)]
        if level in ("concat", "gated"):
            weights += [normal(H, 2 * H), normal(H)]
    return (gates_x, state, weights), list(levels)


PARTS: dict[str, Callable[[], int]] = {
    "small": small,
    "primitives": primitives,
    "exchange": exchange,
    "stepping": stepping,
    "training": training,
    "wavefront": wavefront,
    "generation": generation,
    "decoding": decoding,
}
