"""Read a MIDI file and report what it holds, what was repaired, and what the tokens will not carry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from melodia.midi import ReadReport, read_score
from melodia.tokenizer import Tokenizer, TokenizerConfig


def inspect_file(path: Path | str, tokenizer: Tokenizer | None = None) -> ReadReport:
    """Read `path` and tokenize it; the report says what either changed.

    Args:
        path: a MIDI file.
        tokenizer: the tokenizer to test it with; the default one if None.

    Raises:
        MidiError: the file cannot be read.
    """
    score, report = read_score(path)
    encoding = (tokenizer or Tokenizer(TokenizerConfig())).encode(score)
    return replace(report, unseen=encoding.findings)
