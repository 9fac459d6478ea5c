"""Streams: events as they are produced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

from melodia.errors import MelodiaError
from melodia.interrupts import ctrl_c_waits
from melodia.sampler.continuation import Event
from melodia.sampler.lane import Lane
from melodia.sampler.loop import Loop
from melodia.sampler.session import Session


class Stream(Iterator[Event]):
    """Events as they are produced; made by `Sampler.stream`.

    Notes come in the order of their tokens: by onset, as soon as their length is known. A note that would sound over
    the final bar line is cut there; only where the length is asked in tokens, or metre or tempo may change, is that
    line not known beforehand.

    Ctrl-C waits for the end of a step, a twentieth of a second, and no event is lost: the stream goes on behind it, and
    so does its `state`. Where another exception from outside, such as one of another signal's handler, comes in the
    midst of a step, both raise MelodiaError from then on. They raise it, too, while another thread is in them, which
    changes nothing: any thread may take the next event, but one at a time.
    """

    def __init__(self, loop: Loop, lane: Lane) -> None:
        self._loop = loop
        loop.note_by_note()
        self._lane = lane
        self._heard = 0  # of the lane's notes
        self._in_use = threading.Lock()

    @property
    def random_seed(self) -> int:
        """The random seed that gives this stream again."""
        return self._lane.request.random_seed

    @property
    def state(self) -> Session:
        """The session behind the last event: an endless stream from it goes on as this one does.

        Time goes on, too. `generate` from it counts the bar that is under way, and what was heard of this stream is
        a rest in `Continuation.score` and `joined`.

        Raises:
            MelodiaError: a step was broken off.
        """
        with ctrl_c_waits(), self._alone():
            session = self._loop.snapshot(self._lane)
            return replace(session, waiting=tuple(self._lane.notes[self._heard :]))

    def __reduce__(self) -> NoReturn:
        """A copy would share the notes with this stream, so that both left some out."""
        raise TypeError("a stream is not copied or pickled; keep its `state` and begin another one from that")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._in_use.acquire(blocking=False):
            raise MelodiaError("another thread is using this stream; let one at a time take its events")
        try:
            yield
        finally:
            self._in_use.release()

    def __next__(self) -> Event:
        lane = self._lane
        while self._heard == len(lane.notes):
            if not self._loop.live:
                raise StopIteration
            with ctrl_c_waits(), self._alone():
                if lane.request.endless:
                    del lane.notes[:]
                    self._heard = 0
                    lane.forget()
                self._loop.step()
        event = lane.event(lane.notes[self._heard])
        self._heard += 1  # no call from here on, so that nothing comes between this and the caller
        return event
