"""The sampler: load a model, prime it with a seed, generate.

Letters: B lanes, T time, N tokens, V vocabulary, S side inputs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from melodia.checks import listener, truth_value
from melodia.decode import SamplingConfig
from melodia.errors import ConfigError
from melodia.grammar import Constraints
from melodia.grammar.constraints import GENERAL_MIDI_DRUMS
from melodia.grammar.state import NONE
from melodia.sampler.branching import CLOSING, run_branches
from melodia.sampler.continuation import Continuation
from melodia.sampler.filling import Filling, fill
from melodia.sampler.following import Following
from melodia.sampler.kept import Kept
from melodia.sampler.lane import Lane
from melodia.sampler.loop import Loop
from melodia.sampler.primed import PrimedModel
from melodia.sampler.progress import Teller, Told
from melodia.sampler.recall import NOTHING_HEARD, Recollection, recollect
from melodia.sampler.request import Request, check_samples, request_of
from melodia.sampler.results import continuations_of
from melodia.sampler.seed import cycle_of
from melodia.sampler.session import Session
from melodia.sampler.stream import Stream

if TYPE_CHECKING:
    from melodia.originality import Index

AT_ONCE = 4096
"""Lanes that run side by side; of more, a group of continuations after the other. Each takes some 40 KB."""


class Sampler(PrimedModel):
    """A model that continues music.

    `prime` sets the session, `generate` and `stream` continue it and leave it as it is: calling them again gives
    another variation of the same seed (or, with the same random seed, the same music). `state` is the session as a
    value: keep it, save it, set it; `Continuation.state` goes on behind a continuation. `fork` shares the model with
    another sampler; a pickle holds it, for other processes.

    Args:
        model: a torch model on its device, or arrays (`melodia.model.Network`), which need no torch where the engine
            is there. A torch model is put into evaluation mode. Whether changes of its weights are heard later depends
            on the backend: behind a step of training make another sampler.
        tokenizer: the one that made the model's corpus.
        backend: "auto": the engine where it is there and the model is on the CPU; else "reference" or "native".
        weights: of the engine: "fp32", "bf16" or "int8"; the last two are faster and a little less exact.

    Raises:
        TokenizerError: model and tokenizer do not fit.
        ConfigError: an argument is something else.
        BackendError: the backend or the weights that were asked for cannot run here.

    >>> from melodia.model import Model, ModelConfig
    >>> from melodia.tokenizer import Tokenizer
    >>> tokenizer = Tokenizer()
    >>> config = ModelConfig(kind="lstm", vocab_size=tokenizer.vocabulary.size, hidden_size=16, lstm_layers=1)
    >>> sampler = Sampler(Model(config, random_seed=1), tokenizer)
    >>> continuation = sampler.generate(bars=2, metre=(3, 4), tempo=90, random_seed=1)
    >>> continuation.report.bars, continuation.midi.time_signature_changes[0].numerator
    (2, 3)
    """

    def generate(
        self,
        *,
        bars: int | None = None,
        seconds: float | None = None,
        tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        repetition_window: int = SamplingConfig.repetition_window,
        greedy: bool = False,
        random_seed: int | None = None,
        session: int = 0,
        state: Session | None = None,
        **wishes: Any,
    ) -> Continuation:
        """Continue the session; 8 bars if no length is given.

        The new music begins at the bar line behind the seed, or, where more than a beat of the seed's last bar is
        missing, inside that bar, which it completes first. It ends on a bar line.

        Args:
            bars: exactly this many bars; a bar that is completed is not one of them.
            seconds: or this long, rounded up to a bar line.
            tokens: or this many tokens, and then to the next bar line.
            temperature, top_k, top_p, min_p, repetition_penalty, repetition_window, greedy: see
                `melodia.decode.SamplingConfig`.
            random_seed: 0 to 2**64 - 1; the same one gives the same music. None: drawn, and reported.
            session: 0 to 2**32 - 1; other streams of one random seed.
            state: continue this session instead of the sampler's own.
            wishes: `progress`, as in `generate_many`, and fields of `melodia.sampler.Request`: programs, any_program,
                metre, metre_changes, tempo, tempo_changes, pitch_range, scale, chords, max_polyphony, pitch_bias,
                branches, recall, following, beside, may_end, silent_bars, and `sampling`, a SamplingConfig in place of
                the settings.

        Raises:
            ConfigError, GrammarError: a value lies outside its limits, or values contradict each other.

        >>> sampler = Sampler.load(device="cpu")
        >>> report = sampler.prime("midi_samples/petzold_minuet_g_major.mid", seed_bars=8)
        >>> made = sampler.generate(bars=2, top_p=0.95, chords="G D7", random_seed=7)
        >>> made.report.bars, made.report.metre, len(made.events) == made.report.notes
        (2, (3, 4), True)
        """
        sampling = SamplingConfig(
            temperature, top_k, top_p, min_p, repetition_penalty, repetition_window, greedy
        )
        if wishes.get("sampling") is not None:
            if sampling != SamplingConfig():
                raise ConfigError(
                    "give `sampling` or the separate settings (temperature, top_k, ...), not both"
                )
            sampling = wishes["sampling"]
        wishes.pop("sampling", None)
        return self.generate_many(
            1, state=state, bars=bars, seconds=seconds, tokens=tokens,
            sampling=sampling, random_seed=random_seed, session=session, **wishes,
        )[0]  # fmt: skip

    def generate_many(
        self,
        num_samples: int,
        *,
        state: Session | None = None,
        progress: Told | None = None,
        **settings: Any,
    ) -> list[Continuation]:
        """Continue the session in several ways at once.

        Args:
            num_samples: how many; the k-th is the one that `generate(session=session + k)` gives.
            state: continue this session instead of the sampler's own.
            progress: is told how much is done of how much, and of what: "bars", or "tokens" where the length is given
                in these; of the continuation that is furthest behind.
            settings: as in `generate`.

        Raises:
            ConfigError, GrammarError: as in `generate`.

        >>> sampler = Sampler.load(device="cpu")
        >>> first, second = sampler.generate_many(2, bars=1, metre=(4, 4), random_seed=1)
        >>> again = sampler.generate(bars=1, metre=(4, 4), random_seed=1, session=1)
        >>> again.tokens.tolist() == second.tokens.tolist() != first.tokens.tolist()
        True
        """
        listener("progress", progress)
        request = request_of(settings)
        num_samples = check_samples(num_samples, request.session)
        if request.endless:
            raise ConfigError("`endless` music has no end to wait for; use `stream`")
        start = state if state is not None else self.state
        before = self._before(start, request)
        kept = Kept.of(request, self._classes, self.tokenizer, start)
        following = self._following(request)
        branches = CLOSING * request.branches if request.branches > 1 else 1
        size = max(1, AT_ONCE // branches)
        groups = [range(first, min(first + size, num_samples)) for first in range(0, num_samples, size)]
        teller = None if progress is None else Teller(progress, len(groups))
        run = partial(self._run, teller=teller)
        made: list[Continuation] = []
        for part, group in enumerate(groups):
            began = time.perf_counter()
            if teller is not None:
                teller.part = part
            requests = [replace(request, session=request.session + k) for k in group]
            lanes = [self._lane(start, one, before, kept) for one in requests]
            if request.branches > 1:
                lanes, drawn = run_branches(lanes, run, following)
            else:
                run(lanes)
                drawn = sum(lane.count for lane in lanes)
            wall = time.perf_counter() - began
            made += continuations_of(lanes, self._runner, self.originality_index, wall, drawn)
        return made

    def stream(self, *, state: Session | None = None, **settings: Any) -> Stream:
        """Continue the session note by note: an iterator of events that are the notes of `generate`.

        Args:
            state: continue this session instead of the sampler's own.
            settings: as in `generate`; `endless=True` goes on for ever.

        Raises:
            ConfigError, GrammarError: as in `generate`.

        >>> stream = Sampler.load(device="cpu").stream(endless=True, metre=(4, 4), random_seed=7)
        >>> event = next(stream)
        >>> event.onset >= 0, event.duration > 0, event.velocity > 0
        (True, True, True)
        """
        request = request_of(settings)
        if request.branches > 1:
            raise ConfigError(
                "a stream cannot take back what was heard, so it has no `branches` (received "
                f"{request.branches}); use `generate`"
            )
        start = state if state is not None else self.state
        kept = Kept.of(request, self._classes, self.tokenizer, start)
        lane = self._lane(start, request, self._before(start, request), kept)
        return Stream(self._loop([lane]), lane)

    def fill(
        self,
        music: Any,
        bars: tuple[int, int],
        *,
        num_samples: int = 1,
        beside: bool = False,
        **settings: Any,
    ) -> list[Filling]:
        """Rewrite some bars of a piece: they continue the music before them and lead into the music after.

        The sampler's own session stays as it is. Metre, tempo and the programs of the bars stay; so does all else of
        the piece, note by note, but that notes which sound into the bars end there. At the end of a piece the new bars
        close.

        Args:
            music: in any form that a seed has.
            bars: the first and the last one, counted from 1.
            num_samples: in how many ways.
            beside: only `programs` are made anew there; what others play stays and is accompanied. They may be some
                that the piece does not have yet.
            settings: as in `generate`, but length, metre and tempo, which are the piece's; `branches` (8, 2 or more) is
                how many times every two bars are played, the last two eight times as often unless other parts stay
                `beside` them, see `Request`.

        Raises:
            ConfigError: no such bars, or they change the metre; else as in `prime` and `generate`.

        >>> filling = Sampler.load(device="cpu").fill("midi_samples/petzold_minuet_g_major.mid", (3, 4), branches=2)[0]
        >>> filling.where, filling.continuation.report.bars
        ('bars 3 to 4', 2)
        """
        return fill(self, music, bars, num_samples, truth_value("beside", beside), settings)

    def nll(self, music: Any, *, state: Session | None = None) -> float:
        """The negative log-likelihood (NLL) of music behind the session: the mean of its tokens, in nats.

        Args:
            music: in any form that a seed has; its first two bars with notes count, and rests before them.
            state: behind this session instead of the sampler's own.

        Raises:
            MidiError, TokenizerError, ConfigError: as in `prime`.

        >>> sampler = Sampler.load(device="cpu")
        >>> report = sampler.prime("midi_samples/petzold_minuet_g_major.mid", seed_bars=8)
        >>> 0 < sampler.nll("midi_samples/petzold_minuet_g_minor.mid") < 3
        True
        """
        start = state if state is not None else self.state
        self._check_session(start)
        (found,) = Following(self._reader(), music, self.tokenizer).nlls([start], [start.context.join])
        return found

    @cached_property
    def originality_index(self) -> Index | None:
        """The checkpoint's index of its training music, which `Continuation.originality` searches; None without one."""
        from melodia.originality.index import Index

        return None if self.checkpoint is None else Index.open(self.checkpoint.path)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _run(self, lanes: list[Lane], teller: Teller | None = None) -> None:
        """Let lanes run until each has ended or is to branch."""
        loop = self._loop(lanes)
        while loop.live:
            loop.step()
            if teller is not None:
                teller.look(loop.live)
        if teller is not None:
            teller.look(lanes)

    def _loop(self, lanes: list[Lane]) -> Loop:
        return Loop(self._runner.stepper([lane.session.model_state for lane in lanes]), lanes)

    def _cycle(self, start: Session, request: Request) -> tuple[str, ...]:
        """The TimeSig values that write one of the new bars."""
        return start.context.cycle if request.metre is None else cycle_of(request.metre, self.tokenizer)

    def _lane(
        self,
        start: Session,
        request: Request,
        before: Recollection = NOTHING_HEARD,
        kept: Kept | None = None,
    ) -> Lane:
        context, cycle = start.context, self._cycle(start, request)
        metres = () if request.metre_changes else (*context.cycle, *cycle)
        fresh = start.grammar.tempo == NONE and start.grammar.notes == 0
        programs = request.programs or (None if request.any_program else context.programs)
        kept = None if kept is None else kept.fork()
        constraints = Constraints(
            programs=programs if kept is None else (*(programs or ()), *kept.programs),
            pitch_range=request.pitch_range,
            drum_range=self._drum_range(context.programs, request, kept),
            pitch_classes=None if request.scale is None else tuple(request.scale.classes),
            time_signatures=tuple(sorted(set(metres))) or None,
            allow_metre_changes=request.metre_changes or bool(metres),
            allow_tempo=request.tempo_changes or fresh,
            allow_tempo_changes=request.tempo_changes,
            max_polyphony=request.max_polyphony,
            allow_eos=not request.endless,
        )
        return Lane(start, self._classes, self._grammar(constraints), request, cycle, before, kept)

    @staticmethod
    def _drum_range(
        before: Sequence[int] | None, request: Request, kept: Kept | None
    ) -> tuple[int, int] | None:
        """The limits of drums that join music without any: what every player has; those of a seed stay as they are."""
        joins = -1 in (request.programs or ()) and -1 not in (before or ())
        return GENERAL_MIDI_DRUMS if joins and (kept is None or -1 not in kept.programs) else None

    def _before(self, start: Session, request: Request) -> Recollection:
        """What may come again of the music before: of the tokens that were fed, or as good as these.

        Raises:
            CheckpointError, ConfigError: the session belongs to another model, or is none.
        """
        self._check_session(start)
        if not request.recall:
            return NOTHING_HEARD
        if start.recollection is not None:
            return start.recollection
        ids = start.ids
        if ids is None and start.seed is not None:
            ids = self.tokenizer.encode(start.seed).ids
        pieces = max(1, len(self._cycle(start, request)))
        return recollect(self._classes, [] if ids is None else ids.tolist(), pieces)

    def _following(self, request: Request) -> Following | None:
        if request.following is None:
            return None
        return Following(self._reader(), request.following, self.tokenizer)
