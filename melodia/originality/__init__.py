"""Originality: what new music shares with the music that the model was trained on.

`Index` is stored with a checkpoint, `shared_passages` searches it; neither needs more than NumPy. `build_index` makes
one of a corpus, `attach_index` writes it into a checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from melodia.lazy import on_demand
from melodia.notes import Notes, notes_of_events, notes_of_score
from melodia.originality.index import FILE, Chance, Index, Training
from melodia.originality.search import Originality, Passage, shared_passages

if TYPE_CHECKING:
    from melodia.originality.build import attach_index, build_index, notes_of_tokens

__all__ = [
    "FILE",
    "Chance",
    "Index",
    "Notes",
    "Originality",
    "Passage",
    "Training",
    "attach_index",
    "build_index",
    "notes_of_events",
    "notes_of_score",
    "notes_of_tokens",
    "shared_passages",
]

# Building reads corpora; whoever only searches does not load that.
__getattr__ = on_demand(__name__, dict.fromkeys(("attach_index", "build_index", "notes_of_tokens"), "build"))
