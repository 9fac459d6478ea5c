"""The build, the dispatcher and what `melodia info` knows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from melodia import kernels
from melodia.errors import BackendError, ConfigError
from melodia.info import collect
from melodia.kernels import native

REPOSITORY = Path(__file__).resolve().parent.parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatcher as it is where the native library was not built."""
    monkeypatch.setattr(native, "_load", lambda: (None, "the native library was not built: no compiler here"))


def call() -> torch.Tensor:
    return kernels.gru_step(torch.zeros(1, 3), torch.ones(1, 1), torch.zeros(3, 1), torch.zeros(3))


@pytest.mark.usefixtures("without_library")
def test_auto_falls_back_and_says_why() -> None:
    assert call().item() == 0.5
    report = kernels.backend_report()
    assert (report.chosen, report.runs, report.instruction_set) == ("auto", "reference", None)
    assert "no compiler here" in report.why


@pytest.mark.usefixtures("without_library")
def test_forced_native_raises_with_the_reason() -> None:
    with pytest.raises(BackendError, match="no compiler here"):
        kernels.set_backend("native")
    assert kernels.backend_report().chosen == "auto"


@pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
def test_native_is_chosen_and_forced_native_refuses_what_it_cannot() -> None:
    assert kernels.backend_report().runs == "native"
    arguments = [torch.zeros(1, 3), torch.ones(1, 1), torch.zeros(3, 1), torch.zeros(3)]
    doubles = [x.double() for x in arguments]
    assert kernels.gru_step(*doubles).dtype == torch.float64  # auto: the reference takes it
    with kernels.use_backend("native"), pytest.raises(BackendError, match=r"float32 only .*float64"):
        kernels.gru_step(*doubles)


def test_use_backend_restores_also_after_an_error() -> None:
    def fail() -> None:
        with kernels.use_backend("reference"):
            assert kernels.backend_report().runs == "reference"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert kernels.backend_report().chosen == "auto"


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="auto, reference, native"):
        kernels.set_backend("gpu")


def test_environment_chooses_backend_and_instruction_set() -> None:
    code = "from melodia import kernels; print(kernels.backend_report())"
    done = python(code, MELODIA_BACKEND="reference", MELODIA_CPU="portable")
    assert "runs='reference'" in done.stdout, done.stderr
    if native.reason() is None:
        assert "instruction_set='portable'" in done.stdout


def test_environment_with_an_unknown_backend() -> None:
    wrong = python("import melodia.kernels", MELODIA_BACKEND="cuda")
    assert wrong.returncode != 0
    assert "MELODIA_BACKEND must be one of auto, reference, native (received 'cuda')" in wrong.stderr


def test_disabled_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELODIA_DISABLE_EXT", "1")
    assert native._load.__wrapped__() == (None, "MELODIA_DISABLE_EXT is set")


def test_missing_and_broken_libraries_are_reasons_not_crashes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "libmelodia_ops.so")
    library, reason = native._load.__wrapped__()
    assert library is None
    assert "was not built" in reason
    native.LIBRARY.write_bytes(b"not a library")
    library, reason = native._load.__wrapped__()
    assert library is None
    assert "does not load" in reason


@pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not native.set_instruction_set("mmx")
    monkeypatch.setenv("MELODIA_CPU", "mmx")
    assert native._load.__wrapped__() == (None, "MELODIA_CPU=mmx is unknown, or this processor cannot run it")


@pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
def test_threads_that_begin_together_all_have_the_library() -> None:
    code = """
import threading
from melodia.kernels import native

reasons, all_there = [], threading.Barrier(8)
def ask():
    all_there.wait()
    reasons.append(native.reason())
threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(set(reasons))
"""
    done = python(code)
    assert done.stdout == "{None}\n", done.stdout + done.stderr


def test_info() -> None:
    info = collect()
    assert info.packages["torch"] == torch.__version__
    assert info.backend_runs == kernels.backend_report().runs
    assert info.threads == torch.get_num_threads()
    assert json.loads(json.dumps(info.to_dict()))["python"].startswith("3.")


@pytest.mark.skipif(native.reason() is not None or not shutil.which("nm"), reason="needs the library and nm")
def test_library_uses_no_python_and_nothing_newer_than_torch_2_10() -> None:
    listing = subprocess.run(["nm", "-D", native.LIBRARY], capture_output=True, text=True, check=True).stdout
    wanted = [line.split()[-1].split("@")[0] for line in listing.splitlines() if " U " in line]
    assert not [name for name in wanted if name.startswith(("Py", "_Py"))]
    torch_names = {name for name in wanted if name.startswith(("aoti_", "torch_"))}
    assert torch_names
    assert not [name for name in wanted if "c10" in name or "at10" in name], (
        "C++ symbols of torch are not stable"
    )


def setup(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py on a copy of what a source distribution holds."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("csrc", "build_support"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        REPOSITORY / "melodia", folder / "melodia", ignore=shutil.ignore_patterns("*.so", "*build.json")
    )
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"MELODIA_NATIVE": "0"}, "MELODIA_NATIVE=0 asked for pure Python"),
        ({"CXX": "no-such-compiler"}, r"no C++ compiler was found (no-such-compiler)"),
        ({"CXX": "false"}, "the native library did not compile"),
    ],
)
def test_build_without_a_compiler(environment: dict[str, str], sentence: str, tmp_path: Path) -> None:
    done = setup(["build"], tmp_path, **{"MELODIA_NATIVE": "auto", **environment})
    assert done.returncode == 0, done.stderr
    assert f"melodia: installing pure Python: {sentence}" in done.stderr
    (facts,) = tmp_path.glob("build/lib*/melodia/kernels/native_build.json")
    assert json.loads(facts.read_text())["reason"].startswith(sentence)
    assert not list(tmp_path.glob("build/lib*/melodia/kernels/*.so"))


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_required_build_fails_without_a_compiler(compiler: str, tmp_path: Path) -> None:
    done = setup(["build"], tmp_path, MELODIA_NATIVE="1", CXX=compiler)
    assert done.returncode != 0
    assert "MELODIA_NATIVE=1 asks for the native library" in done.stderr


@pytest.mark.parametrize("wish", ["yes", "2"])
def test_wrong_build_wish(wish: str, tmp_path: Path) -> None:
    done = setup(["build"], tmp_path, MELODIA_NATIVE=wish)
    assert done.returncode != 0
    assert "MELODIA_NATIVE must be auto, 0 or 1" in done.stderr


def test_pure_wheel_is_for_every_platform(tmp_path: Path) -> None:
    done = setup(["bdist_wheel"], tmp_path, MELODIA_NATIVE="0")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_source_distribution_builds_as_pip_does_it(tmp_path: Path) -> None:
    """PEP 517: no folder of ours is on the path when setup.py runs; all it needs is in the archive."""
    code = "from setuptools import build_meta as b; import sys; print(b.{}(sys.argv[1]))"
    environment = {**os.environ, "MELODIA_NATIVE": "0", "PYTHONSAFEPATH": "1"}

    def hook(name: str, folder: Path) -> str:
        command = [sys.executable, "-c", code.format(name), str(tmp_path)]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    copy = tmp_path / "tree"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if names.returncode != 0:
        pytest.skip("not a clone")
    for name in names.stdout.splitlines():
        if (REPOSITORY / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, copy / name)
    shutil.unpack_archive(tmp_path / hook("build_sdist", copy), tmp_path)
    (unpacked,) = tmp_path.glob("melodia-*/")
    for name in (".clang-format", ".ci/run"):  # what `make lint` and CONTRIBUTING.md need
        assert (unpacked / name).exists(), name
    for page in unpacked.glob("*.md"):
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
        assert [link for link in links if not (unpacked / link).exists()] == [], page.name
    assert hook("build_wheel", unpacked).endswith("-py3-none-any.whl")


@pytest.mark.parametrize("missing", ["pybind11", "Python.h"])
def test_missing_headers_are_a_reason(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from build_support import toolchain

    if missing == "pybind11":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        says = "pybind11 was not found; `pip install pybind11` first"
    else:
        pytest.importorskip("pybind11")
        nowhere = {"include": str(tmp_path), "platinclude": str(tmp_path)}
        monkeypatch.setattr("sysconfig.get_paths", lambda: nowhere)
        says = f"Python.h was not found in {tmp_path}; install Python's headers (python3-dev) first"
    assert toolchain.find_headers() == says
    monkeypatch.setattr(toolchain, "find_toolchain", lambda: toolchain.Toolchain([], "", tmp_path, "2.10"))
    monkeypatch.setenv("MELODIA_NATIVE", "1")
    with pytest.raises(SystemExit, match="MELODIA_NATIVE=1 asks for the native library, but"):
        toolchain.decide()


@pytest.mark.slow
def test_native_wheel_is_for_this_platform_and_this_python(tmp_path: Path) -> None:
    if native.build_facts().get("compiler") is None:
        pytest.skip("no C++ compiler built the library here")
    done = setup(["bdist_wheel"], tmp_path, MELODIA_NATIVE="1")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{python}-{python}-" in wheel.name  # the engine is a module of this Python
    assert not wheel.name.endswith("-any.whl")
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True
    ).stdout
    assert "melodia/kernels/libmelodia_ops.so" in listing
    assert f"melodia/engine/_engine{sysconfig.get_config_var('EXT_SUFFIX')}" in listing
