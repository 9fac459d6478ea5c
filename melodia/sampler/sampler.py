"""The sampler: load a model, prime it with a seed, generate.

Letters: B lanes, T time, N tokens, V vocabulary, S side inputs.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from melodia.checks import listener, truth_value, whole_number
from melodia.decode import SamplingConfig
from melodia.errors import CheckpointError, ConfigError, TokenizerError
from melodia.grammar import Constraints, Grammar
from melodia.grammar.state import NONE
from melodia.model.config import ModelConfig
from melodia.model.network import Network
from melodia.model.stored import StoredCheckpoint
from melodia.sampler.branching import run_branches
from melodia.sampler.classes import TokenClasses
from melodia.sampler.continuation import Continuation
from melodia.sampler.feeding import Reader, feed_from_start, feed_rest
from melodia.sampler.filling import Filling, fill
from melodia.sampler.following import Following
from melodia.sampler.kept import Kept
from melodia.sampler.lane import Lane
from melodia.sampler.loading import check_device, fingerprint_of, open_checkpoint
from melodia.sampler.loop import Loop
from melodia.sampler.progress import Teller, Told
from melodia.sampler.recall import NOTHING_HEARD, Recollection, recollect
from melodia.sampler.report import PrimeReport
from melodia.sampler.request import Request, request_of
from melodia.sampler.results import continuations_of, prime_report
from melodia.sampler.runner import Runner
from melodia.sampler.seed import cycle_of, ids_behind, read_seed
from melodia.sampler.session import Context, Session
from melodia.sampler.stream import Stream
from melodia.side_inputs import DENSITIES
from melodia.tokenizer import Tokenizer

if TYPE_CHECKING:
    from melodia.model.model import Model
    from melodia.originality import Index

GRAMMARS = 32
"""So many compiled grammars are kept, of the wishes that came last."""


class Sampler:
    """A model that continues music.

    `prime` sets the session, `generate` and `stream` continue it and leave it as it is: calling them again gives
    another variation of the same seed (or, with the same random seed, the same music). `state` is the session as a
    value: keep it, save it, set it; `Continuation.state` goes on behind a continuation.

    Args:
        model: a torch model on its device, or arrays (`melodia.model.Network`), which need no torch where the engine
            is there.
        tokenizer: the one that made the model's corpus.
        backend: "auto": the engine where it is there and the model is on the CPU; else "reference" or "native".
        weights: of the engine: "fp32", "bf16" or "int8"; the last two are faster and a little less exact.

    Raises:
        TokenizerError: model and tokenizer do not fit.
        ConfigError: an argument is something else.
        BackendError: the backend or the weights that were asked for cannot run here.

    >>> from melodia.model import Model, ModelConfig
    >>> tokenizer = Tokenizer()
    >>> config = ModelConfig(kind="lstm", vocab_size=tokenizer.vocabulary.size, hidden_size=16, lstm_layers=1)
    >>> sampler = Sampler(Model(config, random_seed=1), tokenizer)
    >>> continuation = sampler.generate(bars=2, metre=(3, 4), tempo=90, random_seed=1)
    >>> continuation.report.bars, continuation.midi.time_signature_changes[0].numerator
    (2, 3)
    """

    def __init__(
        self, model: Model | Network, tokenizer: Tokenizer, *, backend: str = "auto", weights: str = "fp32"
    ) -> None:
        if not isinstance(tokenizer, Tokenizer):
            raise ConfigError(
                f"`tokenizer` must be a melodia.Tokenizer (received {tokenizer!r}); `Sampler.load` takes a folder"
            )
        if not isinstance(getattr(model, "config", None), ModelConfig):
            raise ConfigError(
                "`model` must be a melodia.model.Model or Network (received "
                f"{type(model).__name__}); `Sampler.load` takes a folder"
            )
        if model.config.vocab_size != tokenizer.vocabulary.size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.vocabulary.size} tokens and the model {model.config.vocab_size}; "
                "use the tokenizer of the model's own checkpoint"
            )
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.vocabulary
        self.checkpoint: StoredCheckpoint | None = None
        self.prime_report: PrimeReport | None = None
        self._runner = Runner(model if isinstance(model, Network) else model.eval(), backend, weights)
        self._classes = TokenClasses(self.vocabulary)
        self._grammar = lru_cache(GRAMMARS)(partial(Grammar.compile, self.vocabulary))
        self._session: Session | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        device: str = "auto",
        backend: str = "auto",
        weights: str = "fp32",
    ) -> Sampler:
        """Load a checkpoint.

        Args:
            path: a checkpoint folder; None: the model that comes with melodia, where one does.
            device: "cpu", "cuda", "cuda:1", or "auto": the CPU where the engine is there, else cuda if there is one.
            backend: "auto", "reference" or "native".
            weights: of the engine: "fp32", "bf16" or "int8".

        Raises:
            CheckpointError: there is none, or it is damaged.
            BackendError: the backend that was asked for is not there.
            ConfigError: no such device or backend.
        """
        device = check_device(device, backend)
        checkpoint, tokenizer = open_checkpoint(path)
        network = checkpoint.network
        model = network if device == "cpu" else network.to_torch().to(device)
        sampler = cls(model, tokenizer, backend=backend, weights=weights)
        sampler.checkpoint = checkpoint
        return sampler

    @property
    def model(self) -> Model:
        """The model in torch. Where it was loaded without, torch is imported now."""
        return self._runner.model

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self._runner.config

    # -- the session ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> Session:
        """The session: what `generate` continues. Set it to go back to another one, such as `Continuation.state`.

        Raises:
            CheckpointError, ConfigError: when set: the session belongs to another model, or is none.
        """
        if self._session is None:
            self.prime(None)
        assert self._session is not None
        return self._session.fork()

    @state.setter
    def state(self, session: Session) -> None:
        self._check_session(session)
        self._session = session.fork()

    def save_state(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the session to one file; as `Session.save`."""
        return self.state.save(path, force=force)

    def load_state(self, path: str | os.PathLike[str]) -> Session:
        """Read a session that `save_state` wrote, make it the sampler's, and return a copy.

        Raises:
            CheckpointError: the file is missing, damaged, or belongs to another model.
        """
        self._session = Session.load(path, self.config, self.vocabulary, self._fingerprint)
        return self._session.fork()

    def fork(self) -> Sampler:
        """Another sampler with the same model and a session of its own, which begins where this one stands."""
        twin = object.__new__(Sampler)
        twin.__dict__.update(self.__dict__)
        twin._session = None if self._session is None else self._session.fork()
        return twin

    def prime(
        self,
        seed: Any = None,
        seed_bars: int | None = None,
        seed_seconds: float | None = None,
        *,
        append: bool = False,
        density: int | None = None,
        progress: Told | None = None,
    ) -> PrimeReport:
        """Feed a seed: what `generate` continues from now on.

        Args:
            seed: a path, bytes, an open file, a PrettyMIDI, a symusic score in ticks, token ids [N], or None for
                music from nothing.
            seed_bars: use only the first bars of the seed.
            seed_seconds: or only the first seconds, completed to a bar line.
            append: the seed is token ids that go on from the present session.
            density: notes a bar as a bucket, 1 to 8, for models with that side input; None: not given, or with
                `append` as before.
            progress: is told how many of how many tokens are read, and the word "tokens".

        Returns:
            what was read, repaired, quantised and dropped, and how foreign the seed is to the model.

        Raises:
            MidiError: the seed cannot be read.
            TokenizerError: nothing of the seed can be written as tokens.
            GrammarError: token ids are not music.
            ConfigError: a value lies outside its limits.
        """
        began = time.perf_counter()
        listener("progress", progress)
        if density is not None:
            density = whole_number("density", density, 1, DENSITIES)
        if seed is None:
            if append or seed_bars is not None or seed_seconds is not None:
                raise ConfigError("`append`, `seed_bars` and `seed_seconds` need a seed")
            nothing = np.zeros(0, np.int32)
            self._session, nll = feed_from_start(self._reader(), nothing, Context(), None, density)
            report = PrimeReport("", 0, 0, 0.0, 0, nll, 0.0, (0, 0), (), False, time.perf_counter() - began)
        else:
            if append:
                if seed_bars is not None or seed_seconds is not None:
                    raise ConfigError("`append` takes no `seed_bars` and no `seed_seconds`; leave them out")
                start = self.state
                read = read_seed(ids_behind(start.ids, seed), self.tokenizer)
                self._session, nll = feed_rest(self._reader(progress), start, read, density)
            else:
                read = read_seed(seed, self.tokenizer, seed_bars=seed_bars, seed_seconds=seed_seconds)
                self._session, nll = feed_from_start(
                    self._reader(progress), read.ids, read.context, read.score, density
                )
            report = prime_report(read, nll, time.perf_counter() - began)
        self.prime_report = report
        return report

    # -- generating -----------------------------------------------------------------------------------------------

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
        """
        num_samples = whole_number("num_samples", num_samples, 1)
        listener("progress", progress)
        request = request_of(settings)
        if request.endless:
            raise ConfigError("`endless` music has no end to wait for; use `stream`")
        start = state if state is not None else self.state
        began = time.perf_counter()
        before = self._before(start, request)
        kept = Kept.of(request, self._classes, self.tokenizer, start)
        lanes = [
            self._lane(start, replace(request, session=request.session + k), before, kept)
            for k in range(num_samples)
        ]
        run = partial(self._run, teller=None if progress is None else Teller(progress))
        if request.branches > 1:
            lanes, drawn = run_branches(lanes, run, self._following(request))
        else:
            run(lanes)
            drawn = sum(lane.count for lane in lanes)
        return continuations_of(
            lanes, self._runner, self.originality_index, time.perf_counter() - began, drawn
        )

    def stream(self, *, state: Session | None = None, **settings: Any) -> Stream:
        """Continue the session note by note: an iterator of events that are the notes of `generate`.

        Args:
            state: continue this session instead of the sampler's own.
            settings: as in `generate`; `endless=True` goes on for ever.

        Raises:
            ConfigError, GrammarError: as in `generate`.

        >>> from melodia.model import Model, ModelConfig
        >>> tokenizer = Tokenizer()
        >>> config = ModelConfig(kind="gru", vocab_size=tokenizer.vocabulary.size, hidden_size=16, gru_layers=1)
        >>> sampler = Sampler(Model(config, random_seed=1), tokenizer)
        >>> stream = sampler.stream(endless=True, random_seed=7)
        >>> next(stream).velocity > 0
        True
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
        the piece, note by note. At the end of a piece the new bars close.

        Args:
            music: in any form that a seed has.
            bars: the first and the last one, counted from 1.
            num_samples: in how many ways.
            beside: only `programs` are made anew there; what others play stays and is accompanied. They may be some
                that the piece does not have yet.
            settings: as in `generate`, but length, metre and tempo, which are the piece's; `branches` (8) is how many
                times every two bars are played, the last two eight times as often, see `Request`.

        Raises:
            ConfigError: no such bars, or they change the metre; else as in `prime` and `generate`.
        """
        return fill(self, music, bars, num_samples, truth_value("beside", beside), settings)

    def surprise(self, music: Any, *, state: Session | None = None) -> float:
        """How little the model expects music behind the session: -log probability of a token, in nats.

        Args:
            music: in any form that a seed has; its first two bars with notes count, and rests before them.
            state: behind this session instead of the sampler's own.

        Raises:
            MidiError, TokenizerError, ConfigError: as in `prime`.
        """
        start = state if state is not None else self.state
        self._check_session(start)
        return Following(self._reader(), music, self.tokenizer).surprise(start, start.context.join)

    @cached_property
    def originality_index(self) -> Index | None:
        """The checkpoint's index of its training music, which `Continuation.originality` searches; None without one."""
        from melodia.originality.index import Index

        return None if self.checkpoint is None else Index.open(self.checkpoint.path)

    # -- inside ---------------------------------------------------------------------------------------------------

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of(self._runner.network, self.vocabulary)

    def _check_session(self, session: object) -> None:
        if not isinstance(session, Session):
            raise ConfigError(
                f"`state` must be a melodia.Session, such as `Continuation.state` (received {type(session).__name__})"
            )
        if session.fingerprint != self._fingerprint:
            raise CheckpointError("the session belongs to another model; prime the seed again with this one")

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
            pitch_classes=None if request.scale is None else tuple(request.scale.classes),
            time_signatures=tuple(sorted(set(metres))) or None,
            allow_metre_changes=request.metre_changes or bool(metres),
            allow_tempo=request.tempo_changes or fresh,
            allow_tempo_changes=request.tempo_changes,
            max_polyphony=request.max_polyphony,
            allow_eos=not request.endless,
        )
        return Lane(start, self._classes, self._grammar(constraints), request, cycle, before, kept)

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

    def _reader(self, progress: Told | None = None) -> Reader:
        return Reader(self._runner, self.vocabulary, self._fingerprint, progress)
