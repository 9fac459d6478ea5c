"""Facts about this installation: versions, the backend and why, the processor. Nothing is printed here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "symusic", "pretty_midi", "safetensors")


@dataclass(frozen=True)
class Info:
    """What `melodia info` shows.

    Attributes:
        melodia: version of melodia.
        python: version of Python.
        system: operating system and machine.
        packages: version of each package that matters, or None where it is missing.
        backend: what was asked for: "auto", "reference" or "native".
        backend_runs: what runs float32 calls on the CPU; "missing" without torch.
        backend_why: the reason, in a sentence.
        instruction_set: what the native library uses on this processor, or None without it.
        engine: what the compiled decoder uses on this processor, or why there is none.
        native_build: what the build of the native library noted.
        cpu: name of the processor.
        cpu_features: instruction sets that matter here and that the processor has.
        cores: processors that this process may use.
        threads: threads that torch uses for one operator; 0 without torch.
        cuda: names of the CUDA devices that torch sees.
        cuda_engine: whether the decoder runs on a GPU, or why not.
        cuda_kernels: what the CUDA kernels were built with, or why there are none, or why they are not used.
        environment: MELODIA_* variables that are set.
    """

    melodia: str
    python: str
    system: str
    packages: dict[str, str | None]
    backend: str
    backend_runs: str
    backend_why: str
    instruction_set: str | None
    engine: str
    native_build: dict[str, Any]
    cpu: str
    cpu_features: list[str]
    cores: int
    threads: int
    cuda: list[str]
    cuda_engine: str
    cuda_kernels: str
    environment: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All facts as plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The facts as lines of text."""
        packages = ", ".join(f"{name} {version or 'missing'}" for name, version in self.packages.items())
        asked = "" if self.backend == "auto" else f" (asked for: {self.backend})"
        return [
            f"melodia {self.melodia}, Python {self.python}, {self.system}",
            packages,
            f"backend: {self.backend_runs}{asked}: {self.backend_why}",
            f"engine for generating on the CPU: {self.engine}",
            f"processor: {self.cpu}, {self.cores} cores, {self.threads} threads, {' '.join(self.cpu_features)}",
            f"CUDA devices: {', '.join(self.cuda) or 'none'}",
            f"engine for generating on CUDA: {self.cuda_engine}",
            f"CUDA kernels: {self.cuda_kernels}",
            *(f"{name}={value}" for name, value in self.environment.items()),
        ]


def collect() -> Info:
    """Gather the facts.

    >>> collect().backend_runs in ("reference", "native")
    True
    """
    from melodia import __version__, backends, engine, machine
    from melodia.engine import cuda as cuda_engine

    cpu, features = _processor()
    return Info(
        melodia=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages={name: _version(name) for name in _PACKAGES},
        backend=backends.chosen(),
        engine=engine.instruction_set() or f"none: {engine.reason()}",
        cpu=cpu,
        cpu_features=features,
        cores=machine.cores(),
        cuda_engine="loaded" if (why := cuda_engine.reason()) is None else f"none: {why}",
        environment={k: v for k, v in sorted(os.environ.items()) if k.startswith("MELODIA_")},
        **_torch_facts(),
    )


def _torch_facts() -> dict[str, Any]:
    """What is known only where torch can be imported; generating needs none."""
    try:
        import torch

        from melodia.kernels import backend_report, cuda, native
    except ImportError as error:
        why = f"torch cannot be imported ({error})"
        facts = {"backend_runs": "missing", "backend_why": why, "cuda_kernels": f"missing: {why}"}
        return {**facts, "instruction_set": None, "native_build": {}, "threads": 0, "cuda": []}
    report = backend_report()
    return {
        "backend_runs": report.runs,
        "backend_why": report.why,
        "instruction_set": report.instruction_set,
        "native_build": native.build_facts(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "cuda_kernels": cuda.describe(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


_FEATURES = (
    "sse4_2",
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
)


def _processor() -> tuple[str, list[str]]:
    """The processor's name and those of its features that matter here, as far as the system tells."""
    fields: dict[str, str] = {}
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    words = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, [feature for feature in _FEATURES if feature in words]
