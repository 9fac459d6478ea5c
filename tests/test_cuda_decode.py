"""The CUDA decode engine, on the emulator: the CPU engine's logits, states and tokens, under every schedule."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cuda_decode_checks as checks
import cuda_decode_emulation as emulation
import numpy as np
import pytest
import torch
from cuda_decode_checks import (
    BLOCKS,
    FILTERS,
    KINDS,
    bits,
    block_sampler,
    check_bias,
    check_lanes,
    check_loop,
    compare_lanes,
    loops,
    same,
    steps_of,
)
from cuda_decode_emulation import configure
from model_zoo import BAR, make, music
from sampler_helpers import make_seed, scale, tiny_sampler

from melodia import engine
from melodia.decode import SamplingConfig
from melodia.engine import cuda
from melodia.engine.description import describe
from melodia.engine.loop import Standing, Stopped, Terms
from melodia.errors import BackendError, ConfigError, GrammarError
from melodia.sampler.steppers import EngineStepper

pytestmark = [
    pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}"),
]


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", KINDS)
def test_logits_and_states_of_every_kind(library: ctypes.CDLL, name: str, weights: str) -> None:
    configure(library, schedule=len(name))
    check_lanes(library, name, weights, steps_of(name), 3)


@pytest.mark.parametrize(
    "changed",
    [
        {"counted": 1},
        {"apart": 1},
        {"streamed": 1},
        {"launch_steps": 1},
        {"least_units": 6},
        {"threads": 256},  # more warps than tiles: they share out the columns
        {"blocks": 4, "samplers": 1, "threads": 96},
    ],
    ids=str,
)
def test_every_way_through_the_kernel(library: ctypes.CDLL, changed: dict[str, int]) -> None:
    configure(library, schedule=5)
    check_lanes(library, "parallel", "fp32", 4, 10, **changed)
    check_lanes(library, "gru-deep", "bf16", 3, 1, **changed)
    check_lanes(library, "bilstm-gru-deep", "fp32", 26, 10, **changed)
    check_lanes(library, "bigru-lstm", "bf16", 26, 2, **changed)


def test_embeddings_that_are_not_folded(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(library, schedule=4)
    monkeypatch.setattr("melodia.engine.description.TABLE_BYTES", 0)
    checks.described.cache_clear()
    try:
        check_lanes(library, "sequential-deep", "fp32", 4, 3)
        check_lanes(library, "reversed", "int8", 4, 2)
        check_lanes(library, "bilstm-gru-deep", "fp32", 26, 3)
        check_lanes(library, "bigru-lstm", "int8", 26, 2)
    finally:
        checks.described.cache_clear()


def test_streams_that_part_say_where() -> None:
    tokens, nlls = np.array([3, 5, 8, 8]), np.array([1.0, 2.0, 0.5, 0.25])
    checks.same_tokens((tokens, nlls), (tokens, nlls + 1e-3))
    others = np.array([3, 5, 9, 8])
    message = r"lane 1: token 2 is 8 \(nll 0.5\d+\) and 9 \(nll 0.5\d+\); before it the nlls differ by 1.0e-03 at most"
    with pytest.raises(AssertionError, match=message):
        checks.same_tokens((tokens, nlls), (others, nlls + 1e-3), "lane 1: ")
    with pytest.raises(AssertionError, match="4 tokens and 2, the same as far as both go"):
        checks.same_tokens((tokens, nlls), (tokens[:2], nlls[:2]))


@pytest.mark.parametrize("name", ["sequential-deep", "bilstm-gru-deep"])
def test_a_session_does_not_depend_on_the_others(library: ctypes.CDLL, name: str) -> None:
    """Alone or among nine, in one call or in three: the same bits."""
    configure(library, schedule=2)
    ints, floats, sizes = checks.described(name, "fp32")
    packed = cuda.CudaEngine(ints, floats, library=library, options=checks.options())
    T = steps_of(name) + 2
    tokens, sides = checks.random_input(sizes, T, 9)
    together, alone = engine.Lanes(packed, 9), engine.Lanes(packed, 1)
    all_logits = together.advance(tokens, sides)
    for part in (slice(0, 1), slice(1, T - 2), slice(T - 2, T)):
        logits = alone.advance(tokens[part, 8:], sides[part, 8:])
        assert np.array_equal(logits, all_logits[part, 8:])
    assert np.array_equal(alone.read(0), together.read(8))


@pytest.mark.parametrize("limit", [1, 2, 3, 40])
@pytest.mark.parametrize("name", ["bilstm-gru", "bigru-lstm"])
def test_blocks_of_music_of_every_length(library: ctypes.CDLL, name: str, limit: int) -> None:
    """Four sessions, whose blocks end at other tokens."""
    configure(library, schedule=limit)
    lengths = {"block_max": limit} if name == "bilstm-gru" else {"block_length": limit}
    model = make(name, dtype=torch.float32, **lengths)
    tokens, sides = music(model, 4, 90)
    heard, beside = tokens.T.numpy(), None if sides is None else sides.transpose(0, 1).numpy()
    for options in ({}, {"launch_steps": 7}):
        compare_lanes(library, *describe(model), heard, beside, "fp32", **options)


@pytest.mark.parametrize("name", BLOCKS)
def test_states_of_blocks_move_between_engines(library: ctypes.CDLL, name: str) -> None:
    """Saved in the middle of a block by either engine, forked, gone on with by the other."""
    configure(library, schedule=7)
    ints, floats, sizes = checks.described(name, "fp32")
    on_gpu = cuda.CudaEngine(ints, floats, library=library, options=checks.options())
    on_cpu = engine.Engine(ints, floats, threads=1)
    tokens, sides = checks.random_input(sizes, 60, 3)
    first, then = slice(0, 33), slice(33, 60)
    for one, other in ((on_gpu, on_cpu), (on_cpu, on_gpu)):
        before = engine.Lanes(one, 3)
        before.advance(tokens[first], None if sides is None else sides[first])
        places = (2, 0, 1, 2, 2)  # the third is forked
        rows = None if sides is None else sides[then][:, places]
        found = []
        for packed in (one, other):
            after = engine.Lanes(packed, 5)
            for lane, place in enumerate(places):
                after.write(lane, before.read(place))
                assert np.array_equal(after.read(lane), before.read(place))
            found.append(after.advance(tokens[then][:, places], rows))
            assert np.array_equal(found[-1][:, 0], found[-1][:, 4])
        checks.close(*found, 2e-5)


@pytest.mark.parametrize("changed", [{}, {"counted": 1}, {"apart": 1}, {"launch_steps": 3}], ids=str)
@pytest.mark.parametrize("encoder", ["lstm", "gru"])
def test_tokens_behind_an_encoder(library: ctypes.CDLL, encoder: str, changed: dict[str, int]) -> None:
    """Blocks end where the sessions choose to end them; launches end anywhere."""
    configure(library, schedule=9)
    for B in (1, 3):
        check_loop(library, B, 24, FILTERS, encoder=encoder, **changed)
    loop = loops(library, 2, encoder=encoder, **changed)[1]
    number_of_blocks = -2 - 9 * (1 + loop.lanes.engine.facts()["S"])
    before = [loop.lanes.read(lane)[number_of_blocks] for lane in range(2)]
    for lane in range(2):
        loop.set_terms(lane, Terms(1000))
    loop.run(steps=24)
    assert all(loop.lanes.read(lane)[number_of_blocks] >= before[lane] + 2 for lane in range(2))


@pytest.mark.parametrize(
    "config",
    [
        None,
        FILTERS,
        SamplingConfig(greedy=True),
        SamplingConfig(top_k=3),
        SamplingConfig(top_p=0.5),
        SamplingConfig(min_p=0.2, temperature=1.4),
    ],
    ids=str,
)
def test_tokens_of_every_filter(library: ctypes.CDLL, config: SamplingConfig | None) -> None:
    configure(library, schedule=6)
    check_loop(library, 1, 10, config)


@pytest.mark.parametrize("grain", [1e6, 0.5, 0.05])  # all are equal, some, few
@pytest.mark.parametrize("threads", [32, 64, 256])
def test_tokens_where_logits_tie(library: ctypes.CDLL, threads: int, grain: float) -> None:
    """A filter's last tokens are those of the lowest ids, whether it ends among ties or between them."""
    configure(library, schedule=3)
    for config in (
        *(SamplingConfig(temperature=3.0, top_k=k) for k in (2, 3, 5, 9, 20)),
        *(SamplingConfig(temperature=3.0, top_p=p) for p in (0.05, 0.3, 0.6, 0.9)),
    ):
        pair = loops(library, 2, config, threads=threads, grain=grain)
        for loop in pair:
            for lane in range(2):
                loop.set_terms(lane, Terms(1000))
            assert loop.run(steps=1) == Stopped.STEPS
        assert [same(*pair, lane) for lane in range(2)] == [1, 1]


@pytest.mark.parametrize("changed", [{}, {"threads": 96}, {"apart": 1}], ids=str)
def test_a_bias_by_program(library: ctypes.CDLL, changed: dict[str, int]) -> None:
    configure(library, schedule=4)
    check_bias(library, **changed)


@pytest.mark.parametrize("changed", [{}, {"threads": 96}, {"apart": 1}, {"cluster": 4}], ids=str)
@pytest.mark.parametrize("scheme", ["REMI", "MIDILike", "Structured"])
def test_tokens_of_byte_pairs(library: ctypes.CDLL, scheme: str, changed: dict[str, int]) -> None:
    """Masks of the machine that the trie's walk gives, by threads that each ask for their own tokens."""
    configure(library, schedule=2)
    vocabulary = checks.primed(scheme, pairs=True).vocabulary
    assert max(map(len, vocabulary.expansions.values())) >= 4
    pair = loops(library, 3, SamplingConfig(temperature=1.5), scheme, pairs=True, **changed)
    for loop in pair:
        for lane in range(3):
            loop.set_terms(lane, Terms(1000))
        loop.run(steps=30)
    drawn: set[int] = set()
    for lane in range(3):
        one, other = (loop.drain(lane)[0].tolist() for loop in pair)
        assert one == other
        assert same(*pair, lane) == 0
        drawn |= set(one)
    assert len(drawn & set(vocabulary.expansions)) > 5


def test_a_batch_is_what_its_sessions_are_alone(library: ctypes.CDLL) -> None:
    configure(library, schedule=3)
    together = loops(library, 3, FILTERS, samplers=2)[1]
    for lane in range(3):
        together.set_terms(lane, Terms(1000))
    assert together.run(steps=8) == Stopped.STEPS
    for lane in range(3):
        alone = loops(library, 1, FILTERS, first_session=lane, launch_steps=3)[1]
        alone.set_terms(0, Terms(1000))
        assert alone.run(steps=8) == Stopped.STEPS
        assert same(together, alone, lane, 0) == 8


def test_as_many_samplers_as_there_is_room_for(library: ctypes.CDLL) -> None:
    """One for each of 18 sessions, or two that share them: the same tokens."""
    configure(library, schedule=6, blocks=40)
    made = []
    for samplers in (0, 2):
        loop = loops(library, 18, FILTERS, kind="gru", samplers=samplers)[1]
        for lane in range(18):
            loop.set_terms(lane, Terms(1000))
        assert loop.run(steps=3) == Stopped.STEPS
        assert loop.lanes.engine.facts()["stalls"] == 0
        made.append([loop.drain(lane)[0].tolist() for lane in range(18)])
    assert made[0] == made[1]


def test_where_a_lane_stops(library: ctypes.CDLL) -> None:
    """Its tokens are used up, at a class of tokens, at a tick, behind a note, where something is not to come."""
    configure(library, schedule=8)
    late = ((bits("Bar"), 0),)
    for terms, pause in [
        (Terms(4), False),
        (Terms(100, stop=bits("Velocity")), False),
        (Terms(100, stop_tick=checks.primed().state.grammar.now + 1), False),
        (Terms(100, exclude=bits("Bar", "EOS"), late=late), True),
    ]:
        pair = loops(library, 1)
        for loop in pair:
            loop.set_terms(0, terms, pause=pause)
        assert pair[0].run(steps=60) == pair[1].run(steps=60)
        assert pair[0].facts["token"][0] == pair[1].facts["token"][0]
        same(*pair, 0)


def test_the_caller_chooses(library: ctypes.CDLL) -> None:
    configure(library, schedule=1)
    pair = loops(library, 1, FILTERS)
    for _ in range(3):
        for loop in pair:
            assert loop.run() == Stopped.LANE
            assert loop.facts["standing"][0] == Standing.ASKS
            loop.choose(0, loop.followers[0].mask())
            loop.take(0)
            loop.set_terms(0, None)
        assert pair[0].facts["token"][0] == pair[1].facts["token"][0]
    for loop in pair:
        assert loop.run(steps=1) in (Stopped.STEPS, Stopped.LANE)
    assert same(*pair, 0) == 3


def test_lanes_that_are_kept_go_on(library: ctypes.CDLL) -> None:
    configure(library, schedule=1)
    pair = loops(library, 3)
    for loop in pair:
        for lane in range(3):
            loop.set_terms(lane, Terms(1000))
        loop.run(steps=3)
        old = loop.lanes
        new = engine.Lanes(old.engine, 2)
        for to, of in enumerate((0, 2)):
            new.write(to, old.read(of))
        loop.keep(new, [0, 2])
        loop.run(steps=4)
    assert [same(*pair, lane) for lane in range(2)] == [7, 7]


@pytest.mark.parametrize("changed", [{}, {"cluster": 4}, {"counted": 1}], ids=str)
@pytest.mark.parametrize("schedule", [1, 2, 3])
def test_blocks_that_give_up_in_the_middle(
    library: ctypes.CDLL, schedule: int, changed: dict[str, int]
) -> None:
    configure(library, schedule=schedule)
    checks.check_giving_up(library, **changed)


@pytest.mark.parametrize("encoder", [None, "gru"])
def test_blocks_that_wait_in_vain(library: ctypes.CDLL, encoder: str | None) -> None:
    """Too few blocks at once: the same tokens stage by stage, and the engine says so."""
    configure(library, schedule=1)
    one = loops(library, 1, encoder=encoder)
    for loop in one:
        loop.set_terms(0, Terms(1000))
    configure(library, schedule=1, blocks=2)
    assert one[0].run(steps=12) == one[1].run(steps=12) == Stopped.STEPS
    assert same(*one, 0) == 12
    packed = one[1].lanes.engine
    assert isinstance(packed, cuda.CudaEngine)
    assert packed.facts()["stalls"] == 1
    assert packed.fallback().startswith("the device holds 2 blocks at once of ")


@pytest.mark.parametrize("counted", [0, 1])
def test_time_that_runs_out_while_a_block_is_read(library: ctypes.CDLL, counted: int) -> None:
    """Samplers give up on a reading of 64 tokens, the others with them; stage by stage it is the same."""
    ints, floats, _ = checks.described("bigru-lstm-deep", "fp32")
    tokens = np.random.default_rng(2).integers(0, BAR, (70, 2))
    found = []
    for schedule in range(1, 6):
        configure(library, schedule=schedule)
        options = checks.options(limit_us=1, counted=counted)
        packed = cuda.CudaEngine(ints, floats, library=library, options=options)
        lanes = engine.Lanes(packed, 2)
        found.append(lanes.advance(tokens))
        assert packed.facts()["stalls"] == 1
        assert packed.fallback() == "a block gave up waiting for the others"
    on_cpu = engine.Lanes(engine.Engine(ints, floats, threads=1), 2)
    checks.close(found[0], on_cpu.advance(tokens), 2e-5)
    for other in found[1:]:
        assert np.array_equal(found[0], other)


def test_a_device_that_fails_changes_nothing(library: ctypes.CDLL) -> None:
    configure(library, schedule=1)
    pair = loops(library, 1)
    for loop in pair:
        loop.set_terms(0, Terms(1000))
        loop.run(steps=3)
    lanes = pair[1].lanes
    configure(library, schedule=1, shared_bytes=256)  # no launch fits any more
    before = lanes.read(0)
    try:
        with pytest.raises(GrammarError, match="bytes of shared memory"):
            pair[1].run(steps=3)
    finally:
        configure(library, schedule=1)
    assert np.array_equal(before, lanes.read(0))
    for loop in pair:
        loop.run(steps=3)
    assert same(*pair, 0) == 6


@pytest.mark.parametrize("encoder", [None, "lstm", "gru"])
@pytest.mark.parametrize("wish", [{"bars": 1, "top_p": 0.9}, {"tokens": 12, "silent_bars": True}], ids=str)
def test_the_sampler_generates_with_it(
    library: ctypes.CDLL, wish: dict[str, Any], encoder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Primed, two lanes, from plan to events: the same music as on the CPU."""
    configure(library, schedule=2)
    sampler = tiny_sampler() if encoder is None else block_sampler(encoder)
    sampler.prime(make_seed(scale(1)))
    made = [sampler.generate_many(2, random_seed=3, **wish)]
    packed = cuda.CudaEngine(
        *describe(sampler.model, "fp32"), library=library, options=checks.options(least_units=12)
    )
    config = sampler.model.config
    monkeypatch.setattr(sampler._runner, "stepper", lambda first: EngineStepper(packed, config, first))
    sampler.prime(make_seed(scale(1)))
    made.append(sampler.generate_many(2, random_seed=3, **wish))
    for one, other in zip(*made, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.events == other.events
        assert one.report.ended == other.report.ended


def test_what_cannot_run_says_why(library: ctypes.CDLL) -> None:
    configure(library)
    ints, floats, _ = checks.described("bilstm-gru", "fp32")
    lanes = engine.Lanes(cuda.CudaEngine(ints, floats, library=library), 1)
    broken = lanes.read(0)
    broken[-1] = 8  # blocks have 7 tokens at most
    with pytest.raises(ValueError, match=r"number of waiting tokens must .* from 0 to 7 \(received 8"):
        lanes.write(0, broken)
    if cuda.reason() is not None:
        with pytest.raises(BackendError, match="use device cpu"):
            cuda.CudaEngine(ints, floats)
    ints, floats, _ = checks.described("gru", "fp32")
    lanes = engine.Lanes(cuda.CudaEngine(ints, floats, library=library), 1)
    with pytest.raises(ValueError, match="token 99 is not in a vocabulary of 23"):
        lanes.step([99])
    with pytest.raises(ValueError, match="must be finite"):
        lanes.write(0, np.full(lanes.state_size, np.nan, np.float32))
    with pytest.raises(ConfigError, match=r"sessions must be 1 to 4096 \(received 5000\)"):
        engine.Lanes(cuda.CudaEngine(ints, floats, library=library), 5000)
    ints, floats, _ = checks.described("gru-deep", "fp32")
    lanes = engine.Lanes(cuda.CudaEngine(ints, floats, library=library), 1)
    with pytest.raises(ValueError, match=r"side input 1 must lie from 0 to 8 \(received 9\)"):
        lanes.step([1], [[0, 9]])


@pytest.mark.slow
def test_many_schedules(library: ctypes.CDLL) -> None:
    for schedule in range(56):
        configure(library, schedule=schedule)
        name, B, counted = KINDS[schedule % len(KINDS)], 1 + schedule % 4, schedule % 3
        check_lanes(library, name, "fp32", steps_of(name), B, counted=counted == 0)
        encoder = (None, "lstm", None, "gru")[schedule % 4]
        check_loop(library, 1 + schedule % 2, 5, FILTERS, encoder=encoder, counted=counted == 1)


@pytest.mark.slow
def test_without_any_barrier_fence_or_epoch_a_check_fails(tmp_path: Path) -> None:
    names = ["nothing has this name", *emulation.mutant_names()]  # the first shows that the checks pass
    whole = emulation.build()
    objects = [whole.parent / f"{Path(source).stem}.o" for source in emulation.SOURCES[1:]]

    def mutant(index: int) -> Path:
        folder = tmp_path / str(index)
        return emulation.link(
            folder, [emulation.compile_object(folder, emulation.KERNEL, names[index]), *objects]
        )

    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(mutant, range(len(names))))
    done = subprocess.run(
        [sys.executable, str(Path(checks.__file__)), *map(str, libraries)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    verdicts = done.stdout.splitlines()
    survivors = [name for name, verdict in zip(names, verdicts, strict=True) if verdict == "passed"]
    assert survivors == names[:1]
