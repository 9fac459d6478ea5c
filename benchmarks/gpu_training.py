"""The measurements of gpu_check.py that concern training: layers against torch's, a whole step, lookups."""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import gpu_tools
from benchmarks.gpu_tools import begins, captured, chosen, library, medians, normal, note, repeat, row

KINDS = ("lstm", "gru", "sequential", "reversed", "parallel")


class Case(NamedTuple):
    """Sizes and number type of a training pass; "tf32" is float32 whose products may be rounded."""

    type: str
    T: int
    B: int
    H: int


MAIN = [Case("bfloat16", 512, 64, 512), Case("float32", 512, 64, 512), Case("bfloat16", 512, 64, 1024)]
MORE = [Case("bfloat16", 128, 64, 512), MAIN[0], Case("tf32", 512, 64, 512), Case("float16", 512, 64, 512)]
MORE += [
    case
    for of_type, sizes in itertools.product(
        ("bfloat16", "float32", "tf32", "float16"),
        ((512, 64, 1024), (512, 8, 512), (512, 256, 512), (128, 64, 512)),
    )
    if (case := Case(of_type, *sizes)) not in (*MAIN, *MORE)
]
EAGER_STEPS = 128  # more are not timed of eager torch, where a step is a dozen launches


def training(cases: Sequence[Case] = MAIN, graphs: bool = False) -> int:
    """Forward and backward of every kind, input products included, against cuDNN; what decides most comes first.

    `ratio`: how many times as long cuDNN takes. `path`: that of each scan, forward / backward. `of the GEMM rate`: the
    operations of all products by the time, over the rate of a square product measured here.
    """
    import torch

    loaded = library()
    rate_of = lru_cache(square_rate)
    for case, kind in itertools.product(cases, KINDS):
        of_type, T, B, H = case
        what = f"{kind}, {of_type}, T={T}, B={B}, H={H}"
        if not begins(what):
            continue
        dtype = torch.float32 if of_type == "tf32" else getattr(torch, of_type)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = of_type == "tf32"
        parts = pieces(kind, H, dtype)
        x = normal(T, B, H, dtype=dtype).requires_grad_()
        path = paths(parts, x, loaded)
        ways = {"cuDNN": both_ways(run_cudnn, parts, x), "melodia": both_ways(run_scans, parts, x, "native")}
        if graphs and T <= EAGER_STEPS:
            ways["eager"] = both_ways(run_scans, parts, x, "reference")
        contestants: dict[str, Callable[[], object]] = dict(ways)
        contestants |= {
            "cuDNN, forward": partial(run_cudnn, parts, x),
            "melodia, forward": partial(run_scans, parts, x, "native"),
        }
        if graphs:
            contestants |= captured(**ways)
        took = medians(contestants, 5, what)
        ours, theirs = took.get("melodia"), took.get("cuDNN")
        work = 3 * 2 * T * B * {"lstm": 4, "gru": 3}.get(kind, 7) * H * 2 * H
        row(
            kind=kind,
            type=of_type,
            T=T,
            B=B,
            H=H,
            path=path,
            ratio=theirs / ours if ours and theirs else None,
            **{
                "of the GEMM rate": work / (ours / 1000) / rate_of(dtype, of_type == "tf32") if ours else None
            },
            **{f"{n} (ms)": t for n, t in took.items()},
        )
    return 0


def more_training() -> int:
    """The other types and sizes, with CUDA graphs, and with eager steps of torch where T is short."""
    return training(MORE, graphs=True)


def pieces(kind: str, H: int, dtype: Any) -> list[Any]:
    """The torch modules of a kind of one layer each, from the input upwards; the halves of a pair in a tuple."""
    from torch import nn

    lstm, gru = (module(H, H).to(gpu_tools.DEVICE, dtype) for module in (nn.LSTM, nn.GRU))
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


def both_ways(run: Callable[..., Any], parts: list[Any], x: Any, *more: Any) -> Callable[[], None]:
    """A run and its gradients."""
    return lambda: run(parts, x, *more).float().sum().backward()


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


def square_rate(dtype: Any, tf32: bool, size: int = 8192) -> float:
    """Floating-point operations per second of a large square product; tf32 is as torch has it now."""
    import torch

    a, b = (normal(size, size, dtype=dtype) for _ in range(2))
    what = f"product of {size}, {str(dtype)[6:]}{', tf32' if tf32 else ''}"
    rate = 2 * size**3 / (medians({what: lambda: torch.mm(a, b)})[what] / 1000)
    note(f"{what}: {rate / 1e12:.4g} TFLOP/s")
    return rate


SIDES = ("position", "bars_left", "lookback1", "lookback2", "density")  # of the model that comes with melodia


def learner_of(folder: Path, kind: str, H: int, T: int, B: int, precision: str, recompute: bool) -> Any:
    """A learner of melodia's own training, with random tokens in place of a corpus.

    Half the side inputs are "not given", as in training: one row of a table is read at very many places.
    """
    import numpy as np
    import torch

    from melodia.corpus.shards import Corpus, ShardWriter
    from melodia.model import Model, ModelConfig
    from melodia.side_inputs import default_specs
    from melodia.tokenizer import Tokenizer
    from melodia.training.config import TrainingConfig
    from melodia.training.distributed import World
    from melodia.training.learner import Learner
    from melodia.training.streams import Batch

    vocabulary = Tokenizer().vocabulary
    numbers = np.random.default_rng(0)
    special = (vocabulary.pad, vocabulary.bos, vocabulary.eos)
    plain = np.setdiff1d(np.arange(vocabulary.size), special)
    with ShardWriter(folder, vocabulary) as writer:
        writer.add("train", numbers.choice(plain, 8))
    specs = default_specs(vocabulary, SIDES)
    heard = numbers.choice(plain, (B, T + 1))
    side = np.stack([numbers.integers(0, spec.size, (B, T)) for spec in specs], -1)
    batch = Batch(
        tokens=np.ascontiguousarray(heard[:, :-1]),
        targets=np.ascontiguousarray(heard[:, 1:]),
        side=np.where(numbers.random(side.shape) < 0.5, 0, side),
        lengths=np.full(B, T, np.int64),
        starts=np.zeros(B, np.bool_),
        scored=B * T,
        notes=B * T // 4,
    )

    class Always:
        def next(self) -> Batch:
            return batch

    model = Model(ModelConfig(kind, vocabulary.size, H, side_inputs=specs))
    config = TrainingConfig(
        iterations=1,
        batch_size=B,
        window=T,
        precision=precision,
        recompute=recompute,
        device=gpu_tools.DEVICE,
    )
    learner = Learner(Corpus.open(folder), model, config, World(device=torch.device(gpu_tools.DEVICE)))
    learner.stream = Always()  # type: ignore[assignment]
    return learner


STEPS = (  # kind, precision, whether gates are made again; the first is profiled
    ("parallel", "bf16", False),
    ("parallel", "fp32", False),
    ("sequential", "bf16", False),
    ("lstm", "bf16", False),
    ("parallel", "bf16", True),
)
AT_ONCE = 4  # iterations that are timed together, as the host runs ahead of the device


def training_step(T: int = 512, B: int = 64, H: int = 512) -> int:
    """Whole iterations of `melodia.training`: batch to the device, forward, backward, clip, AdamW, average.

    The model is of the bundled one's kind, with its vocabulary and side inputs; tokens are random. `host (ms)`: until
    an iteration is launched; where that is as long as `ms`, the host is what the device waits for. Notes: where the
    device's time goes, by groups of kernels and by the most expensive ones.
    """
    import torch

    library()
    updates: dict[str, Callable[[], object]] = {}
    for kind, precision, recompute in STEPS:
        what = f"{kind}, {precision}{', gates made again' if recompute else ''}"
        if not begins(what):
            continue
        with tempfile.TemporaryDirectory() as folder:
            learner = learner_of(Path(folder), kind, H, T, B, precision, recompute)
        update = partial(learner.update, [], lambda _: 1e-4)
        updates[what] = update
        took = medians({what: partial(repeat, update, AT_ONCE)}, 5, what).get(what)
        torch.cuda.synchronize()
        began = time.perf_counter()
        update()
        host = time.perf_counter() - began
        ms = took and took / AT_ONCE
        row(
            kind=kind,
            precision=precision,
            **{"gates made again": recompute},
            T=T,
            B=B,
            H=H,
            ms=ms,
            **{"tokens/s": ms and 1000 * T * B / ms, "host (ms)": 1000 * host},
        )
    first = updates.get(", ".join(STEPS[0][:2]))
    if first and begins("profile"):  # last, since a profiler may leave something behind
        note_profile(profiled(first))
    return 0


GROUPS = {  # of kernels, and of operators where there is no GPU; the first that fits
    "scans": r"scan_(for|back)ward|_scan\b|gates_kernel",
    "lookups": r"lookup|embedding",
    "products": r"gemm|gemv|nvjet|cutlass|xmma|splitk|aten::(mm|addmm|bmm|matmul)\b",
    "loss": r"softmax|nll|cross_entropy",
    "optimiser": r"adam|multi_tensor|foreach|lerp|norm",
    "copies": r"memcpy|memset|copy",
}


class Cost(NamedTuple):
    """What a kernel took in all its launches."""

    name: str
    us: float
    launches: int


def profiled(run: Callable[[], object]) -> list[Cost]:
    """The kernels of a run, most expensive first; without a GPU, operators by their own time."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = gpu_tools.DEVICE == "cuda"
    run()
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as found:  # without, torch 2.11 warns
        run()
        torch.cuda.synchronize()
    device = DeviceType.CUDA if on_gpu else DeviceType.CPU
    costs = [
        Cost(
            event.key,
            float(event.self_device_time_total if on_gpu else event.self_cpu_time_total),
            event.count,
        )
        for event in found.key_averages()
        if event.device_type == device and not event.is_user_annotation
    ]
    return sorted(costs, key=lambda cost: -cost.us)


def note_profile(costs: Iterable[Cost], most: int = 15) -> None:
    """Notes of the shares of groups, and of the most expensive kernels."""
    costs = list(costs)
    whole = sum(cost.us for cost in costs) or 1.0
    shares = dict.fromkeys([*GROUPS, "rest"], 0.0)
    for cost in costs:
        group = next((name for name, form in GROUPS.items() if re.search(form, cost.name, re.I)), "rest")
        shares[group] += cost.us / whole
    launches = sum(cost.launches for cost in costs)
    told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    note(f"an iteration on the device: {whole / 1000:.4g} ms in {launches} launches: {told}")
    for place, cost in enumerate(costs[:most], 1):
        note(f"{place}. {cost.us / whole:.1%}, {cost.us:.4g} us in {cost.launches}: {cost.name[:150]}")


def lookups(
    T: int = 512, B: int = 64, H: int = 512, rows: Sequence[int] = (701, 144, 33, 702, 702, 9)
) -> int:
    """Sums of a token's row and five side inputs' rows, and the table's gradient, against torch.

    `one row`: two side inputs are "not given" everywhere, so that a row of the table is hit by all places. `ratio`: how
    many times as long torch's faster way takes. `GB/s`: what has to be read and written once, by the time.
    """
    import torch
    from torch.nn import functional as F

    from melodia import kernels

    library()
    starts = torch.tensor([0, *itertools.accumulate(rows)][:-1], device=gpu_tools.DEVICE)
    K, N = len(rows), T * B
    for dtype, G, hit in itertools.product(
        (torch.bfloat16, torch.float32), (4 * H, 3 * H), ("one row", "uniform")
    ):
        if not begins(f"{dtype}, G={G}, {hit}"):
            continue
        places = [torch.randint(0, size, (T, B)).to(gpu_tools.DEVICE) for size in rows]
        if hit == "one row":
            places[2].zero_()
            places[-1].zero_()
        index = torch.stack(places, -1) + starts
        flat = index.flatten(0, 1)
        table = normal(sum(rows), G, dtype=dtype).requires_grad_()
        grad = normal(T, B, G, dtype=dtype)
        with kernels.use_backend("native"):
            ours = kernels.lookup(index, table)
        theirs = F.embedding_bag(flat, table, mode="sum")

        def forward(index: Any = index, table: Any = table) -> None:
            with kernels.use_backend("native"), torch.no_grad():
                kernels.lookup(index, table)

        def gradient(out: Any, table: Any = table, grad: Any = grad) -> None:
            torch.autograd.grad(out, table, grad.view_as(out), retain_graph=True)

        def added(flat: Any = flat, table: Any = table, grad: Any = grad) -> None:
            total, rows_of_grad = torch.zeros_like(table), grad.flatten(0, 1)
            for k in range(K):
                total.index_add_(0, flat[:, k], rows_of_grad)

        passes: dict[str, dict[str, Callable[[], object]]] = {
            "backward": {
                "melodia": partial(gradient, ours),
                "embedding_bag": partial(gradient, theirs),
                "index_add": added,
            },
            "forward": {
                "melodia": forward,
                "embedding_bag": partial(F.embedding_bag, flat, table.detach(), mode="sum"),
            },
        }
        size = dtype.itemsize
        moved = 8 * N * K + N * G * size + sum(rows) * G * size
        for name, ways in passes.items():
            of_type = str(dtype)[6:]
            took = medians(ways, what=f"{name}, {of_type}, G={G}, {hit}")
            mine, rivals = took.get("melodia"), [took[way] for way in took if way != "melodia"]
            row(
                **{"pass": name},
                type=of_type,
                G=G,
                hit=hit,
                ratio=min(rivals) / mine if mine and rivals else None,
                **{f"{way} (us)": 1000 * ms for way, ms in took.items()},
                **{"GB/s": moved / mine / 1e6 if mine else None},
            )
    return 0
