"""A folder of MIDI files becomes a model: corpus, training, and three continuations to listen to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from melodia import kernels
from melodia.checks import file_path, named_values, truth_value, whole_number
from melodia.corpus.shards import Corpus
from melodia.decode.config import RECOMMENDED
from melodia.errors import ConfigError, MelodiaError, show_path
from melodia.files import short_name, write_whole
from melodia.kernels.asked import asked_backend
from melodia.model.config import ModelConfig
from melodia.model.stored import NOTICES
from melodia.sampler.loading import bundled_model
from melodia.side_inputs import DEFAULTS, NAMES, default_specs
from melodia.tokenizer import Tokenizer, TokenizerConfig
from melodia.training import Progress, TrainingConfig, TrainingSummary, World, join, train
from melodia.training.config import BUDGETS, PRECISIONS
from melodia.training.folder import RESUME, check_folder, holds_state
from melodia.training.lock import only_training
from melodia.vocabulary import Vocabulary
from melodia.wording import counted
from melodia.workflows.begun import Begun
from melodia.workflows.corpora import check_apart, is_built, open_corpus
from melodia.workflows.options import check_model, choose_tokens
from melodia.workflows.originality import index_corpus

DEFAULT_MINUTES = 20.0
TUNING_RATE = 6e-4  # for weights that know music already, a tenth of the usual one (benchmarks/TUNING.md)
BUNDLED = "bundled"  # the name of the model that comes with melodia, for `init`
SAMPLES = 3
SAMPLE_SEED_BARS = 8
SAMPLE_BARS = 8
SAMPLES_WRITTEN = "samples.json"  # their names, so that another training knows which are not the user's own
BLOCK_WITHOUT_BARS = 32  # tokens of a block, for bidirectional models over tokens without bar lines


class Reporter(Progress):
    """Is told how a corpus is read, and how training goes; override what is of interest."""

    def read(self, done: int, total: int, path: str) -> None:
        """A file of the corpus has been read."""

    def say(self, text: str) -> None:
        """A line that stays."""


def told(progress: Reporter | None) -> Reporter:
    """Who is told what happens; one that does nothing if nobody is.

    Raises:
        ConfigError: it is no reporter.
    """
    if progress is None:
        return Reporter()
    if not isinstance(progress, Reporter):
        raise ConfigError(f"`progress` must be a melodia.workflows.train.Reporter (received {progress!r})")
    return progress


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
            f"trained {counted(summary.iterations, 'iteration')} ({summary.epochs:.2f} epochs) in "
            f"{summary.seconds:.0f} s, stopped by {summary.stopped}",
            f"held-out {summary.valid_nats_per_token:.4f} nats/token, {summary.valid_nats_per_note:.3f} nats/note "
            f"at iteration {summary.best_iteration}"
            if math.isfinite(summary.valid_nats_per_token)
            else "no piece was held out",
            f"checkpoint {summary.checkpoint}",
        ]
        return lines + self.notes + [f"sample {show_path(path)}" for path in self.samples]


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
    _check_sides(side_inputs)
    settings = {name: value for name, value in changes.items() if value is not None}
    if kind == "bidirectional":
        bars = vocabulary.ids_of("Bar")
        settings |= {"block_starts": bars} if bars else {"block_length": BLOCK_WITHOUT_BARS}
    return ModelConfig.preset(
        kind, size, vocabulary.size, side_inputs=default_specs(vocabulary, list(side_inputs)), **settings
    )


def _check_sides(names: Sequence[str]) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"`side_inputs` must be a list of some of {', '.join(NAMES)} (received {names!r})")
    unknown = [str(name) for name in names if name not in NAMES]
    if unknown:
        raise ConfigError(
            f"`side_inputs` must be one or more of {', '.join(NAMES)}, or none (received {', '.join(unknown)})"
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"`side_inputs` must not repeat values (received {', '.join(names)})")


def _check_form(form: Mapping[str, Any]) -> None:
    """Refuse options of a model that fit no vocabulary, before a corpus is read.

    Raises:
        ConfigError: names the first.
    """
    _check_sides(form["side_inputs"] or ())
    changes = {name: form[name] for name in ("combine", "encoder", "dropout") if form[name] is not None}
    kind = form["kind"] or "parallel"
    if kind == "bidirectional":
        changes["block_length"] = BLOCK_WITHOUT_BARS
    ModelConfig.preset(kind, form["size"] or "small", vocab_size=1, **changes)


def training_config(given: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> TrainingConfig:
    """The settings that are given, over those of a training that goes on; 20 minutes if none says how long."""
    settings = dict(before or {})
    if set(BUDGETS) & set(given):  # another budget takes the place of the one before
        settings = {name: value for name, value in settings.items() if name not in BUDGETS}
    settings.update(given)
    if all(settings.get(name) is None for name in BUDGETS):
        settings["minutes"] = DEFAULT_MINUTES
    return TrainingConfig.from_dict(settings)


def train_folder(
    folder: Path | str,
    out: Path | str,
    *,
    kind: str | None = None,
    size: str | None = None,
    combine: str | None = None,
    encoder: str | None = None,
    side_inputs: Sequence[str] | None = None,
    dropout: float | None = None,
    scheme: str | None = None,
    bpe: int | None = None,
    training: dict[str, Any] | None = None,
    backend: str = "auto",
    resume: bool = False,
    init: Path | str | None = None,
    workers: int | None = None,
    cache: Path | str | None = None,
    force: bool = False,
    progress: Reporter | None = None,
) -> TrainedFolder:
    """Train a model on a folder of MIDI files and let it continue three pieces that it has not seen.

    Args:
        folder: MIDI files (searched with sub-folders), or a built corpus.
        out: the folder to write: the checkpoint in `best`, logs, the state to resume from, samples.
        kind, size, combine, encoder, side_inputs: of the model; None: "parallel", "small", the kind's own, `DEFAULTS`.
            With `init` or `resume` the model is there already: what is given must be what it has.
        dropout: the share of units that are dropped while training; None: the size's preset, or the `init`'s own.
        scheme, bpe: of the tokenizer; None: "REMI", no byte pairs. The same holds for `init`, `resume`, a built corpus.
        training: fields of `TrainingConfig`; 20 minutes if no budget is among them, and with `init` a learning rate of
            6e-4. The precision may also be "auto": bf16 where that is faster (`kernels.fast_precision`). With `resume`
            the others are as they were.
        backend: of the kernels, "auto", "reference" or "native".
        resume: go on where an interrupted call stopped; what it was begun with need not be given again. From the
            beginning if it had not saved anything yet, which is told; an error where none was begun.
        init: a checkpoint to fine-tune, with its tokenizer. "bundled": the model that comes with melodia, unless
            there is a folder of that name.
        workers: processes that read the corpus.
        cache: where token shards are kept.
        force: begin anew in a folder that holds a checkpoint.
        progress: is told what happens.

    Raises:
        CorpusError, ConfigError, TrainingError, CheckpointError, BackendError: as the parts raise them.

    Example:
        >>> result = train_folder("my-midi", "my-model", training={"minutes": 5})  # doctest: +SKIP
    """
    folder, out = file_path("folder", folder), file_path("out", out)
    cache = None if cache is None else file_path("cache", cache)
    workers = None if workers is None else whole_number("workers", workers, 0)
    resume, force = truth_value("resume", resume), truth_value("force", force)
    reporter = told(progress)
    check_apart(folder, out)
    given, automatic = _precision_apart(named_values("training", training))
    _check_sides(() if side_inputs is None else side_inputs)
    sides = None if side_inputs is None else tuple(side_inputs)
    form = {
        "kind": kind, "size": size, "combine": combine, "encoder": encoder, "side_inputs": sides, "dropout": dropout
    }  # fmt: skip
    base = None if init is None else str(_folder_to_tune(init).resolve())
    with (
        asked_backend(backend),
        join(training_config(given).device) as world,
        only_training(out, world),
    ):
        before, goes_on = _before(out, base, world, resume=resume, force=force)
        config = training_config(given, None if before is None else before.training)
        if automatic and not goes_on:
            config = replace(config, precision=kernels.fast_precision(world.device))
        if base is not None and not goes_on and given.get("learning_rate") is None:
            config = replace(config, learning_rate=TUNING_RATE)
        if before is not None:
            if not goes_on and dropout is not None:  # no weight depends on it
                before = replace(before, model=replace(before.model, dropout=dropout))
            check_model({**form, "init": base}, before)
        else:
            _check_form(form)
        if resume and world.leads and not holds_state(out):  # begun, or it would have been refused
            reporter.say(
                f"{show_path(out)}: the training run was interrupted before anything was saved; starting it again"
            )
        tokens = choose_tokens(folder, {"scheme": scheme, "bpe": bpe}, before)
        corpus, config = _music(folder, tokens, config, world, workers, cache, reporter)
        if before is not None:
            model, base = before.model, before.init
        else:
            model = _new_model(corpus.vocabulary, form)
        # A state without a record is of an earlier melodia: whether it is of these options is not known yet.
        if world.leads and not goes_on and not (resume and holds_state(out)):
            Begun(model, config.to_dict(), tokens, base).write(out)
        summary = train(
            corpus, model, config, out, progress=reporter, resume=resume, init=base, force=force, world=world
        )
        samples, notes = ([], []) if not world.leads else continue_held_out(corpus, summary, out)
        if world.leads:
            index = None if base is None else out / RESUME
            notes += index_corpus(corpus, summary.checkpoint, index).lines()
            if (passed_on := summary.checkpoint / NOTICES).is_file():
                notes.append(
                    f"{show_path(passed_on)} credits the music of the model before; it goes with the new one"
                )
    return TrainedFolder(summary, samples, notes, world.leads)


def _folder_to_tune(init: Path | str) -> Path:
    """The checkpoint of a name that may be `BUNDLED`.

    Raises:
        ConfigError: it is no path.
        CheckpointError: this melodia comes without a model.
    """
    folder = file_path("init", init)
    return bundled_model() if str(folder) == BUNDLED and not folder.exists() else folder


def _precision_apart(training: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The settings without a precision of "auto", and whether it was that.

    Raises:
        ConfigError: there is no such precision.
    """
    given = dict(training)
    if given.get("precision") == "auto":
        del given["precision"]
        return given, True
    if given.get("precision", "fp32") not in PRECISIONS:
        raise ConfigError(
            f"`precision` must be one of auto, {', '.join(PRECISIONS)} (received {given['precision']!r})"
        )
    return given, False


def _before(
    out: Path, base: str | None, world: World, *, resume: bool, force: bool
) -> tuple[Begun | None, bool]:
    """What there is already: of the training that goes on in this folder, else of the checkpoint to fine-tune.

    Returns:
        it, None where all begins anew or the training does not say; whether it is of that training.

    Raises:
        TrainingError: something would be lost, or there is nothing to resume.
        CheckpointError, TokenizerError: the checkpoint cannot be read.
    """
    check_folder(out, world, resume=resume, force=force)
    if resume:
        begun = Begun.read(out, world)
        nothing = f"{show_path(out)} holds no training run to resume; check `out`, or leave `resume` out to start one"
        world.refuse(None if begun is not None or holds_state(out) or not world.leads else nothing)
        if begun is not None:
            return begun, True
    return None if base is None else Begun.from_checkpoint(base), False


def _music(
    folder: Path,
    tokens: TokenizerConfig | Tokenizer | None,
    config: TrainingConfig,
    world: World,
    workers: int | None,
    cache: Path | None,
    reporter: Reporter,
) -> tuple[Corpus, TrainingConfig]:
    """The corpus, and the settings without transposing where its copies are in all keys."""
    corpus = open_corpus(
        folder,
        tokens,
        transpositions=range(config.transpose_down, config.transpose_up + 1),
        workers=workers,
        cache=cache,
        reporter=reporter if world.leads else None,
        world=world,
    )
    pieces = corpus.pieces("train")
    if corpus.vocabulary.expansions and (not is_built(folder) or len(pieces.originals) < len(pieces)):
        config = replace(config, transpose_probability=0.0)
    return corpus, config


def _new_model(vocabulary: Vocabulary, form: Mapping[str, Any]) -> ModelConfig:
    """The model of this form, a usual one where it does not say."""
    settings = {**form, "kind": form["kind"] or "parallel", "size": form["size"] or "small"}
    if settings["side_inputs"] is None:
        settings["side_inputs"] = DEFAULTS
    return model_settings(vocabulary, **settings)


def continue_held_out(corpus: Corpus, summary: TrainingSummary, out: Path) -> tuple[list[Path], list[str]]:
    """Continue the beginnings of held-out pieces: MIDI and pictures in `out/samples`, in place of former ones.

    Returns:
        the files, and remarks on what could not be done.
    """
    from melodia.midi import write_midi
    from melodia.render import plot_pianoroll
    from melodia.sampler import Sampler

    pieces = corpus.pieces("valid") if len(corpus.pieces("valid")) else corpus.pieces("train")
    rows = corpus.rows()
    chosen = [pieces[number * len(pieces) // SAMPLES] for number in range(SAMPLES)]
    names = []
    for piece in chosen:
        stem = Path(rows[piece.row].path).stem if 0 <= piece.row < len(rows) else "piece"
        name = "".join(letter if letter.isprintable() else "_" for letter in stem)
        names.append(short_name(name))
    files = _fresh_samples(out, names)
    sampler = Sampler.load(summary.checkpoint)
    paths: list[Path] = []
    notes: list[str] = []
    for number, (piece, name, path) in enumerate(zip(chosen, names, files, strict=True)):
        try:
            sampler.prime(piece.tokens, seed_bars=SAMPLE_SEED_BARS)
            continuation = sampler.generate(bars=SAMPLE_BARS, random_seed=number, **RECOMMENDED)
            paths.append(write_midi(continuation.joined_score, path, force=True))
            picture = path.with_suffix(".png")
            plot_pianoroll(
                continuation.joined, picture, split_at=continuation.joined_at, title=name, force=True
            )
            paths.append(picture)
        except MelodiaError as error:
            notes.append(f"no continuation of {name}: {error}")
    return paths, notes


def _fresh_samples(out: Path, names: Sequence[str]) -> list[Path]:
    """The MIDI files of samples that are to be made; those of a training before, and no other files, are removed."""
    folder, written = out / "samples", out / RESUME / SAMPLES_WRITTEN
    folder.mkdir(parents=True, exist_ok=True)
    try:
        former = json.loads(written.read_text("utf-8"))
    except (OSError, ValueError):  # there was none
        former = []
    for name in former if isinstance(former, list) else []:
        if name == Path(str(name)).name:
            (folder / name).unlink(missing_ok=True)
    files = [folder / f"{number}-{name}.mid" for number, name in enumerate(names, 1)]
    written.parent.mkdir(exist_ok=True)
    pictures = [file.with_suffix(".png") for file in files]
    write_whole(written, json.dumps([file.name for file in (*files, *pictures)]), own=True)
    return files
