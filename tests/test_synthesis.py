"""pretty_midi's synthesis under controllers: how far bends go."""

from __future__ import annotations

import numpy as np
import pretty_midi
import pytest

from melodia.render.synthesis import synthesise

RATE = 8000


def tone(*controls: tuple[int, int], bend: int = 0, pitch: int = 60) -> float:
    """The frequency of a bent note, in Hz."""
    midi = pretty_midi.PrettyMIDI()
    part = pretty_midi.Instrument(80)
    part.notes = [pretty_midi.Note(90, pitch, 0.5, 1.5)]
    part.control_changes = [pretty_midi.ControlChange(*control, 0.0) for control in controls]
    part.pitch_bends = [pretty_midi.PitchBend(bend, 0.25)]
    midi.instruments.append(part)
    sound = next(synthesise(midi, RATE))
    spectrum = np.abs(np.fft.rfft(sound[RATE // 2 : RATE * 3 // 2], 8 * RATE))
    return float(spectrum.argmax()) / 8


CHOSEN = ((101, 0), (100, 0))


@pytest.mark.parametrize(
    ("controls", "semitones"),
    [
        ((), 2),
        ((*CHOSEN, (6, 12)), 12),
        ((*CHOSEN, (6, 12), (38, 50)), 12.5),
        ((*CHOSEN, (6, 12), (101, 127), (100, 127), (6, 3)), 12),
        ((*CHOSEN, (98, 1), (99, 1), (6, 12)), 2),
        (((101, 0), (100, 1), (6, 12)), 2),  # fine tuning
    ],
)
def test_bends_go_as_far_as_their_range_says(controls: tuple[tuple[int, int], ...], semitones: float) -> None:
    expected = pretty_midi.note_number_to_hz(60 - semitones)
    assert tone(*controls, bend=-8192) == pytest.approx(expected, abs=0.5)
