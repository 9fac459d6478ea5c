"""What continuations keep of their seeds: register, ranges, voices, key, programs, drums beside the tune, bars, closes.

`python -m benchmarks.continuations --whole midi_samples --pieces HELD_OUT --json FILE` continues each file of the one
folder behind its end, and pieces of the other (searched with its sub-folders, as many from each) behind their first 16
bars, several times each. The held-out pieces go on by themselves: what the same figures are for the bars that really
come there is the yardstick. Everything is relative to the seed, piece by piece; means are over pieces.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.corpus.discover import Found, find_midi_files
from melodia.decode import SamplingConfig
from melodia.decode.config import RECOMMENDED
from melodia.errors import MelodiaError
from melodia.evaluation.collapse import collapse_report
from melodia.evaluation.continuations import as_written, parts_of
from melodia.evaluation.notes import NoteTable, note_table
from melodia.evaluation.statistics import estimate_key, pitch_in_scale, polyphony
from melodia.measure import plain
from melodia.midi import read_score
from melodia.notes import Notes, notes_of_score, program_of
from melodia.sampler import Sampler
from melodia.sampler.recall import FEW_NOTES
from melodia.sampler.texture import Part, part_of, texture_of

SEED_BARS, BARS, WINDOW = 16, 16, 4
NAN = float("nan")


@dataclass(frozen=True)
class Piece:
    """A seed, and what really comes behind it.

    Attributes:
        name: of the file.
        score: what the sampler reads.
        seed_bars: how much of it is the seed; None: all.
        seed: the seed, as the tokenizer writes it.
        real: the bars behind it, as the tokenizer writes them; None where the seed is the whole piece.
    """

    name: str
    score: Any
    seed_bars: int | None
    seed: Any
    real: Any = None


@dataclass
class Texture:
    """A stretch of music, as far as it is compared. Letters: W windows of 4 bars, P programs.

    Attributes:
        pitch, top, bottom: mean over notes, and over quarter notes of the highest and the lowest pitch that sounds,
            of each window [W]; nan where nothing sounds.
        voices: mean number of pitched notes that sound together while any does.
        players: mean number of programs with pitches that sound in a quarter note in which any does.
        part: what the mean note's program plays: notes of an onset, size of steps, share of repeated notes.
        notes: notes a bar, drums included.
        shares: share of each program in the notes (-1 for the drums) [P].
        drums_only: share of the bars with drums and without a pitched note.
    """

    pitch: NDArray[np.float64]
    top: NDArray[np.float64]
    bottom: NDArray[np.float64]
    voices: float
    players: float
    part: Part | None
    notes: float
    shares: dict[int, float] = field(default_factory=dict)
    drums_only: float = 0.0


def texture(score: Any) -> Texture:
    """The texture of a score."""
    table = note_table(score)
    pitched = table.pitched
    windows = [
        table.bars_between(first, min(first + WINDOW, table.bars)).pitched
        for first in range(0, table.bars, WINDOW)
    ]
    lines = [
        outer_lines(pitched, table.bar_lines[first], table.bar_lines[min(first + WINDOW, table.bars)])
        for first in range(0, table.bars, WINDOW)
    ]
    programs = [program_of(track) for track in score.tracks]
    counts = dict.fromkeys(programs, 0)
    for track, count in zip(*np.unique(table.track, return_counts=True), strict=True):
        counts[programs[track]] += int(count)
    total = max(1, len(table.start))
    drums, tune = (np.unique(part.bar_of_note) for part in (table.select(table.drum), pitched))
    return Texture(
        pitch=np.array([mean(window.pitch) for window in windows]),
        top=np.array([top for top, _ in lines]),
        bottom=np.array([bottom for _, bottom in lines]),
        voices=polyphony(table),
        players=players(score),
        part=mean_part(score),
        notes=len(table.start) / max(1, table.bars),
        shares={program: count / total for program, count in counts.items() if count},
        drums_only=len(np.setdiff1d(drums, tune)) / max(1, table.bars),
    )


def outer_lines(table: NoteTable, first: int, last: int) -> tuple[float, float]:
    """Mean highest and lowest pitch that sound at the quarter notes between two ticks."""
    tops, bottoms = [], []
    for tick in range(int(first), int(last), table.resolution):
        sounding = table.pitch[(table.start < tick + table.resolution) & (table.end > tick)]
        if len(sounding):
            tops.append(sounding.max())
            bottoms.append(sounding.min())
    return mean(tops), mean(bottoms)


def players(score: Any) -> float:
    """How many programs with pitches sound together; nan where none does."""
    notes = notes_of_score(score)
    if not (notes.program >= 0).any():
        return NAN
    whole = texture_of(notes, score.ticks_per_quarter, 0, score.end())
    assert whole is not None
    return whole.players


def mean_part(score: Any) -> Part | None:
    """The parts of a score's programs, each as often as it has notes; None without pitched notes."""
    of_program = notes_by_program(score).values()
    if not of_program:
        return None
    parts = [astuple(part_of(notes, score.ticks_per_quarter)) for notes in of_program]
    return Part(*np.average(parts, axis=0, weights=[len(notes.pitch) for notes in of_program]).tolist())


def mean(values: Iterable[float]) -> float:
    """The mean of what is defined; nan of nothing."""
    known = [float(value) for value in values if value == value]
    return float(np.mean(known)) if known else NAN


def compare(seed: Any, music: Any) -> dict[str, float]:
    """What music keeps of the seed before it: figures by name, nan where undefined."""
    before, after = texture(seed), texture(music)
    found: dict[str, float] = {}
    for name in ("pitch", "top", "bottom"):
        start = mean(getattr(before, name))
        curve = getattr(after, name) - start
        for window, value in enumerate(curve[: BARS // WINDOW]):
            found[f"{name} drift, bars {window * WINDOW + 1}-{(window + 1) * WINDOW}"] = float(value)
        found[f"{name} drift"] = mean(curve)
        found[f"{name} drift, size"] = abs(mean(curve))
    found["voices, ratio"] = after.voices / before.voices
    found["voices, log size"] = abs(np.log(after.voices / before.voices))
    if before.part and after.part:
        found["chord, ratio"] = after.part.chord / before.part.chord
        found["step, ratio"] = after.part.step / before.part.step if before.part.step else NAN
        found["notes repeated, seed"] = before.part.repeated
        found["notes repeated"] = after.part.repeated
        found["note length, log size"] = abs(np.log(after.part.length / before.part.length))
        found["velocity drift, size"] = abs(after.part.velocity - before.part.velocity)
        found["velocity spread, ratio"] = (
            after.part.spread / before.part.spread if before.part.spread else NAN
        )
        found["velocity spread where there was none"] = NAN if before.part.spread else after.part.spread
    found["chords in single lines"] = thickened(seed, music)
    found["notes a bar, ratio"] = after.notes / before.notes
    found["notes a bar, log size"] = abs(np.log(max(after.notes, 0.1) / before.notes))
    found["players, ratio"] = after.players / before.players
    found["outside its own range"] = astray(seed, music)
    programs = set(before.shares) | set(after.shares)
    found["programs, distance"] = (
        sum(abs(before.shares.get(p, 0) - after.shares.get(p, 0)) for p in programs) / 2
    )
    found["programs lost"] = (
        float(sum(p not in after.shares for p in before.shares)) if len(before.shares) > 1 else NAN
    )
    if -1 in before.shares:
        found["drums' share, seed"] = before.shares[-1]
        found["drums' share"] = after.shares.get(-1, 0.0)
        found["bars of drums alone"] = after.drums_only
    key = estimate_key(seed)
    if key is not None and after.voices == after.voices:
        other = estimate_key(music)
        found["in the seed's scale, seed"] = pitch_in_scale(seed, key.tonic, key.mode)
        found["in the seed's scale"] = pitch_in_scale(music, key.tonic, key.mode)
        found["seed's key"] = float(other is not None and (other.tonic, other.mode) == (key.tonic, key.mode))
        found["seed's scale as key"] = float(other is not None and signature(other) == signature(key))
        found.update(ending(music, key.tonic))
    found["bars that came before"] = recurring(seed, music)
    report = collapse_report(music)
    found["collapse findings"] = float(bool(report.findings))
    found["note loop"] = float(report.note_loop)
    return found


def thickened(seed: Any, music: Any) -> float:
    """Notes beyond one an onset in the parts that have none in the seed, as a share of the onsets; nan without such."""
    found = notes_by_program(music)
    shares = []
    for program, notes in notes_by_program(seed).items():
        if program in found and part_of(notes, seed.ticks_per_quarter).chord == 1:
            shares.append(part_of(found[program], music.ticks_per_quarter).chord - 1)
    return mean(shares)


def astray(seed: Any, music: Any) -> float:
    """Share of the notes more than 2 semitones outside what their program has in the seed; nan of none."""
    ranges = {p: (notes.pitch.min(), notes.pitch.max()) for p, notes in notes_by_program(seed).items()}
    outside: list[bool] = []
    for program, notes in notes_by_program(music).items():
        if program in ranges:
            low, high = ranges[program]
            outside += ((notes.pitch < low - 2) | (notes.pitch > high + 2)).tolist()
    return mean(outside)


def notes_by_program(score: Any) -> dict[int, Notes]:
    """The notes of each program that plays, without the drums."""
    notes = notes_of_score(score)
    return {p: notes.select(notes.program == p) for p in np.unique(notes.program).tolist() if p >= 0}


def recurring(seed: Any, music: Any) -> float:
    """Share of the bars (of three notes and more) that are the same as an earlier one: places, pitches, programs."""
    heard, again = set(bars_of(seed)), []
    for bar in bars_of(music):
        if len(bar) >= FEW_NOTES:
            again.append(bar in heard)
        heard.add(bar)
    return mean(again)


def bars_of(score: Any) -> list[frozenset[tuple[int, int, int]]]:
    """The notes of each bar: program, onset in it, pitch."""
    table = note_table(score)
    programs = [program_of(track) for track in score.tracks]
    bars: list[set[tuple[int, int, int]]] = [set() for _ in range(table.bars)]
    for note, bar in enumerate(table.bar_of_note.tolist()):
        onset = int(table.start[note] - table.bar_lines[bar])
        bars[bar].add((programs[table.track[note]], onset, int(table.pitch[note])))
    return [frozenset(bar) for bar in bars]


def signature(key: Any) -> int:
    """The pitch class of the major key with the same scale."""
    return (key.tonic + 3 * (key.mode == "minor")) % 12


def ending(music: Any, tonic: int) -> dict[str, float]:
    """How the last bar ends: on the tonic in the bass, with a last note longer than the mean one, to the bar line."""
    table = note_table(music)
    pitched = table.pitched
    last = pitched.select(pitched.start == pitched.start.max())
    sounding = pitched.select(pitched.end >= pitched.end.max() - table.resolution // 12)
    return {
        "ends on the tonic": float(sounding.pitch.min() % 12 == tonic),
        "last note's length over the mean": float(
            (last.end - last.start).max() / (pitched.end - pitched.start).mean()
        ),
        "quarters of silence at the end": float((table.bar_lines[-1] - table.end.max()) / table.resolution),
    }


def pieces_of(sampler: Sampler, whole: Path | None, held_out: Path | None, count: int) -> Iterator[Piece]:
    """The pieces to continue; of those that are cut, as many from each sub-folder."""
    if whole is not None:
        for found in find_midi_files(whole):
            score = read_score(found.path)[0]
            yield Piece(f"{whole.name}/{found.relative}", score, None, as_written(sampler, score))
    if held_out is None:
        return
    folders: dict[str, list[Found]] = {}
    for found in find_midi_files(held_out):
        folders.setdefault(found.relative.split("/")[0], []).append(found)
    rng = np.random.default_rng(0)
    queues = [[files[i] for i in rng.permutation(len(files))] for _, files in sorted(folders.items())]
    while count and any(queues):
        for files in queues:
            while count and files:
                found = files.pop()
                try:
                    parts = parts_of(sampler, found.path, SEED_BARS, BARS)
                except MelodiaError:
                    continue
                if parts is not None:
                    yield Piece(found.relative, parts[0], SEED_BARS, parts[1], parts[2])
                    count -= 1
                    break


def measure(
    sampler: Sampler, piece: Piece, times: int, sampling: SamplingConfig, wishes: dict[str, Any]
) -> dict[str, float]:
    """The mean figures of a piece's continuations."""
    sampler.prime(piece.score, seed_bars=piece.seed_bars)
    made = sampler.generate_many(times, bars=BARS, sampling=sampling, **wishes)
    found = [
        compare(piece.seed, continuation.score) | {"nats a token": continuation.report.nll}
        for continuation in made
    ]
    return means(found)


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every figure over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: mean(row.get(name, NAN) for row in rows) for name in names}


def table(columns: dict[str, list[dict[str, float]]]) -> list[str]:
    """The means over pieces as lines of text, a column for each set."""
    names = dict.fromkeys(name for rows in columns.values() for row in rows for name in row)
    lines = [f"{'':36}" + "".join(f"{title:>14}" for title in columns)]
    for name in names:
        values = (mean(row.get(name, NAN) for row in rows) for rows in columns.values())
        lines.append(f"{name:36}" + "".join(f"{value:14.3f}" for value in values))
    return lines


def parser_of(description: str | None, weights: str) -> argparse.ArgumentParser:
    """The options that the measurements of music share; weights: their default format."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, help="a checkpoint folder; without: the model that comes along")
    parser.add_argument("--weights", default=weights, choices=("fp32", "bf16", "int8"))
    parser.add_argument("--count", type=int, default=36, help="how many of the held-out pieces")
    parser.add_argument("--json", type=Path, help="write the figures of every piece here")
    return parser


def write_figures(figures: object, path: Path | None) -> None:
    """The figures of every piece as JSON, what is not defined as null; None: nowhere."""
    if path is not None:
        path.write_text(json.dumps(plain(figures), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Continue, compare, print."""
    parser = parser_of(__doc__, weights="fp32")
    parser.add_argument("--whole", type=Path, metavar="FOLDER", help="files to continue behind their end")
    parser.add_argument("--pieces", type=Path, metavar="FOLDER", help="files to continue behind 16 bars")
    parser.add_argument("--times", type=int, default=4, help="continuations of each")
    parser.add_argument("--temperature", type=float, default=RECOMMENDED["temperature"])
    parser.add_argument("--top-p", type=float, default=RECOMMENDED["top_p"])
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--pitch-bias", type=float, default=RECOMMENDED["pitch_bias"])
    parser.add_argument("--branches", type=int, default=RECOMMENDED["branches"])
    parser.add_argument("--recall", type=float, default=RECOMMENDED["recall"])
    options = parser.parse_args(arguments)
    sampler = Sampler.load(options.model, weights=options.weights)
    sampling = SamplingConfig(
        temperature=options.temperature,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
    )
    wishes = {"pitch_bias": options.pitch_bias, "branches": options.branches, "recall": options.recall}
    whole: dict[str, dict[str, float]] = {}
    held_out: dict[str, dict[str, float]] = {}
    real: dict[str, dict[str, float]] = {}
    for number, piece in enumerate(pieces_of(sampler, options.whole, options.pieces, options.count)):
        found = measure(sampler, piece, options.times, sampling, {**wishes, "random_seed": number})
        (whole if piece.real is None else held_out)[piece.name] = found
        if piece.real is not None:
            real[piece.name] = compare(piece.seed, piece.real)
    sets = {"whole": whole, "held-out": held_out, "real": real}
    print("\n".join(table({name: list(rows.values()) for name, rows in sets.items() if rows})))
    write_figures(sets, options.json)


if __name__ == "__main__":
    main()
