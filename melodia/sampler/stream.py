"""Streams: events as they are produced."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from melodia.sampler.continuation import Event
from melodia.sampler.lane import Lane
from melodia.sampler.loop import Loop
from melodia.sampler.session import Session


class Stream(Iterator[Event]):
    """Events as they are produced; made by `Sampler.stream`.

    Notes come in the order of their tokens: by onset, as soon as their length is known. A note that would sound over
    the final bar line is cut there; only where the length is asked in tokens, or metre or tempo may change, is that
    line not known beforehand.
    """

    def __init__(self, loop: Loop, lane: Lane) -> None:
        self._loop = loop
        loop.note_by_note()
        self._lane = lane
        self._waiting: deque[Event] = deque()
        self._heard = 0

    @property
    def random_seed(self) -> int:
        """The random seed that gives this stream again."""
        return self._lane.request.random_seed

    @property
    def state(self) -> Session:
        """The session behind the last event: an endless stream from it goes on as this one does."""
        return self._loop.snapshot(self._lane)

    def __next__(self) -> Event:
        while not self._waiting:
            if not self._loop.live:
                raise StopIteration
            for lane, notes in self._loop.step():
                self._waiting.extend(lane.event(note) for note in notes)
                self._heard += len(notes)
            self._lane.forget()
            if not self._loop.live:
                self._waiting.extend(self._lane.event(note) for note in self._lane.notes[self._heard :])
        return self._waiting.popleft()
