"""melodia: train a small recurrent music model on your own MIDI files, then continue and play along with music."""

from __future__ import annotations

__version__ = "0.1.0"
