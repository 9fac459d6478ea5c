"""The compiled module by itself: what it refuses, what it keeps alive, threads, and the reasons where it is missing."""

from __future__ import annotations

import gc
import inspect
import os
import shutil
import subprocess
import sys
import threading
import weakref
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_zoo import make
from sampler_helpers import tiny_sampler
from test_engine_loop import loop_of

from melodia import engine
from melodia.engine import native
from melodia.engine.description import describe
from melodia.engine.loop import Stopped, Terms, TokenLoop
from melodia.engine.rules import Follower, pack, rules_of
from melodia.errors import ConfigError, GrammarError
from melodia.grammar import Grammar

needs_engine = pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")
REPOSITORY = Path(__file__).resolve().parent.parent


def lanes_of(count: int, name: str = "parallel-sum") -> Any:
    """Sessions of the compiled module, and of a network that nothing else holds."""
    return engine.Engine(*describe(make(name, dtype=torch.float32)), threads=1).native.lanes(count)


def running(lanes: int = 1) -> TokenLoop:
    """A loop under terms that never ask."""
    sampler = tiny_sampler()
    loop = loop_of(sampler, lanes)
    eos = pack(np.arange(sampler.vocabulary.size) == sampler.vocabulary.eos)
    for lane in range(lanes):
        loop.set_terms(lane, Terms(1 << 40, exclude=eos))
    return loop


# -- arrays -------------------------------------------------------------------------------------------------------


@needs_engine
def test_arrays_of_another_kind_are_refused() -> None:
    lanes = lanes_of(2)
    tokens, sides = np.array([1, 2], np.int32), np.zeros((2, 2), np.int32)
    lanes.step(tokens, sides)
    before = lanes.read(0)
    wide = np.zeros((2, 4), np.int32)
    for wrong, says in [
        (
            (tokens.astype(np.int64), sides),
            r"tokens must be int32 \[2\] and contiguous \(received int64 \[2\]\)",
        ),
        ((tokens.astype(np.float32), sides), r"received float32 \[2\]"),
        ((tokens.astype(">i4"), sides), r"received >i4 \[2\]"),
        ((tokens[:1], sides), r"received int32 \[1\]"),
        ((tokens[None], sides), r"received int32 \[1, 2\]"),
        ((tokens, wide[:, ::2]), r"side inputs must be int32 \[2, 2\] .*int32 \[2, 2\], not contiguous"),
        ((tokens, sides[:1]), r"side inputs must be int32 \[2, 2\]"),
        ((tokens, None), "side inputs must be given: this network has 2"),
    ]:
        with pytest.raises(ValueError, match=says):
            lanes.step(*wrong)
    with pytest.raises(ValueError, match=r"tokens must be int32 \[N, 2\]"):
        lanes.advance(tokens, sides)
    with pytest.raises(ValueError, match="at least one step"):
        lanes.advance(np.zeros((0, 2), np.int32), np.zeros((0, 2, 2), np.int32))
    with pytest.raises(ValueError, match=r"a state must be float32 \[\d+\] .*received float64"):
        lanes.write(0, before.astype(np.float64))
    for lane in (-1, 2):
        with pytest.raises(ValueError, match=rf"from 0 to 1 \(received {lane}\)"):
            lanes.read(lane)
    with pytest.raises(TypeError):
        lanes.step([1, 2], sides)  # a list is no array: melodia.engine makes one
    assert (lanes.read(0) == before).all()
    with pytest.raises(ValueError, match="must be left out"):
        lanes_of(1, "gru").step(tokens[:1], sides[:1])
    for count in (0, -1, 1 << 17):
        with pytest.raises(ConfigError, match=f"no room for {count} sessions"):
            engine.Lanes(engine.Engine(*describe(make("gru", dtype=torch.float32)), threads=1), count)


@needs_engine
def test_a_recent_token_outside_the_vocabulary_is_refused() -> None:
    module = native.module()
    sampling = module.Sampling(1.0, 0, 1.0, 0.0, 1.5, False)
    logits = np.zeros(5, np.float32)
    assert module.choose(logits, None, [0, 4, 4], sampling, 1, 0, 0)[0] in range(5)
    for token in (-1, 5):
        with pytest.raises(ValueError, match="recent token is not in the vocabulary of 5"):
            module.choose(logits, None, [0, token], sampling, 1, 0, 0)
    with pytest.raises(ValueError, match=r"legal must be bool \[5\]"):
        module.choose(logits, np.ones(4, bool), [], sampling, 1, 0, 0)


@needs_engine
def test_what_a_loop_refuses() -> None:
    loop = running(2)
    words = np.zeros(1000, np.uint64)
    with pytest.raises(ValueError, match=r"exclude must be uint64 \[\d+\]"):
        loop.set_terms(0, Terms(1, exclude=words))
    fits = np.zeros(loop._native.logits(0).size // 64 + 1, np.uint64)
    with pytest.raises(ValueError, match=r"late must be at most 3 classes .*received 4"):
        loop.set_terms(0, Terms(1, late=((fits, 0),) * 4))
    with pytest.raises(ValueError, match=r"legal must be bool"):
        loop.choose(0, np.ones(3, bool))
    with pytest.raises(ValueError, match=r"flag must be int32 \[1\]"):
        loop.run(flag=np.zeros(1, np.int64))
    with pytest.raises(GrammarError, match=r"no such lane: it must lie from 0 to 1 \(received 2\)"):
        loop.drain(2)
    other = engine.Engine(*describe(make("gru", dtype=torch.float32)), threads=1)
    with pytest.raises(GrammarError, match="of the same network"):
        loop.keep(engine.Lanes(other, 1), [0])
    assert loop.run(steps=3) == Stopped.STEPS


# -- lifetimes ----------------------------------------------------------------------------------------------------


@needs_engine
def test_an_object_keeps_alive_what_it_needs() -> None:
    lanes = lanes_of(1, "gru")  # its engine has no other owner
    gc.collect()
    logits = lanes.step(np.zeros(1, np.int32))
    again = lanes_of(1, "gru")
    assert (again.step(np.zeros(1, np.int32)) == logits).all()

    loop = running(3)
    loop.run(steps=20)
    left, kept = loop.followers[1], loop.followers[2]
    state, facts, row = kept.state.copy(), loop.facts, loop._native.logits(2)
    expected, fed = row.copy(), facts["fed"].tolist()
    new = engine.Lanes(loop.lanes.engine, 2)
    loop.keep(new, [0, 2])
    assert left.mask().any()  # of a lane that is gone
    gone = weakref.ref(loop)
    del loop, new
    gc.collect()
    assert gone() is None
    assert (kept.state.copy().to_array() == state.to_array()).all()
    assert kept.mask().any()
    assert facts["fed"].tolist() == fed
    assert (row == expected).all()


@needs_engine
def test_nothing_is_kept_for_ever() -> None:
    packed = engine.Engine(*describe(make("gru", dtype=torch.float32)), threads=1)
    lanes = engine.Lanes(packed, 1)
    gone = [weakref.ref(packed.native), weakref.ref(lanes.native)]
    view = lanes.step([1])
    del packed, lanes
    gc.collect()
    assert [of() for of in gone] == [None, None]
    assert np.isfinite(view).all()


# -- threads ------------------------------------------------------------------------------------------------------


@needs_engine
def test_a_second_thread_is_refused_while_the_first_runs() -> None:
    """The loop runs without the GIL; whoever touches it, its lanes or its followers meanwhile is told so."""
    loop = running(2)
    flag = np.zeros(1, np.int32)
    said: list[Stopped] = []
    thread = threading.Thread(target=lambda: said.append(loop.run(flag=flag)))
    thread.start()
    try:
        while not loop.facts["made"][0]:
            pass  # would not end if the loop kept the GIL
        for call in (
            lambda: loop.run(steps=1),
            lambda: loop.drain(0),
            lambda: loop.set_terms(0, None),
            lambda: loop.followers[0].mask(),
            lambda: loop.followers[1].advance(0),
            lambda: loop.lanes.read(0),
        ):
            with pytest.raises(RuntimeError, match="in use by another thread"):
                call()
    finally:
        flag.fill(1)
        thread.join()
    assert said == [Stopped.FLAG]
    assert len(loop.drain(0)[0]) > 0  # free again
    assert loop.followers[0].mask().any()


@needs_engine
def test_an_error_leaves_nothing_in_use() -> None:
    lanes = lanes_of(1, "gru")
    with pytest.raises(ValueError, match="vocabulary"):
        lanes.step(np.array([99], np.int32))
    lanes.step(np.zeros(1, np.int32))
    follower = Follower(rules_of(Grammar.compile(tiny_sampler().vocabulary)))
    with pytest.raises(GrammarError, match="not in the vocabulary"):
        follower.advance(-1)
    assert follower.mask().any()


# -- the module itself --------------------------------------------------------------------------------------------


@needs_engine
def test_everything_public_is_documented() -> None:
    module = native.module()
    classes = [of for _, of in inspect.getmembers(module, inspect.isclass)]
    assert {of.__name__ for of in classes} == {"Engine", "Follower", "Lanes", "Loop", "Rules", "Sampling"}
    plain = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "greedy"}
    for of in classes:
        assert of.__doc__
        for name, member in vars(of).items():
            if not name.startswith("_") and name not in plain:
                text = inspect.getdoc(member) or ""
                signature, _, words = text.partition("\n\n")
                assert words or "->" not in signature, f"{of.__name__}.{name}"


def imported(folder: Path, code: str, **environment: str) -> str:
    """What a new process says with the package of a folder."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_engine
def test_it_imports_no_torch() -> None:
    code = "import sys; from melodia import engine; assert engine.reason() is None; print('torch' in sys.modules)"
    assert imported(REPOSITORY, code) == "False"


def test_where_it_is_missing_the_reason_is_said(tmp_path: Path) -> None:
    reason = "from melodia import engine; print(engine.reason(), engine.instruction_set())"
    assert imported(REPOSITORY, reason, MELODIA_DISABLE_EXT="1") == "MELODIA_DISABLE_EXT is set None"
    shutil.copytree(
        REPOSITORY / "melodia",
        tmp_path / "melodia",
        ignore=shutil.ignore_patterns("*.so", "native_build.json", "assets", "__pycache__"),
    )
    says = "the engine was not built: "
    assert imported(tmp_path, reason) == says + "melodia was installed without it None"
    facts = tmp_path / "melodia/kernels/native_build.json"
    facts.write_text('{"engine_reason": "no compiler here"}')
    assert imported(tmp_path, reason) == says + "no compiler here None"
    other = tmp_path / "melodia/engine/_engine.cpython-39-x86_64-linux-gnu.so"
    other.touch()
    assert "was built for another Python; reinstall melodia" in imported(tmp_path, reason)
    other.rename(other.with_name(f"_engine{EXTENSION_SUFFIXES[0]}"))
    assert imported(tmp_path, reason).startswith("the engine does not load: ")
    code = "from melodia import engine\ntry: engine.Engine([], [])\nexcept Exception as error: print(repr(error))"
    assert imported(tmp_path, code).startswith(
        "BackendError('the engine was asked for, but the engine does not load"
    )


@needs_engine
def test_an_unknown_instruction_set_is_a_reason() -> None:
    reason = "from melodia import engine; print(engine.reason())"
    assert "MELODIA_CPU=mmx is unknown" in imported(REPOSITORY, reason, MELODIA_CPU="mmx")


@needs_engine
def test_the_operators_instruction_sets_are_known() -> None:
    """`melodia info` names amx, which the engine has no use for: it runs what it would run anyway."""
    found = imported(REPOSITORY, "from melodia import engine; print(engine.reason())", MELODIA_CPU="amx")
    if engine.instruction_set() == "avx512bf16":
        assert found == "None"
    else:
        assert "MELODIA_CPU=amx is unknown to the engine, or this processor cannot run it" in found
