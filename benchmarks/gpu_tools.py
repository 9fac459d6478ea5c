"""What the measurements of gpu_check.py share: library, arguments, medians, CUDA graphs, clocks, rows of a table."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu_begun import Begun
from melodia.errors import MelodiaError

MARK = "RESULT "  # a line of a part's output that holds a row of its table, as JSON
NOTE = "NOTE "  # one that stands above its table
LIMIT_NS = (
    200_000_000  # of a block's wait for another, which is for microseconds; a hang must not cost the part
)
DEVICE = "cuda"  # tests of the measurements themselves choose another
LEAST_MS = 0.2  # between two events: a call of a few microseconds is repeated until it takes that long
MOST_REPEATS = 64
FAILURES = (MelodiaError, ValueError, RuntimeError)  # of an engine or of torch
DRAWN = 1 << 20  # random numbers; where more are needed, these again and again
WARM_S = 0.2  # of work before a part's first timing, since the clocks of a GPU that has waited are low
AGAIN_S, IDLE_S = 0.05, 0.5  # as much work again where it has waited for longer
PATHS = {"automatic": 0, "resident": 1, "steps": 2, "rows": 3}
EXCHANGES = {"automatic": 0, "counter": 1, "in_band": 2}


def library() -> Any:
    """The CUDA library, which has to be usable."""
    from melodia.kernels import cuda

    if cuda.reason() is not None:
        raise SystemExit(cuda.reason())
    loaded = cuda._load()[0]
    assert loaded is not None
    loaded.melodia_cuda_configure(0, 0, LIMIT_NS)
    return loaded


def chosen(loaded: Any) -> str:
    """The path that the last scan took."""
    number = loaded.melodia_cuda_chosen()
    return next(name for name, value in PATHS.items() if value == number)


def rescues() -> int | None:
    """Launches so far that gave up waiting and were made again the slow way; None: nobody counts them.

    Less than 0: the device does not answer.
    """
    from melodia.kernels import cuda

    count = getattr(cuda._load()[0], "melodia_cuda_rescues", None)
    if count is None:
        return None
    count.restype = ctypes.c_int64
    found: int = count()
    return found


def note_rescues(before: int | None = 0, what: str = "") -> None:
    """A note of them, if there were any since there had been `before`."""
    found = rescues()
    if found is None or before is None or found == before:
        return
    says = (
        "the device does not answer any more"
        if found < 0
        else f"{found - before} launches gave up waiting and were made again the slow way: their times say nothing"
    )
    note(f"{what}: {says}" if what else says)


def normal(*shape: int, dtype: Any) -> Any:
    """Random numbers on the device, drawn by the CPU: a capture that failed can leave CUDA's own generator unusable."""
    import torch

    some = torch.randn(DRAWN).to(DEVICE, dtype)
    size = math.prod(shape)
    return some.repeat(math.ceil(size / DRAWN))[:size].view(shape)


def arguments(kind: str, T: int, B: int, H: int, dtype: Any) -> list[Any]:
    """gates_x, states, weight_hh, bias_hh of an "lstm" or "gru" scan on the GPU."""
    import torch

    G = {"lstm": 4, "gru": 3}[kind]
    states = [normal(B, H, dtype=dtype) for _ in range(2 if kind == "lstm" else 1)]
    weight = normal(G * H, H, dtype=dtype) / H**0.5
    return [
        normal(T, B, G * H, dtype=dtype),
        *states,
        weight,
        torch.zeros(G * H, device=DEVICE, dtype=dtype),
    ]


def waves(cells: list[list[Any]]) -> tuple[list[Any], ...]:
    """The arguments of several scans as those of `kernels.wave_scan`."""
    lists: tuple[list[Any], ...] = ([], [], [], [], [])
    for gates_x, h, *c, weight, bias in cells:
        for some, own in zip(lists, ([gates_x], [h], c, [weight], [bias]), strict=True):
            some += own
    return lists


class _Warmth:
    """When the GPU had work last."""

    busy: float | None = None


def warm() -> None:
    """Give the GPU work until its clocks are up, where it has had none for a while."""
    import torch

    now = time.monotonic()
    last = _Warmth.busy
    seconds = WARM_S if last is None else AGAIN_S if now - last > IDLE_S else 0.0
    if seconds:
        a = normal(4096, 4096, dtype=torch.bfloat16)
        while time.monotonic() < now + seconds:
            for _ in range(16):
                torch.mm(a, a)
            torch.cuda.synchronize()
    _Warmth.busy = time.monotonic()


def medians(contestants: dict[str, Callable[[], object]], turns: int = 7, what: str = "") -> dict[str, float]:
    """Median milliseconds of each, all taking turns; one that fails is left out, with a note that says of what.

    Short ones run several times between two events, each as often as its first turns say. A note says where launches
    gave up waiting meanwhile.
    """
    import torch

    warm()
    before = rescues()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    repeats = dict.fromkeys(contestants, 1)
    for turn in range(turns + 2):
        for name in list(times):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            try:
                begin.record()
                repeat(contestants[name], repeats[name])
                end.record()
                end.synchronize()
            except RuntimeError as error:
                torch.cuda.synchronize()  # an error that stays ends the part
                note(f"{what}{', ' if what else ''}{name}: {error}")
                del times[name]
                continue
            took = begin.elapsed_time(end) / repeats[name]
            if turn >= 2:  # the first two warm up
                times[name].append(took)
            else:
                repeats[name] = min(MOST_REPEATS, math.ceil(LEAST_MS / max(took, 1e-6)))
    note_rescues(before, what)
    _Warmth.busy = time.monotonic()
    return {name: statistics.median(values) for name, values in times.items()}


_HELD_BACK = {  # bits of nvidia-smi's clocks_event_reasons.active
    0x1: "idle",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def note_clocks(when: str) -> None:
    """A note of the clocks and of what holds them back, where nvidia-smi says it."""
    fields = ["clocks.sm", "clocks.mem", "temperature.gpu", "power.draw"]
    for reasons in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):  # new name, old name
        query = ",".join([*fields, reasons])
        command = ["nvidia-smi", "--id=0", f"--query-gpu={query}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return
        found = [value.strip() for value in done.stdout.split(",")]
        if done.returncode == 0 and len(found) == len(fields) + 1:
            sm, memory, celsius, watts, bits = found
            held = int(bits, 16) if bits.startswith("0x") else 0
            why = ", ".join(name for bit, name in _HELD_BACK.items() if held & bit) or bits
            note(f"{when}: SM {sm}, memory {memory}, {celsius} C, {watts}; clocks held back by: {why}")
            return


def note(text: str) -> None:
    """A line above the part's table."""
    print(NOTE + text.splitlines()[0], flush=True)


def row(**values: object) -> None:
    """A row of the part's table."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
    print(MARK + json.dumps(shown), flush=True)


def captured(**runs: Callable[[], None]) -> dict[str, Callable[[], object]]:
    """The same in CUDA graphs; one that cannot be captured is left out and its error printed."""
    import torch

    graphs: dict[str, Callable[[], object]] = {}
    for name, run in runs.items():
        try:
            run()
            torch.cuda.synchronize()
            graphs[f"{name}, graph"] = capture(run)
        except FAILURES as error:
            forget_capture()
            note(f"{name}, graph: {error}")
    return graphs


def capture(run: Callable[[], object]) -> Callable[[], object]:
    """A CUDA graph of it. What frees memory meanwhile would end the capture, so nothing is collected."""
    import torch

    gc.collect()
    gc.disable()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    finally:
        gc.enable()
    return graph.replay


def forget_capture() -> None:
    """Leave what torch leaves behind where a capture fails at its end: its stream, and a generator that is captured.

    An error that stays ends the part here.
    """
    import torch

    torch.cuda.set_stream(torch.cuda.default_stream())
    torch.cuda.synchronize()
    capture(torch.zeros(1, device=DEVICE).zero_)


def begins(what: str) -> bool:
    """Whether a row is to be measured, which is kept; not where another process of this part began it already.

    So a row that takes the process with it, or hangs, does not take those behind it along.
    """
    begun = Begun.here()
    if begun is not None:
        if what in begun.names():
            return False
        begun.begin(what)
    return True


def repeat(run: Callable[[], object], times: int) -> None:
    """Call it so many times."""
    for _ in range(times):
        run()
