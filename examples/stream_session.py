"""Music that does not end: hear notes as they are made, save the session, go on from the file later.

    python examples/stream_session.py SEED.mid SESSION_FILE [--model DIR]

Run it twice: the second time it goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from melodia import RECOMMENDED, Sampler

NOTES = 24
SETTINGS = {**RECOMMENDED, "branches": 1}  # what was heard cannot be taken back


def main() -> None:
    """Parse the arguments and do what the module says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=Path)
    parser.add_argument("session", type=Path)
    parser.add_argument("--model", type=Path, help="a checkpoint; default: the model that comes with melodia")
    arguments = parser.parse_args()

    sampler = Sampler.load(arguments.model)
    if arguments.session.exists():
        sampler.load_state(arguments.session)
        print(f"going on from {arguments.session}")
    else:
        sampler.prime(arguments.seed)

    stream = sampler.stream(endless=True, random_seed=7, **SETTINGS)
    for event in itertools.islice(stream, NOTES):
        program = "drums" if event.program < 0 else f"program {event.program}"
        print(f"{event.onset:8.2f} s  pitch {event.pitch:3}  for {event.duration:.2f} s  {program}")
    stream.state.save(arguments.session, force=True)
    print(f"saved {arguments.session}")


if __name__ == "__main__":
    main()
