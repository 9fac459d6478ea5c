"""Scores to token ids and back.

- `config`: what a tokenizer writes
- `grid`: a score on the grid, and findings for what does not fit
- `vocabularies`: the tokens of each scheme and what may follow what
- `bpe`: byte pairs
- `encoding`: from the grid to ids, those that miditok gives
- `scores`: from notes to scores
- `tokenizer`: `Tokenizer`, which ties them together
"""

from __future__ import annotations

from melodia.tokenizer.config import SCHEMES, TokenizerConfig
from melodia.tokenizer.tokenizer import Encoding, Tokenizer

__all__ = ["SCHEMES", "Encoding", "Tokenizer", "TokenizerConfig"]
