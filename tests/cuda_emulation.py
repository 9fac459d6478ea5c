"""The CUDA operators on the emulator: the library that is built for tests, and what drives it.

As a program, `python tests/cuda_emulation.py LIBRARY scans|stacks`: the checks that a mutant has to fail; exit 0 if
all pass.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from kernel_helpers import stack_arguments
from torch import Tensor

from melodia.kernels import reference

CSRC = Path(__file__).resolve().parent.parent / "csrc"
COMPILER = shutil.which("g++") or shutil.which("c++")
KERNELS = ("scan", "scan_forward", "scan_backward", "scan_rows", "lookup", "gates", "hybrid", "hybrid_step")
BINDINGS = ("ops_cuda", "hybrid_ops", "wave_ops")
SOURCES = (*KERNELS, *BINDINGS)
PATHS = {"automatic": 0, "resident": 1, "steps": 2, "rows": 3}
EXCHANGES = {"automatic": 0, "counter": 1, "in_band": 2}
SECOND = 10**9
LIBRARY = "libmelodia_emulator.so"
KEEP = 2  # gates and cells: all that a backward pass needs


def compile_objects(
    folder: Path, sources: tuple[str, ...] = SOURCES, mutant: str = "", jobs: int = 2
) -> list[Path]:
    """Compile sources of csrc/cuda for the emulator; `mutant` names the barrier that is left out.

    Kernels as they are tell the emulator of pointers that are not aligned.
    """
    torch_include = Path(torch.__file__).parent / "include"
    flags = ["-x", "c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden"]
    flags += ["-U_FORTIFY_SOURCE", "-DMELODIA_EMULATOR", f'-DMELODIA_MUTANT="{mutant}"', f"-I{CSRC}"]
    flags += ["-Wno-unused-but-set-variable", f"-isystem{torch_include}"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]

    def compiled(source: str) -> Path:
        out = folder / f"{source}.o"
        checks = ["-fsanitize=alignment"] if source in KERNELS and not mutant else []
        (file,) = (CSRC / "cuda").glob(f"{source}.c*")
        subprocess.run(
            [str(COMPILER), *flags, *checks, "-c", str(file), "-o", str(out)],
            check=True,
            text=True,
            timeout=300,
        )
        return out

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(compiled, sources))


def files() -> list[Path]:
    """The sources and headers of the operators: all of csrc/cuda but the decoder's."""
    return [file for file in sorted((CSRC / "cuda").iterdir()) if not file.name.startswith("decode")]


def build() -> Path:
    """The library of the sources as they are; kept in build/ until they change."""
    digest = hashlib.sha256(torch.__version__.encode())
    for file in [*files(), *sorted(CSRC.glob("*.h"))]:
        digest.update(file.read_bytes())
    folder = CSRC.parent / "build" / f"emulator-{digest.hexdigest()[:16]}"
    with one_at_a_time(folder):
        if not (folder / LIBRARY).exists():
            link(folder, compile_objects(folder))
    return folder / LIBRARY


def one_at_a_time(folder: Path) -> FileLock:
    """Held by the process that builds in a folder; others wait for what it makes."""
    folder.parent.mkdir(exist_ok=True)
    return FileLock(folder.with_suffix(".lock"), timeout=600)


def link(folder: Path, objects: list[Path]) -> Path:
    """The emulator's library from its objects."""
    out, torch_lib = folder / LIBRARY, Path(torch.__file__).parent / "lib"
    subprocess.run(
        [
            str(COMPILER),
            "-shared",
            *map(str, objects),
            "-o",
            str(out),
            f"-L{torch_lib}",
            "-ltorch_cpu",
            "-lc10",
        ],
        check=True,
        timeout=300,
    )
    return out


def schemas() -> dict[str, str]:
    """The schemas of csrc/ops.cpp, by operator."""
    text = (CSRC / "ops.cpp").read_text()
    calls = re.findall(r'm\.def\(\s*((?:"[^"]*"\s*)+)\)', text)
    whole = ["".join(re.findall(r'"([^"]*)"', call)) for call in calls]
    return {schema.split("(")[0]: schema for schema in whole}


class Emulator:
    """The operators of one library, as `emulator.lstm_scan(...)`, on CPU tensors.

    Gradients go the way that `melodia.kernels.native_ops` takes: the backward operator for the recurrence, products
    over all steps for the weights.
    """

    def __init__(self, library: Path) -> None:
        """Load the library and give its operators their schemas."""
        self._definitions = torch.library.Library("melodia_emulator", "DEF")
        text = "".join((CSRC / f"cuda/{source}.cpp").read_text() for source in BINDINGS)
        names = re.findall(r'm\.impl\(\s*"(\w+)"', text)
        known = schemas()
        for name in names:
            self._definitions.define(known[name])
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        self._library.melodia_cuda_configure.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_uint64]
        self._library.melodia_cuda_allow_tf32.argtypes = [ctypes.c_int32]
        self._library.melodia_cuda_rescues.restype = ctypes.c_int64
        self._library.melodia_emulator_configure.argtypes = [
            ctypes.c_uint64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int32,
        ]
        self.ops = torch.ops.melodia_emulator

    def configure(
        self,
        *,
        path: str = "automatic",
        exchange: str = "automatic",
        schedule: int = 1,
        blocks: int = 16,
        shared_bytes: int = 64 << 10,
        limit_ns: int = SECOND,
        tf32: bool = False,
    ) -> None:
        """Choose the path, the exchange, the schedule, the device's size, when a wait gives up, products in tf32."""
        self._library.melodia_cuda_allow_tf32(tf32)
        self._library.melodia_cuda_configure(PATHS[path], EXCHANGES[exchange], limit_ns)
        self._library.melodia_emulator_configure(schedule, blocks, shared_bytes, False)

    def chosen(self) -> str:
        """The path that the last scan took."""
        number = self._library.melodia_cuda_chosen()
        return next(name for name, value in PATHS.items() if value == number)

    def rescues(self) -> int:
        """How many launches gave up and were made again the slow way."""
        count: int = self._library.melodia_cuda_rescues()
        return count

    def values(self, name: str, inputs: list[Tensor], cotangents: list[Tensor], lengths: Any) -> list[Tensor]:
        """The outputs of a scan, then the gradient of every input.

        Args:
            name: "lstm_scan", "gru_scan" or "pair_scan".
            inputs: the arguments up to the lengths.
            cotangents: one for every output, in order.
            lengths: int64 [B], or None.
        """
        if name == "lstm_scan":
            _, h, c, weight, _ = inputs
            output, h_n, c_n, gates, cells = self.ops.lstm_scan(*inputs, lengths, KEEP)
            grad, grad_h, grad_c = self.ops.lstm_scan_backward(*cotangents, gates, cells, c, weight, lengths)
            return [output, h_n, c_n, grad, grad_h, grad_c, *_weights(grad, output, h)]
        if name == "gru_scan":
            _, h, weight, _ = inputs
            output, h_n, gates = self.ops.gru_scan(*inputs, lengths, KEEP)
            grad_x, grad_hh, grad_h = self.ops.gru_scan_backward(
                *cotangents, gates, output, h, weight, lengths
            )
            return [output, h_n, grad_x, grad_h, *_weights(grad_hh, output, h)]
        _, _, h_lstm, c_lstm, h_gru, weight_lstm, _, weight_gru, _ = inputs
        *outputs, lstm_gates, cells, gru_gates = self.ops.pair_scan(*inputs, lengths, KEEP)
        kept = (lstm_gates, cells, gru_gates, outputs[1], c_lstm, h_gru, weight_lstm, weight_gru, lengths)
        grad_lstm, grad_x, grad_hh, *states = self.ops.pair_scan_backward(*cotangents, *kept)
        lstm, gru = _weights(grad_lstm, outputs[0], h_lstm), _weights(grad_hh, outputs[1], h_gru)
        return [*outputs, grad_lstm, grad_x, *states, *lstm, *gru]

    def wave_values(self, lists: list[list[Tensor]], lengths: list[Tensor]) -> list[Tensor]:
        """The outputs of `wave_scan`, then the gradient of every tensor in the lists; cotangents of seed 1."""
        _, h, c, weight, _ = lists
        output, h_n, c_n, gates, cells = self.ops.wave_scan(*lists, lengths, KEEP)
        g = torch.Generator().manual_seed(1)
        grads = [[torch.randn(x.shape, generator=g) for x in some] for some in (output, h_n, c_n)]
        grad_x, grad_gates, grad_h, grad_c = self.ops.wave_scan_backward(
            *grads, gates, cells, c, output, h, weight, lengths
        )
        of_grus = iter(grad_x)
        inputs = [
            grad if reference.is_lstm(own) else next(of_grus)
            for grad, own in zip(grad_gates, weight, strict=True)
        ]
        of_weights, of_biases = zip(
            *(_weights(*own) for own in zip(grad_gates, output, h, strict=True)), strict=True
        )
        return [*output, *h_n, *c_n, *inputs, *grad_h, *grad_c, *of_weights, *of_biases]


def arguments(name: str, T: int, B: int, H: int, seed: int = 0) -> list[Tensor]:
    """Random arguments of a scan, without lengths."""
    g = torch.Generator().manual_seed(seed)

    def cell(kind: str) -> list[Tensor]:
        G = {"lstm": 4, "gru": 3}[kind]
        states = [torch.randn(B, H, generator=g) for _ in range(2 if kind == "lstm" else 1)]
        weight = torch.randn(G * H, H, generator=g) / H**0.5
        return [torch.randn(T, B, G * H, generator=g), *states, weight, torch.randn(G * H, generator=g) * 0.3]

    if name != "pair_scan":
        return cell(name.split("_")[0])
    lstm, gru = cell("lstm"), cell("gru")
    return [lstm[0], gru[0], *lstm[1:3], gru[1], *lstm[3:], *gru[2:]]


def wanted(
    name: str, inputs: list[Tensor], lengths: Tensor | None = None, seed: int = 1
) -> tuple[list[Tensor], list[Tensor]]:
    """Random cotangents, and the outputs and gradients of the reference."""
    g = torch.Generator().manual_seed(seed)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = getattr(reference, name)(*leaves, lengths)
    cotangents = [torch.randn(x.shape, generator=g) for x in outputs]
    gradients = torch.autograd.grad(outputs, leaves, cotangents)
    return cotangents, [*(x.detach() for x in outputs), *gradients]


def error(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest difference, relative to the largest magnitude in its tensor (at least 1)."""
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        if b.numel():
            off = ((a.float() - b).abs().max() / b.abs().max().clamp(min=1.0)).item()
            worst = max(worst, off if off == off else float("inf"))
    return worst


TOLERANCE = 3e-6  # float32: sums in another order, a fitted tanh


def check(emulator: Emulator, schedules: range) -> None:
    """Small scans of every kind on every path, under many schedules; AssertionError where one is wrong.

    Sizes are such that several blocks exchange, a vector comes in three chunks and more, and the batch goes through
    in more than one round.
    """
    for name in ("lstm_scan", "gru_scan", "pair_scan"):
        for T, B, H, shared_bytes in ((4, 3, 9, 64 << 10), (3, 9, 40, 10 << 10)):
            inputs = arguments(name, T, B, H)
            cotangents, want = wanted(name, inputs)
            for path, exchange in (("resident", "counter"), ("resident", "in_band"), ("steps", "automatic")):
                for schedule in schedules:
                    emulator.configure(
                        path=path,
                        exchange=exchange,
                        schedule=schedule,
                        shared_bytes=shared_bytes if path == "steps" else 64 << 10,
                    )
                    got = emulator.values(name, inputs, cotangents, None)
                    assert error(got, want) < TOLERANCE, (name, path, exchange, schedule, error(got, want))
    check_chunks(emulator, schedules)
    check_giving_up(emulator, schedules[:2])
    for schedule in schedules:
        emulator.configure(path="rows", schedule=schedule)
        for name in ("lstm_scan", "gru_scan"):
            inputs = arguments(name, 3, 2, 9)
            cotangents, want = wanted(name, inputs)
            got = emulator.values(name, inputs, cotangents, None)
            assert error(got, want) < TOLERANCE, (name, "rows", schedule)
        g = torch.Generator().manual_seed(schedule)
        index = torch.randint(0, 3, (3, 120, 3), generator=g)  # 360 places a row: three turns of all warps
        grad = torch.randn(3, 120, 256, generator=g)
        want_grad = torch.zeros(3, 256).index_add_(
            0, index.flatten(), grad.flatten(0, 1).repeat_interleave(3, 0)
        )
        got_grad = emulator.ops.lookup_backward(grad, index, 3)
        assert error([got_grad], [want_grad]) < TOLERANCE, ("lookup_backward", schedule)


def check_chunks(emulator: Emulator, schedules: range) -> None:
    """Scans whose vectors, and in steps the weights, come in three chunks and more."""
    inputs = arguments("gru_scan", 3, 2, 84)
    cotangents, want = wanted("gru_scan", inputs)
    ways = (("resident", "counter", 24), ("resident", "in_band", 24), ("steps", "automatic", 11))
    for schedule in schedules:
        for path, exchange, kilobytes in ways:
            emulator.configure(
                path=path, exchange=exchange, schedule=schedule, shared_bytes=kilobytes << 10, blocks=40
            )
            got = emulator.values("gru_scan", inputs, cotangents, None)
            assert error(got, want) < TOLERANCE, ("chunks", path, exchange, schedule, error(got, want))


def check_giving_up(emulator: Emulator, schedules: range) -> None:
    """Waits of no time at all, while the chunk behind the one that is waited for is on its way."""
    inputs = arguments("gru_scan", 2, 2, 84)
    cotangents, want = wanted("gru_scan", inputs)
    for schedule in schedules:
        emulator.configure(
            path="resident",
            exchange="counter",
            schedule=schedule,
            shared_bytes=24 << 10,
            blocks=40,
            limit_ns=0,
        )
        before = emulator.rescues()
        got = emulator.values("gru_scan", inputs, cotangents, None)
        assert error(got, want) < TOLERANCE, ("giving up", schedule, error(got, want))
        assert emulator.rescues() > before


def check_stacks(emulator: Emulator, schedules: range) -> None:
    """Single steps of stacks: tiles of several blocks, of one block in turn, vectors that come in chunks.

    With 13 units a warp brings other rows than it has measured. Three blocks take tiles of an LSTM and then of a GRU,
    whose weights come to where the sums of the first stand.
    """
    stack, wide = ["gated", "sum", "lstm", "gru"], ["concat"]
    for path, levels, B, H, kilobytes, blocks in (
        ("resident", stack, 9, 13, 64, 16),
        ("rows", stack, 9, 13, 64, 16),
        ("resident", wide, 2, 84, 12, 16),
        ("resident", ["sum"], 1, 37, 14, 3),
    ):
        made = stack_arguments(levels, B, H, True)
        codes = [reference.LEVELS.index(level) for level in levels]
        output, after = reference.hybrid_step(*made, levels, True, True)
        for schedule in schedules:
            emulator.configure(path=path, schedule=schedule, shared_bytes=kilobytes << 10, blocks=blocks)
            got, state = emulator.ops.hybrid_step(*made, codes, True, True)
            assert emulator.chosen() == path
            off = error([got, *state], [output, *after])
            assert off < 2 * TOLERANCE, ("hybrid_step", path, H, schedule, off)


def _weights(grad_gates: Tensor, output: Tensor, h: Tensor) -> list[Tensor]:
    """The gradients of weight_hh and bias_hh, in float32."""
    before = torch.cat([h.unsqueeze(0).float(), output.float()])[: grad_gates.shape[0]]
    return [
        torch.einsum("tbg,tbh->gh", grad_gates.float(), before),
        grad_gates.float().sum((0, 1)),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    checks = {"scans": check, "stacks": check_stacks}
    checks[sys.argv[2]](Emulator(Path(sys.argv[1])), range(1, 13))
