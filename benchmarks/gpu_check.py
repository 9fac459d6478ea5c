"""Everything that the CUDA kernels need a GPU for: build, parity, measurements, sanitizers.

    python benchmarks/gpu_check.py [--out DIR] [--only PART ...] [--rest] [--minutes M] [--no-build] [--dry-run]

It needs torch with CUDA, nvcc, ninja, pybind11, setuptools, Python's headers and safetensors, and pytest for parity; no
MIDI library. Every part is a process of its own with a time limit, and what it started ends with it, so that one that
hangs or crashes does not take the others with it. DIR (out/gpu_check) gets two files, which are up to date at every
moment: gpu_check.log, what each part printed, and gpu_check.md, verdicts, the numbers to reach, and figures as tables,
those of parts that ran out of time too. Parts that are run again replace what both say of them; the rest stays. The
exit status is 0 if every part that ran succeeded. Without a build nothing else is started. --minutes ends the run: no
part gets more than what is left. --rest runs what the log in DIR does not know yet, and what was not done in time.
--no-build uses the library that is there: it must be of these sources, and the engine of this Python. --dry-run prints
every part's command, limit and what is missing for it here, and runs none; it needs no GPU.

Where a GPU is there for a quarter of an hour, and is taken back soon after a command has ended, two commands do, the
second right behind the first without a look at its page. They leave time to start the machine and to fetch DIR:

    python benchmarks/gpu_check.py --minutes 7
    python benchmarks/gpu_check.py --minutes 4 --rest

Everything down to `generation` belongs into the first, and has limits so that it fits even where some of it hangs, if
there are processors for the build: for one architecture it takes four minutes of one, and its longest source one.
Parts, in order, what decides most first, and in each of them the rows that tell most:
    build        setup.py with MELODIA_NATIVE=1 MELODIA_CUDA=1 for this GPU's architecture
    parity-operators, parity-stacks, parity-engine
                 scans and steps, stacks, and the decode engine against the reference
    primitives   an exchange by grid.sync, counter, words, and in clusters; reading from shared memory, L2 and memory
    training     every kind forward and backward against cuDNN, bf16 and fp32
    generation   tokens per second of the decode engine against eager torch, CUDA graphs of it and the reading floor
    training-step    whole iterations of melodia's own training, and where their time goes
    lookup       sums of a table's rows and the table's gradient against torch
    exchange     microseconds per step of scans forward and backward: counter against words, by H and B
    decoding     microseconds per token of the decode engine by filter, exchange and number of blocks
    more-generation  the other models and batches, streamed weights and clusters
    stepping     single steps and stacks by one token against torch's cells, eager and in a CUDA graph
    wavefront    stacks of two levels, level after level and as a wavefront, by the steps of its parts
    memcheck     compute-sanitizer over small calls on every path, where it is installed
    more-training    the other number types and sizes, in CUDA graphs, and eager torch
    racecheck, synccheck    the other tools of compute-sanitizer
    parity-build     with --only: tests of what the build made, which need no GPU

Ratios above 1 mean that melodia is faster.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks import gpu_measure, gpu_page, gpu_process, gpu_pytest, gpu_tools  # noqa: E402
from build_support.toolchain import Nvcc, find_headers, find_nvcc  # noqa: E402

MINUTES = {
    "build": 3.0,
    "parity-operators": 1.25,
    "parity-stacks": 0.5,
    "parity-engine": 1.25,
    "primitives": 0.75,
    "training": 1.0,
    "generation": 1.0,
    "training-step": 0.75,
    "lookup": 0.5,
    "exchange": 0.75,
    "decoding": 0.75,
    "more-generation": 1.0,
    "stepping": 0.5,
    "wavefront": 0.5,
    "memcheck": 0.75,
    "more-training": 1.25,
    "racecheck": 0.75,
    "synccheck": 0.75,
    "parity-build": 2.0,
}
ON_DEMAND = ("parity-build",)  # what --only has to name
PARITY = {
    "parity-operators": ["tests/test_cuda_parity.py", "tests/test_gpu_rescues.py"],
    "parity-stacks": [
        "tests/test_cuda_engine_parity.py",
        "-k",
        "stacks or rescues",
        "tests/test_gpu_rescues.py",
    ],
    "parity-engine": ["tests/test_cuda_engine_parity.py", "-k", "not stacks"],
    "parity-build": ["tests/test_cuda_build.py"],
}
RESTARTS = 4  # of tests that break the GPU's context or their process
NOTHING_LEFT = 5  # pytest's status where all tests have begun
SANITIZERS = ("memcheck", "racecheck", "synccheck")
LEAST_SECONDS = 10.0  # less is not worth a start
OPEN = (
    "not started",
    "failed: not done",
    gpu_process.UNFINISHED,
)  # how verdicts begin of what is to be run yet


def main() -> int:
    """Run the parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "out" / "gpu_check")
    parser.add_argument("--only", nargs="+", choices=MINUTES, help="these parts only")
    parser.add_argument(
        "--rest", action="store_true", help="what the log does not know, or was not done in time"
    )
    parser.add_argument("--minutes", type=float, help="for all parts together")
    parser.add_argument("--no-build", action="store_true", help="use the library that is there")
    parser.add_argument("--dry-run", action="store_true", help="say what would run; needs no GPU")
    parser.add_argument("--part", choices=gpu_measure.PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return measure(options.part)
    log = options.out / "gpu_check.log"
    parts = [part for part in MINUTES if part in (options.only or set(MINUTES) - set(ON_DEMAND))]
    if options.no_build:
        parts = [part for part in parts if part != "build"]
    if options.rest:
        parts = rest(log, parts)
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
    print("\n".join(gpu_page.table(gpu_page.reached(gpu_page.rows_of(gpu_process.sections(log))))))
    print(f"written: {options.out / 'gpu_check.md'}")
    return 0 if all(verdict.startswith(("passed", "skipped")) for verdict in verdicts) else 1


def measure(part: str) -> int:
    """Run a part in this process, with notes of the clocks before and behind it."""
    gpu_tools.note_clocks("before")
    status = gpu_measure.PARTS[part]()
    gpu_tools.note_clocks("behind")
    gpu_tools.note_rescues()
    return status


def rest(log: Path, parts: list[str]) -> list[str]:
    """The parts that the log does not know, or that were not done in time; and the build until there is one."""
    ended = {
        name
        for name, section in gpu_process.sections(log).items()
        if not section.verdict.startswith(("failed", *OPEN) if name == "build" else OPEN)
    }
    return [part for part in parts if part not in ended]


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
        lines.append(f"{part} (at most {MINUTES[part]:g} min): {what}")
    return lines


def command_of(part: str) -> list[str] | str:
    """What a part runs, or why it cannot."""
    me = [sys.executable, str(Path(__file__).resolve())]
    if part == "build":
        return [sys.executable, "setup.py", "build_ext", "--inplace"]
    if part in PARITY:
        found = subprocess.run([sys.executable, "-c", "import pytest"], capture_output=True).returncode == 0
        # The repository's own options name plug-ins and paths that this machine may not have.
        bare = ["-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-p", gpu_pytest.__name__]
        shown = ["-v", "-ra", "--tb=short", "-o", "faulthandler_timeout=60"]
        tests = [*bare, *shown, *PARITY[part]]
        return [sys.executable, "-m", "pytest", *tests] if found else "pytest is not installed"
    if part in SANITIZERS:
        nvcc = find_nvcc()
        beside = Path(nvcc.path).resolve().with_name("compute-sanitizer") if isinstance(nvcc, Nvcc) else None
        tool = shutil.which("compute-sanitizer") or (beside and shutil.which(beside))
        if tool is None:
            return "compute-sanitizer is not installed"
        # Calls that torch tries and may fail are not the kernels' errors; those of a launch become exceptions.
        options = ["--tool", part, "--error-exitcode", "9", "--report-api-errors", "no"]
        options += ["--print-limit", "40"]
        return [str(tool), *options, *me, "--part", "small"]
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
        found |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}  # reasons stand behind the names
        found.setdefault("OMP_NUM_THREADS", "4")  # the reference's products are small
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
        (out / "gpu_check.md").write_text(gpu_page.page(log, where))
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
        (out / "gpu_check.md").write_text(gpu_page.page(log, where))
        print(f"{part}: {verdict}", flush=True)
    return verdicts


def run_part(part: str, log: Path, seconds: float) -> str:
    """Run a part for so long at most; what became of it. Tests that break their process are left behind by the next."""
    command = command_of(part)
    if isinstance(command, str):
        return f"skipped: {command}"
    started = time.monotonic()
    statuses: list[int | None] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = environment_of(part) | {gpu_pytest.BEGUN: str(Path(folder) / "begun")}
        while len(statuses) <= RESTARTS:
            left = seconds - (time.monotonic() - started)
            statuses.append(gpu_process.bounded(command, left, log, cwd=REPOSITORY, env=environment))
            status = statuses[-1]
            if part not in PARITY or status is None or not gpu_pytest.lost(status):
                break
    if statuses[-1] is None:
        return f"failed: not done after {seconds:.0f} s"
    if len(statuses) > 1 and statuses[-1] == NOTHING_LEFT:
        statuses.pop()
    took = f"({time.monotonic() - started:.0f} s)"
    if not any(statuses):
        return f"passed {took}"
    return f"failed: status {', then '.join(map(str, statuses))} {took}"


def machine() -> str:
    """The GPU and the versions, in a line."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.multi_processor_count} processors; torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}; Python {platform.python_version()}."
    )


if __name__ == "__main__":
    raise SystemExit(main())
