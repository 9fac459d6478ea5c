"""What stands above the bars of a picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pretty_midi
import pytest

from melodia.render import plot_pianoroll


def test_new_metres_of_short_bars_do_not_lie_on_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upbeat, and a bar that a repeat has parted."""
    axes = pytest.importorskip("matplotlib.axes")
    written = []
    annotate = axes.Axes.annotate

    def kept(self, *arguments, **options):
        written.append(annotate(self, *arguments, **options))
        return written[-1]

    monkeypatch.setattr(axes.Axes, "annotate", kept)
    midi = pretty_midi.PrettyMIDI(initial_tempo=60)
    signs = [(1, 4, 0.0), (4, 4, 1.0), (3, 4, 33.0), (1, 4, 36.0), (4, 4, 37.0)]
    midi.time_signature_changes = [pretty_midi.TimeSignature(*sign) for sign in signs]
    midi.instruments.append(pretty_midi.Instrument(0))
    midi.instruments[0].notes = [pretty_midi.Note(80, 60, 0.0, 60.0)]
    plot_pianoroll(midi, tmp_path / "a.png")
    assert [label.get_text() for label in written if "/" in label.get_text()] == [
        "1/4", "2  4/4", "10  3/4", "1/4", "12  4/4",
    ]  # fmt: skip
    boxes = [label.get_window_extent(label.figure.canvas.get_renderer()) for label in written]
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
