"""How probable a model finds music: nats per token, note, bar and second over pieces, with confidence intervals.

Tokenizers cut music into unlike numbers of tokens, so only the figures per note, bar and second compare across them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melodia.corpus.discover import Found, find_midi_files
from melodia.corpus.manifest import Row, common_reasons
from melodia.corpus.prepare import prepare_file
from melodia.corpus.shards import CONSTANT_VELOCITY, Piece, Pieces
from melodia.errors import ConfigError, CorpusError
from melodia.measure import Likelihood, bare, count_notes_and_bars
from melodia.model import Model
from melodia.tokenizer import Tokenizer
from melodia.training.evaluate import evaluate
from melodia.training.streams import Preparer
from melodia.vocabulary import Vocabulary


class PiecesInMemory(Pieces):
    """Token ids that lie in memory, read like the pieces of a corpus.

    Args:
        tokens: ids of each piece; BOS in front and EOS behind are taken off.
        vocabulary: of the ids.
        constant_velocity: for each piece, whether all its notes have one velocity.

    Raises:
        ConfigError: an id outside the vocabulary, or not one flag a piece.
    """

    def __init__(
        self,
        tokens: Sequence[ArrayLike],
        vocabulary: Vocabulary,
        constant_velocity: Sequence[bool] | None = None,
    ) -> None:
        self._tokens = [bare(piece, vocabulary) for piece in tokens]
        flags = [False] * len(self._tokens) if constant_velocity is None else list(constant_velocity)
        if len(flags) != len(self._tokens):
            raise ConfigError(
                f"`constant_velocity` needs one flag per piece (received {len(flags)} for {len(self._tokens)} pieces)"
            )
        for ids in self._tokens:
            if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary.size):
                raise ConfigError(
                    f"ids must be between 0 and {vocabulary.size - 1} (received {ids.min()} to {ids.max()}); "
                    "encode the pieces with the model's tokenizer"
                )
        notes, bars = count_notes_and_bars(self._tokens, vocabulary)
        self.lengths = np.array([len(ids) for ids in self._tokens], dtype=np.int64)
        self.notes = notes
        self.bars = np.zeros(len(notes), dtype=np.int64) if bars is None else bars
        self.flags = np.where(flags, CONSTANT_VELOCITY, 0).astype(np.int64)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, i: Any) -> Any:
        """Piece i, or a list of pieces for a slice."""
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        ids = self._tokens[i].astype(np.uint32)
        return Piece(ids, -1, int(self.flags[i]), int(self.notes[i]), int(self.bars[i]))


def model_likelihood(
    model: Model,
    vocabulary: Vocabulary,
    tokens: Sequence[ArrayLike],
    *,
    constant_velocity: Sequence[bool] | None = None,
    seconds: ArrayLike | None = None,
    lanes: int = 32,
    window: int = 512,
) -> Likelihood:
    """Score pieces with a model, several side by side.

    Args:
        model: on any device, in any mode; scored without dropout.
        vocabulary: of the model.
        tokens: ids of each piece.
        constant_velocity: for each piece, whether all its notes have one velocity; its Velocity tokens are then
            heard, but not scored.
        seconds: how long each piece lasts, for the figure per second.
        lanes: pieces side by side.
        window: steps at a time; the result depends on neither.

    Returns:
        nats, scored tokens (the end counts), notes, and bars where the scheme has them, of each piece.

    Raises:
        ConfigError: an id outside the vocabulary, or lists of unlike length.
    """
    pieces = PiecesInMemory(tokens, vocabulary, constant_velocity)
    lasting = None if seconds is None else np.asarray(seconds, dtype=np.float64).reshape(-1)
    if lasting is not None and len(lasting) != len(pieces):
        raise ConfigError(
            f"`seconds` needs one number per piece (received {len(lasting)} for {len(pieces)} pieces)"
        )
    preparer = Preparer(vocabulary, model.config.side_inputs)
    return replace(evaluate(model, pieces, preparer, lanes=lanes, window=window), seconds=lasting)


@dataclass(frozen=True)
class EncodedSet:
    """MIDI files as tokens, ready to be scored.

    Attributes:
        rows: a manifest row per file, also for those that cannot be used.
        used: the indices of the rows that can.
        tokens: int32 ids of each used file.
        constant_velocity: for each used file, whether all its notes have one velocity.
        seconds: how long each used file lasts.
    """

    rows: list[Row]
    used: list[int]
    tokens: list[NDArray[np.int32]]
    constant_velocity: list[bool]
    seconds: list[float]


def files_to_score(folder: Path) -> list[Found]:
    """The MIDI files of a folder, but those that its own `train` and `valid` sub-folders do not hold out.

    Raises:
        CorpusError: the folder is not there or may not be read.
    """
    files = find_midi_files(folder)
    return [found for found in files if found.split in ("", "valid")] or files


def encode_files(
    source: str | Path | Iterable[str | Path],
    tokenizer: Tokenizer,
    *,
    min_notes: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> EncodedSet:
    """Read and tokenize MIDI files in this process; of files with the same notes, which would count twice, the first.

    Args:
        source: a folder (searched as `files_to_score` does), a file, or several files.
        tokenizer: of the model.
        min_notes: files with fewer notes are skipped.
        progress: called with (files done, files in all, path of the last one).

    Raises:
        CorpusError: no file, or none that can be used; the message names the commonest reasons.
    """
    if isinstance(source, (str, Path)):
        folder = Path(source)
        named = (
            [(found.relative, found.path) for found in files_to_score(folder)]
            if folder.is_dir()
            else [(folder.name, folder)]
        )
    else:
        named = [(str(path), Path(path)) for path in source]
    encoded = EncodedSet([], [], [], [], [])
    first: dict[str, Row] = {}
    is_velocity = np.array([kind == "Velocity" for kind in tokenizer.vocabulary.types])
    for index, (name, path) in enumerate(named):
        fields, ids = prepare_file(path, tokenizer, min_notes)
        row = Row(path=name, **fields)
        encoded.rows.append(row)
        if row.is_used and first.setdefault(row.content, row) is not row:
            row.leave_to(first[row.content])
        if row.is_used:
            encoded.used.append(index)
            encoded.tokens.append(ids)
            base = tokenizer.vocabulary.expand(ids)
            encoded.constant_velocity.append(len(np.unique(base[is_velocity[base]])) <= 1)
            encoded.seconds.append(row.seconds)
        if progress is not None:
            progress(index + 1, len(named), name)
    if not encoded.used:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in common_reasons(encoded.rows))
        what = f"none of the {len(named)} files can be used ({reasons})" if named else "no MIDI files found"
        raise CorpusError(f"{what}; `melodia inspect FILE` says more about a file")
    return encoded
