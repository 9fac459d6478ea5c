"""What a read found: findings, and the report that `melodia inspect` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from melodia.wording import clock, counted

Kind = Literal["repaired", "dropped", "quantised", "not carried", "note"]

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Finding:
    """One kind of thing that a score lost, or that was changed or assumed.

    Attributes:
        kind: "repaired", "dropped", "quantised", "not carried" or "note" (nothing lost, worth knowing).
        what: what it is, in a few words, e.g. "note without an end closed".
        count: how many times.
        detail: where it was first seen, or more words; one that begins with "of" says of how many. May be empty.

    >>> print(Finding("dropped", "invalid tempo", 2, "first: 0 microseconds per quarter, tick 0"))
    dropped: invalid tempo (2; first: 0 microseconds per quarter, tick 0)
    >>> print(Finding("quantised", "note onset", 1, "of 495; largest 0.0123 quarter notes"))
    quantised: note onset (1 of 495; largest 0.0123 quarter notes)
    """

    kind: Kind
    what: str
    count: int = 1
    detail: str = ""

    def __str__(self) -> str:
        goes_on = self.detail.startswith("of ")
        number = f"{self.count:,}" if self.count != 1 or goes_on else ""
        inside = (" " if goes_on else "; ").join(part for part in (number, self.detail) if part)
        return f"{self.kind}: {self.what}" + (f" ({inside})" if inside else "")


class Findings:
    """A growing list of findings in which equal ones are counted once, the first detail kept.

    >>> findings = Findings()
    >>> findings.add("dropped", "invalid tempo", detail="tick 0")
    >>> findings.add("dropped", "invalid tempo", detail="tick 96")
    >>> findings.to_list()
    [Finding(kind='dropped', what='invalid tempo', count=2, detail='tick 0')]
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[Kind, str], int] = {}
        self._details: dict[tuple[Kind, str], str] = {}

    def add(self, kind: Kind, what: str, count: int = 1, detail: str = "") -> None:
        """Count something; a count of 0 adds nothing."""
        if count <= 0:
            return
        key = (kind, what)
        if key not in self._counts:
            self._counts[key] = 0
            self._details[key] = detail
        self._counts[key] += count

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.to_list())

    def __len__(self) -> int:
        return len(self._counts)

    def to_list(self) -> list[Finding]:
        """The findings, repairs first, in the order in which they were first made."""
        found = [
            Finding(kind, what, count, self._details[kind, what])
            for (kind, what), count in self._counts.items()
        ]
        return sorted(found, key=lambda finding: KINDS.index(finding.kind))


def unseen_lines(findings: Sequence[Finding], music: str) -> list[str]:
    """What is changed in the tokens of music, and not in the music itself, as lines of text.

    Args:
        findings: of its encoding.
        music: what it is called.
    """
    if not findings:
        return []
    return [
        f"changed only for the model ({music} itself stays as it is):",
        *(f"  {each}" for each in findings),
    ]


@dataclass
class ReadReport:
    """What was read from one MIDI file.

    Attributes:
        path: name of the source ("<bytes>", "<file object>" or "<PrettyMIDI>" where there is no path).
        sha256: hash of the bytes in hex, "" for a PrettyMIDI object.
        size: bytes.
        midi_format: 0, 1 or 2 as the header says (-1 for a PrettyMIDI object).
        ticks_per_quarter: resolution of the score.
        tracks: score tracks that hold notes, one per (file track, channel, program).
        notes: notes after repair.
        bars: bars until the end of the last note.
        seconds: length until the end of the last note.
        programs: General MIDI programs (0-127), ascending; -1 stands for drums.
        tempi: (tick, quarter notes per minute).
        time_signatures: (tick, numerator, denominator).
        key_signatures: (tick, sharps -7..7, 0 major or 1 minor).
        findings: everything that was repaired, dropped or assumed.
        unseen: what the tokens of the score do not say; empty where it was not encoded.
    """

    path: str
    sha256: str
    size: int
    midi_format: int
    ticks_per_quarter: int
    tracks: int
    notes: int
    bars: int
    seconds: float
    programs: list[int]
    tempi: list[tuple[int, float]]
    time_signatures: list[tuple[int, int, int]]
    key_signatures: list[tuple[int, int, int]]
    findings: list[Finding] = field(default_factory=list)
    unseen: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """True if nothing had to be repaired or dropped."""
        return all(finding.kind not in ("repaired", "dropped") for finding in self.findings)

    def lines(self) -> list[str]:
        """The report as lines of text for a person."""
        programs = ", ".join("drums" if program < 0 else str(program) for program in self.programs)
        text = [
            self.path,
            f"  {counted(self.notes, 'note')} in {counted(self.tracks, 'track')}, {counted(self.bars, 'bar')}, "
            f"{clock(self.seconds)}, {self.ticks_per_quarter} ticks per quarter, format {self.midi_format}",
            f"  programs: {programs}",
            "  tempo: " + _list([f"{tempo:.6g}" for _, tempo in self.tempi]) + " quarters per minute",
            "  metre: " + _list([f"{top}/{bottom}" for _, top, bottom in self.time_signatures]),
        ]
        if self.key_signatures:
            keys = [key_name(key, mode) for _, key, mode in self.key_signatures]
            text.append("  key: " + _list(keys))
        found = [*map(str, self.findings), *unseen_lines(self.unseen, "the file")]
        return [*text, *(f"  {line}" for line in found)]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists, numbers and strings, ready for JSON."""
        return asdict(self)


def _list(values: list[str], limit: int = 6) -> str:
    shown = ", ".join(values[:limit])
    return shown if len(values) <= limit else f"{shown}, ... ({len(values)} in all)"


_MAJOR = ["Cb", "Gb", "Db", "Ab", "Eb", "Bb", "F", "C", "G", "D", "A", "E", "B", "F#", "C#"]
_MINOR = ["Ab", "Eb", "Bb", "F", "C", "G", "D", "A", "E", "B", "F#", "C#", "G#", "D#", "A#"]


def key_name(sharps: int, mode: int) -> str:
    """Name of a key signature.

    Args:
        sharps: -7 (seven flats) to 7 (seven sharps).
        mode: 0 major, 1 minor.

    >>> key_name(-3, 1)
    'C minor'
    """
    return f"{(_MINOR if mode else _MAJOR)[sharps + 7]} {'minor' if mode else 'major'}"
