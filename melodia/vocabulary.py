"""The vocabulary: what each token id stands for, as plain data.

A tokenizer produces it, and everything behind the tokenizer (grammar, side inputs, training, evaluation) reads it,
so that none of them needs a MIDI library. Letters: V = number of tokens.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.errors import TokenizerError

SPECIAL_TYPES = ("PAD", "BOS", "EOS")


@dataclass(frozen=True)
class Vocabulary:
    """Token strings ("Pitch_60"), the graph of token types, and BPE expansions.

    Attributes:
        scheme: the tokenization, such as "REMI".
        tokens: the string of each id, "Type_value"; V strings. A BPE token is "BPE_<id>".
        graph: for each type, the types that may follow it (miditok's token-type graph).
        positions_per_beat: grid units a beat.
        expansions: for each BPE token, the ids of the base tokens it stands for.

    Raises:
        TokenizerError: a special token is missing, or a token string stands twice.

    >>> v = Vocabulary("REMI", ("PAD_None", "BOS_None", "EOS_None", "Bar_None"), {"Bar": ("Bar",)}, 12)
    >>> v.size, v.types[3], v.ids_of("Bar"), v.value(3)
    (4, 'Bar', (3,), 'None')
    """

    scheme: str
    tokens: tuple[str, ...]
    graph: dict[str, tuple[str, ...]]
    positions_per_beat: int
    expansions: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.tokens)) != len(self.tokens):
            raise TokenizerError("the vocabulary lists a token twice; rebuild the corpus or the checkpoint")
        for name in SPECIAL_TYPES:
            if f"{name}_None" not in self.index:
                raise TokenizerError(
                    f"the vocabulary has no {name} token; rebuild the corpus or the checkpoint"
                )

    @property
    def size(self) -> int:
        """V, the number of tokens."""
        return len(self.tokens)

    @cached_property
    def index(self) -> dict[str, int]:
        """The id of each token string."""
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The type of each id: the part of its string before the underscore."""
        return tuple(token.partition("_")[0] for token in self.tokens)

    @property
    def pad(self) -> int:
        """The id that fills up batches."""
        return self.index["PAD_None"]

    @property
    def bos(self) -> int:
        """The id that stands before every piece."""
        return self.index["BOS_None"]

    @property
    def eos(self) -> int:
        """The id that ends every piece."""
        return self.index["EOS_None"]

    def value(self, token: int) -> str:
        """The part of the token's string behind its type."""
        return self.tokens[token].partition("_")[2]

    def ids_of(self, *types: str) -> tuple[int, ...]:
        """All ids of the given types, ascending."""
        return tuple(i for i, kind in enumerate(self.types) if kind in types)

    @cached_property
    def notes_of_token(self) -> NDArray[np.int32]:
        """How many notes each token begins [V]: 1 for a pitch, more for BPE tokens that hold several."""
        base = np.array(
            [kind in ("Pitch", "PitchDrum", "NoteOn", "DrumOn") for kind in self.types], dtype=np.int32
        )
        for token, expansion in self.expansions.items():
            base[token] = sum(int(base[part]) for part in expansion)
        return base

    @cached_property
    def fingerprint(self) -> str:
        """A hash that two vocabularies share exactly when ids mean the same in both."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def expand(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """Replace BPE tokens by the base tokens they stand for: [N] -> [M], M >= N."""
        if not self.expansions:
            return np.asarray(ids, dtype=np.int32)
        flat: list[int] = []
        for token in ids.tolist():
            flat.extend(self.expansions.get(token, (token,)))
        return np.array(flat, dtype=np.int32)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {
            "scheme": self.scheme,
            "tokens": list(self.tokens),
            "graph": {kind: list(after) for kind, after in self.graph.items()},
            "positions_per_beat": self.positions_per_beat,
            "expansions": {str(token): list(parts) for token, parts in self.expansions.items()},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Vocabulary:
        """The inverse of `to_dict`; raises TokenizerError on data of another form."""
        try:
            return cls(
                scheme=str(data["scheme"]),
                tokens=tuple(data["tokens"]),
                graph={kind: tuple(after) for kind, after in data["graph"].items()},
                positions_per_beat=int(data["positions_per_beat"]),
                expansions={int(token): tuple(parts) for token, parts in data.get("expansions", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TokenizerError(
                f"not a vocabulary ({error!r}); rebuild the corpus or the checkpoint"
            ) from error
