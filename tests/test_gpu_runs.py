"""How benchmarks/gpu_check.py runs its parts, what survives whatever ends it, and how a second run goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_build import setup

from benchmarks import gpu_check, gpu_page, gpu_process, gpu_pytest, gpu_tools
from build_support import toolchain
from build_support.sources import CUDA, CUDA_ENGINE, ENGINE, FACTS, LIBRARIES, OPERATORS

REPOSITORY = Path(__file__).resolve().parent.parent
LOG = "gpu_check.log"


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Every part runs the code that a test gives it; all libraries are there."""
    codes: dict[str, str] = {}
    monkeypatch.setattr(gpu_check, "command_of", lambda part: [sys.executable, "-c", codes[part]])
    monkeypatch.setattr(
        gpu_check, "environment_of", lambda part: {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    monkeypatch.setattr(gpu_check, "unbuilt", lambda *_: [])
    return codes


def lines_of(out: Path, part: str) -> list[str]:
    """What the log says of a part, in lines that are not empty."""
    return [line for line in gpu_process.sections(out / LOG)[part].lines if line]


def text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def verdict_of(out: Path, part: str) -> str:
    return gpu_process.sections(out / LOG)[part].verdict


def test_run_keeps_what_was_printed_and_ends_what_was_started(
    tmp_path: Path, stand_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that hangs ends at its limit with its children; its rows stay."""
    alive = tmp_path / "alive"
    hang = "import subprocess, sys, time; print('RESULT {\"x\": 1}', flush=True);"
    hang += f"subprocess.Popen(['sh', '-c', 'sleep 6; touch {alive}']); time.sleep(60)"
    stand_ins |= {"build": "print('built')", "exchange": hang, "decoding": "raise SystemExit(3)"}
    monkeypatch.setitem(gpu_check.MINUTES, "exchange", 3 / 60)
    began = time.monotonic()
    verdicts = gpu_check.run(list(stand_ins), tmp_path, 600, "A GPU.")
    assert verdicts[0].startswith("passed (")
    assert verdicts[1] == "failed: not done after 3 s"
    assert verdicts[2].startswith("failed: status 3 (")
    time.sleep(max(0.0, 8 - (time.monotonic() - began)))
    assert not alive.exists()
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| x |\n|---|\n| 1 |\n" in page
    assert sorted(file.name for file in tmp_path.iterdir()) == ["built.tar.gz", LOG, "gpu_check.md"]


def test_rest_is_what_is_not_known_yet_and_then_what_was_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "unbuilt", list)
    log = tmp_path / LOG
    parts = ["build", "parity-engine", "training", "exchange", "decoding", "stepping"]
    assert gpu_check.rest(log, parts) == parts
    verdicts = {
        "build": "passed (60 s)",
        "parity-engine": "failed: status 1 (9 s)",
        "training": "failed: not done after 60 s",
        "exchange": "not started: out of time",
    }
    for part, verdict in verdicts.items():
        gpu_process.end(log, part, verdict)
    gpu_process.begin(log, "decoding")
    assert gpu_check.rest(log, parts) == ["exchange", "stepping", "training", "decoding"]
    gpu_process.end(log, "build", "failed: status 1 (3 s)")
    assert gpu_check.rest(log, parts)[0] == "build"


@pytest.mark.slow
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
    log = tmp_path / LOG
    monkeypatch.setattr(gpu_check, "unbuilt", lambda *_: [])

    def run() -> str:
        return gpu_check.run(["parity-stacks"], tmp_path, 100, "A GPU.")[0]

    verdict = run()
    assert verdict.startswith("failed: status -6, then 77, then 0 (")
    passed = re.findall(r"::(\S+) PASSED", log.read_text())
    assert sorted(passed) == ["test_good[1]", "test_good[2]", "test_late"]
    page = gpu_page.page(log, "A GPU.")
    assert "an access went astray" in page
    assert "\n- SKIPPED [1] " in page
    assert "- !!!" in page
    assert re.search(r"\n- GAVE UP waiting: 2 launches of \S*::test_late\n", page)
    monkeypatch.setitem(gpu_check.PARITY, "parity-stacks", [str(tests), "-k", "skipped"])
    assert run().startswith(f"failed: status {gpu_pytest.ALL_SKIPPED} (")
    monkeypatch.setitem(gpu_check.PARITY, "parity-stacks", [str(tests), "-k", "good or skipped"])
    assert run().startswith("passed (")


@pytest.mark.slow
def test_pytest_that_is_cut_off_says_what_failed_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = tmp_path / "test_some.py"
    tests.write_text("import time\ndef test_bad(): assert 1 == 2\ndef test_long(): time.sleep(60)\n")
    monkeypatch.setitem(gpu_check.PARITY, "parity-stacks", [str(tests)])
    monkeypatch.setattr(gpu_check, "unbuilt", lambda *_: [])
    monkeypatch.setattr(gpu_check, "HUNG_S", 60.0)  # however fast the tests begin, the last is only cut off
    assert gpu_check.run(["parity-stacks"], tmp_path, 12, "A GPU.") == ["failed: not done after 12 s"]
    tests.write_text(tests.read_text().replace("time.sleep(60)", "pass"))
    assert re.search(r"FAILED \S*::test_bad - assert 1 == 2", (tmp_path / LOG).read_text())
    (verdict,) = gpu_check.run(["parity-stacks"], tmp_path, 60, "A GPU.", True)
    assert verdict.startswith("failed: before, and the rest passed (")
    page = (tmp_path / "gpu_check.md").read_text()
    assert "::test_bad - assert 1 == 2" in page
    assert re.search(r"== .*1 passed.* in .*==", page)


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


ROWS = """
import os, sys, time
from benchmarks import gpu_tools
for n in range(6):
    if gpu_tools.begins(f"row {n}"):
        WHAT
        gpu_tools.row(n=n)
"""


def test_rows_that_break_the_process_take_no_others_along(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    """By a crash and by an exception; what ends before any row began is not started again."""
    what = "if n == 1: os.abort()\n        if n == 3: raise RuntimeError('an access went astray')"
    stand_ins["training"] = ROWS.replace("WHAT", what)
    (verdict,) = gpu_check.run(["training"], tmp_path, 600, "A GPU.")
    assert verdict.startswith("failed: status -6, then 1, then 0 (")
    assert [row["n"] for row in gpu_page.rows_of(gpu_process.sections(tmp_path / LOG))["training"]] == [
        0,
        2,
        4,
        5,
    ]
    stand_ins["training"] = "raise SystemExit('not built')"
    (verdict,) = gpu_check.run(["training"], tmp_path, 600, "A GPU.")
    assert verdict.startswith("failed: status 1 (")
    assert lines_of(tmp_path, "training")[-1] == "not built"


@pytest.mark.slow
def test_rows_go_on_where_they_were(
    tmp_path: Path, stand_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs is left out, one that was cut off comes again; without --rest all of them come again."""
    monkeypatch.setitem(gpu_check.MINUTES, "training", 0.2)
    monkeypatch.setattr(gpu_check, "HUNG_S", 60.0)

    def again(what: str, goes_on: bool) -> tuple[str, list[object]]:
        stand_ins["training"] = ROWS.replace("WHAT", what)
        before = len(gpu_page.rows_of(gpu_process.sections(tmp_path / LOG)).get("training", []))
        (verdict,) = gpu_check.run(["training"], tmp_path, 600, "A GPU.", goes_on)
        rows = gpu_page.rows_of(gpu_process.sections(tmp_path / LOG))["training"]
        return verdict.partition(" (")[0], [row["n"] for row in rows[before:]]

    assert again("if n == 2: time.sleep(60)", False) == ("failed: not done after 12 s", [0, 1])
    assert again("if n == 4: time.sleep(60)", True) == ("failed: not done after 12 s", [2, 3])
    monkeypatch.setattr(gpu_check, "HUNG_S", 0.0)
    assert again("if n == 4: time.sleep(60)", True) == ("failed: not done after 12 s", [])
    assert again("pass", True) == ("failed: before, and the rest passed", [5])
    monkeypatch.setitem(gpu_check.MINUTES, "training", 1.0)
    assert again("pass", False) == ("passed", [0, 1, 2, 3, 4, 5])


def test_results_survive_a_kill(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    """Rows stand in the log as they come; a second run in another folder, to which the files went, goes on."""
    out, other = tmp_path / "first", tmp_path / "second"
    out.mkdir()
    hang = "if n == 2: print('PID', os.getpid(), flush=True); time.sleep(600)"
    code = f"""
import os, sys
from pathlib import Path
from benchmarks import gpu_check
rows = {ROWS.replace("WHAT", hang)!r}
gpu_check.command_of = lambda part: [sys.executable, "-c", rows]
gpu_check.environment_of = lambda part: dict(os.environ)
gpu_check.unbuilt = lambda *_: []
gpu_check.run(["training"], Path({str(out)!r}), 600, "A GPU.")
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        deadline = time.monotonic() + 120
        while not (pid := re.search(r"^PID (\d+)$", text(out / LOG), re.M)) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.kill()
    assert pid
    command = Path(f"/proc/{pid[1]}/cmdline")  # empty where nobody has asked how it ended
    while text(command) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not text(command)  # it would disturb the next run
    assert "| training | not finished |" in (out / "gpu_check.md").read_text()
    shutil.copytree(out, other)
    assert gpu_check.rest(other / LOG, ["training"]) == ["training"]
    stand_ins["training"] = ROWS.replace("WHAT", "pass")
    assert gpu_check.run(["training"], other, 600, "A GPU.", True)[0].startswith("passed (")
    rows = gpu_page.rows_of(gpu_process.sections(other / LOG))["training"]
    assert [row["n"] for row in rows] == [0, 1, 2, 3, 4, 5]


def test_a_second_run_knows_the_first_although_its_folder_was_emptied(
    tmp_path: Path, stand_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a rented machine, from the command line; what its folder has then is of both runs."""
    out, kept = tmp_path / "out", tmp_path / "kept"
    stand_ins |= {"lookup": "print('RESULT {\"x\": 1}')", "exchange": "print('RESULT {\"x\": 2}')"}
    monkeypatch.setattr(gpu_check, "KEPT", kept)
    monkeypatch.setattr(gpu_check, "no_gpu", lambda: None)
    monkeypatch.setattr(gpu_check, "machine", lambda: "A GPU.")

    def command(*options: str) -> None:
        shutil.rmtree(out, ignore_errors=True)
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(out), *options])
        assert gpu_check.main() == 0

    command("--only", "lookup")
    assert sorted(gpu_process.sections(kept / LOG)) == ["lookup"]
    command("--rest", "--only", "lookup", "exchange")
    assert text(out / LOG).count("######## lookup:") == 1
    assert all(verdict_of(out, part).startswith("passed (") for part in ("lookup", "exchange"))
    assert text(kept / LOG) == text(out / LOG)
    command("--only", "exchange")
    assert sorted(gpu_process.sections(kept / LOG)) == ["exchange"]


def test_what_is_not_started_stays_as_it_was(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    stand_ins |= {"exchange": "print('NOTE warm'); print('RESULT {\"x\": 1}')", "decoding": "print('other')"}
    gpu_check.run(["exchange"], tmp_path, 600, "A GPU.")
    before = gpu_process.sections(tmp_path / LOG)["exchange"]
    assert gpu_check.run(["exchange", "decoding"], tmp_path, 5, "A GPU.") == 2 * ["not started: out of time"]
    assert gpu_process.sections(tmp_path / LOG)["exchange"] == before
    assert verdict_of(tmp_path, "decoding") == "not started: out of time"
    stand_ins["exchange"] = "print('RESULT {\"x\": 2}')"
    gpu_check.run(["exchange"], tmp_path, 600, "A GPU.")
    assert lines_of(tmp_path, "exchange") == ['RESULT {"x": 1}', 'RESULT {"x": 2}']


def made(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., None]:
    """What puts libraries into a repository that has none."""
    monkeypatch.setattr(gpu_check, "REPOSITORY", folder)

    def put(*paths: str) -> None:
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text("a library")

    return put


def test_the_build_is_needed_where_libraries_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the log says; and what needs them is not started, but to be run yet."""
    put = made(monkeypatch, tmp_path / "repository")
    log = tmp_path / LOG
    gpu_process.end(log, "build", "passed (60 s)")
    assert gpu_check.rest(log, ["build", "training"]) == ["build", "training"]
    assert gpu_check.rest(log, ["training"]) == ["training"]  # --no-build
    put(OPERATORS.path, ENGINE.path, CUDA_ENGINE.path)
    assert (
        gpu_check.unbuilt()
        == gpu_check.unbuilt("memcheck")
        == gpu_check.unbuilt("training")
        == ["libmelodia_cuda.so"]
    )
    assert (
        gpu_check.unbuilt("generation") == gpu_check.unbuilt("primitives") == gpu_check.unbuilt("build") == []
    )
    (verdict,) = gpu_check.run(["training"], tmp_path, 600, "A GPU.")
    assert verdict == "not started: no libmelodia_cuda.so"
    assert gpu_check.rest(log, ["build", "training"]) == ["build", "training"]
    put(CUDA.path)
    assert gpu_check.rest(log, ["build", "training"]) == ["training"]


def test_what_a_failed_build_made_is_used_and_nothing_older(
    tmp_path: Path, stand_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies beside the results, too, for another machine."""
    monkeypatch.undo()
    monkeypatch.setattr(gpu_check, "command_of", lambda part: [sys.executable, "-c", stand_ins[part]])
    monkeypatch.setattr(gpu_check, "environment_of", lambda part: dict(os.environ))
    repository = tmp_path / "repository"
    put = made(monkeypatch, repository)
    put(*(library.path for library in LIBRARIES), FACTS)
    for file in repository.rglob("*.*"):
        os.utime(file, (0, 0))
    new = [str(repository / path) for path in (ENGINE.path, CUDA_ENGINE.path, FACTS)]
    stand_ins |= {"build": f"import os\nfor x in {new}: os.utime(x)\nraise SystemExit(1)"}
    stand_ins |= {"training": "", "generation": "print('it ran')", "primitives": ""}
    verdicts = gpu_check.run(["build", "training", "generation", "primitives"], tmp_path, 600, "A GPU.")
    assert verdicts[0].startswith("failed: status 1 (")
    assert verdicts[1] == "not started: no libmelodia_ops.so, libmelodia_cuda.so"
    assert all(verdict.startswith("passed") for verdict in verdicts[2:])
    with tarfile.open(tmp_path / "built.tar.gz") as built:
        assert built.getnames() == [ENGINE.path, CUDA_ENGINE.path, FACTS]


def build_with(folder: Path, scan_rows: str, wish: str) -> subprocess.CompletedProcess[str]:
    """Build by compilers that make empty files, but for one source of nvcc, and a torch that is only a version."""
    if isinstance(toolchain.find_headers(), str) or isinstance(toolchain.find_toolchain(), str):
        pytest.skip("no headers or no ninja")
    make = 'while [ "$1" ]; do [ "$1" = -o ] && : > "$2"; shift; done'
    says = "echo 'Cuda compilation tools, release 13.0, V13.0.1'"
    cases = f"--version) {says};; --list*) echo compute_90;; *scan_rows.cu*) {scan_rows};; *) {make};;"
    for path, code in {"c++": make, "toolkit/bin/nvcc": f'case "$*" in {cases} esac'}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"#!/bin/sh\n{code}\n")
        (folder / path).chmod(0o755)
    fake = folder / "site" / "torch"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "version.py").write_text("__version__ = '2.11.0'\ncuda: Optional[str] = '13.0'\n")
    return setup(
        ["build"],
        folder,
        MELODIA_NATIVE=wish,
        MELODIA_CUDA=wish,
        CUDA_HOME=str(folder / "toolkit"),
        CXX=str(folder / "c++"),
        PYTHONPATH=os.pathsep.join([str(fake.parent), os.environ.get("PYTHONPATH", "")]),
        MELODIA_CUDA_ARCHITECTURES="90",
        MAX_JOBS="2",
    )


# When ninja knows that all else is made; setup.py is the parent of ninja, whose shell runs nvcc.
INTERRUPT = """
    for made in libmelodia_ops libmelodia_cuda_engine _engine; do
        until grep -q "/$made[^/]*[.]so" .ninja_log; do sleep 0.1; done
    done
    ninja=$(cut -d ' ' -f 4 /proc/$PPID/stat)
    kill -INT $(cut -d ' ' -f 4 /proc/$ninja/stat); sleep 60
"""


@pytest.mark.parametrize(
    ("scan_rows", "wish", "why"),
    [
        ("echo an error; exit 1", "1", "an error"),
        (INTERRUPT, "1", "the build was interrupted"),
        (INTERRUPT, "auto", "the build was interrupted"),
    ],
)
def test_a_source_that_does_not_compile_costs_its_own_library_only(
    scan_rows: str, wish: str, why: str, tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored
    try:
        done = build_with(tmp_path, scan_rows, wish)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode != 0
    asked = "MELODIA_CUDA=1 asks for the CUDA kernels, but they did not compile"
    assert (asked in done.stderr) == (wish == "1")
    assert "melodia: CUDA engine built" in done.stderr
    assert f"melodia: no CUDA kernels: the native library did not compile: {why}" in done.stderr
    made = {file.name.partition(".")[0] for file in tmp_path.glob("build/lib*/melodia/*/*.so")}
    assert made == {"libmelodia_ops", "_engine", "libmelodia_cuda_engine"}


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("65.5.0", "setuptools 65.5.0 is too old: the build needs 77 or newer"),
        ("80.9.0", "setuptools 80.9.0"),
    ],
)
def test_setuptools_is_named(
    version: str, says: str, tmp_path: Path, stand_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check.metadata, "version", lambda name: version)
    stand_ins["build"] = ""
    gpu_check.run(["build"], tmp_path, 600, "A GPU.")
    assert lines_of(tmp_path, "build")[0] == gpu_tools.NOTE + says


def test_a_part_leaves_no_image_of_its_memory(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    stand_ins["exchange"] = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[0])"
    gpu_check.run(["exchange"], tmp_path, 600, "A GPU.")
    assert lines_of(tmp_path, "exchange") == ["0"]


def test_parity_is_without_tf32() -> None:
    assert gpu_check.environment_of("parity-operators")["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] == "0"


def test_another_package_of_the_same_name_does_not_win(tmp_path: Path) -> None:
    """A folder without __init__.py would lose to it, wherever on the path it stands."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    script = str(REPOSITORY / "benchmarks" / "gpu_check.py")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, script, "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
