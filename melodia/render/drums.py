"""Drum sounds made of noise bursts and falling sines, one for each General MIDI drum.

They are for listening to a groove where no soundfont is at hand, not for records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DrumSound:
    """What a drum is made of.

    Attributes:
        seconds: until it has faded by 60 dB.
        tone: a sine that falls from the first to the second frequency in Hz; None for none.
        noise: share of noise, 0-1.
        band: the noise between these frequencies in Hz.
        level: loudness beside a pitched note of the same velocity.
    """

    seconds: float
    tone: tuple[float, float] | None
    noise: float
    band: tuple[float, float]
    level: float


KICK = DrumSound(0.30, (130.0, 46.0), 0.06, (200.0, 3000.0), 2.6)
SNARE = DrumSound(0.24, (240.0, 175.0), 0.75, (900.0, 9000.0), 1.7)
STICK = DrumSound(0.06, (1700.0, 1600.0), 0.35, (1500.0, 8000.0), 1.0)
CLAP = DrumSound(0.18, None, 1.0, (900.0, 5000.0), 1.6)
HAT = DrumSound(0.07, None, 1.0, (6500.0, 16000.0), 0.9)
OPEN_HAT = DrumSound(0.45, None, 1.0, (6000.0, 16000.0), 0.9)
CRASH = DrumSound(1.50, None, 1.0, (3000.0, 15000.0), 1.1)
RIDE = DrumSound(0.80, (5200.0, 5200.0), 0.8, (4000.0, 15000.0), 0.7)
SHAKER = DrumSound(0.09, None, 1.0, (5000.0, 14000.0), 0.8)
BELL = DrumSound(0.25, (820.0, 820.0), 0.05, (2000.0, 8000.0), 0.8)
WOOD = DrumSound(0.08, (1050.0, 1000.0), 0.1, (1000.0, 6000.0), 1.0)
TRIANGLE = DrumSound(0.70, (4700.0, 4700.0), 0.05, (6000.0, 12000.0), 0.5)


def _skin(pitch: float) -> DrumSound:
    """A tom, bongo or conga that begins at a frequency in Hz."""
    return DrumSound(0.35, (pitch, pitch * 0.62), 0.12, (400.0, 4000.0), 1.9)


SOUNDS: dict[int, DrumSound] = {35: KICK, 36: KICK, 37: STICK, 38: SNARE, 39: CLAP, 40: SNARE}
SOUNDS |= {
    22: HAT,  # struck on its edge, on electronic kits
    26: OPEN_HAT,
    42: HAT,
    44: HAT,
    46: OPEN_HAT,
    49: CRASH,
    52: CRASH,
    55: CRASH,
    57: CRASH,
    51: RIDE,
    53: RIDE,
    59: RIDE,
}
SOUNDS |= {41: _skin(90), 43: _skin(110), 45: _skin(135), 47: _skin(160), 48: _skin(190), 50: _skin(225)}
SOUNDS |= {
    54: SHAKER,
    56: BELL,
    58: CLAP,
    69: SHAKER,
    70: SHAKER,
    73: SHAKER,
    74: SHAKER,
    80: TRIANGLE,
    81: TRIANGLE,
}
SOUNDS |= {60: _skin(420), 61: _skin(300), 62: _skin(330), 63: _skin(300), 64: _skin(210), 65: _skin(340)}
SOUNDS |= {66: _skin(230), 67: BELL, 68: BELL, 75: STICK, 76: WOOD, 77: WOOD, 78: _skin(300), 79: _skin(260)}


def drum_wave(pitch: int, rate: int) -> NDArray[np.float64]:
    """The sound of a drum at full velocity.

    Args:
        pitch: General MIDI drum; one that nothing here is for sounds like a wood block.
        rate: samples a second.

    Returns:
        [samples]; the same for the same arguments.

    >>> kick = drum_wave(36, 8000)
    >>> len(kick), bool(abs(kick[-1]) < 0.01)
    (2400, True)
    """
    sound = SOUNDS.get(pitch, WOOD)
    count = max(int(sound.seconds * rate), 1)
    time = np.arange(count) / rate
    decay = np.exp(-6.9 * time / sound.seconds)  # 60 dB
    fade = np.minimum(1.0, (count - np.arange(count)) / max(0.1 * count, 1))
    wave = np.zeros(count)
    if sound.tone is not None and sound.tone[0] < 0.45 * rate:
        first, last = sound.tone
        frequency = last + (first - last) * np.exp(-18.0 * time)
        wave += (1 - sound.noise) * np.sin(2 * np.pi * np.cumsum(frequency) / rate)
    low, high = sound.band
    if sound.noise and low < 0.4 * rate:
        spectrum = np.fft.rfft(np.random.default_rng(pitch).standard_normal(count))
        bins = np.fft.rfftfreq(count, 1 / rate)
        spectrum[(bins < low) | (bins > high)] = 0
        burst = np.fft.irfft(spectrum, count)
        wave += sound.noise * burst / max(np.abs(burst).max(), 1e-9)
    return sound.level * wave * decay * fade
