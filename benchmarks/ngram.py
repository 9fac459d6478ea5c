"""The n-gram judge on a corpus: what a network must beat.

Reads the folder as `melodia train` does, counts the training pieces, and prints negative log-likelihoods of the
held-out ones: `python benchmarks/ngram.py CORPUS_DIR [--order 5]`. Velocities of pieces that have only one are left
out, as they are in training.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from melodia.corpus.build import build_corpus
from melodia.corpus.shards import Corpus, Pieces
from melodia.errors import MelodiaError
from melodia.evaluation.ngram import KneserNey
from melodia.measure import Likelihood
from melodia.tokenizer import SCHEMES, TokenizerConfig


def score(train: Pieces, valid: Pieces, corpus: Corpus, order: int) -> tuple[KneserNey, Likelihood]:
    """Train on one split, score the other."""
    pieces = list(train)
    model = KneserNey.train(
        [piece.tokens for piece in pieces],
        corpus.vocabulary,
        order=order,
        constant_velocity=[piece.constant_velocity for piece in pieces],
    )
    held = list(valid)
    likelihood = model.nll(
        [piece.tokens for piece in held], constant_velocity=[piece.constant_velocity for piece in held]
    )
    return model, likelihood


def main() -> int:
    """Parse, build, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS_DIR", help="a folder of MIDI files")
    parser.add_argument(
        "--order", type=int, default=5, help="longest n-gram; all orders up to it are printed"
    )
    parser.add_argument("--scheme", choices=SCHEMES, default="REMI")
    parser.add_argument("--positions", type=int, default=12, help="grid units a beat")
    parser.add_argument("--bpe", type=int, default=None, help="vocabulary size of byte pair encoding")
    parser.add_argument("--out", type=Path, default=None, help="keep the corpus here")
    parser.add_argument("--workers", type=int, default=None)
    arguments = parser.parse_args()
    config = TokenizerConfig(
        scheme=arguments.scheme, positions_per_beat=arguments.positions, bpe_vocab_size=arguments.bpe
    )
    with tempfile.TemporaryDirectory() as scratch:
        try:
            summary = build_corpus(
                arguments.corpus, arguments.out or Path(scratch), config, workers=arguments.workers
            )
        except MelodiaError as error:
            print(f"ngram.py: {error}", file=sys.stderr)
            return 1
        print("\n".join(summary.lines()[:-1]))
        print(f"read in {summary.wall_seconds:.1f} s")
        corpus = Corpus.open(summary.folder)
        train, valid = corpus.pieces("train"), corpus.pieces("valid")
        notes = int(train.notes.sum() + valid.notes.sum())
        print(
            f"{arguments.scheme}, {arguments.positions} positions a beat: vocabulary {corpus.vocabulary.size}, "
            f"{(train.tokens + valid.tokens) / max(notes, 1):.3f} tokens a note"
        )
        if not len(train) or not len(valid):
            print("ngram.py: needs pieces on both sides of the split", file=sys.stderr)
            return 1
        for order in range(1, arguments.order + 1):
            started = time.process_time()
            model, likelihood = score(train, valid, corpus, order)
            print(
                f"KN-{order}: {likelihood.interval('token')} nats/token, {likelihood.interval('note')} nats/note"
                + (f", {likelihood.per('bar'):.2f} nats/bar" if "bar" in likelihood.units() else "")
                + f" ({model.size:,} n-grams, {time.process_time() - started:.1f} s)"
            )
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
