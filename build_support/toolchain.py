"""Where the tools of the native build are, or the sentence that says what is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OLDEST_TORCH = (2, 10)
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
TOOLKITS = (Path("/usr/local/cuda"),)  # where NVIDIA's installers put one that need not be on the PATH


class Toolchain(NamedTuple):
    """Where the tools of the native build are; without torch only the engine is built."""

    compiler: list[str]
    ninja: str
    torch: Path | None
    torch_version: str  # or why there is none


def find_toolchain() -> Toolchain | str:
    """The tools of the native build, or the sentence that says which one is missing."""
    if os.name == "nt":
        return "the native library is not built on Windows yet"
    name = os.environ.get("CXX", "")
    compiler = shlex.split(name) if name else [c for c in ("c++", "g++", "clang++") if shutil.which(c)][:1]
    if not compiler or not shutil.which(compiler[0]):
        return f"no C++ compiler was found ({name or 'c++, g++, clang++'}); install one or set CXX"
    ninja = shutil.which("ninja")
    if ninja is None and importlib.util.find_spec("ninja") is not None:
        from ninja import BIN_DIR

        ninja = shutil.which("ninja", path=BIN_DIR)
    if ninja is None:
        return "ninja was not found; `pip install ninja` first"
    return Toolchain(compiler, ninja, *find_torch())


def find_torch() -> tuple[Path | None, str]:
    """The folder and the version of torch, or None and the sentence that says why the operators are not built."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None, (
            "torch is not visible to the build; install torch first, then melodia with `--no-build-isolation` "
            "(an isolated build would compile against another torch than the one you run)"
        )
    torch = Path(next(iter(spec.submodule_search_locations)))
    found = re.search(r"__version__ = '((\d+)\.(\d+)[^']*)'", (torch / "version.py").read_text())
    if found is None or (int(found[2]), int(found[3])) < OLDEST_TORCH:
        received = found[1] if found else "unknown"
        return None, f"the native library needs torch >= 2.10 to build (received {received})"
    return torch, found[1]


def find_headers() -> list[str] | str:
    """The folders of pybind11's and Python's headers, or the sentence that says which are missing."""
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 was not found; `pip install pybind11` first"
    import pybind11

    paths = sysconfig.get_paths()
    folders = [pybind11.get_include(), *dict.fromkeys([paths["include"], paths["platinclude"]])]
    if not any((Path(folder) / "Python.h").exists() for folder in folders):
        return f"Python.h was not found in {paths['include']}; install Python's headers (python3-dev) first"
    return folders


def decide() -> Toolchain | str:
    """The tools to build with, or the reason for pure Python; fails where MELODIA_NATIVE=1 cannot be met."""
    wish = os.environ.get("MELODIA_NATIVE", "auto").strip().lower() or "auto"
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"MELODIA_NATIVE must be auto, 0 or 1 (received {wish!r})")
    if wish == "0":
        return "MELODIA_NATIVE=0 asked for pure Python"
    tools = find_toolchain()
    missing = tools if isinstance(tools, str) else tools.torch_version if tools.torch is None else None
    headers = find_headers()
    missing = missing or (headers if isinstance(headers, str) else None)
    if wish == "1" and missing is not None:
        raise SystemExit(f"MELODIA_NATIVE=1 asks for the native library, but {missing}")
    return tools


def must_build() -> bool:
    """True where a failing compiler must fail the installation."""
    return os.environ.get("MELODIA_NATIVE", "auto").strip() == "1"


class Nvcc(NamedTuple):
    """The CUDA compiler and what it makes code for."""

    path: str
    version: tuple[int, int]
    architectures: list[int]
    folders: list[Path]  # with include/ and lib/, where NVIDIA's packages spread over several


def find_nvcc() -> Nvcc | str:
    """The CUDA compiler, or the sentence that says why there is none."""
    packages = [Path(folder) / "nvidia" for folder in sys.path if (Path(folder) / "nvidia").is_dir()]
    folders = sorted(folder.parent for package in packages for folder in package.glob("*/include"))
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(home) / "bin" / "nvcc" for home in homes if home]
    places += [Path(found)] if not places and (found := shutil.which("nvcc")) else []
    places += [] if any(homes) else [folder / "bin" / "nvcc" for folder in (*folders, *TOOLKITS)]
    path = next((str(place) for place in places if os.access(place, os.X_OK)), None)
    if path is None:
        where = (
            f" in {places[0].parent}"
            if any(homes)
            else f" ($CUDA_HOME, PATH, NVIDIA's packages, {TOOLKITS[-1]})"
        )
        return f"nvcc was not found{where}; install the CUDA toolkit or set CUDA_HOME"
    done = subprocess.run([path, "--version"], text=True, capture_output=True)
    listed = subprocess.run([path, "--list-gpu-arch"], text=True, capture_output=True)
    release = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if done.returncode or listed.returncode or release is None:
        said = (done.stderr or listed.stderr or done.stdout).strip().splitlines()
        return f"{path} does not run: {said[-1] if said else 'it said nothing'}"
    known = {int(number) for number in re.findall(r"compute_(\d+)\b", listed.stdout)}
    wish = os.environ.get("MELODIA_CUDA_ARCHITECTURES", "").replace(",", ";").strip("; ")
    if wish and not re.fullmatch(r"\d+(;\d+)*", wish):
        return f"MELODIA_CUDA_ARCHITECTURES must be numbers such as 80;90 (received {wish!r})"
    wanted = [int(number) for number in wish.split(";")] if wish else list(ARCHITECTURES)
    chosen = [number for number in wanted if number in known]
    if not chosen or (wish and chosen != wanted):
        return f"{path} {release[1]}.{release[2]} knows none or not all of {wanted}; choose another nvcc"
    return Nvcc(
        path, (int(release[1]), int(release[2])), chosen, folders if Path(path).parents[1] in folders else []
    )


def decide_cuda(tools: Toolchain | str) -> Nvcc | str:
    """The CUDA compiler to build with, or why there are no CUDA kernels; fails where MELODIA_CUDA=1 cannot be met."""
    wish = os.environ.get("MELODIA_CUDA", "auto").strip().lower() or "auto"
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"MELODIA_CUDA must be auto, 0 or 1 (received {wish!r})")
    if wish == "0":
        return "MELODIA_CUDA=0 asked for none"
    if isinstance(tools, str) or tools.torch is None:
        missing: Nvcc | str = tools if isinstance(tools, str) else tools.torch_version
    elif wish == "auto" and not re.search(r"^cuda\b[^=]*= '", (tools.torch / "version.py").read_text(), re.M):
        return f"torch {tools.torch_version} has no CUDA; MELODIA_CUDA=1 builds the kernels all the same"
    else:
        missing = find_nvcc()
    if wish == "1" and isinstance(missing, str):
        raise SystemExit(f"MELODIA_CUDA=1 asks for the CUDA kernels, but {missing}")
    return missing
