"""Random sequences under the grammar, and a judge of scores that shares no code with it."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import numpy as np

from melodia.grammar import Constraints, Grammar, GrammarState, Op
from melodia.tokenizer import Tokenizer, TokenizerConfig

CONSTRAINTS: dict[str, Constraints | None] = {
    "none": None,
    "piano": Constraints(programs=(0,)),
    "crowded": Constraints(programs=(0, -1), pitch_range=(60, 62), time_signatures=("3/4", "6/8")),
    "pentatonic": Constraints(programs=(0, 3), pitch_classes=(1, 3, 6, 8, 10), pitch_range=(40, 90)),
    "one pitch": Constraints(programs=(40,), pitch_range=(60, 60)),
    "one voice": Constraints(programs=(5,), pitch_range=(60, 61), max_polyphony=1),
    "two voices": Constraints(programs=(0, 1), max_polyphony=2, allow_metre_changes=False),
    "three bars": Constraints(programs=(0,), min_bars=2, max_bars=3, allow_tempo_changes=False),
    "drums": Constraints(programs=(-1,), allow_tempo=False, max_bars=4),
}
"""Constraints of every sort, alone and together, under which a sequence comes to an end."""


@functools.cache
def tokenizer_of(scheme: str, positions: int = 12) -> Tokenizer:
    return Tokenizer(TokenizerConfig(scheme=scheme, positions_per_beat=positions))


@functools.cache
def grammar_of(scheme: str, constraints: Constraints | None = None) -> Grammar:
    return Grammar.compile(tokenizer_of(scheme).vocabulary, constraints)


def sample(
    grammar: Grammar, rng: np.random.Generator, *, tokens: int = 60, by_type: bool = False
) -> list[int]:
    """A sequence drawn at random: uniform over the allowed tokens, or first over their types.

    Behind `tokens` tokens no more notes begin where something else is allowed, and EOS is taken as soon as it is.
    """
    eos = grammar.vocabulary.eos
    state = grammar.start()
    ids: list[int] = []
    while not grammar.ended(state):
        mask = grammar.mask(state)
        legal = np.flatnonzero(mask)
        assert len(legal), f"nothing may follow {[grammar.vocabulary.tokens[i] for i in ids[-8:]]}"
        if len(ids) >= tokens and mask[eos]:
            token = eos
        elif len(ids) >= tokens and len(calm := _calm(grammar, state, legal)):
            token = int(rng.choice(calm))
        elif by_type:
            kinds = grammar.type_of[legal]
            token = int(rng.choice(legal[kinds == rng.choice(np.unique(kinds))]))
        else:
            token = int(legal[rng.integers(len(legal))])
        grammar.advance(state, token, check=False)
        ids.append(token)
        assert len(ids) < tokens + 5000, "the sequence does not come to an end"
    return ids


def _calm(grammar: Grammar, state: GrammarState, legal: np.ndarray) -> np.ndarray:
    """The allowed tokens that lead to an end: no new note, and no program but one that has notes to close."""
    ops, values = np.array(grammar.tables.ops)[legal], np.array(grammar.tables.values)[legal]
    offs = (ops == Op.NOTE_OFF) | (ops == Op.DRUM_OFF)
    if offs.any():
        return legal[offs]
    open_programs = [program for program, row in state.rows.items() if state.on_off and (row >= 0).any()]
    program = (ops == Op.PROGRAM) & (np.isin(values, open_programs) | (state.on_off == 0))
    return legal[(ops != Op.PITCH) & (ops != Op.DRUM) & (ops != Op.PROGRAM) | program]


def faults(score: Any) -> list[str]:
    """What is wrong with a score; an empty list for valid music.

    Notes without length or that overlap one of their pitch, numbers out of range, metres inside a bar, times
    before zero or out of order.
    """
    found = []
    sounding: dict[tuple[int, int], int] = defaultdict(int)
    if not sum(len(track.notes) for track in score.tracks):
        found.append("no notes")
    for track in score.tracks:
        program = -1 if track.is_drum else track.program
        for note in sorted(track.notes, key=lambda n: (n.time, n.pitch)):
            if note.time < 0 or note.duration <= 0:
                found.append(f"length {note.duration} at {note.time}")
            if not (0 <= note.pitch <= 127 and 1 <= note.velocity <= 127):
                found.append(f"pitch {note.pitch}, velocity {note.velocity}")
            if note.time < sounding[program, note.pitch]:
                found.append(f"overlap of pitch {note.pitch}, program {program} at {note.time}")
            sounding[program, note.pitch] = note.time + note.duration
    for events in (score.tempos, score.time_signatures):
        times = [event.time for event in events]
        if times != sorted(set(times)) or (times and times[0] < 0):
            found.append(f"times {times}")
    start, bar = 0, 0
    for metre in score.time_signatures:
        if bar and (metre.time - start) % bar:
            found.append(f"metre {metre.numerator}/{metre.denominator} inside a bar")
        start, bar = metre.time, score.ticks_per_quarter * 4 * metre.numerator // metre.denominator
    return found


def content(score: Any) -> tuple[Any, ...]:
    """The notes, tempi and metres of a score, to compare."""
    notes = sorted(
        (-1 if track.is_drum else track.program, n.time, n.pitch, n.duration, n.velocity)
        for track in score.tracks
        for n in track.notes
    )
    last = max((n[1] + n[3] for n in notes), default=0)
    tempi = [(t.time, round(t.qpm, 1)) for t in score.tempos if t.time < last or not t.time]
    if not tempi or tempi[0][0]:
        tempi.insert(0, (0, 120.0))
    tempi = [tempo for i, tempo in enumerate(tempi) if not i or tempo[1] != tempi[i - 1][1]]
    metres = [(m.time, m.numerator, m.denominator) for m in score.time_signatures if m.time < last]
    return notes, tempi, metres


def most_at_once(score: Any) -> int:
    """How many notes sound at once at most."""
    edges = sorted(
        edge
        for track in score.tracks
        for n in track.notes
        for edge in ((n.time, 1), (n.time + n.duration, -1))
    )
    most = now = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most
