"""How far reading a seed and making music have come, for a caller who waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from melodia.sampler.lane import Lane

Told = Callable[[int, int, str], None]
"""Is called with how much is done of how much, and of what ("bars", "tokens"), whenever there is more."""


class Teller:
    """Tells how far the lane has come that is furthest behind.

    Args:
        told: is called.
        parts: as many groups of lanes run one after the other.

    Attributes:
        part: which of them runs, counted from 0.
    """

    def __init__(self, told: Told, parts: int = 1) -> None:
        self._told = told
        self._parts = parts
        self._last = -1
        self.part = 0

    def look(self, lanes: Sequence[Lane]) -> None:
        """Tell, if there is more than ever before (branches go the same way again) and it is known of how much."""
        places = [reached(lane) for lane in lanes]
        if not places or not all(wanted for _, wanted in places):
            return
        done, wanted = min(places, key=lambda place: place[0] / place[1])
        done += self.part * wanted
        if done > self._last:
            self._last = done
            self._told(done, self._parts * wanted, "bars" if lanes[0].request.tokens is None else "tokens")


def reached(lane: Lane) -> tuple[int, int]:
    """What a lane has done of what it is asked for: whole bars, or tokens where its length is given in these.

    All of it once it has ended. What is asked for is 0 while it is not known: a length in seconds becomes bars when the
    tempo is there.
    """
    plan, tokens = lane.plan, lane.request.tokens
    if tokens is not None:
        return (tokens if lane.ended else min(lane.count, tokens)), tokens
    wanted = plan.bars_done("length") if plan.last is not None else lane.request.bars or 0
    return (wanted if lane.ended else min(max(0, plan.bars_done("") - 1), wanted)), wanted
