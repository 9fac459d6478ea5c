"""Continuations of held-out pieces against how those pieces really go on.

`python benchmarks/continuations.py MODEL FOLDER [--seed-bars 16] [--bars 16] [--pieces 100]` continues the beginning of
every MIDI file of FOLDER that is long enough, and compares the new bars with the same bars of the real piece: musical
statistics side by side, the share of notes in the seed's own scale, and how many of both lose themselves in loops.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from melodia.corpus.discover import find_midi_files
from melodia.decode.config import TEMPERATURE, TOP_P
from melodia.errors import MelodiaError
from melodia.evaluation.collapse import collapse_report
from melodia.evaluation.comparison import compare_sets
from melodia.evaluation.statistics import estimate_key, pitch_in_scale
from melodia.midi import cut_score, read_score
from melodia.midi.bars import bar_table
from melodia.midi.join import window
from melodia.sampler import Sampler

LEAST_NOTES = 8  # of the real bars: nothing can be said of fewer


def continue_pieces(
    sampler: Sampler, arguments: argparse.Namespace
) -> tuple[list[Any], list[Any], list[Any]]:
    """The seeds, the real bars behind them, and the bars that the model puts there."""
    seeds, real, generated = [], [], []
    for number, found in enumerate(find_midi_files(arguments.folder)):
        if len(seeds) == arguments.pieces:
            break
        try:
            score, _ = read_score(found.path)
            table = bar_table(score)
            if len(table) < arguments.seed_bars + arguments.bars:
                continue
            seed, _ = cut_score(score, bars=arguments.seed_bars)
            start, stop = (table.line(arguments.seed_bars + k) for k in (0, arguments.bars))
            truth, _ = window(score, start, stop)
            if truth.note_num() < LEAST_NOTES or seed.note_num() < LEAST_NOTES:
                continue
            sampler.prime(score, seed_bars=arguments.seed_bars)
            continuation = sampler.generate(
                bars=arguments.bars,
                temperature=arguments.temperature,
                top_p=arguments.top_p,
                random_seed=number,
            )
        except MelodiaError as error:
            print(f"{found.path}: {error}", file=sys.stderr)
            continue
        seeds.append(seed)
        real.append(truth)
        generated.append(continuation.score)
    return seeds, real, generated


def key_agreement(seeds: list[Any], scores: list[Any]) -> tuple[float, float]:
    """The mean share of notes in the scale of the seed's key, and the share of scores in the seed's own key."""
    inside, same = [], []
    for seed, score in zip(seeds, scores, strict=True):
        key = estimate_key(seed)
        if key is None:
            continue
        inside.append(pitch_in_scale(score, key.tonic, key.mode))
        other = estimate_key(score)
        same.append(other is not None and (other.tonic, other.mode) == (key.tonic, key.mode))
    return float(np.mean(inside)), float(np.mean(same))


def main() -> int:
    """Parse, continue, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed-bars", type=int, default=16)
    parser.add_argument("--bars", type=int, default=16)
    parser.add_argument("--pieces", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--top-p", type=float, default=TOP_P)
    arguments = parser.parse_args()
    try:
        sampler = Sampler.load(arguments.model)
        seeds, real, generated = continue_pieces(sampler, arguments)
        if len(seeds) < 2:
            raise MelodiaError(f"{arguments.folder}: fewer than two pieces of that length; give more music")
    except MelodiaError as error:
        print(f"continuations: {error}", file=sys.stderr)
        return 1
    print("\n".join(compare_sets(real, generated).lines()))
    for name, scores in (("real", real), ("generated", generated)):
        inside, same = key_agreement(seeds, scores)
        looping = [collapse_report(score).findings for score in scores]
        print(
            f"{name}: {inside:.3f} of the notes in the seed's scale, {same:.2f} in the seed's key, "
            f"{sum(map(bool, looping))} of {len(scores)} with a collapse finding"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
