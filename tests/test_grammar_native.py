"""The grammar and the side inputs in compiled code: the same masks, registers and side inputs as Python's."""

from __future__ import annotations

import gc
import weakref
from functools import lru_cache

import numpy as np
import pytest
from grammar_helpers import CONSTRAINTS, grammar_of, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st

from melodia import engine
from melodia.engine.rules import Follower, Rules, describe_rules, pack, rules_of
from melodia.errors import ConfigError, GrammarError
from melodia.grammar import Constraints, Grammar
from melodia.grammar.state import REGISTERS
from melodia.side_inputs import NAMES, SideInputTracker, default_specs
from melodia.tokenizer import SCHEMES
from melodia.vocabulary import Vocabulary

pytestmark = pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")

LIMITS = CONSTRAINTS | {
    "four drums": Constraints(programs=(0, -1), drum_range=(35, 38)),
    "no end": Constraints(allow_eos=False, allow_tempo_changes=False),
}


@lru_cache(maxsize=4)
def paired(scheme: str, tokens: int = 80) -> Vocabulary:
    """A vocabulary with BPE tokens of music drawn at random, some of them over bar lines."""
    grammar = grammar_of(scheme, Constraints(programs=(0, 1, -1), pitch_range=(58, 64)))
    base = grammar.vocabulary
    rng = np.random.default_rng(len(scheme))
    expansions: dict[int, tuple[int, ...]] = {}
    seen: set[tuple[int, ...]] = set()
    while len(expansions) < tokens:
        state, ids = grammar.start(), []
        while not grammar.ended(state) and len(ids) < 60:
            legal = np.flatnonzero(grammar.mask(state))
            kinds = grammar.type_of[legal]
            ids.append(int(rng.choice(legal[kinds == rng.choice(np.unique(kinds))])))
            grammar.advance(state, ids[-1], check=False)
        start, length = int(rng.integers(len(ids))), int(rng.integers(2, 7))
        parts = tuple(ids[start : start + length])
        if len(parts) < 2 or parts in seen or base.eos in parts:
            continue
        seen.add(parts)
        expansions[base.size + len(expansions)] = parts
    names = (*base.tokens, *(f"BPE_{i}" for i in expansions))
    return Vocabulary(scheme, names, base.graph, base.positions_per_beat, expansions)


def walk(grammar: Grammar, seed: int, steps: int) -> int:
    """Follow random music in both machines and compare everything at every step; how many steps there were."""
    specs = default_specs(grammar.vocabulary, NAMES)
    rng = np.random.default_rng(seed)
    follower, state = Follower(rules_of(grammar, specs)), grammar.start()
    side = SideInputTracker(
        grammar.vocabulary, specs, bars_total=[None, 3][seed % 2], density=[None, 4][seed % 2]
    )
    follower.side = side
    by_type, lively = seed % 3 > 0, seed % 2
    for step in range(steps):
        mask, expected = follower.mask(), grammar.mask(state)
        names = [grammar.vocabulary.tokens[i] for i in np.flatnonzero(mask != expected)]
        assert names == [], f"step {step}"
        legal = np.flatnonzero(expected)
        if grammar.ended(state) or not len(legal):  # registers set below may leave no way on
            break
        if lively and len(legal) > 1:
            legal = legal[legal != grammar.vocabulary.eos]
        if by_type:
            kinds = grammar.type_of[legal]
            legal = legal[kinds == rng.choice(np.unique(kinds))]
        token = int(rng.choice(legal))
        grammar.advance(state, token, check=False)
        follower.advance(token)
        assert (follower.advance_side(token) == side.advance(token)).all(), f"side inputs at step {step}"
        if rng.random() < 0.05:  # registers that a caller may set between tokens
            for name, value in (
                ("require_note_in_bar", rng.integers(3)),
                ("min_position", rng.integers(20)),
                ("max_bars", state.bar + rng.integers(-1, 4) if grammar.constraints.allow_eos else -1),
            ):
                setattr(state, name, int(value))
                setattr(follower.state, name, int(value))
        for program in range(-1, 128):
            rows = follower.state.heard_row(program), state.heard_row(program)
            assert (rows[0] is None) == (rows[1] is None)
            assert rows[0] is None or (rows[0] == rows[1]).all()
        mine = follower.state.copy()
        assert [getattr(mine, name) for name in REGISTERS] == [getattr(state, name) for name in REGISTERS]
        assert mine.ends == state.ends
        assert mine.rows.keys() == state.rows.keys()
        assert all((mine.rows[program] == row).all() for program, row in state.rows.items())
        if rng.random() < 0.03:  # out and in again
            follower = Follower(follower.rules)
            follower.set_state(mine)
            follower.side = side
            assert (follower.side.to_array()[:20] == side.to_array()[:20]).all()
    return step


@pytest.mark.parametrize("limits", list(LIMITS))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_music(scheme: str, limits: str) -> None:
    steps = sum(walk(grammar_of(scheme, LIMITS[limits]), seed, 90) for seed in range(4))
    assert steps > 20


@pytest.mark.parametrize("scheme", SCHEMES)
def test_byte_pairs(scheme: str) -> None:
    vocabulary = paired(scheme)
    for limits in (None, Constraints(programs=(0, 1), pitch_range=(60, 63), max_polyphony=3, max_bars=6)):
        grammar = Grammar.compile(vocabulary, limits)
        assert sum(walk(grammar, seed, 40) for seed in range(3)) > 20


@settings(max_examples=40, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    programs=st.none() | st.sets(st.integers(-1, 12), min_size=1, max_size=4).map(tuple),
    low=st.integers(30, 80),
    width=st.integers(1, 30),
    polyphony=st.none() | st.integers(1, 4),
    bars=st.none() | st.integers(1, 5),
    classes=st.none() | st.sets(st.integers(0, 11), min_size=1),
    switches=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 1 << 20),
)
def test_any_constraints(
    scheme: str,
    programs: tuple[int, ...] | None,
    low: int,
    width: int,
    polyphony: int | None,
    bars: int | None,
    classes: set[int] | None,
    switches: tuple[bool, bool, bool],
    seed: int,
) -> None:
    limits = Constraints(
        programs=programs,
        pitch_range=(low, low + width),
        pitch_classes=None if classes is None else tuple(classes),
        max_polyphony=polyphony,
        max_bars=bars,
        allow_metre_changes=switches[0],
        allow_tempo=switches[1],
        allow_tempo_changes=switches[2],
    )
    try:
        grammar = Grammar.compile(tokenizer_of(scheme).vocabulary, limits)
    except GrammarError:
        return
    walk(grammar, seed, 60)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_long_music(scheme: str) -> None:
    for limits in LIMITS.values():
        for seed in range(4):
            walk(grammar_of(scheme, limits), 100 + seed, 500)
    grammar = Grammar.compile(paired(scheme, 200))
    for seed in range(4):
        walk(grammar, seed, 250)


def test_words_and_masks() -> None:
    rng = np.random.default_rng(0)
    for V in (1, 8, 63, 64, 65, 701):
        mask = rng.random(V) < 0.5
        assert (np.unpackbits(pack(mask).view(np.uint8), count=V, bitorder="little") == mask).all()
        assert len(pack(mask)) == -(-V // 64)


# -- what is refused ----------------------------------------------------------------------------------------------


def refused(ints: np.ndarray) -> bool:
    rules = object.__new__(Rules)
    try:
        rules._set(np.ascontiguousarray(ints))
    except ConfigError:
        return True
    return False


def test_damaged_tables_are_refused() -> None:
    vocabulary = paired("REMI")
    ints = describe_rules(Grammar.compile(vocabulary), default_specs(vocabulary, NAMES))
    assert not refused(ints)
    rng = np.random.default_rng(3)
    for length in [*range(100), *rng.integers(100, len(ints), 60).tolist()]:
        assert refused(ints[:length])
    assert refused(np.append(ints, 0))
    found = 0
    for _ in range(400):  # one number changed: refused, or tables of another music
        changed = ints.copy()
        at = rng.integers(120) if rng.random() < 0.5 else rng.integers(len(ints))
        changed[at] = rng.choice([-(2**63), -1, 0, 1, 2, 3, 127, 128, 2**20, 2**31, 2**62])
        found += refused(changed)
    assert found > 150


def test_states_of_another_vocabulary_are_refused() -> None:
    grammar = grammar_of("REMI")
    follower = Follower(rules_of(grammar))
    before = follower.state.copy().to_array()
    wrong = [
        {"kind": 99},
        {"kind": -1},
        {"unit": 0},
        {"has_bars": 0},
        {"tempo": 3},
        {"metre": 1 << 40},
        {"program": 500},
        {"pitch": 128},
        {"bar_length": 1 << 50},
        {"now": -1},
    ]
    for change in wrong:
        state = grammar.start()
        for name, value in change.items():
            setattr(state, name, value)
        with pytest.raises(GrammarError, match="another vocabulary"):
            follower.set_state(state)
        assert (follower.state.copy().to_array() == before).all()
    follower.state.kind = 77  # written to behind its back
    with pytest.raises(GrammarError, match="another vocabulary"):
        follower.mask()
    with pytest.raises(GrammarError, match="not in the vocabulary"):
        Follower(rules_of(grammar)).advance(grammar.vocabulary.size)


def test_any_tokens_are_followed_without_harm() -> None:
    """Tokens that the grammar does not allow lead somewhere, and never out of the memory."""
    rng = np.random.default_rng(5)
    for scheme in SCHEMES:
        grammar = grammar_of(scheme)
        follower = Follower(rules_of(grammar, default_specs(grammar.vocabulary, NAMES)))
        for token in rng.integers(0, grammar.vocabulary.size, 800).tolist():
            try:
                follower.advance(token)
            except GrammarError:  # the registers have left their limits
                follower = Follower(follower.rules)
            follower.advance_side(token)


def test_rules_are_made_once() -> None:
    grammar = grammar_of("TSD")
    specs = default_specs(grammar.vocabulary)
    assert rules_of(grammar, specs) is rules_of(grammar, list(specs))
    assert rules_of(grammar, specs) is not rules_of(grammar, specs[:1])


def test_rules_go_with_their_grammar() -> None:
    grammar = Grammar.compile(tokenizer_of("REMI").vocabulary)
    rules_of(grammar)
    gone = weakref.ref(grammar)
    del grammar
    gc.collect()
    assert gone() is None
