"""How well continuations keep to chords: `python -m benchmarks.harmonies HELD_OUT --json FILE`.

Held-out pieces are continued after their first 16 bars under four chords in the seed's key, a chord for every bar,
several times each; beside them stand continuations that were not asked for any, and the bars that really follow. Means
are over pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.continuations import (
    BARS,
    NAN,
    compare,
    mean,
    means,
    parser_of,
    pieces_of,
    table,
    write_figures,
)
from melodia.decode.config import RECOMMENDED
from melodia.evaluation.statistics import estimate_key
from melodia.harmony import Bars, parse_chords
from melodia.midi import bar_table
from melodia.notes import Notes, notes_of_score
from melodia.progression import BarGrid, Progression
from melodia.sampler import Sampler

PROGRESSIONS = {
    "major": ("I vi IV V", "I IV V I", "vi IV I V", "I V vi IV"),
    "minor": ("i VI iv V", "i iv V i", "i VII VI V", "i iv VII III"),
}
_DEGREES = {"I": 0, "II": 2, "III": 4, "IV": 5, "V": 7, "VI": 9, "VII": 11}
_FLAT = {"III": 3, "VI": 8, "VII": 10}
"""Degrees of a minor key that lie a semitone lower than above a major tonic."""

_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
_TRIADS = [
    frozenset((root + above) % 12 for above in kind) for root in range(12) for kind in ((0, 4, 7), (0, 3, 7))
]
_WHOLE_TEXTURE = (
    "notes a bar, ratio",
    "voices, ratio",
    "step, ratio",
    "notes repeated",
    "in the seed's scale",
)


def progression(degrees: str, tonic: int, mode: str) -> str:
    """Chord names of degrees in a key.

    >>> progression("i VI iv V", 9, "minor"), progression("I vi IV V", 10, "major")
    ('Am F Dm E', 'Bb Gm Eb F')
    """
    names = []
    for degree in degrees.split():
        of_key = _FLAT if mode == "minor" and degree.upper() in _FLAT else _DEGREES
        names.append(_NAMES[(tonic + of_key[degree.upper()]) % 12] + "m" * degree.islower())
    return " ".join(names)


def keeps(score: Any, chords: Bars) -> dict[str, float]:
    """How well the bars of a score keep to chords, and to the triads that suit each best."""
    lines = bar_table(score)
    length = lines.line(1) - lines.line(0)
    grid = BarGrid(0, length, int(lines.numerators[0]))
    notes = notes_of_score(score)
    kept = Progression(chords).kept(notes, grid)
    if kept is None:
        return {}
    best, agree = [], []
    for bar in range(BARS):
        share = triad_shares(notes, bar * length, (bar + 1) * length)
        if share is not None:
            chord = chords[bar % len(chords)][0]
            best.append(share.max())
            agree.append(chord is not None and frozenset(chord.classes) == _TRIADS[int(share.argmax())])
    return {
        "time in the chords": kept[0],
        "chords begun over their bass": kept[1],
        "bars whose best triad is the chord": mean(agree),
        "time in each bar's best triad": mean(best),
    }


def triad_shares(notes: Notes, start: int, end: int) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """How much of the notes' time between two ticks belongs to each of the 24 triads; None of no pitched notes."""
    pitched = notes.select((notes.program >= 0) & (notes.onset >= start) & (notes.onset < end))
    times = np.bincount(pitched.pitch % 12, np.minimum(pitched.end, end) - pitched.onset, 12)
    if not times.sum():
        return None
    return np.array([times[sorted(triad)].sum() for triad in _TRIADS]) / times.sum()


def main(arguments: Sequence[str] | None = None) -> None:
    """Continue under chords, compare, print."""
    parser = parser_of(__doc__, weights="int8")
    parser.add_argument("pieces", type=Path, metavar="FOLDER", help="held-out MIDI files")
    parser.add_argument("--times", type=int, default=2, help="continuations of each")
    options = parser.parse_args(arguments)
    sampler = Sampler.load(options.model, weights=options.weights)
    columns: dict[str, list[dict[str, float]]] = {"real": [], "without": [], "under chords": []}
    for number, piece in enumerate(pieces_of(sampler, None, options.pieces, options.count)):
        key = estimate_key(piece.seed)
        if key is None:
            continue
        degrees = PROGRESSIONS[key.mode][number % 4]
        chords = parse_chords(progression(degrees, key.tonic, key.mode))
        columns["real"].append(figures(piece.seed, piece.real, chords))
        sampler.prime(piece.score, seed_bars=piece.seed_bars)
        for name, asked in (("without", None), ("under chords", chords)):
            made = sampler.generate_many(
                options.times, bars=BARS, random_seed=number, chords=asked, **RECOMMENDED
            )
            rows = [
                figures(piece.seed, each.score, chords) | {"nats a token": each.report.nll} for each in made
            ]
            columns[name].append(means(rows))
    print("\n".join(table(columns)))
    write_figures(columns, options.json)


def figures(seed: Any, music: Any, chords: Bars) -> dict[str, float]:
    """How well music keeps to chords, and what it keeps of its seed."""
    found = compare(seed, music)
    return keeps(music, chords) | {name: found.get(name, NAN) for name in _WHOLE_TEXTURE}


if __name__ == "__main__":
    main()
