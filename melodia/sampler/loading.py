"""What a sampler is loaded from and onto: the device, the model that comes with melodia."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import melodia
from melodia.checks import device_name, file_path
from melodia.errors import BackendError, CheckpointError, show_path
from melodia.model.network import Network
from melodia.model.stored import TOKENIZER, StoredCheckpoint, read_checkpoint
from melodia.sampler.runner import engine_obstacle
from melodia.tokenizer import Tokenizer
from melodia.vocabulary import Vocabulary


def open_checkpoint(path: str | os.PathLike[str] | None) -> tuple[StoredCheckpoint, Tokenizer]:
    """A checkpoint and its tokenizer; None: those of the model that comes with melodia.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folder = file_path("path", path, CheckpointError) if path is not None else bundled_model()
    checkpoint = read_checkpoint(folder)
    tokenizer = Tokenizer.from_dict(checkpoint.tokenizer_json, checkpoint.path / TOKENIZER)
    if tokenizer.vocabulary.fingerprint != checkpoint.vocabulary.fingerprint:
        raise CheckpointError(
            f"{show_path(folder)}: its tokenizer and its vocabulary differ; its files come from different checkpoints"
        )
    return checkpoint, tokenizer


def fingerprint_of(network: Network, vocabulary: Vocabulary) -> str:
    """What tells a model and its vocabulary from others: a hash that samples every weight tensor."""
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    digest.update(json.dumps(network.config.to_dict(), sort_keys=True).encode())
    for tensor in network.tensors.values():
        flat = tensor.reshape(-1)
        digest.update(flat[:: max(1, flat.size // 256)].tobytes())
    return digest.hexdigest()[:32]


def check_device(device: str, backend: str = "auto") -> str:
    """The device of a name, "auto" included.

    Raises:
        ConfigError: there is no such name.
        BackendError: there is no such device here.
    """
    device = device_name("device", device)
    if device == "cpu" or (device == "auto" and engine_obstacle(backend) is None):
        return "cpu"
    try:
        import torch
    except ImportError as error:
        if device == "auto":
            return "cpu"
        raise BackendError(
            f"`device` {device!r} needs torch, which cannot be imported ({error}); use cpu"
        ) from error
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)  # raises for a number past every device
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"`device` {device!r} cannot be used ({reason}); use cpu or auto") from error
    return str(chosen)


def bundled_folder() -> Path:
    """Where the model that comes with melodia lies, if there is one."""
    return Path(melodia.__file__).parent / "assets" / "default"


def bundled_model() -> Path:
    """The folder of the model that comes with melodia.

    Raises:
        CheckpointError: this melodia comes without one.
    """
    folder = bundled_folder()
    if not folder.is_dir():
        raise CheckpointError(
            "this installation comes without a model; train one with `melodia train FOLDER --out DIR` and name it"
        )
    return folder
