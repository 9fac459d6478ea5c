"""What parts of each General MIDI family do in music for several: the little that is known of one nobody has heard.

`python -m benchmarks.habits CORPORA` counts it.
"""

from __future__ import annotations

from typing import NamedTuple

from melodia.notes import beat_of

FEW = 10
"""Of a family with fewer parts nothing is known: it has the medians of the others."""


class Habit(NamedTuple):
    """The habits of a family.

    Attributes:
        low, high: pitches between which all but four in a hundred of the notes lie.
        begins: how likely a part that is silent begins a note where another does: at a bar line, a beat, half a beat,
            and elsewhere.
        length: of a note, in quarter notes: the median over parts of their means.
        alone: whether three tracks in four play one note at a time.
    """

    low: int
    high: int
    begins: tuple[float, float, float, float]
    length: float
    alone: bool


HABITS = (
    Habit(35, 85, (0.98, 0.97, 0.9, 0.83), 0.68, False),
    Habit(50, 97, (0.93, 0.72, 0.55, 0.45), 0.84, False),
    Habit(45, 89, (0.89, 0.87, 0.85, 0.59), 0.86, False),
    Habit(37, 81, (0.97, 0.91, 0.9, 0.73), 0.56, False),
    Habit(23, 49, (0.97, 0.86, 0.92, 0.64), 0.48, True),
    Habit(41, 86, (0.91, 0.82, 0.7, 0.55), 0.69, True),
    Habit(33, 87, (0.95, 0.88, 0.67, 0.47), 2.23, False),
    Habit(44, 83, (0.87, 0.83, 0.69, 0.52), 0.91, False),
    Habit(54, 79, (0.9, 0.82, 0.7, 0.49), 0.79, True),
    Habit(62, 91, (0.9, 0.81, 0.69, 0.56), 0.69, True),
    Habit(27, 84, (0.93, 0.9, 0.92, 0.75), 0.58, False),
    Habit(35, 78, (0.97, 0.92, 0.6, 0.37), 3.79, False),
    Habit(45, 86, (0.89, 0.74, 0.69, 0.44), 0.57, True),
    Habit(41, 85, (0.93, 0.86, 0.7, 0.55), 0.69, True),
    Habit(41, 85, (0.93, 0.86, 0.7, 0.55), 0.69, True),
    Habit(41, 85, (0.93, 0.86, 0.7, 0.55), 0.69, False),
)
"""Of families 0 (pianos) to 15 (effects)."""

DRUMS_BEGIN = (0.98, 0.95, 0.8, 0.46)
"""`Habit.begins` of the drums."""


def kind_of_place(place: int, metre: tuple[int, int], ticks_per_quarter: int) -> int:
    """Which of `Habit.begins` holds at a place in a bar, in ticks.

    >>> [kind_of_place(place, (6, 8), 12) for place in (0, 6, 9, 18)]
    [0, 3, 2, 1]
    """
    beat = max(1, round(beat_of(metre) * ticks_per_quarter))
    if place == 0:
        return 0
    if place % beat == 0:
        return 1
    return 2 if 2 * place % beat == 0 else 3


def habit_of(program: int) -> Habit:
    """The habits of the family of a program with pitches, 0 to 127."""
    return HABITS[program // 8]
