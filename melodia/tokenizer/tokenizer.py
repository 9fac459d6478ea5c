"""The tokenizer: scores to token ids and back."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melodia.checks import file_path
from melodia.errors import ConfigError, TokenizerError, show_path
from melodia.files import asked_file, asked_target
from melodia.grammar.reader import NoteEvent, TokenReader
from melodia.tokenizer.bpe import Pair, apply_pairs, learn_pairs, with_pairs
from melodia.tokenizer.config import TokenizerConfig
from melodia.tokenizer.encoding import Encoder
from melodia.tokenizer.grid import to_grid
from melodia.tokenizer.scores import build_score, columns_of
from melodia.tokenizer.vocabularies import build_vocabulary
from melodia.vocabulary import Vocabulary

if TYPE_CHECKING:
    from symusic.core import ScoreTick

    from melodia.midi.report import Finding

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
        pairs: byte pairs that were learned (see `train_bpe`).

    Attributes:
        base: the vocabulary without BPE tokens.
        vocabulary: the vocabulary of the ids that `encode` gives.

    >>> from melodia.tokenizer import Tokenizer, TokenizerConfig
    >>> tokenizer = Tokenizer(TokenizerConfig(scheme="REMI"))
    >>> tokenizer.vocabulary.tokens[:4]
    ('PAD_None', 'BOS_None', 'EOS_None', 'Bar_None')
    """

    def __init__(self, config: TokenizerConfig | None = None, pairs: Sequence[Pair] = ()) -> None:
        self.config = config if config is not None else TokenizerConfig()
        if not isinstance(self.config, TokenizerConfig):
            raise ConfigError(f"`config` must be a melodia.TokenizerConfig (received {config!r})")
        self.pairs: tuple[Pair, ...] = tuple((int(left), int(right)) for left, right in pairs)
        self.base = build_vocabulary(self.config)
        self.vocabulary: Vocabulary = with_pairs(self.base, self.pairs) if self.pairs else self.base
        self._encoder = Encoder(self.config, self.base)

    def encode(self, score: ScoreTick, *, bos: bool = False, eos: bool = False) -> Encoding:
        """The token ids of a score, and findings for all that they do not say.

        Args:
            score: a symusic score in ticks, as `melodia.midi.read_score` gives it.
            bos: put BOS in front.
            eos: put EOS behind.

        Raises:
            TokenizerError: the score has no notes that tokens can be made of.
            ConfigError: it is no score in ticks.

        >>> from melodia.midi import read_score
        >>> score, _ = read_score("midi_samples/petzold_minuet_g_major.mid")
        >>> tokenizer = Tokenizer()
        >>> [tokenizer.vocabulary.tokens[token] for token in tokenizer.encode(score, bos=True).ids[:3]]
        ['BOS_None', 'Bar_None', 'TimeSig_3/4']
        """
        from symusic.core import ScoreTick

        if not isinstance(score, ScoreTick):
            raise ConfigError(
                f"`score` must be a symusic score in ticks (received {type(score).__name__}); `melodia.read_score` "
                'makes one of a file or a PrettyMIDI, `to("tick")` of another symusic score'
            )
        grid = to_grid(score, self.config)
        ids = self.apply_bpe(self._encoder.encode(grid))
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
            ConfigError: these are no ids.

        >>> from melodia.midi import read_score
        >>> score, _ = read_score("midi_samples/petzold_minuet_g_major.mid")
        >>> tokenizer = Tokenizer()
        >>> tokenizer.decode(tokenizer.encode(score).ids).note_num() == score.note_num()
        True
        """
        numbers = _whole_numbers(ids)
        if len(numbers) and not (int(numbers.min()) >= 0 and int(numbers.max()) < self.vocabulary.size):
            raise TokenizerError(
                f"token ids must be between 0 and {self.vocabulary.size - 1} "
                f"(received {int(numbers.min())} to {int(numbers.max())}); use the tokenizer that made them"
            )
        reader = TokenReader(self.vocabulary)
        return score_of(reader.read(numbers.tolist()), reader)

    def train_bpe(self, sequences: Iterable[NDArray[np.integer[Any]]], size: int | None = None) -> Tokenizer:
        """A tokenizer with byte pairs learned from base token ids; this one stays as it is.

        Args:
            sequences: base token ids of pieces, as an untrained tokenizer gives them.
            size: tokens of the vocabulary; `config.bpe_vocab_size` if not given. Fewer if no pair stands twice.

        Raises:
            TokenizerError: no size, one that is not above the base vocabulary's, or no pieces.

        >>> from melodia.midi import read_score
        >>> score, _ = read_score("midi_samples/petzold_minuet_g_major.mid")
        >>> base = Tokenizer()
        >>> ids = base.encode(score).ids
        >>> trained = base.train_bpe([ids], size=base.vocabulary.size + 50)
        >>> len(trained.pairs), len(trained.encode(score).ids) < len(ids)
        (50, True)
        """
        size = self.config.bpe_vocab_size if size is None else size
        if size is None:
            raise TokenizerError(
                "byte pair encoding needs a vocabulary size; give `size` or `config.bpe_vocab_size`"
            )
        config = replace(self.config, bpe_vocab_size=size)
        return Tokenizer(config, learn_pairs(sequences, self.base, size))

    def apply_bpe(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """Base token ids with the learned pairs joined: int32 [N] -> int32 [M], M <= N."""
        if not self.pairs:
            return np.asarray(ids, dtype=np.int32)
        return apply_pairs(ids, self.pairs, self.base.size)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy: the configuration, the pairs and a hash of the vocabulary they make."""
        return {
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "pairs": [list(pair) for pair in self.pairs],
            "fingerprint": self.vocabulary.fingerprint,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], path: str | Path | None = None) -> Tokenizer:
        """The inverse of `to_dict`; raises TokenizerError on data of another form or a newer version.

        `path`, where the data comes from a file, stands in its message.
        """
        try:
            return cls._of_dict(data)
        except TokenizerError as error:
            if path is None:
                raise
            raise TokenizerError(f"{show_path(path)}: {error}") from error

    @classmethod
    def _of_dict(cls, data: dict[str, Any]) -> Tokenizer:
        if not isinstance(data, dict) or "format_version" not in data:
            raise TokenizerError(
                "not a tokenizer file: it has no format_version; rebuild the corpus or the checkpoint"
            )
        if data["format_version"] != FORMAT_VERSION:
            raise TokenizerError(
                f"this version reads tokenizer format {FORMAT_VERSION} "
                f"(received {data['format_version']!r}); update melodia or rebuild the tokenizer"
            )
        try:
            config = TokenizerConfig.from_dict(data["config"])
            tokenizer = cls(config, data["pairs"])
            fingerprint = data["fingerprint"]
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise TokenizerError(
                f"not a tokenizer ({error}); rebuild the corpus or the checkpoint"
            ) from error
        if fingerprint != tokenizer.vocabulary.fingerprint:
            raise TokenizerError(
                "this version makes another vocabulary from the tokenizer's configuration; use the version that wrote "
                "it, or rebuild the corpus or the checkpoint"
            )
        return tokenizer

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the tokenizer as JSON, whole or not at all.

        Args:
            path: where.
            force: replace a file that is there.

        Returns:
            the path.

        Raises:
            TokenizerError: the file is there already (without `force`), or cannot be written.
            ConfigError: `path` is no path, or `force` no truth value.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Tokenizer(TokenizerConfig(scheme="PerTok")).save(folder + "/tokenizer.json")
        ...     Tokenizer.load(path).config.scheme
        'PerTok'
        """
        target = asked_target(path, TokenizerError, "the tokenizer", force=force)
        with asked_file(target, TokenizerError, force=force) as part:
            part.write_text(json.dumps(self.to_dict(), separators=(",", ":")), encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer that `save` wrote; `save` has an example.

        Raises:
            TokenizerError: it cannot be read.
            ConfigError: `path` is no path.
        """
        path = file_path("path", path, TokenizerError)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TokenizerError(f"cannot read the tokenizer {show_path(path)}: {error}") from error
        return cls.from_dict(data, path)


def _whole_numbers(ids: Any) -> NDArray[np.int64]:
    """Token ids as an array [N].

    Raises:
        ConfigError: they are something else.
    """
    try:
        found = np.asarray(ids)
    except (TypeError, ValueError):  # lists of unlike lengths, tensors on a GPU
        found = np.array(None)
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise ConfigError(f"`ids` must be whole numbers [N] (received {reprlib.repr(ids)})")
    return found.astype(np.int64)


def score_of(notes: Iterable[NoteEvent], reader: TokenReader) -> ScoreTick:
    """A symusic score of notes and of the tempi and metres that a reader has met."""
    return build_score(
        reader.ticks_per_quarter,
        columns_of(notes),
        reader.tempi or [(0, 120.0)],
        reader.metres or [(0, 4, 4)],
    )
