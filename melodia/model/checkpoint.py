"""Checkpoints: a folder with everything that generating or training on needs, and no code.

    model.safetensors   the weights, as fp32, bf16 or fp16
    config.json         format version, model, training summary, corpus fingerprint, checksum of the weights
    vocabulary.json     what each token id stands for
    tokenizer.json      the tokenizer, as it saves itself

A checkpoint is written whole or not at all (`folders`). Reading one runs nothing from it and believes nothing
of it: files that are missing, damaged, foreign or of a newer format end in a CheckpointError that names them.
"""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import melodia
from melodia.errors import CheckpointError, ConfigError, TokenizerError
from melodia.model.config import ModelConfig
from melodia.model.folders import replace_folder, stored_folder
from melodia.model.model import Model
from melodia.vocabulary import Vocabulary

FORMAT = "melodia-checkpoint"
FORMAT_VERSION = 1
WEIGHTS, CONFIG, VOCABULARY, TOKENIZER = (
    "model.safetensors",
    "config.json",
    "vocabulary.json",
    "tokenizer.json",
)
BEST = "best"  # the checkpoint inside the folder of a training
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_JSON = 64 << 20  # bytes; a vocabulary of a million tokens is smaller


@dataclass(frozen=True)
class Checkpoint:
    """What was loaded.

    Attributes:
        model: in evaluation mode, fp32.
        config: the model's.
        vocabulary: what its token ids stand for.
        tokenizer_json: the tokenizer's own settings.
        training: the summary that training left.
        corpus_fingerprint: of the corpus it was trained on.
        path: the folder; further files may lie in it.
    """

    model: Model
    config: ModelConfig
    vocabulary: Vocabulary
    tokenizer_json: dict[str, Any]
    training: dict[str, Any]
    corpus_fingerprint: str
    path: Path


def save_checkpoint(
    folder: str | Path,
    model: Model,
    *,
    vocabulary: Vocabulary,
    tokenizer_json: dict[str, Any] | str,
    training: dict[str, Any] | None = None,
    corpus_fingerprint: str = "",
    weights: str = "fp32",
    write_more: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint, in the place of an earlier one if there is one.

    Args:
        folder: where; if it exists it must be a checkpoint, or empty.
        model: the model.
        vocabulary: of as many tokens as the model has.
        tokenizer_json: the tokenizer as a dictionary or as JSON text.
        training: a JSON-ready summary of how the model came to be.
        corpus_fingerprint: of the corpus.
        weights: how numbers are stored: "fp32", "bf16" or "fp16".
        write_more: called with a folder to write further files into (such as an optimiser's state); they
            become part of the checkpoint and are replaced with it.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder holds something else, the disk is full, ...; an earlier checkpoint is
            intact.
    """
    folder = Path(folder)
    if weights not in DTYPES:
        raise CheckpointError(f"weights can be stored as {', '.join(DTYPES)} (received {weights!r})")
    if vocabulary.size != model.config.vocab_size:
        raise CheckpointError(
            f"the vocabulary has {vocabulary.size} tokens and the model {model.config.vocab_size}; "
            "save a model with the vocabulary it was trained on"
        )
    _refuse_foreign(folder)
    data = _pack(model, DTYPES[weights])
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "melodia_version": melodia.__version__,
        "model": model.config.to_dict(),
        "weights": {"dtype": weights, "bytes": len(data), "crc32": zlib.crc32(data)},
        "corpus_fingerprint": corpus_fingerprint,
        "training": training or {},
    }
    try:
        tokenizer = tokenizer_json if isinstance(tokenizer_json, str) else _to_json(tokenizer_json)
        texts = {VOCABULARY: _to_json(vocabulary.to_dict()), TOKENIZER: tokenizer}
        _to_json(config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"what should go into {folder} cannot be written as JSON ({error})") from error
    try:
        with replace_folder(folder) as new:
            (new / WEIGHTS).write_bytes(data)
            for name, text in texts.items():
                (new / name).write_text(text, encoding="utf-8")
            if write_more is not None:
                write_more(new)
            config["files"] = sorted({path.name for path in new.iterdir()} | {CONFIG})
            (new / CONFIG).write_text(_to_json(config), encoding="utf-8")
    except OSError as error:
        remedy = (
            "free some space" if error.errno == errno.ENOSPC else "choose another folder or its permissions"
        )
        raise CheckpointError(
            f"cannot write the checkpoint {folder}: {error.strerror or error}; {remedy} "
            "(an earlier checkpoint there is as it was)"
        ) from error
    return folder


def load_checkpoint(folder: str | Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint.

    Args:
        folder: the checkpoint, or the folder of a training that holds it in `best`.
        device: where the model goes.

    Raises:
        CheckpointError: there is none, or it is damaged, foreign or of a newer format.
    """
    folder = Path(folder)
    if not (stored_folder(folder) / CONFIG).exists() and is_checkpoint(folder / BEST):
        folder = folder / BEST
    while True:
        before = _identity(folder)
        try:
            return _load(stored_folder(folder), device)
        except CheckpointError:
            if _identity(folder) == before:
                raise  # else it was replaced while it was read: read the new one


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells one writing of a checkpoint from the next."""
    try:
        status = (stored_folder(folder) / CONFIG).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _load(path: Path, device: torch.device | str) -> Checkpoint:
    """See `load_checkpoint`."""
    config_json = _read_config(path)
    try:
        config = ModelConfig.from_dict(config_json["model"])
        training, fingerprint = dict(config_json["training"]), str(config_json["corpus_fingerprint"])
        stored = config_json["weights"]
        size, checksum = stored["bytes"], stored["crc32"]
        vocabulary = Vocabulary.from_dict(_read_json(path / VOCABULARY))
    except ConfigError as error:
        raise CheckpointError(f"{path / CONFIG} does not describe a model: {error}") from error
    except TokenizerError as error:
        raise CheckpointError(f"{path / VOCABULARY}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path / CONFIG} is damaged ({error!r}); restore it or train again") from error
    if vocabulary.size != config.vocab_size:
        raise CheckpointError(
            f"{path}: the vocabulary has {vocabulary.size} tokens and the model {config.vocab_size}; "
            "its files come from different checkpoints"
        )
    data = _read_bytes(path / WEIGHTS)
    if len(data) != size or zlib.crc32(data) != checksum:
        raise CheckpointError(
            f"{path / WEIGHTS} is damaged or of another checkpoint: its {len(data)} bytes are not the {size} "
            f"that {CONFIG} describes; restore it or train again"
        )
    model = _unpack(data, config, path / WEIGHTS).to(device)
    return Checkpoint(model, config, vocabulary, _read_json(path / TOKENIZER), training, fingerprint, path)


def is_checkpoint(folder: str | Path) -> bool:
    """Whether the folder is a checkpoint of some version; does not read its weights."""
    try:
        _read_config(stored_folder(Path(folder)))
    except CheckpointError:
        return False
    return True


def _pack(model: Model, dtype: torch.dtype) -> bytes:
    """The weights in safetensors form."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensors[name] = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        if not torch.isfinite(tensors[name]).all() and torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} has weights too large for fp16; store them as bf16 or fp32")
    return safetensors.torch.save(tensors)


def _unpack(data: bytes, config: ModelConfig, path: Path) -> Model:
    """The model from its weights; before they are known to fit, nothing larger than them is allocated."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file ({error}); restore it or train again"
        ) from error
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in Model(config).state_dict().items()}
    received = {name: tensor.shape for name, tensor in tensors.items()}
    for name in [*expected, *received]:
        if expected.get(name) != received.get(name):
            want, got = (
                tuple(shapes[name]) if name in shapes else "nothing" for shapes in (expected, received)
            )
            raise CheckpointError(
                f"{path} does not fit the model that {CONFIG} describes: {name} should be {want} and is {got}"
            )
    if any(not tensor.is_floating_point() for tensor in tensors.values()):
        raise CheckpointError(
            f"{path} holds whole numbers where weights should be; restore it or train again"
        )
    model = Model(config, random_seed=None)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def _read_config(path: Path) -> dict[str, Any]:
    """config.json, its format and version checked."""
    if not path.is_dir():
        raise CheckpointError(
            f"there is no checkpoint at {path}; train one, or name the folder that holds {CONFIG}"
        )
    config = _read_json(path / CONFIG)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / CONFIG} is not a melodia checkpoint's; name a folder that melodia wrote"
        )
    version = config.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(
            f"{path / CONFIG} is damaged (format_version {version!r}); restore it or train again"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, and this melodia ({melodia.__version__}) reads up to "
            f"{FORMAT_VERSION}; update melodia"
        )
    return config


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; restore it or train again") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path} has more than {MAX_JSON >> 20} MB; it is not melodia's")
    except OSError:
        pass  # reading says what is wrong
    try:
        data = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); restore it or train again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object; restore it or train again")
    return data


def _to_json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _refuse_foreign(folder: Path) -> None:
    """Replacing a folder deletes what was in it: refuse if that is anything but a checkpoint."""
    path = stored_folder(folder)
    if not path.exists():
        return
    if not path.is_dir():
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder, choose another name")
    present = {entry.name for entry in path.iterdir()}
    if not present:
        return
    if not is_checkpoint(path):
        raise CheckpointError(
            f"{folder} holds something other than a checkpoint; choose another or an empty folder"
        )
    others = present - set(_read_config(path).get("files", [])) - {WEIGHTS, CONFIG, VOCABULARY, TOKENIZER}
    if others:
        raise CheckpointError(
            f"{folder} holds other files besides its checkpoint ({', '.join(sorted(others))}), which would be "
            "lost; move them, or choose another folder"
        )
