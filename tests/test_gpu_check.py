"""benchmarks/gpu_check.py where there is no GPU: what it would run, its page, and its streams on the emulator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cuda_decode_emulation as emulation
import pytest
import torch

from benchmarks import gpu_check, gpu_generation, gpu_measure, gpu_primitives, gpu_tools
from build_support.toolchain import find_nvcc
from melodia import engine

NVCC = find_nvcc()
REPOSITORY = Path(__file__).resolve().parent.parent


def test_dry_run_lists_every_part() -> None:
    """As a program, from another folder; every part has a command that exists or the reason why it is left out."""
    script = str(REPOSITORY / "benchmarks" / "gpu_check.py")
    done = subprocess.run(
        [sys.executable, script, "--dry-run"], cwd="/", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith("GPU: ")
    assert [line.split(" ")[0] for line in lines] == list(gpu_check.MINUTES)
    for line in lines:
        command = line.split(": ", 1)[1]
        assert command.startswith(("skipped: ", sys.executable)) or "compute-sanitizer" in command


def test_every_part_is_there() -> None:
    """What a part runs exists: its function, or its tests."""
    for part in gpu_check.MINUTES:
        command = gpu_check.command_of(part)
        if isinstance(command, str):
            assert part in gpu_check.SANITIZERS
            continue
        if "--part" in command:
            assert command[-1] in gpu_measure.PARTS
        for word in command:
            assert not word.startswith("tests/") or (REPOSITORY / word).exists()


def test_page_has_verdicts_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_tools.row(H=64, **{"counter (us/step)": 1.23456, "in_band (us/step)": None})
    (tmp_path / "exchange.log").write_text("a warning\n" + capsys.readouterr().out)
    page = gpu_check.page(tmp_path, {"build": "skipped: no nvcc", "exchange": "passed (3 s)"}, "A GPU.")
    assert "| build | skipped: no nvcc |" in page
    assert "| H | counter (us/step) | in_band (us/step) |" in page
    assert "| 64 | 1.235 | None |" in page


@pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler")
def test_primitives_on_the_emulator(tmp_path: Path) -> None:
    """Every way brings every number to every block, under every schedule; a wrong sum is an error."""
    out = tmp_path / "probe.so"
    flags = [
        "-x",
        "c++",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-DMELODIA_EMULATOR",
    ]
    source = str(gpu_primitives.SOURCE)
    subprocess.run(
        [str(emulation.COMPILER), *flags, f"-I{gpu_primitives.CSRC}", source, "-o", str(out)], check=True
    )
    probe = gpu_primitives.load(out)
    assert probe.probe_processors() == 16
    assert probe.probe_clusters(8, 1 << 10) == 2
    for way in ("alone", "counter", "words", "cluster"):
        for schedule in range(4):
            probe.probe_configure(schedule)
            assert gpu_primitives.exchange(probe, way, 4, 50, 6) == 0.0
    with pytest.raises(RuntimeError, match="asks for 17 blocks at once of 16"):
        gpu_primitives.exchange(probe, "words", 17, 50, 6)
    probe.probe_configure(1)
    with pytest.raises(RuntimeError, match="grid, 2 blocks: a block came to another sum"):
        gpu_primitives.exchange(probe, "grid", 2, 50, 6)  # the emulator has no grid.sync
    for shared in (False, True):
        assert gpu_primitives.reading(probe, shared, 2, 8192, 2) == 0.0
    with pytest.raises(RuntimeError, match=r"reading: .* asks for .* bytes of shared memory"):
        gpu_primitives.reading(probe, True, 2, 1 << 20, 2)


@pytest.mark.slow
@pytest.mark.skipif(isinstance(NVCC, str), reason=f"{NVCC}")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_primitives_compile(tmp_path: Path, architecture: str) -> None:
    gpu_primitives.build(tmp_path, architecture)


@pytest.mark.skipif(
    emulation.COMPILER is None or engine.reason() is not None, reason="no compiler or no engine"
)
def test_streams_on_the_emulator() -> None:
    """What `generation` measures makes the tokens of the CPU's benchmark."""
    from benchmarks.suite.ours import SAMPLING, small_vocabulary
    from melodia.model import Network
    from melodia.workflows.bench import Streams

    library = emulation.load(emulation.build())
    emulation.configure(library, schedule=2)
    model = gpu_generation.network("parallel", 16)
    mine = gpu_generation.streams_of(model, "fp32", 2, library, {"threads": 64, "least_units": 6})
    other = Streams(Network.of(model), small_vocabulary(), SAMPLING, weights="fp32", B=2)
    assert [x.tolist() for x in mine.make(6)] == [x.tolist() for x in other.make(6)]
    assert mine.engine.facts()["stalls"] == 0


@pytest.mark.skipif(
    emulation.COMPILER is None or engine.reason() is not None, reason="no compiler or no engine"
)
def test_decoding_on_the_emulator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every filter and option of the part `decoding` runs, and has its row."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    library = emulation.load(emulation.build())
    emulation.configure(library, schedule=0)
    assert gpu_generation.decoding((8,), (1, 2), 1, library) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(gpu_tools.MARK)]
    rows = [json.loads(line[len(gpu_tools.MARK) :]) for line in lines]
    ways = [*gpu_generation.CHOICES, *gpu_generation.OPTIONS, "given"]
    assert [(row["B"], row["way"]) for row in rows] == [(B, way) for B in (1, 2) for way in ways]
    assert {row["fell back"] for row in rows} == {0, None}
