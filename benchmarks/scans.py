"""Training speed of the native scans against torch.nn, forward and backward, on the CPU.

    python benchmarks/scans.py [--threads N] [--repeats N] [--cpu-time] [--shape B,T,H ...]

An LSTM layer and a GRU layer on top of it read random tokens (512 of them). torch.nn: `Embedding`, `LSTM`, `GRU`.
melodia: the same with the first layer's input product replaced by the lookup E W_ih^T, as the models do it; and, for
the recurrence alone, without it. All contestants take turns inside one process, so that a busy machine slows all of
them; medians and the ratios of medians are shown. The last columns set the recurrence (its products only) against
the rate of a square product of 1024, measured in the same turns. `--cpu-time` counts the process's processor time
instead of the clock's, which says more on a machine that others use too; choose one thread then.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from melodia import kernels
from melodia.kernels import native_ops

VOCABULARY = 512


class Contest:
    """One shape: the contestants, and what each of them computes per turn."""

    def __init__(self, B: int, T: int, H: int) -> None:
        torch.manual_seed(0)
        self.B, self.T, self.H = B, T, H
        self.embedding = nn.Embedding(VOCABULARY, H)
        self.lstm, self.gru = nn.LSTM(H, H), nn.GRU(H, H)
        self.tokens = torch.randint(0, VOCABULARY, (T, B))
        self.zero = torch.zeros(B, H)
        self.square = torch.randn(1024, 1024)
        self.gates = torch.randn(T, B, 4 * H)

    def backward(self, out: Tensor) -> None:
        """Forward has given `out`; run the backward pass from its sum."""
        for module in (self.embedding, self.lstm, self.gru):
            module.zero_grad()
        out.sum().backward()

    def torch_nn(self) -> None:
        """Embedding, LSTM, GRU of torch.nn."""
        self.backward(self.gru(self.lstm(self.embedding(self.tokens))[0])[0])

    def melodia(self) -> None:
        """The same, the first input product as a lookup."""
        a, b, zero = self.lstm, self.gru, self.zero
        gates = F.embedding(self.tokens, F.linear(self.embedding.weight, a.weight_ih_l0, a.bias_ih_l0))
        x = kernels.lstm_scan(gates, zero, zero, a.weight_hh_l0, a.bias_hh_l0)[0]
        gates = F.linear(x, b.weight_ih_l0, b.bias_ih_l0)
        self.backward(kernels.gru_scan(gates, zero, b.weight_hh_l0, b.bias_hh_l0)[0])

    def melodia_without_lookup(self) -> None:
        """The same, every product made."""
        a, b, zero = self.lstm, self.gru, self.zero
        gates = F.linear(self.embedding(self.tokens), a.weight_ih_l0, a.bias_ih_l0)
        x = kernels.lstm_scan(gates, zero, zero, a.weight_hh_l0, a.bias_hh_l0)[0]
        gates = F.linear(x, b.weight_ih_l0, b.bias_ih_l0)
        self.backward(kernels.gru_scan(gates, zero, b.weight_hh_l0, b.bias_hh_l0)[0])

    @torch.no_grad()
    def recurrence(self) -> None:
        """The forward recurrence of the LSTM alone."""
        a, zero = self.lstm, self.zero
        torch.ops.melodia.lstm_scan(
            self.gates, zero, zero, a.weight_hh_l0, a.bias_hh_l0, None, native_ops.GATES
        )

    def square_product(self) -> None:
        """A product of known speed."""
        self.square @ self.square


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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    report = kernels.backend_report()
    print(f"torch {torch.__version__}, {options.threads} threads, {report.runs}: {report.why}\n")
    print(
        "|  B,  T,  H | torch.nn ms | melodia ms | times faster | without lookup | recurrence GFLOP/s | of square |"
    )
    print("|---|---|---|---|---|---|---|")
    for shape in options.shape:
        contest = Contest(*map(int, shape.split(",")))
        turns: list[Callable[[], None]] = [contest.torch_nn, contest.melodia, contest.melodia_without_lookup]
        if report.runs == "native":
            turns.append(contest.recurrence)
        turns.append(contest.square_product)
        seconds: dict[str, list[float]] = {turn.__name__: [] for turn in turns}
        for repeat in range(options.repeats + 1):
            for turn in turns:
                start = clock()
                turn()
                if repeat:  # the first is a warm-up
                    seconds[turn.__name__].append(clock() - start)
        median = {name: statistics.median(times) for name, times in seconds.items()}
        theirs, ours, plain = (median[turn.__name__] for turn in turns[:3])
        row = f"| {shape} | {theirs * 1e3:.0f} | {ours * 1e3:.0f} | {theirs / ours:.2f} | {theirs / plain:.2f} |"
        if "recurrence" in median:
            rate = 8 * contest.T * contest.B * contest.H**2 / median["recurrence"]
            square = 2 * 1024**3 / median["square_product"]
            row += f" {rate / 1e9:.0f} | {rate / square:.2f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
