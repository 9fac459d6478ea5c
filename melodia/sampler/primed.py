"""A model with its tokenizer and a session: load, prime, save, fork. What generates stands in `sampler`.

Letters: N tokens, V vocabulary.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from melodia.checks import listener, whole_number
from melodia.errors import CheckpointError, ConfigError, TokenizerError
from melodia.grammar import Constraints, Grammar
from melodia.model.config import ModelConfig
from melodia.model.network import Network
from melodia.model.stored import StoredCheckpoint
from melodia.sampler.classes import TokenClasses
from melodia.sampler.feeding import Reader, feed_from_start, feed_rest
from melodia.sampler.loading import check_device, fingerprint_of, open_checkpoint
from melodia.sampler.progress import Told
from melodia.sampler.report import PrimeReport
from melodia.sampler.results import prime_report
from melodia.sampler.runner import Runner
from melodia.sampler.seed import ids_behind, read_seed
from melodia.sampler.session import Context, Session
from melodia.side_inputs import DENSITIES
from melodia.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self

    from melodia.model.model import Model

GRAMMARS = 32
"""So many compiled grammars are kept, of the wishes that came last."""


class PrimedModel:
    """A model, its tokenizer, and the session from which music goes on; `melodia.Sampler` is one that generates."""

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
        self._grammar = self._grammars()
        self._session: Session | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        device: str = "auto",
        backend: str = "auto",
        weights: str = "fp32",
    ) -> Self:
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

        >>> from melodia import Sampler
        >>> Sampler.load(device="cpu").config.kind  # the model that comes with melodia
        'parallel'
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
        """Write the session to one file; as `Session.save`.

        >>> import tempfile
        >>> from melodia import Sampler
        >>> sampler = Sampler.load(device="cpu")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = sampler.save_state(folder + "/session")
        ...     sampler.load_state(path).fed == sampler.state.fed
        True
        """
        return self.state.save(path, force=force)

    def load_state(self, path: str | os.PathLike[str]) -> Session:
        """Read a session that `save_state` wrote, make it the sampler's, and return a copy.

        Raises:
            CheckpointError: the file is missing, damaged, or belongs to another model.
        """
        self._session = Session.load(path, self.config, self.vocabulary, self._fingerprint)
        return self._session.fork()

    def fork(self) -> Self:
        """Another sampler with the same model and a session of its own, which begins where this one stands.

        >>> from melodia import Sampler
        >>> sampler = Sampler.load(device="cpu")
        >>> twin = sampler.fork()
        >>> report = twin.prime("midi_samples/petzold_minuet_g_major.mid", seed_bars=1)
        >>> twin.state.fed > sampler.state.fed
        True
        """
        twin = object.__new__(type(self))
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
            append: the seed is token ids that go on from the present session. Tokens at the end of ids that only begin
                a note or a bar are dropped, which the report says: give them again with those behind them.
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

        >>> from melodia import Sampler
        >>> sampler = Sampler.load(device="cpu")
        >>> report = sampler.prime("midi_samples/petzold_minuet_g_major.mid", seed_bars=8)
        >>> report.bars, report.metre, round(report.tempo), report.programs
        (8, (3, 4), 126, (0,))
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
            wall = time.perf_counter() - began
            report = PrimeReport("", 0, 0, 0.0, 0, nll, 0.0, 0.0, (0, 0), (), False, wall)
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

    # -- inside ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied; the rest is made again."""
        again = ("_grammar", "originality_index")
        return {name: value for name, value in self.__dict__.items() if name not in again}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._grammar = self._grammars()

    def _grammars(self) -> Callable[[Constraints], Grammar]:
        return lru_cache(GRAMMARS)(partial(Grammar.compile, self.vocabulary))

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

    def _reader(self, progress: Told | None = None) -> Reader:
        return Reader(self._runner, self._grammar(Constraints()), self._fingerprint, progress)
