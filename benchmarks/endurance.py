"""Endless music through the sampler's stream: memory and time of a token at the beginning and a million tokens later.

`python -m benchmarks.endurance --model FOLDER` prints a line per piece of the way and a verdict. Time is that of the
processor, so that other programs disturb it less; on a busy machine it still drifts. Needs Linux.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path

from melodia.sampler import Sampler


def resident() -> int:
    """Memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--weights", default="int8", choices=("fp32", "bf16", "int8"))
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--pieces", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    sampler = Sampler.load(options.model, weights=options.weights)
    stream = sampler.stream(endless=True, random_seed=1, temperature=0.9, top_p=0.95)
    lane = stream._lane
    while lane.count < 1000:
        next(stream)
    gc.collect()
    first = resident()
    print(f"after 1,000 tokens: {first / 1e6:.1f} MB")
    rows, events = [], 0
    for piece in range(1, options.pieces + 1):
        began, wall, before = time.process_time(), time.perf_counter(), lane.count
        while lane.count < 1000 + piece * options.tokens // options.pieces:
            next(stream)
            events += 1
        made = lane.count - before
        row = {
            "tokens": lane.count,
            "microseconds": (time.process_time() - began) / made * 1e6,
            "wall_microseconds": (time.perf_counter() - wall) / made * 1e6,
            "megabytes": resident() / 1e6,
        }
        rows.append(row)
        print(
            f"{lane.count:>10,} tokens: {row['microseconds']:.1f} µs a token ({row['wall_microseconds']:.1f} by the "
            f"wall), {row['megabytes']:.1f} MB",
            flush=True,
        )
    share = max(1, len(rows) // 4)
    early = statistics.median(row["microseconds"] for row in rows[:share])
    late = statistics.median(row["microseconds"] for row in rows[-share:])
    gc.collect()
    grown = resident() - first
    print(
        f"{events:,} notes; memory grew by {grown / 1e3:,.0f} kB; time of a token {late / early:.2f} times the first"
    )
    if options.json:
        options.json.write_text(
            json.dumps({"rows": rows, "grown_bytes": grown, "ratio": late / early}, indent=1)
        )


if __name__ == "__main__":
    main()
