"""Runs notochord in an environment of its own, and tells its times.

Started by `notochord_peer.Notochord` with that environment's Python; it imports nothing of melodia. Each line of
standard input is a number of events; the answer is a line of JSON with the seconds they took. An event is what
notochord's own applications do for one: `query` (sample instrument, pitch, time and velocity), then `feed` it.
"""

import argparse
import json
import sys
import time


def main() -> None:
    """Make the network, say so, answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # what the package prints is no answer

    import notochord
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    network = notochord.Notochord().eval()  # its default size
    network.reset()

    def say(values: dict) -> None:
        print(json.dumps(values), file=answers, flush=True)

    query = feed = 0.0

    def event() -> None:
        nonlocal query, feed
        began = time.perf_counter()
        made = network.query()
        asked = time.perf_counter()
        network.feed(**made)
        query, feed = query + asked - began, feed + time.perf_counter() - asked
        if network.step % 200 == 0:
            network.reset()  # as weights are random, notes would be held for ever and their list grow

    for _ in range(5):
        event()
    from importlib.metadata import version

    say(
        {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "notochord": version("notochord"),
            "torch": version("torch"),
        }
    )
    for line in sys.stdin:
        query = feed = 0.0
        began = time.perf_counter()
        for _ in range(int(line)):
            event()
        say({"seconds": time.perf_counter() - began, "query": query, "feed": feed})


if __name__ == "__main__":
    main()
