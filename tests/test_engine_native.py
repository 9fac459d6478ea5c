"""The engine's own test programs, compiled here: under sanitizers, and for ARM."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent
AVX512 = [f"-mavx512{part}" for part in ("f", "dq", "bw", "vl", "vnni")] + ["-mfma"]
MACHINE = {
    "x86_64": {
        "kernels_avx2": ["-mavx2", "-mfma"],
        "kernels_avx512": AVX512,
        "kernels_avx512bf16": [*AVX512, "-mavx512bf16"],
    },
    "aarch64": {"kernels_neon": [], "kernels_neondot": ["-march=armv8.2-a+dotprod"]},
}
COMMON = ("blocks", "dispatch", "engine", "kernels_portable", "plan", "team")
ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


def compiled(
    compiler: str, machine: str, program: str, flags: list[str], folder: Path, common: Sequence[str] = COMMON
) -> Path:
    """A test program of csrc/tests with the engine in it; skips where this compiler has no such sanitizer."""
    flags = [*flags, "-std=c++17", "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-pthread", "-Icsrc"]
    sources = {f"csrc/engine/{name}.cpp": extra for name, extra in MACHINE.get(machine, {}).items()}
    sources |= {f"csrc/engine/{name}.cpp": [] for name in common} | {f"csrc/tests/{program}.cpp": []}
    objects = []
    for source, extra in sources.items():
        objects.append(str(folder / f"{Path(source).stem}.o"))
        command = [compiler, *flags, *extra, "-c", source, "-o", objects[-1]]
        subprocess.run(command, cwd=REPOSITORY, check=True, timeout=600)
    linked = subprocess.run(
        [compiler, *flags, *objects, "-o", str(folder / program)], capture_output=True, text=True
    )
    if linked.returncode != 0 and "san" in linked.stderr:
        pytest.skip(f"this compiler has no such sanitizer: {linked.stderr.splitlines()[-1]}")
    assert linked.returncode == 0, linked.stderr
    return folder / program


def check(command: list[str], **environment: str) -> None:
    """The program finds nothing."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr


def host_compiler() -> str:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    return compiler


@pytest.mark.parametrize(
    ("program", "sanitizers"),
    [("engine_test", "address,undefined"), ("engine_test", "thread"), ("plan_test", "address,undefined")],
)
def test_sanitizers_find_nothing(program: str, sanitizers: str, tmp_path: Path) -> None:
    machine = platform.machine().lower()
    flags = ["-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    made = compiled(host_compiler(), ALIASES.get(machine, machine), program, flags, tmp_path)
    check([str(made)])
    check([str(made)], MELODIA_CPU="portable")


def test_arm_under_qemu(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user")
    made = compiled(compiler, "aarch64", "kernels_test", ["-O2", "-static"], tmp_path)
    for name in ("neondot", "neon", "portable"):
        check([emulator, "-cpu", "max", str(made), name])


def test_kernels_agree(tmp_path: Path) -> None:
    machine = platform.machine().lower()
    made = compiled(host_compiler(), ALIASES.get(machine, machine), "kernels_test", ["-O2"], tmp_path)
    check([str(made)])


@pytest.mark.parametrize("flags", [["-O2"], ["-O1", "-g", "-fsanitize=thread"]], ids=["fast", "thread"])
def test_late_mates_are_waited_for(flags: list[str], tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    check([str(compiled(host_compiler(), "", "team_test", flags, tmp_path, ["team"]))])
