"""Everything that the CUDA kernels need a GPU for: build, parity, measurements, sanitizers.

    python benchmarks/gpu_check.py [--out DIR] [--only PART ...] [--minutes M] [--no-build] [--dry-run]

It needs torch with CUDA, nvcc, ninja, pybind11, setuptools and safetensors, and pytest for parity; no MIDI library.
Every part is a process of its own with a time limit, and what it started ends with it, so that one that hangs or
crashes does not take the others with it. DIR gets two files, which are up to date at every moment: gpu_check.log, what
each part printed, and gpu_check.md, verdicts and figures as tables, those of parts that ran out of time too. Parts that
are run again replace what both say of them; the rest stays. The exit status is 0 if every part that ran succeeded.
Without a build nothing else is started. --minutes ends the run: no part gets more than what is left. --dry-run prints
every part's command, limit and what is missing for it here, and runs none; it needs no GPU.

Where a command may take ten minutes at most, two do. The second names what the page of the first calls not started or
not done in time, and `build` too if it comes to another machine:

    python benchmarks/gpu_check.py --minutes 9.5
    python benchmarks/gpu_check.py --minutes 9.5 --only training stepping wavefront memcheck racecheck synccheck

Parts, in order, what decides most first:
    build        setup.py with MELODIA_NATIVE=1 MELODIA_CUDA=1 for this GPU's architecture
    parity-build, parity-operators, parity-stacks, parity-engine
                 what the build made; scans and steps, stacks, and the decode engine against the reference
    primitives   an exchange by grid.sync, counter, words, and in clusters; reading from shared memory, L2 and memory
    exchange     microseconds per step of scans forward and backward: counter against words, by H and B
    generation   tokens per second of the decode engine against eager torch, CUDA graphs of it and the reading floor
    decoding     microseconds per token of the decode engine by filter, exchange and number of blocks
    training     every kind forward and backward against cuDNN, eager torch and CUDA graphs, by number type
    stepping     single steps and stacks by one token against torch's cells, eager and in a CUDA graph
    wavefront    stacks of two levels, level after level and as a wavefront, by the steps of its parts
    memcheck, racecheck, synccheck    compute-sanitizer over small calls on every path, where it is installed

Ratios above 1 mean that melodia is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks import gpu_measure, gpu_process, gpu_tools  # noqa: E402
from build_support.toolchain import find_headers  # noqa: E402

MINUTES = {
    "build": 5.0,
    "parity-build": 2.0,
    "parity-operators": 2.0,
    "parity-stacks": 1.0,
    "parity-engine": 2.0,
    "primitives": 1.0,
    "exchange": 1.0,
    "generation": 3.0,
    "decoding": 1.0,
    "training": 4.0,
    "stepping": 1.0,
    "wavefront": 1.0,
    "memcheck": 2.0,
    "racecheck": 2.0,
    "synccheck": 2.0,
}
PARITY = {
    # An access that goes astray fails everything behind it in its process.
    "parity-build": ["tests/test_cuda_build.py"],
    "parity-operators": ["tests/test_cuda_parity.py", "tests/test_gpu_rescues.py"],
    "parity-stacks": [
        "tests/test_cuda_engine_parity.py",
        "-k",
        "stacks or rescues",
        "tests/test_gpu_rescues.py",
    ],
    "parity-engine": ["tests/test_cuda_engine_parity.py", "-k", "not stacks"],
}
SANITIZERS = ("memcheck", "racecheck", "synccheck")
LEAST_SECONDS = 10.0  # less is not worth a start
TAIL = 25  # lines of a failed part that the page shows


def main() -> int:
    """Run the parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "out" / "gpu_check")
    parser.add_argument("--only", nargs="+", choices=MINUTES, help="these parts only")
    parser.add_argument("--minutes", type=float, help="for all parts together")
    parser.add_argument("--no-build", action="store_true", help="use the library that is there")
    parser.add_argument("--dry-run", action="store_true", help="say what would run; needs no GPU")
    parser.add_argument("--part", choices=gpu_measure.PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        status = gpu_measure.PARTS[options.part]()
        gpu_tools.note_rescues()
        return status
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a part ends with this process
    options.out.mkdir(parents=True, exist_ok=True)
    verdicts = run(parts, options.out, 60 * options.minutes if options.minutes else float("inf"), machine())
    print(f"written: {options.out / 'gpu_check.md'}")
    return 0 if all(verdict.startswith(("passed", "skipped")) for verdict in verdicts) else 1


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
    if part in PARITY:
        found = subprocess.run([sys.executable, "-c", "import pytest"], capture_output=True).returncode == 0
        # The repository's own options name plug-ins and paths that this machine may not have.
        bare = ["-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider"]
        shown = ["-v", "-ra", "--tb=short", "-o", "faulthandler_timeout=60"]
        tests = [*bare, *shown, *PARITY[part]]
        return [sys.executable, "-m", "pytest", *tests] if found else "pytest is not installed"
    if part in SANITIZERS:
        home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        tool = shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")
        if tool is None:
            return "compute-sanitizer is not installed"
        # Calls that torch tries and may fail are not the kernels' errors; those of a launch become exceptions.
        options = ["--tool", part, "--error-exitcode", "9", "--report-api-errors", "no"]
        return [tool, *options, *me, "--part", "small"]
    return [*me, "--part", part]


def environment_of(part: str) -> dict[str, str]:
    """The environment of a part."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    found |= {
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }  # nothing is lost with a process that is ended
    if part in PARITY:
        found["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if part in SANITIZERS:  # tensors that torch cuts from one piece of memory have no ends of their own
        found["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    if part == "build":
        import torch

        # Without Python's headers there is no decode engine, but there are the operators.
        found |= {"MELODIA_NATIVE": "auto" if isinstance(find_headers(), str) else "1", "MELODIA_CUDA": "1"}
        found.setdefault("MELODIA_CUDA_ARCHITECTURES", "".join(map(str, torch.cuda.get_device_capability())))
    return found


def run(parts: list[str], out: Path, seconds: float, where: str) -> list[str]:
    """Run parts, in so many seconds together; what became of each. The page is written around every one."""
    log, until, built = out / "gpu_check.log", time.monotonic() + seconds, True
    gpu_process.forget(log, parts)
    verdicts = []
    for part in parts:
        gpu_process.begin(log, part)
        (out / "gpu_check.md").write_text(page(log, where))
        left = until - time.monotonic()
        if not built:
            verdict = "not started: nothing works without the build"
        elif left < LEAST_SECONDS:
            verdict = "not started: out of time"
        else:
            verdict = run_part(part, log, min(60 * MINUTES[part], left))
        built = built and (part != "build" or verdict.startswith("passed"))
        verdicts.append(verdict)
        gpu_process.end(log, part, verdict)
        (out / "gpu_check.md").write_text(page(log, where))
        print(f"{part}: {verdict}", flush=True)
    return verdicts


def run_part(part: str, log: Path, seconds: float) -> str:
    """Run a part for so long at most; what became of it."""
    command = command_of(part)
    if isinstance(command, str):
        return f"skipped: {command}"
    started = time.monotonic()
    status = gpu_process.bounded(command, seconds, log, cwd=REPOSITORY, env=environment_of(part))
    if status is None:
        return f"failed: not done after {seconds:.0f} s"
    took = f"({time.monotonic() - started:.0f} s)"
    return f"passed {took}" if status == 0 else f"failed: status {status} {took}"


def machine() -> str:
    """The GPU and the versions, in a line."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.multi_processor_count} processors; torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}; Python {platform.python_version()}."
    )


def page(log: Path, where: str) -> str:
    """Everything so far: verdicts, notes, figures, what pytest skipped, and how parts that failed ended."""
    found = gpu_process.sections(log)
    lines = ["# CUDA kernels on a GPU", "", f"{where} Medians of interleaved turns.", ""]
    lines += ["| part | verdict |", "|---|---|"]
    lines += [f"| {part} | {section.verdict} |" for part, section in found.items()]
    for part, (verdict, printed) in found.items():
        marks = (gpu_tools.NOTE, gpu_tools.MARK)
        notes, rows = ([x[len(mark) :] for x in printed if x.startswith(mark)] for mark in marks)
        rest = [line for line in printed if line and not line.startswith(marks)]
        if part in PARITY:
            notes += [line for line in rest if line.startswith("SKIPPED ")] + rest[-1:]
        failed = verdict.startswith(("failed", gpu_process.UNFINISHED))
        if notes or rows or failed:
            lines += ["", f"## {part}", "", *(f"- {text}" for text in dict.fromkeys(notes))]
        if rows:
            lines += ["", *table([json.loads(text) for text in rows])]
        if failed:
            lines += ["", "It ended with", "", "```text", *rest[-TAIL:], "```"]
    return "\n".join([*lines, ""])


def table(rows: list[dict[str, object]]) -> list[str]:
    """Rows with all their columns, in Markdown."""
    names = list(dict.fromkeys(name for values in rows for name in values))
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return lines + [f"| {' | '.join(str(row.get(name, '')) for name in names)} |" for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())
