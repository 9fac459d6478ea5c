"""How bars that were made anew fit between those around them: `python -m benchmarks.fillings HELD_OUT --json FILE`.

Bars 9 to 12 of held-out pieces are filled several times each. Beside them stand the bars that were there, and bars that
were drawn once from what stands before, without regard to what comes behind. Means are over pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.continuations import means, parser_of, pieces_of, table, write_figures
from melodia.decode.config import RECOMMENDED
from melodia.errors import MelodiaError
from melodia.midi import bar_table, window
from melodia.midi.replace import replace
from melodia.notes import Notes, notes_of_score
from melodia.sampler import Sampler
from melodia.sampler.texture import texture_of

BARS = (9, 12)
EDGE = 2
"""Quarter notes on either side of a join that are compared."""

NAN = float("nan")


def edge(notes: Notes, quarter: int, tick: int) -> dict[str, float]:
    """What changes over a bar line: the steps of the outer voices in semitones, and how alike the pitch classes are."""
    near = EDGE * quarter
    before = notes.select((notes.onset < tick) & (notes.onset >= tick - near))
    after = notes.select((notes.onset >= tick) & (notes.onset < tick + near))
    if not len(before.onset) or not len(after.onset):
        return {}
    top = before.pitch[before.onset == before.onset.max()].max()
    next_top = after.pitch[after.onset == after.onset.min()].max()
    x, y = (np.bincount(part.pitch % 12, minlength=12).astype(float) for part in (before, after))
    return {
        "step of the top": float(abs(top - next_top)),
        "step of the bottom": float(abs(before.pitch.min() - after.pitch.min())),
        "pitch classes alike": float(x @ y / np.sqrt((x @ x) * (y @ y))),
    }


def fit(score: Any, start: int, stop: int, nll: float | None) -> dict[str, float]:
    """How the music between two ticks of a score fits: figures by name.

    Args:
        score: the whole piece.
        start, stop: in its ticks.
        nll: of what comes behind, in nats a token.
    """
    notes, quarter = notes_of_score(score), score.ticks_per_quarter
    pitched = notes.select(notes.program >= 0)
    spans = {"": (start, stop), "before": (0, start), "behind": (stop, score.end())}
    textures = {name: texture_of(notes, quarter, *span) for name, span in spans.items()}
    here = textures.pop("")
    found = {"nats a token behind": NAN if nll is None else nll}
    for name, tick in (("first", start), ("second", stop)):
        found |= {f"{what}, {name} join": value for what, value in edge(pitched, quarter, tick).items()}
    for name, texture in textures.items():
        known = here is not None and texture is not None
        found[f"texture from {name}"] = here.distance(texture) if known else NAN  # type: ignore[union-attr, arg-type]
    return found


def fillings(sampler: Sampler, score: Any, times: int, random_seed: int) -> dict[str, list[dict[str, float]]]:
    """The figures of the bars that were there ("real"), that were drawn once ("one draw"), and that were filled."""
    lines = bar_table(score)
    start, stop = lines.line(BARS[0] - 1), lines.line(BARS[1])
    wishes = {name: RECOMMENDED[name] for name in ("temperature", "top_p", "pitch_bias")}
    found: dict[str, list[dict[str, float]]] = {"one draw": [], "filled": []}
    for filling in sampler.fill(score, BARS, num_samples=times, random_seed=random_seed, **wishes):
        scale = filling.score.ticks_per_quarter // score.ticks_per_quarter
        found["filled"].append(fit(filling.score, start * scale, stop * scale, filling.following_nll))
        found["real"] = [fit(score, start, stop, filling.following_nll_before)]
    twin, behind = sampler.fork(), window(score, stop, lines.end)[0]
    twin.prime(score, seed_bars=BARS[0] - 1)
    for made in twin.generate_many(
        times, bars=BARS[1] - BARS[0] + 1, random_seed=random_seed, programs=None, **wishes
    ):
        whole, _ = replace(score, made.score, start, stop)
        scale = whole.ticks_per_quarter // score.ticks_per_quarter
        nll = twin.nll(behind, state=made.state)
        found["one draw"].append(fit(whole, start * scale, stop * scale, nll))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill, compare, print."""
    parser = parser_of(__doc__, weights="int8")
    parser.add_argument("pieces", type=Path, metavar="FOLDER", help="held-out MIDI files")
    parser.add_argument("--times", type=int, default=2, help="fillings of each")
    options = parser.parse_args(arguments)
    sampler = Sampler.load(options.model, weights=options.weights)
    columns: dict[str, list[dict[str, float]]] = {"real": [], "one draw": [], "filled": []}
    for number, piece in enumerate(pieces_of(sampler, None, options.pieces, options.count)):
        try:
            found = fillings(sampler, piece.score, options.times, number)
        except MelodiaError as error:  # a metre that changes inside
            print(f"{piece.name}: {error}")
            continue
        for name, rows in found.items():
            columns[name].append(means(rows))
    print("\n".join(table(columns)))
    write_figures(columns, options.json)


if __name__ == "__main__":
    main()
