"""The grammar: which token may follow, so that every sequence is music. NumPy only, no MIDI library.

- `tables`: what each token does, as flat tables
- `constraints`: what a caller asks of the music
- `compiled`: both of them as the machine reads them
- `state`: the registers
- `machine`: masks and steps
- `reader`: tokens to notes
"""

from __future__ import annotations

from melodia.grammar.constraints import Constraints
from melodia.grammar.machine import Grammar
from melodia.grammar.reader import NoteEvent, TokenReader
from melodia.grammar.state import GrammarState
from melodia.grammar.tables import Op, Tables, compile_tables

__all__ = [
    "Constraints",
    "Grammar",
    "GrammarState",
    "NoteEvent",
    "Op",
    "Tables",
    "TokenReader",
    "compile_tables",
]
