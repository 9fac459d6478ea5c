"""Processor time of the grammar machine and of side inputs in Python, per token.

    python benchmarks/grammar.py [FOLDER]

Encodes the MIDI files of FOLDER (midi_samples/ if not given) in every scheme and follows them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from melodia.grammar import Grammar
from melodia.midi import read_score
from melodia.side_inputs import SideInputTracker, default_specs, side_inputs
from melodia.tokenizer import SCHEMES, Tokenizer, TokenizerConfig


def main() -> None:
    """Measure and print a table."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "midi_samples"
    scores = [read_score(path)[0] for path in sorted(folder.rglob("*.mid"))[:40]]
    print("| scheme | V | tokens | compile | advance | mask and advance | side inputs by token | by piece |")
    print("|---|---|---|---|---|---|---|---|")
    for scheme in SCHEMES:
        tokenizer = Tokenizer(TokenizerConfig(scheme))
        vocabulary = tokenizer.vocabulary
        pieces = [tokenizer.encode(score).ids for score in scores]
        begin = time.process_time()
        grammar = Grammar.compile(vocabulary)
        seconds = [time.process_time() - begin]
        for work in (_advance, _mask_and_advance, _track, _whole):
            begin = time.process_time()
            for piece in pieces:
                work(grammar, piece)
            seconds.append(time.process_time() - begin)
        count = sum(map(len, pieces))
        micros = [f"{1e6 * part / count:.2f} µs" for part in seconds[1:]]
        print(
            f"| {scheme} | {vocabulary.size} | {count:,} | {1e3 * seconds[0]:.1f} ms | {' | '.join(micros)} |"
        )


def _advance(grammar: Grammar, piece: NDArray[np.int32]) -> None:
    state = grammar.start()
    for token in piece.tolist():
        grammar.advance(state, token, check=False)


def _mask_and_advance(grammar: Grammar, piece: NDArray[np.int32]) -> None:
    state = grammar.start()
    for token in piece.tolist():
        grammar.mask(state)
        grammar.advance(state, token, check=False)


def _track(grammar: Grammar, piece: NDArray[np.int32]) -> None:
    tracker = SideInputTracker(grammar.vocabulary, default_specs(grammar.vocabulary))
    for token in piece.tolist():
        tracker.advance(token)


def _whole(grammar: Grammar, piece: NDArray[np.int32]) -> None:
    side_inputs(grammar.vocabulary, piece, default_specs(grammar.vocabulary))


if __name__ == "__main__":
    main()
