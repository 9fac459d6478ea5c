"""What a run was asked for."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The settings that topics read.

    Attributes:
        quick: small sizes and little time: shows that everything runs, not how fast.
        model: a checkpoint folder; None: the model that comes with melodia.
        corpus: a folder of MIDI files, or of token shards, that the model was not trained on.
        notochord: the Python of an environment that has notochord.
    """

    quick: bool = False
    model: Path | None = None
    corpus: Path | None = None
    notochord: Path | None = None
    began: float = field(default_factory=time.monotonic)

    def seconds(self, full: float, quick: float = 0.5) -> float:
        """The time for something: `full`, or little."""
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """Progress, on standard error."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", file=sys.stderr, flush=True)
