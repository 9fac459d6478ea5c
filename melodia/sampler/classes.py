"""Tokens by what the plan of a continuation has to know of them. V = vocabulary size, W = words of a mask."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from melodia.engine.rules import Bits, pack
from melodia.grammar import Op, compile_tables
from melodia.grammar.state import NONE
from melodia.sampler.metres import Metres
from melodia.vocabulary import Vocabulary


class TokenClasses:
    """Tokens by what the plan has to know of them, bool [V] each. Made once per vocabulary.

    Attributes:
        bar, metre, tempo, position, shift: base tokens of one operation.
        begins_bar: tokens whose first part is a bar line.
        inner_bar: BPE tokens with a bar line behind their beginning.
        inner_metre: BPE tokens that set a metre.
        metre_of: int64 [V], the TimeSig token that a token is or holds; `NONE` for other tokens.
        inner_tempo: BPE tokens that set a tempo.
        fastest: int64 [V], the fastest tempo that a token sets, in hundredths; 0 where it sets none.
        inner_shift: BPE tokens with a time shift behind their beginning.
        pitch: tokens that begin notes: what the repetition penalty counts.
        plays: tokens that name a program or begin a note.
        begins: base tokens that lead to a note; where one is legal, none is half described.
        program_of: int64 [V], the program that a Program token names; `NONE` for other tokens.
        moves: int64 [V], by how many grid units the token's time shifts move on.
        values: int64 [V], what each token says: a pitch, a place, a program, a tempo.
        micro: int64 [V], by how many ticks a MicroTiming token moves a note off its grid point.
        moving: tokens with a time shift.
        eos: the end of the piece.
        metres_behind_bars: not of tokens: whether TimeSig tokens come behind bar lines only.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.tables = tables = compile_tables(vocabulary)
        ops = np.array(tables.ops)
        self.values = np.array(tables.values)
        self.bar = ops == Op.BAR
        self.metre = ops == Op.TIME_SIGNATURE
        self.tempo = ops == Op.TEMPO
        self.position = ops == Op.POSITION
        self.shift = ops == Op.TIME_SHIFT
        self.pitch = (ops == Op.PITCH) | (ops == Op.DRUM)
        names = ops == Op.PROGRAM
        self.plays = self.pitch | names
        self.begins = names | self.position
        self.program_of = np.where(names, self.values, NONE)
        micro = ops == Op.MICRO
        self.micro = np.where(micro, self.values, 0).astype(np.int64)
        self.moves = np.where(self.shift, self.values, 0).astype(np.int64)
        self.begins_bar = self.bar.copy()
        inner = np.zeros((4, vocabulary.size), dtype=bool)
        self.inner_bar, self.inner_metre, self.inner_tempo, self.inner_shift = inner
        self.metre_of = np.where(self.metre, np.arange(vocabulary.size), NONE)
        self.fastest = np.where(self.tempo, self.values, 0).astype(np.int64)
        for token, parts in vocabulary.expansions.items():
            later = ops[list(parts[1:])]
            self.begins_bar[token] = ops[parts[0]] == Op.BAR
            self.inner_bar[token] = (later == Op.BAR).any()
            self.inner_metre[token] = (ops[list(parts)] == Op.TIME_SIGNATURE).any()
            self.metre_of[token] = self.metre_of[list(parts)].max()
            self.inner_tempo[token] = self.tempo[list(parts)].any()
            self.fastest[token] = self.fastest[list(parts)].max()
            self.inner_shift[token] = (later == Op.TIME_SHIFT).any()
            self.moves[token] = self.moves[list(parts)].sum()
            self.pitch[token] = self.pitch[list(parts)].any()
            self.plays[token] = self.plays[list(parts)].any()
        self.has_metres = bool(tables.metres)
        self.has_micro = bool(micro.any())
        kinds = [kind for kind in dict.fromkeys(vocabulary.types) if kind != "BPE"]
        self.bar_kind = kinds.index("Bar") if "Bar" in kinds else -1
        self.moving = self.moves > 0
        self.eos = ops == Op.EOS
        writes_metres = [kind for kind, after in vocabulary.graph.items() if "TimeSig" in after]
        self.metres_behind_bars = set(writes_metres) <= {"Bar"}
        self._bits: dict[tuple[str, ...], Bits] = {}

    @cached_property
    def begun(self) -> NDArray[np.int64]:
        """The pitched notes that tokens begin, int64 [3, N]: token, program that it names before, pitch.

        The program is `NONE` where the token names none. Only a bias of pitches asks for it.
        """
        parts = [self.vocabulary.expansions.get(token, (token,)) for token in range(self.vocabulary.size)]
        lengths = [len(of) for of in parts]
        token = np.repeat(np.arange(len(parts)), lengths)
        part = np.array([each for of in parts for each in of], np.int64)
        ops, values = (np.array(column)[part] for column in (self.tables.ops, self.tables.values))
        place = np.arange(len(part))
        named = np.maximum.accumulate(np.where(ops == Op.PROGRAM, place, -1))  # the last one, of any token
        own = named >= np.repeat(np.cumsum(lengths) - lengths, lengths)
        program = np.where(own, values[named], NONE)
        pitched = ops == Op.PITCH
        return np.stack([token[pitched], program[pitched], values[pitched]]).astype(np.int64)

    def bits(self, *names: str) -> Bits:
        """The tokens that are in any of these classes, as a mask of words [W]."""
        if names not in self._bits:
            self._bits[names] = pack(np.logical_or.reduce([getattr(self, name) for name in names]))
        return self._bits[names]

    def positions_from(self, value: int) -> Bits:
        """The Position tokens of this value and above, as a mask of words [W]."""
        return pack(self.position & (self.values >= value))

    def other_programs(self, programs: Collection[int]) -> NDArray[np.bool_]:
        """The tokens that lead to a program which is none of these, bool [V]."""
        return self.holding((self.program_of != NONE) & ~np.isin(self.program_of, list(programs)))

    def holding(self, tokens: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Base tokens, bool [V], and with them the BPE tokens that hold one of these, bool [V]."""
        held = tokens.copy()
        for token, parts in self.vocabulary.expansions.items():
            held[token] = tokens[list(parts)].any()
        return held

    def metres(self, cycle: tuple[str, ...], anchor: int) -> Metres:
        """The metre of TimeSig values such as ("3/4",), counted from a bar line."""
        return Metres.of(cycle, anchor, self.vocabulary, self.tables)

    def nearest_tempo(self, tempo: float) -> int:
        """The Tempo token nearest to a tempo, by ratio."""
        ids = np.flatnonzero(self.tempo)
        values = np.array([self.tables.values[i] / 100 for i in ids])
        return int(ids[np.argmin(np.abs(np.log(values / tempo)))])

    def prelude(self, legal: NDArray[np.bool_], tempo: float | None) -> NDArray[np.bool_] | None:
        """What may come before a tempo, and that: music from nothing says it first, as what it was learned from does.

        Args:
            legal: bool [V].
            tempo: quarter notes a minute that was asked for; None: any.

        Returns:
            bool [V]; None: no tempo can come.
        """
        if (legal & self.tempo).any():
            if tempo is None:
                return legal & self.tempo
            only = np.zeros_like(legal)
            only[self.nearest_tempo(tempo)] = True
            return only & legal
        places = np.flatnonzero(legal & self.position)
        if len(places):
            only = np.zeros_like(legal)
            only[places[0]] = True
            return only
        return None
