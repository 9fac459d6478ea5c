"""The grammar and the side inputs in compiled code: their tables as the engine reads them, and a follower.

The tables are those of csrc/grammar.h and csrc/side_inputs.h. Letters: V vocabulary, S side inputs, W words of a mask.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.engine import native, native_loop
from melodia.errors import BackendError, ConfigError, GrammarError
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


def unpack(words: Bits, V: int) -> NDArray[np.bool_]:
    """The inverse of `pack` for one mask: words [W] -> bool [V]."""
    return np.unpackbits(words.view(np.uint8), count=V, bitorder="little").view(np.bool_)


def describe_rules(grammar: Grammar, specs: Sequence[SideInputSpec] = ()) -> NDArray[np.int64]:
    """The tables of a grammar and of side inputs, int64 [N]; csrc/engine/rules.cpp reads them."""
    tables, limits, vocabulary = grammar.tables, grammar.constraints, grammar.vocabulary
    nodes, roots, depth = _flat_trie(grammar._trie)
    every = list(grammar._program_token)
    programs = [*grammar._programs, *(p for p in every if p not in set(grammar._programs))]
    parts = [vocabulary.expansions.get(token, ()) for token in range(vocabulary.size)]
    starts = np.concatenate([[0], np.cumsum([len(of) for of in parts])])
    head: list[int] = [
        vocabulary.size,
        len(grammar.types),
        len(programs),
        len(grammar._programs),
        len(grammar._shifts),
        len(grammar._micros),
        roots,
        len(nodes),
        int(starts[-1]),
        depth,
        tables.has_bars,
        tables.on_off,
        vocabulary.scheme == "Structured",
        tables.default_bar,
        tables.default_unit,
        grammar._silence,
        grammar._longest,
        grammar._reach,
        -1 if limits.max_polyphony is None else limits.max_polyphony,
        limits.allow_metre_changes,
        limits.allow_tempo,
        limits.allow_tempo_changes,
        limits.min_bars,
        -1 if limits.max_bars is None else limits.max_bars,
        grammar._bos,
        grammar._eos,
        vocabulary.pad,
        vocabulary.eos,
        grammar._least_room,
        grammar._roomy,
    ]
    for op in Op:
        head += grammar._slice[op] if op != Op.BPE else (0, 0, 0)
    base = pack(np.array(grammar._base)).view(np.int64)
    sections: list[Any] = [
        [MAGIC, VERSION, *head],
        tables.ops,
        [0 if op == Op.TEMPO else value for op, value in zip(tables.ops, tables.values, strict=True)],
        tables.bar_lengths,
        tables.units,
        grammar._kinds,
        grammar._shifts,
        grammar._micros,
        programs,
        [grammar._program_token[p] for p in programs],
        grammar._playable[False],
        grammar._playable[True],
        grammar._follow,
        base.reshape(-1),
        *np.array(nodes, np.int64).reshape(-1, 4).T,
        starts,
        [part for of in parts for part in of],
        [len(specs), *(NAMES.index(spec.name) for spec in specs), *(spec.size for spec in specs)],
        [NOTE, *FADE],
        np.array(PROFILES).reshape(-1),
    ]
    return np.concatenate([np.asarray(section, np.int64) for section in sections])


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

    Raises:
        BackendError: the engine is not there.
        ConfigError: the tables are refused.
    """

    def __init__(self, grammar: Grammar, specs: Sequence[SideInputSpec] = ()) -> None:
        self.grammar = grammar
        self.specs = tuple(specs)
        self.vocabulary: Vocabulary = grammar.vocabulary
        self.words = -(-self.vocabulary.size // 64)
        self._set(describe_rules(grammar, specs))

    def _set(self, ints: NDArray[np.int64]) -> None:
        why = native.reason()
        if why is not None:
            raise BackendError(f"the engine was asked for, but {why}; build it (see CONTRIBUTING.md)")
        library = native_loop.library()
        self.pointer = library.melodia_rules_new(ints.ctypes.data, len(ints))
        if not self.pointer:
            raise ConfigError(f"the engine refuses this grammar: {native.last_error()}")
        self._free = weakref.finalize(self, library.melodia_rules_free, self.pointer)


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

    __slots__ = ("_at", "_begun", "_count", "_ends", "_keep", "_programs", "_rows")

    def __init__(self, follower: int, programs: Sequence[int], keep: object) -> None:
        """The state of a follower.

        Args:
            follower: its pointer.
            programs: of its rows.
            keep: lives as long as this state.
        """
        places = native_loop.StatePlaces()
        native_loop.library().melodia_follower_places(follower, ctypes.byref(places))
        count = len(REGISTERS)
        self._at = (ctypes.c_int64 * (count + 1)).from_address(places.registers)
        self._begun = (ctypes.c_int64 * len(programs)).from_address(places.begun)
        self._rows = np.ctypeslib.as_array(
            (ctypes.c_int64 * (PITCHES * len(programs))).from_address(places.rows)
        ).reshape(-1, PITCHES)
        self._ends = (ctypes.c_int64 * places.capacity).from_address(places.ends)
        self._programs = programs
        self._keep = keep

    @property
    def rows(self) -> dict[int, NDArray[np.int64]]:  # type: ignore[override]
        """Copies of the rows of the programs that have played."""
        return {p: self._rows[i].copy() for i, p in enumerate(self._programs) if self._begun[i]}

    @property
    def ends(self) -> list[int]:  # type: ignore[override]
        """A copy of the ends."""
        return self._ends[: self._at[len(REGISTERS)]]

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
        pointer: of a follower that `keep` owns; None: a new one at the beginning of music.
        keep: lives as long as this follower.

    Attributes:
        state: the grammar's registers, in the engine's memory.
    """

    def __init__(self, rules: Rules, pointer: int | None = None, keep: object = None) -> None:
        self.rules = rules
        self._library = native_loop.library()
        self._keep = keep
        if pointer is None:
            pointer = self._library.melodia_follower_new(rules.pointer)
            if not pointer:
                raise ConfigError(f"no room for a sequence: {native.last_error()}")
            self._free = weakref.finalize(self, _free_follower, self._library, pointer, rules)
        self.pointer: int = pointer
        programs = [*rules.grammar._programs, *rules.grammar._program_token]
        self.state: GrammarState = NativeState(pointer, list(dict.fromkeys(programs)), self)
        self._words = np.zeros(rules.words, np.uint64)
        self._row = np.zeros(max(1, len(rules.specs)), np.int32)

    def mask(self) -> NDArray[np.bool_]:
        """Which tokens may follow, as `Grammar.mask`: bool [V]."""
        self._check(self._library.melodia_follower_mask(self.pointer, self._words.ctypes.data))
        return unpack(self._words, self.rules.vocabulary.size)

    def advance(self, token: int) -> None:
        """Step the grammar behind a token, unchecked, as `Grammar.advance`."""
        self._check(self._library.melodia_follower_advance(self.pointer, token))

    def advance_side(self, token: int) -> NDArray[np.int32]:
        """Step the side inputs behind a token: int32 [S]."""
        self._check(self._library.melodia_follower_advance_side(self.pointer, token, self._row.ctypes.data))
        return self._row[: len(self.rules.specs)].copy()

    def set_state(self, state: GrammarState) -> None:
        """Go on from a state of Python's.

        Raises:
            GrammarError: it belongs to another vocabulary.
        """
        rows = state.rows
        registers = np.array([getattr(state, name) for name in REGISTERS], np.int64)
        programs, ends = np.array(list(rows), np.int64), np.array(state.ends, np.int64)
        times = np.concatenate([np.zeros(0, np.int64), *rows.values()])
        self._check(
            self._library.melodia_follower_set_grammar(
                self.pointer,
                registers.ctypes.data,
                len(programs),
                programs.ctypes.data,
                times.ctypes.data,
                len(ends),
                ends.ctypes.data,
            )
        )

    @property
    def side(self) -> SideInputTracker:
        """The side inputs' registers, as a tracker of Python's."""
        count = self._library.melodia_follower_sides(self.pointer, None, 0)
        flat = np.zeros(count, np.int64)
        self._library.melodia_follower_sides(self.pointer, flat.ctypes.data, count)
        return SideInputTracker.from_array(self.rules.vocabulary, self.rules.specs, flat)

    @side.setter
    def side(self, tracker: SideInputTracker) -> None:
        flat = np.ascontiguousarray(tracker.to_array(), np.int64)
        self._check(self._library.melodia_follower_set_sides(self.pointer, flat.ctypes.data, len(flat)))

    @staticmethod
    def _check(done: int) -> None:
        if not done:
            raise GrammarError(native.last_error())


def _free_follower(library: ctypes.CDLL, pointer: int, rules: Rules) -> None:
    """Free a follower; its rules are an argument so that they live until then."""
    library.melodia_follower_free(pointer)
