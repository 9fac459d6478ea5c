"""A folder of MIDI files to a corpus: a verdict per file, duplicates found, split by piece, token shards.

Workers read and tokenize the files (`prepare`, `worker`); this process decides. Tokens wait in a spool file
on disk, so memory stays flat; verdicts and splits are decided in the order of the paths, so the result does
not depend on the number of workers. A finished corpus is taken as it is if neither its files nor the
tokenizer have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from melodia.corpus.discover import Found, find_midi_files
from melodia.corpus.manifest import (
    MANIFEST,
    CorpusSummary,
    Row,
    common_reasons,
    manifest_bytes,
    read_manifest,
    summarise,
    write_manifest,
)
from melodia.corpus.prepare import file_hash
from melodia.corpus.shards import CONSTANT_VELOCITY, Corpus, ShardWriter
from melodia.corpus.worker import FileLimits, map_files
from melodia.errors import ConfigError, CorpusError, show_path
from melodia.files import hold, write_whole
from melodia.machine import cores
from melodia.tokenizer import Tokenizer, TokenizerConfig
from melodia.transpose import transposition_permutation
from melodia.vocabulary import Vocabulary

BUILD_VERSION = 1
"""Raised when the same files and configuration give other tokens than before."""

BUILD = "build.json"
SPOOL = "tokens.spool"
FILES_PER_WORKER = 16

Progress = Callable[[int, int, str], None]


def build_corpus(
    folder: str | Path,
    out: str | Path,
    config: TokenizerConfig | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    workers: int | None = None,
    limits: FileLimits | None = None,
    valid_share: float = 0.1,
    min_notes: int = 4,
    transpositions: Sequence[int] = (),
    progress: Progress | None = None,
    rebuild: bool = False,
) -> CorpusSummary:
    """Turn a folder of MIDI files into a corpus that `Corpus.open` reads.

    Args:
        folder: searched with its sub-folders; where it has `train` and `valid` sub-folders they are the
            split.
        out: the corpus folder; made if it is not there.
        config: of the tokenizer; `TokenizerConfig()` if not given.
        tokenizer: to be used as it is, with the byte pairs that it has learned; `config` is then its own.
        workers: processes; as many as there are processors, fewer for few files, if not given; 0 reads in this
            process, without limits.
        limits: time and memory that one file may take; a file over them fails, the others go on.
        valid_share: share of the pieces held out, chosen by a hash of the notes, so that a piece stays on its
            side when others come and go; at least one piece of two.
        min_notes: a piece with fewer notes is skipped.
        transpositions: semitones by which each training piece is stored again; for BPE, whose tokens cannot
            be transposed while training.
        progress: called with (files done, files in all, path of the last one).
        rebuild: build anew even if nothing has changed.

    Returns:
        what was done; `.lines()` is for a person. The manifest is in `out / "manifest.tsv"`.

    Raises:
        CorpusError: no usable MIDI file, a folder that cannot be read or written.
        ConfigError: a share outside [0, 1), transpositions of Pitch beyond an octave, or a `bpe_vocab_size` that
            leaves no room for byte pairs.
    """
    started = time.monotonic()
    folder, out = Path(folder), Path(out)
    config = tokenizer.config if tokenizer is not None else config or TokenizerConfig()
    limits = limits or FileLimits()
    base = Tokenizer(replace(config, bpe_vocab_size=None)).vocabulary
    _check_wishes(valid_share, transpositions, config if tokenizer is None else None, base)
    files = find_midi_files(folder, exclude=out)
    if not files:
        raise CorpusError(
            f"{show_path(folder)} has no MIDI files (.mid, .midi, .rmi, .kar), not even in its sub-folders; give "
            "another folder"
        )
    copies = sorted(set(transpositions) - {0})
    key: dict[str, Any] = {
        "build_version": BUILD_VERSION,
        "tokenizer": config.to_dict(),
        "vocabulary": base.fingerprint,
        "pairs": None
        if tokenizer is None or config.bpe_vocab_size is None
        else tokenizer.vocabulary.fingerprint,
        "valid_share": valid_share,
        "min_notes": min_notes,
        "transpositions": copies,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(
            f"cannot create {show_path(out)} ({error.strerror}); choose another folder (`cache`)"
        ) from error
    with _lock(out):
        if not rebuild:
            cached = _cached(out, key, files)
            if cached is not None:
                return replace(cached, wall_seconds=time.monotonic() - started)
        if workers is None:
            workers = max(1, min(cores(), len(files) // FILES_PER_WORKER))
        spool = _Spool(out / SPOOL)
        try:
            rows = _read_files(files, config, spool, workers, limits, min_notes, progress)
            warnings = _decide(rows, files, valid_share)
            if not any(row.is_used for row in rows):
                write_manifest(out / "rejected.tsv", rows)
                raise _nothing_usable(folder, out, rows)
            fingerprint = _write(out, rows, spool, config, copies, tokenizer)
        finally:
            spool.remove()
        _write_build(out, key, files, fingerprint, warnings)
        (out / "rejected.tsv").unlink(missing_ok=True)
    return summarise(out, fingerprint, rows, warnings=warnings, wall_seconds=time.monotonic() - started)


def _check_wishes(
    valid_share: float, transpositions: Sequence[int], learned: TokenizerConfig | None, base: Vocabulary
) -> None:
    """Refuse what no music could make right.

    Raises:
        ConfigError: names the first.
    """
    if not 0.0 <= valid_share < 1.0:
        raise ConfigError(f"valid_share must be in [0, 1) (received {valid_share})")
    if any(not -12 <= shift <= 12 for shift in transpositions):
        raise ConfigError(
            f"transpositions must be semitones between -12 and 12 (received {list(transpositions)})"
        )
    wanted = None if learned is None else learned.bpe_vocab_size
    if learned is not None and wanted is not None and wanted <= base.size:
        raise ConfigError(
            f"a byte-pair encoding of {learned.scheme} needs a vocabulary of more than the {base.size} tokens that it "
            f"starts with (received {wanted}); give a larger `bpe`, or none"
        )


# -- reading
# ------------------------------------------------------------------------------------------------------


class _Spool:
    """Token ids of all pieces on disk until it is known where each belongs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[int, tuple[int, int]] = {}
        self._used = 0
        try:
            self._out: BinaryIO = path.open("wb")
        except OSError as error:
            raise _cannot_write(path, error) from error

    def put(self, index: int, ids: NDArray[np.int32]) -> None:
        try:
            self._out.write(ids.astype("<i4").tobytes())
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.places[index] = (self._used, len(ids))
        self._used += len(ids)

    def get(self, index: int) -> NDArray[np.int32]:
        """The ids of file `index` [N]."""
        try:
            self._out.flush()
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        place, length = self.places[index]
        return np.fromfile(self.path, dtype="<i4", count=length, offset=4 * place)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self._out.close()
        self.path.unlink(missing_ok=True)


def _read_files(
    files: Sequence[Found],
    config: TokenizerConfig,
    spool: _Spool,
    workers: int,
    limits: FileLimits,
    min_notes: int,
    progress: Progress | None,
) -> list[Row]:
    """A row for each file, tokens in the spool."""
    rows = [Row(path=found.relative) for found in files]
    wanted = []
    done = 0
    for index, found in enumerate(files):
        if found.problem:
            rows[index].verdict, rows[index].reason = "failed", found.problem
        elif Path(found.relative).name.startswith("._"):
            rows[index].verdict, rows[index].reason = "skipped", "a macOS resource fork"
        elif found.split == "outside":
            rows[index].verdict, rows[index].reason = "skipped", "outside the train and valid folders"
        else:
            wanted.append(index)
            continue
        done += 1
    arguments = {"tokenizer": replace(config, bpe_vocab_size=None).to_dict(), "min_notes": min_notes}
    paths = [files[index].path for index in wanted]
    for result in map_files(paths, arguments, workers=workers, limits=limits):
        index = wanted[result.index]
        rows[index] = Row(path=files[index].relative, **result.row)
        if rows[index].is_used:
            spool.put(index, result.tokens)
        done += 1
        if progress is not None:
            progress(done, len(files), files[index].relative)
    return rows


# -- deciding
# -----------------------------------------------------------------------------------------------------


def _decide(rows: list[Row], files: Sequence[Found], valid_share: float) -> list[str]:
    """Mark duplicates and give each piece its split; returns warnings. Changes `rows`."""
    first: dict[str, Row] = {}
    order = sorted(range(len(rows)), key=lambda index: files[index].split != "valid")
    for index in order:  # held-out pieces first: of two equal ones it is the training piece that goes
        row = rows[index]
        if not row.is_used:
            continue
        original = first.setdefault(row.content, row)
        if original is row:
            row.split = files[index].split
        else:
            row.leave_to(original)
    free = [row for row in rows if row.is_used and not row.split]
    if not any(row.split == "valid" for row in rows) or free:
        _split_by_hash(free, valid_share, has_valid=any(row.split == "valid" for row in rows))
    training = {row.tune for row in rows if row.split == "train"}
    leaked = [row.path for row in rows if row.split == "valid" and row.tune in training]
    if leaked:
        return [
            f"{len(leaked)} held-out pieces are transpositions of training pieces ({leaked[0]}, for example); "
            "the validation figures flatter the model"
        ]
    return []


def _split_by_hash(rows: list[Row], valid_share: float, *, has_valid: bool) -> None:
    """Hold out about `valid_share` of the pieces; transpositions of one piece stay together."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.tune].append(row)
    if len(groups) < 2:
        groups = defaultdict(list, {row.content: [row] for row in rows})

    def place(name: str) -> float:
        return int(hashlib.sha256(f"split {name}".encode()).hexdigest()[:12], 16) / 16.0**12

    names = sorted(groups, key=place)
    held = {name for name in names if place(name) < valid_share}
    if valid_share > 0.0 and len(names) >= 2:
        if not held and not has_valid:
            held = {names[0]}
        if len(held) == len(names):
            held.discard(names[-1])
    elif len(names) < 2:
        held = set()
    for name, group in groups.items():
        for row in group:
            row.split = "valid" if name in held else "train"


def _nothing_usable(folder: Path, out: Path, rows: Sequence[Row]) -> CorpusError:
    reasons = "; ".join(f"{count} x {reason}" for reason, count in common_reasons(rows))
    return CorpusError(
        f"none of the {len(rows)} MIDI files in {show_path(folder)} can be used: {reasons}. "
        f"{show_path(out / 'rejected.tsv')} has a verdict for each file; `melodia inspect FILE` says more"
    )


# -- writing
# ------------------------------------------------------------------------------------------------------


def _write(
    out: Path,
    rows: list[Row],
    spool: _Spool,
    config: TokenizerConfig,
    transpositions: Sequence[int],
    trained: Tokenizer | None,
) -> str:
    """Write the shards with their manifest; returns the corpus's fingerprint."""
    tokenizer = trained or Tokenizer(replace(config, bpe_vocab_size=None))
    base = tokenizer.base
    velocities = np.array([kind == "Velocity" for kind in base.types])
    has_bars = "Bar_None" in base.index
    used = [index for index, row in enumerate(rows) if row.is_used]
    moved = _Transposer(base, transpositions)
    if trained is None and config.bpe_vocab_size is not None:
        training = [index for index in used if rows[index].split == "train"]
        # Pairs are learned from each piece once, in keys that go round, so that they serve all copies alike.
        sequences = (_pick(list(moved(spool.get(index))), turn) for turn, index in enumerate(training))
        tokenizer = tokenizer.train_bpe(sequences, config.bpe_vocab_size)
    with ShardWriter(
        out, tokenizer.vocabulary, tokenizer_json=json.dumps(tokenizer.to_dict(), separators=(",", ":"))
    ) as writer:
        for index in used:
            row = rows[index]
            ids = spool.get(index)
            flags = CONSTANT_VELOCITY if len(np.unique(ids[velocities[ids]])) <= 1 else 0
            bars = None if has_bars else row.bars
            versions = moved(ids) if row.split == "train" else iter([ids])
            for count, version in enumerate(versions):
                encoded = tokenizer.apply_bpe(version)
                if count == 0:
                    row.tokens = len(encoded)
                writer.add(row.split, encoded, row=index, flags=flags, bars=bars)
        writer.attach(MANIFEST, manifest_bytes(rows))
    return Corpus.open(out).fingerprint


def _pick(versions: list[NDArray[np.int32]], turn: int) -> NDArray[np.int32]:
    return versions[turn % len(versions)]


class _Transposer:
    """Makes the transposed copies of a piece that stay inside the range of pitches."""

    def __init__(self, vocabulary: Vocabulary, transpositions: Sequence[int]) -> None:
        self.moves = [transposition_permutation(vocabulary, shift) for shift in transpositions]

    def __call__(self, ids: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
        """The piece as it is, then each copy."""
        yield ids
        for move in self.moves:
            moved = move[ids]
            if len(moved) and moved.min() >= 0:
                yield moved


def _write_build(
    out: Path, key: dict[str, Any], files: Sequence[Found], fingerprint: str, warnings: Sequence[str]
) -> None:
    """Note what the corpus was built from; written last, so that it never vouches for half a corpus."""
    data = {
        **key,
        "fingerprint": fingerprint,
        "warnings": list(warnings),
        "files": [[_safe(found.relative), found.size, found.changed] for found in files],
    }
    try:
        write_whole(out / BUILD, json.dumps(data), own=True)
    except OSError as error:
        raise _cannot_write(out / BUILD, error) from error


def _safe(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _cannot_write(path: Path, error: OSError) -> CorpusError:
    return CorpusError(
        f"cannot write {show_path(path)} ({error.strerror}); free some space or choose another folder (`cache`)"
    )


# -- the cache
# ----------------------------------------------------------------------------------------------------


def _cached(out: Path, key: dict[str, Any], files: Sequence[Found]) -> CorpusSummary | None:
    """The summary of the corpus in `out`, if it is finished and made of the same files and tokenizer."""
    try:
        data = json.loads((out / BUILD).read_text("utf-8"))
        if any(data.get(name) != value for name, value in key.items()):
            return None
        known = data["files"]
        if len(known) != len(files) or Corpus.open(out).fingerprint != data["fingerprint"]:
            return None
        rows = read_manifest(out)
        if len(rows) != len(files):
            return None
        touched = False
        for found, row, (relative, size, changed) in zip(files, rows, known, strict=True):
            if _safe(found.relative) != relative or found.size != size:
                return None
            if found.changed != changed:
                if not row.sha256 or file_hash(found.path) != row.sha256:
                    return None
                touched = True
        warnings = [str(warning) for warning in data["warnings"]]
        if touched:
            _write_build(out, key, files, data["fingerprint"], warnings)
    except (OSError, ValueError, KeyError, TypeError, CorpusError):
        return None
    return summarise(out, data["fingerprint"], rows, warnings=warnings, cached=True)


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Hold the corpus folder: a second process waits. The system lets go of it when its holder dies."""
    try:
        stream = (out / ".lock").open("a+b")
    except OSError as error:
        raise _cannot_write(out, error) from error
    with stream:
        hold(stream, wait=True)
        yield
