"""The loop over tokens in compiled code: one call makes as many tokens as are asked for, with the GIL released.

Mask, side inputs, filters, choice and model run in it (csrc/engine/loop.h). A lane goes on under terms until it needs
its caller: at a token that stops it, where time would pass a tick, after so many tokens, behind the end of a note.
Letters: B lanes, V vocabulary, W words of a mask.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from melodia.decode import SamplingConfig
from melodia.engine import native, native_loop
from melodia.engine.engine import Engine, Lanes
from melodia.engine.rules import Bits, Follower, Rules, pack
from melodia.errors import ConfigError, GrammarError, MelodiaError
from melodia.grammar import GrammarState
from melodia.side_inputs import SideInputTracker

FAR = 1 << 60
"""A grid tick that no music reaches."""


class Standing(IntEnum):
    """Where a lane stands; from STOPPED on it waits for its caller."""

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


@dataclass(frozen=True)
class Start:
    """What a lane begins with.

    Attributes:
        logits: float32 [V], of the next token.
        grammar, side: the registers.
        sampling, random_seed, session: of its choices.
        fed: the position of the next token in its stream of random numbers.
        recent: the last tokens, the newest last, for the repetition penalty.
        bias: float32 [V], added to the logits of every choice; None: nothing.
    """

    logits: NDArray[np.float32]
    grammar: GrammarState
    side: SideInputTracker
    sampling: SamplingConfig
    random_seed: int
    session: int
    fed: int
    recent: Sequence[int]
    bias: NDArray[np.float32] | None = None


_FACTS = np.dtype(
    [
        (name, np.float64 if name in ("nll", "entropy") else np.int64)
        for name in ("standing", "token", "nll", "entropy", "made", "fed")
    ]
)
"""`native_loop.LaneFacts`."""


class TokenLoop:
    """Lanes of an engine, each with a grammar, side inputs and random numbers of its own.

    One thread at a time may use a loop; several may each use their own, of one engine.

    Args:
        packed: the network.
        lanes: its sessions, B of them; the loop advances them.
        rules: a grammar and side inputs for each.
        starts: what each begins with.

    Attributes:
        followers: grammar and side inputs of each lane; those of lanes that `keep` left must not be used any more.
        facts: [B] records of `standing`, `token` (the last that was chosen) and its `nll` and `entropy` in nats,
            `made` (tokens since the last `drain`), `fed`.

    Raises:
        ConfigError: rules and network do not fit each other.
        GrammarError: a start belongs to another vocabulary.
    """

    def __init__(self, packed: Engine, lanes: Lanes, rules: Sequence[Rules], starts: Sequence[Start]) -> None:
        self._library = native_loop.library()
        self._lanes = lanes
        self._rules = list(rules)
        self._V = packed.facts()["V"]
        pointers = (ctypes.c_void_p * len(rules))(*(of.pointer for of in rules))
        self._pointer = self._library.melodia_loop_new(packed.pointer, lanes._pointer, pointers, len(rules))
        if not self._pointer:
            raise ConfigError(f"the engine refuses this grammar: {native.last_error()}")
        self._free = weakref.finalize(
            self, _free_loop, self._library, self._pointer, (packed, tuple(rules), [lanes])
        )
        self.followers = [
            Follower(of, self._library.melodia_loop_follower(self._pointer, lane), self)
            for lane, of in enumerate(rules)
        ]
        self._all_facts = self._facts_of(len(rules))
        self.facts = self._all_facts
        for lane, start in enumerate(starts):
            self._begin(lane, start)

    def _facts_of(self, count: int) -> NDArray[np.void]:
        address = ctypes.cast(self._library.melodia_loop_facts(self._pointer), ctypes.c_void_p).value
        assert address is not None
        memory = (ctypes.c_char * (count * _FACTS.itemsize)).from_address(address)
        return np.frombuffer(memoryview(memory), _FACTS)

    def _begin(self, lane: int, start: Start) -> None:
        self.followers[lane].set_state(start.grammar)
        self.followers[lane].side = start.side
        if start.logits.shape != (self._V,):
            raise ValueError(f"logits must be [{self._V}] (received {start.logits.shape})")
        self._logits(lane)[:] = start.logits
        config = start.sampling
        numbers = native_loop.BeginNumbers(
            temperature=config.temperature,
            top_p=1.0 if config.top_p is None else config.top_p,
            min_p=0.0 if config.min_p is None else config.min_p,
            repetition_penalty=config.repetition_penalty,
            top_k=0 if config.top_k is None else config.top_k,
            greedy=config.greedy,
            window=config.repetition_window,
            random_seed=start.random_seed,
            session=start.session,
            fed=start.fed,
        )
        recent = np.array(start.recent, np.int64)
        self._check(
            self._library.melodia_loop_begin(
                self._pointer, lane, ctypes.byref(numbers), recent.ctypes.data, len(recent)
            )
        )
        if start.bias is not None:
            bias = np.ascontiguousarray(start.bias, np.float32)
            if bias.shape != (self._V,):
                raise ValueError(f"a bias must be [{self._V}] (received {bias.shape})")
            self._check(self._library.melodia_loop_bias(self._pointer, lane, bias.ctypes.data))

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
        terms = terms or Terms(0)
        sent = native_loop.LaneTerms(
            tokens=terms.tokens, pause=pause, bars_total=bars_total or 0, stop_tick=terms.stop_tick
        )
        for i, (late, tick) in enumerate(terms.late):
            sent.late[i], sent.ticks[i] = late.ctypes.data, tick
        sent.exclude = None if terms.exclude is None else terms.exclude.ctypes.data
        sent.stop = None if terms.stop is None else terms.stop.ctypes.data
        self._check(self._library.melodia_loop_terms(self._pointer, lane, ctypes.byref(sent)))

    def run(self, *, steps: int = 0, microseconds: int = 0, flag: ctypes.c_int32 | None = None) -> Stopped:
        """Go on until a lane needs its caller.

        Args:
            steps: so many tokens of each lane at most; 0: any number.
            microseconds: so long at most, and a token more; 0: any time.
            flag: ends the call when another thread makes it something else than 0.
        """
        why = self._library.melodia_loop_run(
            self._pointer, steps, microseconds, None if flag is None else ctypes.byref(flag)
        )
        self._check(why)
        return Stopped(why)

    def waiting(self) -> list[int]:
        """The lanes that need their caller."""
        found: list[int] = np.flatnonzero(self.facts["standing"] >= Standing.STOPPED).tolist()
        return found

    def choose(self, lane: int, legal: NDArray[np.bool_]) -> None:
        """Draw a token among `legal`, bool [V], for a lane that asks; it is in `facts` then."""
        self._check(self._library.melodia_loop_choose(self._pointer, lane, pack(legal).ctypes.data))

    def take(self, lane: int) -> None:
        """Take the token at which a lane stopped; it is fed with the next `run`.

        Raises:
            GrammarError: no token is allowed.
            MelodiaError: the logits are not numbers.
        """
        standing = self.facts["standing"][lane]
        if standing == Standing.NOTHING:
            raise GrammarError("no token is allowed here; loosen the constraints")
        if standing == Standing.NAN:
            raise MelodiaError(
                "the model's logits are not numbers (nan); its weights are damaged, train or load it again"
            )
        self._check(self._library.melodia_loop_take(self._pointer, lane))

    def drain(self, lane: int) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
        """The tokens since the last time, N of them: int32 [N], and in nats their NLL and entropy, float64 [N]."""
        count = int(self.facts["made"][lane])
        tokens = np.empty(count, np.int32)
        nll, entropy = np.empty((2, count))
        self._check(
            self._library.melodia_loop_drain(
                self._pointer, lane, tokens.ctypes.data, nll.ctypes.data, entropy.ctypes.data
            )
        )
        return tokens, nll, entropy

    def logits(self, lane: int) -> NDArray[np.float32]:
        """The logits of a lane's next token, [V]."""
        return self._logits(lane).copy()

    def keep(self, lanes: Lanes, kept: Sequence[int]) -> None:
        """Go on with some lanes only.

        Args:
            lanes: sessions with their states, in their order.
            kept: which lanes, ascending.
        """
        indices = np.array(kept, np.int64)
        self._check(
            self._library.melodia_loop_keep(self._pointer, lanes._pointer, indices.ctypes.data, len(indices))
        )
        self._lanes = lanes
        self.followers = [self.followers[i] for i in kept]
        self.facts = self._all_facts[: len(kept)]

    def _logits(self, lane: int) -> NDArray[np.float32]:
        address = self._library.melodia_loop_logits(self._pointer, lane)
        return np.ctypeslib.as_array((ctypes.c_float * self._V).from_address(address))

    @staticmethod
    def _check(done: int) -> None:
        if not done:
            raise GrammarError(native.last_error())


def _free_loop(library: ctypes.CDLL, pointer: int, alive: object) -> None:
    """Free a loop; what it points to is an argument so that it lives until then."""
    library.melodia_loop_free(pointer)
