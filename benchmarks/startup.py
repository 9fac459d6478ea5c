"""How long `melodia generate` takes from the shell to the file, and where the time goes.

    python benchmarks/startup.py MODEL [SEED.mid]

MODEL is a checkpoint folder. Every figure is the median of five runs, the ways taken in turn; files are warm and
modules compiled, as they are for a user from the second run on.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5
SAMPLE = Path(__file__).resolve().parent.parent / "midi_samples" / "bach_bourree_c_minor.mid"

PARTS = """
import sys, time
marks = [("", time.perf_counter())]
def mark(name):
    marks.append((name, time.perf_counter()))
import numpy
mark("import numpy")
import symusic.core
mark("import symusic")
import melodia.workflows.generate
mark("import melodia")
from melodia.sampler import Sampler
from melodia.decode.config import RECOMMENDED
from melodia.midi import write_midi
sampler = Sampler.load(sys.argv[1], device="cpu", weights=sys.argv[4])
mark("read the checkpoint")
from melodia.sampler.seed import read_seed
read_seed(sys.argv[2], sampler.tokenizer)
mark("read the seed")
sampler._runner._packed
mark("pack the weights")
sampler.prime(sys.argv[2])
mark("read the seed again, and feed it")
made = sampler.generate(bars=8, random_seed=1, **RECOMMENDED)
mark("8 bars")
made.originality
mark("compare with the training music")
write_midi(made.joined_score, sys.argv[3], force=True)
mark("write")
for (_, before), (name, after) in zip(marks, marks[1:]):
    print(f"{name}={after - before}")
"""


def compiled(folder: str) -> dict[str, str]:
    """An environment in which Python keeps compiled modules, in a folder of their own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return environment | {"PYTHONPYCACHEPREFIX": folder}


def whole(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of a process: by the clock, and of the processor (which tells more on a busy machine)."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    wall = time.perf_counter() - began
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, now.ru_utime - used.ru_utime + now.ru_stime - used.ru_stime


def parts(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Seconds of each part, as the process itself says."""
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return {name: float(value) for name, value in (line.split("=") for line in said.splitlines())}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("seed", type=Path, nargs="?", default=SAMPLE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.mid")
        environment = compiled(str(Path(folder) / "compiled"))
        cli = [sys.executable, "-m", "melodia"]
        generate = [*cli, "generate", "--model", str(arguments.model), "--out", out, "--force"]
        seeded = [*generate, "--seed", str(arguments.seed), "--random-seed", "1"]
        ways = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "melodia --version": [*cli, "--version"],
            "melodia generate --help": [*cli, "generate", "--help"],
            "melodia generate, 8 bars from nothing": [*generate, "--random-seed", "1"],
            "melodia generate, 8 bars behind a seed": seeded,
            "the same, bf16 weights": [*seeded, "--weights", "bf16"],
            "the same, int8 weights": [*seeded, "--weights", "int8"],
        }
        inner = [sys.executable, "-c", PARTS, str(arguments.model), str(arguments.seed), out, "fp32"]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        inside: dict[str, list[float]] = {}
        for run in range(RUNS + 1):
            for name, command in ways.items():
                seconds = whole(command, environment)
                if run:  # the first round warms the disk and compiles
                    times[name].append(seconds)
            for name, seconds in parts(inner, environment).items():
                if run:
                    inside.setdefault(name, []).append(seconds)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {RUNS}")
    for name, values in times.items():
        wall, busy = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{wall:7.3f} s, {busy:.3f} of the processor  {name}  (fastest {min(values)[0]:.3f})")
    print("inside one process:")
    for name, values in inside.items():
        print(f"{statistics.median(values) * 1000:7.1f} ms  {name}")


if __name__ == "__main__":
    main()
