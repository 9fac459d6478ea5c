"""The grammar and the side inputs in compiled code: their tables as the engine reads them, and a follower.

The tables are those of csrc/grammar.h and csrc/side_inputs.h. Letters: V vocabulary, S side inputs, W words of a mask.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.engine import native
from melodia.errors import BackendError
from melodia.grammar import Grammar, GrammarState, Op
from melodia.grammar.compiled import Node
from melodia.grammar.state import REGISTERS
from melodia.key_finding import FADE, NOTE, PROFILES
from melodia.side_inputs import NAMES, SideInputSpec, SideInputTracker
from melodia.vocabulary import Vocabulary

MAGIC, VERSION = 0x4D454C4F44494132, 1
PITCHES = 128
Bits = NDArray[np.uint64]


def pack(mask: NDArray[np.bool_]) -> Bits:
    """A mask [..., V] as words [..., W], the first token in the lowest bit.

    >>> pack(np.array([True, False, True])).tolist()
    [5]
    """
    packed = np.packbits(mask, axis=-1, bitorder="little")
    words = np.zeros((*mask.shape[:-1], -(-mask.shape[-1] // 64) * 8), np.uint8)
    words[..., : packed.shape[-1]] = packed
    return words.view("<u8").astype(np.uint64, copy=False)


def describe_rules(grammar: Grammar, specs: Sequence[SideInputSpec] = ()) -> NDArray[np.int64]:
    """The tables of a grammar and of side inputs, int64 [N]; csrc/engine/rules.cpp reads them."""
    tables, limits, vocabulary = grammar.tables, grammar.constraints, grammar.vocabulary
    nodes, roots, depth = _flat_trie(grammar.trie)
    programs = _programs(grammar)
    parts = [vocabulary.expansions.get(token, ()) for token in range(vocabulary.size)]
    starts = np.concatenate([[0], np.cumsum([len(of) for of in parts])])
    head: list[int] = [
        vocabulary.size,
        len(grammar.types),
        len(programs),
        len(grammar.programs),
        len(grammar.shifts),
        len(grammar.micros),
        roots,
        len(nodes),
        int(starts[-1]),
        depth,
        tables.has_bars,
        tables.on_off,
        vocabulary.scheme == "Structured",
        tables.default_bar,
        tables.default_unit,
        grammar.silence,
        grammar.longest,
        grammar.reach,
        -1 if limits.max_polyphony is None else limits.max_polyphony,
        limits.allow_metre_changes,
        limits.allow_tempo,
        limits.allow_tempo_changes,
        limits.min_bars,
        -1 if limits.max_bars is None else limits.max_bars,
        grammar.bos,
        grammar.eos,
        vocabulary.pad,
        vocabulary.eos,
        grammar.least_room,
        grammar.roomy,
    ]
    for op, ids in grammar.ranges.items():
        head += ids if op != Op.BPE else (0, 0, 0)
    base = pack(np.array(grammar.bases)).view(np.int64)
    sections: list[Any] = [
        [MAGIC, VERSION, *head],
        tables.ops,
        [0 if op == Op.TEMPO else value for op, value in zip(tables.ops, tables.values, strict=True)],
        tables.bar_lengths,
        tables.units,
        grammar.kind_of,
        grammar.shifts,
        grammar.micros,
        programs,
        [grammar.program_token[p] for p in programs],
        grammar.playable[False],
        grammar.playable[True],
        grammar.follow_flags,
        base.reshape(-1),
        *np.array(nodes, np.int64).reshape(-1, 4).T,
        starts,
        [part for of in parts for part in of],
        [len(specs), *(NAMES.index(spec.name) for spec in specs), *(spec.size for spec in specs)],
        [NOTE, *FADE],
        np.array(PROFILES).reshape(-1),
    ]
    return np.concatenate([np.asarray(section, np.int64) for section in sections])


def _programs(grammar: Grammar) -> list[int]:
    """All programs of a vocabulary, those that may play first."""
    return list(dict.fromkeys([*grammar.programs, *grammar.program_token]))


def _flat_trie(roots: dict[int, Node]) -> tuple[list[tuple[int, int, int, int]], int, int]:
    """Nodes level by level as (part, token, first child, children); how many are roots; how many levels."""
    flat: list[tuple[int, int, int, int]] = []
    level, first, depth = list(roots.items()), len(roots), 0
    while level:
        below: list[tuple[int, Node]] = []
        for part, node in level:
            flat.append((part, node.token, first + len(below), len(node.children)))
            below += node.children.items()
        first += len(below)
        level, depth = below, depth + 1
    return flat, len(roots), depth


class Rules:
    """A grammar and side inputs, compiled and checked.

    Args:
        grammar: with its constraints.
        specs: the side inputs of the model, S of them.

    Attributes:
        vocabulary: of the grammar, which is not kept.
        programs: in the order of the tables, those that may play first.
        native: the compiled tables.

    Raises:
        BackendError: the engine is not there.
        ConfigError: the tables are refused.
    """

    def __init__(self, grammar: Grammar, specs: Sequence[SideInputSpec] = ()) -> None:
        self.specs = tuple(specs)
        self.vocabulary: Vocabulary = grammar.vocabulary
        self.programs = _programs(grammar)
        self._set(describe_rules(grammar, specs))

    def _set(self, ints: NDArray[np.int64]) -> None:
        why = native.reason()
        if why is not None:
            raise BackendError(f"the engine was asked for, but {why}; build it (see CONTRIBUTING.md)")
        self.native = native.module().Rules(ints)


_KEPT: weakref.WeakKeyDictionary[Grammar, dict[tuple[SideInputSpec, ...], Rules]] = (
    weakref.WeakKeyDictionary()
)


def rules_of(grammar: Grammar, specs: Sequence[SideInputSpec] = ()) -> Rules:
    """The rules of a grammar, compiled once."""
    known = _KEPT.setdefault(grammar, {})
    if tuple(specs) not in known:
        known[tuple(specs)] = Rules(grammar, specs)
    return known[tuple(specs)]


class NativeState(GrammarState):
    """The grammar's registers in the engine's own memory: reading and writing goes there.

    `rows` and `ends` are copies; `copy` gives a state of Python's.
    """

    __slots__ = ("_at", "_begun", "_ends", "_index", "_rows")

    def __init__(self, follower: Any, programs: Sequence[int]) -> None:
        """The state of a follower.

        Args:
            follower: of the engine.
            programs: of its rows.
        """
        self._at = memoryview(follower.registers)  # gives plain numbers, and faster than an array
        self._begun: NDArray[np.int64] = follower.begun
        self._rows: NDArray[np.int64] = follower.rows
        self._ends: NDArray[np.int64] = follower.ends
        self._index = {program: i for i, program in enumerate(programs)}

    @property
    def rows(self) -> dict[int, NDArray[np.int64]]:  # type: ignore[override]
        """Copies of the rows of the programs that have played."""
        return {p: self._rows[i].copy() for p, i in self._index.items() if self._begun[i]}

    def heard_row(self, program: int) -> NDArray[np.int64] | None:
        """As `GrammarState.heard_row`: the memory itself."""
        i = self._index.get(program)
        return None if i is None or not self._begun[i] else self._rows[i]

    @property
    def ends(self) -> list[int]:  # type: ignore[override]
        """A copy of the ends."""
        ends: list[int] = self._ends[: self._at[len(REGISTERS)]].tolist()
        return ends

    def copy(self, *, share_rows: bool = False) -> GrammarState:
        """An independent state of Python's."""
        state = GrammarState(**dict(zip(REGISTERS, self._at, strict=False)))
        state.rows, state.ends = self.rows, self.ends
        return state


def _register(index: int) -> property:
    def read(state: NativeState) -> int:
        return state._at[index]

    def write(state: NativeState, value: int) -> None:
        state._at[index] = value

    return property(read, write)


for _index, _name in enumerate(REGISTERS):
    setattr(NativeState, _name, _register(_index))


class Follower:
    """One sequence followed in compiled code: which token may come, and the side inputs.

    Args:
        rules: the grammar and the side inputs.
        native: a follower of the engine under these rules; None: a new one at the beginning of music.

    Attributes:
        state: the grammar's registers, in the engine's memory.
    """

    def __init__(self, rules: Rules, native: Any = None) -> None:
        self.rules = rules
        self._native = rules.native.follow() if native is None else native
        self.state: GrammarState = NativeState(self._native, rules.programs)

    def mask(self) -> NDArray[np.bool_]:
        """Which tokens may follow, as `Grammar.mask`: bool [V]."""
        allowed: NDArray[np.bool_] = self._native.mask()
        return allowed

    def advance(self, token: int) -> None:
        """Step the grammar behind a token, unchecked, as `Grammar.advance`."""
        self._native.advance(token)

    def advance_side(self, token: int) -> NDArray[np.int32]:
        """Step the side inputs behind a token: int32 [S]."""
        row: NDArray[np.int32] = self._native.advance_side(token)
        return row

    def set_state(self, state: GrammarState) -> None:
        """Go on from a state of Python's.

        Raises:
            GrammarError: it belongs to another vocabulary.
        """
        rows = state.rows
        self._native.set_grammar(
            np.array([getattr(state, name) for name in REGISTERS], np.int64),
            np.array(list(rows), np.int64),
            np.array(list(rows.values()), np.int64).reshape(-1, PITCHES),
            np.array(state.ends, np.int64),
        )

    @property
    def side(self) -> SideInputTracker:
        """The side inputs' registers, as a tracker of Python's."""
        return SideInputTracker.from_array(self.rules.vocabulary, self.rules.specs, self._native.side)

    @side.setter
    def side(self, tracker: SideInputTracker) -> None:
        self._native.side = np.ascontiguousarray(tracker.to_array(), np.int64)
