"""Everything that the CUDA kernels need a GPU for, in one go: build, parity, sanitizers, measurements.

    python benchmarks/gpu_check.py [--out DIR] [--only PART ...] [--minutes M] [--no-build]

It needs torch with CUDA, nvcc, ninja and setuptools, and pytest for the parity suite; no MIDI library. Every part is a
process of its own with a time limit, so that one that hangs or crashes does not take the others with it. What each
part printed goes to DIR/<part>.log, and the figures as a table to DIR/gpu_check.md. The exit status is 0 if every part
that ran succeeded.

Parts, in order:
    build        setup.py with MELODIA_NATIVE=1 MELODIA_CUDA=1 for this GPU's architecture
    parity       tests/test_cuda_parity.py and tests/test_cuda_build.py, slow ones too
    memcheck, racecheck, synccheck    compute-sanitizer over small scans on every path, where it is installed
    exchange     microseconds per step of a scan whose product is small: counter against words, by number of blocks
    training     scans forward and backward against cuDNN's nn.LSTM and nn.GRU: float32, float16, bfloat16
    stepping     single steps against nn.LSTMCell and nn.GRUCell, eager and in a CUDA graph

Ratios above 1 mean that melodia is faster. `floor` is a prediction (csrc/cuda/NOTES.md), never a measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
MINUTES = {
    "build": 10.0,
    "parity": 8.0,
    "memcheck": 3.0,
    "racecheck": 3.0,
    "synccheck": 3.0,
    "exchange": 2.0,
    "training": 6.0,
    "stepping": 2.0,
}
SANITIZERS = ("memcheck", "racecheck", "synccheck")
MARK = "RESULT "  # a line of a part's output that holds a row of its table, as JSON
PATHS = {"automatic": 0, "resident": 1, "steps": 2, "rows": 3}
EXCHANGES = {"automatic": 0, "counter": 1, "in_band": 2}


def main() -> int:
    """Run the parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "out" / "gpu_check")
    parser.add_argument("--only", nargs="+", choices=MINUTES, help="these parts only")
    parser.add_argument("--minutes", type=float, help="stop starting parts after so many")
    parser.add_argument("--no-build", action="store_true", help="use the library that is there")
    parser.add_argument("--part", choices=[*MINUTES, "small"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return {"exchange": exchange, "training": training, "stepping": stepping, "small": small}[
            options.part
        ]()
    missing = no_gpu()
    if missing:
        print(f"no GPU: {missing}")
        return 1
    parts = [part for part in MINUTES if part in (options.only or MINUTES)]
    if options.no_build:
        parts = [part for part in parts if part != "build"]
    options.out.mkdir(parents=True, exist_ok=True)
    started, verdicts = time.monotonic(), {}
    for part in parts:
        if options.minutes and time.monotonic() - started > 60 * options.minutes:
            verdicts[part] = "not started: out of time"
        else:
            verdicts[part] = run_part(part, options.out)
        print(f"{part}: {verdicts[part]}", flush=True)
        (options.out / "gpu_check.md").write_text(page(options.out, verdicts))
    print(f"written: {options.out / 'gpu_check.md'}")
    return 0 if all(verdict.startswith(("passed", "skipped")) for verdict in verdicts.values()) else 1


def no_gpu() -> str | None:
    """Why nothing can be measured here; None if it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"the kernels need compute capability 8.0 (received {torch.cuda.get_device_capability()})"
    return None


def command_of(part: str) -> list[str] | str:
    """What a part runs, or why it cannot."""
    me = [sys.executable, str(Path(__file__).resolve())]
    if part == "build":
        return [sys.executable, "setup.py", "build_ext", "--inplace"]
    if part == "parity":
        tests = ["tests/test_cuda_parity.py", "tests/test_cuda_build.py"]
        found = subprocess.run([sys.executable, "-c", "import pytest"], capture_output=True).returncode == 0
        # The repository's own options name plug-ins and paths that this machine may not have.
        bare = ["-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider"]
        return [sys.executable, "-m", "pytest", "-q", *bare, *tests] if found else "pytest is not installed"
    if part in SANITIZERS:
        home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        tool = shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")
        if tool is None:
            return "compute-sanitizer is not installed"
        return [tool, "--tool", part, "--error-exitcode", "9", *me, "--part", "small"]
    return [*me, "--part", part]


def run_part(part: str, out: Path) -> str:
    """Run a part with its time limit; what became of it."""
    command = command_of(part)
    if isinstance(command, str):
        return f"skipped: {command}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    if part == "build":
        import torch

        architecture = "".join(map(str, torch.cuda.get_device_capability()))
        environment |= {"MELODIA_NATIVE": "1", "MELODIA_CUDA": "1"}
        environment.setdefault("MELODIA_CUDA_ARCHITECTURES", architecture)
    started = time.monotonic()
    with (out / f"{part}.log").open("w") as log:
        try:
            done = subprocess.run(
                command,
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=60 * MINUTES[part],
            )
        except subprocess.TimeoutExpired:
            return f"failed: not done after {MINUTES[part]:.0f} minutes; see {part}.log"
    seconds = time.monotonic() - started
    return (
        f"passed ({seconds:.0f} s)"
        if done.returncode == 0
        else f"failed: status {done.returncode}; see {part}.log"
    )


def page(out: Path, verdicts: dict[str, str]) -> str:
    """The table of all figures so far."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    lines = [
        "# CUDA kernels on a GPU",
        "",
        f"{properties.name}, {properties.multi_processor_count} processors; torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}; Python {platform.python_version()}. Medians of interleaved turns.",
        "",
        "| part | verdict |",
        "|---|---|",
        *(f"| {part} | {verdict} |" for part, verdict in verdicts.items()),
    ]
    for part in verdicts:
        log = out / f"{part}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        rows = [json.loads(line[len(MARK) :]) for line in text.splitlines() if line.startswith(MARK)]
        if rows:
            names = list(rows[0])
            lines += ["", f"## {part}", "", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
            lines += [f"| {' | '.join(str(row.get(name, '')) for name in names)} |" for row in rows]
    return "\n".join([*lines, ""])


# ---- Parts -----------------------------------------------------------------------------------------------------------


def library() -> Any:
    """The CUDA library, which has to be usable."""
    from melodia.kernels import cuda

    if cuda.reason() is not None:
        raise SystemExit(cuda.reason())
    loaded = cuda._load()[0]
    assert loaded is not None
    return loaded


def arguments(kind: str, T: int, B: int, H: int, dtype: Any) -> list[Any]:
    """gates_x, states, weight_hh, bias_hh of an "lstm" or "gru" scan on the GPU."""
    import torch

    G = {"lstm": 4, "gru": 3}[kind]
    states = [torch.randn(B, H, device="cuda", dtype=dtype) for _ in range(2 if kind == "lstm" else 1)]
    weight = torch.randn(G * H, H, device="cuda", dtype=dtype) / H**0.5
    return [
        torch.randn(T, B, G * H, device="cuda", dtype=dtype),
        *states,
        weight,
        torch.zeros(G * H, device="cuda", dtype=dtype),
    ]


def medians(contestants: dict[str, Callable[[], object]], turns: int = 7) -> dict[str, float]:
    """Median milliseconds of each, all taking turns; a contestant that fails is left out and its error printed."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 2):
        for name, run in contestants.items():
            if turn and not times[name] and turn > 2:
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            try:
                begin.record()
                run()
                end.record()
                end.synchronize()
            except RuntimeError as error:
                print(f"{name}: {error}".splitlines()[0])
                continue
            if turn >= 2:  # the first two warm up
                times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items() if values}


def row(**values: object) -> None:
    """A row of the part's table."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
    print(MARK + json.dumps(shown), flush=True)


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
    return 0


def exchange() -> int:
    """Microseconds per step of forward scans, B = 1, by exchange; the product's share grows with H."""
    import torch

    loaded = library()
    T = 2048
    for H in (64, 128, 256, 512, 1024):
        for dtype in (torch.bfloat16, torch.float32):
            inputs = arguments("lstm", T, 1, H, dtype)
            found = {}
            for name in ("counter", "in_band"):

                def scan(name: str = name, inputs: list[Any] = inputs) -> None:
                    loaded.melodia_cuda_configure(PATHS["resident"], EXCHANGES[name], 2_000_000_000)
                    torch.ops.melodia.lstm_scan(*inputs, None, 0)

                found[name] = scan
            took = medians(found)
            row(H=H, type=str(dtype)[6:], **{f"{n} (us/step)": 1000 * t / T for n, t in took.items()})
    return 0


def training() -> int:
    """Forward and backward of one layer's scan, input product included, against cuDNN."""
    import torch
    from torch import nn

    from melodia import kernels

    library()
    for dtype, tf32 in (
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.float32, False),
        (torch.float32, True),
    ):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for kind in ("lstm", "gru"):
            for T, B, H in ((512, 64, 512), (512, 64, 1024), (512, 8, 512), (512, 256, 512)):
                module = (nn.LSTM if kind == "lstm" else nn.GRU)(H, H).cuda().to(dtype)
                x = torch.randn(T, B, H, device="cuda", dtype=dtype, requires_grad=True)
                zero = torch.zeros(B, H, device="cuda", dtype=dtype)
                weights = list(module.parameters())

                def cudnn(module: Any = module, x: Any = x) -> None:
                    module(x)[0].float().sum().backward()

                def ours(x: Any = x, w: Any = weights, kind: str = kind, zero: Any = zero) -> None:
                    gates = torch.nn.functional.linear(x, w[0], w[2])
                    states = (zero, zero) if kind == "lstm" else (zero,)
                    with kernels.use_backend("native"):
                        output = getattr(kernels, f"{kind}_scan")(gates, *states, w[1], w[3])[0]
                    output.float().sum().backward()

                took = medians({"cuDNN": cudnn, "melodia": ours}, turns=5)
                ratio = took["cuDNN"] / took["melodia"] if len(took) == 2 else None
                name = str(dtype)[6:] + (" (tf32)" if tf32 else "")
                row(
                    kind=kind,
                    type=name,
                    T=T,
                    B=B,
                    H=H,
                    ratio=ratio,
                    **{f"{n} (ms)": t for n, t in took.items()},
                )
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
    return 0


def captured(**runs: Callable[[], None]) -> dict[str, Callable[[], object]]:
    """The same in CUDA graphs; one that cannot be captured is left out and its error printed."""
    import torch

    graphs: dict[str, Callable[[], object]] = {}
    for name, run in runs.items():
        try:
            run()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            graphs[f"{name}, graph"] = graph.replay
        except RuntimeError as error:
            print(f"{name}, graph: {error}".splitlines()[0])
    return graphs


if __name__ == "__main__":
    raise SystemExit(main())
