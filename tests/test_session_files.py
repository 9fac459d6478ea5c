"""Files of sessions: what was saved comes back, and what cannot be music is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from sampler_helpers import make_seed, scale, tiny_sampler

from melodia.errors import CheckpointError
from melodia.grammar.state import REGISTERS
from melodia.midi import midi_bytes
from melodia.sampler import Sampler
from melodia.sampler.session import _checksum

Arrays = dict[str, np.ndarray[Any, Any]]
SEED = make_seed([*scale(2), *scale(2, program=-1)])


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return tiny_sampler()


def parts_of(path: Path) -> tuple[dict[str, Any], Arrays]:
    """A file without its checksum."""
    with safetensors.safe_open(str(path), framework="numpy") as file:
        about = json.loads(file.metadata()["melodia"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    del about["crc32"]
    return about, arrays


def saved_as_before(
    sampler: Sampler, folder: Path, change: Callable[[dict[str, Any], Arrays], object]
) -> Path:
    """The session as version 4 wrote it, then changed; such files need no checksum."""
    about, arrays = parts_of(sampler.save_state(folder / "new", force=True))
    arrays = {name: part for name, part in arrays.items() if not name.startswith("seed.")}
    if about.pop("seed", None) is not None:
        arrays["seed_midi"] = np.frombuffer(midi_bytes(sampler.state.seed), np.uint8)
    del arrays["waiting"]
    about["format_version"] = 4
    change(about, arrays)
    safetensors.numpy.save_file(arrays, folder / "old", metadata={"melodia": json.dumps(about)})
    return folder / "old"


def full_score() -> Any:
    """Everything that a score may hold: notes of one pitch that overlap, changes, bends, texts, an empty track."""
    from symusic.core import (
        ControlChangeTick,
        KeySignatureTick,
        PedalTick,
        PitchBendTick,
        TempoTick,
        TextMetaTick,
        TimeSignatureTick,
        TrackTick,
    )

    score = make_seed([(0, 4, 60, 0), (1, 4, 60, 0), (1, 1, 60, 0), *scale(2, program=-1)], tpq=1001)
    score.tempos.append(TempoTick(77, qpm=97.3))
    score.time_signatures.append(TimeSignatureTick(4004, 7, 8))
    score.key_signatures.append(KeySignatureTick(3, -3, 1))
    score.markers.append(TextMetaTick(5, "Café"))
    track = score.tracks[0]
    track.name = "Klavier ♪"
    track.controls.append(ControlChangeTick(4, 64, 127))
    track.pitch_bends.append(PitchBendTick(9, -8192))
    track.pedals.append(PedalTick(4, 20))
    track.lyrics.append(TextMetaTick(8, "la"))
    score.tracks.append(TrackTick("empty", 12))
    score.tracks.append(TrackTick("second voice", 12))
    score.tracks[-1].lyrics.extend([TextMetaTick(8, "le"), TextMetaTick(9, "lu")])
    return score


def test_a_seed_comes_back_as_it_was(sampler: Sampler, tmp_path: Path) -> None:
    sampler.prime(SEED)
    many = make_seed([(i * 4, 1, 60, 0) for i in range(20_100)])  # more bars than a file may have
    for i, seed in enumerate([SEED, full_score(), many, make_seed([]), None]):
        state = sampler.state
        state.seed = seed
        assert sampler.load_state(state.save(tmp_path / f"{i}")).seed == seed


def test_a_seed_of_the_format_before_can_be_loaded(sampler: Sampler, tmp_path: Path) -> None:
    sampler.prime(SEED)
    loaded = sampler.load_state(saved_as_before(sampler, tmp_path, lambda about, arrays: None))
    assert loaded.seed is not None
    assert midi_bytes(loaded.seed) == midi_bytes(SEED)
    assert loaded.waiting == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda about, arrays: arrays["seed.notes"].__setitem__((0, 3), 300),
        lambda about, arrays: arrays.update({"seed.notes": arrays["seed.notes"][:, :-1]}),
        lambda about, arrays: arrays.pop("seed.controls"),
        lambda about, arrays: about["seed"].pop("tracks"),
    ],
)
def test_what_is_no_seed_is_refused(
    change: Callable[[dict[str, Any], Arrays], object], sampler: Sampler, tmp_path: Path
) -> None:
    sampler.prime(SEED)
    about, arrays = parts_of(sampler.save_state(tmp_path / "a"))
    change(about, arrays)
    about["crc32"] = _checksum(about, arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "b", metadata={"melodia": json.dumps(about)})
    with pytest.raises(CheckpointError, match="is damaged"):
        sampler.load_state(tmp_path / "b")


def test_a_file_without_its_checksum_is_refused(sampler: Sampler, tmp_path: Path) -> None:
    about, arrays = parts_of(sampler.save_state(tmp_path / "a"))
    safetensors.numpy.save_file(arrays, tmp_path / "b", metadata={"melodia": json.dumps(about)})
    with pytest.raises(CheckpointError, match="its checksum differs"):
        sampler.load_state(tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [
        lambda about, arrays: arrays["grammar"].__setitem__(REGISTERS.index("kind"), 999),
        lambda about, arrays: arrays["grammar"].__setitem__(REGISTERS.index("now"), 1 << 60),
        lambda about, arrays: arrays["heard"].__setitem__((0, 0), 500),
        lambda about, arrays: arrays["heard"].__setitem__((0, 1), -3),
        lambda about, arrays: arrays["logits"].__setitem__(0, np.nan),
        lambda about, arrays: next(v for k, v in arrays.items() if k.startswith("model.")).fill(np.inf),
        lambda about, arrays: arrays["tail_before"].__setitem__(0, 10**6),
        lambda about, arrays: arrays["recent"].__setitem__(0, -1),
        lambda about, arrays: arrays["ids"].__setitem__(0, 10**6),
        lambda about, arrays: arrays["side"].__setitem__(2, 0),
        lambda about, arrays: arrays["side"].__setitem__(0, -7),
        lambda about, arrays: arrays["side"].__setitem__(-1, 10**6),
        lambda about, arrays: about.update(fed=None),
        lambda about, arrays: about.update(tail_offset=10**30),
        lambda about, arrays: about["context"].update(join=None),
        lambda about, arrays: about["context"].update(join=10**12),
        lambda about, arrays: about["context"].update(origin=10**6),
        lambda about, arrays: about["context"].update(anchor="0"),
        lambda about, arrays: about["context"].update(seed_join=float("nan")),
        lambda about, arrays: about["context"].update(tempo=0),
        lambda about, arrays: about["context"].update(tempi=[[0, 0.0, -1.0]]),
        lambda about, arrays: about["context"].update(metre=[4, 0]),
        lambda about, arrays: about["context"].update(cycle=["99/1"]),
        lambda about, arrays: about["context"].update(programs=[128]),
    ],
)
def test_numbers_that_are_no_music_are_refused_before_music_is_made(
    change: Callable[[dict[str, Any], Arrays], object], sampler: Sampler, tmp_path: Path
) -> None:
    sampler.prime(SEED)
    with pytest.raises(CheckpointError, match=r"is damaged \(.*\); prime the seed again"):
        sampler.load_state(saved_as_before(sampler, tmp_path, change))
