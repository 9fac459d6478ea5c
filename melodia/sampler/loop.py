"""The loop over tokens: all lanes side by side, a token at a time or in bursts of compiled code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from melodia.engine.loop import Standing, Start
from melodia.engine.rules import rules_of
from melodia.errors import MelodiaError
from melodia.sampler.lane import Lane
from melodia.sampler.session import Session
from melodia.sampler.steppers import EngineStepper, Stepper

SLICE = 50_000
"""Microseconds of compiled code, at most, before Python sees to signals such as Ctrl-C."""


class Loop:
    """Lanes that advance together.

    Args:
        stepper: holds the lanes' states and advances them.
        lanes: at least one.
        bursts: let compiled code run from bar line to bar line where it can; the tokens are the same.

    Attributes:
        live: the lanes that are still there: that have not ended, nor come to a place where they are to branch.
    """

    def __init__(self, stepper: Stepper, lanes: list[Lane], *, bursts: bool = True) -> None:
        self.live = list(lanes)
        self._broken = False
        self._begun = False  # tokens were taken that the model may not have been fed
        self._way: _Way = (
            _Bursts(stepper, self.live) if bursts and isinstance(stepper, EngineStepper) else _Steps(stepper)
        )

    def note_by_note(self) -> None:
        """Let every step end behind the first note that it completes, and read its tokens at once."""
        self._way.note_by_note()

    def step(self) -> None:
        """Advance the live lanes, or let them leave.

        Where an exception from outside, such as KeyboardInterrupt, comes in compiled code, the next step goes on there.

        Raises:
            MelodiaError: one came in the midst of another step, between two that belong together.
        """
        with self._whole():
            gone = self._way.attend(self.live)
            if gone:
                self.live = [lane for lane in self.live if lane not in gone]
            self._begun = bool(self.live)
        self._finish()

    def snapshot(self, lane: Lane) -> Session:
        """The session of a lane at this place.

        Raises:
            MelodiaError: as in `step`.
        """
        self._finish()
        with self._whole():
            if lane in self.live:
                self._way.refresh(lane, self.live.index(lane))
            return lane.snapshot()

    def _finish(self) -> None:
        """Bring a step to its end; compiled code in it may be broken off."""
        if self._begun and not self._broken:
            self._way.run()
            with self._whole():
                self._way.read(self.live)
                self._begun = False

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What is inside is done whole, or never goes on."""
        if self._broken:
            raise MelodiaError(
                "an exception came in the midst of a step, so that what follows would be other music; go on from a "
                "session that was kept before, or begin again with the same random seed"
            )
        self._broken = True
        try:
            yield
        except MelodiaError:
            # Melodia's own come before anything of a lane is changed; others may have gone on.
            self._broken = len(self.live) > 1
            raise
        self._broken = False


class _Way(Protocol):
    """How lanes are advanced."""

    def note_by_note(self) -> None: ...

    def attend(self, live: list[Lane]) -> list[Lane]:
        """See to the lanes that need it: those that leave; their sessions are up to date."""
        ...

    def run(self) -> None:
        """Advance those that are left; may be broken off."""
        ...

    def read(self, live: list[Lane]) -> None:
        """Where it goes note by note, read what came."""
        ...

    def refresh(self, lane: Lane, index: int) -> None:
        """Bring all of a live lane's session up to its last token."""
        ...


class _Steps:
    """A token of every lane at a step, through Python."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper

    def note_by_note(self) -> None:
        """Nothing: a step has one token."""

    def attend(self, live: list[Lane]) -> list[Lane]:
        """See `_Way.attend`; the whole of a step."""
        choices = [lane.choose(compiled=self._stepper.compiled) for lane in live]
        going = [i for i, choice in enumerate(choices) if choice is not None]
        gone = [lane for lane, choice in zip(live, choices, strict=True) if choice is None]
        for i, lane in enumerate(live):
            if choices[i] is None:
                self.refresh(lane, i)
        if not going:
            return gone
        if gone:
            self._stepper.keep(going)
        sides, tokens = [], []
        for i in going:
            choice = choices[i]
            assert choice is not None
            sides.append(live[i].take(choice))
            tokens.append(choice.token)
        for i, row in zip(going, self._stepper.feed(tokens, sides), strict=True):
            live[i].session.logits = row
        return gone

    def run(self) -> None:
        """Nothing: `attend` has done it."""

    def read(self, live: list[Lane]) -> None:
        """Nothing: `attend` has done it."""

    def refresh(self, lane: Lane, index: int) -> None:
        """See `_Way.refresh`."""
        lane.session.model_state = self._stepper.state(index)


class _Bursts:
    """Compiled code from bar line to bar line, or as far as a lane's plan allows; there the plan is asked.

    While a lane runs, the grammar of its session lies in the engine's memory.
    """

    def __init__(self, stepper: EngineStepper, live: list[Lane]) -> None:
        self._stepper = stepper
        self._pause = False
        starts = [
            Start(
                logits=lane.session.logits,
                grammar=lane.session.grammar,
                side=lane.session.side,
                sampling=lane.sampling,
                random_seed=lane.random_seed,
                session=lane.request.session,
                fed=lane.session.fed,
                recent=lane.recent,
                bias=lane.bias,
            )
            for lane in live
        ]
        rules = [rules_of(lane.grammar, lane.session.side.specs) for lane in live]
        self._loop = stepper.loop(rules, starts)
        for lane, follower in zip(live, self._loop.followers, strict=True):
            lane.session.grammar = follower.state

    def note_by_note(self) -> None:
        """Let a step end behind the first note that it completes."""
        self._pause = True

    def attend(self, live: list[Lane]) -> list[Lane]:
        """See `_Way.attend`."""
        leaving = [i for i in self._loop.waiting() if not self._attend(live[i], i)]
        gone = [live[i] for i in leaving]
        if leaving:
            self._keep(live, leaving)
        return gone

    def run(self) -> None:
        """See `_Way.run`."""
        self._loop.run(microseconds=SLICE)

    def read(self, live: list[Lane]) -> None:
        """See `_Way.read`."""
        if self._pause:
            for i, lane in enumerate(live):
                self._catch_up(lane, i)

    def refresh(self, lane: Lane, index: int) -> None:
        """See `_Way.refresh`."""
        self._catch_up(lane, index)
        session = lane.session
        session.model_state = self._stepper.state(index)
        session.side = self._loop.followers[index].side
        session.logits = self._loop.logits(index)

    def _attend(self, lane: Lane, i: int) -> bool:
        """See to a lane that waits: False if it leaves."""
        loop, plan, state = self._loop, lane.plan, lane.session.grammar
        self._catch_up(lane, i)
        if loop.facts["standing"][i] == Standing.ASKS:
            legal = loop.followers[i].mask()
            loop.choose(i, plan.restrict(state, legal))
            instead = plan.overrule(state, legal, int(loop.facts["token"][i]))
            if instead is not None:
                loop.choose(i, instead)
        token = int(loop.facts["token"][i])
        if token >= 0 and lane.leaves(token):
            return False
        loop.take(i)
        self._read(lane, i)
        plan.after(state, token, lane.count, lane.tempi)
        loop.set_bias(i, lane.bias)
        loop.set_terms(i, plan.steady(state, lane.count), pause=self._pause, bars_total=plan.bars_total)
        return True

    def _catch_up(self, lane: Lane, i: int) -> None:
        """Read the tokens that came under the plan's terms."""
        if made := int(self._loop.facts["made"][i]):
            self._read(lane, i)
            lane.plan.passed(made)

    def _read(self, lane: Lane, i: int) -> None:
        lane.read(*(numbers.tolist() for numbers in self._loop.drain(i)))

    def _keep(self, live: list[Lane], leaving: list[int]) -> None:
        """Take lanes out: their sessions are Python's again."""
        for i in leaving:
            self.refresh(live[i], i)
            live[i].session.grammar = live[i].session.grammar.copy()
        kept = [i for i in range(len(live)) if i not in leaving]
        if kept:
            self._stepper.keep(kept)
            self._loop.keep(self._stepper.lanes, kept)
