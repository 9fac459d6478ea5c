"""The grammar machine: a mask over the vocabulary in every state, and the step from state to state.

The machine is small on purpose, because it is written once more for C++ and CUDA: flat tables (`Tables`, a
matrix of which type may follow which) and a few registers (`GrammarState`). V = vocabulary size.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.errors import GrammarError
from melodia.grammar.compiled import (
    F_BAR,
    F_EOS,
    F_METRE,
    F_MICRO,
    F_NOTE,
    F_POSITION,
    F_PROGRAM,
    F_SHIFT,
    F_TEMPO,
    Compiled,
    Node,
)
from melodia.grammar.constraints import Constraints
from melodia.grammar.state import FREE, NONE, GrammarState
from melodia.grammar.tables import Op
from melodia.vocabulary import Vocabulary

_FURTHEST = 1 << 52
"""Grid ticks, and whatever else is counted in a state: more are not music."""

_PRUNE = 32
"""So many ends of notes are kept before the past ones are dropped."""


class Grammar(Compiled):
    """Which token may follow. Made by `Grammar.compile`; it holds no state of a sequence.

    >>> from melodia.tokenizer import Tokenizer, TokenizerConfig
    >>> vocabulary = Tokenizer(TokenizerConfig()).vocabulary
    >>> grammar = Grammar.compile(vocabulary, Constraints(time_signatures=("3/4",)))
    >>> state = grammar.start()
    >>> grammar.advance(state, vocabulary.index["Bar_None"])
    >>> [vocabulary.tokens[i] for i in grammar.mask(state).nonzero()[0]]
    ['TimeSig_3/4']
    """

    @classmethod
    def compile(cls, vocabulary: Vocabulary, constraints: Constraints | None = None) -> Grammar:
        """The grammar of a vocabulary under constraints.

        Raises:
            GrammarError: the constraints leave nothing to say, or the vocabulary is not melodia's.
        """
        return cls(vocabulary, constraints if constraints is not None else Constraints())

    def start(self) -> GrammarState:
        """The state behind BOS, before the first token."""
        tables, limits = self.tables, self.constraints
        return GrammarState(
            has_bars=int(tables.has_bars),
            on_off=int(tables.on_off),
            kind=self.bos,
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
            heard=0,
            notes=0,
            bar_notes=0,
            min_bars=limits.min_bars,
            max_bars=-1 if limits.max_bars is None else limits.max_bars,
            require_note_in_bar=0,
            min_position=0,
        )

    def restore(self, array: NDArray[np.integer[Any]]) -> GrammarState:
        """A state that `GrammarState.to_array` saved, checked against this grammar.

        Raises:
            GrammarError: the array is no state, or one of another vocabulary.
        """
        state, tables = GrammarState.from_array(array), self.tables
        fits = (
            (state.has_bars, state.on_off) == (int(tables.has_bars), int(tables.on_off))
            and 0 <= state.kind < len(self.types)
            and (state.metre == NONE or state.metre in tables.metres)
            and (state.tempo == NONE or self.ranges[Op.TEMPO][0] <= state.tempo < self.ranges[Op.TEMPO][1])
            and (state.program == NONE or state.program in self.program_token)
            and state.rows.keys() <= self.program_token.keys()
            and (state.pitch == NONE or 0 <= state.pitch <= 127)
            and 0 < state.unit <= state.bar_length <= _FURTHEST
            and -1 <= state.bar <= _FURTHEST
            and -1 <= state.place <= _FURTHEST
            and all(0 <= tick <= _FURTHEST for tick in (state.bar_start, state.now, state.heard))
            and -_FURTHEST <= state.onset <= _FURTHEST
        )
        if not fits:
            raise GrammarError("the saved state belongs to another vocabulary; prime the sampler again")
        return state

    def ended(self, state: GrammarState) -> bool:
        """Whether EOS has come; then only PAD may follow."""
        return state.kind == self.eos

    def mask(self, state: GrammarState) -> NDArray[np.bool_]:
        """Which tokens may follow: bool [V], at least one True. The array is the caller's to keep."""
        mask = self._base_mask(state)
        if self.trie and state.kind != self.eos:
            self._mask_bpe(state, mask, self.trie, mask)
        return mask

    def allows(self, state: GrammarState, token: int) -> bool:
        """Whether a token may follow; what `mask` says of it, for less where it is a BPE token."""
        if not 0 <= token < self.vocabulary.size:
            return False
        parts = self.vocabulary.expansions.get(token)
        if parts is None:
            return bool(self._base_mask(state)[token])
        if not self._base_mask(state)[parts[0]]:
            return False
        for before, part in pairwise(parts):
            state = self._try(state, before)
            if state.kind == self.eos or not self._mask(state, True)[part]:
                return False
        return True

    def _base_mask(self, state: GrammarState) -> NDArray[np.bool_]:
        """The mask without BPE tokens, at least one True."""
        if state.kind == self.eos:
            return self._at_end.copy()
        mask = self._mask(state, True)
        if not mask.any():  # what was asked for cannot be had here: a note that no pitch is free for
            mask = self._mask(state, False)
        return mask

    def _mask_bpe(
        self, state: GrammarState, here: NDArray[np.bool_], nodes: dict[int, Node], mask: NDArray[np.bool_]
    ) -> None:
        """Allow the BPE tokens below some nodes of the trie whose parts may follow one by one.

        Args:
            state: where the nodes' parts would stand.
            here: what may follow there, bool [V].
            nodes: part -> node.
            mask: bool [V], changed.
        """
        for part, node in nodes.items():
            if not here[part]:
                continue
            if node.token >= 0:
                mask[node.token] = True
            if node.children:
                behind = self._try(state, part)
                if behind.kind != self.eos:
                    self._mask_bpe(behind, self._mask(behind, True), node.children, mask)

    def _try(self, state: GrammarState, token: int) -> GrammarState:
        """The state behind a token, beside the one before it."""
        new = state.copy(share_rows=True)
        if state.program in new.rows:
            new.rows[state.program] = new.rows[state.program].copy()  # the only one that a token can change
        self._step(new, token)
        return new

    def _mask(self, s: GrammarState, strict: bool) -> NDArray[np.bool_]:
        """The mask of base tokens; not `strict` drops what is asked for beyond validity."""
        program = s.program
        voice = 0 if program == NONE else 2 if program < 0 else 1
        mask = self.bases[s.kind][voice].copy()
        follow = self.follow_flags[s.kind]
        wants_note = strict and s.require_note_in_bar > 0 and s.bar_notes == 0
        early = strict and s.min_position > 0 and s.now < s.bar_start + s.min_position * s.unit
        end = (
            -1 if s.has_bars or s.max_bars < 0 else s.bar_start + (s.max_bars - max(s.bar, 0)) * s.bar_length
        )

        if follow & (F_NOTE | F_PROGRAM):
            limit = self.constraints.max_polyphony
            may_begin = not (
                (limit is not None and len(s.ends) >= limit and s.sounding() >= limit)
                or (end >= 0 and s.now >= end)
                or early
            )
            if follow & F_NOTE and voice:
                self._mask_notes(s, mask, voice == 2, may_begin)
            if follow & F_PROGRAM:
                self._mask_programs(s, mask, may_begin, bool(follow & F_NOTE))
        if follow & F_POSITION:
            self._mask_positions(s, mask, strict)
        if follow & F_TEMPO:
            if s.tempo != NONE and self.constraints.allow_tempo_changes:
                mask[s.tempo] = False
            elif s.tempo != NONE or early:
                first, last, _ = self.ranges[Op.TEMPO]
                mask[first:last] = False
        if follow & F_BAR and (
            (s.max_bars >= 0 and s.bar + 1 >= s.max_bars)
            or wants_note
            or (s.bar >= 0 and s.bar_end > s.heard + self.silence)
        ):
            first, last, _ = self.ranges[Op.BAR]
            mask[first:last] = False
        if follow & F_EOS and (
            wants_note or (s.on_off and s.ends) or (strict and (not s.notes or s.bars < s.min_bars))
        ):
            mask[self.vocabulary.eos] = False
        if follow & F_METRE:
            self._mask_metres(s, mask, end)
        if follow & F_SHIFT:
            self._mask_shifts(s, mask, end, wants_note)
        if follow & F_MICRO:
            first, last, _ = self.ranges[Op.MICRO]
            row = s.rows.get(program)
            earliest = -s.now if row is None else max(-s.now, int(row[s.pitch]) - s.now)
            mask[first : first + bisect_left(self.micros, earliest)] = False
        return mask

    def _mask_notes(self, s: GrammarState, mask: NDArray[np.bool_], drum: bool, may_begin: bool) -> None:
        """Only pitches that do not sound may begin, only those that do may end."""
        (first, last, low), (off, off_last, off_low) = self._notes[drum]
        row = s.rows.get(s.program)
        if not may_begin:
            mask[first:last] = False
        elif row is not None:
            sounding = row[low : low + last - first]
            mask[first:last] &= sounding < 0 if s.on_off else sounding <= s.now + self.reach
        if s.on_off:
            if row is None:
                mask[off:off_last] = False
            else:
                begun = row[off_low : off_low + off_last - off]
                mask[off:off_last] &= (begun >= 0) & (begun < s.now)

    def _mask_programs(
        self, s: GrammarState, mask: NDArray[np.bool_], may_begin: bool, directly: bool
    ) -> None:
        """A program may come if it is a change and one of its pitches may begin (MIDILike: or end)."""
        if directly and s.program != NONE:
            mask[self.program_token[s.program]] = False
        if may_begin and len(s.ends) < self.least_room:
            return
        for program in self.programs:
            if not self._can_follow(s, program, may_begin):
                mask[self.program_token[program]] = False

    def _can_follow(self, s: GrammarState, program: int, may_begin: bool) -> bool:
        """Whether a note of a program may begin (MIDILike: or end) here."""
        row = s.rows.get(program)
        if row is None:
            return may_begin
        playable = self.playable[program < 0]
        if s.on_off:
            if may_begin and bool((playable & (row < 0)).any()):
                return True
            return bool((playable & (row >= 0) & (row < s.now)).any())
        return may_begin and bool((playable & (row <= s.now + self.reach)).any())

    def _can_begin(self, s: GrammarState, time: int) -> bool:
        """Whether a note of any program may begin at a time from now on (not MIDILike)."""
        if len(s.ends) < self.roomy:
            return True
        limit = self.constraints.max_polyphony
        if limit is not None and sum(end > time for end in s.ends) >= limit:
            return False
        if len(s.rows) < len(self.programs):
            return True
        time += self.reach
        return any(
            program not in s.rows or bool((self.playable[program < 0] & (s.rows[program] <= time)).any())
            for program in self.programs
        )

    def _mask_positions(self, s: GrammarState, mask: NDArray[np.bool_], strict: bool) -> None:
        """Positions go forward inside the bar, and something must be able to happen there."""
        first, last, _ = self.ranges[Op.POSITION]
        low = max(s.place + 1, s.min_position if strict else 0)
        high = min(s.bar_length // s.unit, (s.heard + self.silence - s.bar_start) // s.unit + 1)
        mask[first : first + low] = False
        mask[first + high : last] = False
        if len(s.ends) >= self.roomy and not self._tempo_possible(s):
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
        first, last, _ = self.ranges[Op.TIME_SIGNATURE]
        fixed = s.metre != NONE and not self.constraints.allow_metre_changes
        if s.has_bars:
            if fixed:
                mask[first:last] = False
                mask[s.metre] = True
        elif fixed or s.now != s.bar_start or (end >= 0 and s.now >= end):
            mask[first:last] = False
        elif s.metre != NONE:
            mask[s.metre] = False

    def _mask_shifts(self, s: GrammarState, mask: NDArray[np.bool_], end: int, wants_note: bool) -> None:
        """Time goes on inside the bar (PerTok), or up to the end and to where a note must have ended."""
        first, last, _ = self.ranges[Op.TIME_SHIFT]
        furthest = s.now + self.shifts[-1] * s.unit
        if s.has_bars or (wants_note and s.bar >= 0):
            furthest = s.bar_end - 1
        if end >= 0:
            furthest = min(furthest, end - (not s.notes or self.vocabulary.scheme == "Structured"))
        silent_until = s.heard + self.silence
        if s.on_off and s.ends:
            silent_until = s.ends[0] + self.longest
        furthest = min(furthest, silent_until)
        high = bisect_right(self.shifts, (furthest - s.now) // s.unit)
        mask[first + high : last] = False
        if len(s.ends) >= self.roomy and not s.on_off and self.vocabulary.scheme == "Structured":
            for i in range(high):
                if not self._can_begin(s, s.now + self.shifts[i] * s.unit):
                    mask[first + i] = False

    def advance(self, state: GrammarState, token: int, *, check: bool = True) -> None:
        """Step to the state behind a token, in place.

        Args:
            state: changed.
            token: base or BPE; BOS is passed over at the start, PAD behind the end.
            check: False spares the test of a token that is known to be allowed, such as one a mask let
                through or one of a seed that other constraints hold for.

        Raises:
            GrammarError: the token may not stand here.
        """
        op = self.tables.ops[token] if 0 <= token < self.vocabulary.size else -1
        if op == Op.BOS and state.kind == self.bos:
            return
        if check and not self.allows(state, token):
            name = self.vocabulary.tokens[token] if op >= 0 else str(token)
            raise GrammarError(
                f"token {name} may not follow {self.types[state.kind]} in bar {state.bar + 1}, "
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
        s.kind = self.kind_of[token]
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
            s.heard = max(s.heard, until)
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
                s.heard = s.now
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
        """The index of the first token that may not stand where it does, or None; BOS may come first."""
        state = self.start()
        for i, token in enumerate(ids):
            try:
                self.advance(state, int(token))
            except GrammarError:
                return i
        return None
