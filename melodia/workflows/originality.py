"""The originality index of a checkpoint: build it from the training music, and look files up in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melodia.checks import file_path, truth_value
from melodia.corpus.shards import Corpus
from melodia.errors import CheckpointError, ConfigError, MelodiaError, show_path
from melodia.midi import read_score
from melodia.model.stored import BEST, RESUME, TOKENIZER, read_checkpoint
from melodia.originality import (
    FILE,
    Index,
    Originality,
    attach_index,
    build_index,
    notes_of_tokens,
    shared_passages,
)
from melodia.sampler.loading import open_checkpoint
from melodia.tokenizer import Tokenizer
from melodia.wording import counted
from melodia.workflows.corpora import open_corpus

if TYPE_CHECKING:
    from melodia.workflows.train import Reporter


@dataclass(frozen=True)
class IndexReport:
    """What `index_checkpoint` did.

    Attributes:
        index: as it was written.
        path: its file.
        notes: remarks.
    """

    index: Index
    path: Path
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as lines of text."""
        size = self.path.stat().st_size
        chance = self.index.chance
        notes, rows, pieces = self.index.notes, len(self.index.line_pieces), self.index.pieces
        lines = [
            f"originality index: {counted(notes, 'note')} in {counted(rows, 'line')} of {counted(pieces, 'piece')}, "
            f"{size / 1e6:.2f} MB",
        ]
        if chance is not None:
            lines.append(
                f"{chance.excerpts} held-out excerpts of {chance.bars} bars share a median of {chance.median} notes "
                f"with it, and 95 % share at most {chance.high}"
            )
        return [*lines, *self.notes, f"wrote {show_path(self.path)}"]


def index_corpus(
    corpus: Corpus, checkpoint: Path | str, base: Path | str | None = None, progress: Any = None
) -> IndexReport:
    """Write the index of a corpus into a checkpoint.

    Args:
        corpus: what the model was trained on.
        checkpoint: a checkpoint folder, or the folder of a training.
        base: a folder with the index of the model that was fine-tuned, which can copy that music as well.
        progress: called with (pieces done, pieces in all, name).
    """
    index = build_index(corpus, progress=progress)
    notes: tuple[str, ...] = ()
    if base is not None:
        before = Index.open(base)
        if before is None:
            notes = ("the model that was fine-tuned has no originality index: its music is not covered",)
        else:
            index = index.joined(before)
    return IndexReport(index, attach_index(read_checkpoint(checkpoint).path, index), notes)


def index_checkpoint(
    model: Path | str,
    folder: Path | str,
    *,
    cache: Path | str | None = None,
    workers: int | None = None,
    force: bool = False,
    progress: Reporter | None = None,
) -> IndexReport:
    """Build the originality index of a checkpoint that has none, or build it anew.

    Of a checkpoint that was fine-tuned, and lies in its training's folder, the index of the model before joins it.

    Args:
        model: a checkpoint folder, or the folder of a training.
        folder: the MIDI files that the model was trained on, or their built corpus.
        cache: where token shards are kept.
        workers: processes that read.
        force: also from what the model was not trained on, as the corpus fingerprints tell.
        progress: is told what happens.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be written.
        ConfigError: the model was not trained on this (without `force`); an index that is there stays as it was.
        CorpusError: the folder has nothing to read.
    """
    checkpoint = read_checkpoint(model)
    settings = checkpoint.training.get("settings", {})
    corpus = open_corpus(
        Path(folder),
        Tokenizer.from_dict(checkpoint.tokenizer_json, checkpoint.path / TOKENIZER),
        transpositions=range(settings.get("transpose_down", 0), settings.get("transpose_up", 0) + 1),
        workers=workers,
        cache=None if cache is None else file_path("cache", cache),
        reporter=progress,
    )
    other = bool(checkpoint.corpus_fingerprint) and checkpoint.corpus_fingerprint != corpus.fingerprint
    if other and not truth_value("force", force):
        raise ConfigError(
            f"{show_path(folder)} is not what {show_path(checkpoint.path)} was trained on (the corpus fingerprints "
            "differ: other music, or other tokens), so its index might not show what the model copies; give the "
            "training music, or `force` to build the index from this all the same"
        )
    tuned = checkpoint.path.parent / RESUME if checkpoint.path.name == BEST else None
    base = tuned if tuned is not None and (tuned / FILE).is_file() else None
    report = index_corpus(corpus, checkpoint.path, base, None if progress is None else progress.read)
    if other:
        note = "the index was not built from what the model was trained on (the corpus fingerprints differ)"
        return IndexReport(report.index, report.path, (*report.notes, note))
    return report


def check_files(
    model: Path | str | None,
    files: Sequence[Path | str],
    *,
    failed: Callable[[Path, MelodiaError], None] | None = None,
) -> list[tuple[Path, Originality]]:
    """Look MIDI files up in the music that a model was trained on.

    Args:
        model: a checkpoint folder, or the folder of a training; None: the model that comes with melodia.
        files: which.
        failed: called with each file that cannot be read and why; the others are looked up all the same.

    Raises:
        CheckpointError: the checkpoint is none, or has no index.
        MidiError, TokenizerError: a file cannot be read (without `failed`).
    """
    if not files:
        raise ConfigError("give MIDI files to check")
    checkpoint, tokenizer = open_checkpoint(model)
    index = open_index(checkpoint.path)
    found = []
    for path in files:
        try:
            ids = tokenizer.encode(read_score(path)[0]).ids
        except MelodiaError as error:
            if failed is None:
                raise
            failed(Path(path), error)
            continue
        found.append((Path(path), shared_passages(index, *notes_of_tokens(ids, tokenizer.vocabulary))))
    return found


def open_index(checkpoint: str | os.PathLike[str]) -> Index:
    """The index in a checkpoint folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    index = Index.open(checkpoint)
    if index is None:
        raise CheckpointError(
            f"{show_path(checkpoint)} has no {FILE}, so nothing can be compared with its training music; "
            "build it with `melodia originality --model DIR --index FOLDER`"
        )
    return index
