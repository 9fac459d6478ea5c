"""The bars of one continuation: where they lie, which is the first and the last, where stretches begin, their chords.

Ticks are grid ticks.
"""

from __future__ import annotations

from math import ceil

from melodia.grammar import GrammarState
from melodia.harmony import Chord
from melodia.notes import Notes
from melodia.progression import BarGrid, Progression
from melodia.sampler.classes import TokenClasses
from melodia.sampler.metres import Metres
from melodia.sampler.request import Request
from melodia.sampler.session import Context
from melodia.sampler.stretches import STRETCH_BARS, Stretches
from melodia.sampler.timeline import Timeline

_EPSILON = 1e-6


class Bars:
    """The bars of one lane; `melodia.sampler.plan.Plan` finds them as the music goes on.

    Args:
        classes: of the vocabulary.
        context: what is kept of the music before.
        request: what is wanted.
        cycle: the TimeSig values that write one bar of `request.metre`; None: as before.

    Attributes:
        first: index of the first full bar behind the join; None until it is reached.
        last: index of the last bar; None while it is not known.
        times: tempi and metres so far.
        stretches: where the music stands among them.
        progression: the chords that the new bars follow; None where none were asked for.
        closing: the chord that the last bar leans towards where there are none; None: no chord.
    """

    def __init__(
        self, classes: TokenClasses, context: Context, request: Request, cycle: tuple[str, ...] | None = None
    ) -> None:
        self.classes = classes
        self.context = context
        self.request = request
        free = request.metre_changes or not classes.has_metres
        self._cycle = () if free else cycle if cycle is not None else context.cycle
        self._before = classes.metres(() if free else context.cycle, context.anchor)
        self._after = (
            None if self._cycle != context.cycle else self._before
        )  # known from the first new bar on
        self._change = context.join
        if self._before.pieces > 1 and self.completes:
            self._change = self._before.anchor + self._before.length
        self.first: int | None = None
        self.last: int | None = None
        self._line = 0  # the bar line before the first full bar
        self.progression = None if request.chords is None else Progression(request.chords)
        self.closing: Chord | None = None
        self._chords_line: int | None = None  # the line before the first chord, where that is before the join
        if self.progression is not None and context.chords is not None:
            text, line = context.chords
            self._chords_line = line if text == self.progression.text else None
        self._length = 0  # of the bars from there
        self._bar = -1  # the last one that was entered
        self.stretches = Stretches()
        ticks_per_quarter, tempo = classes.tables.ticks_per_quarter, request.tempo or context.tempo
        self.times = Timeline(ticks_per_quarter, context.origin, tempo, context.metre)

    def bar_at(self, s: GrammarState) -> tuple[int, int, int]:
        """The present bar: index, start and end."""
        if self.classes.has_metres:
            return s.bar, s.bar_start, s.bar_end
        length = self._bar_ticks(s)  # a scheme without metre: bars counted from the origin
        index = (s.now - self.context.origin) // length
        start = self.context.origin + index * length
        return index, start, start + length

    def grid(self, s: GrammarState) -> BarGrid | None:
        """Where the bars of chords lie, if the metre does not change; None until the first full one is known."""
        if self.first is None:
            return None
        metre = self.request.metre or self.context.metre or self.classes.tables.metres.get(s.metre)
        line = self._line if self._chords_line is None else self._chords_line
        return BarGrid(line, self._length, 4 if metre is None else metre[0])

    def chord(self, s: GrammarState) -> Chord | None:
        """The chord that holds at the present place; None where there is none."""
        if self.progression is None:
            return self.closing if self.last is not None and self._bar >= self.last else None
        held = self._held(s)
        return None if held is None else held[0].chord(s.now, held[1])

    def chord_change(self, s: GrammarState) -> int | None:
        """The tick inside the present bar at which another chord begins to hold; None where none does."""
        held = self._held(s)
        return None if held is None else held[0].change(s.now, held[1])

    def keeps_chords(self, s: GrammarState, notes: Notes) -> tuple[float, float] | None:
        """How well notes, in grid ticks, keep to the chords, as `Progression.kept` says; None where there are none."""
        held = self._held(s)
        return None if held is None else held[0].kept(notes, held[1])

    def asked_key(self, s: GrammarState, end: int) -> int | None:
        """The key, as in `melodia.key_finding`, in which music that ends at a tick was asked to close; None: in any."""
        held = self._held(s)
        last = None if held is None else held[0].chord(end - 1, held[1])
        asked = last or self.request.scale
        return None if asked is None else asked.key

    def knows_chords_of(self, s: GrammarState, lag: int) -> bool:
        """Whether the bars that came so many before those that begin at the end of this one had their chords."""
        held = self._held(s)
        if held is None:
            return self.progression is None
        return held[0].same_again(lag) and held[1].place(s.now)[0] + 1 >= lag

    def chords_now(self, s: GrammarState) -> tuple[str, int] | None:
        """The chords that hold and where their bars begin, for another plan to go on with; None without chords."""
        held = self._held(s)
        return None if held is None else (held[0].text, held[1].line)

    def _held(self, s: GrammarState) -> tuple[Progression, BarGrid] | None:
        """The chords and their bars; None where no chords were asked for, or their bars are not known yet."""
        grid = None if self.progression is None else self.grid(s)
        return None if self.progression is None or grid is None else (self.progression, grid)

    @property
    def pieces(self) -> int:
        """Token bars in one of the new bars."""
        return max(1, len(self._cycle))

    @property
    def completes(self) -> bool:
        """Whether the music begins inside a bar."""
        return self.context.join > self.context.origin

    @property
    def line(self) -> int | None:
        """The bar line before the first full bar, in grid ticks; None until it is known."""
        return None if self.first is None else self._line

    def end(self, s: GrammarState) -> int:
        """The bar line behind the last bar, or behind the present one if the last is not known."""
        index, start, end = self.bar_at(s)
        if self.last is None or self.first is None:
            return end
        if not self.request.metre_changes:
            bars = max(0, self.last - self.first + 1) // self.pieces
            return self._line + bars * self._length
        return end if self.last <= index else start + (self.last - index + 1) * (end - start)

    def known_end(self, s: GrammarState) -> int | None:
        """The final bar line, where it is certain."""
        if self.last is None or (self.request.metre_changes and self._bar < self.last):
            return None
        return self.end(s)

    def bars_done(self, ended: str) -> int:
        """Full bars from the join to the end; a metre that is written in several pieces counts once."""
        if self.first is None:
            return 0
        last = self.last if ended == "length" and self.last is not None else self._bar
        return max(0, last - self.first + 1) // self.pieces

    def begins_stretch(self, s: GrammarState, token: int) -> bool:
        """Whether a token leads to a stretch that is not open yet; see `Stretches`.

        None does where the last bar is found only once it is there: nothing can be counted from it before.
        """
        if self.last is None or self.first is None or self._found_late:
            return False
        following, start, end = self.bar_at(s)
        if s.has_bars:
            following += bool(self.classes.begins_bar[token])
        elif (moved := s.now + int(self.classes.moves[token]) * s.unit) >= end:
            following += 1 + (moved - end) // (end - start)
        return self.stretches.asks(self.first, self.last, following, self.pieces)

    def begins_pair(self, s: GrammarState, token: int, count: int) -> bool:
        """Whether a token begins a stretch of music that is made in one go, of which `count` tokens are there.

        As `begins_stretch`; where no end is known, every second bar does, whoever asks.
        """
        if not self.classes.begins_bar[token] or s.bar < 0:
            return False
        if not self._counts_on:
            return self.stretch_bars(s) > 0 if not count else self.begins_stretch(s, token)
        metres = self._metres_at(s.bar_end)
        if metres.pieces > 1:
            return (s.bar_end - metres.anchor) % (STRETCH_BARS * metres.length) == 0
        return (s.bar + 1) % STRETCH_BARS == 0

    def open_stretch(self) -> None:
        """Enter the stretch that was asked for last."""
        self.stretches = self.stretches.opened()

    @property
    def closes(self) -> bool:
        """Whether what comes next is the last stretch."""
        bars = self.request.bars
        return self.stretches.last_asked or (self.last is None and bars is not None and bars <= STRETCH_BARS)

    def stretch_bars(self, s: GrammarState) -> int:
        """Bars of the stretch that begins here; 0 where it completes a bar, or where that is not known."""
        if self.stretches.asked or self._counts_on:
            return STRETCH_BARS
        bars, join = self.request.bars, self.context.join
        begins = s.has_bars and s.bar >= 0 and s.bar_end == join and not self.completes
        return 0 if bars is None or not begins else bars % STRETCH_BARS or STRETCH_BARS

    @property
    def _counts_on(self) -> bool:
        """Whether stretches are counted from the beginning, since nobody knows the end."""
        return self.request.branches == 1 and self.request.bars is None and self.request.seconds is None

    def _bar_ticks(self, s: GrammarState) -> int:
        """Length of the bars behind the join."""
        tables = self.classes.tables
        metre = self.request.metre or self.context.metre
        if metre is None:
            return s.bar_length
        return 4 * tables.ticks_per_quarter * metre[0] // metre[1]

    def _awaits_metre(self, s: GrammarState) -> bool:
        """Whether a bar has begun and its TimeSig has not come: the bar's length is not known yet."""
        if s.has_bars:
            return s.bar >= 0 and s.kind == self.classes.bar_kind
        if s.bar < 0 or s.now != s.bar_start or not self.classes.has_metres:
            return False
        metres = self._metres_at(s.bar_start)
        return bool(metres.tokens) and metres.token_at(s.bar_start) != s.metre

    def _metres_at(self, tick: int) -> Metres:
        """The metre of the bar that begins at a tick."""
        if tick < self._change:
            return self._before
        if self._after is None:
            self._after = self.classes.metres(self._cycle, tick)
        return self._after

    def _find_first(self, index: int, start: int, end: int) -> None:
        """The first full bar: behind the token bar of the join, or, in a metre of several, behind all of them."""
        if start >= self._change:
            self.first, self._line = index, start
            return
        more = 0
        if self._before.pieces > 1 and self.completes:
            more, end = self._before.bars_until(end, self._change)
        self.first, self._line = index + 1 + more, end

    def _find_last(self, s: GrammarState, index: int, count: int) -> int | None:
        request, first, pieces = self.request, self.first, self.pieces
        assert first is not None

        def whole(bar: int) -> int:
            """The bar, moved to the end of its metre."""
            return first + ceil((bar - first + 1) / pieces) * pieces - 1 if bar >= first else bar

        if request.endless:
            return None
        if request.bars is not None:
            return first + request.bars * pieces - 1
        if request.tokens is not None:
            return whole(index) if count >= request.tokens else None
        assert request.seconds is not None
        times = self.times
        if (times.tempo is None and not s.notes) or index < first - 1:
            return None  # the tempo comes before the first note, if anything says it
        _, start, end = self.bar_at(s)
        join = self.context.join
        if not self._found_late:
            at, line = (index, start) if start >= join else (index + 1, end)
            missing = request.seconds - times.seconds(join, line)
            bars = ceil(missing * times.ticks_a_second / self._bar_ticks(s) - _EPSILON)
            return at + max(1, bars) * pieces - 1
        if times.seconds(join, end) >= request.seconds - _EPSILON:
            return whole(max(index, first))
        return None

    @property
    def _found_late(self) -> bool:
        """Whether the last bar is not known before it is there."""
        request = self.request
        if request.seconds is not None:
            return request.tempo_changes or request.metre_changes
        return request.tokens is not None
