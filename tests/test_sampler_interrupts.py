"""Ctrl-C while music is made: it reaches the caller, and a stream goes on behind it as if nothing had been."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, islice
from operator import eq
from types import FrameType
from typing import Any

import pytest
from sampler_helpers import make_seed, scale, tiny_sampler

from melodia.errors import MelodiaError
from melodia.interrupts import ctrl_c_waits
from melodia.sampler import Sampler
from melodia.sampler.stream import Stream

SEED = make_seed(scale(2))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_numpy_asks_no_enum_for_attributes(backend: str) -> None:
    """It drops whatever error comes of that, a Ctrl-C too, since Python 3.11 does it in Python."""
    made = tiny_sampler("PerTok")
    asked = []

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if code.co_name == "__getattr__" and code.co_filename.endswith("enum.py"):
            asked.append(frame.f_back)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        sampler = Sampler(made.model, made.tokenizer, backend=backend)
        sampler.prime(SEED)
        sampler.generate(bars=2, random_seed=1, chords="C G", tempo_changes=True)
    finally:
        sys.settrace(before)
    assert asked == []


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Presses it; in the background it would be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def other() -> None:
    """What comes from another signal's handler, or from another thread."""
    raise KeyboardInterrupt


def hear(stream: Stream, event: int, strike: Callable[[], None]) -> tuple[list[Any], bool]:
    """What is heard until something strikes where a function of melodia begins, and whether it did.

    There Python looks for signals; between two lines it does not.
    """
    left, heard, struck = iter(range(event)), [], False

    def trace(frame: FrameType, what: str, arg: Any) -> None:  # called where a function begins
        nonlocal struck
        if "melodia/sampler" in frame.f_code.co_filename and not struck and next(left, None) is None:
            struck = True
            strike()

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        heard += islice(stream, 12)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return heard, struck


def struck_at(sampler: Sampler, strike: Callable[[], None], step: int) -> Iterator[tuple[Stream, list[Any]]]:
    """Streams that were struck at one place each, and what is to come behind the last event of each."""
    whole = [*islice(sampler.stream(endless=True, random_seed=7), 40)]
    for event in count(0, step):
        stream = sampler.stream(endless=True, random_seed=7)
        heard: list[Any] = []
        heard, struck = hear(stream, event, strike)
        if not struck:
            return
        assert heard == whole[: len(heard)]
        yield stream, whole[len(heard) :]


@pytest.mark.parametrize(("backend", "step"), [("auto", 1), ("reference", 61)])
def test_ctrl_c_takes_no_event_and_no_state(backend: str, step: int, ctrl_c: Callable[[], None]) -> None:
    made = tiny_sampler()
    sampler = Sampler(made.model, made.tokenizer, backend=backend)
    sampler.prime(SEED)
    places = 0
    for stream, rest in struck_at(sampler, ctrl_c, step):
        on = sampler.stream(state=stream.state, endless=True, random_seed=7)
        assert [*islice(on, 3)] == rest[:3]
        assert [*islice(stream, 3)] == rest[:3]
        places += 1
    assert places > 10


def test_other_exceptions_take_nothing_or_are_told() -> None:
    sampler = tiny_sampler()
    sampler.prime(SEED)
    broken = whole = 0
    for stream, rest in struck_at(sampler, other, 1):
        try:
            on = sampler.stream(state=stream.state, endless=True, random_seed=7)
        except MelodiaError:
            with pytest.raises(MelodiaError, match=r"midst of a step.* a session that was kept before"):
                assert all(map(eq, stream, rest))
            broken += 1
        else:
            assert [*islice(on, 3)] == rest[:3]
            assert [*islice(stream, 3)] == rest[:3]
            whole += 1
    assert broken > 5
    assert whole > 5


def test_an_exception_behind_compiled_code_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a handler of a signal is called as a rule: most of the time is spent there."""
    sampler = tiny_sampler()
    sampler.prime(SEED)
    whole = [*islice(sampler.stream(endless=True, random_seed=7), 30)]
    stream, heard = sampler.stream(endless=True, random_seed=7), []
    way: Any = stream._loop._way
    run, runs = way.run, count()

    def broken_off() -> None:
        run()
        if next(runs) % 5 in (1, 3, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(way, "run", broken_off)
    states = 0
    while len(heard) < 20:
        try:
            heard.append(next(stream))
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # to bring a step to its end, the state runs compiled code too
                on = sampler.stream(state=stream.state, endless=True, random_seed=7)
                assert next(on) == whole[len(heard)]
                states += 1
    assert heard == whole[:20]
    assert states == 5


def test_what_waits_is_done_and_then_the_handler_is_called(ctrl_c: Callable[[], None]) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # the place where it comes is what is tested
        with ctrl_c_waits():
            ctrl_c()
            done.append(1)
        done.append(2)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, lambda number, frame: done.append(number))
    with ctrl_c_waits():
        ctrl_c()
        assert done == [1]
    assert done == [1, signal.SIGINT]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ctrl_c_waits():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
