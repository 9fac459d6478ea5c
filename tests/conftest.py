"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


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
