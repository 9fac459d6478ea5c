"""Samplers and streams that are pickled, copied, and used by several threads."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
from sampler_helpers import make_seed, scale, tiny_sampler

from melodia.errors import MelodiaError
from melodia.sampler import Sampler, Session

WAYS = {
    "pickle": lambda sampler: pickle.loads(pickle.dumps(sampler)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def tokens_of(sampler: Sampler) -> list[int]:
    return sampler.generate(bars=2, random_seed=7).tokens.tolist()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_copy_goes_on_where_the_sampler_stands(way: Callable[[Sampler], Sampler], backend: str) -> None:
    made = tiny_sampler()
    sampler = Sampler(made.model, made.tokenizer, backend=backend)
    fresh = way(sampler)
    sampler.prime(make_seed(scale(2)))
    before = tokens_of(sampler)
    twin = way(sampler)
    assert tokens_of(twin) == before
    assert twin.state.context == sampler.state.context
    twin.prime(None)
    assert tokens_of(twin) == tokens_of(fresh) != before == tokens_of(sampler)


def test_a_pickle_holds_the_model_alone() -> None:
    sampler = Sampler.load(device="cpu")
    sampler.prime("midi_samples/petzold_minuet_g_major.mid", seed_bars=2)
    made = sampler.generate(bars=1, random_seed=1)
    assert made.originality is not None
    data = pickle.dumps(sampler)
    assert len(data) < 4.1 * 7_743_581
    again = pickle.loads(data).generate(bars=1, random_seed=1)
    assert again.tokens.tolist() == made.tokens.tolist()
    assert again.originality == made.originality


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_stream_is_refused_and_its_state_is_not(way: Callable[[object], object]) -> None:
    """A copy of an endless stream took notes away from it."""
    sampler = tiny_sampler()
    stream = sampler.stream(endless=True, random_seed=7)
    next(stream)
    with pytest.raises(TypeError, match="keep its `state`"):
        way(stream)
    state = way(stream.state)
    assert isinstance(state, Session)
    other = sampler.stream(endless=True, random_seed=7, state=state)
    assert list(islice(other, 20)) == list(islice(stream, 20))


def test_threads_in_one_stream_at_once_are_refused_and_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = tiny_sampler()
    whole = list(islice(sampler.stream(endless=True, random_seed=7), 30))
    stream = sampler.stream(endless=True, random_seed=7)
    step, refused = stream._loop.step, []
    with ThreadPoolExecutor(1) as other:

        def step_beside_another() -> None:
            refused.append(other.submit(next, stream).exception())
            refused.append(other.submit(lambda: stream.state).exception())
            step()

        monkeypatch.setattr(stream._loop, "step", step_beside_another)
        events = list(islice(stream, 20))
        monkeypatch.undo()
        events += other.submit(lambda: list(islice(stream, 10))).result()
    assert events == whole
    assert refused
    assert all(isinstance(error, MelodiaError) and "another thread" in str(error) for error in refused)
