"""From a seed to tokens, and to what new music keeps of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melodia.checks import real_number, whole_number
from melodia.errors import ConfigError, MidiError, TokenizerError
from melodia.grammar import Grammar, TokenReader
from melodia.midi.report import Finding
from melodia.notes import beat_of, programs_of
from melodia.sampler.session import Context, half_described
from melodia.tokenizer import Tokenizer
from melodia.vocabulary import Vocabulary

if TYPE_CHECKING:
    from symusic.core import ScoreTick

TEMPO_BARS = 8
"""The tempo at the join is the one that prevails in this many bars before it."""


BEGUN = "token of a note or bar that is only begun"


@dataclass(frozen=True)
class Seed:
    """A seed, read.

    Attributes:
        ids: int32 [N], without BOS and EOS.
        score: the seed as read, cut to what is used; not on the grid.
        context: what new music keeps.
        bars, notes, seconds: what is used of it.
        tempo_at_end: quarter notes a minute at the join, which need not be those that new music keeps.
        findings: what was repaired or dropped.
        unseen: what its tokens do not say.
    """

    ids: NDArray[np.int32]
    score: ScoreTick
    context: Context
    bars: int
    notes: int
    seconds: float
    tempo_at_end: float
    findings: list[Finding] = field(default_factory=list)
    unseen: list[Finding] = field(default_factory=list)


def read_seed(
    source: Any,
    tokenizer: Tokenizer,
    *,
    seed_bars: int | None = None,
    seed_seconds: float | None = None,
) -> Seed:
    """Read a seed.

    Args:
        source: whatever `melodia.midi.read_score` takes (path, bytes, binary file, PrettyMIDI), a symusic score in
            ticks, or token ids [N].
        tokenizer: the model's.
        seed_bars: use only the first bars.
        seed_seconds: or only the first seconds, completed to a bar line.

    Raises:
        MidiError: it cannot be read.
        TokenizerError: nothing in it can be written as tokens, or ids are not the vocabulary's.
        GrammarError: token ids are not music.
        ConfigError: `seed_bars` or `seed_seconds` out of range, or both; or what they leave holds no note.
    """
    from melodia.midi import bar_table, cut_score, seconds_of

    if seed_bars is not None and seed_seconds is not None:
        raise ConfigError("give `seed_bars` or `seed_seconds`, not both")
    if seed_bars is not None:
        seed_bars = whole_number("seed_bars", seed_bars, 1)
    if seed_seconds is not None:
        seed_seconds = real_number("seed_seconds", seed_seconds)
        if seed_seconds <= 0:
            raise ConfigError(f"`seed_seconds` must be more than 0 (received {seed_seconds})")
    score, name, findings, ids = open_music(source, tokenizer)
    line: float | None = None  # the bar line at which the seed was cut, in quarter notes
    if seed_bars is not None or seed_seconds is not None:
        whole = bar_table(score)
        score, cut = cut_score(score, bars=seed_bars, seconds=seed_seconds)
        used = len(whole) if seed_bars is None else min(seed_bars, len(whole))
        if seed_seconds is not None:
            seconds = seconds_of(score, whole.starts)
            used = max(1, int(np.searchsorted(seconds, seed_seconds - 1e-9, "left")))
        findings += cut
        ids = None
        if used < len(whole):
            line = whole.line(used) / score.ticks_per_quarter
            late = _drop_from(
                score, (line - 0.5 / tokenizer.config.positions_per_beat) * score.ticks_per_quarter
            )
            if late:
                findings.append(Finding("dropped", "seed note that begins at the cut", late))
        if not any(len(track.notes) for track in score.tracks):
            count, unit = (seed_bars, "bar") if seed_bars is not None else (seed_seconds, "second")
            part = (
                f"first {unit} of {name} holds" if count == 1 else f"first {count:g} {unit}s of {name} hold"
            )
            raise ConfigError(f"the {part} no notes; use more of it")
    unseen: list[Finding] = []
    if ids is None:
        encoding = tokenizer.encode(score)
        ids, unseen = encoding.ids, encoding.findings
    context = _context(ids, score, name, tokenizer, line)
    table = bar_table(score, round(context.seed_join * score.ticks_per_quarter))
    return Seed(
        ids=ids,
        score=score,
        context=context,
        bars=len(table),
        notes=sum(len(track.notes) for track in score.tracks),
        seconds=float(seconds_of(score, np.array(round(context.seed_join * score.ticks_per_quarter)))),
        tempo_at_end=_tempi(score, context.seed_join)[-1][1],
        findings=findings,
        unseen=unseen,
    )


def ids_behind(present: NDArray[np.int32] | None, more: Any) -> NDArray[np.int64]:
    """The ids of a seed with more behind them.

    Raises:
        ConfigError: these are no ids, or those of the seed are not known any more.
    """
    ids = np.asarray(more) if not isinstance(more, (str, bytes, os.PathLike)) else np.zeros(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ConfigError("`append` takes token ids; encode the music with the sampler's tokenizer")
    if present is None:
        raise ConfigError("`append` extends a seed, but this session has moved past its own; prime again")
    return np.concatenate([present, ids]).astype(np.int64)


def open_music(
    source: Any, tokenizer: Tokenizer
) -> tuple[ScoreTick, str, list[Finding], NDArray[np.int32] | None]:
    """The score, the name, findings, and the ids where the source is ids."""
    from symusic.core import ScoreQuarter, ScoreSecond, ScoreTick

    from melodia.midi import read_score

    if isinstance(source, (ScoreQuarter, ScoreSecond)):
        raise MidiError(
            f'a score must be in ticks (received {type(source).__name__}); `to("tick")` makes one'
        )
    if isinstance(source, ScoreTick):
        return source.copy(), "<score>", [], None  # whose own may be edited later
    if isinstance(source, np.ndarray) or (
        isinstance(source, Sequence) and not isinstance(source, (str, bytes, bytearray, memoryview))
    ):
        ids, begun = _check_ids(np.asarray(source), tokenizer.vocabulary)
        findings = [Finding("dropped", BEGUN, begun)] if begun else []
        return tokenizer.decode(ids), "<tokens>", findings, ids
    score, report = read_score(source)
    return score, report.path, list(report.findings), None


def _drop_from(score: ScoreTick, tick: float) -> int:
    """Remove the notes that begin at a tick or later (in place); how many."""
    count = 0
    for track in score.tracks:
        columns = track.notes.numpy()
        keep = columns["time"] < tick
        if not keep.all():
            count += int((~keep).sum())
            names = ("time", "duration", "pitch", "velocity")
            track.notes = type(track.notes).from_numpy(*(columns[name][keep] for name in names))
    return count


def _check_ids(ids: NDArray[Any], vocabulary: Vocabulary) -> tuple[NDArray[np.int32], int]:
    """Token ids of a seed, without BOS in front and EOS behind; and how many behind them only begin something."""
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise ConfigError(
            f"token ids must be whole numbers [N], N at least 1 (received {ids.dtype} {ids.shape}); "
            "a seed is a MIDI file, a score or token ids"
        )
    flat = ids.astype(np.int64)
    if flat[0] == vocabulary.bos:
        flat = flat[1:]
    if len(flat) and flat[-1] == vocabulary.eos:
        flat = flat[:-1]
    grammar = Grammar.compile(vocabulary)
    state = grammar.start()
    whole = 0  # behind the last token at which no note is half described
    for place, token in enumerate(flat.tolist()):
        grammar.advance(state, token)
        if not half_described(vocabulary, token):
            whole = place + 1
    flat, begun = flat[:whole], len(flat) - whole
    if not vocabulary.notes_of_token[flat].any():
        raise TokenizerError("the token ids of the seed hold no notes; give more of them, or prime with None")
    return flat.astype(np.int32), begun


def _context(
    ids: NDArray[np.int32],
    score: ScoreTick,
    name: str,
    tokenizer: Tokenizer,
    line: float | None,
) -> Context:
    """Find the join, and what prevails before it."""
    vocabulary = tokenizer.vocabulary
    reader = TokenReader(vocabulary)
    notes = reader.read(ids.tolist())
    quarter = reader.ticks_per_quarter
    end = max(note.onset + note.duration for note in notes) if notes else reader.now
    true_end = score.end() / score.ticks_per_quarter  # quarters
    slip = (
        end / quarter - true_end if tokenizer.config.scheme == "Structured" else 0.0
    )  # silences it shortened
    if line is not None:
        seed_join = line
    else:
        seed_join = _join(score, end / quarter - slip)
    join = round((seed_join + slip) * quarter)
    start, metre = _bar_before(score, seed_join)
    cycle, metre = _cycle(metre, tokenizer)
    gone = round((seed_join - start) * quarter)
    origin = join - gone
    return Context(
        source=name,
        join=join,
        origin=origin,
        seed_join=seed_join,
        metre=metre,
        cycle=cycle,
        anchor=origin,
        tempo=_tempo(score, seed_join),
        programs=programs_of(score),
    )


def _join(score: ScoreTick, end: float) -> float:
    """Where new music begins behind a seed whose last note ends at `end`; all in quarter notes.

    At the bar line, if less than a beat is missing to it; else right there, and the bar is completed.
    """
    from melodia.midi import bar_table

    scale = score.ticks_per_quarter
    table = bar_table(score, max(1, round(end * scale)))
    beat = beat_of((int(table.numerators[-1]), int(table.denominators[-1])))
    line = table.end / scale
    return line if line - end < min(beat, 1.5) - 1e-6 else end


def _bar_before(score: ScoreTick, place: float) -> tuple[float, tuple[int, int]]:
    """The bar line at or before a place (quarter notes), and the metre that new bars take."""
    from melodia.midi import bar_table
    from melodia.midi.bars import metres_of

    tick = round(place * score.ticks_per_quarter)
    table = bar_table(score, max(1, tick))
    if tick >= table.end:
        start = table.end
    else:
        start = int(table.starts[min(table.index(tick), len(table) - 1)])
    in_force = [metre for metre in metres_of(score) if metre[0] < max(1, tick)]
    return start / score.ticks_per_quarter, in_force[-1][1:]


def _cycle(metre: tuple[int, int], tokenizer: Tokenizer) -> tuple[tuple[str, ...], tuple[int, int]]:
    """The TimeSig values that write one bar of a metre, and the metre itself (another where none can)."""
    from symusic.core import NoteTick, ScoreTick, TimeSignatureTick, TrackTick

    from melodia.tokenizer.grid import to_grid

    if not tokenizer.config.carries_metre:
        return (), metre
    top, bottom = metre
    probe = ScoreTick(96)
    probe.time_signatures.append(TimeSignatureTick(0, top, bottom))
    track = TrackTick()
    bar = 96 * 4 * top // bottom
    track.notes.append(NoteTick(0, bar, 60, 64))
    probe.tracks.append(track)
    pieces = [(n, d) for _, n, d in to_grid(probe, tokenizer.config).metres]
    if abs(sum(4 * n / d for n, d in pieces) - 4 * top / bottom) > 1e-6:
        if len(pieces) > 1:  # equal neighbours are written once
            pieces = pieces[:1]
        count = round(4 * top / bottom / (4 * pieces[0][0] / pieces[0][1]))
        pieces = pieces * max(1, count)
        if abs(sum(4 * n / d for n, d in pieces) - 4 * top / bottom) > 1e-6:
            pieces = pieces[:1]
            metre = pieces[0]
    return tuple(f"{n}/{d}" for n, d in pieces), metre


def cycle_of(metre: tuple[int, int], tokenizer: Tokenizer) -> tuple[str, ...]:
    """The TimeSig values that write one bar of a metre.

    Raises:
        ConfigError: no tokens can write it.
    """
    cycle, written = _cycle(metre, tokenizer)
    if written != metre:
        raise ConfigError(f"the model's tokens cannot write the metre {metre[0]}/{metre[1]}; choose another")
    return cycle


def _tempi(score: ScoreTick, place: float) -> list[tuple[int, float]]:
    """The tempi before a place (quarter notes), as (tick, quarter notes a minute)."""
    from melodia.midi.convert import tempi_of

    stop = max(1, round(place * score.ticks_per_quarter))
    return [(tick, 60e6 / mspq) for tick, mspq in tempi_of(score) if tick < stop]


def _tempo(score: ScoreTick, place: float) -> float:
    """The tempo that prevails in the last bars before a place (quarter notes)."""
    from melodia.midi import bar_table

    stop, tempi = max(1, round(place * score.ticks_per_quarter)), _tempi(score, place)
    table = bar_table(score, stop)
    begin = table.line(max(0, len(table) - TEMPO_BARS))
    spans: dict[float, int] = {}
    for i, (tick, tempo) in enumerate(tempi):
        until = tempi[i + 1][0] if i + 1 < len(tempi) else stop
        span = min(until, stop) - max(tick, begin)
        if span > 0:
            spans[tempo] = spans.get(tempo, 0) + span
    half, gone = sum(spans.values()) / 2, 0
    prevailing = tempi[-1][1]
    for tempo in sorted(spans):
        gone += spans[tempo]
        if gone >= half:
            prevailing = tempo
            break
    return prevailing
