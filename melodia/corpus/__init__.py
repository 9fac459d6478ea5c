"""A corpus: pieces of music as token shards on disk. Reading and writing them needs NumPy only.

Building one from a folder of MIDI files is `melodia.corpus.build`, which imports the MIDI libraries.
"""

from __future__ import annotations

from melodia.corpus.shards import Corpus, Piece, Pieces, ShardWriter

__all__ = ["Corpus", "Piece", "Pieces", "ShardWriter"]
