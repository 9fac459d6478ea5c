"""The plan of one continuation: how it joins the seed, what may come, what comes again, where it ends.

The grammar knows what is valid music; the plan sets the grammar's registers (bars asked for, notes that must come)
and narrows its mask where the wish goes beyond validity. Ticks are grid ticks; V = vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from melodia.engine.loop import FAR, Terms
from melodia.engine.rules import Bits, pack
from melodia.grammar import GrammarState
from melodia.grammar.state import NONE
from melodia.grammar.tables import MICRO_RESOLUTION
from melodia.sampler.bars import Bars
from melodia.sampler.classes import TokenClasses
from melodia.sampler.dynamics import Level
from melodia.sampler.kept import Kept
from melodia.sampler.players import Cast
from melodia.sampler.recall import Recalled
from melodia.sampler.request import Request
from melodia.sampler.session import Context
from melodia.sampler.strangers import Strangers
from melodia.sampler.timeline import TEMPO

BAR_TOKENS = 2048
"""A bar that holds so many new tokens is left as soon as it can be: no model, however bad, stays in a bar for ever."""

LAST_BARS = 4
"""The model is told how many bars are left when so many are. Earlier does harm: it has read the seed without, and notes
in the seed's scale fell from 0.79 to 0.75 where it was told from the join on (17 samples)."""

_NEVER = 1 << 40

Mask = NDArray[np.bool_]


class Plan(Bars):
    """The plan of one lane.

    Args:
        classes: of the vocabulary.
        context: what is kept of the music before.
        request: what is wanted.
        state: where the grammar stands; registers are set.
        cycle: the TimeSig values that write one bar of `request.metre`; None: as before.
        rests: by program, how long each may be silent, in grid ticks; see `melodia.sampler.players`.
        kept: music that stays beside the new; None for none.
        strangers: who joins in; None for nobody.
        level: the one velocity of the new notes; None for any.

    Attributes:
        crowded: bars that were left because they grew to `BAR_TOKENS`.
        recalled: what was played again so far; not kept of endless music.
        kept: the music that stays beside it.
        strangers: who joins in.
    """

    def __init__(
        self,
        classes: TokenClasses,
        context: Context,
        request: Request,
        state: GrammarState,
        cycle: tuple[str, ...] | None = None,
        rests: dict[int, int] | None = None,
        kept: Kept | None = None,
        strangers: Strangers | None = None,
        level: Level | None = None,
    ) -> None:
        super().__init__(classes, context, request, cycle)
        self._level = level
        self._bar_tokens = 0
        self._script: list[int] = []  # tokens to come, the next one last
        self._replays = (0, 0)  # from which tick, and how many bars
        self.recalled: tuple[Recalled, ...] = ()
        self.crowded = 0
        self.kept = kept
        self.strangers = strangers
        unheard = () if strangers is None else strangers.programs
        rests = dict(rests or {}) | dict.fromkeys(unheard, 0)
        self._absent = dict.fromkeys(
            () if kept is None else unheard, -_NEVER
        )  # asked for from the first bar on
        programs = context.programs if request.programs is None else request.programs
        self._unseeded = state.notes == 0
        finds = programs is None and not request.any_program
        self._cast = Cast(classes, rests, programs, finds=finds, silent=request.silent_bars)
        played = context.tempi
        if not played and context.tempo is not None and state.now > context.join:  # a stream's: time goes on
            played = ((context.origin, 0.0, context.tempo),)
        if played:
            self.times.play_on(state.now, played)
        state.max_bars = -1
        state.min_bars = _NEVER
        if state.bar >= 0:
            self._bar, start, _ = self.bar_at(state)
            self._ask_for_programs(state, start)
            if start == context.join and not self._awaits_metre(state):
                self._enter_bar(state, self._bar, start)
            self._settle(state, 0)

    # -- what the caller asks at every token ----------------------------------------------------------------------

    def restrict(self, s: GrammarState, legal: Mask) -> Mask:
        """Narrow what the grammar allows (bool [V]) to what the plan wants; at least one token is left."""
        if self.kept is not None and (token := self.kept.continues(legal)) is not None:
            return _only(token, legal)
        wanted = self._wanted(s, legal)
        if self.kept is not None:
            self.kept.skip(s)
        if self._script:
            token, classes = self._script[-1], self.classes
            allowed = wanted if classes.bar[token] or classes.metre[token] else legal
            if allowed[token]:
                return _only(token, legal)
            self._script = []
        if wanted.any():
            return wanted
        return legal

    def overrule(self, s: GrammarState, legal: Mask, token: int) -> Mask | None:
        """A mask of what must come in place of a token that was chosen; None where the choice stands."""
        kept, strangers = self.kept, self.strangers
        if (kept is None and strangers is None) or self._begins(s):
            return None
        if not (legal & self.classes.begins).any():
            return None  # inside a note, or in front of a metre
        instead = None if kept is None else kept.passed_over(s, legal, token)
        if strangers is not None and s.now >= self.context.join:
            asked = strangers.ask(s, legal, token if instead is None else instead)
            if asked is not None:
                return asked
        if kept is None or instead is None:
            return None
        kept.tell(s)
        return None if instead == token else _only(instead, legal)

    def replay(self, s: GrammarState, tokens: Sequence[int]) -> None:
        """Let exactly these tokens come, and behind them a bar; what follows a token that may not come is free.

        Args:
            s: where the grammar stands: at the end of a bar.
            tokens: of whole bars; none: nothing is changed.
        """
        if not tokens:
            return
        self._script = [self.classes.vocabulary.index["Bar_None"], *reversed(tokens)]
        self._replays = s.bar_end, int(self.classes.bar[list(tokens)].sum()) // self.pieces

    @property
    def script(self) -> tuple[int, ...]:
        """The tokens that are still to come, the next one first."""
        return tuple(reversed(self._script))

    def go_on(self, script: Sequence[int]) -> None:
        """Let these tokens come, which another plan had left."""
        self._script = [*reversed(script)]

    def steady(self, s: GrammarState, count: int) -> Terms | None:
        """How the music goes on from here to the next bar line without `restrict` and `after` being asked.

        Args:
            s: where the grammar stands.
            count: new tokens so far.

        Returns:
            terms under which the same tokens come as with `restrict` at each of them; None: ask at the next token.
        """
        classes, join = self.classes, self.context.join
        room = BAR_TOKENS - self._bar_tokens
        if self.last is None and self.request.tokens is not None:
            room = min(room, self.request.tokens - 1 - count)
        index, start, end = self.bar_at(s)
        change = self.chord_change(s)
        if (
            room <= 0
            or self.first is None
            or index < 0
            or index != self._bar
            or self._awaits_metre(s)
            or s.now < join + MICRO_RESOLUTION * classes.has_micro
            or (s.has_bars and (s.bar_end <= join or not classes.metres_behind_bars))
            or (self._unseeded and not s.notes)
            or not self._cast.settled
            or self._script
            or self.kept is not None
            or self.strangers is not None
            or (change is not None and self.classes.vocabulary.expansions)
        ):
            return None
        exclude, late = [], self._late(s, start, end)
        metres = self._metres_at(s.bar_start)
        if metres.tokens and not s.has_bars:
            exclude.append("metre")
        if self.last is not None and self._bar >= self.last:
            exclude.append("inner_bar")
        if not self._may_end(self._bar):
            exclude.append("eos")
        excluded = classes.bits(*exclude) if exclude else None
        level = None if self._level is None else self._level.bits
        narrow = (None if mask is None else pack(mask) for mask in (self._too_fast(), self._other_metres(s)))
        for more in (self._cast.others, level, *narrow):
            if more is not None:
                excluded = more if excluded is None else excluded | more
        stop = classes.bits("begins_bar", "inner_bar", "metre", "inner_metre", "tempo", "inner_tempo", "eos")
        stop_tick = FAR if s.has_bars else end if self.last is None else min(end, self.end(s))
        if change is not None:
            stop_tick = min(stop_tick, change)
            stop = stop | classes.positions_from(-(-(change - s.bar_start) // s.unit))
        return Terms(
            tokens=room,
            exclude=excluded,
            late=tuple(late),
            stop=stop,
            stop_tick=stop_tick,
        )

    def _late(self, s: GrammarState, start: int, end: int) -> list[tuple[Bits, int]]:
        """Time shifts that `restrict` does not allow in the present bar, by the tick that they must not reach."""
        if s.has_bars:
            return []
        classes, late = self.classes, []
        if self._metres_at(s.bar_start).tokens and self._next_metre(s) != s.metre:
            # It is written at the bar line.
            late.append((classes.bits("moving"), s.bar_end + 1))
        if self._passes_no_bar(s, self._bar):
            late.append((classes.bits("shift"), 2 * end - start))
        if self.last is not None and self._bar >= self.last:
            late.append((classes.bits("inner_shift"), self.end(s)))
        return late

    def passed(self, count: int) -> None:
        """Take note of tokens that came under the terms of `steady`."""
        self._bar_tokens += count

    def ends(self, s: GrammarState, token: int) -> bool:
        """Whether a token ends the piece instead of going on: EOS, or a bar line behind the last bar."""
        classes = self.classes
        if token == classes.vocabulary.eos:
            return True
        if self.last is None:
            return False
        if s.has_bars:
            return bool(classes.begins_bar[token]) and s.bar >= self.last
        return classes.moves[token] > 0 and s.now + int(classes.moves[token]) * s.unit >= self.end(s)

    def fork(self, random_seed: int) -> Plan:
        """An independent copy, for another way through the stretch that begins here, with other random numbers."""
        twin = copy(self)
        twin.stretches = self.stretches.opened()
        # Of what was replayed only the bar behind it is kept: a branch begins with it.
        twin._script = list(self._script) if len(self._script) == 1 else []
        twin.times = self.times.fork()
        twin._cast = copy(self._cast)
        twin.kept = None if self.kept is None else self.kept.fork()
        twin.strangers = None if self.strangers is None else self.strangers.fork(random_seed)
        return twin

    def after(self, s: GrammarState, token: int, count: int, tempi: Sequence[tuple[int, float]] = ()) -> None:
        """Take note of a token that the grammar has taken.

        Args:
            s: the state behind it; registers are set.
            token: the token.
            count: new tokens so far.
            tempi: (grid tick, quarter notes a minute) that the token set.
        """
        classes = self.classes
        if self.kept is not None:
            self.kept.after()
        if self._script:
            self._script.pop()
            if len(self._script) == 1 and self._replays[1] and not self.request.endless:
                begin, bars = self._replays
                self.recalled += (Recalled(begin, self.bar_at(s)[2], bars),)
        if (classes.metre[token] or classes.inner_metre[token]) and not self._cycle:
            self.times.add_metre(s.bar_start, classes.tables.metres[s.metre])
        for tick, tempo in tempi:
            if self.times.tempo is None or self.request.tempo_changes:
                self.times.add_tempo(tick, tempo)
        index, start, _ = self.bar_at(s)
        self._bar_tokens += 1
        if classes.pitch[token]:
            self._cast.played(s.program)
        if index != self._bar and not self._awaits_metre(s):
            self._bar = index
            self.crowded += self._bar_tokens > BAR_TOKENS
            self._bar_tokens = 0
            self._enter_bar(s, index, start)
            self._ask_for_programs(s, start)
        if self._cast.finds:
            bars = self._bar // self.pieces  # from where the music, not this plan, began
            self._cast.find(s.rows.keys(), bars)
        self._settle(s, count)

    @property
    def bars_total(self) -> int | None:
        """Bars from the start of the music to the end, where the side inputs are to count them: near the end."""
        if (
            self.last is None
            or self.request.following is not None
            or not self.classes.has_metres
            or self._bar <= self.last - LAST_BARS * self.pieces
        ):
            return None
        return self.last + 1

    def context_now(self, s: GrammarState) -> Context:
        """The context from which another plan would go on at this place."""
        tempo, metre = self.times.tempo, self.times.metre
        if self._after is None:  # the metre that was asked for has not begun
            cycle, anchor, metre = self.context.cycle, self.context.anchor, self.context.metre
        else:
            cycle, anchor = self._cycle, self._after.anchor
        if not cycle and s.metre != NONE:
            top, bottom = self.classes.tables.metres[s.metre]
            cycle = (f"{top}/{bottom}",)
            if metre is None or metre[0] * bottom != top * metre[1]:  # else as it stands in the seed
                metre = top, bottom
        return replace(
            self.context,
            tempo=tempo,
            tempi=self.times.played,
            metre=metre,
            cycle=cycle,
            anchor=anchor,
            programs=self._cast.found or self.context.programs,
            chords=self.chords_now(s),
            strangers=(
                self.request.programs or (),
                () if self.strangers is None else self.strangers.programs,
            ),
        )

    # -- inside ---------------------------------------------------------------------------------------------------

    def _wanted(self, s: GrammarState, legal: Mask) -> Mask:
        classes, join = self.classes, self.context.join
        if s.has_bars and (s.bar < 0 or (s.bar_end <= join and not self._awaits_metre(s))):
            return legal & classes.bar
        wanted = legal.copy()
        if join <= s.now < join + MICRO_RESOLUTION:
            wanted &= s.now + classes.micro >= join
        metres = self._metres_at(s.bar_start)
        if metres.tokens:
            token = metres.token_at(s.bar_start)
            if wanted[token]:
                return _only(token, wanted)
            other = self._other_metres(s)
            if other is not None:
                wanted &= ~other
            if not s.has_bars:
                wanted &= ~classes.metre
                if self._metres_at(s.bar_end).token_at(s.bar_end) != s.metre:  # it is written at the bar line
                    wanted &= ~((classes.moves > 0) & (s.now + classes.moves * s.unit > s.bar_end))
        if not s.has_bars and s.now < join:
            return self._shifts_to_join(s, wanted)
        if self._begins(s):
            prelude = classes.prelude(wanted, self.request.tempo)
            if prelude is not None:
                wanted = prelude
        self._cast.narrow(s.program, wanted)
        if self._level is not None:
            wanted &= ~self._level.others
        faster = self._too_fast()
        if faster is not None:
            wanted &= ~faster
        if self._bar_tokens >= BAR_TOKENS:
            away = wanted & (classes.bar if s.has_bars else classes.shift)
            if away.any():
                return away
        index, start, end = self.bar_at(s)
        if self._passes_no_bar(s, index):
            limit = end if self._unseeded and not s.notes else 2 * end - start
            wanted &= ~(classes.shift & (s.now + classes.moves * s.unit >= limit))
        if self.last is not None and self._bar >= self.last:
            wanted &= ~classes.inner_bar
            if not s.has_bars:
                wanted &= ~(classes.inner_shift & (s.now + classes.moves * s.unit >= self.end(s)))
        if not self._may_end(self._bar):
            wanted[classes.vocabulary.eos] = False
        if self.strangers is not None:
            self.strangers.narrow(s, wanted)
        if self.kept is not None:
            self.kept.narrow(s, wanted)
            if not self._cast.settled and (stays := wanted & ~classes.bar).any():
                wanted = stays  # whoever is asked for plays in this bar: notes that stay do not count
        return wanted

    def _may_end(self, bar: int) -> bool:
        """Whether the piece may end in a bar: in the last one, behind which nothing comes, or by request."""
        if self.last is not None and bar >= self.last:
            return self.request.following is None
        return self.request.may_end and self.first is not None and bar >= self.first

    def _begins(self, s: GrammarState) -> bool:
        """Whether music from nothing has not said its tempo yet."""
        return self._unseeded and s.tempo == NONE and s.notes == 0

    def _passes_no_bar(self, s: GrammarState, index: int) -> bool:
        """Whether no time shift may pass a whole bar: it would be silent, and the first must not be."""
        before = self.first is None or index < self.first
        return not s.has_bars and (before or not self.request.silent_bars)

    def _next_metre(self, s: GrammarState) -> int:
        """The TimeSig token of the bar that begins at the end of this one."""
        following = self._before if s.bar_end < self._change else self._after
        return (following or self.classes.metres(self._cycle, s.bar_end)).token_at(s.bar_end)

    def _other_metres(self, s: GrammarState) -> Mask | None:
        """BPE tokens that set another metre than the next bar's; None where the grammar allows only one."""
        classes, metres = self.classes, self._metres_at(s.bar_start)
        if not metres.tokens or (metres.pieces == 1 and {*self._cycle} == {*self.context.cycle}):
            return None
        if metres.pieces > 1 or not s.has_bars:  # where in the token its metre comes is not asked
            return classes.inner_metre
        return classes.inner_metre & (classes.metre_of != self._next_metre(s))

    def _too_fast(self) -> Mask | None:
        """Tempi that would end the last bar before the seconds are over that it was to reach; None where none would."""
        if self.last is None or self.request.seconds is None or not self.request.tempo_changes:
            return None
        return self.classes.fastest > round(100 * (self.times.tempo or TEMPO))

    def _shifts_to_join(self, s: GrammarState, legal: Mask) -> Mask:
        """Time shifts that lead to the join or into the bar behind it, or as near to it as one can."""
        classes, join, origin = self.classes, self.context.join, self.context.origin
        shifts = legal & classes.shift
        landing = s.now + classes.moves * s.unit
        length = self._bar_ticks(s)
        limit = join + length if join == origin else origin + 2 * length
        there = shifts & (landing >= join) & (landing < limit)
        if there.any():
            return there
        near = shifts & (landing <= join)
        return near if near.any() else shifts

    def _enter_bar(self, s: GrammarState, index: int, start: int) -> None:
        """A new bar has begun: it must hold a note, unless it may be silent or something sounds into it."""
        if start < self.context.join:
            return
        is_first = self.first is None or index == self.first
        if not is_first and (self.request.silent_bars or (index - (self.first or 0)) % self.pieces):
            return
        sounds = bool(s.ends) if s.on_off else s.heard > start
        if (is_first or not sounds) and self.bar_at(s)[2] == s.bar_end:
            s.require_note_in_bar = 1

    def _ask_for_programs(self, s: GrammarState, start: int) -> None:
        """In the bar that begins here: programs that have rested too long, or the tune behind a bar of drums alone."""
        if not s.has_bars or start <= self.context.join:
            self._cast.leave_bar()
            return
        heard = self._absent | {program: int(row.max()) for program, row in s.rows.items()}
        if self._cast.enter_bar(heard, start, s.bar_length) and self.bar_at(s)[2] == s.bar_end:
            s.require_note_in_bar = 1

    def _settle(self, s: GrammarState, count: int) -> None:
        """Find the first full bar and, when it can be known, the last one."""
        index, start, end = self.bar_at(s)
        if index < 0 or self._awaits_metre(s):
            return
        join = self.context.join
        if start < join < end and s.has_bars and s.now < join:
            s.min_position = -(-(join - start) // s.unit)
        if self.first is None and end > join:
            self._find_first(index, start, end)
            self._length = self._bar_ticks(s)
            if self.request.metre is not None:
                self.times.change_metre(self._line, self.request.metre)
        if self.first is not None and self.last is None:
            self.last = self._find_last(s, index, count)
            if self.last is not None or self.request.may_end:
                asked = self.first if self.request.may_end else self.last
                s.min_bars = asked + 1 if self.classes.has_metres and asked is not None else 0


def _only(token: int, legal: Mask) -> Mask:
    """A mask like this one that leaves a single token."""
    only = np.zeros_like(legal)
    only[token] = True
    return only
