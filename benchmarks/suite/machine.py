"""Where and with what a run was made."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import subprocess
import time
from pathlib import Path

import torch

from benchmarks.busy_machine import busy_seconds
from melodia import engine
from melodia.info import collect

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def facts(command: str, others: float | None) -> dict[str, str]:
    """Machine, versions, date, commit, command and what else the machine did, by name."""
    info = collect()
    packages = [f"melodia {info.melodia}", f"Python {info.python}"]
    packages += [f"{name} {version(name) or 'not installed'}" for name in ("torch", "numpy", "onnxruntime")]
    return {
        "command": f"`{command}`",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "processor": f"{info.cpu}, {info.cores} cores, {' '.join(info.cpu_features)}{caches()}",
        "system": f"{info.system}",
        "other work": "unknown" if others is None else f"{others:.2f} cores, in the second before the run",
        "versions": ", ".join(packages),
        "native": f"operators: {info.backend_runs} ({info.backend_why}); engine: {info.engine}",
        "CUDA devices": ", ".join(info.cuda) or "none",
    }


def version(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of the work tree, with a mark where files were changed since."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git repository)"
    return name + (" and changes that are not committed" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def other_work(seconds: float = 1.0) -> float | None:
    """How many cores others are using, measured over so many seconds of doing nothing; None where nothing tells."""
    if not Path("/proc/stat").exists():
        return None
    before = busy_seconds()
    time.sleep(seconds)
    return (busy_seconds() - before) / seconds


def caches() -> str:
    """The caches of the first core, as far as the system tells."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return f" (caches: {', '.join(found)})" if found else ""


def thread_counts() -> list[int]:
    """One thread, and two where this process may use two cores."""
    return [1, 2] if cores() > 1 else [1]


def cores() -> int:
    """Cores that this process may use."""
    if engine.reason() is None:
        return engine.cores()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_threads(count: int) -> None:
    """Let torch's operators use so many threads."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
