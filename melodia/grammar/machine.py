"""The grammar machine: a mask over the vocabulary in every state, and the step from state to state.

The machine is small on purpose, because it is written once more for C++ and CUDA: flat tables (`Tables`, a matrix of
which type may follow which) and a few registers (`GrammarState`). V = vocabulary size.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from melodia.errors import GrammarError
from melodia.grammar.constraints import Constraints
from melodia.grammar.state import FREE, NONE, GrammarState
from melodia.grammar.tables import Op, Tables, compile_tables
from melodia.vocabulary import Vocabulary

_F_NOTE, _F_PROGRAM, _F_POSITION, _F_TEMPO, _F_BAR, _F_EOS, _F_METRE, _F_SHIFT, _F_MICRO = (
    1 << i for i in range(9)
)
_FLAG_OF = {
    Op.PITCH: _F_NOTE,
    Op.DRUM: _F_NOTE,
    Op.NOTE_OFF: _F_NOTE,
    Op.DRUM_OFF: _F_NOTE,
    Op.PROGRAM: _F_PROGRAM,
    Op.POSITION: _F_POSITION,
    Op.TEMPO: _F_TEMPO,
    Op.BAR: _F_BAR,
    Op.EOS: _F_EOS,
    Op.TIME_SIGNATURE: _F_METRE,
    Op.TIME_SHIFT: _F_SHIFT,
    Op.MICRO: _F_MICRO,
}
_PRUNE = 32
"""So many ends of notes are kept before the past ones are dropped."""


class Grammar:
    """Which token may follow. Made by `Grammar.compile`; it holds no state of a sequence.

    Attributes:
        vocabulary, constraints, tables: what it was compiled from.
        types: the token types; `type_of` int32 [V] points into it.
        successors: bool [types, types], whether a type may follow another.
        allowed: bool [V], what the constraints leave.

    >>> from melodia.tokenizer import Tokenizer, TokenizerConfig
    >>> vocabulary = Tokenizer(TokenizerConfig()).vocabulary
    >>> grammar = Grammar.compile(vocabulary, Constraints(time_signatures=("3/4",)))
    >>> state = grammar.start()
    >>> grammar.advance(state, vocabulary.index["Bar_None"])
    >>> [vocabulary.tokens[i] for i in grammar.mask(state).nonzero()[0]]
    ['TimeSig_3/4']
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
        self._kinds: list[int] = self.type_of.tolist()
        self._bos, self._eos = number["BOS"], number["EOS"]
        self._slice = {op: self._range(op) for op in Op}
        self._program_token = {self.tables.values[i]: i for i in self._ids(Op.PROGRAM)}
        self._programs = [p for p, i in self._program_token.items() if self.allowed[i]]
        self._shifts = [self.tables.values[i] for i in self._ids(Op.TIME_SHIFT)]
        self._micros = [self.tables.values[i] for i in self._ids(Op.MICRO)]
        self._reach = max(self._micros, default=0)
        self._longest = max(self._shifts, default=0) * self.tables.default_unit
        self._prepare_notes()
        self._prepare_masks()
        self._trie = _trie(vocabulary.expansions)

    @classmethod
    def compile(cls, vocabulary: Vocabulary, constraints: Constraints | None = None) -> Grammar:
        """The grammar of a vocabulary under constraints.

        Raises:
            GrammarError: the constraints leave nothing to say, or the vocabulary is not melodia's.
        """
        return cls(vocabulary, constraints if constraints is not None else Constraints())

    # -- compiling -----------------------------------------------------------------------------------------------

    def _ids(self, *ops: Op) -> list[int]:
        return [i for i, op in enumerate(self.tables.ops) if op in ops]

    def _range(self, op: Op) -> tuple[int, int, int]:
        """First id, end id and first value of an operation whose ids stand in a row, values ascending."""
        ids = self._ids(op)
        if not ids:
            return 0, 0, 0
        if op in (Op.PITCH, Op.DRUM, Op.NOTE_OFF, Op.DRUM_OFF, Op.POSITION):
            values = [self.tables.values[i] for i in ids]
            if values != list(range(values[0], values[0] + len(ids))):
                raise GrammarError(
                    "the vocabulary's pitches or positions are not in a row; use one melodia made"
                )
        if op != Op.BPE and ids != list(range(ids[0], ids[0] + len(ids))):
            raise GrammarError("the vocabulary's tokens of one type are not in a row; use one melodia made")
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
                    f"no token for the time signature {unknown[0]}; there are {', '.join(sorted(known))}"
                )
        low, high = limits.pitch_range or (0, 127)
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
            elif op == Op.PROGRAM and programs is not None:
                allowed[i] = value in programs
            elif op in (Op.PITCH, Op.NOTE_OFF):
                allowed[i] = low <= value <= high and (programs is None or any(p >= 0 for p in programs))
            elif op in (Op.DRUM, Op.DRUM_OFF):
                allowed[i] = programs is None or -1 in programs
        return allowed

    def _prepare_notes(self) -> None:
        """Which pitches each kind of program may play, and how many."""
        self._notes: dict[bool, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
            False: (self._slice[Op.PITCH], self._slice[Op.NOTE_OFF]),
            True: (self._slice[Op.DRUM], self._slice[Op.DRUM_OFF]),
        }
        self._playable: dict[bool, NDArray[np.bool_]] = {}
        for drum, ((first, end, low), _) in self._notes.items():
            playable = np.zeros(128, dtype=bool)
            playable[low : low + end - first] = self.allowed[first:end]
            self._playable[drum] = playable
        room = [int(self._playable[p < 0].sum()) for p in self._programs]
        if not room or not min(room):
            raise GrammarError(
                "the constraints leave no program with a pitch to play; allow more programs or pitches"
            )
        limit = self.constraints.max_polyphony
        self._least_room = min(room)
        self._roomy = sum(room) if limit is None else min(sum(room), limit)

    def _prepare_masks(self) -> None:
        """Per type and kind of program (none yet, melodic, drums) what may follow, bool [types, 3, V]."""
        ops = np.array(self.tables.ops)
        melodic = (ops == Op.PITCH) | (ops == Op.NOTE_OFF)
        drums = (ops == Op.DRUM) | (ops == Op.DRUM_OFF)
        known = self.type_of >= 0
        self._base: list[tuple[NDArray[np.bool_], ...]] = []
        self._follow: list[int] = []
        for kind in range(len(self.types)):
            after = np.zeros(self.vocabulary.size, dtype=bool)
            after[known] = self.successors[kind][self.type_of[known]]
            after &= self.allowed
            self._base.append((after & ~melodic & ~drums, after & ~drums, after & ~melodic))
            flags = 0
            for op in set(ops[after].tolist()):
                flags |= _FLAG_OF.get(Op(op), 0)
            self._follow.append(flags)
        self._at_end = np.zeros(self.vocabulary.size, dtype=bool)
        self._at_end[self.vocabulary.pad] = True

    # -- running -------------------------------------------------------------------------------------------------

    def start(self) -> GrammarState:
        """The state behind BOS, before the first token."""
        tables, limits = self.tables, self.constraints
        return GrammarState(
            has_bars=int(tables.has_bars),
            on_off=int(tables.on_off),
            kind=self._bos,
            bar=-1,
            bar_start=0,
            bar_length=tables.default_bar,
            unit=tables.default_unit,
            metre=NONE,
            now=0,
            place=-1,
            program=NONE,
            pitch=NONE,
            onset=0,
            tempo=NONE,
            notes=0,
            bar_notes=0,
            min_bars=limits.min_bars,
            max_bars=-1 if limits.max_bars is None else limits.max_bars,
            require_note_in_bar=0,
            min_position=0,
        )

    def ended(self, state: GrammarState) -> bool:
        """Whether EOS has come; then only PAD may follow."""
        return state.kind == self._eos

    def is_bar_start(self, token: int) -> bool:
        """Whether a token begins with a bar line."""
        token = self.vocabulary.expansions.get(token, (token,))[0]
        return self.tables.ops[token] == Op.BAR

    def mask(self, state: GrammarState) -> NDArray[np.bool_]:
        """Which tokens may follow: bool [V], at least one True. The array is the caller's to keep."""
        if state.kind == self._eos:
            return self._at_end.copy()
        mask = self._mask(state, True)
        if not mask.any():  # what was asked for cannot be had here: a note that no pitch is free for
            mask = self._mask(state, False)
        if self._trie:
            for first, node in self._trie.items():
                if mask[first]:
                    self._mask_bpe(state, first, node, mask)
        return mask

    def _mask_bpe(self, state: GrammarState, part: int, node: _Node, mask: NDArray[np.bool_]) -> None:
        """Allow the BPE tokens below a node of the trie whose parts may follow one by one."""
        state = state.copy()
        self._step(state, part)
        if node.token >= 0:
            mask[node.token] = True
        if node.children and state.kind != self._eos:
            inner = self._mask(state, True)
            for child, below in node.children.items():
                if inner[child]:
                    self._mask_bpe(state, child, below, mask)

    def _mask(self, s: GrammarState, strict: bool) -> NDArray[np.bool_]:
        """The mask of base tokens; not `strict` drops what is asked for beyond validity."""
        program = s.program
        voice = 0 if program == NONE else 2 if program < 0 else 1
        mask = self._base[s.kind][voice].copy()
        follow = self._follow[s.kind]
        wants_note = strict and s.require_note_in_bar > 0 and s.bar_notes == 0
        early = strict and s.min_position > 0 and s.now < s.bar_start + s.min_position * s.unit
        end = -1 if s.has_bars or s.max_bars < 0 else s.bar_start + (s.max_bars - s.bar) * s.bar_length

        if follow & (_F_NOTE | _F_PROGRAM):
            limit = self.constraints.max_polyphony
            may_begin = not (
                (limit is not None and len(s.ends) >= limit and s.sounding() >= limit)
                or (end >= 0 and s.now >= end)
                or early
            )
            if follow & _F_NOTE and voice:
                self._mask_notes(s, mask, voice == 2, may_begin)
            if follow & _F_PROGRAM:
                self._mask_programs(s, mask, may_begin, bool(follow & _F_NOTE))
        if follow & _F_POSITION:
            self._mask_positions(s, mask, strict)
        if follow & _F_TEMPO:
            if s.tempo != NONE and self.constraints.allow_tempo_changes:
                mask[s.tempo] = False
            elif s.tempo != NONE or early:
                first, last, _ = self._slice[Op.TEMPO]
                mask[first:last] = False
        if follow & _F_BAR and ((s.max_bars >= 0 and s.bar + 1 >= s.max_bars) or wants_note):
            first, last, _ = self._slice[Op.BAR]
            mask[first:last] = False
        if follow & _F_EOS and (
            wants_note or (s.on_off and s.ends) or (strict and (not s.notes or s.bars < s.min_bars))
        ):
            mask[self.vocabulary.eos] = False
        if follow & _F_METRE:
            self._mask_metres(s, mask, end)
        if follow & _F_SHIFT:
            self._mask_shifts(s, mask, end, wants_note, early, strict)
        if follow & _F_MICRO:
            first, last, _ = self._slice[Op.MICRO]
            row = s.rows.get(program)
            earliest = -s.now if row is None else max(-s.now, int(row[s.pitch]) - s.now)
            mask[first : first + bisect_left(self._micros, earliest)] = False
        return mask

    def _mask_notes(self, s: GrammarState, mask: NDArray[np.bool_], drum: bool, may_begin: bool) -> None:
        """Only pitches that do not sound may begin, only those that do may end."""
        (first, last, low), (off, off_last, off_low) = self._notes[drum]
        row = s.rows.get(s.program)
        if not may_begin:
            mask[first:last] = False
        elif row is not None:
            sounding = row[low : low + last - first]
            mask[first:last] &= sounding < 0 if s.on_off else sounding <= s.now + self._reach
        if s.on_off:
            if row is None:
                mask[off:off_last] = False
            else:
                begun = row[off_low : off_low + off_last - off]
                mask[off:off_last] &= (begun >= 0) & (begun < s.now)

    def _mask_programs(
        self, s: GrammarState, mask: NDArray[np.bool_], may_begin: bool, directly: bool
    ) -> None:
        """A program may come if it changes the program and one of its pitches may then begin (MIDILike: or end)."""
        if directly and s.program != NONE:
            mask[self._program_token[s.program]] = False
        if may_begin and len(s.ends) < self._least_room:
            return
        for program in self._programs:
            if not self._can_follow(s, program, may_begin):
                mask[self._program_token[program]] = False

    def _can_follow(self, s: GrammarState, program: int, may_begin: bool) -> bool:
        """Whether a note of a program may begin (MIDILike: or end) here."""
        row = s.rows.get(program)
        if row is None:
            return may_begin
        playable = self._playable[program < 0]
        if s.on_off:
            if may_begin and bool((playable & (row < 0)).any()):
                return True
            return bool((playable & (row >= 0) & (row < s.now)).any())
        return may_begin and bool((playable & (row <= s.now + self._reach)).any())

    def _can_begin(self, s: GrammarState, time: int) -> bool:
        """Whether a note of any program may begin at a time from now on (not MIDILike)."""
        if len(s.ends) < self._roomy:
            return True
        limit = self.constraints.max_polyphony
        if limit is not None and sum(end > time for end in s.ends) >= limit:
            return False
        if len(s.rows) < len(self._programs):
            return True
        time += self._reach
        return any(
            program not in s.rows or bool((self._playable[program < 0] & (s.rows[program] <= time)).any())
            for program in self._programs
        )

    def _mask_positions(self, s: GrammarState, mask: NDArray[np.bool_], strict: bool) -> None:
        """Positions go forward inside the bar, and something must be able to happen there."""
        first, last, _ = self._slice[Op.POSITION]
        low = max(s.place + 1, s.min_position if strict else 0)
        high = s.bar_length // s.unit
        mask[first : first + low] = False
        mask[first + high : last] = False
        if len(s.ends) >= self._roomy and not self._tempo_possible(s):
            for place in range(low, high):
                if not self._can_begin(s, s.bar_start + place * s.unit):
                    mask[first + place] = False

    def _tempo_possible(self, s: GrammarState) -> bool:
        """Whether a Tempo token may come (all but the present one)."""
        if not self.constraints.allow_tempo or (s.require_note_in_bar and not s.bar_notes):
            return False
        return s.tempo == NONE or self.constraints.allow_tempo_changes

    def _mask_metres(self, s: GrammarState, mask: NDArray[np.bool_], end: int) -> None:
        """A metre may come behind each Bar, or without Bar tokens at a bar line where it changes."""
        first, last, _ = self._slice[Op.TIME_SIGNATURE]
        fixed = s.metre != NONE and not self.constraints.allow_metre_changes
        if s.has_bars:
            if fixed:
                mask[first:last] = False
                mask[s.metre] = True
        elif fixed or s.now != s.bar_start or (end >= 0 and s.now >= end):
            mask[first:last] = False
        elif s.metre != NONE:
            mask[s.metre] = False

    def _mask_shifts(
        self, s: GrammarState, mask: NDArray[np.bool_], end: int, wants_note: bool, early: bool, strict: bool
    ) -> None:
        """Time goes on inside the bar (PerTok), or up to the end and to where a note must have ended."""
        first, last, _ = self._slice[Op.TIME_SHIFT]
        furthest = s.now + self._shifts[-1] * s.unit
        if s.has_bars or (wants_note and s.bar >= 0):
            furthest = s.bar_end - 1
        if end >= 0:
            furthest = min(furthest, end - (self.vocabulary.scheme == "Structured"))
        if s.on_off and s.ends:
            furthest = min(furthest, s.ends[0] + self._longest)
        high = bisect_right(self._shifts, (furthest - s.now) // s.unit)
        low = 0
        if early and s.has_bars:
            low = bisect_left(self._shifts, -(-(s.bar_start + s.min_position * s.unit - s.now) // s.unit))
        mask[first : first + low] = False
        mask[first + high : last] = False
        if len(s.ends) >= self._roomy and not s.on_off and self.vocabulary.scheme == "Structured":
            for i in range(high):
                if not self._can_begin(s, s.now + self._shifts[i] * s.unit):
                    mask[first + i] = False

    def advance(self, state: GrammarState, token: int, *, check: bool = True) -> None:
        """Step to the state behind a token, in place.

        Args:
            state: changed.
            token: base or BPE; BOS is passed over at the start, PAD behind the end.
            check: False spares the test of a token that is known to be allowed, such as one a mask let through or
                one of a seed that other constraints hold for.

        Raises:
            GrammarError: the token may not stand here.
        """
        op = self.tables.ops[token] if 0 <= token < self.vocabulary.size else -1
        if op == Op.BOS and state.kind == self._bos:
            return
        if check and (op < 0 or not self.mask(state)[token]):
            name = self.vocabulary.tokens[token] if op >= 0 else str(token)
            raise GrammarError(
                f"token {name} may not stand behind {self.types[state.kind]} in bar {state.bar + 1}, "
                f"position {state.position}"
            )
        for part in self.vocabulary.expansions.get(token, (token,)):
            self._step(state, part)

    def _step(self, s: GrammarState, token: int) -> None:
        """Step to the state behind a base token."""
        tables = self.tables
        op, value = tables.ops[token], tables.values[token]
        if op == Op.PAD:
            return
        s.kind = self._kinds[token]
        if op == Op.PITCH or op == Op.DRUM:
            s.notes += 1
            s.bar_notes += 1
            if s.on_off:
                s.row(s.program)[value] = s.now
                s.ends.append(s.now)
            else:
                s.pitch, s.onset = value, s.now
        elif op == Op.DURATION:
            until = s.onset + value * s.unit
            s.row(s.program)[s.pitch] = until
            s.ends.append(until)
            s.pitch = NONE
        elif op == Op.POSITION:
            s.place = value
            s.now = s.bar_start + value * s.unit
        elif op == Op.TIME_SHIFT:
            s.now += value * s.unit
            if not s.has_bars:
                s.bar = max(s.bar, 0)
                while s.now >= s.bar_start + s.bar_length:
                    self._begin_bar(s, s.bar_start + s.bar_length)
            elif len(s.ends) > _PRUNE:
                self._prune(s)
        elif op == Op.NOTE_OFF or op == Op.DRUM_OFF:
            row = s.row(s.program)
            if row[value] >= 0:
                s.ends.remove(int(row[value]))
                row[value] = FREE
        elif op == Op.PROGRAM:
            s.program = value
        elif op == Op.MICRO:
            s.onset = s.now + value
        elif op == Op.BAR:
            self._begin_bar(s, s.bar_start + s.bar_length if s.bar >= 0 else 0)
            s.now = s.bar_start
        elif op == Op.TIME_SIGNATURE:
            s.metre = token
            s.bar_length, s.unit = tables.bar_lengths[token], tables.units[token]
            s.bar = max(s.bar, 0)
        elif op == Op.TEMPO:
            s.tempo = token

    def _begin_bar(self, s: GrammarState, start: int) -> None:
        s.bar += 1
        s.bar_start = start
        s.place = -1
        s.bar_notes = 0
        s.min_position = 0
        if s.require_note_in_bar == 1:
            s.require_note_in_bar = 0
        if len(s.ends) > _PRUNE:
            self._prune(s)

    def _prune(self, s: GrammarState) -> None:
        if not s.on_off:
            s.ends = [end for end in s.ends if end > s.now]

    def accepts(self, ids: Iterable[int]) -> int | None:
        """The index of the first token that may not stand where it does, or None if all may. BOS may come first."""
        state = self.start()
        for i, token in enumerate(ids):
            try:
                self.advance(state, int(token))
            except GrammarError:
                return i
        return None


class _Node:
    """A node of the trie of BPE expansions: the BPE token that ends here (or -1), and what may come next."""

    __slots__ = ("children", "token")

    def __init__(self) -> None:
        self.token = -1
        self.children: dict[int, _Node] = {}


def _trie(expansions: dict[int, tuple[int, ...]]) -> dict[int, _Node]:
    root = _Node()
    for token, parts in expansions.items():
        node = root
        for part in parts:
            node = node.children.setdefault(part, _Node())
        node.token = token
    return root.children
