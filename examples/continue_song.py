"""Continue a song in several ways, each from the same primed state.

python examples/continue_song.py SEED.mid OUT_FOLDER [--model DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from melodia import RECOMMENDED, Sampler
from melodia.midi import write_midi

WAYS = {
    "plain": RECOMMENDED,
    "careful": {"temperature": 0.8, "min_p": 0.05},
    "in-three": {**RECOMMENDED, "metre": (3, 4)},
    "under-chords": {**RECOMMENDED, "chords": "Am | F G | C | E7"},
}


def main() -> None:
    """Parse the arguments and do what the module says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, help="a checkpoint; default: the model that comes with melodia")
    arguments = parser.parse_args()

    sampler = Sampler.load(arguments.model)
    print(*sampler.prime(arguments.seed, seed_bars=8).lines(), sep="\n")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, settings in WAYS.items():
        continuation = sampler.generate(bars=8, random_seed=1, **settings)
        path = arguments.out / f"{arguments.seed.stem}-{name}.mid"
        write_midi(continuation.joined_score, path, force=True)
        print(f"{path}: {continuation.report.lines()[0]}, {continuation.report.nll:.2f} nats per token")


if __name__ == "__main__":
    main()
