"""The tokenizer: scores to token ids and back."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melodia.errors import ConfigError, TokenizerError
from melodia.grammar.reader import NoteEvent, TokenReader
from melodia.tokenizer.config import TokenizerConfig
from melodia.tokenizer.grid import to_grid
from melodia.tokenizer.scores import build_score
from melodia.tokenizer.vocabularies import build_vocabulary
from melodia.vocabulary import Vocabulary

if TYPE_CHECKING:
    from symusic.core import ScoreTick

    from melodia.midi.report import Finding
    from melodia.tokenizer.schemes import Miditok

FORMAT_VERSION = 1


@dataclass
class Encoding:
    """Token ids of a score, int32 [N], and what they do not say of it."""

    ids: NDArray[np.int32]
    findings: list[Finding] = field(default_factory=list)


class Tokenizer:
    """Scores to token ids and back.

    Args:
        config: what to write; see `TokenizerConfig`.
        vocabulary: of a loaded tokenizer; None makes the configuration's own.

    >>> from melodia.tokenizer import Tokenizer, TokenizerConfig
    >>> tokenizer = Tokenizer(TokenizerConfig(scheme="REMI"))
    >>> tokenizer.vocabulary.tokens[:4]
    ('PAD_None', 'BOS_None', 'EOS_None', 'Bar_None')
    """

    def __init__(self, config: TokenizerConfig | None = None, vocabulary: Vocabulary | None = None) -> None:
        self.config = config if config is not None else TokenizerConfig()
        self.base = build_vocabulary(self.config)
        self.vocabulary = vocabulary if vocabulary is not None else self.base
        if self.vocabulary.tokens[: self.base.size] != self.base.tokens:
            raise TokenizerError(
                "the vocabulary does not fit the tokenizer's configuration; rebuild the corpus or checkpoint"
            )
        self._miditok: Miditok | None = None

    def encode(self, score: ScoreTick, *, bos: bool = False, eos: bool = False) -> Encoding:
        """The token ids of a score, and findings for all that they do not say.

        Args:
            score: a symusic score in ticks, as `melodia.midi.read_score` gives it.
            bos: put BOS in front.
            eos: put EOS behind.

        Raises:
            TokenizerError: the score has no notes that tokens can be made of.
        """
        if self._miditok is None:
            from melodia.tokenizer.schemes import Miditok

            self._miditok = Miditok(self.config, self.base)
        grid = to_grid(score, self.config)
        ids = self._miditok.encode(grid)
        front = [self.vocabulary.bos] if bos else []
        behind = [self.vocabulary.eos] if eos else []
        if front or behind:
            ids = np.concatenate([front, ids, behind]).astype(np.int32)
        return Encoding(ids, grid.findings)

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> ScoreTick:
        """The score that token ids stand for, in grid ticks, one track per program.

        Ids that the grammar allows are read without loss; of others what makes sense is kept, and notes of
        one pitch that overlap are left as they stand.

        Raises:
            TokenizerError: an id is not in the vocabulary.
        """
        numbers = np.asarray(ids, dtype=np.int64).reshape(-1)
        if len(numbers) and not (int(numbers.min()) >= 0 and int(numbers.max()) < self.vocabulary.size):
            raise TokenizerError(
                f"token ids must be within 0 and {self.vocabulary.size - 1} "
                f"(received {int(numbers.min())} to {int(numbers.max())}); use the tokenizer that made them"
            )
        reader = TokenReader(self.vocabulary)
        return score_of(reader.read(numbers.tolist()), reader)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "vocabulary": self.vocabulary.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Tokenizer:
        """The inverse of `to_dict`; raises TokenizerError on data of another form or a newer version."""
        if not isinstance(data, dict) or "format_version" not in data:
            raise TokenizerError(
                "not a tokenizer file: it has no format_version; rebuild the corpus or the checkpoint"
            )
        if data["format_version"] != FORMAT_VERSION:
            raise TokenizerError(
                f"this melodia reads tokenizer format {FORMAT_VERSION} "
                f"(received {data['format_version']!r}); update melodia or rebuild the tokenizer"
            )
        try:
            config = TokenizerConfig.from_dict(data["config"])
            return cls(config, Vocabulary.from_dict(data["vocabulary"]))
        except (ConfigError, KeyError, TypeError) as error:
            raise TokenizerError(
                f"not a tokenizer ({error}); rebuild the corpus or the checkpoint"
            ) from error

    def save(self, path: str | Path) -> Path:
        """Write the tokenizer as JSON (temporary name, then renamed); returns the path."""
        target = Path(path)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self.to_dict(), file, separators=(",", ":"))
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return target

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer that `save` wrote; raises TokenizerError if it cannot be read."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TokenizerError(f"cannot read the tokenizer {path}: {error}") from error
        return cls.from_dict(data)


def score_of(notes: Iterable[NoteEvent], reader: TokenReader) -> ScoreTick:
    """A symusic score of notes and of the tempi and metres that a reader has met."""
    rows = np.array(list(notes), dtype=np.int64).reshape(-1, len(NoteEvent._fields))
    columns = {name: rows[:, i] for i, name in enumerate(NoteEvent._fields)}
    return build_score(
        reader.ticks_per_quarter, columns, reader.tempi or [(0, 120.0)], reader.metres or [(0, 4, 4)]
    )
