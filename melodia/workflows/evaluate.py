"""Measure a model on a folder of MIDI: likelihood, and what it generates against what is really there."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import melodia
from melodia.checks import file_path, whole_number
from melodia.corpus.discover import find_midi_files
from melodia.decode import SamplingConfig
from melodia.errors import ConfigError, CorpusError, need_torch, show_path
from melodia.evaluation.collapse import collapse_report
from melodia.evaluation.comparison import compare_sets
from melodia.evaluation.continuations import Settings, continue_pieces, key_agreement
from melodia.evaluation.report import Evaluation, Generated
from melodia.files import asked_file, check_target
from melodia.originality import notes_of_tokens
from melodia.sampler import Request, Sampler
from melodia.wording import counted

if TYPE_CHECKING:
    from melodia.evaluation.likelihood import EncodedSet
    from melodia.workflows.train import Reporter


def evaluate_folder(
    folder: Path | str,
    model: Path | str | None = None,
    *,
    generate: int = 0,
    seed_bars: int = Settings.seed_bars,
    bars: int = Settings.bars,
    sampling: SamplingConfig | None = None,
    pitch_bias: float = 0.0,
    branches: int = 1,
    recall: float = 0.0,
    random_seed: int = 0,
    device: str = "auto",
    backend: str = "auto",
    progress: Reporter | None = None,
) -> Evaluation:
    """Score the pieces of a folder, and on request continue some of them.

    Args:
        folder: MIDI files (searched with sub-folders) that the model was not trained on, or one file. Of a folder with
            sub-folders `train` and `valid`, the held-out ones are scored.
        model: a checkpoint folder; None: the model that comes with melodia.
        generate: how many pieces to continue; 0 for none, else at least 2.
        seed_bars: bars of each seed.
        bars: bars to generate, and to compare with.
        sampling: temperature and filters of the generation.
        pitch_bias, branches, recall: of the generation; see `melodia.sampler.Request`.
        random_seed: of the choice of pieces and of the music.
        device, backend: where and with what to compute.
        progress: is told what happens.

    Raises:
        CorpusError: no file can be used, or too few are long enough to be continued.
        CheckpointError, ConfigError, BackendError: as the parts raise them.

    Example:
        >>> evaluation = evaluate_folder("midi_samples/sakura.mid", device="cpu")
        >>> 0 < evaluation.likelihood.nats_per_note < 8
        True
        >>> evaluation = evaluate_folder("held-out", "my-model", generate=20)  # doctest: +SKIP
        >>> evaluation.likelihood.interval("note").value  # doctest: +SKIP
    """
    need_torch("evaluate")
    from melodia.evaluation.likelihood import encode_files, model_likelihood
    from melodia.kernels.asked import asked_backend
    from melodia.workflows.train import told

    told(progress)  # or it says why not
    if whole_number("generate", generate, 0) == 1:
        raise ConfigError(f"`generate` is 0, or at least 2 pieces to compare (received {generate})")
    settings = Settings(
        seed_bars=seed_bars,
        bars=bars,
        sampling=sampling or SamplingConfig(),
        pitch_bias=pitch_bias,
        branches=branches,
        recall=recall,
        random_seed=random_seed,
    )
    wishes: dict[str, Any] = {"pitch_bias": pitch_bias, "branches": branches, "recall": recall}
    Request(bars=bars, sampling=settings.sampling, **wishes)  # the same
    notes: list[str] = []

    def remark(text: str | None) -> None:
        if text is not None:
            notes.append(text)
            if progress is not None:
                progress.say(f"note: {text}")

    root = _music(folder)
    remark(_split(root))
    read = None if progress is None else progress.read
    sampler = Sampler.load(model, device=device, backend=backend)
    pieces = encode_files(folder, sampler.tokenizer, progress=read)
    remark(_training_music(sampler, pieces))
    if generate and sampler.originality_index is None:
        remark(
            "the checkpoint has no originality index, so nothing is said of what the generated bars share with the "
            "training music; build it with `melodia originality --model DIR --index FOLDER`"
        )
    with asked_backend(backend):
        likelihood = model_likelihood(
            sampler.model,
            sampler.vocabulary,
            pieces.tokens,
            constant_velocity=pieces.constant_velocity,
            seconds=pieces.seconds,
        )
    rows = [pieces.rows[i] for i in pieces.used]
    generated = None
    if generate:
        files = [(show_path(row.path), root / row.path if root.is_dir() else root) for row in rows]
        generated = _generate(sampler, files, generate, settings, read)
    used = set(pieces.used)
    return Evaluation(
        model=_facts(sampler, model),
        folder=show_path(folder),
        likelihood=likelihood,
        names=tuple(show_path(row.path) for row in rows),
        skipped=tuple(
            (show_path(row.path), row.reason) for i, row in enumerate(pieces.rows) if i not in used
        ),
        generated=generated,
        versions={
            "melodia": melodia.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        notes=tuple(notes),
    )


def _music(folder: Path | str) -> Path:
    """The folder of MIDI files, or the file.

    Raises:
        CorpusError: it is not there, or empty.
    """
    root = file_path("folder", folder)
    if not os.path.lexists(root):
        raise CorpusError(
            f"{show_path(folder)}: no such file or folder; give MIDI files to score the model on"
        )
    if root.is_dir() and not find_midi_files(root):
        raise CorpusError(f"{show_path(folder)}: no MIDI files in this folder; give one that has some")
    return root


def _split(root: Path) -> str | None:
    """What is left out of a folder that says itself what is held out."""
    from melodia.evaluation.likelihood import files_to_score

    if not root.is_dir():
        return None
    scored, everything = len(files_to_score(root)), len(find_midi_files(root))
    if scored == everything:
        return None
    files = counted(everything, "file")
    return (
        f"{show_path(root)} has a train and a valid folder: what is held out is scored, {scored} of {files}"
    )


def _training_music(sampler: Sampler, pieces: EncodedSet) -> str | None:
    """Whether the model was trained on these pieces, as far as its originality index knows."""
    index = sampler.originality_index
    if index is None:
        return None
    known = index.holds(notes_of_tokens(ids, sampler.vocabulary)[0] for ids in pieces.tokens)
    if not any(known):
        return None
    first = show_path(pieces.rows[pieces.used[known.index(True)]].path)
    return (
        f"the model was trained on {sum(known)} of the {counted(len(known), 'piece')} ({first}, for example), so the "
        "figures flatter it; give music that it has not seen"
    )


def _generate(
    sampler: Sampler,
    files: list[tuple[str, Path]],
    count: int,
    settings: Settings,
    read: Any,
) -> Generated:
    pairs, failed = continue_pieces(sampler, files, count, settings, progress=read)
    if len(pairs) < 2:
        raise CorpusError(
            f"a comparison needs at least 2 pieces of {settings.seed_bars + settings.bars} bars or more "
            f"(found {len(pairs)}{'; ' + failed[0] if failed else ''}); give longer pieces, or fewer bars"
        )
    seeds, real, made = ([getattr(pair, name) for pair in pairs] for name in ("seed", "real", "generated"))
    return Generated(
        pairs=tuple(pairs),
        comparison=compare_sets(real, made, paired=True),
        yardstick=compare_sets(real, seeds, paired=True),
        keys=(key_agreement(seeds, real), key_agreement(seeds, made)),
        collapse=(tuple(map(collapse_report, real)), tuple(map(collapse_report, made))),
        settings=settings.to_dict(),
        failed=tuple(failed),
    )


def _facts(sampler: Sampler, model: Path | str | None) -> dict[str, Any]:
    """What the report says of the model."""
    config = sampler.config
    facts: dict[str, Any] = {
        "path": show_path(model) if model is not None else "the model that comes with melodia",
        "kind": config.kind,
        "parameters": sum(parameter.numel() for parameter in sampler.model.parameters()),
        "vocabulary": sampler.vocabulary.size,
        "tokenizer": sampler.tokenizer.config.scheme,
    }
    if sampler.checkpoint is not None:
        facts["corpus_fingerprint"] = sampler.checkpoint.corpus_fingerprint
    return facts


def write_json(evaluation: Evaluation, path: Path | str, *, force: bool = False) -> Path:
    """Write the evaluation as JSON.

    Raises:
        MelodiaError: the file cannot be written, or is there already.
    """
    target = check_target(path, ".json", force)
    text = json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with asked_file(target, force=force) as part:
        part.write_text(text, encoding="utf-8")
    return target
