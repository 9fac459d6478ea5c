"""A lane: one continuation while it is being made.

The loop over tokens stands in `melodia.sampler.loop`; a lane holds what belongs to one stream of it: grammar, plan,
notes. A compiled engine replaces the loop, not the plan.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from melodia import engine
from melodia.decode import Bias, Choice, Noise, SamplingConfig, choose
from melodia.grammar import Grammar, NoteEvent
from melodia.grammar.state import NONE
from melodia.grammar.tables import MICRO_RESOLUTION
from melodia.harmony import Chord
from melodia.midi.report import Finding
from melodia.notes import voice
from melodia.sampler.bias import seed_bias
from melodia.sampler.chord_bias import ChordBias
from melodia.sampler.classes import TokenClasses
from melodia.sampler.continuation import Event, TimeMap, event_of
from melodia.sampler.dynamics import Level
from melodia.sampler.kept import Kept
from melodia.sampler.part_bias import PartBias
from melodia.sampler.plan import BAR_TOKENS, Plan
from melodia.sampler.players import RECENT_QUARTERS, rests_of
from melodia.sampler.recall import LAGS, NOTHING_HEARD, Memory, Recall, Recollection
from melodia.sampler.request import Request
from melodia.sampler.session import Session, Tail, half_described, tail_at
from melodia.sampler.strangers import Strangers

RECENT = 1024
"""Most tokens back that the repetition penalty can count."""


class Lane:
    """One stream of tokens. The model's state is kept by the loop.

    Attributes:
        session: where the music stands; its model state is that of the beginning until `finish`.
        plan: what is wanted.
        programs: those that may play, -1 for the drums; None for all.
        count: new tokens.
        tokens, nll, entropy: of the new tokens; not kept of endless music.
        tempi: those that the tokens of the last `read` set: (grid tick, quarter notes a minute).
        notes: the new notes, in grid ticks from the first token, behind those that waited in the session; not cut at
            the end. A stream of endless music takes away what was heard.
        begun: the tick at which new music begins: the join, or where the stream stood that the session is of.
        ended: "" while it runs, then "length" or "model".
        random_seed: of the tokens to come; the request's, but in a branch.
        stretch: where the last stretch, or the lane, began, and where it stands: bar lines in grid ticks; see
            `melodia.sampler.branching`.
        before: how many notes there were where that stretch began.
        chosen, chosen_from: how many stretches so far were chosen from several branches, and the last of them from how
            many.
        widened: how many of them were chosen from more branches than at first.
        recall: what comes again; see `melodia.sampler.recall`.
    """

    def __init__(
        self,
        session: Session,
        classes: TokenClasses,
        grammar: Grammar,
        request: Request,
        cycle: tuple[str, ...] | None = None,
        before: Recollection = NOTHING_HEARD,
        kept: Kept | None = None,
    ) -> None:
        self.session = session.fork()
        self.request = request
        self.grammar = grammar
        self.classes = classes
        self.programs = request.programs or (None if request.any_program else session.context.programs)
        state = self.session.grammar
        limits = grammar.constraints
        state.release(self.programs, limits.pitch_range, limits.pitch_classes, limits.drum_range)
        if self.programs and state.program not in self.programs:
            state.program = NONE  # one that may not play has to give way before a note begins
        quarter = classes.tables.ticks_per_quarter
        rests = rests_of(session.seed, self.programs, quarter, alone=kept is not None)
        strangers = self._strangers(rests, kept)
        joining = () if strangers is None else strangers.programs
        self._bias = seed_bias(classes, session.seed, request, None if kept is None else kept.score, joining)
        self._chord_bias = None if request.chords is None else self.chord_bias()
        level = Level.of(classes, session.seed if session.seed is not None or kept is None else kept.score)
        self._velocity = {} if level is None else {"velocity": level.velocity}
        self._part_bias = PartBias.of(classes, session.seed, kept, strangers)
        self.plan = Plan(classes, session.context, request, state, cycle, rests, kept, strangers, level)
        self.count = 0
        self.tokens: list[int] = []
        self.nll: list[float] = []
        self.entropy: list[float] = []
        self.notes: list[NoteEvent] = list(session.waiting)
        self.tempi: list[tuple[int, float]] = []
        self.begun = max(session.context.join, session.grammar.now)
        self.ended = ""
        self.end = 0
        self._read_from(session.tail)
        self._recent = list(session.recent)
        self.random_seed = request.random_seed
        self.stretch = (session.context.join, session.context.join)
        self.before = self.chosen = self.chosen_from = self.widened = 0
        self._seen = before.seen
        recall = request.recall if strangers is None else 0.0  # bars that come again would be without them
        self.recall = Recall.of(recall, before, request.random_seed, request.session)
        self.memory = Memory(classes, self.plan.pieces, before)
        self.plan.go_on(before.script)
        self._noise = Noise(self.random_seed, request.session, classes.vocabulary.size)
        self.session.side.bars_total = self.plan.bars_total

    def choose(self, *, compiled: bool = False) -> Choice | None:
        """Draw the next token from the session's logits, in compiled code or not; None if the lane leaves."""
        grammar = self.session.grammar
        legal = self.grammar.mask(grammar)
        choice = self._choose(self.plan.restrict(grammar, legal), compiled)
        instead = self.plan.overrule(grammar, legal, choice.token)
        if instead is not None:
            choice = self._choose(instead, compiled)
        return None if self.leaves(choice.token) else choice

    @property
    def bias(self) -> Bias | None:
        """What is pooled with the logits at the present place."""
        state, chords = self.session.grammar, self._chord_bias is not None
        bias = self._bias if self._chord_bias is None else self._chord_bias.under(self.plan.chord(state))
        return bias if self._part_bias is None else self._part_bias.under(bias, state, chords=chords)

    def chord_bias(self) -> ChordBias:
        """A bias under chords over the lane's own; it looks through the whole seed, so that branches share one."""
        return ChordBias(self.classes, self._bias, self.session.seed)

    def close_on(self, chord: Chord, bias: ChordBias) -> None:
        """Lean the last bar towards a chord, where no chords were asked for; `bias` as of `chord_bias`."""
        self._chord_bias, self.plan.closing = bias, chord

    def _strangers(self, rests: Iterable[int], kept: Kept | None) -> Strangers | None:
        """Who joins in: those that were asked for, and do not play at the end of the seed or of what came behind it."""
        state, new = self.session.grammar, self.request.programs or ()
        known = self.session.context.strangers
        if known is not None and known[0] == new:
            unheard: Sequence[int] = known[1]
        else:
            since = state.now - RECENT_QUARTERS * self.classes.tables.ticks_per_quarter
            heard = {program for program, row in state.rows.items() if row.any() and row.max() > since}
            unheard = [program for program in new if program not in heard.union(rests)]
        notes = None if kept is None else kept.notes
        context = self.session.context
        slip = context.join / self.classes.tables.ticks_per_quarter - context.seed_join
        return Strangers.of(self.classes, self.request, self.session.seed, unheard, notes, slip)

    def _choose(self, wanted: NDArray[np.bool_], compiled: bool) -> Choice:
        """Draw among the tokens of a mask."""
        session, request = self.session, self.request
        bias = self.bias
        opinion = None if bias is None else bias.of(session.grammar.program)
        recent: list[int] = []
        if request.sampling.repetition_penalty != 1.0:
            window = self.recent[-self.sampling.repetition_window :]
            recent = [token for token in window if self.classes.pitch[token]]
        if compiled:
            return engine.choose(
                session.logits,
                wanted,
                recent,
                request.sampling,
                random_seed=self.random_seed,
                session=request.session,
                position=session.fed,
                opinion=opinion,
            )
        noise = None if request.sampling.greedy else self._noise.at(session.fed)
        return choose(session.logits, wanted, recent, request.sampling, noise, opinion)

    def leaves(self, token: int) -> bool:
        """Whether the lane leaves the loop at a token that was drawn: the piece ends, or is to branch."""
        state = self.session.grammar
        if self.plan.ends(state, token):
            self.stop(token)
            self.stretch = (self.stretch[0], self.end)
            return True
        if self.request.branches == 1:
            if self.request.recall and self.plan.begins_pair(state, token, self.count):
                self.plan.open_stretch()
                self.plan.replay(state, self.recalls())
        elif self.plan.begins_stretch(state, token):
            self.stretch = (self.stretch[0], self.plan.bar_at(state)[2])
            return True
        return False

    def recalls(self) -> tuple[int, ...]:
        """Draw whether the stretch that begins here comes from memory: its tokens; none where it is new."""
        state = self.session.grammar
        bars = 0 if self.plan.closes else self.plan.stretch_bars(state)
        if not bars:
            return ()
        lags = [lag for lag in LAGS if self.plan.knows_chords_of(state, lag)]
        self.recall, tokens = self.recall.next(self.memory, bars, state.program, lags)
        return tokens

    def branch(self, random_seed: int, replay: Sequence[int] = ()) -> Lane:
        """A lane that goes on from this place, outside a loop, with random numbers of its own, or with these tokens."""
        self._rest()
        twin = copy.copy(self)
        twin.session, twin.plan, twin.memory = (
            self.session.fork(),
            self.plan.fork(random_seed),
            self.memory.fork(),
        )
        twin.plan.replay(self.session.grammar, replay)
        twin.stretch, twin.before = (self.stretch[1], self.stretch[1]), len(self.notes)
        twin.random_seed = random_seed
        twin._noise = Noise(random_seed, self.request.session, self.classes.vocabulary.size)
        twin._read_from(self._tail)
        for name in ("tokens", "nll", "entropy", "notes", "_recent"):
            setattr(twin, name, list(getattr(self, name)))
        return twin

    def take(self, choice: Choice) -> NDArray[np.int32]:
        """Advance by a token: the side inputs [S] that go into the model with it."""
        session, state = self.session, self.session.grammar
        token = choice.token
        self.grammar.advance(state, token, check=False)
        self.read([token], [choice.nll], [choice.entropy])
        self.plan.after(state, token, self.count, self.tempi)
        session.side.bars_total = self.plan.bars_total
        return session.side.advance(token)

    def read(self, tokens: Sequence[int], nll: Sequence[float], entropy: Sequence[float]) -> None:
        """Keep tokens that the grammar has taken, with their figures [nats], and the notes they complete."""
        self._reader.tempi.clear()
        self.notes += [
            note._replace(
                onset=note.onset + self._tail_offset, duration=max(1, note.duration), **self._velocity
            )
            for token in tokens
            for note in self._reader.feed(token)
            if self.plan.kept is None or note.program not in self.plan.kept.programs
        ]
        self.tempi = [(tick + self._tail_offset, tempo) for tick, tempo in self._reader.tempi]
        self.count += len(tokens)
        self.session.fed += len(tokens)
        self._recent += tokens
        if self.request.recall:
            self.memory.read(tokens)
        if len(self._recent) > 2 * RECENT:
            del self._recent[:-RECENT]
        self._tail_ids += tokens
        if len(self._tail_ids) > self._tail_room:
            self._rest()
        if not self.request.endless:  # of music without an end nobody asks for the whole
            self.tokens += tokens
            self.nll += nll
            self.entropy += entropy

    @property
    def sampling(self) -> SamplingConfig:
        """How tokens are chosen; the repetition penalty counts no further back than `recent` goes."""
        sampling = self.request.sampling
        return replace(sampling, repetition_window=min(sampling.repetition_window, RECENT))

    @property
    def recent(self) -> list[int]:
        """The last tokens, the newest last, as far back as the repetition penalty can count."""
        return self._recent[-RECENT:]

    def event(self, note: NoteEvent) -> Event:
        """A note as the caller hears it, cut at the final bar line where that is known."""
        origin, times = self.session.context.origin, self.plan.times
        note = self._cut(note, self.plan.known_end(self.session.grammar))
        return event_of(note, self.classes.tables.ticks_per_quarter, lambda tick: times.at(origin + tick))

    def forget(self) -> None:
        """Let go of what endless music, all of it heard so far, no longer needs of its past."""
        if self.request.endless:
            state = self.session.grammar
            oldest = state.ends[0] if state.on_off and state.ends else state.now
            self.plan.times.forget(oldest - MICRO_RESOLUTION)

    def snapshot(self) -> Session:
        """The session at this place, all but the model's state; lists become tuples."""
        self._rest()
        return replace(
            self.session.fork(),
            recent=tuple(self.recent),
            waiting=(),
            tail=self._tail,
            context=self.plan.context_now(self.session.grammar),
            ids=None,
            recollection=self._recollection if self.request.recall else None,
        )

    def result(self) -> tuple[tuple[NoteEvent, ...], TimeMap]:
        """The new notes in ticks from the origin, by onset, cut at the end; and the map of their time."""
        notes = [self._cut(note, self.end) for note in self.notes if note.onset < self.end]
        notes.sort(key=lambda note: (note.onset, voice(note.program), note.pitch))
        return tuple(notes), self._map(self.end)

    @property
    def metre(self) -> tuple[int, int]:
        """That of the first full bar; of the one at the join where none was reached."""
        first, *later = self._metres
        line = first[0] if self.plan.line is None else self.plan.line
        return [first, *(metre for metre in later if metre[0] <= line)][-1][1:]

    @property
    def _metres(self) -> list[tuple[int, int, int]]:
        return self.plan.times.metres or [(self.session.context.origin, 4, 4)]

    def findings(self) -> list[Finding]:
        """What is worth knowing of the new music."""
        found = []
        if self.plan.crowded:
            found.append(Finding("note", f"bar cut short at {BAR_TOKENS} tokens", self.plan.crowded))
        if self.request.recall and not self.memory.works:
            found.append(Finding("note", "no bar can repeat: this model has no bar tokens"))
        elif self.request.recall and self.plan.strangers is not None:
            found.append(Finding("note", "no bar repeats: programs join in that did not play before"))
        return found

    def final_session(self) -> Session:
        """The session behind the end: what comes next begins at the final bar line."""
        session = self.snapshot()
        times = self._map(self.end)
        context = session.context
        session.context = replace(
            context,
            join=self.end,
            origin=self.end,
            anchor=self.end,
            seed_join=context.seed_join + (times.end - times.join) / times.ticks_per_quarter,
            tempi=(),
            chords=None,
            strangers=None,
            programs=context.programs or tuple(sorted({note.program for note in self.notes})),
        )
        session.side.bars_total = None
        if session.recollection is not None:
            session.recollection = replace(session.recollection, script=())
        if self.classes.tables.on_off:  # `stop` has ended what still sounds to the grammar
            session.tail = tail_at(self.classes.vocabulary, session.grammar)
        return session

    def stop(self, token: int) -> None:
        """End the piece at the bar line behind the place that has been reached."""
        state, plan = self.session.grammar, self.plan
        self.end = plan.end(state)
        reached = plan.last is not None and plan.bar_at(state)[0] >= plan.last
        if token == self.classes.vocabulary.eos and not reached:
            self.ended = "model"
            _, start, end = plan.bar_at(state)
            self.end = end if state.now > start or state.has_bars else start
        else:
            self.ended = "length"
        if self.classes.tables.on_off:
            if token != self.classes.vocabulary.eos:
                self._reader.feed(token)
            for note in self._reader.finish():
                self.notes.append(note._replace(onset=note.onset + self._tail_offset, **self._velocity))

    def _rest(self) -> None:
        """Forget the tail's tokens where no note is open, else those from before the oldest open note."""
        state, vocabulary = self.session.grammar, self.classes.vocabulary
        if not self.count or not self._tail_ids:
            return
        if state.on_off and state.ends:
            self._read_from(self._tail.since(vocabulary, state.ends[0]))
        elif not half_described(vocabulary, self._tail_ids[-1]):
            self._read_from(tail_at(vocabulary, state))

    @property
    def _recollection(self) -> Recollection:
        memory, recall = self.memory, self.recall
        return Recollection(
            memory.bars, memory.program, self._seen, recall.stretch, recall.lag, self.plan.script
        )

    @property
    def _tail(self) -> Tail:
        return Tail(self._tail_offset, self._tail_before, tuple(self._tail_ids))

    def _read_from(self, tail: Tail) -> None:
        """Go on from a tail with a new reader, which does not remember what came before."""
        self._tail_offset, self._tail_before, self._tail_ids = tail.offset, tail.before, list(tail.ids)
        self._tail_room = RECENT + len(tail.ids)
        self._reader = tail.reader(self.classes.vocabulary)

    def _cut(self, note: NoteEvent, end: int | None) -> NoteEvent:
        origin = self.session.context.origin
        duration = note.duration if end is None else min(note.duration, end - note.onset)
        return note._replace(onset=note.onset - origin, duration=duration)

    def _map(self, end: int) -> TimeMap:
        context, plan = self.session.context, self.plan
        return TimeMap(
            ticks_per_quarter=self.classes.tables.ticks_per_quarter,
            join=context.join - context.origin,
            end=end - context.origin,
            tempi=tuple((tick - context.origin, tempo) for tick, tempo in plan.times.tempi),
            metres=tuple((max(0, tick - context.origin), top, bottom) for tick, top, bottom in self._metres),
            seed_join=context.seed_join,
        )
