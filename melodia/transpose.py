"""Transposition as a permutation of the vocabulary. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from melodia.vocabulary import Vocabulary

_MELODIC = ("Pitch", "NoteOn", "NoteOff")


def transposition_permutation(vocabulary: Vocabulary, semitones: int) -> NDArray[np.int32]:
    """What each token becomes when the music is moved by some semitones: int32 [V].

    Drums, and all tokens without a pitch, stay. A pitch that would leave the vocabulary, and a BPE token
    whose transposed form does not exist, becomes -1.

    >>> from melodia.tokenizer import Tokenizer
    >>> vocabulary = Tokenizer().vocabulary
    >>> up = transposition_permutation(vocabulary, 2)
    >>> vocabulary.tokens[up[vocabulary.index["Pitch_60"]]], int(up[vocabulary.index["Pitch_127"]])
    ('Pitch_62', -1)
    """
    permutation = np.arange(vocabulary.size, dtype=np.int32)
    for token in vocabulary.ids_of(*_MELODIC):
        name = f"{vocabulary.types[token]}_{int(vocabulary.value(token)) + semitones}"
        permutation[token] = vocabulary.index.get(name, -1)
    token_of = {parts: token for token, parts in vocabulary.expansions.items()}
    for token, parts in vocabulary.expansions.items():
        permutation[token] = token_of.get(tuple(int(permutation[part]) for part in parts), -1)
    return permutation
