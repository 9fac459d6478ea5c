"""Everything that the CUDA kernels need a GPU for, in one go: build, parity, sanitizers, measurements.

    python benchmarks/gpu_check.py [--out DIR] [--only PART ...] [--minutes M] [--no-build] [--dry-run]

It needs torch with CUDA, nvcc, ninja, setuptools and safetensors, and pytest for the parity suite; no MIDI library.
Every part is a process of its own with a time limit, so that one that hangs or crashes does not take the others with
it. What each part printed goes to DIR/<part>.log, and the figures as a table to DIR/gpu_check.md. The exit status is 0
if every part that ran succeeded. --dry-run prints every part's command, limit and what is missing for it here, and runs
none; it needs no GPU.

Parts, in order:
    build        setup.py with MELODIA_NATIVE=1 MELODIA_CUDA=1 for this GPU's architecture
    parity       scans, steps, stacks and the decode engine against the reference, and what the build made
    memcheck, racecheck, synccheck    compute-sanitizer over small calls on every path, where it is installed
    primitives   an exchange by grid.sync, counter, words, and in clusters; reading from L2 and from shared memory
    memory       how fast torch reads what fits into L2 and what does not: the floor of generation
    exchange     microseconds per step of a scan whose product is small: counter against words, by number of blocks
    stepping     single steps and stacks by one token against torch's cells, eager and in a CUDA graph
    training     every kind forward and backward against cuDNN, eager torch and CUDA graphs, by number type
    wavefront    stacks of two levels, level after level and as a wavefront, by the steps of its parts
    generation   tokens per second of the decode engine against eager torch, CUDA graphs of it and the reading floor
    decoding     microseconds per token of the decode engine by filter, exchange and number of blocks

Ratios above 1 mean that melodia is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks import gpu_measure, gpu_tools  # noqa: E402

MINUTES = {
    "build": 10.0,
    "parity": 8.0,
    "memcheck": 3.0,
    "racecheck": 3.0,
    "synccheck": 3.0,
    "primitives": 2.0,
    "memory": 1.0,
    "exchange": 2.0,
    "stepping": 3.0,
    "training": 8.0,
    "wavefront": 2.0,
    "generation": 8.0,
    "decoding": 3.0,
}
SANITIZERS = ("memcheck", "racecheck", "synccheck")


def main() -> int:
    """Run the parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "out" / "gpu_check")
    parser.add_argument("--only", nargs="+", choices=MINUTES, help="these parts only")
    parser.add_argument("--minutes", type=float, help="stop starting parts after so many")
    parser.add_argument("--no-build", action="store_true", help="use the library that is there")
    parser.add_argument("--dry-run", action="store_true", help="say what would run; needs no GPU")
    parser.add_argument("--part", choices=gpu_measure.PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return gpu_measure.PARTS[options.part]()
    parts = [part for part in MINUTES if part in (options.only or MINUTES)]
    if options.no_build:
        parts = [part for part in parts if part != "build"]
    if options.dry_run:
        print("\n".join(plan(parts)))
        return 0
    missing = no_gpu()
    if missing:
        print(f"no GPU: {missing}")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    started, verdicts = time.monotonic(), {}
    for part in parts:
        if options.minutes and time.monotonic() - started > 60 * options.minutes:
            verdicts[part] = "not started: out of time"
        else:
            verdicts[part] = run_part(part, options.out)
        print(f"{part}: {verdicts[part]}", flush=True)
        (options.out / "gpu_check.md").write_text(page(options.out, verdicts, machine()))
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


def plan(parts: list[str]) -> list[str]:
    """What a run would do, a line for each part."""
    missing = no_gpu()
    lines = [f"GPU: {missing or 'there'}"]
    for part in parts:
        command = command_of(part)
        what = f"skipped: {command}" if isinstance(command, str) else shlex.join(command)
        lines.append(f"{part} (at most {MINUTES[part]:.0f} min): {what}")
    return lines


def command_of(part: str) -> list[str] | str:
    """What a part runs, or why it cannot."""
    me = [sys.executable, str(Path(__file__).resolve())]
    if part == "build":
        return [sys.executable, "setup.py", "build_ext", "--inplace"]
    if part == "parity":
        names = ("parity", "engine_parity", "build")
        tests = [f"tests/test_cuda_{name}.py" for name in names]
        found = subprocess.run([sys.executable, "-c", "import pytest"], capture_output=True).returncode == 0
        # The repository's own options name plug-ins and paths that this machine may not have.
        bare = ["-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider"]
        return [sys.executable, "-m", "pytest", "-q", *bare, *tests] if found else "pytest is not installed"
    if part in SANITIZERS:
        home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        tool = shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")
        if tool is None:
            return "compute-sanitizer is not installed"
        # Calls that torch tries and may fail are not the kernels' errors; those of a launch become exceptions.
        options = ["--tool", part, "--error-exitcode", "9", "--report-api-errors", "no"]
        return [tool, *options, *me, "--part", "small"]
    return [*me, "--part", part]


def run_part(part: str, out: Path) -> str:
    """Run a part with its time limit; what became of it."""
    command = command_of(part)
    if isinstance(command, str):
        return f"skipped: {command}"
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if part in SANITIZERS:  # tensors that torch cuts from one piece of memory have no ends of their own
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
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


def machine() -> str:
    """The GPU and the versions, in a line."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.multi_processor_count} processors; torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}; Python {platform.python_version()}."
    )


def page(out: Path, verdicts: dict[str, str], where: str) -> str:
    """The table of all figures so far."""
    lines = [
        "# CUDA kernels on a GPU",
        "",
        f"{where} Medians of interleaved turns.",
        "",
        "| part | verdict |",
        "|---|---|",
        *(f"| {part} | {verdict} |" for part, verdict in verdicts.items()),
    ]
    for part in verdicts:
        log = out / f"{part}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        rows = [
            json.loads(line[len(gpu_tools.MARK) :])
            for line in text.splitlines()
            if line.startswith(gpu_tools.MARK)
        ]
        if rows:
            names = list(dict.fromkeys(name for values in rows for name in values))
            lines += ["", f"## {part}", "", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
            lines += [f"| {' | '.join(str(row.get(name, '')) for name in names)} |" for row in rows]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
