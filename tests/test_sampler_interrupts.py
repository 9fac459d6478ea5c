"""Ctrl-C while music is made: it reaches the caller."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from sampler_helpers import make_seed, scale, tiny_sampler

from melodia.sampler import Sampler

SEED = make_seed(scale(2))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_numpy_asks_no_enum_for_attributes(backend: str) -> None:
    """It drops whatever error comes of that, a Ctrl-C too, since Python 3.11 does it in Python."""
    made = tiny_sampler("PerTok")
    asked = []

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if code.co_name == "__getattr__" and code.co_filename.endswith("enum.py"):
            asked.append(frame.f_back)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        sampler = Sampler(made.model, made.tokenizer, backend=backend)
        sampler.prime(SEED)
        sampler.generate(bars=2, random_seed=1, chords="C G", tempo_changes=True)
    finally:
        sys.settrace(before)
    assert asked == []
