"""The text of build.ninja, and what ptxas said of the kernels that it made."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from build_support.sources import Library
from build_support.toolchain import ROOT, Nvcc, Toolchain, find_headers

TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10: no newer symbol is used


def quoted(words: list[str]) -> str:
    """Words for a command of build.ninja."""
    return " ".join(shlex.quote(word).replace("$", "$$") for word in words)


def path_of(name: Path | str) -> str:
    """A path for a build line of build.ninja."""
    return re.sub(r"([$ :])", r"$\1", str(name))


def object_of(source: str, library: Library) -> str:
    """The object of a source: libraries that need no torch share it."""
    folder = "torch/" if library.torch else ""
    return path_of(folder + Path(source).with_suffix(".o").as_posix().replace("/", "_"))


def ninja_file(tools: Toolchain, nvcc: Nvcc | None, libraries: dict[Path, Library]) -> str:
    """The text of build.ninja: an object per source, a shared library per name; nvcc where some are CUDA's."""
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
    darwin = sys.platform == "darwin"
    link = ["-pthread", *(["-undefined", "dynamic_lookup"] if darwin else [])]
    complete = [] if darwin else ["-Wl,-z,defs"]  # Python's symbols are the interpreter's
    headers = find_headers()
    python_flags = [] if isinstance(headers, str) else [f"-isystem{folder}" for folder in headers]
    torch_flags: list[str] = []
    torch_link: list[str] = []
    nvcc_torch_link: list[str] = []
    if tools.torch is not None:
        torch_flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-isystem{tools.torch / 'include'}"]
        torch_link = [f"-L{tools.torch / 'lib'}", "-ltorch_cpu"]
        nvcc_torch_link = [*torch_link, "-lc10"]
        if not darwin:
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
    if nvcc is not None:
        lines += nvcc_rules(tools, nvcc)
    made: set[str] = set()
    for path, library in libraries.items():
        objects = []
        for source, extra in library.sources.items():
            objects.append(object_of(source, library))
            if objects[-1] in made:
                continue
            headers_of = torch_flags if library.torch else python_flags if library.python else []
            words = quoted([*extra, *headers_of])
            lines += [f"build {objects[-1]}: compile {path_of(ROOT / source)}", f"  extra = {words}"]
        for source, kernels in library.kernels.items():
            objects.append(object_of(source, library))
            lines += [f"build {objects[-1]}: nvcc {path_of(ROOT / source)}"]
            lines += [f"  extra = {'$architectures' if kernels else '$one_architecture'}"]
        made |= set(objects)
        rule = "nvcc_link" if library.cuda else "link"
        lines += [f"build {path_of(path)}: {rule} {' '.join(objects)}"]
        linked = (nvcc_torch_link if library.cuda else torch_link) if library.torch else []
        lines += [f"  extra = {quoted([*([] if library.cuda or library.python else complete), *linked])}"]
        lines += [f"default {path_of(path)}"]
    return "\n".join([*lines, ""])


def nvcc_rules(tools: Toolchain, nvcc: Nvcc) -> list[str]:
    """The rules that compile kernels and link them."""
    flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v", "-ccbin"]
    flags += [
        tools.compiler[0],
        f"-I{ROOT / 'csrc'}",
        *(f"-I{folder / 'include'}" for folder in nvcc.folders),
    ]
    # The sources know two kinds of GPU, with clusters (from 9.0 on) and without. The PTX of the first of a kind
    # serves all of it: what is proven on one is what the others run, and the front end works twice.
    first = {n >= 90: n for n in sorted(nvcc.architectures, reverse=True)}
    ptx = [f"compute_{first[n >= 90]}" for n in nvcc.architectures]
    code = [f"-gencode=arch={of},code=sm_{n}" for of, n in zip(ptx, nvcc.architectures, strict=True)]
    code += [f"-gencode=arch={ptx[-1]},code={ptx[-1]}"]
    # nvcc links, because it knows where its static run-time library is; a driver is not needed to load the result.
    link = ["-shared", "-cudart", "static", "-ccbin", tools.compiler[0], "-Xlinker", "-z,defs"]
    link += [f"-L{folder / name}" for folder in nvcc.folders for name in ("lib64", "lib")]
    return [
        f"nvcc = {quoted([nvcc.path])}",
        f"nvccflags = {quoted(flags)}",
        f"architectures = {quoted(code)}",
        f"one_architecture = {quoted(code[:1])}",  # for what has no kernels
        "rule nvcc",  # what ptxas says of registers is kept beside the object
        "  command = $nvcc -MD -MF $out.d $nvccflags $extra -c $in -o $out > $out.log 2>&1 || (cat $out.log; false)",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc_link",
        f"  command = $nvcc {quoted(link)} $in -o $out $extra -ldl",
    ]


# A kernel's mangled name, with its number type where it is a template.
_KERNEL = re.compile(
    r"\d((?:scan|lookup|gates|hybrid|decode)[a-z_]*)(?:I(f|\w*?(?:Tf32|Bf16|Half|Int8))[EL]|E)"
)
_TYPES = {"Tf32": "tf32", "Bf16": "bfloat16", "Half": "float16", "Int8": "int8"}


def kernel_resources(work: Path) -> list[dict[str, str | int]]:
    """What ptxas said of every kernel and architecture: registers, bytes of shared memory, of stack and of spills.

    Shared memory is what is fixed at compile time; the rest is chosen for a launch. A kernel without a number type has
    none in `type`.
    """
    found = []
    for log in sorted(work.rglob("*.o.log")):
        for part in log.read_text().split("Compiling entry function '")[1:]:
            head = re.match(r"(\S+)' for 'sm_(\d+)'", part)
            memory = re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
            )
            used = re.search(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?", part)
            name = _KERNEL.search(head[1]) if head else None
            if not (head and memory and used and name):
                continue
            found.append(
                {
                    "kernel": name[1],
                    "type": _TYPES.get(name[2][-4:], "float32") if name[2] else "",
                    "architecture": int(head[2]),
                    "registers": int(used[1]),
                    "shared": int(used[2] or 0),
                    "stack": int(memory[1]),
                    "spills": int(memory[2]) + int(memory[3]),
                }
            )
    return found
