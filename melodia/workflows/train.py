"""A folder of MIDI files becomes a model: corpus, training, and three continuations to listen to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from melodia import kernels
from melodia.corpus.build import build_corpus
from melodia.corpus.manifest import MANIFEST, CorpusSummary, read_manifest
from melodia.corpus.shards import Corpus
from melodia.decode.config import BRANCHES, PITCH_BIAS, TEMPERATURE, TOP_P
from melodia.errors import ConfigError, MelodiaError
from melodia.model.config import ModelConfig
from melodia.side_inputs import DEFAULTS, NAMES, default_specs
from melodia.tokenizer import TokenizerConfig
from melodia.training import Progress, TrainingConfig, TrainingSummary, World, join, train
from melodia.vocabulary import Vocabulary
from melodia.workflows.originality import index_corpus

SAMPLES = 3
SAMPLE_SEED_BARS = 8
SAMPLE_BARS = 8
SAMPLE_NAME_BYTES = 100  # of the piece's name in the sample's
BLOCK_WITHOUT_BARS = 32  # tokens of a block, for bidirectional models over tokens without bar lines


class Reporter(Protocol):
    """Is told how a corpus is read, and how training goes (`melodia.training.Progress`)."""

    def read(self, done: int, total: int, path: str) -> None:
        """A file of the corpus has been read."""

    def say(self, text: str) -> None:
        """A line that stays."""


class QuietReporter(Progress):
    """Says nothing."""

    def read(self, done: int, total: int, path: str) -> None:
        """A file of the corpus has been read."""

    def say(self, text: str) -> None:
        """A line that stays."""


@dataclass(frozen=True)
class TrainedFolder:
    """What `train_folder` did.

    Attributes:
        training: how training ended; its `checkpoint` is what `Sampler.load` takes.
        samples: the files of the continuations of held-out pieces.
        notes: remarks, such as why a sample could not be made.
        leads: False in all processes but the first; they have nothing to report.
    """

    training: TrainingSummary
    samples: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    leads: bool = True

    def lines(self) -> list[str]:
        """The report as lines of text."""
        if not self.leads:
            return []
        summary = self.training
        lines = [
            f"trained {summary.iterations} iterations ({summary.epochs:.2f} epochs) in {summary.seconds:.0f} s, "
            f"stopped by {summary.stopped}",
            f"held-out {summary.valid_nats_per_token:.4f} nats/token, {summary.valid_nats_per_note:.3f} nats/note "
            f"at iteration {summary.best_iteration}",
            f"checkpoint {summary.checkpoint}",
        ]
        return lines + self.notes + [f"sample {path}" for path in self.samples]


def default_cache() -> Path:
    """Where token shards are kept: melodia's part of the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "melodia" / "corpora"


def corpus_folder(folder: Path, config: TokenizerConfig, cache: Path | None) -> Path:
    """The cache folder of a folder of MIDI files read with a tokenizer."""
    text = json.dumps([str(folder.resolve()), config.to_dict()], sort_keys=True)
    return (
        cache or default_cache()
    ) / f"{folder.resolve().name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def open_corpus(
    folder: Path,
    *,
    scheme: str = "REMI",
    bpe: int | None = None,
    transpositions: Sequence[int] = (),
    workers: int | None = None,
    cache: Path | None = None,
    reporter: Any = None,
    world: World | None = None,
) -> Corpus:
    """The corpus of a folder: a built one is opened, MIDI files are read (once: the shards are cached).

    Args:
        folder: MIDI files, or a folder that `build_corpus` wrote.
        scheme: the tokenization.
        bpe: the vocabulary size of a byte-pair encoding, or None for none.
        transpositions: for BPE, whose tokens cannot be transposed while training: copies to store.
        workers: processes that read; None: one a processor.
        cache: where shards are kept; None: `default_cache()`.
        reporter: is told what happens (`Reporter`).
        world: the processes that train together; the first one builds, the others wait.

    Raises:
        CorpusError: the folder has nothing to train on.
    """
    if (folder / "corpus.json").is_file():
        if bpe is not None:
            raise ConfigError(f"{folder} is a built corpus, whose tokens are made already; leave --bpe out")
        return Corpus.open(folder)
    config = TokenizerConfig(scheme=scheme, bpe_vocab_size=bpe)
    target = corpus_folder(folder, config, cache)
    if world is None or world.leads:
        summary: CorpusSummary = build_corpus(
            folder,
            target,
            config,
            workers=workers,
            transpositions=transpositions,
            progress=None if reporter is None else reporter.read,
        )
        if reporter is not None:
            for line in summary.lines():
                reporter.say(line)
    if world is not None:
        world.barrier()
    return Corpus.open(target)


def model_settings(
    vocabulary: Vocabulary,
    kind: str,
    size: str,
    *,
    side_inputs: Sequence[str] = DEFAULTS,
    **changes: Any,
) -> ModelConfig:
    """The configuration of a preset model for a vocabulary.

    Args:
        vocabulary: what the model reads and writes.
        kind, size: as in `ModelConfig.preset`.
        side_inputs: names of the side inputs.
        changes: fields of `ModelConfig` to set; None leaves one alone.

    Raises:
        ConfigError: settings that contradict each other.
    """
    unknown = sorted(set(side_inputs) - set(NAMES))
    if unknown:
        raise ConfigError(f"side inputs are {', '.join(NAMES)} or none (received {', '.join(unknown)})")
    settings = {name: value for name, value in changes.items() if value is not None}
    if kind == "bidirectional":
        bars = vocabulary.ids_of("Bar")
        settings |= {"block_starts": bars} if bars else {"block_length": BLOCK_WITHOUT_BARS}
    return ModelConfig.preset(
        kind, size, vocabulary.size, side_inputs=default_specs(vocabulary, list(side_inputs)), **settings
    )


def train_folder(
    folder: Path | str,
    out: Path | str,
    *,
    kind: str = "parallel",
    size: str = "small",
    combine: str | None = None,
    encoder: str | None = None,
    side_inputs: Sequence[str] = DEFAULTS,
    scheme: str = "REMI",
    bpe: int | None = None,
    training: dict[str, Any] | None = None,
    backend: str = "auto",
    resume: bool = False,
    init: Path | str | None = None,
    workers: int | None = None,
    cache: Path | None = None,
    force: bool = False,
    progress: Any = None,
) -> TrainedFolder:
    """Train a model on a folder of MIDI files and let it continue three pieces that it has not seen.

    Args:
        folder: MIDI files (searched with sub-folders), or a built corpus.
        out: the folder to write: the checkpoint in `best`, logs, the state to resume from, samples.
        kind, size, combine, encoder, side_inputs: of the model; ignored with `init`, which brings its own.
        scheme, bpe: of the tokenizer.
        training: fields of `TrainingConfig`; 20 minutes if no budget is among them. The precision may also be "auto":
            bf16 where that is faster (`kernels.fast_precision`).
        backend: of the kernels, "auto", "reference" or "native".
        resume: go on where an interrupted call with the same arguments stopped.
        init: a checkpoint to fine-tune.
        workers: processes that read the corpus.
        cache: where token shards are kept.
        force: begin anew in a folder that holds a checkpoint.
        progress: is told what happens (`Reporter` and `melodia.training.Progress`).

    Raises:
        CorpusError, ConfigError, TrainingError, CheckpointError, BackendError: as the parts raise them.

    Example:
        >>> result = train_folder("my-midi", "my-model", training={"minutes": 5})  # doctest: +SKIP
    """
    reporter = progress or QuietReporter()
    settings = dict(training or {})
    if not {"minutes", "epochs", "iterations"} & set(settings):
        settings["minutes"] = 20.0
    automatic = settings.get("precision") == "auto"
    config = TrainingConfig(**{**settings, "precision": "fp32"} if automatic else settings)
    transpositions = range(config.transpose_down, config.transpose_up + 1) if bpe else ()
    with kernels.use_backend(backend), join(config.device) as world:
        if automatic:
            config = replace(config, precision=kernels.fast_precision(world.device))
        corpus = open_corpus(
            Path(folder),
            scheme=scheme,
            bpe=bpe,
            transpositions=transpositions,
            workers=workers,
            cache=cache,
            reporter=reporter if world.leads else None,
            world=world,
        )
        model = None
        if init is None:
            model = model_settings(
                corpus.vocabulary, kind, size, side_inputs=side_inputs, combine=combine, encoder=encoder
            )
        summary = train(
            corpus, model, config, out, progress=reporter, resume=resume, init=init, force=force, world=world
        )
        samples, notes = ([], []) if not world.leads else continue_held_out(corpus, summary, Path(out))
        if world.leads:
            notes += index_corpus(corpus, summary.checkpoint, init).lines()
    return TrainedFolder(summary, samples, notes, world.leads)


def continue_held_out(corpus: Corpus, summary: TrainingSummary, out: Path) -> tuple[list[Path], list[str]]:
    """Continue the beginnings of held-out pieces: MIDI and pictures in `out/samples`.

    Returns:
        the files, and remarks on what could not be done.
    """
    from melodia.midi import write_midi
    from melodia.render import plot_pianoroll
    from melodia.sampler import Sampler

    pieces = corpus.pieces("valid") if len(corpus.pieces("valid")) else corpus.pieces("train")
    manifest = corpus.folder / MANIFEST
    rows = read_manifest(manifest) if manifest.is_file() else []
    folder = out / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    sampler = Sampler.load(summary.checkpoint)
    paths: list[Path] = []
    notes: list[str] = []
    for number in range(SAMPLES):
        piece = pieces[number * len(pieces) // SAMPLES]
        stem = Path(rows[piece.row].path).stem if 0 <= piece.row < len(rows) else "piece"
        name = "".join(letter if letter.isprintable() else "_" for letter in stem)
        name = name.encode()[:SAMPLE_NAME_BYTES].decode(errors="ignore")
        try:
            sampler.prime(piece.tokens, seed_bars=SAMPLE_SEED_BARS)
            continuation = sampler.generate(
                bars=SAMPLE_BARS,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                pitch_bias=PITCH_BIAS,
                branches=BRANCHES,
                random_seed=number,
            )
            path = folder / f"{number + 1}-{name}.mid"
            paths.append(write_midi(continuation.joined_score, path, force=True))
            picture = path.with_suffix(".png")
            plot_pianoroll(
                continuation.joined, picture, split_at=continuation.joined_at, title=name, force=True
            )
            paths.append(picture)
        except MelodiaError as error:
            notes.append(f"no continuation of {name}: {error}")
    return paths, notes
