"""Chords and scales by name, as pitch classes. No imports of melodia but its errors.

A pitch class is 0 (C) to 11 (B).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from melodia.errors import ConfigError

QUALITIES: dict[str, tuple[int, ...]] = {
    "": (0, 4, 7), "maj": (0, 4, 7), "M": (0, 4, 7),
    "m": (0, 3, 7), "min": (0, 3, 7), "-": (0, 3, 7),
    "5": (0, 7),
    "dim": (0, 3, 6), "o": (0, 3, 6), "°": (0, 3, 6),
    "aug": (0, 4, 8), "+": (0, 4, 8),
    "sus2": (0, 2, 7), "sus4": (0, 5, 7), "sus": (0, 5, 7),
    "6": (0, 4, 7, 9), "m6": (0, 3, 7, 9), "min6": (0, 3, 7, 9), "-6": (0, 3, 7, 9),
    "7": (0, 4, 7, 10), "7sus4": (0, 5, 7, 10), "7b5": (0, 4, 6, 10),
    "aug7": (0, 4, 8, 10), "+7": (0, 4, 8, 10), "7#5": (0, 4, 8, 10),
    "maj7": (0, 4, 7, 11), "M7": (0, 4, 7, 11), "^7": (0, 4, 7, 11), "Δ": (0, 4, 7, 11), "Δ7": (0, 4, 7, 11),
    "m7": (0, 3, 7, 10), "min7": (0, 3, 7, 10), "-7": (0, 3, 7, 10),
    "mM7": (0, 3, 7, 11), "mmaj7": (0, 3, 7, 11),
    "dim7": (0, 3, 6, 9), "o7": (0, 3, 6, 9), "°7": (0, 3, 6, 9),
    "m7b5": (0, 3, 6, 10), "ø": (0, 3, 6, 10), "ø7": (0, 3, 6, 10),
    "add9": (0, 2, 4, 7), "add2": (0, 2, 4, 7), "madd9": (0, 2, 3, 7),
    "69": (0, 2, 4, 7, 9), "6/9": (0, 2, 4, 7, 9),
    "9": (0, 2, 4, 7, 10), "maj9": (0, 2, 4, 7, 11), "M9": (0, 2, 4, 7, 11),
    "m9": (0, 2, 3, 7, 10), "min9": (0, 2, 3, 7, 10),
    "7b9": (0, 1, 4, 7, 10), "7#9": (0, 3, 4, 7, 10),
    "11": (0, 2, 4, 5, 7, 10), "m11": (0, 2, 3, 5, 7, 10), "13": (0, 2, 4, 7, 9, 10),
}  # fmt: skip
"""What stands behind a root, and the semitones above it that sound."""

MODES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
    "melodic minor": (0, 2, 3, 5, 7, 9, 11),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "locrian": (0, 1, 3, 5, 6, 8, 10),
    "pentatonic": (0, 2, 4, 7, 9),
    "minor pentatonic": (0, 3, 5, 7, 10),
    "blues": (0, 3, 5, 6, 7, 10),
    "whole tone": (0, 2, 4, 6, 8, 10),
}
"""The semitones above the tonic of each scale."""

NO_CHORD = ("N.C.", "NC")
MOST_CHORDS = 8
"""Chords in one bar."""

_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SIGNS = {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}
_ROOT = r"([A-G])([#b♯♭]?)"
_CHORD = re.compile(rf"{_ROOT}((?:6/9|[^/])*)(?:/{_ROOT})?")
_SCALE = re.compile(rf"{_ROOT}(.*)")


@dataclass(frozen=True)
class Chord:
    """A chord.

    Attributes:
        name: as it was written.
        root: a pitch class.
        bass: the pitch class of its lowest note.
        classes: the pitch classes that belong to it, the bass among them.
    """

    name: str
    root: int
    bass: int
    classes: frozenset[int]

    @property
    def key(self) -> int:
        """The key whose tonic triad it has, as in `melodia.key_finding`."""
        return _key(self.root, self.classes)


Bars = tuple[tuple[Chord | None, ...], ...]
"""The chords of bars, which share each bar's time equally; None where any note may come."""


@dataclass(frozen=True)
class Scale:
    """A scale.

    Attributes:
        name: such as "D minor".
        tonic: a pitch class.
        classes: the pitch classes that belong to it.
    """

    name: str
    tonic: int
    classes: frozenset[int]

    @property
    def key(self) -> int:
        """The key of its tonic, as in `melodia.key_finding`."""
        return _key(self.tonic, self.classes)


def parse_chord(name: str) -> Chord | None:
    """A chord from its name; None for "N.C.", no chord.

    Raises:
        ConfigError: there is no such name.

    >>> chord = parse_chord("Dm7/G")
    >>> sorted(chord.classes), chord.root, chord.bass
    ([0, 2, 5, 7, 9], 2, 7)
    """
    if name in NO_CHORD:
        return None
    found = _CHORD.fullmatch(name)
    if found is None or found[3] not in QUALITIES:
        near = _near_chords(name)
        meant = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ConfigError(
            f"no chord is called {name!r}{meant}; a chord is a root, A to G with # or b, then nothing (major) or its "
            "kind, such as m, 7, m7, maj7, dim or sus4, then optionally its bass, such as C, F#m7 or Am/E; N.C. stands "
            "for none"
        )
    root = _pitch_class(found[1], found[2])
    bass = _pitch_class(found[4], found[5]) if found[4] else root
    return Chord(name, root, bass, frozenset((root + above) % 12 for above in QUALITIES[found[3]]) | {bass})


def _near_chords(name: str) -> list[str]:
    """Chords with names like one that is none.

    >>> _near_chords("am/e"), _near_chords("Cmaj13"), _near_chords("H")
    (['Am/E'], ['Cmaj', 'Cmaj9', 'Cmaj7'], [])
    """
    from difflib import get_close_matches

    found = _CHORD.fullmatch(re.sub("(^|/)[a-g]", lambda each: each[0].upper(), name))
    if found is None:
        return []
    root, bass = found[1] + found[2], f"/{found[4]}{found[5]}" if found[4] else ""
    kinds = [found[3]] if found[3] in QUALITIES else get_close_matches(found[3], QUALITIES)
    return [root + kind + bass for kind in kinds]


def parse_chords(chords: str | Sequence[str | Sequence[Chord | None]]) -> Bars:
    """The chords of bars.

    Args:
        chords: a chord for every bar, such as "Am F C G"; or bars with bar lines between them, such as
            "Dm | Gm A7 | %", in which the chords of a bar share its time and % is the bar before; or a sequence of
            such bars. What this function gives is taken, too.

    Raises:
        ConfigError: a name is no chord, or there is none.

    >>> [[chord.name for chord in bar] for bar in parse_chords("Dm | Gm A7 | %")]
    [['Dm'], ['Gm', 'A7'], ['Gm', 'A7']]
    >>> len(parse_chords("Am F C G")), len(parse_chords(["Am", "F G"]))
    (4, 2)
    """
    if isinstance(chords, str):
        lined = "|" in chords
        written: list[object] = (
            [bar for bar in chords.split("|") if bar.strip()] if lined else [*_words(chords)]
        )
    elif isinstance(chords, Sequence):
        written = list(chords)
    else:
        raise ConfigError(f"chords are a text such as 'Am F C G' (received {chords!r})")
    bars: list[tuple[Chord | None, ...]] = []
    for bar in written:
        if isinstance(bar, tuple) and bar and all(each is None or isinstance(each, Chord) for each in bar):
            bars.append(bar)
            continue
        if not isinstance(bar, str):
            raise ConfigError(f"a bar of chords is a text such as 'Dm' or 'Gm A7' (received {bar!r})")
        names = _words(bar)
        if names == ["%"] and bars:
            bars.append(bars[-1])
            continue
        if not 1 <= len(names) <= MOST_CHORDS:
            raise ConfigError(f"a bar has 1 to {MOST_CHORDS} chords (received {len(names)} in {bar!r})")
        bars.append(tuple(parse_chord(name) for name in names))
    if not any(chord for bar in bars for chord in bar):
        raise ConfigError(f"give at least one chord, such as 'Am F C G' (received {chords!r})")
    return tuple(bars)


def parse_scale(name: str) -> Scale:
    """A scale from its name.

    Args:
        name: text: a tonic and one of `MODES`, such as "D dorian"; "D" is D major, "Dm" D minor.

    Raises:
        ConfigError: there is no such scale.

    >>> parse_scale("Bb major").tonic, sorted(parse_scale("A minor").classes), parse_scale("Dm").name
    (10, [0, 2, 4, 5, 7, 9, 11], 'D minor')
    """
    written = name.strip() if isinstance(name, str) else ""
    found = _SCALE.fullmatch(written[:1].upper() + written[1:])
    rest = "" if found is None else found[3].strip()
    mode = {"": "major", "M": "major", "m": "minor"}.get(rest, " ".join(rest.lower().split()))
    if found is None or mode not in MODES:
        raise ConfigError(
            f"no scale is called {name!r}; a scale is a tonic, A to G with # or b, and one of {', '.join(MODES)}, such "
            "as D minor"
        )
    tonic = _pitch_class(found[1], found[2])
    classes = frozenset((tonic + above) % 12 for above in MODES[mode])
    return Scale(f"{found[1]}{found[2]} {mode}", tonic, classes)


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _pitch_class(letter: str, sign: str) -> int:
    return (_STEPS[letter] + _SIGNS[sign]) % 12


def _key(tonic: int, classes: frozenset[int]) -> int:
    """Minor with the minor third and not the major one, else major."""
    return tonic + 12 * ((tonic + 3) % 12 in classes and (tonic + 4) % 12 not in classes)
