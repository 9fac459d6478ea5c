"""benchmarks/gpu_check.py where there is no GPU: what it would run, its page, and its streams on the emulator.

The measurements themselves: test_gpu_measure.py.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import cuda_decode_emulation as emulation
import pytest
import torch
from torch import nn

from benchmarks import gpu_check, gpu_page, gpu_primitives, gpu_process, gpu_pytest, gpu_tools, gpu_training
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


def test_the_first_command_has_time_for_what_decides_most() -> None:
    """In the minutes that the help names, even where parts hang, if the build takes no more than one and a quarter."""
    parts = list(gpu_check.MINUTES)
    first = parts[1 : parts.index("generation") + 1]
    assert {"parity-operators", "parity-stacks", "parity-engine", "primitives", "training"} < set(first)
    assert sum(gpu_check.MINUTES[part] for part in first) <= 7 - 1.25
    assert "--minutes 7\n" in str(gpu_check.__doc__)


def test_stacks_are_a_part_of_their_own(tmp_path: Path) -> None:
    """Without the repository's options; what stands behind all is asked for, too."""
    command = [*gpu_check.command_of("parity-stacks"), "--collect-only", "-q", "-q"]
    environment = gpu_check.environment_of("parity-stacks") | {gpu_pytest.BEGUN: str(tmp_path / "begun")}
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


def test_run_keeps_what_was_printed_and_ends_what_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that hangs ends at its limit with its children; rows stay; parts that run again replace themselves."""
    alive = tmp_path / "alive"
    hang = "import subprocess, sys, time; print('RESULT {\"x\": 1}', flush=True);"
    hang += f"subprocess.Popen(['sh', '-c', 'sleep 6; touch {alive}']); time.sleep(60)"
    codes = {"build": "print('built')", "exchange": hang, "decoding": "raise SystemExit(3)"}
    monkeypatch.setattr(gpu_check, "command_of", lambda part: [sys.executable, "-c", codes[part]])
    monkeypatch.setattr(gpu_check, "environment_of", lambda part: dict(os.environ))
    monkeypatch.setitem(gpu_check.MINUTES, "exchange", 3 / 60)
    began = time.monotonic()
    verdicts = gpu_check.run(list(codes), tmp_path, 600, "A GPU.")
    assert verdicts[0].startswith("passed (")
    assert verdicts[1] == "failed: not done after 3 s"
    assert verdicts[2].startswith("failed: status 3 (")
    time.sleep(max(0.0, 8 - (time.monotonic() - began)))
    assert not alive.exists()
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| x |\n|---|\n| 1 |\n" in page
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gpu_check.log", "gpu_check.md"]

    codes["exchange"] = "print('done')"
    assert gpu_check.run(["exchange"], tmp_path, 600, "A GPU.")[0].startswith("passed")
    assert gpu_check.run(["decoding"], tmp_path, 5, "A GPU.") == ["not started: out of time"]
    found = gpu_process.sections(tmp_path / "gpu_check.log")
    assert [line for line in found["exchange"].lines if line] == ["done"]
    assert list(found) == ["build", "exchange", "decoding"]

    codes["build"] = "raise SystemExit(1)"
    verdicts = gpu_check.run(["build", "exchange"], tmp_path, 600, "A GPU.")
    assert verdicts[1] == "not started: nothing works without the build"


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


def test_rest_is_what_is_not_known_yet(tmp_path: Path) -> None:
    log = tmp_path / "gpu_check.log"
    parts = ["build", "parity-engine", "training", "exchange", "decoding", "stepping"]
    assert gpu_check.rest(log, parts) == parts
    verdicts = {
        "build": "passed (60 s)",
        "parity-engine": "failed: status 1 (9 s)",
        "training": "failed: not done after 60 s",
        "exchange": "not started: out of time",
    }
    for part, verdict in verdicts.items():
        gpu_process.begin(log, part)
        gpu_process.end(log, part, verdict)
    gpu_process.begin(log, "decoding")
    assert gpu_check.rest(log, parts) == ["training", "exchange", "decoding", "stepping"]
    gpu_process.end(log, "build", "failed: status 1 (3 s)")
    assert gpu_check.rest(log, parts)[0] == "build"


def test_tests_that_break_the_process_take_no_others_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash and a broken context: the rest runs in further processes; all are on the page. What is skipped failed."""
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import os, pytest\n"
        "from melodia.kernels import cuda\n"
        "from benchmarks import gpu_pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_good(n): pass\n"
        "def test_crash(): os.abort()\n"
        "def test_break():\n"
        "    gpu_pytest.broken = lambda: True\n"
        "    assert False, 'an access went astray'\n"
        "def test_late():\n"
        "    gpu_pytest.usable_rescues = lambda: 2\n"
        "    assert cuda.SPIN_LIMIT_NS < 10**9\n"
        "@pytest.mark.skip('no room')\n"
        "def test_skipped(): pass\n"
    )
    monkeypatch.setitem(gpu_check.PARITY, "parity-stacks", [str(tests)])
    log = tmp_path / "gpu_check.log"
    gpu_process.begin(log, "parity-stacks")
    verdict = gpu_check.run_part("parity-stacks", log, 100)
    gpu_process.end(log, "parity-stacks", verdict)
    assert verdict.startswith("failed: status -6, then 77, then 0 (")
    passed = re.findall(r"::(\S+) PASSED", log.read_text())
    assert sorted(passed) == ["test_good[1]", "test_good[2]", "test_late"]
    page = gpu_page.page(log, "A GPU.")
    assert "an access went astray" in page
    assert "\n- SKIPPED [1] " in page
    assert "- !!!" in page
    assert re.search(r"\n- GAVE UP waiting: 2 launches of \S*::test_late\n", page)
    monkeypatch.setitem(gpu_check.PARITY, "parity-stacks", [str(tests), "-k", "skipped"])
    assert gpu_check.run_part("parity-stacks", log, 100).startswith(
        f"failed: status {gpu_pytest.ALL_SKIPPED} ("
    )
    monkeypatch.setitem(gpu_check.PARITY, "parity-stacks", [str(tests), "-k", "good or skipped"])
    assert gpu_check.run_part("parity-stacks", log, 100).startswith("passed (")


def test_tests_are_mixed() -> None:
    names = ["a.py::f[1]", "a.py::f[2]", "a.py::f[3]", "test_gpu_rescues.py::g", "a.py::h[1]", "a.py::h[2]"]
    items = [types.SimpleNamespace(nodeid=name) for name in names]
    assert [item.nodeid for item in gpu_pytest.mixed(items)] == [names[k] for k in (0, 4, 1, 5, 2, 3)]


def test_pytest_that_is_cut_off_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = tmp_path / "test_some.py"
    tests.write_text("import time\ndef test_bad(): assert 1 == 2\ndef test_long(): time.sleep(60)\n")
    monkeypatch.setitem(gpu_check.PARITY, "parity-stacks", [str(tests)])
    log = tmp_path / "gpu_check.log"
    assert gpu_check.run_part("parity-stacks", log, 10) == "failed: not done after 10 s"
    assert re.search(r"FAILED \S*::test_bad - assert 1 == 2", log.read_text())


def test_of_much_output_the_middle_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    monkeypatch.setattr(gpu_process, "MOST_BYTES", 1000)
    code = "print('first'); print('\\n'.join(map(str, range(10000)))); print('last')"
    assert gpu_process.bounded([sys.executable, "-c", code], 60, log) == 0
    text = log.read_text()
    assert len(text) < 1100
    assert text.startswith("before\nfirst\n")
    assert text.endswith("9999\nlast\n")
    assert "\n[much more was printed]\n" in text


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
        assert emulation.check_streams(library, "parallel", 16, 2, 6, threads=64, **changed) == ""


@pytest.mark.skipif(
    emulation.COMPILER is None or engine.reason() is not None, reason="no compiler or no engine"
)
@pytest.mark.parametrize("weights", emulation.TOLERANCE)
def test_plain_models_on_the_emulator(weights: str) -> None:
    """What the parity test of large models runs, with the device's own 256 threads."""
    library = emulation.load(emulation.build())
    emulation.configure(library, schedule=3)
    emulation.check_plain(library, "parallel", weights, 2, 9, 40, 50, **emulation.WHOLE)


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
    environment = gpu_check.environment_of(part) | {gpu_pytest.BEGUN: str(tmp_path / "begun")}
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
