"""Token shards: how a corpus lies on disk, and how it is read without loading it.

A corpus folder holds

| file                | content                                                                      |
|---------------------|------------------------------------------------------------------------------|
| `corpus.json`       | format version, token width, files and totals, fingerprint; written last     |
| `vocabulary.json`   | what the ids mean                                                            |
| `tokenizer.json`    | the tokenizer, carried along for the checkpoint; never read here             |
| `train-00000.bin` … | the tokens of one piece after the other, little endian uint16 (or uint32)    |
| `train.index.npy`   | int64 [P, 7]: a row per piece, the columns of `COLUMNS`                      |

and the same two for `valid`. A piece lies in one file, without BOS and EOS. Every access reads the bytes of
its piece only, so memory stays flat however large the corpus is.
Letters: P = number of pieces, N = tokens of a piece, V = size of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from melodia.corpus.manifest import MANIFEST, Row, parse_manifest
from melodia.errors import CorpusError, TokenizerError, show_path
from melodia.files import sync_folder
from melodia.vocabulary import Vocabulary

FORMAT_VERSION = 1
SPLITS = ("train", "valid")
TOTALS, VOCABULARY, TOKENIZER = "corpus.json", "vocabulary.json", "tokenizer.json"
COLUMNS = ("shard", "offset", "length", "row", "flags", "notes", "bars")
SHARD_TOKENS = 1 << 25
CONSTANT_VELOCITY = 1
"""Flag: every note of the piece has one velocity, so the piece teaches nothing about velocities."""

_SHARD, _OFFSET, _LENGTH, _ROW, _FLAGS, _NOTES, _BARS = range(len(COLUMNS))


@dataclass(frozen=True)
class Piece:
    """One piece of music.

    Attributes:
        tokens: uint16 or uint32 [N], read-only, without BOS and EOS.
        row: the piece's row in the manifest, -1 if it has none.
        flags: bits, see `CONSTANT_VELOCITY`.
        notes: how many notes the tokens hold.
        bars: how many bars; 0 where the tokens do not say.
    """

    tokens: NDArray[np.unsignedinteger[Any]]
    row: int
    flags: int
    notes: int
    bars: int

    @property
    def constant_velocity(self) -> bool:
        """Whether every note has the same velocity."""
        return bool(self.flags & CONSTANT_VELOCITY)


class Pieces(Sequence[Piece]):
    """The pieces of one split: `pieces[i]` reads one piece; the columns are there at once for all.

    Attributes:
        lengths: int64 [P], tokens of each piece.
        notes: int64 [P].
        bars: int64 [P].
        flags: int64 [P].
    """

    def __init__(self, files: list[Path], index: NDArray[np.int64], dtype: np.dtype[Any]) -> None:
        self._files, self._index, self._dtype = files, index, dtype
        # Open from now on: a corpus that is built anew in this folder replaces the files; these stay what they were.
        self._shards = [os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0)) for file in files]
        weakref.finalize(self, _close, self._shards)
        self.lengths = index[:, _LENGTH]
        self.notes = index[:, _NOTES]
        self.bars = index[:, _BARS]
        self.flags = index[:, _FLAGS]

    @property
    def tokens(self) -> int:
        """Tokens of all pieces together."""
        return int(self.lengths.sum())

    @property
    def originals(self) -> NDArray[np.int64]:
        """The numbers of the pieces without the transposed copies, which stand behind theirs [at most P]."""
        rows = self._index[:, _ROW]
        first = np.ones(len(rows), bool)
        first[1:] = (rows[1:] != rows[:-1]) | (rows[1:] < 0)
        return np.flatnonzero(first)

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, i: int) -> Piece: ...
    @overload
    def __getitem__(self, i: slice) -> list[Piece]: ...
    def __getitem__(self, i: int | slice) -> Piece | list[Piece]:
        """Read piece i; raises CorpusError if its file was cut short."""
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"piece {i} of {len(self)}")
        record = self._index[i].tolist()
        length = record[_LENGTH]
        tokens: NDArray[np.unsignedinteger[Any]]
        if length == 0:
            tokens = np.empty(0, self._dtype)
        else:
            size, shard = self._dtype.itemsize, record[_SHARD]
            data = _read_at(self._shards[shard], length * size, record[_OFFSET] * size)
            if len(data) < length * size:
                raise CorpusError(
                    f"cannot read piece {i} from {self._files[shard]} (cut short); rebuild the corpus"
                )
            tokens = np.frombuffer(data, self._dtype)
        return Piece(tokens, record[_ROW], record[_FLAGS], record[_NOTES], record[_BARS])

    def __iter__(self) -> Iterator[Piece]:
        return (self[i] for i in range(len(self)))


class Corpus:
    """An opened corpus folder; see `Corpus.open`.

    Attributes:
        folder: where it lies.
        vocabulary: what its ids mean.
        fingerprint: a hash of the vocabulary and of every token of every split, 16 hexadecimal digits.
        summary: the content of `corpus.json`.
        tokenizer_json: the tokenizer's file as text, "{}" if the corpus carries none.
    """

    def __init__(
        self,
        folder: Path,
        vocabulary: Vocabulary,
        summary: dict[str, Any],
        splits: dict[str, Pieces],
        tokenizer_json: str,
        manifest: str,
    ) -> None:
        self.folder, self.vocabulary, self.summary = folder, vocabulary, summary
        self.fingerprint: str = summary["fingerprint"]
        self.tokenizer_json = tokenizer_json
        self._splits, self._manifest = splits, manifest

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Open a corpus folder; reads its indices, not its tokens.

        Raises:
            CorpusError: the folder holds no finished corpus, or a damaged one.
        """
        folder = Path(folder)
        try:
            summary = json.loads((folder / TOTALS).read_text("utf-8"))
            if not isinstance(summary, dict) or summary.get("format_version") != FORMAT_VERSION:
                received = (
                    summary.get("format_version") if isinstance(summary, dict) else type(summary).__name__
                )
                raise CorpusError(
                    f"{show_path(folder)}: corpus format {received!r}, but this version reads {FORMAT_VERSION}; "
                    "rebuild the corpus"
                )
            vocabulary = Vocabulary.from_dict(json.loads((folder / VOCABULARY).read_text("utf-8")))
            if vocabulary.fingerprint != summary["vocabulary"]:
                raise CorpusError(
                    f"{show_path(folder)}: vocabulary.json is not the one the tokens were written with; rebuild the "
                    "corpus"
                )
            dtype = np.dtype({2: "<u2", 4: "<u4"}[summary["token_bytes"]])
            splits = {name: _open_split(folder, name, summary["splits"][name], dtype) for name in SPLITS}
            str(summary["fingerprint"])
            # Read now, as the shards are opened now: the folder may be built anew, or removed, in the meantime.
            tokenizer, manifest = _text(folder / TOKENIZER, "{}"), _text(folder / MANIFEST, "")
        except FileNotFoundError as error:
            raise CorpusError(
                f"{show_path(folder)} holds no finished corpus ({show_path(error.filename)} is missing); "
                "build one from a folder of MIDI files"
            ) from error
        except (OSError, KeyError, TypeError, ValueError, EOFError, TokenizerError) as error:
            raise CorpusError(f"{show_path(folder)}: damaged corpus ({error!r}); rebuild it") from error
        return cls(folder, vocabulary, summary, splits, tokenizer, manifest)

    def pieces(self, split: str) -> Pieces:
        """The pieces of "train" or "valid"."""
        if split not in self._splits:
            raise CorpusError(f"a corpus has the splits {', '.join(SPLITS)} (received {split!r})")
        return self._splits[split]

    def rows(self) -> list[Row]:
        """The manifest, whose rows `Piece.row` counts; nothing if the corpus carries none.

        Raises:
            CorpusError: it is damaged.
        """
        return parse_manifest(self._manifest, self.folder / MANIFEST) if self._manifest else []

    def verify(self) -> None:
        """Read every token and compare with the fingerprint; raises CorpusError where they differ."""
        digest = _Digest(self.vocabulary)
        for split in SPLITS:
            for i, piece in enumerate(self.pieces(split)):
                if piece.tokens.size and int(piece.tokens.max()) >= self.vocabulary.size:
                    raise CorpusError(
                        f"{show_path(self.folder)}: piece {i} of {split} holds ids outside the vocabulary"
                    )
                digest.add(split, np.asarray(piece.tokens, "<u4"), piece.flags)
        if digest.result() != self.fingerprint:
            raise CorpusError(
                f"{show_path(self.folder)}: the tokens differ from those that were written; rebuild the corpus"
            )


def _text(path: Path, otherwise: str) -> str:
    """What stands in a file that a corpus may have or not."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return otherwise


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


_SEEKING = threading.Lock()


def _read_at(file: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, size, offset)
    with _SEEKING:  # Windows
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, size)


def _open_split(folder: Path, name: str, summary: dict[str, Any], dtype: np.dtype[Any]) -> Pieces:
    """Open one split's index and check it against the sizes of its files."""
    files = [folder / file for file in summary["files"]]
    sizes = np.array([file.stat().st_size // dtype.itemsize for file in files], dtype=np.int64)
    if summary["pieces"] == 0:
        return Pieces(files, np.zeros((0, len(COLUMNS)), np.int64), dtype)
    index = np.load(folder / f"{name}.index.npy", mmap_mode="r", allow_pickle=False)
    if index.dtype != np.int64 or index.shape != (summary["pieces"], len(COLUMNS)):
        raise CorpusError(
            f"{show_path(folder)}: {name}.index.npy does not belong to corpus.json; rebuild the corpus"
        )
    shard = index[:, _SHARD]
    inside = (shard >= 0) & (shard < len(files)) & (index[:, _OFFSET] >= 0) & (index[:, _LENGTH] >= 0)
    if not inside.all() or (index[:, _OFFSET] + index[:, _LENGTH] > sizes[shard]).any():
        raise CorpusError(
            f"{show_path(folder)}: {name} has pieces outside its files (cut short?); rebuild the corpus"
        )
    return Pieces(files, index, dtype)


class _Digest:
    """The fingerprint: a hash per split over all pieces in order, joined with the vocabulary's."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary.fingerprint
        self._splits = {split: hashlib.sha256() for split in SPLITS}

    def add(self, split: str, tokens: NDArray[np.uint32], flags: int) -> None:
        self._splits[split].update(np.array([tokens.size, flags], "<i8").tobytes())
        self._splits[split].update(tokens.tobytes())

    def result(self) -> str:
        whole = "/".join([self._vocabulary, *(self._splits[split].hexdigest() for split in SPLITS)])
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


class _SplitWriter:
    """The files of one split while they grow."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.folder, self.name, self.dtype, self.limit = folder, name, dtype, shard_tokens
        self.files: list[str] = []
        self.rows = array("q")
        self.used = 0
        self.out: BinaryIO | None = None

    def add(self, tokens: NDArray[np.uint32], record: tuple[int, ...]) -> None:
        if self.out is None or (self.used and self.used + tokens.size > self.limit):
            self.close()
            self.files.append(f"{self.name}-{len(self.files):05d}.bin")
            self.out, self.used = (self.folder / f"{self.files[-1]}.part").open("wb"), 0
        self.out.write(tokens.astype(self.dtype).tobytes())
        self.rows.extend((len(self.files) - 1, self.used, tokens.size, *record))
        self.used += tokens.size

    def close(self) -> None:
        if self.out is not None:
            self.out.flush()
            os.fsync(self.out.fileno())
            self.out.close()
            self.out = None


class ShardWriter:
    """Writes a corpus folder, piece by piece; nobody sees it before `finish`.

    Args:
        folder: the corpus folder; made if it is not there. A corpus that lies there is replaced by `finish`
            only.
        vocabulary: what the ids mean; V decides the token width.
        tokenizer_json: the tokenizer's file as text, copied along.
        shard_tokens: tokens a file may hold; a longer piece has a file of its own.

    Raises:
        CorpusError: the folder cannot be written.

    Example::

        with ShardWriter(folder, vocabulary, tokenizer_json=text) as writer:
            writer.add("train", ids, row=0)
            writer.add("valid", other, row=1, flags=CONSTANT_VELOCITY)
        # left without an error: finished; left with one: nothing has changed
    """

    def __init__(
        self,
        folder: str | Path,
        vocabulary: Vocabulary,
        *,
        tokenizer_json: str = "{}",
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self.folder, self.vocabulary, self.tokenizer_json = Path(folder), vocabulary, tokenizer_json
        dtype = np.dtype("<u2" if vocabulary.size <= 1 << 16 else "<u4")
        self._digest = _Digest(vocabulary)
        self._attached: dict[str, bytes] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob("*.part"):
                stale.unlink()
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        self._splits = {name: _SplitWriter(self.folder, name, dtype, shard_tokens) for name in SPLITS}
        self._dtype = dtype
        bar = vocabulary.index.get("Bar_None", -1)
        self._bars_of_token = np.zeros(vocabulary.size, np.int64)
        if bar >= 0:
            self._bars_of_token[bar] = 1
            for token, parts in vocabulary.expansions.items():
                self._bars_of_token[token] = parts.count(bar)

    def add(
        self, split: str, tokens: ArrayLike, *, row: int = -1, flags: int = 0, bars: int | None = None
    ) -> None:
        """Append a piece.

        Args:
            split: "train" or "valid".
            tokens: ids [N] without BOS and EOS.
            row: the piece's row in the manifest.
            flags: bits, see `CONSTANT_VELOCITY`.
            bars: how many bars; counted from the Bar tokens if not given.

        Raises:
            CorpusError: an id is outside the vocabulary or special, or the disk is full.
        """
        if split not in self._splits:
            raise CorpusError(f"a corpus has the splits {', '.join(SPLITS)} (received {split!r})")
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise CorpusError(
                f"a piece must be a row of integer ids (received shape {ids.shape}, {ids.dtype})"
            )
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary.size:
            raise CorpusError(
                f"ids must be between 0 and {self.vocabulary.size - 1} (received {ids.min()} to {ids.max()})"
            )
        ids = ids.astype("<u4")
        special = np.isin(ids, [self.vocabulary.pad, self.vocabulary.bos, self.vocabulary.eos])
        if special.any():
            raise CorpusError("a piece in a corpus must not contain PAD, BOS or EOS; encode it without them")
        notes = int(self.vocabulary.notes_of_token[ids].sum())
        counted = int(self._bars_of_token[ids].sum()) if bars is None else bars
        try:
            self._splits[split].add(ids, (row, flags, notes, counted))
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        self._digest.add(split, ids, flags)

    def attach(self, name: str, content: bytes) -> None:
        """Have a file of that name, such as the manifest, change together with the corpus."""
        self._attached[name] = content

    def finish(self) -> str:
        """Put the new corpus in place of what was there and return its fingerprint.

        A crash or a power cut in the middle leaves either the old corpus, the new one, or a folder that
        `Corpus.open` refuses; never a mixture.
        """
        summary: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._digest.result(),
            "vocabulary": self.vocabulary.fingerprint,
            "vocabulary_size": self.vocabulary.size,
            "token_bytes": self._dtype.itemsize,
            "columns": COLUMNS,
            "splits": {},
        }
        try:
            small = {VOCABULARY: json.dumps(self.vocabulary.to_dict()).encode()}
            small |= {TOKENIZER: self.tokenizer_json.encode(), **self._attached}
            for name, content in small.items():
                _write(self.folder / f"{name}.part", content)
            parts = [*small]
            for name, split in self._splits.items():
                split.close()
                index = np.array(split.rows, dtype=np.int64).reshape(-1, len(COLUMNS))
                path = self.folder / f"{name}.index.npy.part"
                with path.open("wb") as out:
                    np.save(out, index, allow_pickle=False)
                    out.flush()
                    os.fsync(out.fileno())
                parts += [*split.files, f"{name}.index.npy"]
                columns = {"tokens": _LENGTH, "notes": _NOTES, "bars": _BARS}
                totals = {key: int(index[:, column].sum()) for key, column in columns.items()}
                summary["splits"][name] = {"pieces": len(index), **totals, "files": split.files}
            _write(self.folder / f"{TOTALS}.part", json.dumps(summary, indent=1).encode())
            # On the disk, too, no totals may stand beside files that are not theirs.
            (self.folder / TOTALS).unlink(missing_ok=True)
            sync_folder(self.folder)
            for name in parts:
                (self.folder / f"{name}.part").replace(self.folder / name)
            for old in self.folder.glob("*-[0-9][0-9][0-9][0-9][0-9].bin"):
                if old.name not in parts:
                    old.unlink()
            sync_folder(self.folder)
            (self.folder / f"{TOTALS}.part").replace(self.folder / TOTALS)
            sync_folder(self.folder)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        return str(summary["fingerprint"])

    def abandon(self) -> None:
        """Remove what was written since the writer was made."""
        for split in self._splits.values():
            if split.out is not None:
                split.out.close()
                split.out = None
        for part in self.folder.glob("*.part"):
            part.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self.finish()
            except CorpusError:
                self.abandon()
                raise
        else:
            self.abandon()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _cannot_write(folder: Path, error: OSError) -> CorpusError:
    reason = error.strerror or repr(error)
    return CorpusError(
        f"cannot write the corpus to {show_path(folder)}: {reason}; free some space or choose another folder (`cache`)"
    )
