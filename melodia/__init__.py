"""melodia: train a small recurrent music model on your own MIDI files, then continue and play along with music.

    sampler = melodia.Sampler.load("my-model")
    sampler.prime("song.mid")
    continuation = sampler.generate(bars=8, random_seed=7, **melodia.RECOMMENDED)
    melodia.write_midi(continuation.joined_score, "continued.mid")

The names below are loaded when they are first used, so that `import melodia` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from melodia.lazy import on_demand

if TYPE_CHECKING:
    from melodia.decode.config import RECOMMENDED
    from melodia.errors import MelodiaError
    from melodia.midi import read_midi, read_score, write_midi
    from melodia.sampler import Continuation, Sampler, Session
    from melodia.tokenizer import Tokenizer, TokenizerConfig
    from melodia.workflows.compare import compare_kinds
    from melodia.workflows.evaluate import evaluate_folder
    from melodia.workflows.train import train_folder

__version__ = "0.1.0"

_HOME = {
    "RECOMMENDED": "decode.config",
    "Continuation": "sampler",
    "MelodiaError": "errors",
    "Sampler": "sampler",
    "Session": "sampler",
    "Tokenizer": "tokenizer",
    "TokenizerConfig": "tokenizer",
    "compare_kinds": "workflows.compare",
    "evaluate_folder": "workflows.evaluate",
    "read_midi": "midi",
    "read_score": "midi",
    "train_folder": "workflows.train",
    "write_midi": "midi",
}

__all__ = [
    "RECOMMENDED",
    "Continuation",
    "MelodiaError",
    "Sampler",
    "Session",
    "Tokenizer",
    "TokenizerConfig",
    "__version__",
    "compare_kinds",
    "evaluate_folder",
    "read_midi",
    "read_score",
    "train_folder",
    "write_midi",
]

__getattr__ = on_demand(__name__, _HOME)
