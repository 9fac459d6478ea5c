"""The fixed part of the grammar: vocabulary and constraints as flat tables and masks. V = vocabulary size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from melodia.errors import GrammarError
from melodia.grammar.constraints import Constraints
from melodia.grammar.tables import MAX_SILENCE, Op, Tables, compile_tables
from melodia.vocabulary import Vocabulary

F_NOTE, F_PROGRAM, F_POSITION, F_TEMPO, F_BAR, F_EOS, F_METRE, F_SHIFT, F_MICRO = (1 << i for i in range(9))
FLAG_OF = {
    Op.PITCH: F_NOTE,
    Op.DRUM: F_NOTE,
    Op.NOTE_OFF: F_NOTE,
    Op.DRUM_OFF: F_NOTE,
    Op.PROGRAM: F_PROGRAM,
    Op.POSITION: F_POSITION,
    Op.TEMPO: F_TEMPO,
    Op.BAR: F_BAR,
    Op.EOS: F_EOS,
    Op.TIME_SIGNATURE: F_METRE,
    Op.TIME_SHIFT: F_SHIFT,
    Op.MICRO: F_MICRO,
}


class Compiled:
    """What `Grammar` holds of a vocabulary and constraints; nothing in it ever changes.

    Attributes:
        vocabulary, constraints, tables: what it was compiled from.
        types: the token types; `type_of` int32 [V] points into it.
        successors: bool [types, types], whether a type may follow another.
        allowed: bool [V], what the constraints leave.
        kind_of: `type_of` as a list.
        bos, eos: the types of these tokens.
        ranges: of each operation the first id, the end id and the first value.
        program_token, programs: the token of each program; the programs that may play.
        shifts, micros: the values of these tokens, ascending.
        reach: the longest of `micros`, in grid ticks.
        silence, longest: how long nothing may sound, and a note may, in grid ticks (the latter in MIDILike).
        playable: bool [128], the pitches of melodic programs and, under True, of the drums.
        least_room, roomy: while fewer notes sound, every program has a pitch that is free, and some program has one.
        bases: of each type bool [V] for no program, a melodic one and the drums: what may follow it.
        follow_flags: of each type the `F_` of what may follow.
        trie: BPE tokens by their parts.
    """

    def __init__(self, vocabulary: Vocabulary, constraints: Constraints) -> None:
        self.vocabulary = vocabulary
        self.constraints = constraints
        self.tables: Tables = compile_tables(vocabulary)
        kinds = [kind for kind in dict.fromkeys(vocabulary.types) if kind != "BPE"]
        self.types: tuple[str, ...] = tuple(kinds)
        number = {kind: i for i, kind in enumerate(kinds)}
        self.type_of = np.array([number.get(kind, -1) for kind in vocabulary.types], dtype=np.int32)
        self.successors = np.zeros((len(kinds), len(kinds)), dtype=bool)
        for kind, after in vocabulary.graph.items():
            for follower in after:
                if kind in number and follower in number:
                    self.successors[number[kind], number[follower]] = True
        self.allowed = self._static_mask()
        self.kind_of: list[int] = self.type_of.tolist()
        self.bos, self.eos = number["BOS"], number["EOS"]
        self.ranges = {op: self._range(op) for op in range(Op.BPE + 1)}
        self.program_token = {self.tables.values[i]: i for i in self._ids(Op.PROGRAM)}
        self.programs = [p for p, i in self.program_token.items() if self.allowed[i]]
        self.shifts = [self.tables.values[i] for i in self._ids(Op.TIME_SHIFT)]
        self.micros = [self.tables.values[i] for i in self._ids(Op.MICRO)]
        self.reach = max(self.micros, default=0)
        self.silence = MAX_SILENCE * self.tables.ticks_per_quarter
        self.longest = max(self.shifts, default=0) * self.tables.default_unit
        self._prepare_notes()
        self._prepare_masks()
        self.trie = _trie(vocabulary.expansions)

    def _ids(self, *ops: int) -> list[int]:
        return [i for i, op in enumerate(self.tables.ops) if op in ops]

    def _range(self, op: int) -> tuple[int, int, int]:
        """First id, end id and first value of an operation whose ids stand in a row, values ascending."""
        ids = self._ids(op)
        if not ids:
            return 0, 0, 0
        if op in (Op.PITCH, Op.DRUM, Op.NOTE_OFF, Op.DRUM_OFF, Op.POSITION):
            values = [self.tables.values[i] for i in ids]
            if values != list(range(values[0], values[0] + len(ids))):
                raise GrammarError(
                    "the vocabulary's pitches or positions are not consecutive; use one that melodia made"
                )
        if op != Op.BPE and ids != list(range(ids[0], ids[0] + len(ids))):
            raise GrammarError(
                "the vocabulary's tokens of one type are not consecutive; use one that melodia made"
            )
        return ids[0], ids[-1] + 1, self.tables.values[ids[0]]

    def _static_mask(self) -> NDArray[np.bool_]:
        """What the constraints allow wherever it stands, bool [V]."""
        limits, tables, vocabulary = self.constraints, self.tables, self.vocabulary
        programs = None if limits.programs is None else set(limits.programs)
        metres = limits.time_signatures
        if metres is not None and tables.metres:
            known = {vocabulary.value(i) for i in tables.metres}
            unknown = [metre for metre in metres if metre not in known]
            if unknown:
                raise GrammarError(
                    f"no token for the time signature {unknown[0]}; known are {', '.join(sorted(known))}"
                )
        low, high = limits.pitch_range or (0, 127)
        deepest, highest = limits.drum_range or (0, 127)
        pitch_classes = range(12) if limits.pitch_classes is None else limits.pitch_classes
        allowed = np.ones(vocabulary.size, dtype=bool)
        for i, (op, value) in enumerate(zip(tables.ops, tables.values, strict=True)):
            if op in (Op.PAD, Op.BOS, Op.BPE):
                allowed[i] = False
            elif op == Op.EOS:
                allowed[i] = limits.allow_eos
            elif op == Op.TIME_SIGNATURE and metres is not None:
                allowed[i] = vocabulary.value(i) in metres
            elif op == Op.TEMPO:
                allowed[i] = limits.allow_tempo
            elif op == Op.MICRO and limits.max_polyphony is not None:
                allowed[i] = value >= 0  # who sounds is counted at the note's place; before it, more may
            elif op == Op.PROGRAM and programs is not None:
                allowed[i] = value in programs
            elif op in (Op.PITCH, Op.NOTE_OFF):
                melodic = programs is None or any(p >= 0 for p in programs)
                allowed[i] = melodic and low <= value <= high and value % 12 in pitch_classes
            elif op in (Op.DRUM, Op.DRUM_OFF):
                allowed[i] = (programs is None or -1 in programs) and deepest <= value <= highest
        return allowed

    def _prepare_notes(self) -> None:
        """Which pitches each kind of program may play, and how many."""
        self._notes: dict[bool, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
            False: (self.ranges[Op.PITCH], self.ranges[Op.NOTE_OFF]),
            True: (self.ranges[Op.DRUM], self.ranges[Op.DRUM_OFF]),
        }
        self.playable: dict[bool, NDArray[np.bool_]] = {}
        for drum, ((first, end, low), _) in self._notes.items():
            playable = np.zeros(128, dtype=bool)
            playable[low : low + end - first] = self.allowed[first:end]
            self.playable[drum] = playable
        room = [int(self.playable[p < 0].sum()) for p in self.programs]
        if not room or not min(room):
            raise GrammarError(
                "the constraints leave no program with a pitch to play; allow more programs or pitches"
            )
        limit = self.constraints.max_polyphony
        self.least_room = min(room)
        self.roomy = sum(room) if limit is None else min(sum(room), limit)

    def _prepare_masks(self) -> None:
        """Per type and kind of program (none yet, melodic, drums) what may follow, bool [types, 3, V]."""
        ops = np.array(self.tables.ops)
        melodic = (ops == Op.PITCH) | (ops == Op.NOTE_OFF)
        drums = (ops == Op.DRUM) | (ops == Op.DRUM_OFF)
        known = self.type_of >= 0
        self.bases: list[tuple[NDArray[np.bool_], ...]] = []
        self.follow_flags: list[int] = []
        for kind in range(len(self.types)):
            after = np.zeros(self.vocabulary.size, dtype=bool)
            after[known] = self.successors[kind][self.type_of[known]]
            after &= self.allowed
            self.bases.append((after & ~melodic & ~drums, after & ~drums, after & ~melodic))
            flags = 0
            for op in set(ops[after].tolist()):
                flags |= FLAG_OF.get(op, 0)
            self.follow_flags.append(flags)
        self._at_end = np.zeros(self.vocabulary.size, dtype=bool)
        self._at_end[self.vocabulary.pad] = True


class Node:
    """A node of the trie of BPE expansions: the BPE token that ends here (or -1), and what may come next."""

    __slots__ = ("children", "token")

    def __init__(self) -> None:
        self.token = -1
        self.children: dict[int, Node] = {}


def _trie(expansions: dict[int, tuple[int, ...]]) -> dict[int, Node]:
    root = Node()
    for token, parts in expansions.items():
        node = root
        for part in parts:
            node = node.children.setdefault(part, Node())
        node.token = token
    return root.children
