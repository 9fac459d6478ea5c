"""pretty_midi's own synthesis, window by window, so that a long piece needs no more memory than a short one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from melodia.errors import MidiError
from melodia.render.drums import drum_wave

if TYPE_CHECKING:
    import pretty_midi

WINDOW = 15  # seconds made at a time
LONGEST_NOTE = 10.0  # seconds; pretty_midi's notes decay by 8.7 dB a second, so more would be silence
SHORTEST_NOTE = 0.03
MOST_NOTE_SECONDS = 200_000.0  # all notes together; some minutes of work

# Strength of the first four harmonics, by family of eight General MIDI programs; the last one for the rest.
HARMONICS = [
    (1.0, 0.45, 0.2, 0.1),  # piano
    (1.0, 0.1, 0.05, 0.3),  # chromatic percussion
    (1.0, 0.6, 0.3, 0.3),  # organ
    (1.0, 0.5, 0.35, 0.2),  # guitar
    (1.0, 0.6, 0.3, 0.15),  # bass
    (1.0, 0.5, 0.35, 0.25),  # strings
    (1.0, 0.5, 0.3, 0.2),  # ensemble
    (1.0, 0.7, 0.55, 0.4),  # brass
    (1.0, 0.2, 0.6, 0.15),  # reed
    (1.0, 0.2, 0.08, 0.03),  # pipe
    (1.0, 0.4, 0.3, 0.2),
]


def timbre(program: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The waveform of a program: a function from phase (radians) to the sum of its first four harmonics."""
    strengths = HARMONICS[min(program // 8, len(HARMONICS) - 1)]
    scale = 1 / float(np.sqrt(np.sum(np.square(strengths))))

    def wave(phase: NDArray[np.float64]) -> NDArray[np.float64]:
        step = float(phase[1] - phase[0]) if len(phase) > 1 else 0.0
        lower, sine = np.zeros(len(phase)), np.sin(phase)
        twice_cosine = 2 * np.cos(phase)
        out = strengths[0] * sine
        for harmonic, strength in enumerate(strengths[1:], start=2):
            if harmonic * step > 0.9 * np.pi:
                break  # it would fold back from above half the sampling rate
            lower, sine = sine, twice_cosine * sine - lower
            out += strength * sine
        return scale * out

    return wave


def synthesise(midi: pretty_midi.PrettyMIDI, rate: int) -> Iterator[NDArray[np.float64]]:
    """Make the sound of a piece with pretty_midi's synthesis, and a drum layer where that is silent.

    Args:
        midi: the piece.
        rate: samples a second.

    Yields:
        one window after the other [WINDOW * rate], mono, with peaks far above 1: normalise them.

    Raises:
        MidiError: there is too much to make.
    """
    total = sum(
        min(max(note.end - note.start, 0.0), LONGEST_NOTE) for part in midi.instruments for note in part.notes
    )
    if total > MOST_NOTE_SECONDS:
        raise MidiError(
            f"the notes last {total:.0f} s together, more than the {MOST_NOTE_SECONDS:.0f} s that can be "
            "synthesised; cut the piece or install FluidSynth"
        )
    end = max((note.end for part in midi.instruments for note in part.notes), default=0.0)
    waves: dict[int, NDArray[np.float64]] = {}
    parts = [_Part(part, rate, waves) for part in midi.instruments if part.notes]
    window = WINDOW * rate
    pending = np.zeros(window + int((LONGEST_NOTE + 2.5) * rate))
    for number in range(int((end + 2) // WINDOW) + 1):
        for part in parts:
            part.add(pending, float(number * WINDOW))
        yield pending[:window].copy()
        pending[:-window] = pending[window:]
        pending[-window:] = 0


def _bends(instrument: pretty_midi.Instrument) -> list[pretty_midi.PitchBend]:
    """The pitch bends in order, those of another range as pretty_midi's synthesis takes all: of two semitones."""
    import pretty_midi

    moves: list[tuple[float, int, int]] = [  # time, controller (-1: a bend), value
        *((change.time, change.number, change.value) for change in instrument.control_changes),
        *((bend.time, -1, bend.pitch) for bend in instrument.pitch_bends),
    ]
    bends = []
    chosen = {101: 127, 100: 127}  # the parameter that is set; of both 0 the range of bends
    semitones, cents = 2, 0
    for time, number, value in sorted(moves, key=lambda move: move[0]):
        if number < 0:
            pitch = round(value * (semitones + cents / 100) / 2)
            bends.append(pretty_midi.PitchBend(pitch, time))
        elif number in chosen:
            chosen[number] = value
        elif number in (98, 99):
            chosen = dict.fromkeys(chosen, 127)
        elif not any(chosen.values()):
            semitones = value if number == 6 else semitones
            cents = value if number == 38 else cents
    return bends


class _Part:
    """An instrument whose notes are made window by window."""

    def __init__(
        self, instrument: pretty_midi.Instrument, rate: int, waves: dict[int, NDArray[np.float64]]
    ) -> None:
        self.rate, self.waves, self.is_drum = rate, waves, instrument.is_drum
        self.program, self.wave = instrument.program, timbre(instrument.program)
        self.notes = sorted(instrument.notes, key=lambda note: note.start)
        self.starts = np.array([note.start for note in self.notes])
        self.bends = _bends(instrument)
        self.bend_times = np.array([bend.time for bend in self.bends])

    def add(self, out: NDArray[np.float64], begin: float) -> None:
        """Add the notes that begin in the window at `begin` (seconds)."""
        first, last = np.searchsorted(self.starts, [begin, begin + WINDOW])
        notes = self.notes[first:last]
        if not notes:
            return
        if self.is_drum:
            for note in notes:
                if note.pitch not in self.waves:
                    self.waves[note.pitch] = drum_wave(note.pitch, self.rate)
                hit = self.waves[note.pitch]
                at = int((note.start - begin) * self.rate)
                out[at : at + len(hit)] += note.velocity * hit
            return
        import pretty_midi

        shifted = pretty_midi.Instrument(self.program)
        for note in notes:
            length = min(max(note.end - note.start, SHORTEST_NOTE), LONGEST_NOTE)
            start = note.start - begin
            shifted.notes.append(pretty_midi.Note(note.velocity, note.pitch, start, start + length))
        before, after = np.searchsorted(self.bend_times, [begin, begin + WINDOW + LONGEST_NOTE])
        if before > 0:
            shifted.pitch_bends.append(pretty_midi.PitchBend(self.bends[before - 1].pitch, 0.0))
        ends = max(note.end for note in shifted.notes)
        for bend in self.bends[before:after]:
            if bend.time - begin < ends:
                shifted.pitch_bends.append(pretty_midi.PitchBend(bend.pitch, bend.time - begin))
        sound = shifted.synthesize(fs=self.rate, wave=self.wave)
        count = min(len(sound), len(out))
        out[:count] += sound[:count]
