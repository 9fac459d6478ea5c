"""Originality: what new music shares with the music that the model was trained on.

`Index` is stored with a checkpoint, `shared_passages` searches it; neither needs more than NumPy. `build_index` makes
one of a corpus, `attach_index` writes it into a checkpoint.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    # Building reads corpora; whoever only searches does not load that.
    if name not in ("attach_index", "build_index", "notes_of_tokens"):
        raise AttributeError(f"module 'melodia.originality' has no attribute {name!r}")
    return getattr(importlib.import_module("melodia.originality.build"), name)
