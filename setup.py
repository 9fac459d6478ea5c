"""Builds melodia: Python, and two native libraries where they can be built.

The operators go through torch's stable ABI and use no Python ABI, so one binary serves every Python and every torch
from 2.10 on. The engine needs no torch; it is a pybind11 module of the Python that builds it. The lists of sources, the
search for tools and the text for ninja stand in build_support/. The environment decides, never the presence of a GPU:

    MELODIA_NATIVE=auto  (default) build when compiler, ninja, (operators) torch and (engine) pybind11 are there
    MELODIA_NATIVE=1     build, or fail with the reason
    MELODIA_NATIVE=0     pure Python
    MELODIA_CUDA=auto    (default) build the CUDA kernels when nvcc and a torch with CUDA are there
    MELODIA_CUDA=1       build them, also for a torch without CUDA, or fail with the reason
    MELODIA_CUDA=0       no CUDA kernels
    MELODIA_CUDA_ARCHITECTURES   "80;90" (default: 80, 86, 89, 90, 100, 120, as far as nvcc knows them)
    CUDA_HOME            where nvcc is (default: on the PATH, in NVIDIA's packages beside torch, in /usr/local/cuda)
    CXX                  the C++ compiler (default: the first of c++, g++, clang++)
    MAX_JOBS             how many compilers run at once

Everything declarative stands in pyproject.toml.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # pip runs this file with another first folder

from build_support.ninja import kernel_resources, ninja_file  # noqa: E402
from build_support.sources import ALL_SOURCES, CUDA, ENGINE, FACTS, LIBRARIES, OPERATORS, Library  # noqa: E402
from build_support.toolchain import Nvcc, Toolchain, decide, decide_cuda, find_headers, must_build  # noqa: E402


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
        return OPERATORS.path

    def run(self) -> None:
        """Build into the build folder, then in place where setuptools asks for it (editable installs)."""
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        tools = decide()
        nvcc = decide_cuda(tools)
        reasons = {library: self.obstacle(library, tools, nvcc) for library in LIBRARIES}
        wanted = [library for library in LIBRARIES if reasons[library] is None]
        interrupted = False
        if not isinstance(tools, str) and wanted:
            on_gpu = [library for library in wanted if library.cuda]
            on_cpu = [library for library in wanted if not library.cuda]
            # What takes longest begins first.
            files = {work / Path(library.path).name: library for library in (*on_gpu, *on_cpu)}
            (work / "build.ninja").write_text(
                ninja_file(tools, None if isinstance(nvcc, str) else nvcc, files)
            )
            try:  # all side by side; where that fails, one by one says which
                self.ninja(tools, work, wanted)
            except KeyboardInterrupt:  # as where a build has so much time and no more
                interrupted = True
                reasons |= {library: self.unmade(tools, work, library) for library in wanted}
            else:
                reasons |= {library: self.compile(tools, work, library) for library in wanted}
        note = work / Path(FACTS).name
        note.write_text(json.dumps(self.facts(tools, nvcc, reasons, work), indent=1) + "\n")
        place = ROOT if self.inplace or self.editable_mode else Path(self.build_lib)
        for library, reason in reasons.items():
            if reason is None:
                replace_file(work / Path(library.path).name, place / library.path)
            elif library.cuda:
                (place / library.path).unlink(
                    missing_ok=True
                )  # one that knows other schemas must not be loaded
        replace_file(note, place / FACTS)
        if all(reasons.values()):
            self.say(f"installing pure Python: {reasons[OPERATORS]}")
        else:
            for library, reason in reasons.items():
                self.say(f"no {library.what}: {reason}" if reason else f"{library.what} built")
        self.insist([library for library in wanted if reasons[library]])
        if interrupted:
            raise KeyboardInterrupt

    @staticmethod
    def obstacle(library: Library, tools: Toolchain | str, nvcc: Nvcc | str) -> str | None:
        """Why a library is not built; None if it is."""
        if library.cuda and isinstance(nvcc, str):
            return nvcc
        if isinstance(tools, str):
            return tools
        headers = find_headers() if library.python else []
        if isinstance(headers, str):
            return headers
        return tools.torch_version if library.torch and tools.torch is None else None

    def facts(
        self, tools: Toolchain | str, nvcc: Nvcc | str, reasons: dict[Library, str | None], work: Path
    ) -> dict[str, object]:
        """What the package says of its build."""
        facts: dict[str, object] = {
            "reason": reasons[OPERATORS],
            "engine_reason": reasons[ENGINE],
            "platform": platform.platform(),
        }
        if not isinstance(tools, str):
            facts |= {"compiler": self.compiler_version(tools)}
            facts |= {"torch": None if tools.torch is None else tools.torch_version}
        cuda: dict[str, object] = {"reason": reasons[CUDA]}
        if isinstance(nvcc, Nvcc):
            cuda |= {"nvcc": ".".join(map(str, nvcc.version)), "architectures": nvcc.architectures}
            cuda |= {"kernels": kernel_resources(work)}
        return facts | {"cuda": cuda}

    @staticmethod
    def ninja(
        tools: Toolchain, work: Path, libraries: list[Library], *options: str
    ) -> tuple[bool, list[str]]:
        """Run ninja for libraries: whether it went well, and what it said, which is shown as it comes.

        What does not compile ends none of the others.
        """
        targets = [str(work / Path(library.path).name) for library in libraries]
        command = [tools.ninja, "-C", str(work), "-k", "0", *options, *targets]
        if os.environ.get("MAX_JOBS"):
            command += ["-j", os.environ["MAX_JOBS"]]
        said = []
        with subprocess.Popen(
            command, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                for line in process.stdout or ():
                    sys.stderr.write(line)
                    sys.stderr.flush()
                    said.append(line)
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
        return process.returncode == 0, said

    def compile(self, tools: Toolchain, work: Path, library: Library) -> str | None:
        """Run ninja for a library; None, or the reason why there is none."""
        well, said = self.ninja(tools, work, [library])
        if well:
            return None
        errors = [line for line in said if "error" in line.lower()]
        return f"the native library did not compile: {errors[0].strip() if errors else 'ninja failed'}"

    def unmade(self, tools: Toolchain, work: Path, library: Library) -> str | None:
        """Why a library is not there behind a build that was interrupted; None if it is."""
        _, said = self.ninja(tools, work, [library], "-n")
        made = any("no work to do" in line for line in said)
        return None if made else "the native library did not compile: the build was interrupted"

    @staticmethod
    def insist(failed: list[Library]) -> None:
        """Fail where the environment asks for what did not compile; what did is in its place by now."""
        if any(not library.cuda for library in failed) and must_build():
            raise SystemExit(
                "MELODIA_NATIVE=1 asks for the native library, but it did not compile (output above)"
            )
        if any(library.cuda for library in failed) and os.environ.get("MELODIA_CUDA", "auto").strip() == "1":
            raise SystemExit(
                "MELODIA_CUDA=1 asks for the CUDA kernels, but they did not compile (output above)"
            )

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
            for name in (*(library.path for library in LIBRARIES), FACTS)
            if (Path(self.build_lib) / name).exists()
        ]

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing: `run` puts the files in place itself."""
        return {}


class Wheel(bdist_wheel):
    """A wheel of pure Python, or one for a platform; and for one Python where the engine is in it."""

    def finalize_options(self) -> None:
        """Decide whether the wheel is bound to this platform."""
        super().finalize_options()
        self.root_is_pure = isinstance(decide(), str)

    def get_tag(self) -> tuple[str, str, str]:
        """By what was built: only the engine uses the ABI of this Python."""
        tag: tuple[str, str, str] = super().get_tag()
        if (Path(self.get_finalized_command("build_ext").build_lib) / ENGINE.path).exists():
            return tag
        return ("py3", "none", "any" if self.root_is_pure else tag[2])


setup(
    ext_modules=[
        Extension(
            "melodia.kernels.libmelodia_ops",
            sources=ALL_SOURCES,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
