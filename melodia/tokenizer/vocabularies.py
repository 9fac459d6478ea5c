"""The vocabulary of each scheme: token strings in miditok's order, and which type may follow which.

miditok's own graphs also hold edges that its encoder never takes; the graphs here hold those that music
needs.
"""

from __future__ import annotations

import numpy as np

from melodia.tokenizer.config import DRUMS, METRES, MICRO_STEPS, PITCHES, TEMPO_RANGE, TokenizerConfig
from melodia.vocabulary import SPECIAL_TYPES, Vocabulary

_NOTES = ("Pitch", "PitchDrum")
_STRIKES = ("NoteOn", "NoteOff", "DrumOn", "DrumOff")

GRAPHS: dict[str, dict[str, tuple[str, ...]]] = {
    "REMI": {
        "BOS": ("Bar",),
        "Bar": ("TimeSig",),
        "TimeSig": ("Position", "Bar", "EOS"),
        "Position": ("Tempo", "Program", *_NOTES),
        "Tempo": ("Program", *_NOTES, "Position", "Bar", "EOS"),
        "Program": _NOTES,
        "Pitch": ("Velocity",),
        "PitchDrum": ("Velocity",),
        "Velocity": ("Duration",),
        "Duration": ("Program", *_NOTES, "Position", "Bar", "EOS"),
    },
    "TSD": {
        "BOS": ("TimeSig",),
        "TimeSig": ("Tempo", "Program", *_NOTES, "TimeShift", "EOS"),
        "Tempo": ("Program", *_NOTES, "TimeShift", "EOS"),
        "TimeShift": ("TimeShift", "TimeSig", "Tempo", "Program", *_NOTES, "EOS"),
        "Program": _NOTES,
        "Pitch": ("Velocity",),
        "PitchDrum": ("Velocity",),
        "Velocity": ("Duration",),
        "Duration": ("Program", *_NOTES, "TimeShift", "EOS"),
    },
    "MIDILike": {
        "BOS": ("TimeSig",),
        "TimeSig": ("Tempo", "Program", *_STRIKES, "TimeShift"),
        "Tempo": ("Program", *_STRIKES, "TimeShift", "EOS"),
        "TimeShift": ("TimeShift", "TimeSig", "Tempo", "Program", *_STRIKES, "EOS"),
        "Program": _STRIKES,
        "NoteOn": ("Velocity",),
        "DrumOn": ("Velocity",),
        "Velocity": ("Program", *_STRIKES, "TimeShift"),
        "NoteOff": ("Program", *_STRIKES, "TimeShift", "EOS"),
        "DrumOff": ("Program", *_STRIKES, "TimeShift", "EOS"),
    },
    "Structured": {
        "BOS": ("TimeShift",),
        "TimeShift": ("Program",),
        "Program": _NOTES,
        "Pitch": ("Velocity",),
        "PitchDrum": ("Velocity",),
        "Velocity": ("Duration",),
        "Duration": ("TimeShift", "EOS"),
    },
    "PerTok": {
        "BOS": ("Bar",),
        "Bar": ("TimeSig",),
        "TimeSig": ("Tempo", "Program", *_NOTES, "TimeShift", "Bar", "EOS"),
        "TimeShift": ("Tempo", "Program", *_NOTES, "TimeShift", "Bar", "EOS"),
        "Tempo": ("Program", *_NOTES, "TimeShift", "Bar", "EOS"),
        "Program": _NOTES,
        "Pitch": ("MicroTiming",),
        "PitchDrum": ("MicroTiming",),
        "MicroTiming": ("Velocity",),
        "Velocity": ("Duration",),
        "Duration": ("Program", *_NOTES, "TimeShift", "Bar", "EOS"),
    },
}


def velocity_levels(config: TokenizerConfig) -> list[int]:
    """The velocities that exist, ascending."""
    return [int(v) for v in np.linspace(0, 127, config.velocities + 1, dtype=np.intc)[1:]]


def tempo_levels(config: TokenizerConfig) -> list[float]:
    """The tempi that exist, in quarter notes a minute, ascending."""
    return [float(t) for t in np.linspace(*TEMPO_RANGE, config.tempi).round(2)]


def duration_values(config: TokenizerConfig) -> list[str]:
    """The durations (and time shifts) that exist, as "beats.parts.parts in a beat", ascending."""
    table = config.beat_resolution
    values = [
        f"{b}.{p}.{res}" for (start, end), res in table.items() for b in range(start, end) for p in range(res)
    ]
    last = max(table)
    return [*values[1:], f"{last[1]}.0.{table[last]}"]


def micro_values() -> list[int]:
    """PerTok's offsets from the grid point, in ticks, ascending."""
    return list(range(-MICRO_STEPS, MICRO_STEPS + 1))


def build_vocabulary(config: TokenizerConfig) -> Vocabulary:
    """The base vocabulary (no BPE tokens) of a configuration."""
    low, high = PITCHES
    drum_low, drum_high = DRUMS
    pitches, drums = range(low, high + 1), range(drum_low, drum_high + 1)
    velocities = [f"Velocity_{v}" for v in velocity_levels(config)]
    spans = duration_values(config)
    durations = [f"Duration_{d}" for d in spans]
    shifts = [f"TimeShift_{d}" for d in spans]
    positions = [f"Position_{i}" for i in range(config.positions_per_beat * max(map(max, METRES.values())))]
    melodic = [f"Pitch_{p}" for p in pitches]
    struck = [f"PitchDrum_{p}" for p in drums]

    tokens = [f"{name}_None" for name in SPECIAL_TYPES]
    if config.scheme == "REMI":
        tokens += ["Bar_None", *melodic, *velocities, *durations, *positions, *struck]
    elif config.scheme == "TSD":
        tokens += [*melodic, *velocities, *durations, *shifts, *struck]
    elif config.scheme == "MIDILike":
        tokens += [f"NoteOn_{p}" for p in pitches] + [f"NoteOff_{p}" for p in pitches] + velocities + shifts
        tokens += [f"DrumOn_{p}" for p in drums] + [f"DrumOff_{p}" for p in drums]
    elif config.scheme == "Structured":
        tokens += [*melodic, *velocities, *durations, "TimeShift_0.0.1", *shifts, *struck]
    else:
        micro = [f"MicroTiming_{m}" for m in micro_values()]
        tokens += ["Bar_None", *melodic, *velocities, *shifts, *durations, *micro, *struck]
    if config.carries_metre:
        tokens += [f"Tempo_{t}" for t in tempo_levels(config)]
    tokens += [*(f"Program_{p}" for p in range(128)), "Program_-1"]
    if config.carries_metre:
        tokens += [f"TimeSig_{n}/{d}" for d, numerators in METRES.items() for n in numerators]
    return Vocabulary(config.scheme, tuple(tokens), dict(GRAPHS[config.scheme]), config.positions_per_beat)
