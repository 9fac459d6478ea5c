"""The texture of a stretch of music: how dense, how high and low, how loud, how many voices, which instruments."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from melodia.notes import Notes

OUTER = 4.0
"""Semitones between outer lines that count as much as a density, or a number of voices, e times as high."""

REPEATED = 2.0
"""The weight of a share of repeated notes beside those."""

LOUDNESS = 12.0
"""Velocities beyond the other's dynamics that count as much."""

CHORDS_IN_A_LINE = 4.0
"""The weight of the notes that a part has beyond one an onset where it never has any."""

RESTS = 1.0
"""The weight of a part that rests, by its share in the notes."""


@dataclass(frozen=True)
class Part:
    """What a program with pitches plays.

    Attributes:
        register: its mean pitch.
        chord: notes of an onset.
        step: mean size in semitones of the steps from each onset's highest note to the next one's; 0 without any.
        repeated: how many of those steps stay where they are, as a share.
        length: mean length of a note, in quarter notes.
        velocity, spread: mean and standard deviation of the velocities.
    """

    register: float
    chord: float
    step: float
    repeated: float
    length: float
    velocity: float
    spread: float

    def distance(self, other: Part) -> float:
        """How unlike two parts are: 0 for equal ones."""
        found = abs(np.log(self.chord / other.chord)) + abs(np.log(self.length / other.length))
        found += REPEATED * abs(self.repeated - other.repeated)
        found += self._other_dynamics(other) / LOUDNESS
        return float(found + (abs(self.register - other.register) + abs(self.step - other.step)) / OUTER)

    def _other_dynamics(self, other: Part) -> float:
        """Velocities by which the dynamics leave those of the other part, which go further than those of two bars."""
        level = max(0.0, abs(self.velocity - other.velocity) - other.spread / 2)
        return level + max(0.0, self.spread - other.spread, other.spread / 2 - self.spread)


@dataclass(frozen=True)
class Texture:
    """What is compared of two stretches.

    Attributes:
        density, drum_density: onsets a quarter note, of pitched notes and of drums.
        drum_velocity: mean velocity of the drums; 0 without any.
        top, bottom: mean over quarter notes of the highest and the lowest pitch; None where nothing is pitched.
        voices: mean number of pitched notes that sound in a quarter note in which any does.
        players: mean number of programs with pitches that sound in such a quarter note.
        shares: of each program in the notes.
        parts: of each program with pitches.
        classes: of each pitch class in the pitched notes, [12]; zeros where nothing is pitched.
    """

    density: float
    drum_density: float
    drum_velocity: float
    top: float | None
    bottom: float | None
    voices: float
    players: float
    shares: dict[int, float]
    parts: dict[int, Part]
    classes: NDArray[np.float64]

    def distance(self, other: Texture) -> float:
        """How unlike two textures are: 0 for equal ones.

        The sum of the logarithms' differences (densities, with a note in eight quarters added, voices, players), the
        differences of the outer lines in units of `OUTER`, the total variation of both kinds of shares, and the
        distances of the parts by the programs' shares in the other, a part that rests by `RESTS`. Chords in a part that
        is a single line in the other count whatever its share.
        """
        found = abs(np.log((self.density + 0.125) / (other.density + 0.125)))
        found += abs(np.log((self.drum_density + 0.125) / (other.drum_density + 0.125)))
        if self.drum_density and other.drum_density:
            found += abs(self.drum_velocity - other.drum_velocity) / LOUDNESS
        programs = self.shares.keys() | other.shares.keys()
        found += sum(abs(self.shares.get(p, 0.0) - other.shares.get(p, 0.0)) for p in programs) / 2
        if self.top is None or self.bottom is None or other.top is None or other.bottom is None:
            return float(found)
        found += abs(np.log(self.voices / other.voices)) + abs(np.log(self.players / other.players))
        found += np.abs(self.classes - other.classes).sum() / 2
        for program, part in other.parts.items():
            mine = self.parts.get(program)
            found += other.shares[program] * (RESTS if mine is None else mine.distance(part))
            if mine is not None and part.chord == 1:
                found += CHORDS_IN_A_LINE * (mine.chord - 1)
        return float(found + (abs(self.top - other.top) + abs(self.bottom - other.bottom)) / OUTER)

    def of_anyone(self) -> Texture:
        """What does not hang on who plays: density, outer lines and pitch classes of what is pitched."""
        return replace(
            self, drum_density=0.0, drum_velocity=0.0, voices=1.0, players=1.0, shares={}, parts={}
        )


def texture_of(notes: Notes, ticks_per_quarter: int, start: int, end: int) -> Texture | None:
    """The texture of what begins between two ticks; None where nothing does.

    >>> from melodia.notes import notes_of_events
    >>> notes = notes_of_events([(0, 24, 0, 60), (0, 12, 0, 48), (12, 12, 0, 50), (0, 1, -1, 38)])
    >>> texture = texture_of(notes, 12, 0, 24)
    >>> texture.density, texture.drum_density, texture.top, texture.bottom, texture.voices, texture.shares[-1]
    (1.5, 0.5, 60.0, 49.0, 2.0, 0.25)
    """
    notes = notes.select((notes.onset >= start) & (notes.onset < end))
    if not len(notes.onset) or end <= start:
        return None
    quarters = (end - start) / ticks_per_quarter
    pitched = notes.select(notes.program >= 0)
    programs, counts = np.unique(notes.program, return_counts=True)
    top = bottom = None
    voices = players = 0.0
    if len(pitched.onset):
        first = (pitched.onset - start) // ticks_per_quarter
        stop = np.minimum(pitched.end, end) - start
        covered = np.maximum(1, -(-stop // ticks_per_quarter) - first)
        size = int((first + covered).max())
        at = (
            np.repeat(first, covered)
            + np.arange(covered.sum())
            - np.repeat(covered.cumsum() - covered, covered)
        )
        pitch = np.repeat(pitched.pitch, covered)
        high, low, count = np.full(size, -1), np.full(size, 128), np.zeros(size)
        np.maximum.at(high, at, pitch)
        np.minimum.at(low, at, pitch)
        length = np.maximum(1, pitched.end - pitched.onset) / ticks_per_quarter
        np.add.at(count, at, np.repeat(np.minimum(1.0, length), covered))
        sounds = high >= 0
        players = len(np.unique(at * 128 + np.repeat(pitched.program, covered))) / int(sounds.sum())
        top, bottom, voices = (
            float(high[sounds].mean()),
            float(low[sounds].mean()),
            float(count[sounds].mean()),
        )
    return Texture(
        density=len(pitched.onset) / quarters,
        drum_density=(len(notes.onset) - len(pitched.onset)) / quarters,
        drum_velocity=float(drums.mean()) if len(drums := notes.velocity[notes.program < 0]) else 0.0,
        top=top,
        bottom=bottom,
        voices=voices,
        players=players,
        shares=dict(zip(programs.tolist(), (counts / len(notes.onset)).tolist(), strict=True)),
        parts={
            int(program): part_of(pitched.select(pitched.program == program), ticks_per_quarter)
            for program in programs
            if program >= 0
        },
        classes=np.bincount(pitched.pitch % 12, minlength=12) / max(1, len(pitched.onset)),
    )


def part_of(notes: Notes, ticks_per_quarter: int) -> Part:
    """The part of notes of one program.

    >>> from melodia.notes import notes_of_events
    >>> events = [(0, 12, 0, 60, 80), (0, 12, 0, 48, 80), (12, 12, 0, 60, 60), (24, 24, 0, 64, 60)]
    >>> part_of(notes_of_events(events), 12)  # doctest: +NORMALIZE_WHITESPACE
    Part(register=58.0, chord=1.3333333333333333, step=2.0, repeated=0.5, length=1.25, velocity=70.0,
         spread=10.0)
    """
    order = np.lexsort((notes.pitch, notes.onset))
    onset, pitch = notes.onset[order], notes.pitch[order]
    highest = pitch[np.append(np.diff(onset) > 0, True)]
    steps = np.abs(np.diff(highest))
    return Part(
        register=float(pitch.mean()),
        chord=len(pitch) / len(highest),
        step=float(steps.mean()) if len(steps) else 0.0,
        repeated=float((steps == 0).mean()) if len(steps) else 0.0,
        length=float(np.maximum(1, notes.end - notes.onset).mean()) / ticks_per_quarter,
        velocity=float(notes.velocity.mean()),
        spread=float(notes.velocity.std()),
    )
