"""Tiny samplers, hand-made seeds, and what every continuation must fulfil."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from melodia.grammar import Grammar
from melodia.model import Model, ModelConfig
from melodia.sampler import Continuation, Sampler
from melodia.sampler.classes import TokenClasses
from melodia.sampler.dynamics import Level
from melodia.side_inputs import NAMES, default_specs
from melodia.tokenizer import Tokenizer, TokenizerConfig

if TYPE_CHECKING:
    from symusic.core import ScoreTick

TPQ = 480


@lru_cache(maxsize=4)
def tokenizer_of(scheme: str) -> Tokenizer:
    return Tokenizer(TokenizerConfig(scheme=scheme))


def tiny_sampler(
    scheme: str = "REMI",
    kind: str = "sequential",
    sides: tuple[str, ...] = NAMES,
    tokenizer: Tokenizer | None = None,
    **settings: Any,
) -> Sampler:
    """A sampler with random weights, leaning to bar lines and time so that bars do not fill up with notes."""
    tokenizer = tokenizer or tokenizer_of(scheme)
    vocabulary = tokenizer.vocabulary
    if kind == "bidirectional":
        bars = vocabulary.ids_of("Bar")
        settings |= {"block_starts": bars} if bars else {"block_length": 32}
    config = ModelConfig(
        kind=kind,
        vocab_size=vocabulary.size,
        hidden_size=24,
        side_inputs=default_specs(vocabulary, sides),
        **settings,
    )
    model = Model(config, random_seed=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2.0  # far enough from uniform that the past is heard
        for kind_, lean in (("Bar", 3.0), ("Position", -1.0), ("TimeShift", 1.5), ("EOS", -2.0)):
            model.head.bias[list(vocabulary.ids_of(kind_))] += lean
        short = [i for i in vocabulary.ids_of("TimeShift") if vocabulary.value(i).startswith(("0.", "1."))]
        model.head.bias[short] += 2.0
    return Sampler(model, tokenizer)


def make_seed(
    notes: list[tuple[float, float, int, int]],
    metre: tuple[int, int] = (4, 4),
    tempo: float = 96.0,
    tpq: int = TPQ,
) -> ScoreTick:
    """A score of (onset, duration, pitch, program), times in quarter notes; program -1 is the drums."""
    from symusic.core import NoteTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

    score = ScoreTick(tpq)
    score.tempos.append(TempoTick(0, qpm=tempo))
    score.time_signatures.append(TimeSignatureTick(0, *metre))
    for program in sorted({note[3] for note in notes}):
        track = TrackTick("", max(0, program), program < 0)
        for onset, duration, pitch, of in notes:
            if of == program:
                track.notes.append(NoteTick(round(onset * tpq), round(duration * tpq), pitch, 80))
        score.tracks.append(track)
    return score


def scale(bars: int, metre: tuple[int, int] = (4, 4), program: int = 0, length: float = 1.0) -> list[Any]:
    """Quarter (or eighth) notes that fill bars."""
    beat = 4 / metre[1]
    return [(i * beat, beat * length, 60 + (i * 2) % 12, program) for i in range(bars * metre[0])]


def notes_of(score: ScoreTick) -> list[tuple[int, float, int, float, int]]:
    """(program, onset, pitch, end, velocity) in quarter notes, sorted."""
    found = []
    for track in score.tracks:
        program = -1 if track.is_drum else track.program
        for note in track.notes:
            found.append(
                (
                    program,
                    round(note.time / score.ticks_per_quarter, 6),
                    note.pitch,
                    round(note.end / score.ticks_per_quarter, 6),
                    note.velocity,
                )
            )
    return sorted(found)


def quarters(metre: tuple[int, int]) -> float:
    return 4 * metre[0] / metre[1]


def check_continuation(sampler: Sampler, made: Continuation, bars: int | None = None) -> None:
    """What every continuation fulfils, whatever the seed; `bars` is the length that was asked for."""
    from melodia.midi import midi_bytes, read_score

    context = sampler.state.context
    tpq = made.score.ticks_per_quarter
    metre = made.report.metre
    join = (context.join - context.origin) / tpq
    line = join if join == 0 else quarters(context.metre or metre)
    new = notes_of(made.score)
    assert len(new) == made.report.notes == len(made.events)
    assert len(made.tokens) == len(made.nll) == len(made.entropy) == made.report.tokens
    assert (made.nll >= 0).all()
    assert made._map.join / tpq == join

    end = made._map.end / tpq
    if bars is not None:
        assert made.report.bars == bars
        assert end == line + bars * quarters(metre)
    assert min(onset for _, onset, _, _, _ in new) >= join - 1e-6, "a note before the join"
    assert max(stop for _, _, _, stop, _ in new) <= end + 1e-6, "a note behind the final bar line"
    assert any(line - 1e-6 <= onset < line + quarters(metre) for _, onset, _, _, _ in new), (
        "an empty first bar"
    )
    if context.programs is not None:
        assert {note[0] for note in new} <= set(context.programs)

    whole = made.joined_score
    _, report = read_score(midi_bytes(whole))
    assert [str(f) for f in report.findings if f.kind in ("repaired", "dropped")] == []
    if made.seed is not None:
        before = [note for note in notes_of(whole) if note[1] < context.seed_join - 1e-4]
        seed = notes_of(made.seed)
        assert [note[:3] + note[4:] for note in before] == [note[:3] + note[4:] for note in seed]
        after = [note for note in notes_of(whole) if note[1] >= context.seed_join - 1e-4]
        assert len(after) == len(new)

    known = {} if made.seed is None else {"ids": sampler.tokenizer.encode(made.seed).ids}
    ids = np.concatenate([known.get("ids", np.zeros(0, np.int32)), made.tokens])
    assert Grammar.compile(sampler.vocabulary).accepts(ids.tolist()) is None


def decoded_after_join(sampler: Sampler, made: Continuation) -> list[tuple[int, float, int, float, int]]:
    """The new notes as the tokenizer reads them in seed and continuation together; the oracle of the events."""
    known = [] if made.seed is None else [sampler.tokenizer.encode(made.seed).ids]
    ids = np.concatenate([*known, made.tokens])
    if sampler.tokenizer.config.scheme == "MIDILike":  # notes that still sound: let time pass to the end
        longest = max(sampler.vocabulary.ids_of("TimeShift"))
        ids = np.concatenate([ids, [longest] * 20])
    score = sampler.tokenizer.decode(ids)
    context = sampler.state.context
    tpq = score.ticks_per_quarter
    origin, end = context.origin / tpq, made._map.end / tpq
    level = Level.of(TokenClasses(sampler.vocabulary), made.seed)
    loud = None if level is None else level.velocity
    return sorted(
        (program, round(onset - origin, 6), pitch, round(min(stop - origin, end), 6), loud or velocity)
        for program, onset, pitch, stop, velocity in notes_of(score)
        if context.join / tpq - 1e-6 <= onset < origin + end - 1e-6
    )
