"""The manifest.

What became of each file of a corpus, one row a file, as tab-separated text for people and tools.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from melodia.errors import CorpusError, show_path
from melodia.files import write_whole
from melodia.wording import counted

VERDICTS = ("used", "repaired", "duplicate", "skipped", "failed")
"""used: as it stood; repaired: used after repair; duplicate: the same notes as another file;
skipped: readable but not wanted; failed: not readable."""

MANIFEST = "manifest.tsv"


@dataclass
class Row:
    """What became of one file.

    Attributes:
        path: relative to the corpus's folder, with forward slashes.
        sha256: of the bytes, "" where they could not be read.
        verdict: one of `VERDICTS`, "" until it is known.
        reason: why, in a few words; "" for a file used as it stood.
        split: "train" or "valid"; "" for a file that is not used.
        bars: of the score.
        notes: in the tokens.
        tokens: without begin and end.
        seconds: of the score.
        velocity_levels: different velocities in the score; 1 means that it teaches nothing about velocities.
        programs: General MIDI programs, ascending, -1 for drums, joined by commas.
        content: hash of the notes (onset, length, pitch, program), 16 hexadecimal digits.
        tune: the same hash of the notes moved to a common pitch, which transpositions share.
    """

    path: str
    sha256: str = ""
    verdict: str = ""
    reason: str = ""
    split: str = ""
    bars: int = 0
    notes: int = 0
    tokens: int = 0
    seconds: float = 0.0
    velocity_levels: int = 0
    programs: str = ""
    content: str = ""
    tune: str = ""

    def leave_to(self, original: Row) -> None:
        """Become a duplicate of a row with the same content."""
        same = "same bytes" if original.sha256 == self.sha256 else "same notes"
        self.verdict, self.reason, self.split = "duplicate", f"{same} as {original.path}", ""

    @property
    def is_used(self) -> bool:
        """Whether the file is a piece of the corpus."""
        return self.verdict in ("used", "repaired")


_COLUMNS = tuple(item.name for item in fields(Row))


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write the table under a temporary name and move it in place.

    Raises:
        CorpusError: the folder cannot be written.
    """
    try:
        write_whole(path, manifest_bytes(rows), own=True)
    except OSError as error:
        raise CorpusError(
            f"cannot write {show_path(path)} ({error.strerror}); free some space or choose another folder"
        ) from error


def manifest_bytes(rows: Iterable[Row]) -> bytes:
    """The table as it stands in the file."""
    lines = [
        "\t".join(_COLUMNS),
        *("\t".join(_cell(getattr(row, name)) for name in _COLUMNS) for row in rows),
    ]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")


def read_manifest(path: str | Path) -> list[Row]:
    """Read the table of a corpus folder or a manifest file.

    Raises:
        CorpusError: it is not there, or is no manifest.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MANIFEST
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"cannot read the manifest {show_path(path)} ({error}); rebuild the corpus"
        ) from error
    return parse_manifest(text, path)


def parse_manifest(text: str, path: Path) -> list[Row]:
    """The rows of the text that was read from `path`.

    Raises:
        CorpusError: it is no manifest.
    """
    lines = text.split("\n")
    if tuple(lines[0].split("\t")) != _COLUMNS:
        raise CorpusError(
            f"{show_path(path)} is not a manifest that this version can read; rebuild the corpus"
        )
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        cells = line.split("\t")
        try:
            values = {
                name: type(getattr(_BLANK, name))(_unescape(cell))
                for name, cell in zip(_COLUMNS, cells, strict=True)
            }
        except ValueError as error:
            raise CorpusError(
                f"{show_path(path)}, line {number}: not a manifest row; rebuild the corpus"
            ) from error
        rows.append(Row(**values))
    return rows


_BLANK = Row("")
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return re.sub(r"[\\\t\n\r]", lambda found: _ESCAPES[found[0]], str(value))


def _unescape(cell: str) -> str:
    back = {escaped: plain for plain, escaped in _ESCAPES.items()}
    return re.sub(r"\\[\\tnr]", lambda found: back[found[0]], cell)


def common_reasons(rows: Iterable[Row], limit: int = 3) -> list[tuple[str, int]]:
    """The commonest reasons of files that are not used, with counts; numbers in them are alike.

    >>> rows = [Row("a", verdict="failed", reason="cut off at byte 7"), Row("b", verdict="used"),
    ...         Row("c", verdict="failed", reason="cut off at byte 9")]
    >>> common_reasons(rows)
    [('failed: cut off at byte 7', 2)]
    """
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for row in rows:
        if row.verdict in ("failed", "skipped"):
            text = f"{row.verdict}: {row.reason}"
            key = re.sub(r"\d[\d,.]*", "0", text)
            counts[key] += 1
            example.setdefault(key, text)
    return [(example[key], count) for key, count in counts.most_common(limit)]


@dataclass(frozen=True)
class SplitSummary:
    """Totals of one split: pieces, tokens, notes, bars and seconds of music."""

    pieces: int = 0
    tokens: int = 0
    notes: int = 0
    bars: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class CorpusSummary:
    """What `build_corpus` did.

    Attributes:
        folder: where the corpus lies.
        fingerprint: of its vocabulary and tokens.
        verdicts: how many files have each verdict.
        train: totals of the training split.
        valid: totals of the validation split.
        reasons: the commonest reasons of files that are not used, with counts.
        warnings: what a person should know.
        cached: whether nothing had to be done.
        wall_seconds: how long it took.
    """

    folder: Path
    fingerprint: str
    verdicts: dict[str, int]
    train: SplitSummary
    valid: SplitSummary
    reasons: list[tuple[str, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cached: bool = False
    wall_seconds: float = 0.0

    def lines(self) -> list[str]:
        """The summary for a person."""
        files = sum(self.verdicts.values())
        found = ", ".join(f"{self.verdicts[name]:,} {name}" for name in VERDICTS if self.verdicts.get(name))
        text = [f"{counted(files, 'file')}: {found}" + (" (from the cache)" if self.cached else "")]
        for name, split in (("train", self.train), ("valid", self.valid)):
            text.append(
                f"{name}: {counted(split.pieces, 'piece')}, {counted(split.notes, 'note')}, "
                f"{counted(split.bars, 'bar')}, {split.seconds / 3600:.1f} hours, {counted(split.tokens, 'token')}"
            )
        text += [f"  {count:,} x {reason}" for reason, count in self.reasons]
        text += [f"warning: {warning}" for warning in self.warnings]
        text.append(f"a verdict per file: {show_path(self.folder / MANIFEST)}")
        return text


def summarise(
    folder: Path,
    fingerprint: str,
    rows: Sequence[Row],
    *,
    warnings: Sequence[str] = (),
    cached: bool = False,
    wall_seconds: float = 0.0,
) -> CorpusSummary:
    """The summary of a manifest."""
    splits = {}
    for name in ("train", "valid"):
        used = [row for row in rows if row.is_used and row.split == name]
        splits[name] = SplitSummary(
            len(used),
            sum(row.tokens for row in used),
            sum(row.notes for row in used),
            sum(row.bars for row in used),
            sum(row.seconds for row in used),
        )
    counts = Counter(row.verdict for row in rows)
    return CorpusSummary(
        folder,
        fingerprint,
        {name: counts.get(name, 0) for name in VERDICTS},
        splits["train"],
        splits["valid"],
        common_reasons(rows),
        list(warnings),
        cached,
        wall_seconds,
    )
