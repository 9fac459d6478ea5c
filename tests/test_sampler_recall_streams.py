"""Recall in streams: themes come back in music without an end, and a session taken anywhere goes on as it did."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sampler_helpers import make_seed, quarters, scale, tiny_sampler

from melodia.errors import CheckpointError
from melodia.sampler import Event, Sampler
from melodia.sampler.recall import Recollection, TokenBar

SEED = make_seed(scale(12) + [(k * 4.0, 1, 40 + k, 33) for k in range(12)])


def sampler_of(backend: str) -> Sampler:
    plain = tiny_sampler()
    return plain if backend == "auto" else Sampler(plain.model, plain.tokenizer, backend=backend)


def same_bars(events: list[Event], metre: tuple[int, int] = (4, 4)) -> float:
    """The share of the bars that are the same as one before."""
    bars: dict[int, list[Any]] = {}
    for event in events:
        bar = int((event.onset_beats + 1e-6) // quarters(metre))
        bars.setdefault(bar, []).append(
            (event.program, round(event.onset_beats - bar * quarters(metre), 4), event.pitch)
        )
    whole = [sorted(bars.get(bar, [])) for bar in range(max(bars))]  # all but the last
    return float(np.mean([bar in whole[:k] for k, bar in enumerate(whole) if bar]))


def begun(events: Iterable[Event]) -> list[tuple[float, int, int]]:
    """Notes without their ends: a stream of so many tokens does not know where the last ones are cut."""
    return sorted((event.onset, event.program, event.pitch) for event in events)


@pytest.mark.parametrize("backend", ["auto", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("length", [{"bars": 11}, {"bars": 12}, {"seconds": 25.0}, {"tokens": 300}])
def test_a_stream_is_what_generate_gives(backend: str, length: dict[str, Any]) -> None:
    sampler = sampler_of(backend)
    sampler.prime(SEED)
    recalled = 0
    for random_seed in range(3):
        made = sampler.generate(**length, recall=0.9, random_seed=random_seed)
        stream = sampler.stream(**length, recall=0.9, random_seed=random_seed)
        assert begun(stream) == begun(made.events)
        recalled += made.report.recalled
    assert recalled > 0


def test_both_backends_play_the_same() -> None:
    streams = []
    for backend in ("auto", "reference"):
        sampler = sampler_of(backend)
        sampler.prime(SEED)
        streams.append([*islice(sampler.stream(endless=True, recall=0.6, random_seed=4), 200)])
    assert streams[0] == streams[1]


@pytest.mark.parametrize("metre", [(4, 4), (15, 8)])
def test_themes_come_back_without_an_end(metre: tuple[int, int]) -> None:
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(12, metre), metre))
    shares = []
    for recall in (0.0, 0.6):
        stream = sampler.stream(endless=True, recall=recall, random_seed=2)
        shares.append(same_bars([*islice(stream, 2500)], metre))
        assert stream._lane.plan.recalled == (), "nothing grows"
        assert len(stream._lane.memory.bars) < 100
    assert shares[0] < 0.05
    assert shares[1] > 0.15


@pytest.mark.parametrize("backend", ["auto", pytest.param("reference", marks=pytest.mark.slow)])
def test_a_session_goes_on_as_the_stream_did(backend: str, tmp_path: Path) -> None:
    """Taken behind any note, in the midst of what comes again, too; from a file as from memory."""
    sampler = sampler_of(backend)
    sampler.prime(SEED)
    stream = sampler.stream(endless=True, recall=0.9, random_seed=7)
    states = []
    for number in range(120):
        next(stream)
        if number % 7 == 0:
            states.append((number, stream.state))
    events = [*islice(sampler.stream(endless=True, recall=0.9, random_seed=7), 200)]
    scripts = 0
    for number, state in states:
        assert state.recollection is not None
        scripts += len(state.recollection.script) > 1
        file = state.save(tmp_path / "session", force=True)
        for session in (state, sampler.load_state(file)):
            assert session.recollection == state.recollection
            on = sampler.stream(state=session, endless=True, recall=0.9, random_seed=7)
            further = [event.pitch for event in islice(on, 40)]
            assert further == [event.pitch for event in events[number + 1 : number + 41]]
    assert scripts > 2, "some were taken in the midst"


def test_a_session_without_recall_remembers_nothing() -> None:
    sampler = tiny_sampler()
    sampler.prime(SEED)
    made = sampler.generate(bars=4, recall=0.5, random_seed=1)
    assert made.state.recollection is not None
    assert made.state.recollection.script == ()
    on = sampler.generate(state=made.state, bars=4, random_seed=1)
    assert on.state.recollection is None


def test_recollections_are_checked_when_they_are_read(tmp_path: Path) -> None:
    whole = Recollection((TokenBar((3, 4, 5), -2), TokenBar((3, 6), 40)), 40, (2, 9), 5, 8, (7, 3))
    assert Recollection.from_arrays(whole.to_arrays(), 10) == whole
    for name, value in (
        ("bars", [3, 4, 5, 3, 10]),
        ("bars", [3, 4, 5, 3]),
        ("programs", [[5, 0], [0, 0]]),
        ("script", [-1]),
        ("counts", [40, 10, 9, 5, 8]),
        ("counts", [40, 2, 9, -1, 8]),
        ("counts", [40, 2, 9, 5, 3]),
        ("counts", [40, 2, 9]),
    ):
        with pytest.raises(ValueError, match=r"memory|repeated|unpack"):
            Recollection.from_arrays(whole.to_arrays() | {name: np.array(value)}, 10)
    sampler = tiny_sampler()
    sampler.prime(SEED)
    state = sampler.generate(bars=4, recall=0.5, random_seed=1).state
    assert state.recollection is not None
    state.recollection = Recollection((TokenBar((10**6,), 0),), 0, (0, 0), 0, 0)
    with pytest.raises(CheckpointError, match="is damaged"):
        sampler.load_state(state.save(tmp_path / "session"))
