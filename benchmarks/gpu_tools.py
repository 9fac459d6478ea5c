"""What the measurements of gpu_check.py share: the library, arguments, medians, CUDA graphs, rows of a table."""

from __future__ import annotations

import ctypes
import json
import statistics
from collections.abc import Callable
from typing import Any

MARK = "RESULT "  # a line of a part's output that holds a row of its table, as JSON
NOTE = "NOTE "  # one that stands above its table
LIMIT_NS = (
    200_000_000  # of a block's wait for another, which is for microseconds; a hang must not cost the part
)
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


def note_rescues() -> None:
    """A note of them, if there were any."""
    found = rescues()
    if found:
        note(
            "the device does not answer any more"
            if found < 0
            else f"{found} launches gave up waiting and were made again the slow way: their times say nothing"
        )


def arguments(kind: str, T: int, B: int, H: int, dtype: Any) -> list[Any]:
    """gates_x, states, weight_hh, bias_hh of an "lstm" or "gru" scan on the GPU."""
    import torch

    G = {"lstm": 4, "gru": 3}[kind]
    states = [torch.randn(B, H, device="cuda", dtype=dtype) for _ in range(2 if kind == "lstm" else 1)]
    weight = torch.randn(G * H, H, device="cuda", dtype=dtype) / H**0.5
    return [
        torch.randn(T, B, G * H, device="cuda", dtype=dtype),
        *states,
        weight,
        torch.zeros(G * H, device="cuda", dtype=dtype),
    ]


def waves(cells: list[list[Any]]) -> tuple[list[Any], ...]:
    """The arguments of several scans as those of `kernels.wave_scan`."""
    lists: tuple[list[Any], ...] = ([], [], [], [], [])
    for gates_x, h, *c, weight, bias in cells:
        for some, own in zip(lists, ([gates_x], [h], c, [weight], [bias]), strict=True):
            some += own
    return lists


def medians(contestants: dict[str, Callable[[], object]], turns: int = 7, what: str = "") -> dict[str, float]:
    """Median milliseconds of each, all taking turns; one that fails is left out, with a note that says of what."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 2):
        for name in list(times):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            try:
                begin.record()
                contestants[name]()
                end.record()
                end.synchronize()
            except RuntimeError as error:
                torch.cuda.synchronize()  # an error that stays ends the part
                note(f"{what}{', ' if what else ''}{name}: {error}")
                del times[name]
                continue
            if turn >= 2:  # the first two warm up
                times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


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
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            graphs[f"{name}, graph"] = graph.replay
        except RuntimeError as error:
            torch.cuda.synchronize()  # an error that stays ends the part
            note(f"{name}, graph: {error}")
    return graphs


def repeat(run: Callable[[], object], times: int) -> None:
    """Call it so many times."""
    for _ in range(times):
        run()
