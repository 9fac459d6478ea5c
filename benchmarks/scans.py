"""Training speed of the native scans against torch.nn, forward and backward, on the CPU.

    python benchmarks/scans.py [--threads N] [--repeats N] [--cpu-time] [--shape B,T,H ...] [--kind NAME ...] [--json F]

Two layers, or an LSTM beside a GRU whose outputs are added, read random tokens (512 of them). torch.nn: `Embedding`,
`LSTM`, `GRU`. melodia: the same weights with the first layer's input product replaced by the lookup E W_ih^T, as the
models do it; and without it; and in bfloat16 with it (float32 weights, autocast). All contestants take turns inside one
process, so that a busy machine slows all of them; medians and the ratios of medians are shown. The last columns set the
recurrence (the forward pass of an LSTM scan, its products only) against the rate of a square product of 1024, measured
in the same turns. `--cpu-time` counts the process's processor time instead of the clock's, which says more on a machine
that others use too; choose one thread then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from melodia import kernels
from melodia.kernels import shapes

VOCABULARY = 512
KINDS = {
    "lstm": ("lstm", "lstm"),
    "gru": ("gru", "gru"),
    "sequential": ("lstm", "gru"),
    "reversed": ("gru", "lstm"),
    "parallel": ("lstm", "gru"),
}


class Contest:
    """One kind and shape: the contestants, and what each of them computes per turn."""

    def __init__(self, kind: str, B: int, T: int, H: int) -> None:
        torch.manual_seed(0)
        self.kind, self.cells = kind, KINDS[kind]
        self.B, self.T, self.H = B, T, H
        self.embedding = nn.Embedding(VOCABULARY, H)
        self.layers: list[Any] = [(nn.LSTM if cell == "lstm" else nn.GRU)(H, H) for cell in self.cells]
        self.tokens = torch.randint(0, VOCABULARY, (T, B))
        self.zero = torch.zeros(B, H)
        self.square = torch.randn(1024, 1024)
        self.gates = torch.randn(T, B, 4 * H)
        self.recurrent = nn.LSTM(H, H)

    def backward(self, out: Tensor) -> None:
        """Forward has given `out`; run the backward pass from its sum."""
        for module in (self.embedding, *self.layers):
            module.zero_grad()
        out.float().sum().backward()

    def torch_nn(self) -> None:
        """Embedding, LSTM, GRU of torch.nn."""
        x = self.embedding(self.tokens)
        if self.kind == "parallel":
            self.backward(self.layers[0](x)[0] + self.layers[1](x)[0])
        else:
            self.backward(self.layers[1](self.layers[0](x)[0])[0])

    def melodia(self) -> None:
        """The same, the first input product as a lookup."""
        self.backward(self._ours(lookup=True))

    def melodia_without_lookup(self) -> None:
        """The same, every product made."""
        self.backward(self._ours(lookup=False))

    def melodia_bf16(self) -> None:
        """The same with the lookup, products in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            out = self._ours(lookup=True)
        self.backward(out)

    def _ours(self, lookup: bool) -> Tensor:
        first, second = self.layers
        if self.kind == "parallel":
            lstm, gru = self._first(first, lookup), self._first(second, lookup)
            zero = self.zero
            weights = (first.weight_hh_l0, first.bias_hh_l0, second.weight_hh_l0, second.bias_hh_l0)
            out = kernels.pair_scan(lstm, gru, zero, zero, zero, *weights)
            return out[0] + out[1]
        x = self._scan(first, self._first(first, lookup))
        return self._scan(second, F.linear(x, second.weight_ih_l0, second.bias_ih_l0))

    def _first(self, layer: Any, lookup: bool) -> Tensor:
        if not lookup:
            return F.linear(self.embedding(self.tokens), layer.weight_ih_l0, layer.bias_ih_l0)
        table = F.linear(self.embedding.weight, layer.weight_ih_l0, layer.bias_ih_l0)
        return kernels.lookup(self.tokens.unsqueeze(-1), table)

    def _scan(self, layer: Any, gates: Tensor) -> Tensor:
        zero, weights = self.zero, (layer.weight_hh_l0, layer.bias_hh_l0)
        if isinstance(layer, nn.LSTM):
            return kernels.lstm_scan(gates, zero, zero, *weights)[0]
        return kernels.gru_scan(gates, zero, *weights)[0]

    @torch.no_grad()
    def recurrence(self) -> None:
        """The forward recurrence of an LSTM alone."""
        a, zero = self.recurrent, self.zero
        torch.ops.melodia.lstm_scan(self.gates, zero, zero, a.weight_hh_l0, a.bias_hh_l0, None, shapes.GATES)

    def square_product(self) -> None:
        """A product of known speed."""
        self.square @ self.square


def measure(contest: Contest, repeats: int, clock: Callable[[], float], native: bool) -> dict[str, Any]:
    """All contestants in turns: medians in seconds, ratios of medians, and the recurrence's rate."""
    turns: list[Callable[[], None]] = [
        contest.torch_nn,
        contest.melodia,
        contest.melodia_without_lookup,
        contest.melodia_bf16,
    ]
    if native:
        turns.append(contest.recurrence)
    turns.append(contest.square_product)
    seconds: dict[str, list[float]] = {turn.__name__: [] for turn in turns}
    for repeat in range(repeats + 1):
        for turn in turns:
            start = clock()
            turn()
            if repeat:  # the first is a warm-up
                seconds[turn.__name__].append(clock() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    result: dict[str, Any] = {
        "kind": contest.kind,
        "shape": [contest.B, contest.T, contest.H],
        "seconds": median,
        "tokens_per_second": {
            name: contest.T * contest.B / median[name]
            for name in ("torch_nn", "melodia", "melodia_without_lookup", "melodia_bf16")
        },
        "times_faster": {
            name: median["torch_nn"] / median[name]
            for name in ("melodia", "melodia_without_lookup", "melodia_bf16")
        },
    }
    if native:
        rate = 8 * contest.T * contest.B * contest.H**2 / median["recurrence"]
        result["recurrence_flops"] = rate
        result["recurrence_of_square"] = rate / (2 * 1024**3 / median["square_product"])
    return result


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument(
        "--shape", nargs="+", default=["32,128,256", "32,128,512", "64,256,512"], metavar="B,T,H"
    )
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = kernels.backend_report()
    print(f"torch {torch.__version__}, {options.threads} threads, {report.runs}: {report.why}\n")
    print(
        "| kind |  B,  T,  H | torch.nn ms | melodia ms | times faster | without lookup | bf16 | of square |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for shape in options.shape:
        for kind in options.kind:
            contest = Contest(kind, *map(int, shape.split(",")))
            clock = time.process_time if options.cpu_time else time.perf_counter
            row = measure(contest, options.repeats, clock, report.runs == "native")
            rows.append(row)
            faster, seconds = row["times_faster"], row["seconds"]
            print(
                f"| {kind} | {shape} | {seconds['torch_nn'] * 1e3:.0f} | {seconds['melodia'] * 1e3:.0f} | "
                f"{faster['melodia']:.2f} | {faster['melodia_without_lookup']:.2f} | {faster['melodia_bf16']:.2f} | "
                f"{row.get('recurrence_of_square', float('nan')):.2f} |",
                flush=True,
            )
    if options.json is not None:
        facts = {
            "torch": torch.__version__,
            "threads": options.threads,
            "clock": "processor" if options.cpu_time else "wall",
            "repeats": options.repeats,
            "instruction_set": report.instruction_set,
            "rows": rows,
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
