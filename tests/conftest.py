"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ctypes import CDLL

    from cuda_emulation import Emulator

    from melodia.sampler import Sampler

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Garbage is not looked for among all that has been imported, over and over."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    """The repository's own MIDI files."""
    return REPOSITORY / "midi_samples"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The development data (corpora, malformed files, benchmark sets), which is not part of the repository."""
    name = os.environ.get("MELODIA_TEST_DATA")
    if not name or not Path(name).is_dir():
        pytest.skip("needs the development data: set MELODIA_TEST_DATA to its folder")
    return Path(name)


@pytest.fixture(scope="module")
def loaded() -> Emulator:
    """The CUDA operators of the sources as they are, on the emulator."""
    import cuda_emulation

    return cuda_emulation.Emulator(cuda_emulation.build())


@pytest.fixture
def emulator(loaded: Emulator) -> Iterator[Emulator]:
    """The CUDA operators, with nothing chosen."""
    loaded.configure()
    yield loaded
    loaded.configure()


@pytest.fixture(scope="module")
def library() -> CDLL:
    """The CUDA decode engine of the sources as they are, on the emulator."""
    import cuda_decode_emulation

    return cuda_decode_emulation.load(cuda_decode_emulation.build())


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    """A small sampler with random weights."""
    from sampler_helpers import tiny_sampler

    return tiny_sampler()


@pytest.fixture
def primed(sampler: Sampler) -> None:
    """That sampler continues two bars."""
    from sampler_helpers import make_seed, scale

    sampler.prime(make_seed(scale(2)))
