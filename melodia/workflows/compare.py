"""GRU, LSTM and their hybrids at equal size on one corpus: the table that the literature argues about."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from melodia import __version__, kernels
from melodia.checks import file_path, named_values, truth_value, whole_number
from melodia.corpus.shards import Corpus
from melodia.errors import ConfigError, TrainingError, show_path
from melodia.evaluation.ngram import KneserNey
from melodia.kernels.asked import asked_backend
from melodia.measure import Likelihood
from melodia.model.checkpoint import load_checkpoint
from melodia.model.config import KINDS, ModelConfig
from melodia.model.model import Model
from melodia.model.network import Network
from melodia.model.sizes import match_parameters, parameter_count
from melodia.model.stored import CONFIG
from melodia.originality import FILE as INDEX
from melodia.originality import Index, attach_index, build_index
from melodia.side_inputs import DEFAULTS
from melodia.training import Preparer, TrainingConfig, evaluate, join, train
from melodia.training.config import MOST_RANDOM_SEED
from melodia.training.folder import BEST, holds_state, obstacle
from melodia.training.lock import only_training
from melodia.workflows.bench import busy, token_time, token_way
from melodia.workflows.compared import TABLE, Comparison, Row, different, write_file
from melodia.workflows.corpora import check_apart, open_corpus
from melodia.workflows.train import Reporter, model_settings, told

NGRAM_ORDER = 5
MOST_TRAININGS = 100


def compare_kinds(
    folder: Path | str,
    out: Path | str,
    *,
    kinds: Sequence[str] = KINDS,
    size: str = "small",
    training: dict[str, Any] | None = None,
    without_side_inputs: bool = False,
    trainings: int = 1,
    backend: str = "auto",
    cache: Path | str | None = None,
    force: bool = False,
    progress: Reporter | None = None,
) -> Comparison:
    """Train every kind with as many parameters as the LSTM of `size`, and score all on the held-out pieces.

    A kind that is in `out` already is not trained again unless `force` says so, and one that was interrupted goes on
    where it was: the same call again finishes an interrupted comparison. A call with other kinds, or with other random
    seeds, adds their rows to the table that is there.

    Args:
        folder: MIDI files, or a built corpus.
        out: a folder for the trainings, the table as `comparison.md` and as `comparison.json`.
        kinds: of `melodia.model.config.KINDS`.
        size: the preset whose LSTM sets the number of parameters.
        training: fields of `TrainingConfig`; one epoch if no budget is among them.
        without_side_inputs: also train the first kind without side inputs.
        trainings: of each kind, with random seeds that count up from `random_seed` of `training`. From two on, the
            intervals hold their spread.
        backend: of the kernels.
        cache: where token shards are kept.
        force: train these kinds anew, and replace the table of another comparison. Files that no comparison wrote are
            refused all the same.
        progress: is told what happens.

    Raises:
        CorpusError, ConfigError, TrainingError: as the parts raise them; also under torchrun.

    Example:
        >>> table = compare_kinds("my-midi", "my-comparison", kinds=("gru", "parallel"))  # doctest: +SKIP
        >>> print(table.markdown())  # doctest: +SKIP
    """
    _check_wishes(kinds, size)
    trainings = whole_number("trainings", trainings, 1, MOST_TRAININGS)
    without_side_inputs = truth_value("without_side_inputs", without_side_inputs)
    force = truth_value("force", force)
    reporter = told(progress)
    cache = None if cache is None else file_path("cache", cache)
    given = named_values("training", training)
    settings = {name: value for name, value in given.items() if value is not None}
    if not {"minutes", "epochs", "iterations"} & set(settings):
        settings["epochs"] = 1.0
    config = TrainingConfig.from_dict(settings)
    if config.random_seed + trainings - 1 > MOST_RANDOM_SEED:
        raise ConfigError(
            f"`trainings` count up from `random_seed`, to at most {MOST_RANDOM_SEED} (received {trainings} from "
            f"{config.random_seed}); give a smaller `random_seed`"
        )
    configs = [replace(config, random_seed=config.random_seed + number) for number in range(trainings)]
    folder, out = file_path("folder", folder), file_path("out", out)
    check_apart(folder, out)
    disturbed = busy()  # asked now: reading and training make the load themselves
    with (
        asked_backend(backend),
        join(config.device) as world,
        only_training(out, world),
    ):
        if world.size > 1:
            raise TrainingError(
                f"a comparison trains in one process (received {world.size}, as torchrun starts them); call it without "
                "torchrun"
            )
        earlier = Comparison.read(out / TABLE)
        corpus = open_corpus(folder, cache=cache, reporter=reporter)
        if not len(corpus.pieces("valid")):
            raise TrainingError(
                f"{show_path(folder)}: no piece is held out, so nothing can be compared; give more pieces"
            )
        target = parameter_count(model_settings(corpus.vocabulary, "lstm", size))
        wishes = [(kind, kind, tuple(DEFAULTS)) for kind in kinds]
        if without_side_inputs:
            wishes.append((f"{kinds[0]}, no side inputs", kinds[0], ()))
        models = {
            name: match_parameters(model_settings(corpus.vocabulary, kind, size, side_inputs=sides), target)
            for name, kind, sides in wishes
        }
        terms = _terms(corpus, config, size)
        # All kinds before any of them again, so that a table is there soon.
        runs = [
            _Run(name, corpus, model, seeded, terms, out, force)
            for seeded in configs
            for name, model in models.items()
        ]
        begun = [run.begun() for run in runs]  # all of them before the first is trained
        kept = [] if earlier is None else earlier.rows_beside(terms, force=force)
        if disturbed and any(before is None or before["row"] is None for before in begun):
            reporter.say(f"note: {disturbed}")
        rows = {(row.name, row.random_seed): row for row in (*kept, _ngram_row(corpus))}
        index = functools.cache(lambda: build_index(corpus))
        for run, before in zip(runs, begun, strict=True):
            row = _row_of(run, before, index, disturbed, reporter)
            rows[row.name, row.random_seed] = row
            table = Comparison(list(rows.values()), _setting(corpus, config, size), out / TABLE, terms)
            table.write()  # so that a later call of these terms finds what an interrupted one has reached
    return table


def _terms(corpus: Corpus, config: TrainingConfig, size: str) -> dict[str, Any]:
    """All that every row hangs on but its model, its speeds included, as JSON keeps it."""
    values = {"corpus": corpus.fingerprint, "size": size, "backend": kernels.backend_report().runs}
    apart = ("save_every", "random_seed")
    values |= {name: value for name, value in asdict(config).items() if name not in apart}
    values["time per token"] = token_way()
    return dict(json.loads(json.dumps(values)))


def _setting(corpus: Corpus, config: TrainingConfig, size: str) -> dict[str, Any]:
    """What stands below the table of all rows; of the training settings those that are not the usual ones."""
    usual = TrainingConfig.from_dict(dict([config.budget])).to_dict()
    apart = {"device", "threads", "save_every", "random_seed"}
    return {
        "budget": " ".join(str(part) for part in reversed(config.budget)),
        "size": size,
        **{
            name: value
            for name, value in config.to_dict().items()
            if value != usual[name] and name not in apart
        },
        "training pieces": len(corpus.pieces("train").originals),
        "held-out pieces": len(corpus.pieces("valid")),
        "corpus": corpus.fingerprint,
        "backend": kernels.backend_report().runs,
        "time per token": token_way(),
    }


def _check_wishes(kinds: Sequence[str], size: str) -> None:
    """Refuse kinds and a size that no music could make right, before music is read.

    Raises:
        ConfigError: names the first.
    """
    if isinstance(kinds, str) or not isinstance(kinds, Sequence):
        raise ConfigError(f"`kinds` must be a list of one or more of {', '.join(KINDS)} (received {kinds!r})")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        received = ", ".join(str(kind) or "an empty name" for kind in unknown) or "none"
        raise ConfigError(f"`kinds` must be one or more of {', '.join(KINDS)} (received {received})")
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ConfigError(f"`kinds` must not repeat values (received {', '.join(twice)} twice)")
    ModelConfig.preset("lstm", size, vocab_size=1)


def _ngram_row(corpus: Corpus) -> Row:
    """The baseline that needs no training: modified Kneser-Ney over the same tokens, scored in the same way."""
    train_pieces, valid_pieces = list(corpus.pieces("train")), list(corpus.pieces("valid"))
    model = KneserNey.train(
        [piece.tokens for piece in train_pieces],
        corpus.vocabulary,
        order=NGRAM_ORDER,
        constant_velocity=[piece.constant_velocity for piece in train_pieces],
    )
    likelihood = model.nll(
        [piece.tokens for piece in valid_pieces],
        constant_velocity=[piece.constant_velocity for piece in valid_pieces],
    )
    nan = float("nan")
    return Row.of(
        f"{NGRAM_ORDER}-gram (Kneser-Ney)", likelihood, parameters=model.size, hidden_size=0, step_microseconds=nan,
        training_tokens_per_second=nan, epochs=nan,
    )  # fmt: skip


@dataclass(frozen=True)
class _Run:
    """One training of a comparison: of which kind, how and where."""

    name: str
    corpus: Corpus
    model: ModelConfig
    config: TrainingConfig
    terms: dict[str, Any]
    table: Path
    force: bool

    @property
    def out(self) -> Path:
        """The folder of the training, in that of the table."""
        return self.table / self.label.replace(", ", "-").replace(" ", "-")

    @property
    def label(self) -> str:
        """What people are told that it is."""
        random_seed = self.config.random_seed
        return self.name if random_seed == 0 else f"{self.name}, random seed {random_seed}"

    def begun(self) -> dict[str, Any] | None:
        """What an earlier call left of this run; None where it begins now.

        Raises:
            ConfigError: it is of another comparison.
            TrainingError: another training would be lost, or the record is damaged.
        """
        begun = None if self.force or not self.record.is_file() else self._read()
        if begun is not None and begun["setting"] != self.setting:
            raise ConfigError(
                f"{show_path(self.out)} holds {self.label} of another comparison (different "
                f"{different(self.setting, begun['setting'])}); choose another `out`, or retrain all kinds (`force`)"
            )
        # What an interrupted comparison left may be replaced; another training may not.
        lost = obstacle(self.out, force=self.force or begun is not None, resumable=False)
        if lost is not None:
            raise TrainingError(lost)
        return begun

    def keep(self, row: Row | None) -> None:
        """Note that the run has begun, or what came of it."""
        values = {"setting": self.setting, "row": None if row is None else row.to_dict()}
        write_file(self.record, json.dumps(values, allow_nan=False))

    @property
    def record(self) -> Path:
        """The file that says so."""
        return self.out / "row.json"

    @property
    def setting(self) -> Any:
        """All that its figures hang on, its speeds included, as JSON keeps it: the terms, whose size is the model's."""
        terms = {name: value for name, value in self.terms.items() if name != "size"}
        model = json.loads(json.dumps(self.model.to_dict()))
        return terms | {"random_seed": self.config.random_seed, "model": model}

    def _read(self) -> dict[str, Any]:
        try:
            begun = json.loads(self.record.read_text("utf-8"))
            if begun["row"] is not None:
                Row.from_dict(begun["row"])
            return {"setting": dict(begun["setting"]), "row": begun["row"]}
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{show_path(self.record)} is damaged ({error!r}); remove {show_path(self.out)}, and only "
                f"{self.label} is retrained"
            ) from error


def _row_of(
    run: _Run, begun: dict[str, Any] | None, index: Callable[[], Index], note: str, reporter: Reporter
) -> Row:
    """Train one kind, unless it is there already, and measure it; a checkpoint without index gets one."""
    corpus = run.corpus
    if begun is not None and begun["row"] is not None:
        reporter.say(f"{run.label}: already trained, in {show_path(run.out)}")
        best = run.out / BEST
        if (best / CONFIG).is_file() and not (best / INDEX).is_file():  # an earlier version wrote none
            attach_index(best, index())
        return replace(Row.from_dict(begun["row"]), random_seed=run.config.random_seed)  # nor the seed
    reporter.say(f"{run.label}: hidden size {run.model.hidden_size}")
    run.keep(None)
    goes_on = begun is not None and holds_state(run.out)
    summary = train(
        corpus, run.model, run.config, run.out, progress=reporter, resume=goes_on, force=not goes_on,
        again="the same call",
    )  # fmt: skip
    checkpoint = load_checkpoint(summary.checkpoint)
    pieces = corpus.pieces("train")
    once = int(pieces.lengths[pieces.originals].sum())  # what a pass reads: each piece in one of its keys
    row = Row.of(
        run.name,
        held_out_likelihood(corpus, checkpoint.model),
        parameters=summary.parameters,
        hidden_size=run.model.hidden_size,
        step_microseconds=token_time(Network.of(checkpoint.model), corpus.vocabulary),
        training_tokens_per_second=summary.epochs * once / max(summary.seconds, 1e-9),
        epochs=summary.epochs,
        note=note,
        threads=run.config.threads or torch.get_num_threads(),
        torch=torch.__version__,
        melodia=__version__,
        random_seed=run.config.random_seed,
    )
    attach_index(checkpoint.path, index())
    run.keep(row)
    return row


def held_out_likelihood(corpus: Corpus, model: Model) -> Likelihood:
    """What a model gives to each held-out piece of a corpus."""
    return evaluate(model, corpus.pieces("valid"), Preparer(corpus.vocabulary, model.config.side_inputs))
