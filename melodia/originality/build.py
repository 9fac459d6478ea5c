"""From token shards and scores to what the index is made of and searched with, and the index into a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melodia.corpus.shards import Corpus
from melodia.errors import CheckpointError, show_path
from melodia.files import write_whole
from melodia.grammar.reader import TokenReader
from melodia.model.stored import CONFIG
from melodia.notes import Notes, notes_of_events
from melodia.originality.index import FILE, LEAST_NOTES, Chance, Index, Training, unwritable
from melodia.originality.search import shared_passages
from melodia.vocabulary import Vocabulary

CHANCE_BARS = 16
CHANCE_EXCERPTS = 300


def notes_of_tokens(ids: ArrayLike, vocabulary: Vocabulary) -> tuple[Notes, NDArray[np.int64]]:
    """The notes that token ids stand for, in grid ticks, and where their bars begin and the last one ends [M + 1]."""
    reader = TokenReader(vocabulary)
    notes = notes_of_events(reader.read(np.asarray(ids).reshape(-1).tolist()))
    last = max([reader.bar_end, *reader.bar_starts[-1:]])
    return notes, np.array([*reader.bar_starts, max(last, 1)], dtype=np.int64)


def training_pieces(corpus: Corpus, split: str = "train") -> Iterator[Training]:
    """The pieces of a corpus with the names of their files, one after the other.

    Transposed copies are left out: what is compared does not depend on the key.
    """
    rows = corpus.rows()
    pieces = corpus.pieces(split)
    for number in pieces.originals.tolist():
        piece = pieces[number]
        notes, bars = notes_of_tokens(piece.tokens, corpus.vocabulary)
        name = rows[piece.row].path if 0 <= piece.row < len(rows) else f"piece {number + 1}"
        yield Training(name, notes, bars)


def build_index(corpus: Corpus, *, progress: Callable[[int, int, str], None] | None = None) -> Index:
    """The index of a corpus's training pieces; the held-out ones show what music shares by chance.

    Args:
        corpus: token shards of any scheme.
        progress: called with (pieces done, pieces in all, name of the last one).
    """
    total = len(corpus.pieces("train").originals)

    def pieces() -> Iterator[Training]:
        for number, piece in enumerate(training_pieces(corpus)):
            if progress is not None:
                progress(number + 1, total, piece.name)
            yield piece

    index = Index.build(pieces(), fingerprint=corpus.fingerprint)
    held_out = (excerpt for piece in training_pieces(corpus, "valid") for excerpt in excerpts(piece))
    return index.with_chance(measure_chance(index, held_out))


def excerpts(piece: Training, bars: int = CHANCE_BARS) -> Iterator[Training]:
    """A piece in parts of so many bars; what is left at the end, and what is nearly silent, is left out."""
    notes, starts = piece.notes, piece.bar_starts
    for first in range(0, len(starts) - bars, bars):
        inside = (notes.onset >= starts[first]) & (notes.onset < starts[first + bars])
        if int(inside.sum()) >= LEAST_NOTES:
            part = Notes(notes.onset[inside], notes.end[inside], notes.pitch[inside], notes.program[inside])
            yield Training(piece.name, part, starts[first : first + bars + 1])


def measure_chance(index: Index, held_out: Iterator[Training]) -> Chance | None:
    """How long a passage each of the first 300 excerpts shares with the index; None where there is no excerpt."""
    shared = []
    for excerpt in held_out:
        shared.append(shared_passages(index, excerpt.notes, excerpt.bar_starts).notes)
        if len(shared) == CHANCE_EXCERPTS:
            break
    if not shared:
        return None
    median, high = np.quantile(shared, [0.5, 0.95], method="higher")
    return Chance(len(shared), CHANCE_BARS, int(median), int(high))


def attach_index(checkpoint: str | os.PathLike[str], index: Index) -> Path:
    """Write an index into a checkpoint folder, and into the list of the files that belong to the checkpoint.

    Args:
        checkpoint: the folder that holds `config.json` itself (`Checkpoint.path`).
        index: of the music that the model was trained on.

    Raises:
        CheckpointError: the folder is no checkpoint, or cannot be written.
    """
    folder = Path(checkpoint)
    config = folder / CONFIG
    try:
        content = json.loads(config.read_text("utf-8"))
        listed = FILE in content["files"]
        content["files"] = sorted({*content["files"], FILE})
    except PermissionError as error:
        raise CheckpointError(
            f"cannot read {show_path(config)}: {error.strerror}; check its permissions"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"cannot add the originality index to {show_path(folder)}: {config.name} is missing or damaged ({error}); "
            "name a checkpoint that melodia wrote"
        ) from error

    def list_it() -> None:
        # A checkpoint with a file that is not on its list is not replaced by a later training, so the list comes
        # before the file's name; but what needs the space, the file's content, comes before the list.
        if not listed:
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            try:
                write_whole(config, text, own=True)
            except OSError as error:
                raise unwritable(config, error) from error

    return index.save(folder, list_it)
