"""Generating inside another program, without torch: NumPy, safetensors, symusic and the engine are enough.

    from melodia.runtime import RECOMMENDED, Sampler, write_midi

    sampler = Sampler.load("my-model", device="cpu")
    sampler.prime("song.mid")
    continuation = sampler.generate(bars=8, random_seed=7, **RECOMMENDED)
    write_midi(continuation.joined_score, "continued.mid")

    for event in sampler.stream(endless=True):  # note by note, for ever
        ...

Importing this and generating imports no torch and starts in a fraction of a second. Only the following do import it,
when they are asked for: a GPU, the reference backend, an engine that was not built, and `Sampler.model`.
`Continuation.midi` and `.joined` import pretty_midi; `.score` and `.joined_score` do not.
"""

from melodia.decode import SamplingConfig
from melodia.decode.config import RECOMMENDED
from melodia.errors import MelodiaError
from melodia.midi import midi_bytes, read_score, write_midi
from melodia.model.network import Network
from melodia.model.stored import StoredCheckpoint, read_checkpoint
from melodia.sampler import Continuation, Event, Filling, PrimeReport, Request, Sampler, Session, Stream
from melodia.tokenizer import Tokenizer, TokenizerConfig

__all__ = [
    "RECOMMENDED",
    "Continuation",
    "Event",
    "Filling",
    "MelodiaError",
    "Network",
    "PrimeReport",
    "Request",
    "Sampler",
    "SamplingConfig",
    "Session",
    "StoredCheckpoint",
    "Stream",
    "Tokenizer",
    "TokenizerConfig",
    "midi_bytes",
    "read_checkpoint",
    "read_score",
    "write_midi",
]
