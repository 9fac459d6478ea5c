"""benchmarks/gpu_check.py where there is no GPU: what it would run, its page, and its streams on the emulator.

The measurements themselves: test_gpu_measure.py; how parts are run and go on: test_gpu_runs.py.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import cuda_decode_checks as checks
import cuda_decode_emulation as emulation
import pytest
import torch
from torch import nn

from benchmarks import gpu_check, gpu_page, gpu_primitives, gpu_process, gpu_pytest, gpu_tools, gpu_training
from benchmarks.gpu_begun import Begun
from benchmarks.gpu_measure import PARTS
from build_support.toolchain import find_nvcc
from melodia import engine
from melodia.kernels import cuda, native

NVCC = find_nvcc()
REPOSITORY = Path(__file__).resolve().parent.parent


def test_dry_run_lists_every_part() -> None:
    """As a program, from another folder; every part has a command that exists or the reason why it is left out."""
    script = str(REPOSITORY / "benchmarks" / "gpu_check.py")
    done = subprocess.run(
        [sys.executable, script, "--dry-run"], cwd="/", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith("GPU: ")
    wanted = [part for part in gpu_check.MINUTES if part not in gpu_check.ON_DEMAND]
    assert [line.split(" ")[0] for line in lines] == wanted
    for line in lines:
        command = line.split(": ", 1)[1]
        assert command.startswith(("skipped: ", sys.executable)) or "compute-sanitizer" in command


def test_pytest_need_not_be_there() -> None:
    """Where it is not, the parts that need it are left out, and no others."""
    code = "import sys; sys.modules['pytest'] = None; from benchmarks import gpu_check"
    environment = gpu_check.environment_of("training")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_part_is_there() -> None:
    """What a part runs exists: its function, or its tests."""
    for part in gpu_check.MINUTES:
        command = gpu_check.command_of(part)
        if isinstance(command, str):
            assert part in gpu_check.SANITIZERS
            continue
        if "--part" in command:
            assert command[-1] in PARTS
        for word in command:
            assert not word.startswith("tests/") or (REPOSITORY / word).exists()


def test_no_part_needs_a_midi_library() -> None:
    """Everything that the parts import, where there is none; the parity tests are collected, too."""
    code = f"""
import sys
sys.modules |= dict.fromkeys(("miditok", "symusic", "pretty_midi", "mido"))
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
import pathlib, tempfile
from benchmarks import gpu_check, gpu_generation, gpu_measure, gpu_primitives, gpu_tools, gpu_training
from benchmarks.suite import ours, peers
import melodia.engine.cuda, melodia.model, melodia.training
import test_cuda_parity, test_cuda_engine_parity, test_gpu_rescues
gpu_tools.DEVICE = "cpu"
model = gpu_generation.network("parallel", 8)
peers.Eager(model, 2).step()
with tempfile.TemporaryDirectory() as folder:
    learner = gpu_training.learner_of(pathlib.Path(folder), "parallel", 8, 4, 2, "fp32", False)
    learner.update([], lambda _: 1e-3)
print("done")
"""
    environment = gpu_check.environment_of("training")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr


def test_the_first_command_has_time_for_what_decides_most() -> None:
    """In the minutes that the help names, even where parts hang, if the build takes no more than one and a quarter."""
    parts = list(gpu_check.MINUTES)
    first = parts[1 : parts.index("generation") + 1]
    assert {"parity-operators", "parity-stacks", "parity-engine", "primitives", "training"} < set(first)
    assert sum(gpu_check.MINUTES[part] for part in first) <= 7 - 1.25
    assert "--minutes 7 " in str(gpu_check.__doc__)


def test_stacks_are_a_part_of_their_own(tmp_path: Path) -> None:
    """Without the repository's options; what stands behind all is asked for, too."""
    command = [*gpu_check.command_of("parity-stacks"), "--collect-only", "-q", "-q"]
    begun = Begun(tmp_path / "begun", "parity-stacks")
    environment = gpu_check.environment_of("parity-stacks") | begun.environment()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    found = set(re.findall(r"::(test_\w+)", done.stdout))
    assert found == {"test_stacks", "test_no_launch_gave_up_waiting"}


def test_page_has_verdicts_notes_figures_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "gpu_check.log"
    gpu_tools.note("it is warm\nand more")
    gpu_tools.row(H=64, **{"counter (us/step)": 1.23456, "in_band (us/step)": None})
    parts = {
        "build": ("melodia: no engine: no headers\nand more", "skipped: no nvcc"),
        "parity-engine": ("SKIPPED [2] a.py: no engine\n== 1 passed, 2 skipped in 3 s ==", "passed (3 s)"),
        "exchange": (f"a warning\n{capsys.readouterr().out}", "failed: not done after 60 s"),
    }
    for part, (text, verdict) in parts.items():
        gpu_process.begin(log, part)
        with log.open("a") as to:
            to.write(text)
        gpu_process.end(log, part, verdict)
    gpu_process.begin(log, "training")
    page = gpu_page.page(log, "A GPU.")
    assert "| build | skipped: no nvcc |\n" in page
    assert "## build\n\n- melodia: no engine: no headers\n" in page
    assert "| training | not finished |\n" in page
    assert "- SKIPPED [2] a.py: no engine\n- == 1 passed, 2 skipped in 3 s ==\n" in page
    assert "## exchange\n\n- it is warm\n\n| H | counter (us/step) | in_band (us/step) |\n" in page
    assert "| 64 | 1.235 | None |\n\nIt ended with\n\n```text\na warning\n```\n" in page


@pytest.mark.parametrize(("count", "says"), [(0, ""), (3, "3 launches gave up"), (-1, "does not answer")])
def test_rescues_are_noted(
    count: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = types.SimpleNamespace(melodia_cuda_rescues=lambda: count)
    monkeypatch.setattr(cuda, "_load", lambda: (library, None))
    gpu_tools.note_rescues()
    printed = capsys.readouterr().out
    assert printed.startswith(gpu_tools.NOTE) if says else printed == ""
    assert says in printed
    monkeypatch.setattr(cuda, "_load", lambda: (None, "not built"))
    assert gpu_tools.rescues() is None


def printed_rows(*rows: dict[str, object]) -> dict[str, gpu_process.Section]:
    """A part that printed these."""
    lines = [gpu_tools.MARK + json.dumps(row) for row in rows]
    return {"training": gpu_process.Section("passed", [*lines, gpu_tools.MARK + '{"kind": "ls'])}


def test_numbers_to_reach() -> None:
    """The worst of the kinds counts, the better of two measurements of one; half of them is said to be half."""
    case = {"type": "bfloat16", "T": 512, "B": 64, "H": 512}
    names = [target.what for target in gpu_page.TARGETS]
    which = next(k for k, name in enumerate(names) if "H = 512" in name)

    def told(*ratios: tuple[str, str | None], **changed: object) -> dict[str, object]:
        rows = [{"kind": kind, **(case | changed), "ratio": ratio} for kind, ratio in ratios]
        return gpu_page.reached(gpu_page.rows_of(printed_rows(*rows)))[which]

    assert told()["measured"] == "not measured"
    assert told(("lstm", "3"), H=64)["measured"] == "not measured"
    kinds = [(kind, "2.5") for kind in gpu_training.KINDS]
    assert told(*kinds) | {"number": ""} == {
        "number": "",
        "reach": "at least 1.5",
        "measured": "2.5",
        "met": "yes",
    }
    assert told(*kinds[1:], ("lstm", None))["measured"] == "2.5, of 4"
    assert told(*kinds[1:], ("lstm", None))["met"] == "not all measured"
    assert told(*kinds[1:], ("lstm", "1.25"))["met"] == "no"
    assert told(*kinds, ("lstm", "1.25"))["measured"] == "2.5"  # measured again
    rows = {"generation": [{"model": "i-a", "B": 1, "weights": "bf16", "us/step": "4.2", "x eager": None}]}
    found = {str(each["number"]): each for each in gpu_page.reached(rows)}
    assert found["one stream, i-a, bf16: us per token"]["met"] == "yes"
    assert found["one stream, i-a, bf16: us per token, then"]["met"] == "no"
    assert found["one stream, i-a, bf16: times eager"]["measured"] == "not measured"


def test_tests_are_mixed() -> None:
    names = ["a.py::f[1]", "a.py::f[2]", "a.py::f[3]", "test_gpu_rescues.py::g", "a.py::h[1]", "a.py::h[2]"]
    items = [types.SimpleNamespace(nodeid=name) for name in names]
    assert [item.nodeid for item in gpu_pytest.mixed(items)] == [names[k] for k in (0, 4, 1, 5, 2, 3)]


@pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
def test_paths_are_asked_for_behind_every_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    monkeypatch.setattr(gpu_training, "chosen", lambda library: str(next(numbers)))
    lstm, gru = nn.LSTM(4, 4), nn.GRU(4, 4)
    for parts, says in (([lstm], "0 / 1"), ([lstm, gru], "2 3 / 4 5"), ([(lstm, gru)], "6 / 7")):
        assert gpu_training.paths(parts, torch.randn(3, 2, 4), None) == says


@pytest.mark.parametrize(("numbers", "steps"), [(1, 1), (50, 6), (1024, 5)])
def test_expected_sum(numbers: int, steps: int) -> None:
    total = 1
    for _ in range(steps):
        total = sum((total + i) % gpu_primitives.MODULUS for i in range(numbers)) % gpu_primitives.MODULUS
    assert gpu_primitives.expected_sum(numbers, steps) == total


@pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler")
def test_primitives_on_the_emulator(tmp_path: Path) -> None:
    """Every way brings every number to every block, under every schedule; a wrong sum is an error."""
    out = tmp_path / "probe.so"
    flags = [
        "-x",
        "c++",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-DMELODIA_EMULATOR",
    ]
    source = str(gpu_primitives.SOURCE)
    subprocess.run(
        [str(emulation.COMPILER), *flags, f"-I{gpu_primitives.CSRC}", source, "-o", str(out)], check=True
    )
    probe = gpu_primitives.load(out)
    assert probe.probe_processors() == 16
    assert probe.probe_clusters(8, 1 << 10) == 2
    for way in ("alone", "counter", "words", "cluster"):
        for schedule in range(4):
            probe.probe_configure(schedule)
            assert gpu_primitives.exchange(probe, way, 4, 50, 6) == 0.0
    for schedule in range(24):  # nearly as many blocks as numbers
        probe.probe_configure(schedule)
        assert gpu_primitives.exchange(probe, "words", 5, 6, 6) == 0.0
    with pytest.raises(RuntimeError, match="asks for 17 blocks at once of 16"):
        gpu_primitives.exchange(probe, "words", 17, 50, 6)
    probe.probe_configure(1)
    with pytest.raises(RuntimeError, match="grid, 2 blocks: a block came to another sum"):
        gpu_primitives.exchange(probe, "grid", 2, 50, 6)  # the emulator has no grid.sync
    for shared in (False, True):
        assert gpu_primitives.reading(probe, shared, 2, 8192, 2) == 0.0
    with pytest.raises(RuntimeError, match=r"reading: .* asks for .* bytes of shared memory"):
        gpu_primitives.reading(probe, True, 2, 1 << 20, 2)
    with pytest.raises(RuntimeError, match="reading: a block reads a multiple of 4096 bytes"):
        gpu_primitives.reading(probe, False, 2, 4000, 2)


@pytest.mark.slow
@pytest.mark.skipif(isinstance(NVCC, str), reason=f"{NVCC}")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_primitives_compile(tmp_path: Path, architecture: str) -> None:
    gpu_primitives.build(tmp_path, architecture)


@pytest.mark.skipif(
    emulation.COMPILER is None or engine.reason() is not None, reason="no compiler or no engine"
)
def test_streams_on_the_emulator() -> None:
    """What `generation` measures makes the tokens of the CPU's benchmark; in a cluster, too."""
    library = emulation.load(emulation.build())
    emulation.configure(library, schedule=2)
    for changed in ({"least_units": 6}, {"cluster": 4}):
        assert checks.check_streams(library, "parallel", 16, 2, 6, threads=64, **changed) == ""


@pytest.mark.skipif(
    emulation.COMPILER is None or engine.reason() is not None, reason="no compiler or no engine"
)
@pytest.mark.parametrize("weights", checks.TOLERANCE)
def test_plain_models_on_the_emulator(weights: str) -> None:
    """What the parity test of large models runs, with the device's own 256 threads."""
    library = emulation.load(emulation.build())
    emulation.configure(library, schedule=3)
    checks.check_plain(library, "parallel", weights, 2, 9, 40, 50, **checks.WHOLE)


@pytest.mark.slow
@pytest.mark.skipif(
    native.reason() is not None or engine.reason() is not None, reason="no native library or no engine"
)
@pytest.mark.parametrize(
    ("part", "chosen"),
    [
        ("parity-operators", "not dtype2 and not graph and not large and not same_bits"),
        ("parity-stacks", "stacks and dtype0"),
        ("parity-engine", "bias or cluster or (logits and bf16 and counted)"),
    ],
)
def test_parity_tests_run_on_a_stand_in(part: str, chosen: str, tmp_path: Path) -> None:
    """All but what the CPU does not have: half precision, graphs, and sums that tf32 makes different."""
    environment = gpu_check.environment_of(part) | Begun(tmp_path / "begun", part).environment()
    environment["PYTHONPATH"] += os.pathsep + str(REPOSITORY / "tests")
    environment["OMP_NUM_THREADS"] = "1"
    command = [*gpu_check.command_of(part), "-p", "cuda_stand_in", "-k", chosen]  # the last -k counts
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert " passed" in done.stdout, done.stdout + done.stderr
    assert not re.findall(r"^ERROR ", done.stdout, re.M), done.stdout
    failed = {line.partition("[")[0] for line in re.findall(r"^FAILED \S*::(\S+)", done.stdout, re.M)}
    assert failed == ({"test_tf32_where_torch_allows_it"} if part == "parity-operators" else set()), (
        done.stdout
    )
