"""The key of a stretch of music, in whole numbers so that every backend finds the same one. No imports.

A key's profile says how well each pitch class fits it (Krumhansl and Kessler 1982); the key whose profile goes best
with how often the classes are heard wins, as in Krumhansl and Schmuckler's method.
"""

from __future__ import annotations

from collections.abc import Sequence

KEYS = 24
"""C major to B major are 0 to 11, C minor to B minor 12 to 23."""

NOTE = 256
"""What a note adds to the weight of its pitch class."""

FADE = (15, 16)
"""What is left of the weights a bar later, as a fraction: half of it after 11 bars."""

MAJOR = (635, 223, 348, 233, 438, 409, 252, 519, 239, 366, 229, 288)
MINOR = (633, 268, 352, 538, 260, 353, 254, 475, 398, 269, 334, 317)
"""Probe-tone ratings of the pitch classes from the tonic on, in hundredths, as in Krumhansl 1990, table 2.1."""


def _standardised(profile: Sequence[int]) -> tuple[int, ...]:
    """The profile less its mean, scaled to length 1000: its product with weights then ranks as correlation."""
    mean = sum(profile) / 12
    length = sum((x - mean) ** 2 for x in profile) ** 0.5
    return tuple(round(1000 * (x - mean) / length) for x in profile)


PROFILES: tuple[tuple[int, ...], ...] = tuple(
    tuple(profile[(pitch_class - tonic) % 12] for pitch_class in range(12))
    for profile in (_standardised(MAJOR), _standardised(MINOR))
    for tonic in range(12)
)
"""[24][12]: how well each pitch class fits each key."""


def find_key(weights: Sequence[int]) -> int:
    """The key of pitch classes.

    Args:
        weights: [12], how much each class is heard, whole numbers of 0 or more.

    Returns:
        0 to 23, the lowest among equals; -1 if nothing is heard.

    >>> find_key([3, 0, 2, 0, 2, 1, 0, 3, 0, 2, 0, 1])  # C major
    0
    >>> find_key([0] * 12)
    -1
    """
    if not any(weights):
        return -1
    scores = [sum(w * p for w, p in zip(weights, profile, strict=True)) for profile in PROFILES]
    return scores.index(max(scores))
