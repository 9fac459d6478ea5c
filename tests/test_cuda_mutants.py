"""Every barrier, fence and epoch of the CUDA kernels is needed: without any one of them a check fails.

`MELODIA_SYNC`, `MELODIA_ORDER` and `MELODIA_EPOCH` name what orders threads; a library built with MELODIA_MUTANT set
to such a name lacks it (csrc/cuda/device.h).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cuda_emulation as emulation
import pytest

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler")

NAMES = re.compile(r'MELODIA_(?:SYNC|ALL|ORDER|EPOCH)\(\s*"([^"]+)"')
SCANS = ("scan_forward", "scan_backward")
# No stack exchanges words, and none gives up inside a product.
NOT_OF_STACKS = ("exchange: parity", "exchange: epoch", "tile: nothing on its way")


def where() -> dict[tuple[str, str], tuple[str, ...]]:
    """The sources to build anew for every name and the checks that have to fail.

    Its own source, or for a name in a header those that include it.
    """
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for file in emulation.files():
        for name in NAMES.findall(file.read_text()):
            checks = "stacks" if file.stem.startswith("hybrid") else "scans"
            assert found.get((name, checks), (file.stem,)) == (file.stem,), f"{name} stands in two files"
            found[name, checks] = (file.stem,) if file.suffix == ".cu" else SCANS
            if file.suffix == ".h" and name not in NOT_OF_STACKS:
                found[name, "stacks"] = ("hybrid_step",)
    return found


MUTANTS = where()


def without(name: str, sources: tuple[str, ...], folder: Path) -> Path:
    """The library without what has this name, its sources built anew."""
    whole = emulation.build().parent
    changed = emulation.compile_objects(folder, sources, mutant=name)
    same = [whole / f"{source}.o" for source in emulation.SOURCES if source not in sources]
    return emulation.link(folder, [*changed, *same])


def run(library: Path, checks: str) -> subprocess.CompletedProcess[str]:
    """The checks, in a process of their own: a torch process knows one library of operators."""
    return subprocess.run(
        [sys.executable, str(Path(emulation.__file__)), str(library), checks],
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_nothing_orders_threads_without_a_name() -> None:
    """Barriers and fences are called through the macros only."""
    for file in sorted((emulation.CSRC / "cuda").glob("*.cu")):
        bare = re.findall(r"(?<!\w)(sync_block|sync_warp|__syncthreads|__syncwarp)\(", file.read_text())
        assert not bare, file.name
    assert len(MUTANTS) >= 30


@pytest.mark.slow
@pytest.mark.parametrize(("checks", "sources"), [("scans", SCANS), ("stacks", ("hybrid_step",))])
def test_checks_pass_without_what_is_not_there(checks: str, sources: tuple[str, ...], tmp_path: Path) -> None:
    """Built as the mutants are, so that what fails there fails for want of what was left out."""
    done = run(without("nothing has this name", sources, tmp_path), checks)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "checks"), MUTANTS)
def test_without(name: str, checks: str, tmp_path: Path) -> None:
    done = run(without(name, MUTANTS[name, checks], tmp_path), checks)
    assert done.returncode != 0, f"nothing fails without '{name}'"
    assert "AssertionError" in done.stderr or "kernel " in done.stderr, done.stderr[-2000:]
