"""The loop over tokens in compiled code: one call makes as many tokens as are asked for, with the GIL released.

Mask, side inputs, filters, choice and model run in it (csrc/engine/loop.h). A lane goes on under terms until it needs
its caller: at a token that stops it, where time would pass a tick, after so many tokens, behind the end of a note.
Letters: B lanes, V vocabulary, W words of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from melodia.decode import Bias, SamplingConfig
from melodia.decode.filters import not_numbers, nothing_legal
from melodia.engine.choice import sampling_of
from melodia.engine.engine import Lanes
from melodia.engine.rules import Bits, Follower, Rules, pack
from melodia.grammar import GrammarState
from melodia.side_inputs import SideInputTracker

FAR = 1 << 60
"""A grid tick that no music reaches."""


class Standing:
    """Where a lane stands; from STOPPED on it waits for its caller. Plain numbers, as in `melodia.grammar.Op`."""

    READY = 0
    CHOSEN = 1
    TAKEN = 2
    STOPPED = 3
    ASKS = 4
    NOTHING = 5
    NAN = 6


class Stopped(IntEnum):
    """Why a call of `TokenLoop.run` came back."""

    LANE = 1  # a lane needs its caller
    PAUSE = 2  # a note ended
    FLAG = 3
    TIME = 4
    STEPS = 5


@dataclass(frozen=True)
class Terms:
    """How a lane goes on until its caller is asked again.

    Attributes:
        tokens: how many at most; 0 asks at every token.
        exclude: tokens that may not come unless nothing else may, [W].
        late: up to three classes of tokens, [W], and a tick each: as `exclude` where they move time there or beyond.
        stop: tokens that stop the lane, [W]; they are chosen, and not fed.
        stop_tick: a token that moves time to this grid tick or beyond stops the lane, too.
    """

    tokens: int
    exclude: Bits | None = None
    late: tuple[tuple[Bits, int], ...] = ()
    stop: Bits | None = None
    stop_tick: int = FAR


ASK = Terms(0)
"""Terms under which a lane asks at every token."""


@dataclass(frozen=True)
class Start:
    """What a lane begins with.

    Attributes:
        logits: float32 [V], of the next token.
        grammar, side: the registers.
        sampling, random_seed, session: of its choices.
        fed: the position of the next token in its stream of random numbers.
        recent: the last tokens, the newest last, for the repetition penalty.
        bias: what is pooled with the logits of every choice; None: nothing.
    """

    logits: NDArray[np.float32]
    grammar: GrammarState
    side: SideInputTracker
    sampling: SamplingConfig
    random_seed: int
    session: int
    fed: int
    recent: Sequence[int]
    bias: Bias | None = None


class TokenLoop:
    """Lanes of an engine, each with a grammar, side inputs and random numbers of its own.

    One thread at a time may use a loop (RuntimeError otherwise); several may each use their own, of one engine.

    Args:
        lanes: sessions, B of them; the loop advances them.
        rules: a grammar and side inputs for each.
        starts: what each begins with.

    Attributes:
        lanes: the sessions.
        followers: grammar and side inputs of each lane. They must not be used while `run` runs.
        facts: [B] records of `standing`, `token` (the last that was chosen) and its `nll` and `entropy` in nats,
            `made` (tokens since the last `drain`), `fed`; the engine's memory itself.

    Raises:
        ConfigError: rules and network do not fit each other.
        GrammarError: a start belongs to another vocabulary.
    """

    def __init__(self, lanes: Lanes, rules: Sequence[Rules], starts: Sequence[Start]) -> None:
        self.lanes = lanes
        self._native = lanes.native.loop([of.native for of in rules])
        self.followers = [Follower(of, self._native.follower(lane)) for lane, of in enumerate(rules)]
        self._all_facts: NDArray[np.void] = self._native.facts
        self.facts = self._all_facts
        self._biases: list[Bias | None] = [None] * len(rules)
        for lane, start in enumerate(starts):
            self._begin(lane, start)

    def _begin(self, lane: int, start: Start) -> None:
        self.followers[lane].set_state(start.grammar)
        self.followers[lane].side = start.side
        logits = self._native.logits(lane)
        if start.logits.shape != logits.shape:
            raise ValueError(f"logits must be [{len(logits)}] (received {start.logits.shape})")
        logits[:] = start.logits
        config = start.sampling
        self._native.begin(
            lane,
            sampling_of(config),
            config.repetition_window,
            start.random_seed,
            start.session,
            start.fed,
            start.recent,
        )
        self.set_bias(lane, start.bias)

    def set_bias(self, lane: int, bias: Bias | None) -> None:
        """What is pooled with the logits of a lane's choices from now on; None: what was before, if anything.

        Raises:
            ValueError: it belongs to another vocabulary.
        """
        if bias is None or bias is self._biases[lane]:
            return
        V = self._native.logits(lane).shape
        if bias.rows.shape[1:] != V:
            raise ValueError(f"a bias must be [R, {V[0]}] (received {list(bias.rows.shape)})")
        self._native.set_bias(lane, bias.rows, bias.row_of, pack(bias.members), bias.exponent)
        self._biases[lane] = bias

    def set_terms(
        self, lane: int, terms: Terms | None, *, pause: bool = False, bars_total: int | None = None
    ) -> None:
        """How a lane goes on.

        Args:
            lane: which.
            terms: None: ask at every token.
            pause: let `run` come back behind a token that ends a note.
            bars_total: of the side inputs from now on.
        """
        terms = terms or ASK
        self._native.set_terms(
            lane, terms.tokens, pause, bars_total or 0, terms.exclude, terms.late, terms.stop, terms.stop_tick
        )

    def run(self, *, steps: int = 0, microseconds: int = 0, flag: NDArray[np.int32] | None = None) -> Stopped:
        """Go on until a lane needs its caller.

        Args:
            steps: so many tokens of each lane at most; 0: any number.
            microseconds: so long at most, and a token more; 0: any time.
            flag: int32 [1]; ends the call when another thread makes it something else than 0.
        """
        return Stopped(self._native.run(steps, microseconds, flag))

    def waiting(self) -> list[int]:
        """The lanes that need their caller."""
        found: list[int] = np.flatnonzero(self.facts["standing"] >= Standing.STOPPED).tolist()
        return found

    def choose(self, lane: int, legal: NDArray[np.bool_]) -> None:
        """Draw a token among `legal`, bool [V], for a lane that asks or has stopped; it is in `facts` then."""
        self._native.choose(lane, np.asarray(legal, np.bool_, order="C"))

    def take(self, lane: int) -> None:
        """Take the token at which a lane stopped; it is fed with the next `run`.

        Raises:
            GrammarError: no token is allowed.
            MelodiaError: the logits are not numbers.
        """
        standing = self.facts["standing"][lane]
        if standing == Standing.NOTHING:
            raise nothing_legal()
        if standing == Standing.NAN:
            raise not_numbers()
        self._native.take(lane)

    def drain(self, lane: int) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
        """The tokens since the last time, N of them: int32 [N], and in nats their NLL and entropy, float64 [N]."""
        made: tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]] = self._native.drain(lane)
        return made

    def logits(self, lane: int) -> NDArray[np.float32]:
        """The logits of a lane's next token, [V]; a copy."""
        logits: NDArray[np.float32] = self._native.logits(lane).copy()
        return logits

    def keep(self, lanes: Lanes, kept: Sequence[int]) -> None:
        """Go on with some lanes only.

        Args:
            lanes: sessions with their states, in their order.
            kept: which lanes, ascending.
        """
        self._native.keep(lanes.native, kept)
        self.lanes = lanes
        self.followers = [self.followers[i] for i in kept]
        self._biases = [self._biases[i] for i in kept]
        self.facts = self._all_facts[: len(kept)]
