"""Reading checkpoints, without torch.

    model.safetensors   the weights, as fp32, bf16 or fp16
    config.json         format version, model, training summary, corpus fingerprint, checksum of the weights
    vocabulary.json     what each token id stands for
    tokenizer.json      the tokenizer, as it saves itself
    NOTICES.txt         whom the music is of, where a licence asks for that; not read, passed on by fine-tuning

Reading one runs nothing from it and believes nothing of it: files that are missing, damaged, foreign or of a newer
format end in a CheckpointError that names them.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

import melodia
from melodia.checks import file_path
from melodia.errors import CheckpointError, ConfigError, TokenizerError, show_path
from melodia.model.config import ModelConfig
from melodia.model.folders import stored_folder
from melodia.model.network import Network, tensor_shapes
from melodia.vocabulary import Vocabulary

FORMAT = "melodia-checkpoint"
FORMAT_VERSION = 1
WEIGHTS, CONFIG, VOCABULARY, TOKENIZER = (
    "model.safetensors",
    "config.json",
    "vocabulary.json",
    "tokenizer.json",
)
NOTICES = "NOTICES.txt"
BEST = "best"  # the checkpoint inside the folder of a training
RESUME, STATE = "resume", "state.safetensors"  # what a training goes on from, inside its folder
MAX_JSON = 64 << 20  # bytes; a vocabulary of a million tokens is smaller


@dataclass(frozen=True)
class StoredCheckpoint:
    """What was read.

    Attributes:
        network: the model's configuration and weights, as arrays.
        vocabulary: what its token ids stand for.
        tokenizer_json: the tokenizer's own settings.
        training: the summary that training left.
        corpus_fingerprint: of the corpus it was trained on.
        path: the folder; further files may lie in it.
    """

    network: Network = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    tokenizer_json: dict[str, Any] = field(repr=False)
    training: dict[str, Any]
    corpus_fingerprint: str
    path: Path

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.network.config


def read_checkpoint(folder: str | Path) -> StoredCheckpoint:
    """Read a checkpoint.

    Args:
        folder: the checkpoint, or the folder of a training that holds it in `best`.

    Raises:
        CheckpointError: there is none, or it is damaged, foreign or of a newer format.

    >>> stored = read_checkpoint("melodia/assets/default")
    >>> stored.config.kind, stored.vocabulary.size == stored.config.vocab_size
    ('parallel', True)
    """
    folder = file_path("folder", folder, CheckpointError)
    try:
        if not (stored_folder(folder) / CONFIG).exists() and is_checkpoint(folder / BEST):
            folder = folder / BEST
        _refuse_unfinished(folder)
    except OSError as error:  # such as a folder that may not be searched
        raise CheckpointError(
            f"cannot read {show_path(folder)}: {error.strerror or error}; check the path and its permissions"
        ) from error
    while True:
        before = _identity(folder)
        try:
            return _read(stored_folder(folder))
        except CheckpointError:
            if _identity(folder) == before:
                raise  # else it was replaced while it was read: read the new one


def _refuse_unfinished(folder: Path) -> None:
    """Say so where a training stopped before it wrote its first checkpoint."""
    home = folder.parent if folder.name == BEST else folder
    checkpoints = (folder, home / BEST)
    if (home / RESUME / STATE).exists() and not any(
        (stored_folder(f) / CONFIG).exists() for f in checkpoints
    ):
        raise CheckpointError(
            f"{show_path(home)} holds an unfinished training run that has no checkpoint yet; resume it (melodia "
            "train --resume)"
        )


def is_checkpoint(folder: str | Path) -> bool:
    """Whether the folder is a checkpoint of some version; does not read its weights."""
    try:
        read_config(stored_folder(Path(folder)))
    except (CheckpointError, OSError):
        return False
    return True


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells one writing of a checkpoint from the next."""
    try:
        status = (stored_folder(folder) / CONFIG).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read(path: Path) -> StoredCheckpoint:
    """See `read_checkpoint`."""
    config_json = read_config(path)
    try:
        config = ModelConfig.from_dict(config_json["model"])
        training, fingerprint = dict(config_json["training"]), str(config_json["corpus_fingerprint"])
        stored = config_json["weights"]
        size, checksum = stored["bytes"], stored["crc32"]
        vocabulary = Vocabulary.from_dict(_read_json(path / VOCABULARY))
    except ConfigError as error:
        raise CheckpointError(f"{show_path(path / CONFIG)} does not describe a model: {error}") from error
    except TokenizerError as error:
        raise CheckpointError(f"{show_path(path / VOCABULARY)}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{show_path(path / CONFIG)} is damaged ({error!r}); restore it or train again"
        ) from error
    if vocabulary.size != config.vocab_size:
        raise CheckpointError(
            f"{show_path(path)}: the vocabulary has {vocabulary.size} tokens and the model {config.vocab_size}; "
            "its files come from different checkpoints"
        )
    data = _read_bytes(path / WEIGHTS)
    if len(data) != size or zlib.crc32(data) != checksum:
        differs = f"its size ({len(data)} bytes, not {size})" if len(data) != size else "its checksum"
        raise CheckpointError(
            f"{show_path(path / WEIGHTS)} is damaged or belongs to another checkpoint: {differs} differs from what "
            f"{CONFIG} describes; restore it or train again"
        )
    network = Network(config, _unpack(data, config, path / WEIGHTS))
    return StoredCheckpoint(network, vocabulary, _read_json(path / TOKENIZER), training, fingerprint, path)


def _unpack(data: bytes, config: ModelConfig, path: Path) -> dict[str, NDArray[np.float32]]:
    """The weights as float32; before they are known to fit, nothing larger than them is allocated."""
    try:
        stored = dict(safetensors.deserialize(data))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{show_path(path)} is not a safetensors file ({error}); restore it or train again"
        ) from error
    expected = tensor_shapes(config)
    received = {name: tuple(tensor["shape"]) for name, tensor in stored.items()}
    for name in [*expected, *received]:
        if expected.get(name) != received.get(name):
            want, got = (shapes.get(name, "nothing") for shapes in (expected, received))
            raise CheckpointError(
                f"{show_path(path)} does not fit the model that {CONFIG} describes: {name} should be {want} and "
                f"is {got}"
            )
    for name, tensor in stored.items():
        if tensor["dtype"] not in _FLOATS:
            raise CheckpointError(
                f"{show_path(path)} holds weights as {tensor['dtype']} ({name}), but melodia reads "
                f"{', '.join(_FLOATS)}; restore it or train again"
            )
    return {name: _floats(stored[name]).reshape(shape) for name, shape in expected.items()}


_FLOATS = {"F32": "<f4", "BF16": "<u2", "F16": "<f2", "F64": "<f8"}


def _floats(tensor: dict[str, Any]) -> NDArray[np.float32]:
    """The numbers of a stored tensor; those of bf16 are the upper halves of float32."""
    numbers: NDArray[Any] = np.frombuffer(tensor["data"], _FLOATS[tensor["dtype"]])
    if tensor["dtype"] == "BF16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32, copy=False)


def read_config(path: Path) -> dict[str, Any]:
    """A checkpoint's config.json, its format and version checked."""
    if not any((path / name).exists() for name in (CONFIG, WEIGHTS, VOCABULARY, TOKENIZER)):
        raise CheckpointError(
            f"there is no checkpoint at {show_path(path)}; train one, or name the folder that holds {CONFIG}"
        )
    config = _read_json(path / CONFIG)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{show_path(path / CONFIG)} does not belong to a melodia checkpoint; name a folder that melodia wrote"
        )
    version = config.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(
            f"{show_path(path / CONFIG)} is damaged (format_version {version!r}); restore it or train again"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{show_path(path)} has format version {version}, but this version ({melodia.__version__}) reads up to "
            f"{FORMAT_VERSION}; update melodia"
        )
    return config


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{show_path(path)} is missing; restore it or train again") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {show_path(path)}: {error.strerror or error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(
                f"{show_path(path)} is larger than {MAX_JSON >> 20} MB; melodia did not write it"
            )
    except OSError:
        pass  # reading says what is wrong
    try:
        data = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{show_path(path)} is not valid JSON ({error}); restore it or train again"
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{show_path(path)} contains no JSON object; restore it or train again")
    return data
