"""What the tests of the benchmarks share."""

from __future__ import annotations

from pathlib import Path

from melodia.model import Model, ModelConfig, save_checkpoint
from melodia.tokenizer import Tokenizer


def random_checkpoint(folder: Path) -> Path:
    """A checkpoint with random weights."""
    from melodia.side_inputs import default_specs

    tokenizer = Tokenizer()
    vocabulary = tokenizer.vocabulary
    config = ModelConfig("sequential", vocabulary.size, 16, side_inputs=default_specs(vocabulary)[:3])
    return save_checkpoint(
        folder / "model",
        Model(config, random_seed=2),
        vocabulary=vocabulary,
        tokenizer_json=tokenizer.to_dict(),
    )
