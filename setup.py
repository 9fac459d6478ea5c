"""Builds melodia: Python, and two native libraries where they can be built.

The operators go through torch's stable ABI, the engine needs no torch, and neither uses the Python ABI, so one
binary serves every Python and every torch from 2.10 on. The environment decides, never the presence of a GPU:

    MELODIA_NATIVE=auto  (default) build when compiler, ninja and (operators) torch are there; else say so
    MELODIA_NATIVE=1     build, or fail with the reason
    MELODIA_NATIVE=0     pure Python
    MELODIA_CUDA=auto    (default) build the CUDA kernels when nvcc and a torch with CUDA are there
    MELODIA_CUDA=1       build them, also for a torch without CUDA, or fail with the reason
    MELODIA_CUDA=0       no CUDA kernels
    MELODIA_CUDA_ARCHITECTURES   "80;90" (default: 80, 86, 89, 90, 100, 120, as far as nvcc knows them)
    CUDA_HOME            where nvcc is (default: on the PATH, then in NVIDIA's packages beside torch)
    CXX                  the C++ compiler (default: the first of c++, g++, clang++)
    MAX_JOBS             how many compilers run at once

Everything declarative stands in pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "melodia/kernels/libmelodia_ops.so"  # the name that melodia/kernels/native.py loads
ENGINE = "melodia/engine/libmelodia_engine.so"  # the name that melodia/engine/native.py loads
CUDA = "melodia/kernels/libmelodia_cuda.so"  # the name that melodia/kernels/cuda.py loads
FACTS = "melodia/kernels/native_build.json"  # what was built and how, or why not
OLDEST_TORCH = (2, 10)
TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10: no newer symbol is used

# Every instruction set is an object of its own; only code behind the run-time check is compiled with its flags.
SOURCES: dict[str, list[str]] = {
    "csrc/ops.cpp": [],
    "csrc/cpu/step_ops.cpp": [],
    "csrc/cpu/scan_ops.cpp": [],
    "csrc/cpu/hybrid_ops.cpp": [],
    "csrc/cpu/dispatch.cpp": [],
    "csrc/cpu/kernels_portable.cpp": [],
}
X86_SOURCES: dict[str, list[str]] = {
    "csrc/cpu/kernels_avx2.cpp": ["-mavx2", "-mfma"],
    "csrc/cpu/kernels_avx512.cpp": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
}
X86_SOURCES["csrc/cpu/kernels_avx512bf16.cpp"] = [*X86_SOURCES["csrc/cpu/kernels_avx512.cpp"], "-mavx512bf16"]
ENGINE_SOURCES: dict[str, list[str]] = {
    "csrc/engine/api.cpp": [],
    "csrc/engine/blocks.cpp": [],
    "csrc/engine/dispatch.cpp": [],
    "csrc/engine/engine.cpp": [],
    "csrc/engine/kernels_portable.cpp": [],
    "csrc/engine/loop.cpp": [],
    "csrc/engine/loop_api.cpp": [],
    "csrc/engine/plan.cpp": [],
    "csrc/engine/rules.cpp": [],
    "csrc/engine/team.cpp": [],
}
ENGINE_X86_SOURCES: dict[str, list[str]] = {
    "csrc/engine/kernels_avx2.cpp": ["-mavx2", "-mfma"],
    "csrc/engine/kernels_avx512.cpp": [*X86_SOURCES["csrc/cpu/kernels_avx512.cpp"], "-mavx512vnni"],
    "csrc/engine/kernels_avx512bf16.cpp": [
        *X86_SOURCES["csrc/cpu/kernels_avx512bf16.cpp"],
        "-mavx512vnni",
    ],
}
ENGINE_ARM_SOURCES: dict[str, list[str]] = {
    "csrc/engine/kernels_neon.cpp": [],
    "csrc/engine/kernels_neondot.cpp": ["-march=armv8.2-a+dotprod"],
}
# The flag says whether there are kernels inside; what has none is compiled for one architecture.
CUDA_SOURCES: dict[str, bool] = {
    "csrc/cuda/scan_forward.cu": True,
    "csrc/cuda/scan_backward.cu": True,
    "csrc/cuda/scan_rows.cu": True,
    "csrc/cuda/lookup.cu": True,
    "csrc/cuda/gates.cu": True,
    "csrc/cuda/scan.cu": False,
}
CUDA_HOST_SOURCES = ("csrc/cuda/ops_cuda.cpp",)
ARCHITECTURES = (80, 86, 89, 90, 100, 120)


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
    """torch's folder and version, or None and the sentence that says why the operators are not built."""
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


def decide() -> Toolchain | str:
    """The tools to build with, or the reason for pure Python; fails where MELODIA_NATIVE=1 cannot be met."""
    wish = os.environ.get("MELODIA_NATIVE", "auto").strip().lower() or "auto"
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"MELODIA_NATIVE must be auto, 0 or 1 (received {wish!r})")
    if wish == "0":
        return "MELODIA_NATIVE=0 asked for pure Python"
    tools = find_toolchain()
    missing = tools if isinstance(tools, str) else tools.torch_version if tools.torch is None else None
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
    places += [] if any(homes) else [folder / "bin" / "nvcc" for folder in folders]
    path = next((str(place) for place in places if os.access(place, os.X_OK)), None)
    if path is None:
        where = f" in {places[0].parent}" if any(homes) else " ($CUDA_HOME, PATH, NVIDIA's packages)"
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


def cuda_lines(tools: Toolchain, nvcc: Nvcc, library: Path) -> list[str]:
    """The part of build.ninja that makes the CUDA library: kernels with nvcc, the operators with the C++ compiler."""
    assert tools.torch is not None
    flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v", "-ccbin"]
    flags += [
        tools.compiler[0],
        f"-I{ROOT / 'csrc'}",
        *(f"-I{folder / 'include'}" for folder in nvcc.folders),
    ]
    code = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in nvcc.architectures]
    code += [f"-gencode=arch=compute_{nvcc.architectures[-1]},code=compute_{nvcc.architectures[-1]}"]
    # nvcc links, because it knows where its static run-time library is; a driver is not needed to load the result.
    link = ["-shared", "-cudart", "static", "-ccbin", tools.compiler[0], "-Xlinker", "-z,defs"]
    link += [f"-L{folder / name}" for folder in nvcc.folders for name in ("lib64", "lib")]
    link += [f"-L{tools.torch / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"]
    lines = [
        f"nvcc = {quoted([nvcc.path])}",
        f"nvccflags = {quoted(flags)}",
        "rule nvcc",  # what ptxas says of registers is kept beside the object
        "  command = $nvcc -MD -MF $out.d $nvccflags $extra -c $in -o $out > $out.log 2>&1 || (cat $out.log; false)",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc_link",
        "  command = $nvcc $in -o $out $extra",
    ]
    objects = []
    for source, kernels in CUDA_SOURCES.items():
        objects.append(path_of(Path(source).with_suffix(".o").as_posix().replace("/", "_")))
        lines += [f"build {objects[-1]}: nvcc {path_of(ROOT / source)}"]
        lines += [f"  extra = {quoted(code if kernels else code[:1])}"]
    torch_flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-isystem{tools.torch / 'include'}"]
    for source in CUDA_HOST_SOURCES:
        objects.append(path_of(Path(source).with_suffix(".o").as_posix().replace("/", "_")))
        lines += [
            f"build {objects[-1]}: compile {path_of(ROOT / source)}",
            f"  extra = {quoted(torch_flags)}",
        ]
    lines += [f"build {path_of(library)}: nvcc_link {' '.join(objects)}", f"  extra = {quoted(link)}"]
    return [*lines, f"default {path_of(library)}"]


def kernel_resources(work: Path) -> list[dict[str, str | int]]:
    """What ptxas said of every kernel and architecture: registers, bytes of stack and of spills."""
    found = []
    for log in sorted(work.glob("*.o.log")):
        text = log.read_text()
        for part in text.split("Compiling entry function '")[1:]:
            head = re.match(r"(\S+)' for 'sm_(\d+)'", part)
            memory = re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
            )
            registers = re.search(r"Used (\d+) registers", part)
            if not (head and memory and registers):
                continue
            name = re.search(r"\d((?:scan|lookup|gates)[a-z_]*)I(\w+?)E", head[1])
            found.append(
                {
                    "kernel": name[1] if name else head[1],
                    "type": "float32"
                    if name and name[2].startswith("f")
                    else "bfloat16"
                    if name and "Bf16" in name[0] + head[1]
                    else "float16",
                    "architecture": int(head[2]),
                    "registers": int(registers[1]),
                    "stack": int(memory[1]),
                    "spills": int(memory[2]) + int(memory[3]),
                }
            )
    return found


def quoted(words: list[str]) -> str:
    """Words for a command of build.ninja."""
    return " ".join(shlex.quote(word).replace("$", "$$") for word in words)


def path_of(name: Path | str) -> str:
    """A path for a build line of build.ninja."""
    return re.sub(r"([$ :])", r"$\1", str(name))


def ninja_file(tools: Toolchain, libraries: dict[Path, dict[str, list[str]]]) -> str:
    """The text of build.ninja: an object per source, a shared library per name."""
    flags = [
        "-std=c++17",
        "-O3",
        "-fPIC",
        "-fvisibility=hidden",
        "-fvisibility-inlines-hidden",
        "-Wall",
        "-Wextra",
    ]
    flags += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # gcc 12 warns about its own AVX-512 header
    flags += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-pthread"]
    flags += [f"-I{ROOT / 'csrc'}", *shlex.split(os.environ.get("CXXFLAGS", ""))]
    link = ["-pthread", *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,-z,defs"])]
    torch_flags, torch_link = [], []
    if tools.torch is not None:
        torch_flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-isystem{tools.torch / 'include'}"]
        torch_link = [f"-L{tools.torch / 'lib'}", "-ltorch_cpu"]
        if sys.platform != "darwin":
            torch_link = ["-Wl,--as-needed", *torch_link, "-lc10"]

    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {quoted(tools.compiler)}",
        f"cxxflags = {quoted(flags)}",
        f"ldflags = {quoted(link)}",
        "rule compile",
        "  command = $cxx -MMD -MF $out.d $cxxflags $extra -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = $cxx -shared $in -o $out $ldflags $extra",
    ]
    for library, sources in libraries.items():
        with_torch = library.name == Path(LIBRARY).name
        objects = []
        for source, extra in sources.items():
            objects.append(path_of(Path(source).with_suffix(".o").as_posix().replace("/", "_")))
            words = quoted([*extra, *(torch_flags if with_torch else [])])
            lines += [f"build {objects[-1]}: compile {path_of(ROOT / source)}", f"  extra = {words}"]
        lines += [f"build {path_of(library)}: link {' '.join(objects)}"]
        lines += [f"  extra = {quoted(torch_link if with_torch else [])}", f"default {path_of(library)}"]
    return "\n".join([*lines, ""])


def replace_file(source: Path, target: Path) -> None:
    """Put `source` at `target` in one move, so that a process that has the old file mapped keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    temporary.chmod(0o755 if target.suffix == ".so" else 0o644)
    temporary.replace(target)


class BuildNative(build_ext):
    """Compiles csrc/ with ninja, or leaves a note why it did not."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's name carries no Python ABI tag, because it uses none."""
        return LIBRARY

    def run(self) -> None:
        """Build into the build folder, then in place where setuptools asks for it (editable installs)."""
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        tools = decide()
        machine = platform.machine().lower()
        x86, arm = machine in ("x86_64", "amd64"), machine in ("aarch64", "arm64")
        libraries = {
            LIBRARY: SOURCES | (X86_SOURCES if x86 else {}),
            ENGINE: ENGINE_SOURCES | (ENGINE_X86_SOURCES if x86 else ENGINE_ARM_SOURCES if arm else {}),
        }
        nvcc = decide_cuda(tools)
        reasons = dict.fromkeys(libraries, tools if isinstance(tools, str) else None)
        reasons[CUDA] = nvcc if isinstance(nvcc, str) else None
        if not isinstance(tools, str):
            if tools.torch is None:
                reasons[LIBRARY] = tools.torch_version
            wanted = {work / Path(name).name: libraries[name] for name in libraries if reasons[name] is None}
            text = ninja_file(tools, wanted)
            if isinstance(nvcc, Nvcc):
                text += "\n".join([*cuda_lines(tools, nvcc, work / Path(CUDA).name), ""])
            (work / "build.ninja").write_text(text)
            for name, reason in reasons.items():
                if reason is None:
                    reasons[name] = self.compile(tools, work, Path(name).name)
        facts = {
            "reason": reasons[LIBRARY],
            "engine_reason": reasons[ENGINE],
            "platform": platform.platform(),
        }
        if not isinstance(tools, str):
            facts |= {"compiler": self.compiler_version(tools)}
            facts |= {"torch": None if tools.torch is None else tools.torch_version}
        facts["cuda"] = {"reason": reasons[CUDA]}
        if isinstance(nvcc, Nvcc):
            facts["cuda"] |= {"nvcc": ".".join(map(str, nvcc.version)), "architectures": nvcc.architectures}
            facts["cuda"] |= {"kernels": kernel_resources(work)}
        note = work / Path(FACTS).name
        note.write_text(json.dumps(facts, indent=1) + "\n")
        place = ROOT if self.inplace or self.editable_mode else Path(self.build_lib)
        for name, reason in reasons.items():
            if reason is None:
                replace_file(work / Path(name).name, place / name)
            elif name == CUDA:
                (place / name).unlink(missing_ok=True)  # one that knows other schemas must not be loaded
        replace_file(note, place / FACTS)
        if all(reasons.values()):
            self.say(f"installing pure Python: {reasons[LIBRARY]}")
        for name, what in ((LIBRARY, "native library"), (ENGINE, "engine"), (CUDA, "CUDA kernels")):
            if not all(reasons.values()):
                self.say(f"no {what}: {reasons[name]}" if reasons[name] else f"{what} built")

    def compile(self, tools: Toolchain, work: Path, library: str) -> str | None:
        """Run ninja for one library; None, or the reason why there is none."""
        command = [tools.ninja, "-C", str(work), str(work / library)]
        if os.environ.get("MAX_JOBS"):
            command += ["-j", os.environ["MAX_JOBS"]]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        sys.stderr.write(done.stdout)
        if done.returncode == 0:
            return None
        if library == Path(CUDA).name:
            if os.environ.get("MELODIA_CUDA", "auto").strip() == "1":
                raise SystemExit(
                    "MELODIA_CUDA=1 asks for the CUDA kernels, but they did not compile (output above)"
                )
        elif must_build():
            raise SystemExit(
                "MELODIA_NATIVE=1 asks for the native library, but it did not compile (output above)"
            )
        errors = [line for line in done.stdout.splitlines() if "error" in line.lower()]
        return f"the native library did not compile: {errors[0].strip() if errors else 'ninja failed'}"

    @staticmethod
    def compiler_version(tools: Toolchain) -> str:
        """The compiler's own first line."""
        lines = subprocess.run(
            [*tools.compiler, "--version"], text=True, capture_output=True
        ).stdout.splitlines()
        return lines[0] if lines else " ".join(tools.compiler)

    @staticmethod
    def say(sentence: str) -> None:
        """A line that a user sees also where pip hides the build's output behind -v."""
        print(f"melodia: {sentence}", file=sys.stderr, flush=True)

    def get_outputs(self) -> list[str]:
        """What the command leaves behind."""
        return [
            str(Path(self.build_lib) / name)
            for name in (LIBRARY, ENGINE, CUDA, FACTS)
            if (Path(self.build_lib) / name).exists()
        ]

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing: `run` puts the files in place itself."""
        return {}


class Wheel(bdist_wheel):
    """A wheel of pure Python, or one per platform; never one per Python version."""

    def finalize_options(self) -> None:
        """Decide whether the wheel is bound to this platform."""
        super().finalize_options()
        self.root_is_pure = isinstance(decide(), str)

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-<platform>: the native library has no Python ABI."""
        return ("py3", "none", "any" if self.root_is_pure else super().get_tag()[2])


setup(
    ext_modules=[
        Extension(
            "melodia.kernels.libmelodia_ops",
            sources=[*SOURCES, *X86_SOURCES, *ENGINE_SOURCES, *ENGINE_X86_SOURCES, *ENGINE_ARM_SOURCES],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
