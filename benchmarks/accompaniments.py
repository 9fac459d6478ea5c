"""How parts that are added fit what the others play: `python -m benchmarks.accompaniments HELD_OUT --json FILE`.

One program is taken out of the first bars of held-out pieces for several and added anew, without having been heard
(`fill` with `beside`). Beside it stands the part that was there: means over pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.continuations import NAN, mean, means, parser_of, pieces_of, table, write_figures
from melodia.decode.config import RECOMMENDED
from melodia.errors import MelodiaError
from melodia.midi import bar_table
from melodia.notes import Notes, notes_of_score
from melodia.sampler import Sampler
from melodia.sampler.filling import part_played_by
from melodia.sampler.texture import part_of
from melodia.sampler.together import sounding, together

BARS = 16
GRID = 12
"""Places in a quarter note at which what sounds is compared."""
BUSY = 0.75
"""A part that was there plays in so many of the bars."""


def parts_of_ensembles(pieces: Iterator[Any]) -> Iterator[tuple[str, Any, int]]:
    """(name, score, program) of pieces for several: of each a part that plays most of the time, each in its turn."""
    number = 0
    for piece in pieces:
        notes, lines = notes_of_score(piece.score), bar_table(piece.score)
        heard = notes.select(notes.onset < lines.line(min(BARS, len(lines))))
        bars = {
            program: len({lines.index(tick) for tick in heard.onset[heard.program == program].tolist()})
            for program in np.unique(heard.program).tolist()
        }
        busy = [program for program, count in bars.items() if count >= BUSY * BARS]
        metres = {lines.numerators[bar] / lines.denominators[bar] for bar in range(min(BARS, len(lines)))}
        if len(bars) > 1 and busy and len(metres) == 1:
            yield piece.name, piece.score, busy[number % len(busy)]
            number += 1


def without(score: Any, program: int) -> Any:
    """The score without a program's tracks."""
    return part_played_by(score, lambda other: other != program)


def fit(score: Any, program: int, real: Any = None) -> dict[str, float]:
    """How a program's part fits what the others play in the first bars of a score; `real` has the part that was there.

    Time is compared on a grid. Notes begin together if they begin at one place of it.
    """
    quarter, lines = score.ticks_per_quarter, bar_table(score)
    stop = lines.line(BARS)
    notes = notes_of_score(score)
    notes = notes.select(notes.onset < stop)
    part, others = (notes.select(chosen) for chosen in (notes.program == program, notes.program != program))
    part, others = (on_grid(each, quarter) for each in (part, others))
    lines_of = (np.array([lines.line(bar) for bar in range(BARS + 1)]) * GRID + quarter // 2) // quarter
    downs, size = lines_of[:-1], int(lines_of[-1])
    begins, about = np.unique(part.onset), together(part, others, 0, size)
    found = {
        "bars in which it begins notes": len(np.unique(np.searchsorted(downs, begins, "right"))) / BARS,
        "onsets a quarter": len(begins) * GRID / size,
        "onsets with the others'": about.onsets,
        "onsets on quarters": mean((begins % GRID == 0).tolist()),
        "bar lines it begins at": mean(np.isin(downs, begins).tolist()),
    }
    if program >= 0 and len(part.onset):
        found |= {
            "time it sounds": about.sounds,
            "time in the others' classes": about.classes,
            "time a semitone off them": about.rubs,
        }
        found |= {f"its {name}": value for name, value in asdict(part_of(part, GRID)).items()}
    if real is not None:
        theirs = notes_of_score(real)
        theirs = theirs.select((theirs.onset < stop) & (theirs.program == program))
        own, other = (sounding(notes, 0, size).astype(float) for notes in (part, on_grid(theirs, quarter)))
        alike = []
        for start, end in zip(downs, [*downs[1:], size], strict=True):
            x, y = own[start:end].sum(0), other[start:end].sum(0)
            if program >= 0 and y.any():
                alike.append(float(x @ y / np.sqrt((x @ x) * (y @ y))) if x.any() else 0.0)
        found["classes like the real part's"] = mean(alike)
    return found


def on_grid(notes: Notes, quarter: int) -> Notes:
    """Notes in ticks of so many a quarter note, on the grid."""
    onset, end = ((ticks * GRID + quarter // 2) // quarter for ticks in (notes.onset, notes.end))
    return replace(notes, onset=onset, end=np.maximum(onset + 1, end))


def main(arguments: Sequence[str] | None = None) -> None:
    """Add, compare, print."""
    parser = parser_of(__doc__, weights="int8")
    parser.add_argument("pieces", type=Path, metavar="FOLDER", help="held-out MIDI files")
    parser.add_argument("--times", type=int, default=2, help="parts added to each")
    options = parser.parse_args(arguments)
    sampler = Sampler.load(options.model, weights=options.weights)
    wishes = {name: RECOMMENDED[name] for name in ("temperature", "top_p", "pitch_bias")}
    columns: dict[str, list[dict[str, float]]] = {
        f"{kind}, {what}": [] for kind in ("pitched", "drums") for what in ("real", "added")
    }
    found = parts_of_ensembles(pieces_of(sampler, None, options.pieces, 10**6))
    for number, (name, score, program) in enumerate(islice(found, options.count)):
        try:
            made = sampler.fill(
                without(score, program),
                (1, BARS),
                num_samples=options.times,
                programs=(program,),
                beside=True,
                random_seed=number,
                **wishes,
            )
        except MelodiaError as error:  # a metre that changes inside
            print(f"{name}: {error}")
            continue
        kind = "drums" if program < 0 else "pitched"
        columns[f"{kind}, real"].append(fit(score, program) | {"classes like the real part's": NAN})
        columns[f"{kind}, added"].append(means([fit(filling.score, program, score) for filling in made]))
    print("\n".join(table(columns)))
    write_figures(columns, options.json)


if __name__ == "__main__":
    main()
