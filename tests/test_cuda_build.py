"""The CUDA library: how the build decides, what it made, and what it says where nothing can run."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_emulation import CSRC, arguments
from test_build import setup
from torch.utils._pytree import tree_leaves

from build_support import ninja, toolchain
from melodia.info import collect
from melodia.kernels import cuda, native

BUILT = pytest.mark.skipif(cuda.build_facts().get("reason", "") is not None, reason=cuda.describe())

VERSION = "echo 'Cuda compilation tools, release 12.4, V12.4.131'"


def toolkit(folder: Path, nvcc: str) -> str:
    """A CUDA_HOME whose nvcc is that shell script."""
    path = folder / "toolkit" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{nvcc}\n")
    path.chmod(0o755)
    return str(path.parents[1])


def test_cuda_needs_the_native_build(tmp_path: Path) -> None:
    done = setup(["build"], tmp_path, MELODIA_NATIVE="0", MELODIA_CUDA="1")
    assert done.returncode != 0
    assert (
        "MELODIA_CUDA=1 asks for the CUDA kernels, but MELODIA_NATIVE=0 asked for pure Python" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_processors_of_a_kind_share_the_first_ones_ptx() -> None:
    tools = toolchain.Toolchain(["c++"], "ninja", None, "no torch")
    nvcc = toolchain.Nvcc("nvcc", (13, 0), [80, 86, 90, 120], [])
    made = re.findall(r"arch=compute_(\d+),code=(\w+)", "\n".join(ninja.nvcc_rules(tools, nvcc)))
    code = [("80", "sm_80"), ("80", "sm_86"), ("90", "sm_90"), ("90", "sm_120"), ("90", "compute_90")]
    assert made[:5] == code


def test_wrong_wish(tmp_path: Path) -> None:
    done = setup(["build"], tmp_path, MELODIA_NATIVE="0", MELODIA_CUDA="yes")
    assert "MELODIA_CUDA must be auto, 0 or 1 (received 'yes')" in done.stderr


@pytest.mark.parametrize(
    ("nvcc", "architectures", "sentence"),
    [
        (None, "", r"nvcc was not found in .*toolkit/bin; install the CUDA toolkit or set CUDA_HOME"),
        ("echo libcrt is missing >&2; exit 1", "", r"toolkit/bin/nvcc does not run: libcrt is missing"),
        (f"{VERSION}; echo compute_50", "", r"12\.4 knows none or not all of \[80, 86, 89, 90, 100, 120\]"),
        (f"{VERSION}; echo compute_80", "80;100", r"12\.4 knows none or not all of \[80, 100\]"),
        (f"{VERSION}; echo compute_80", "sm_80", r"must be numbers such as 80;90 \(received 'sm_80'\)"),
    ],
)
def test_wrong_nvcc_is_a_sentence(
    nvcc: str | None, architectures: str, sentence: str, tmp_path: Path
) -> None:
    if native.build_facts().get("compiler") is None:
        pytest.skip("no C++ compiler built the library here")
    home = toolkit(tmp_path, nvcc) if nvcc else str(tmp_path / "toolkit")
    done = setup(
        ["build"],
        tmp_path,
        MELODIA_NATIVE="1",
        MELODIA_CUDA="1",
        CUDA_HOME=home,
        CUDA_PATH="",
        MELODIA_CUDA_ARCHITECTURES=architectures,
    )
    assert done.returncode != 0
    assert re.search(f"MELODIA_CUDA=1 asks for the CUDA kernels, but .*{sentence}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_nvcc_is_found_where_installers_put_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After $CUDA_HOME, the PATH and NVIDIA's packages."""
    for name in ("CUDA_HOME", "CUDA_PATH", "MELODIA_CUDA_ARCHITECTURES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(toolchain, "TOOLKITS", (tmp_path / "toolkit",))
    missing = toolchain.find_nvcc()
    assert isinstance(missing, str)
    assert missing.startswith(f"nvcc was not found ($CUDA_HOME, PATH, NVIDIA's packages, {tmp_path}/toolkit)")
    monkeypatch.setattr(toolchain, "ARCHITECTURES", (80,))
    home = toolkit(tmp_path, f"{VERSION}; echo compute_80")
    assert toolchain.find_nvcc() == toolchain.Nvcc(f"{home}/bin/nvcc", (12, 4), [80], [])


def test_no_cuda_is_noted_with_the_reason(tmp_path: Path) -> None:
    done = setup(["build"], tmp_path, MELODIA_NATIVE="0", MELODIA_CUDA="0")
    assert done.returncode == 0, done.stderr
    (facts,) = tmp_path.glob("build/lib*/melodia/kernels/native_build.json")
    assert json.loads(facts.read_text())["cuda"] == {"reason": "MELODIA_CUDA=0 asked for none"}


@pytest.mark.parametrize(("wish", "succeeds"), [("auto", True), ("1", False)])
def test_kernels_that_do_not_compile_leave_the_rest(wish: str, succeeds: bool, tmp_path: Path) -> None:
    """By a compiler that makes empty files, an nvcc that makes none, and a torch that is only a version."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" ]; do [ "$1" = -o ] && : > "$2"; shift; done\n')
    compiler.chmod(0o755)
    fake = tmp_path / "site" / "torch"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "version.py").write_text("__version__ = '2.11.0'\ncuda: Optional[str] = '13.0'\n")
    home = toolkit(
        tmp_path,
        f"case $1 in --version) {VERSION};; --list*) echo compute_80;; *) echo an error of nvcc; exit 1;; esac",
    )
    if isinstance(toolchain.find_headers(), str):
        pytest.skip(str(toolchain.find_headers()))
    done = setup(
        ["build"],
        tmp_path,
        MELODIA_NATIVE="1",
        MELODIA_CUDA=wish,
        CUDA_HOME=home,
        CXX=str(compiler),
        PYTHONPATH=os.pathsep.join([str(fake.parent), os.environ.get("PYTHONPATH", "")]),
        MELODIA_CUDA_ARCHITECTURES="80",
    )
    assert (done.returncode == 0) == succeeds, done.stderr
    assert "an error of nvcc" in done.stderr
    if not succeeds:
        assert "MELODIA_CUDA=1 asks for the CUDA kernels, but they did not compile" in done.stderr
        return
    (facts,) = tmp_path.glob("build/lib*/melodia/kernels/native_build.json")
    noted = json.loads(facts.read_text())
    assert noted["reason"] is None
    assert noted["cuda"]["reason"] == "the native library did not compile: an error of nvcc"
    made = {file.name.partition(".")[0] for file in tmp_path.glob("build/lib*/melodia/*/*.so")}
    assert made == {"libmelodia_ops", "_engine"}


def test_info_says_what_there_is() -> None:
    info = collect()
    assert info.cuda_kernels == cuda.describe()
    assert f"CUDA kernels: {info.cuda_kernels}" in info.lines()


@pytest.mark.skipif(cuda.reason() is None, reason="CUDA kernels can run here")
def test_without_a_gpu_there_is_a_reason() -> None:
    assert cuda.unfit((torch.zeros(1),), ()) == cuda.reason()
    assert cuda.reason()


def test_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "reason", lambda: None)
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "libmelodia_cuda.so")
    library, reason = cuda._load.__wrapped__()
    assert library is None
    assert reason is not None
    assert "the CUDA kernels were not built" in reason
    cuda.LIBRARY.write_bytes(b"not a library")
    library, reason = cuda._load.__wrapped__()
    assert library is None
    assert reason is not None
    assert "the CUDA kernels do not load" in reason


@pytest.mark.parametrize("variable", ["MELODIA_CUDA_SCAN", "MELODIA_CUDA_EXCHANGE"])
def test_unknown_choice(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "quick")
    with pytest.raises(ValueError, match=rf"{variable} must be one of automatic, .* \(received 'quick'\)"):
        cuda._choice(variable)


def test_unknown_wavefront(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELODIA_CUDA_WAVEFRONT", "-3")
    with pytest.raises(ValueError, match=r"MELODIA_CUDA_WAVEFRONT must be a number of steps, .*'-3'"):
        cuda.wavefront_steps.__wrapped__()
    monkeypatch.setenv("MELODIA_CUDA_WAVEFRONT", "32")
    assert cuda.wavefront_steps.__wrapped__() == 32


HOT = {
    "scan_forward_kernel": {"float32", "tf32", "bfloat16", "float16"},
    "scan_backward_kernel": {"float32", "tf32", "bfloat16", "float16"},
    "hybrid_step_kernel": {"float32", "bfloat16", "float16"},
    "decode": {"float32", "bfloat16", "int8"},
}


@BUILT
@pytest.mark.parametrize("name", HOT)
def test_hot_kernels_keep_everything_in_registers(name: str) -> None:
    """No spills on any architecture, no stack but the decoder's, which has functions and the bounds of a mask.

    `pytest -rP` shows all.
    """
    rows = [row for row in cuda.build_facts()["kernels"] if row["kernel"] == name]
    wanted = set(itertools.product(cuda.build_facts()["architectures"], HOT[name]))
    assert {(row["architecture"], row["type"]) for row in rows} == wanted
    for row in rows:
        print(row)
        assert row["spills"] == 0, row
        assert row["stack"] <= (512 if name == "decode" else 0), row


def test_what_ptxas_says_of_kernels(tmp_path: Path) -> None:
    """With a number type in the name, or without one."""
    start = "_ZN7melodia4cuda41_GLOBAL__N__0d6ab75f_9_lookup_cu_921f2cee"
    kernels = {
        "13lookup_kernelIfEEvNS1_6LookupE": ("lookup_kernel", "float32"),
        "22lookup_backward_kernelINS0_4Bf16EEEvNS1_9LookupSumE": ("lookup_backward_kernel", "bfloat16"),
        "12gates_kernelINS0_4HalfELb1EEEvNS1_5GatesE": ("gates_kernel", "float16"),
        "20lookup_starts_kernelENS0_12LookupPlacesE": ("lookup_starts_kernel", ""),
    }
    says = "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\nptxas info    : Used 40 registers\n"
    text = "".join(
        f"ptxas info    : Compiling entry function '{start}{name}' for 'sm_90'\n{says}" for name in kernels
    )
    (tmp_path / "lookup.o.log").write_text(text)
    rows = ninja.kernel_resources(tmp_path)
    assert [(row["kernel"], row["type"]) for row in rows] == list(kernels.values())
    for row in rows:
        assert [row[key] for key in ("architecture", "registers", "stack", "spills")] == [90, 40, 8, 16]


@BUILT
def test_every_kernel_is_in_the_facts() -> None:
    """What ptxas said of each; a kernel whose name the build does not know would be missed."""
    text = "".join(file.read_text() for file in (CSRC / "cuda").glob("*") if file.suffix in (".cu", ".h"))
    names = re.findall(r"__launch_bounds__\([^)]*\)\s+(?:void\s+)?(\w+)\(", text)
    assert len(names) >= 8
    assert {row["kernel"] for row in cuda.build_facts()["kernels"]} == set(names)


@BUILT
def test_engine_is_built_too_and_says_why_it_cannot_run() -> None:
    """In a fresh process: the library loads without a GPU and names the obstacle."""
    code = "from melodia.engine import cuda; print(cuda.LIBRARY.exists(), cuda.reason())"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there, reason = done.stdout.strip().split(" ", 1)
    assert there == "True"
    assert reason != "None"
    assert "was not built" not in reason
    assert "does not load" not in reason


@BUILT
def test_library_loads_without_a_gpu() -> None:
    """In a fresh process: the operators are there for CUDA tensors, and what is missing is a sentence."""
    code = (
        "import torch; from melodia.kernels import cuda; print(cuda.describe());"
        "print(torch._C._dispatch_has_kernel_for_dispatch_key('melodia::pair_scan_backward', 'CUDA'))"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the CUDA kernels are built, but" in done.stdout
    assert done.stdout.splitlines()[-1] == "True"


@pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
@pytest.mark.parametrize("name", [name for name in cuda._CAST if not name.endswith("step")])
def test_autocast_converts_the_operands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs under CUDA's autocast, on CPU tensors: float32 operands become bfloat16, states stay."""
    operator = getattr(torch.ops.melodia, name)
    if name == "lookup":
        given: list[object] = [torch.zeros(2, 3, 1, dtype=torch.int64), torch.randn(4, 5)]
    elif name == "wave_scan":
        given = [*([x] for x in arguments("lstm_scan", 3, 2, 8)), [], 2]
    else:
        given = [*arguments(name, 3, 2, 8), None, 2]
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)

    def rounded(x: object) -> object:
        return [y.bfloat16() for y in x] if isinstance(x, list) else x.bfloat16()  # type: ignore[attr-defined]

    got = tree_leaves(cuda._autocast(name)(*given))
    want = tree_leaves(operator(*(rounded(x) if k in cuda._CAST[name] else x for k, x in enumerate(given))))
    assert got[0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
