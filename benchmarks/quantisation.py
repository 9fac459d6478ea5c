"""How much the tokenizer's grid loses, with 12 and with 24 positions a beat.

    python benchmarks/quantisation.py FOLDER [--limit N] [--scheme REMI]

For each number of positions: how many onsets and ends the grid moves and how far, notes merged or cut because the grid
is coarse, tokens a note and the size of the vocabulary. FOLDER is searched for MIDI files; files that cannot be read
are counted.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from melodia.errors import MelodiaError
from melodia.midi import read_score
from melodia.tokenizer import SCHEMES, Tokenizer, TokenizerConfig
from melodia.tokenizer.grid import to_grid

TRIVIAL = 1e-6
AUDIBLE = 0.02
"""Quarter notes: 10 ms at 120 a minute."""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--limit", type=int, default=None, help="read every n-th file so that so many are read"
    )
    parser.add_argument("--scheme", choices=SCHEMES, default="REMI")
    arguments = parser.parse_args()
    files = sorted(p for p in arguments.folder.rglob("*") if p.suffix.lower() in (".mid", ".midi"))
    if arguments.limit and len(files) > arguments.limit:
        files = files[:: -(-len(files) // arguments.limit)]
    scores = []
    failed = 0
    for path in files:
        try:
            scores.append(read_score(path)[0])
        except MelodiaError:
            failed += 1
    print(f"{arguments.folder.name}: {len(scores)} files read, {failed} not; scheme {arguments.scheme}")
    columns = ["positions a beat", "V", "onsets moved", "mean / 99 % / largest", "ends moved > 0.02", "mean"]
    columns += ["merged", "cut", "tokens/note"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for positions in (12, 24):
        tokenizer = Tokenizer(TokenizerConfig(arguments.scheme, positions_per_beat=positions))
        onsets, ends, counts = [], [], Counter()
        tokens = notes = 0
        for score in scores:
            try:
                grid = to_grid(score, tokenizer.config)
                ids = tokenizer.encode(score).ids
            except MelodiaError:
                counts["refused"] += 1
                continue
            onsets.append(grid.moved["onset"])
            ends.append(grid.moved["end"])
            tokens += len(ids)
            notes += len(grid.onset)
            for finding in grid.findings:
                if finding.kind == "repaired":
                    counts[finding.what.split()[1]] += finding.count
        onset, end = np.concatenate(onsets), np.concatenate(ends)
        print(
            f"| {positions} | {tokenizer.vocabulary.size} | {(onset > TRIVIAL).mean():.2%} "
            f"| {onset.mean():.5f} / {np.percentile(onset, 99):.4f} / {onset.max():.4f} quarters "
            f"| {(end > AUDIBLE).mean():.2%} | {end.mean():.4f} quarters "
            f"| {counts['doubled'] / notes:.3%} | {counts['cut'] / notes:.3%} | {tokens / notes:.3f} |"
        )


if __name__ == "__main__":
    main()
