"""Everything that the CUDA kernels need a GPU for: build, parity, measurements, sanitizers.

    python benchmarks/gpu_check.py [--out DIR] [--only PART ...] [--rest] [--minutes M] [--no-build] [--dry-run]

It needs torch with CUDA, nvcc, ninja, pybind11, setuptools, Python's headers and safetensors, and pytest for parity; no
MIDI library. Every part is a process of its own with a time limit, and what it started ends with it, so that one that
hangs or crashes does not take the others with it. One that ends before its tests or its rows do is started again behind
what it has begun. A part whose libraries are missing is not started. The exit status is 0 if every part that ran
succeeded. --minutes ends the run: no part gets more than what is left. --no-build uses the libraries that are there:
they must be of these sources, and the engine of this Python. --dry-run prints every part's command, limit and what is
missing for it here, and runs none; it needs no GPU.

DIR (out/gpu_check) gets four files, which are written as results come: whenever this is killed, what was measured
before stands there. So DIR may be the folder that a rented machine gives back, as in --out "$OUT".
    gpu_check.log     what each part printed, line by line
    gpu_check.md      from it: verdicts, the numbers to reach, and figures as tables; new around every part
    gpu_check.begun   the tests and rows that have begun
    built.tar.gz      what the build made, a few megabytes

--rest runs what the log in DIR does not know yet, then what was not done in time, from where it was; and the build
where a library is missing. The rows of a part that is run again stay beside the new ones, and of numbers to reach the
better counts; of another tree's results, empty DIR. DIR may be another folder than before, if its files are copied
there first. On another machine the build is needed again, or (with the same GPU, Python and torch) what it made, in the
repository: tar -xzf DIR/built.tar.gz

A rented machine may empty the folder that it gives back before every command. So a copy of the log stays in
out/gpu_check, and where DIR has no log, --rest begins with that.

Where a GPU is there for a quarter of an hour, and is taken back soon after a command has ended, two commands do, the
second right behind the first without a look at its page. They leave time to start the machine and to fetch DIR:

    python benchmarks/gpu_check.py --minutes 7 --out "$OUT"
    python benchmarks/gpu_check.py --minutes 4 --rest --out "$OUT"

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
import tarfile
import time
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks import gpu_begun, gpu_measure, gpu_page, gpu_process, gpu_pytest, gpu_tools  # noqa: E402
from build_support.sources import CUDA, CUDA_ENGINE, ENGINE, FACTS, LIBRARIES, OPERATORS  # noqa: E402
from build_support.toolchain import Nvcc, find_headers, find_nvcc  # noqa: E402

MINUTES = {
    "build": 6.0,  # where nothing hangs it takes a fifth of that
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
NEEDS = {  # what is not there needs all libraries
    **dict.fromkeys(("build", "primitives", "parity-build"), ()),
    **dict.fromkeys(("parity-engine", "generation", "more-generation", "decoding"), (ENGINE, CUDA_ENGINE)),
    **dict.fromkeys(("parity-operators", "parity-stacks", "training", "training-step"), (OPERATORS, CUDA)),
    **dict.fromkeys(("lookup", "exchange", "stepping", "wavefront", "more-training"), (OPERATORS, CUDA)),
}
RESTARTS = 4  # of parts that break the GPU's context or their process
HUNG_S = 10.0  # what began longer before the end of a part's time was not only cut off
SANITIZERS = ("memcheck", "racecheck", "synccheck")
LEAST_SECONDS = 10.0  # less is not worth a start
KEPT = REPOSITORY / "out" / "gpu_check"  # for a second run, whatever becomes of the first one's folder
LOG, BEGUN = "gpu_check.log", "gpu_check.begun"
LEAST_SETUPTOOLS = 77  # as pyproject.toml asks for
NOT_STARTED = "not started"  # how verdicts begin of what is to be run yet
NOT_DONE = ("failed: not done", gpu_process.UNFINISHED)  # and of what goes on


def main() -> int:
    """Run the parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=KEPT, help="results, as they come")
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
    log = options.out / LOG
    parts = [part for part in MINUTES if part in (options.only or set(MINUTES) - set(ON_DEMAND))]
    if options.no_build:
        parts = [part for part in parts if part != "build"]
    if options.rest:
        parts = rest(log if log.exists() else KEPT / LOG, parts)
    if options.dry_run:
        print("\n".join(plan(parts)))
        return 0
    missing = no_gpu()
    if missing:
        print(f"no GPU: {missing}")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a part ends with this process
    options.out.mkdir(parents=True, exist_ok=True)
    if options.rest and not log.exists():
        copy_state(KEPT, options.out)
    print(setuptools_there(), flush=True)
    seconds = 60 * options.minutes if options.minutes else float("inf")
    verdicts = run(parts, options.out, seconds, machine(), options.rest, KEPT)
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
    """The build until there is one, the parts that have not been started, and those that were not done in time."""
    found = gpu_process.sections(log)
    verdicts = {part: found[part].verdict if part in found else NOT_STARTED for part in parts}
    build = "build" in parts and (bool(unbuilt()) or not verdicts["build"].startswith("passed"))
    return [
        *(["build"] if build else []),
        *(part for part in parts if part != "build" and verdicts[part].startswith(NOT_STARTED)),
        *(part for part in parts if part != "build" and verdicts[part].startswith(NOT_DONE)),
    ]


def unbuilt(part: str = "", since: float = 0.0) -> list[str]:
    """The libraries that a part needs, or all, and that are not there or were made before."""
    files = [REPOSITORY / library.path for library in NEEDS.get(part, LIBRARIES)]
    return [file.name for file in files if not file.exists() or file.stat().st_mtime < since]


def setuptools_there() -> str:
    """The version of setuptools, and whether it builds melodia."""
    try:
        version = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        return f"setuptools is not installed; the build needs {LEAST_SETUPTOOLS} or newer"
    enough = int(version.partition(".")[0]) >= LEAST_SETUPTOOLS
    return f"setuptools {version}" + (
        "" if enough else f" is too old: the build needs {LEAST_SETUPTOOLS} or newer"
    )


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
        found["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] = "0"  # it would round the reference's products, too
    if part in SANITIZERS:  # tensors that torch cuts from one piece of memory have no ends of their own
        found["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    if part == "build":
        import torch

        # Without Python's headers there is no decode engine, but there are the operators.
        found |= {"MELODIA_NATIVE": "auto" if isinstance(find_headers(), str) else "1", "MELODIA_CUDA": "1"}
        found.setdefault("MELODIA_CUDA_ARCHITECTURES", "".join(map(str, torch.cuda.get_device_capability())))
    return found


def run(
    parts: list[str],
    out: Path,
    seconds: float,
    where: str,
    goes_on: bool = False,
    kept: Path | None = None,
) -> list[str]:
    """Run parts, in so many seconds together; what became of each. The page is written around every one.

    So is `kept`, a folder that will have what a run that goes on needs to know.

    Where the run goes on for another, so do parts that were not done. A part that is not started leaves what the log
    says of it.
    """
    log, until, made_since = out / LOG, time.monotonic() + seconds, 0.0
    verdicts = []

    def tell() -> None:
        gpu_begun.replace(out / "gpu_check.md", gpu_page.page(log, where))
        if kept is not None:
            copy_state(out, kept)

    for part in parts:
        known = gpu_process.sections(log).get(part)
        left = until - time.monotonic()
        missing = unbuilt(part, made_since)
        if missing or left < LEAST_SECONDS:
            verdict = f"{NOT_STARTED}: {'no ' + ', '.join(missing) if missing else 'out of time'}"
            if known is None:
                gpu_process.end(log, part, verdict)
        else:
            begun = gpu_begun.Begun(out / BEGUN, part)
            again = goes_on and known is not None and known.verdict.startswith(NOT_DONE)
            if not again:
                begun.forget()
            elif known is not None and known.verdict == gpu_process.UNFINISHED:
                begun.give_back()  # whatever ended the run is not to blame on it
            gpu_process.begin(log, part, again)
            tell()
            began = time.time()
            try:
                verdict = run_part(part, log, min(60 * MINUTES[part], left), begun)
            finally:
                tell()
            gpu_process.end(log, part, verdict)
            if part == "build":  # what is older than one that failed is of other sources
                made_since = 0.0 if verdict.startswith("passed") else began
                keep_built(out, made_since)
        verdicts.append(verdict)
        tell()
        print(f"{part}: {verdict}", flush=True)
    return verdicts


def run_part(part: str, log: Path, seconds: float, begun: gpu_begun.Begun) -> str:
    """Run a part for so long at most; what became of it. What breaks its process is left behind by the next."""
    command = command_of(part)
    if isinstance(command, str):
        return f"skipped: {command}"
    started, until = time.monotonic(), time.time() + seconds
    failed_before = begun.failed()
    environment = environment_of(part) | begun.environment()
    statuses: list[int | None] = []
    if part == "build":
        with log.open("a") as to:
            to.write(f"{gpu_tools.NOTE}{setuptools_there()}\n")
    while len(statuses) <= RESTARTS:
        count = len(begun.names())
        left = seconds - (time.monotonic() - started)
        statuses.append(gpu_process.bounded(command, left, log, cwd=REPOSITORY, env=environment))
        if len(begun.names()) == count or not ended_early(part, statuses[-1]):
            break
        begun.fail_last()
    if statuses[-1] is None:
        if begun.names() and until - begun.path.stat().st_mtime < HUNG_S:
            begun.give_back()
        else:
            begun.fail_last()
        return f"failed: not done after {seconds:.0f} s"
    took = f"({time.monotonic() - started:.0f} s)"
    if any(statuses):
        return f"failed: status {', then '.join(map(str, statuses))} {took}"
    return f"failed: before, and the rest passed {took}" if failed_before else f"passed {took}"


def ended_early(part: str, status: int | None) -> bool:
    """Whether a part ended before its tests or its rows did."""
    if part in PARITY:
        return status is not None and gpu_pytest.lost(status)
    return part in gpu_measure.PARTS and status not in (0, None)


def copy_state(out: Path, to: Path) -> None:
    """Copy what a run that goes on needs to know to another folder, each file in one move."""
    if out.resolve() == to.resolve():
        return
    to.mkdir(parents=True, exist_ok=True)
    for name in (LOG, BEGUN):
        if (out / name).exists():
            beside = to / f".{name}"
            shutil.copyfile(out / name, beside)
            beside.replace(to / name)
        else:
            (to / name).unlink(missing_ok=True)


def keep_built(out: Path, since: float) -> None:
    """Put what the build made beside the results."""
    beside = out / ".built.tar.gz"
    with tarfile.open(beside, "w:gz", compresslevel=1) as to:
        for name in (*(library.path for library in LIBRARIES), FACTS):
            file = REPOSITORY / name
            if file.exists() and file.stat().st_mtime >= since:
                to.add(file, name)
    beside.replace(out / "built.tar.gz")


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
