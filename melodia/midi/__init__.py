"""MIDI in, MIDI out: reading with repair and a report, writing, cutting and joining.

Names are loaded when they are first used, so that `import melodia.midi` costs nothing. Joining a
continuation to its seed stands in `melodia.midi.join`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from melodia.lazy import on_demand

if TYPE_CHECKING:
    from melodia.midi.bars import BarTable as BarTable
    from melodia.midi.bars import bar_table as bar_table
    from melodia.midi.convert import seconds_of as seconds_of
    from melodia.midi.convert import to_pretty_midi as to_pretty_midi
    from melodia.midi.join import cut_score as cut_score
    from melodia.midi.join import end_on_bar as end_on_bar
    from melodia.midi.join import window as window
    from melodia.midi.limits import Limits as Limits
    from melodia.midi.reading import read_midi as read_midi
    from melodia.midi.reading import read_score as read_score
    from melodia.midi.report import Finding as Finding
    from melodia.midi.report import Findings as Findings
    from melodia.midi.report import ReadReport as ReadReport
    from melodia.midi.report import key_name as key_name
    from melodia.midi.writing import midi_bytes as midi_bytes
    from melodia.midi.writing import write_midi as write_midi

_HOME = {
    "BarTable": "bars",
    "bar_table": "bars",
    "seconds_of": "convert",
    "to_pretty_midi": "convert",
    "cut_score": "join",
    "end_on_bar": "join",
    "window": "join",
    "Limits": "limits",
    "read_midi": "reading",
    "read_score": "reading",
    "Finding": "report",
    "Findings": "report",
    "ReadReport": "report",
    "key_name": "report",
    "midi_bytes": "writing",
    "write_midi": "writing",
}

__all__ = sorted(_HOME)

__getattr__ = on_demand(__name__, _HOME)
