"""miditok's tokenizers in melodia's settings: the oracle of vocabularies, encoding and decoding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.tokenizer import TokenizerConfig
from melodia.tokenizer.config import DRUMS, METRES, PITCHES, TEMPO_RANGE
from melodia.tokenizer.grid import GridScore
from melodia.tokenizer.scores import build_score
from melodia.vocabulary import SPECIAL_TYPES


def encode(oracle: Any, grid: GridScore) -> NDArray[np.int32]:
    """Miditok's ids of a score on the grid, without BOS and EOS."""
    names = ("program", "onset", "duration", "pitch", "velocity")
    notes = {name: getattr(grid, name) for name in names}
    score = build_score(grid.ticks_per_quarter, notes, grid.tempi, grid.metres)
    return np.array(oracle.encode(score, encode_ids=False, no_preprocess_score=True).ids, dtype=np.int32)


def make_oracle(config: TokenizerConfig) -> Any:
    """The miditok tokenizer of a configuration."""
    import miditok

    settings: dict[str, Any] = {
        "pitch_range": PITCHES,
        "drums_pitch_range": DRUMS,
        "beat_res": config.beat_resolution,
        "num_velocities": config.velocities,
        "special_tokens": list(SPECIAL_TYPES),
        "encode_ids_split": "no",
        "use_programs": True,
        "one_token_stream_for_programs": True,
        "use_pitchdrum_tokens": True,
    }
    if config.scheme == "Structured":
        settings |= {"use_time_signatures": False, "time_signature_range": {4: [4]}}
    else:
        settings |= {
            "program_changes": True,
            "use_tempos": True,
            "num_tempos": config.tempi,
            "tempo_range": TEMPO_RANGE,
            "log_tempos": False,
            "use_time_signatures": True,
            "time_signature_range": {d: list(n) for d, n in METRES.items()},
        }
    return getattr(miditok, config.scheme)(miditok.TokenizerConfig(**settings))
