"""The index: every line of the training music as steps, and where in the steps to look; one file, mapped, not read.

`originality.safetensors` holds

| tensor        | content                                                                                            |
|---------------|----------------------------------------------------------------------------------------------------|
| `steps`       | uint8 [S]: the steps of all lines in a row (`melodia.originality.lines`), a byte a note            |
| `samples`     | uint32 [K]: every eighth place in `steps`, sorted by the steps that follow: a sparse suffix array  |
| `line_starts` | uint32 [L + 1]: where each line begins in `steps`                                                  |
| `line_pieces` | uint32 [L]: the piece of each line                                                                 |
| `new_bar`     | uint8 [S / 8]: a bit a note: it begins in a later bar than the note before it in its line          |
| `rest_at`     | uint32 [R]: notes that begin more than one bar later than the note before, ascending               |
| `rest_bars`   | uint16 [R]: how many bars more than one                                                            |
| `names`       | uint8: the file of each piece, as a JSON list in UTF-8                                             |

and, as metadata, the format, the corpus's fingerprint and how long a passage held-out music shares (`Chance`).
A passage of `SPACING` + `SHORTEST` - 1 steps or more holds a sampled place with enough steps behind it to be looked up;
of many such, those that agree longest are followed both ways. Most shorter passages are found too.
Letters: S notes of all lines, K samples, L lines, P pieces.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.errors import CheckpointError, show_path
from melodia.files import whole_file
from melodia.notes import Notes
from melodia.originality.lines import GAP, lines_of

FILE = "originality.safetensors"
FORMAT = "melodia-originality"
FORMAT_VERSION = 1
SPACING = 8
"""Every so many notes a place is sampled."""
SHORTEST = 6
"""Steps that must agree behind a sampled place."""
DEPTH = 32
"""Steps by which samples are sorted."""
LEAST_NOTES = 32  # a piece or an excerpt with fewer says nothing
MAX_HEADER = 1 << 20  # bytes
_DTYPES = {"U8": np.dtype("u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4")}
_TENSORS = {
    "steps": "U8",
    "samples": "U32",
    "line_starts": "U32",
    "line_pieces": "U32",
    "new_bar": "U8",
    "rest_at": "U32",
    "rest_bars": "U16",
    "names": "U8",
}


@dataclass(frozen=True)
class Chance:
    """How long a passage music shares that has nothing to do with the training music: the held-out pieces'.

    Attributes:
        excerpts: how many excerpts were compared.
        bars: bars of each.
        median: notes of the longest passage an excerpt shares, at the median.
        high: the same for 95 of 100 excerpts at most.
    """

    excerpts: int
    bars: int
    median: int
    high: int


@dataclass(frozen=True)
class Training:
    """One piece for the index: its file, notes, and where its bars begin, in the notes' ticks, rising [M]."""

    name: str
    notes: Notes
    bar_starts: NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """The training music's lines; see the module's table for the arrays.

    >>> tune = np.array([60, 62, 64, 65, 67, 64, 60, 71, 72, 69, 67, 60])
    >>> at = np.arange(12) * 4
    >>> index = Index.build([Training("song.mid", Notes(at, at + 4, tune, at * 0), np.array([0, 16, 32]))])
    >>> index.pieces, index.notes, index.place(6)
    (1, 12, ('song.mid', 1))
    """

    steps: NDArray[np.uint8]
    samples: NDArray[np.uint32]
    line_starts: NDArray[np.uint32]
    line_pieces: NDArray[np.uint32]
    new_bar: NDArray[np.uint8]
    rest_at: NDArray[np.uint32]
    rest_bars: NDArray[np.uint16]
    names: tuple[str, ...]
    fingerprint: str = ""
    chance: Chance | None = None

    @property
    def pieces(self) -> int:
        """P, the number of pieces."""
        return len(self.names)

    @property
    def notes(self) -> int:
        """The number of notes in all lines."""
        return int(self.line_starts[-1])

    @classmethod
    def build(
        cls, pieces: Iterable[Training], *, fingerprint: str = "", chance: Chance | None = None
    ) -> Index:
        """The index of pieces.

        Args:
            pieces: read once, one after the other.
            fingerprint: of the corpus.
            chance: what music of other pieces shares, where it was measured.
        """
        steps: list[NDArray[np.uint8]] = []
        deltas: list[NDArray[np.int64]] = []
        owners: list[int] = []
        names: list[str] = []
        for piece in pieces:
            for line in lines_of(piece.notes):
                steps.append(line.steps)
                bars = np.maximum(np.searchsorted(piece.bar_starts, line.onset, side="right") - 1, 0)
                deltas.append(np.diff(bars, prepend=0))
                owners.append(len(names))
            names.append(piece.name)
        starts = np.cumsum([0, *(len(line) for line in steps)])
        # Behind the last line stand as many gaps as a suffix is deep, so that none ends outside.
        flat = np.concatenate([*steps, np.full(DEPTH, GAP, dtype=np.uint8)])
        delta = np.concatenate(deltas) if deltas else np.zeros(0, dtype=np.int64)
        rests = np.flatnonzero(delta > 1)
        return cls(
            flat,
            _sorted_samples(flat, int(starts[-1])),
            starts.astype("<u4"),
            np.array(owners, dtype="<u4"),
            np.packbits(delta > 0),
            rests.astype("<u4"),
            np.minimum(delta[rests] - 1, 65535).astype("<u2"),
            tuple(names),
            fingerprint,
            chance,
        )

    def with_chance(self, chance: Chance | None) -> Index:
        """The same index with what other music shares."""
        return replace(self, chance=chance)

    def joined(self, other: Index) -> Index:
        """The music of both, with this index's fingerprint and chance: of a model that was trained on both.

        A piece of the other that this one has, too, is there once: fine-tuning often reads the same music again.
        """
        known = set(self._contents())
        other = other._of_pieces(np.array([content not in known for content in other._contents()], bool))
        mine, size = self.notes, self.notes + other.notes
        steps = np.concatenate([self.steps[:mine], other.steps])
        bits = [np.unpackbits(index.new_bar)[: index.notes] for index in (self, other)]
        return Index(
            steps,
            _sorted_samples(steps, size),
            np.concatenate([self.line_starts[:-1], other.line_starts + np.uint32(mine)]),
            np.concatenate([self.line_pieces, other.line_pieces + np.uint32(self.pieces)]),
            np.packbits(np.concatenate(bits)),
            np.concatenate([self.rest_at, other.rest_at + np.uint32(mine)]),
            np.concatenate([self.rest_bars, other.rest_bars]),
            self.names + other.names,
            self.fingerprint,
            self.chance,
        )

    def _contents(self) -> list[tuple[bytes | str, ...]]:
        """What each piece is known by: its lines, or its name where it has none."""
        lines: list[list[bytes | str]] = [[] for _ in self.names]
        for piece, (begin, end) in zip(
            self.line_pieces.tolist(), pairwise(self.line_starts.tolist()), strict=True
        ):
            lines[piece].append(self.steps[begin:end].tobytes())
        return [tuple(own) or (name,) for own, name in zip(lines, self.names, strict=True)]

    def _of_pieces(self, kept: NDArray[np.bool_]) -> Index:
        """The index of some of its pieces; kept: which [P]."""
        if kept.all():
            return self
        bounds = self.line_starts.astype(np.int64)
        lines, sizes = kept[self.line_pieces], bounds[1:] - bounds[:-1]
        inside = np.repeat(lines, sizes)  # which notes
        steps = np.concatenate([self.steps[: self.notes][inside], self.steps[self.notes :]])
        starts = np.cumsum([0, *sizes[lines].tolist()])
        rests = inside[self.rest_at]
        return replace(
            self,
            steps=steps,
            samples=_sorted_samples(steps, int(starts[-1])),
            line_starts=starts.astype("<u4"),
            line_pieces=(np.cumsum(kept) - 1)[self.line_pieces[lines]].astype("<u4"),
            new_bar=np.packbits(np.unpackbits(self.new_bar)[: self.notes][inside]),
            rest_at=(np.cumsum(inside) - 1)[self.rest_at[rests]].astype("<u4"),
            rest_bars=self.rest_bars[rests],
            names=tuple(name for name, keep in zip(self.names, kept.tolist(), strict=True) if keep),
        )

    def holds(self, pieces: Iterable[Notes]) -> list[bool]:
        """Whether each piece is training music: all of its lines are whole lines there, in any key and at any speed.

        False for a piece with fewer than 32 notes in its lines, such as a drum solo: it says nothing.
        """
        bounds = self.line_starts.tolist()
        whole = {self.steps[begin:end].tobytes() for begin, end in pairwise(bounds)}
        lines = ([line.steps.tobytes() for line in lines_of(piece)] for piece in pieces)
        return [sum(map(len, own)) >= LEAST_NOTES and whole.issuperset(own) for own in lines]

    def line_at(self, place: int) -> int:
        """The line in which a place in `steps` lies."""
        return int(np.searchsorted(self.line_starts, place, side="right")) - 1

    def place(self, note: int) -> tuple[str, int]:
        """The file in which a note (its place in `steps`) stands, and its bar, counted from 0."""
        line = self.line_at(note)
        begin = int(self.line_starts[line])
        bits = np.unpackbits(self.new_bar[begin // 8 : note // 8 + 1])
        bars = int(bits[begin % 8 : begin % 8 + note - begin + 1].sum())
        left, right = np.searchsorted(self.rest_at, [begin, note + 1])
        return self.names[int(self.line_pieces[line])], bars + int(
            self.rest_bars[left:right].sum(dtype=np.int64)
        )

    def to_bytes(self) -> bytes:
        """The content of `originality.safetensors`."""
        from safetensors.numpy import save

        names = np.frombuffer(json.dumps(list(self.names)).encode(), dtype=np.uint8)
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS if name != "names"}
        header = {"format": FORMAT, "format_version": FORMAT_VERSION, "fingerprint": self.fingerprint,
                  "chance": None if self.chance is None else asdict(self.chance)}  # fmt: skip
        return save({**tensors, "names": names}, {"melodia": json.dumps(header)})

    def save(self, folder: str | os.PathLike[str], before: Callable[[], None] | None = None) -> Path:
        """Write `originality.safetensors` into a folder, under a temporary name first.

        Args:
            folder: which.
            before: called when all is written, before the file gets its name.

        Raises:
            CheckpointError: the folder cannot be written, by this or by `before`, which may raise one of its own; an
                earlier file stays as it was.
        """
        path = Path(folder) / FILE
        try:
            with whole_file(path, own=True) as part:
                part.write_bytes(self.to_bytes())
                if before is not None:
                    before()
        except OSError as error:
            raise unwritable(path, error) from error
        return path

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Index | None:
        """Map the index in a checkpoint folder; None where there is none.

        Raises:
            CheckpointError: it is damaged, or of a newer format.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            return cls._map(path)
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
            raise CheckpointError(
                f"{show_path(path)} is damaged ({error!r}); rebuild it with "
                f"`melodia originality --model {show_path(path.parent)} --index FOLDER`"
            ) from error

    @classmethod
    def _map(cls, path: Path) -> Index:
        """See `open`. The header is read by hand: the library reads tensors into memory, a map does not."""
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        own = json.loads(header["__metadata__"]["melodia"])
        if own["format"] != FORMAT:
            raise ValueError(f"format {own['format']!r}")
        if own["format_version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"{show_path(path)} has format version {own['format_version']}, but this version reads up to "
                f"{FORMAT_VERSION}; update melodia"
            )
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
        arrays: dict[str, Any] = {}
        for name, dtype in _TENSORS.items():
            begin, end = header[name]["data_offsets"]
            if header[name]["dtype"] != dtype or not 0 <= begin <= end <= len(data):
                raise ValueError(f"tensor {name}")
            # `view(np.ndarray)`: the same mapped bytes without memmap's costly slicing.
            arrays[name] = data[begin:end].view(np.ndarray).view(_DTYPES[dtype])
        names = tuple(str(name) for name in json.loads(arrays.pop("names").tobytes()))
        index = cls(**arrays, names=names, fingerprint=str(own["fingerprint"]),
                    chance=None if own["chance"] is None else Chance(**own["chance"]))  # fmt: skip
        index._check()
        return index

    def _check(self) -> None:
        """Raise ValueError for arrays that would lead outside each other (reads no more than a page of most)."""
        lines = len(self.line_pieces)
        if len(self.line_starts) != lines + 1 or len(self.steps) != self.notes + DEPTH:
            raise ValueError("lines and steps differ")
        if (np.diff(self.line_starts.astype(np.int64)) < 0).any() or self.line_starts[0] != 0:
            raise ValueError("lines out of order")
        if lines and int(self.line_pieces.max()) >= self.pieces:
            raise ValueError("a line of no piece")
        if len(self.samples) and int(self.samples.max()) >= self.notes:
            raise ValueError("a sample outside the steps")
        if len(self.new_bar) * 8 < self.notes or len(self.rest_at) != len(self.rest_bars):
            raise ValueError("bars and steps differ")


def _sorted_samples(steps: NDArray[np.uint8], notes: int) -> NDArray[np.uint32]:
    """Every eighth place, sorted by the next 32 steps."""
    places = np.arange(0, notes, SPACING, dtype=np.int64)
    places = places[steps[places] != GAP]
    return places[np.argsort(suffixes(steps, places), kind="stable")].astype("<u4")


def suffixes(steps: NDArray[np.uint8], places: NDArray[np.int64] | Sequence[int]) -> NDArray[np.bytes_]:
    """The next 32 steps of each place as one value that can be compared [Q] -> S32 [Q]."""
    at = np.asarray(places, dtype=np.int64)
    if not len(at):
        return np.zeros(0, dtype=f"S{DEPTH}")
    return np.ascontiguousarray(steps[at[:, None] + np.arange(DEPTH)]).view(f"S{DEPTH}").reshape(-1)


def unwritable(path: Path, error: OSError) -> CheckpointError:
    """The error that a file of a checkpoint cannot be written."""
    return CheckpointError(
        f"cannot write {show_path(path)}: {error.strerror or error}; free some space, or make the folder writable"
    )
