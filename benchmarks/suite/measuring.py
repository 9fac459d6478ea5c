"""Times of several ways of doing one thing, taken in turns so that a disturbance meets all of them.

A *way* does its work n times when called. In each round every way has a turn, in the opposite order to the round
before; a turn is a few unmeasured calls (the caches are the way's own again), then as many as fill its time. A way's
figure is the median of its turns; rounds go on until the time for them is over.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PAUSE = 0.004
"""Seconds between turns: the waiting threads of the way before (OpenMP, ONNX Runtime) go to sleep meanwhile."""
FEWEST_ROUNDS = 3
MOST_ROUNDS = 51


@dataclass(frozen=True)
class Way:
    """One way of doing the work.

    Attributes:
        work: does it n times.
        prepare: called before every turn, such as to set torch's number of threads; not measured.
        timed: gives the seconds of n times itself, where the work is done in another process; `work` is not used.
    """

    work: Callable[[int], object]
    prepare: Callable[[], object] | None = None
    timed: Callable[[int], float] | None = None

    def seconds(self, times: int) -> float:
        """How long it takes to do the work so many times."""
        if self.timed is not None:
            return self.timed(times)
        began = time.perf_counter()
        self.work(times)
        return time.perf_counter() - began


def repeated(call: Callable[[], object], prepare: Callable[[], object] | None = None) -> Way:
    """A way whose work is a call, once each time."""

    def work(times: int) -> None:
        for _ in range(times):
            call()

    return Way(work, prepare)


@dataclass(frozen=True)
class Timing:
    """What was found of one way, in seconds per time.

    Attributes:
        turns: of each turn, in order.
        times: how many times the work was done in each.
    """

    turns: tuple[float, ...]
    times: int

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.turns)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median: how quiet the machine was.

        >>> Timing((1.0, 1.0, 1.0, 1.0), 1).spread
        0.0
        """
        if len(self.turns) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.turns, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def interleave(
    ways: Mapping[str, Way], seconds: float, *, turn: float | None = None, rounds: int = FEWEST_ROUNDS
) -> dict[str, Timing]:
    """Measure ways in turns.

    Args:
        ways: by name.
        seconds: for all of it, the calibration included; more is taken where `rounds` need it.
        turn: seconds of one way's turn; None: what leaves time for nine rounds, within 0.02 and 0.25.
        rounds: the fewest.
    """
    if not ways:
        return {}
    began = time.perf_counter()
    if turn is None:
        turn = min(0.25, max(0.02, seconds / len(ways) / 10))
    times = {name: _calibrate(way, turn) for name, way in ways.items()}
    turns: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    done = 0
    while done < rounds or (time.perf_counter() - began < seconds and done < MOST_ROUNDS):
        for name in order:
            way = ways[name]
            time.sleep(PAUSE)
            if way.prepare is not None:
                way.prepare()
            if times[name] > 1:
                way.seconds(max(1, times[name] // 10))
            turns[name].append(way.seconds(times[name]) / times[name])
        order.reverse()
        done += 1
    return {name: Timing(tuple(found), times[name]) for name, found in turns.items()}


def _calibrate(way: Way, turn: float) -> int:
    """How many times the way does its work in a turn; the first times, which set things up, do not count."""
    if way.prepare is not None:
        way.prepare()
    if way.seconds(1) > 4 * turn:  # once is long enough, warm or not
        return 1
    times, taken = 1, way.seconds(1)
    while taken < turn / 4 and times < 1 << 20:
        times *= 4
        taken = way.seconds(times)
    return max(1, round(times * turn / taken)) if taken < turn else 1


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5), percentile([1.0, 2.0], 0.999)
    (2.0, 2.0)
    """
    if not values:
        raise ValueError("a percentile needs values")
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)  # rounded up
    return ordered[min(len(ordered), max(1, rank)) - 1]
