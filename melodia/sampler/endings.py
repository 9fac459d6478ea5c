"""How a continuation ends: its last bars are played several times, and what closes best is kept.

A model that was asked for eight bars knows near the end how many are left, but one draw from it closes only now and
then. A recurrent state can be branched at any token: up to the last bars there is one stream, from there several, each
with random numbers of its own, and the one that `closure` puts first is the continuation. The first branch has the
random numbers of the stream itself, so that a single one is what comes without branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from melodia.grammar import NoteEvent
from melodia.key_finding import find_key
from melodia.sampler.lane import Lane

if TYPE_CHECKING:
    from symusic.core import ScoreTick

_APART = 0x9E3779B97F4A7C15
"""Between the random seeds of branches: no seeds that somebody would give one after the other."""

_TRIADS = ((0, 4, 7), (0, 3, 7))  # above the tonic: major, minor


def branches(lane: Lane) -> list[Lane]:
    """As many lanes as the request wants endings, each going on from where this one stands."""
    first = lane.request.random_seed
    return [lane.branch((first + number * _APART) % 2**64) for number in range(lane.request.endings)]


def best_ending(lanes: Sequence[Lane]) -> Lane:
    """The lane that closes best, the first among equals; all have ended and began as branches of one."""
    key = key_of(lanes[0].session.seed, lanes[0].result()[0])
    quarter = lanes[0].classes.tables.ticks_per_quarter
    return max(lanes, key=lambda lane: closure(lane.result()[0], quarter, key, lane.nll))


def key_of(seed: ScoreTick | None, notes: Sequence[NoteEvent]) -> int:
    """The key that a piece should end in, as in `melodia.key_finding`: the seed's, without one the new music's."""
    weights = [0] * 12
    if seed is not None:
        for track in seed.tracks:
            if not track.is_drum:
                columns = track.notes.numpy()
                for pitch, duration in zip(
                    columns["pitch"].tolist(), columns["duration"].tolist(), strict=True
                ):
                    weights[pitch % 12] += duration
    if not any(weights):
        for note in notes:
            if note.program >= 0:
                weights[note.pitch % 12] += note.duration
    return find_key(weights)


def closure(notes: Sequence[NoteEvent], ticks_per_quarter: int, key: int, nll: Sequence[float]) -> float:
    """How well music closes; only the order of such numbers means anything.

    Judged is what sounds last, drums apart: a point for the tonic in the bass; a point for the share of its pitch
    classes that belong to the tonic's triad; half a point for the tonic or its third on top; a point for length,
    reached by twice the mean length of a note, and none below a quarter note. Half of the mean NLL of the new tokens
    is taken off, so that among endings that close alike the likelier one wins.

    Args:
        notes: of the whole continuation, in ticks.
        ticks_per_quarter: of the grid.
        key: as in `melodia.key_finding`; -1: none, only length and likelihood count.
        nll: of the new tokens, in nats.

    >>> def played(pitches, length):
    ...     before = [NoteEvent(12 * k, 12, 0, 60, 80) for k in range(8)]
    ...     return [*before, *(NoteEvent(96, length, 0, pitch, 80) for pitch in pitches)]
    >>> c_major = 0
    >>> closure(played((48, 64, 72), 48), 12, c_major, [1.0]) > closure(played((43, 65, 71), 48), 12, c_major, [1.0])
    True
    """
    pitched = [note for note in notes if note.program >= 0]
    score = -0.5 * sum(nll) / max(1, len(nll))
    if not pitched:
        return score
    end = max(note.onset + note.duration for note in pitched)
    last = [note for note in pitched if note.onset + note.duration == end]
    longest = max(note.duration for note in last)
    mean = sum(note.duration for note in pitched) / len(pitched)
    if longest >= ticks_per_quarter:
        score += min(1.0, longest / (2 * mean))
    if key < 0:
        return score
    tonic, triad = key % 12, _TRIADS[key >= 12]
    pitches = sorted(note.pitch for note in last)
    above = {(pitch - tonic) % 12 for pitch in pitches}
    score += (pitches[0] - tonic) % 12 == 0
    score += len(above & set(triad)) / len(above)
    score += 0.5 * ((pitches[-1] - tonic) % 12 in triad[:2])
    return score
