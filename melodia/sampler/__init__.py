"""Continuing music: prime a model with a seed, then generate or stream.

- `request`: what a caller asks
- `seed`: from a seed to tokens, and what new music keeps of it
- `session`: everything that the next token depends on, saved and loaded
- `plan`: the join, what may come, the end; its parts: `bars`, `classes`, `metres`, `players`, `stretches`, `timeline`
- `bias`, `chord_bias`: the seed's opinion on pitches, and that of a chord
- `dynamics`: how loud new music is
- `lane`, `loop`: the loop over tokens
- `branching`, `texture`: playing stretches several times, and what fits best
- `following`, `kept`, `filling`: towards music that comes behind; beside music that stays; bars inside a piece
- `strangers`, `habits`, `part_bias`, `together`: parts that join in: when they play, what, and how well it fits
- `recall`: stretches that are played again from memory
- `stream`: events as they are produced
- `runner`, `steppers`, `torch_stepper`: what runs the model under it; only the last imports torch
- `loading`: the device, the model that comes with melodia
- `feeding`: the seed, read at batch speed
- `progress`: how far it has come
- `continuation`, `report`, `results`: what comes out
- `primed`, `sampler`: a model with its session, and `Sampler`, which ties all of them together
"""

from __future__ import annotations

from melodia.sampler.continuation import Continuation, Event
from melodia.sampler.filling import Filling
from melodia.sampler.report import GenerationReport, PrimeReport
from melodia.sampler.request import Request
from melodia.sampler.sampler import Sampler
from melodia.sampler.session import Context, Session
from melodia.sampler.stream import Stream

__all__ = [
    "Context",
    "Continuation",
    "Event",
    "Filling",
    "GenerationReport",
    "PrimeReport",
    "Request",
    "Sampler",
    "Session",
    "Stream",
]
