"""The measurements of benchmarks/gpu_check.py in small, on the CPU and on the emulator, where there is no GPU.

Times mean nothing here. What is shown: every part runs to its end, its rows have the columns that the page asks for,
and what cannot run leaves a note and not the part.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cuda_decode_emulation as emulation
import pytest
import torch

from benchmarks import (
    gpu_generation,
    gpu_measure,
    gpu_page,
    gpu_primitives,
    gpu_tools,
    gpu_training,
)
from benchmarks.gpu_begun import Begun
from benchmarks.gpu_training import Case
from benchmarks.suite import peers
from melodia import engine
from melodia.errors import ConfigError
from melodia.kernels import cuda, native

needs_native = pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
needs_engine = pytest.mark.skipif(
    emulation.COMPILER is None or engine.reason() is not None, reason="no compiler or no engine"
)


class Event:
    """A moment; a millisecond passes between two."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return 1.0


class Graph:
    """What has been captured."""

    def replay(self) -> None:
        pass


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU stands in for the GPU, and for the library of the scans' launches; a thread is enough for tiny sizes."""
    monkeypatch.setattr(gpu_tools, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_tools, "WARM_S", 0.0)
    monkeypatch.setattr(gpu_tools, "AGAIN_S", 0.0)
    monkeypatch.setattr(gpu_training, "square_rate", lambda dtype, tf32: 1e12)
    for name, value in {
        "synchronize": lambda: None,
        "get_device_capability": lambda: (9, 0),
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": lambda graph: contextlib.nullcontext(),
        "default_stream": lambda: None,
        "set_stream": lambda stream: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    library = types.SimpleNamespace(
        melodia_cuda_configure=lambda *_: None,
        melodia_cuda_chosen=lambda: gpu_tools.PATHS["resident"],
        melodia_cuda_rescues=lambda: 0,
    )
    monkeypatch.setattr(cuda, "reason", lambda: None)
    monkeypatch.setattr(cuda, "_load", lambda: (library, None))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def emulator() -> Iterator[ctypes.CDLL]:
    """The decode engine's library on the emulator."""
    library = emulation.load(emulation.build())
    emulation.configure(library, schedule=0)
    yield library
    emulation.configure(library)


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows and the notes since the last time."""
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(x[len(gpu_tools.MARK) :]) for x in lines if x.startswith(gpu_tools.MARK)]
    return rows, [x[len(gpu_tools.NOTE) :] for x in lines if x.startswith(gpu_tools.NOTE)]


def wanted_of(part: str) -> set[str]:
    """The columns in which the page looks for the numbers to reach of a part."""
    targets = [target for target in gpu_page.TARGETS if target.part == part]
    assert targets
    return {name for target in targets for name in (*target.where, target.column)}


def test_short_ones_are_repeated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As often as fills LEAST_MS; the figure is that of one. What fails is named, and left out."""
    now = [0.0]

    class Clock(Event):
        def record(self) -> None:
            self.at = now[0]

        def elapsed_time(self, other: Event) -> float:
            assert isinstance(other, Clock)
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Clock)
    calls = dict.fromkeys(("short", "long"), 0)

    def run(name: str, ms: float) -> None:
        calls[name] += 1
        now[0] += ms

    def fail() -> None:
        raise RuntimeError("no room\nand more")

    ways = {"short": lambda: run("short", 1 / 64), "long": lambda: run("long", 5.0), "none": fail}
    assert gpu_tools.medians(ways, 3, "GRU") == pytest.approx({"short": 1 / 64, "long": 5.0})
    assert calls == {"short": 1 + 4 * 13, "long": 5}
    assert printed(capsys)[1] == ["GRU, none: no room"]


def test_launches_that_gave_up_are_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = iter((2, 5))
    monkeypatch.setattr(gpu_tools, "rescues", lambda: next(counts))
    gpu_tools.medians({"scan": lambda: None}, 1, "H=64")
    assert printed(capsys)[1][0].startswith("H=64: 3 launches gave up waiting")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("1980 MHz, 3201 MHz, 45, 300.10 W, 0x0000000000000000", "held back by: 0x0000000000000000"),
        (
            "900 MHz, 3201 MHz, 80, 700.00 W, 0x0000000000000024",
            "by: software power cap, software thermal slowdown",
        ),
    ],
)
def test_clocks_are_noted(
    said: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By either name of the reasons; without nvidia-smi nothing is said."""
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu_tools.note_clocks("before")
    assert printed(capsys)[1] == []
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\ncase "$*" in *throttle*) echo "{said}";; *) exit 2;; esac\n')
    program.chmod(0o755)
    gpu_tools.note_clocks("before")
    (note,) = printed(capsys)[1]
    assert note.startswith("before: SM ")
    assert note.endswith(told)


def test_a_capture_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torch does it: where the end of a capture fails, its stream and the generator stay as they are in it."""
    now = {"stream": "usual", "captured": False}

    class Capture:
        def __init__(self, graph: object) -> None:
            assert now["stream"] == "usual"

        def __enter__(self) -> None:
            assert not gc.isenabled()
            now.update(stream="side", captured=True)

        def __exit__(self, kind: object, *more: object) -> None:
            if kind is not None:
                raise RuntimeError("the capture has become invalid")
            now.update(stream="usual", captured=False)

    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda: "usual")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: now.update(stream=stream))
    calls = itertools.count()

    def bad() -> None:
        if next(calls):
            raise RuntimeError("not permitted")

    assert list(gpu_tools.captured(bad=bad, good=lambda: None)) == ["good, graph"]
    assert printed(capsys)[1] == ["bad, graph: the capture has become invalid"]
    assert now == {"stream": "usual", "captured": False}
    assert gc.isenabled()


def test_inputs_are_drawn_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tools, "DEVICE", "meta")  # which knows no numbers
    monkeypatch.setattr(gpu_tools, "DRAWN", 10)
    randn = torch.randn

    def draw(*shape: int) -> torch.Tensor:
        return randn(*shape)

    monkeypatch.setattr(torch, "randn", draw)
    found = gpu_tools.normal(3, 7, dtype=torch.bfloat16)
    assert (found.shape, found.dtype, found.device.type) == ((3, 7), torch.bfloat16, "meta")
    monkeypatch.setattr(gpu_tools, "DEVICE", "cpu")
    found = gpu_tools.normal(3, 7, dtype=torch.float32).flatten()
    assert torch.equal(found[:10], found[10:20])
    assert found[:10].unique().numel() == 10


@pytest.mark.slow
@needs_native
def test_training(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [Case("bfloat16", 3, 2, 8), Case("tf32", 3, 2, 8), Case("float16", 3, 2, 8)]
    assert gpu_training.training(cases, graphs=True) == 0
    rows, notes = printed(capsys)
    assert [(row["type"], row["kind"]) for row in rows] == [
        (case.type, kind) for case in cases for kind in gpu_training.KINDS
    ]
    assert wanted_of("training") <= set(rows[0])
    assert rows[4]["path"] == "resident / resident"
    times = {f"{n} (ms)" for n in ("cuDNN", "melodia", "eager", "cuDNN, graph", "melodia, graph")}
    assert times | {"cuDNN, forward (ms)", "melodia, forward (ms)"} <= set(rows[0])
    assert rows[0]["ratio"] == "1"
    assert rows[-1]["ratio"] is None  # the CPU has no float16
    assert any(text.startswith("parallel, float16, T=3, B=2, H=8, melodia: ") for text in notes)


@needs_native
def test_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_training.training_step(5, 2, 8) == 0
    rows, notes = printed(capsys)
    assert [(row["kind"], row["precision"], row["gates made again"]) for row in rows] == list(
        gpu_training.STEPS
    )
    assert {row["tokens/s"] for row in rows} == {"4e+04"}
    shares, *kernels = notes
    assert shares.startswith("an iteration on the device: ")
    for group in ("scans", "lookups", "products", "loss", "optimiser"):
        assert f"{group} 0.0%" not in shares
        assert f"{group} " in shares
    assert len(kernels) == 15


def test_groups_of_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    """The names that a GPU's profile has."""
    names = {
        "void melodia::cuda::(anonymous namespace)::scan_backward_kernel<Bf16>(Args)": "scans",
        "void melodia::cuda::(anonymous namespace)::gates_kernel<float>(Args)": "scans",
        "void melodia::cuda::(anonymous namespace)::lookup_backward_kernel<Bf16>(Lookup)": "lookups",
        "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN": "products",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n": "products",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdam>": "optimiser",
        "void cunn_SoftMaxForward<4, float>": "loss",
        "Memcpy HtoD (Pageable -> Device)": "copies",
        "void at::native::vectorized_elementwise_kernel<4>": "rest",
        "void at_cuda_detail::cub::DeviceScanKernel<int>": "rest",
    }
    for name, group in names.items():
        gpu_training.note_profile([gpu_training.Cost(name, 5.0, 2)])
        assert f"{group} 100.0%" in printed(capsys)[1][0]


@needs_native
def test_lookups(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_training.lookups(3, 2, 8, (7, 4, 3, 5, 5, 2)) == 0
    rows, _ = printed(capsys)
    assert [row["G"] for row in rows] == 2 * [32, 32, 32, 32, 24, 24, 24, 24]
    assert {row["hit"] for row in rows} == {"one row", "uniform"}
    assert {row["pass"] for row in rows} == {"forward", "backward"}
    assert all(row["ratio"] == "1" for row in rows)
    assert {"melodia (us)", "embedding_bag (us)", "index_add (us)", "GB/s"} <= set(rows[0])


@needs_native
def test_exchange(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_measure.exchange(4, (8,), (1, 3)) == 0
    rows, _ = printed(capsys)
    assert [(row["pass"], row["B"]) for row in rows] == 2 * [
        (n, B) for B in (1, 3) for n in ("forward", "backward")
    ]
    assert {row["counter / words"] for row in rows} == {"1"}


@needs_native
def test_wavefront_and_stepping(capsys: pytest.CaptureFixture[str]) -> None:
    """Single steps know float32 only on the CPU: a note says so of the other type."""
    assert gpu_measure.wavefront(((5, 2, 8),)) == 0
    rows, _ = printed(capsys)
    assert len(rows) == 8
    assert {"0 (ms)", "32 (ms)", "64 (ms)", "128 (ms)"} <= set(rows[0])
    assert gpu_measure.stepping(2, ((2, 8),)) == 0
    rows, notes = printed(capsys)
    assert len(rows) == 12
    assert set(rows[-1]) == {"kind", "type", "B", "H"} | {
        f"{name} (us)" for name in ("torch", "melodia", "torch, graph", "melodia, graph")
    }
    assert any(text.startswith("lstm gru, bfloat16, B=2, H=8, melodia: ") for text in notes)


@needs_native
@needs_engine
def test_what_the_sanitizers_watch(
    emulator: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has begun is not begun again: under a sanitizer they take longer than it may have."""
    begun = Begun(tmp_path / "begun", "memcheck")
    for name, value in begun.environment().items():
        monkeypatch.setenv(name, value)
    assert gpu_measure.small(("float32",), emulator) == 0
    assert capsys.readouterr().out.count("done") == 12 + 4 * 4
    assert len(begun.names()) == 12 + 4
    begun.give_back()
    assert gpu_measure.small(("float32",), emulator) == 0
    assert capsys.readouterr().out.count("done") == 4


@pytest.mark.slow
@needs_engine
def test_generation(
    emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every way has its row; one that cannot be made has a note."""

    def no_probe() -> Any:
        raise SystemExit("nvcc was not found")

    def make(model: Any, weights: str, B: int, library: Any, options: dict[str, int], packed: Any) -> Any:
        if options.get("cluster") == 1000:
            raise ConfigError("so many sessions do not fit")
        return streams_of(model, weights, B, library, options, packed=packed)

    streams_of = gpu_generation.streams_of
    monkeypatch.setattr(gpu_generation, "streams_of", make)
    models: dict[str, Any] = {"tiny": ("parallel", 8, {})}
    variants = {", cluster 4": {"cluster": 4}, ", cluster 1000": {"cluster": 1000}}
    given = ([("tiny", 1), ("tiny", 2)], variants, (1, 2), emulator, no_probe, models)
    assert gpu_generation.generation(*given) == 0
    rows, notes = printed(capsys)
    ways = [*gpu_generation.WEIGHTS, *(f"{weights}, cluster 4" for weights in gpu_generation.WEIGHTS)]
    alone = [row for row in rows if "fell back" in row]
    beside = [row for row in rows if "x eager" in row]
    assert [(row["B"], row["weights"]) for row in alone] == [(B, way) for B in (1, 2) for way in ways]
    assert [(row["B"], row["weights"]) for row in beside] == list(
        itertools.product((1, 2), gpu_generation.WEIGHTS)
    )
    assert rows[:2] == [alone[0], beside[0]]
    assert wanted_of("generation") <= set(alone[0]) | set(beside[0])
    assert {row["fell back"] for row in alone} == {0}
    for row, rival in itertools.product(beside, ("eager", "graph")):
        torch_us = float(
            row[f"torch's us/step, {rival}"]
        )  # a step's own is a difference, and may be anything here
        assert torch_us > 0
        assert float(row[f"x {rival}"]) == pytest.approx(torch_us / float(row["us/step"]), rel=0.01)
    assert alone[0]["of the floor"] is None
    assert notes[0] == "no reading floor: nvcc was not found"
    assert len([text for text in notes if "cluster 1000" in text]) == 2 * 3
    monkeypatch.setattr(gpu_primitives, "read_once", lambda probe, size: 1.0)
    assert gpu_generation.generation([("tiny", 1)], {}, (1, 2), emulator, lambda: None, models) == 0
    rows = [row for row in printed(capsys)[0] if "of the floor" in row]
    assert len(rows) == 3
    assert all(row["of the floor"] == row["us/step"] for row in rows)


@needs_engine
def test_generation_does_not_need_its_rivals(
    emulator: ctypes.CDLL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A rival that fails is a note; one that ends the process ends it behind the engine's row, and only there."""

    class Rival:
        def __init__(self, model: Any, B: int) -> None:
            raise error

    models: dict[str, Any] = {"tiny": ("parallel", 8, {})}
    given = ([("tiny", 1)], {}, (1, 2), emulator, lambda: None, models)
    monkeypatch.setattr(gpu_primitives, "read_once", lambda probe, size: 1.0)
    monkeypatch.setattr(peers, "Eager", Rival)
    error: BaseException = RuntimeError("cuDNN has no such plan")
    assert gpu_generation.generation(*given) == 0
    rows, notes = printed(capsys)
    assert [row["weights"] for row in rows] == list(gpu_generation.WEIGHTS)
    assert notes[0] == "tiny, B=1, torch, bfloat16: cuDNN has no such plan"
    error = KeyError("anything else")
    for name, value in Begun(tmp_path / "begun", "generation").environment().items():
        monkeypatch.setenv(name, value)
    for weights in gpu_generation.WEIGHTS:
        with pytest.raises(KeyError):
            gpu_generation.generation(*given)
        assert [row["weights"] for row in printed(capsys)[0]] == [weights]
    assert gpu_generation.generation(*given) == 0
    assert printed(capsys)[0] == []


@needs_engine
def test_decoding(
    emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every filter and option of the part `decoding` runs, and has its row; without an engine there are notes."""

    def fail(*_: Any) -> None:
        raise ConfigError("no room for it")

    assert gpu_generation.decoding((8,), (2,), (1, 2), emulator) == 0
    rows, _ = printed(capsys)
    ways = [*gpu_generation.CHOICES, *gpu_generation.OPTIONS, "given"]
    assert [(row["B"], row["way"]) for row in rows] == [(2, way) for way in ways]
    assert {row["fell back"] for row in rows} == {0, None}
    monkeypatch.setattr(gpu_generation, "streams_of", fail)
    assert gpu_generation.decoding((8,), (2,), (1, 2), emulator) == 0
    rows, notes = printed(capsys)
    assert [row["us/step"] for row in rows] == [None]  # given tokens
    assert notes[0] == "H=8, B=2, greedy: no room for it"


def test_a_way_that_fails_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("it gave up")

    took = gpu_generation.in_turns({("good", 1): lambda: None, ("bad", 1): fail}, 1, "ii, B=64")
    assert list(took) == [("good", 1)]
    assert gpu_generation.per_step(took, "bad", 1, 2) == (None, None)
    assert printed(capsys)[1] == ["ii, B=64, bad: it gave up"]


def test_primitives(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows' columns, and what a probe says that cannot do something."""
    probe = types.SimpleNamespace(probe_processors=lambda: 132, probe_clusters=lambda blocks, size: 7)

    def exchange(probe: Any, way: str, blocks: int, numbers: int, steps: int) -> float:
        if way == "grid":
            raise RuntimeError("grid, 132 blocks: refused")
        return {"alone": 1.0, "words": 1.5, "counter": 2.0, "cluster": 1.25}[way] * steps

    monkeypatch.setattr(gpu_primitives, "here", lambda: probe)
    monkeypatch.setattr(gpu_primitives, "exchange", exchange)
    monkeypatch.setattr(
        gpu_primitives, "difference", lambda run, few, many: (run(many) - run(few)) / (many - few)
    )
    monkeypatch.setattr(gpu_primitives, "read_once", lambda probe, size, shared: 2.0)
    assert gpu_primitives.primitives() == 0
    rows, notes = printed(capsys)
    assert notes == ["grid, 132 blocks: refused"]
    assert wanted_of("primitives") <= {name for row in rows for name in row}
    reached = {told["number"]: told for told in gpu_page.reached({"primitives": rows})}
    assert reached["exchange by words: us"]["measured"] == "0.5"
    assert reached["exchange in a cluster of 16: us"]["met"] == "yes"
    assert reached["clusters of 16 at once"]["measured"] == "7"
