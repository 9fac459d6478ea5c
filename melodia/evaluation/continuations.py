"""Continuations of real pieces, beside the bars that really come there.

Both sides are read back from tokens, so that a comparison measures the model and not what its tokenizer rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from melodia.checks import whole_number
from melodia.corpus.discover import find_midi_files
from melodia.decode import SamplingConfig
from melodia.decode.config import FILTERS
from melodia.decode.philox import check_random_seed
from melodia.errors import MelodiaError
from melodia.evaluation.statistics import estimate_key, pitch_in_scale
from melodia.midi import read_score
from melodia.midi.bars import bar_table
from melodia.midi.join import window
from melodia.midi.parts import set_notes
from melodia.notes import Notes, bar_lines
from melodia.originality import Index, Originality, notes_of_score, shared_passages
from melodia.sampler import Continuation, Sampler

LEAST_NOTES = 8  # of seed and real bars: nothing can be said of fewer


@dataclass(frozen=True)
class Pair:
    """One piece, continued.

    Attributes:
        name: of the piece.
        seed: its first bars, as a score.
        real: the bars that come next in the piece.
        generated: as many bars that the model puts there.
        continuation: the same with its report.
        real_originality: what the real bars share with the training music; None without an index.
        originality: what the generated bars share, but for those that were played again from memory.
    """

    name: str
    seed: Any
    real: Any
    generated: Any
    continuation: Continuation
    real_originality: Originality | None = None
    originality: Originality | None = None


@dataclass(frozen=True)
class Settings:
    """How pieces are continued.

    Attributes:
        seed_bars: bars of the seed.
        bars: bars to generate, and to compare with.
        sampling: temperature and filters.
        pitch_bias: towards the seeds' pitch classes; see `melodia.sampler.Request`.
        branches, recall: of every two bars; see there.
        random_seed: of the choice of pieces, and of the music (session k for the k-th piece).

    Raises:
        ConfigError: a count of bars is not positive, or the random seed out of range.
    """

    seed_bars: int = 16
    bars: int = 16
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    pitch_bias: float = 0.0
    branches: int = 1
    recall: float = 0.0
    random_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("seed_bars", "bars"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        check_random_seed(self.random_seed)

    def to_dict(self) -> dict[str, Any]:
        """All of them, those of the sampling among them, as a report shows them."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        sampling = values.pop("sampling")
        return values | {name: getattr(sampling, name) for name in FILTERS}


def continue_pieces(
    sampler: Sampler,
    source: Path | Iterable[tuple[str, Path]],
    pieces: int,
    settings: Settings,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[list[Pair], list[str]]:
    """Continue the beginnings of pieces.

    Args:
        sampler: with the model; the index of its training music, if it has one, is where both are looked up.
        source: a folder of MIDI files, or (name, path) of each.
        pieces: how many; they are drawn by the random seed from those that are long enough.
        settings: how.
        progress: called with (pieces done, pieces wanted, name).

    Returns:
        the pairs, and why pieces that are long enough could not be continued.

    Raises:
        ConfigError: `pieces` is not positive.
        CheckpointError: the index is damaged.
    """
    pieces = whole_number("pieces", pieces, 1)
    if isinstance(source, Path):
        files = [(found.relative, found.path) for found in find_midi_files(source)]
    else:
        files = list(source)
    index = sampler.originality_index
    pairs: list[Pair] = []
    failed: list[str] = []
    for place in np.random.default_rng(settings.random_seed).permutation(len(files)).tolist():
        if len(pairs) == pieces:
            break
        name, path = files[place]
        try:
            parts = parts_of(sampler, path, settings.seed_bars, settings.bars)
            if parts is None:
                continue
            score, seed, real = parts
            sampler.prime(score, seed_bars=settings.seed_bars)
            continuation = sampler.generate(
                bars=settings.bars,
                sampling=settings.sampling,
                pitch_bias=settings.pitch_bias,
                branches=settings.branches,
                recall=settings.recall,
                random_seed=settings.random_seed,
                session=len(pairs),
            )
        except MelodiaError as error:
            failed.append(f"{name}: {error}")
            continue
        pairs.append(_pair(index, name, seed, real, continuation))
        if progress is not None:
            progress(len(pairs), pieces, name)
    return pairs, failed


def parts_of(sampler: Sampler, path: Path, seed_bars: int, bars: int) -> tuple[Any, Any, Any] | None:
    """The score, its first bars and those behind; None where there are too few bars or notes."""
    score, _ = read_score(path)
    table = bar_table(score)
    if len(table) < seed_bars + bars:
        return None
    join, end = table.line(seed_bars), table.line(seed_bars + bars)
    apart, grid = score, sampler.tokenizer.config
    for line, bar in ((join, seed_bars - 1), (end, seed_bars + bars - 1)):
        unit = grid.unit(max(4, int(table.denominators[bar]))) / grid.ticks_per_quarter
        apart = _parted(apart, line, unit / 2 * score.ticks_per_quarter)
    (seed, _), (real, _) = window(apart, 0, join), window(apart, join, end)
    if min(seed.note_num(), real.note_num()) < LEAST_NOTES:
        return None
    return score, as_written(sampler, seed), as_written(sampler, real)


def as_written(sampler: Sampler, score: Any) -> Any:
    """The notes as the sampler's tokenizer writes them, in the score's own metres and tempi.

    Those a continuation has from its seed, whatever tokens can say: 13/8 in one bar, and 3/4 where tokens know no bars.
    """
    written = sampler.tokenizer.decode(sampler.tokenizer.encode(score).ids)
    for name in ("time_signatures", "tempos"):
        events = [event.copy() for event in getattr(score, name)]
        for event in events:
            event.time = round(event.time * written.ticks_per_quarter / score.ticks_per_quarter)
        setattr(written, name, type(getattr(written, name))(events))
    return written


def _parted(score: Any, line: int, early: float) -> Any:
    """A copy in which no note lies across a bar line: one that begins up to `early` ticks before it begins on it.

    The grid puts it there, as the first note of a bar too many; one that was struck long before is no new one behind.
    """
    copy = score.copy()
    for track in copy.tracks:
        columns = track.notes.numpy()
        begin = columns["time"].astype(np.int64)
        stop = begin + columns["duration"]
        begin = np.where((begin < line) & (begin >= line - early), line, begin)
        stop = np.where(begin < line, np.minimum(stop, line), np.maximum(stop, begin + 1))
        columns = {**columns, "time": begin, "duration": stop - begin}
        set_notes(track, columns)
    return copy


def _pair(index: Index | None, name: str, seed: Any, real: Any, continuation: Continuation) -> Pair:
    of_real = None
    if index is not None:
        of_real = shared_passages(index, *notes_and_bars(real))
    return Pair(name, seed, real, continuation.score, continuation, of_real, continuation.originality)


def notes_and_bars(score: Any) -> tuple[Notes, Any]:
    """A score's notes, and where its bars begin and the last one ends, in its ticks."""
    notes = notes_of_score(score)
    metres = [(int(m.time), int(m.numerator), int(m.denominator)) for m in score.time_signatures]
    return notes, bar_lines(metres, int(score.end()), int(score.ticks_per_quarter))


@dataclass(frozen=True)
class KeyAgreement:
    """How well music stays in the key of what came before.

    Attributes:
        in_scale: mean share of the notes in the scale of the seed's key.
        same_key: share of the pieces whose own key is the seed's.
        pieces: how many have a key at all.
    """

    in_scale: float
    same_key: float
    pieces: int


def key_agreement(seeds: Iterable[Any], scores: Iterable[Any]) -> KeyAgreement:
    """Compare the keys of seeds and of the music behind each."""
    inside, same = [], []
    for seed, score in zip(seeds, scores, strict=True):
        key = estimate_key(seed)
        share = pitch_in_scale(score, key.tonic, key.mode) if key is not None else float("nan")
        if key is None or share != share:
            continue
        inside.append(share)
        other = estimate_key(score)
        same.append(other is not None and (other.tonic, other.mode) == (key.tonic, key.mode))
    if not inside:
        return KeyAgreement(float("nan"), float("nan"), 0)
    return KeyAgreement(float(np.mean(inside)), float(np.mean(same)), len(inside))
