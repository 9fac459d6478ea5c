"""Checkpoints: a folder with everything that generating or training on needs, and no code.

    model.safetensors   the weights, as fp32, bf16 or fp16
    config.json         format version, model, training summary, corpus fingerprint, checksum of the weights
    vocabulary.json     what each token id stands for
    tokenizer.json      the tokenizer, as it saves itself

A checkpoint is written whole or not at all (`folders`), and read by `stored`, with torch or without.
"""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import melodia
from melodia.checks import file_path
from melodia.errors import CheckpointError, show_path
from melodia.model.config import ModelConfig
from melodia.model.folders import replace_folder, stored_folder
from melodia.model.model import Model
from melodia.model.stored import (
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    is_checkpoint,
    read_checkpoint,
    read_config,
)
from melodia.vocabulary import Vocabulary

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    folder = file_path("folder", folder, CheckpointError)
    if weights not in DTYPES:
        raise CheckpointError(f"`weights` can be stored as {', '.join(DTYPES)} (received {weights!r})")
    if vocabulary.size != model.config.vocab_size:
        raise CheckpointError(
            f"the vocabulary has {vocabulary.size} tokens and the model {model.config.vocab_size}; "
            "save a model with the vocabulary it was trained on"
        )
    with _explained(folder):
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
        raise CheckpointError(
            f"what should go into {show_path(folder)} cannot be written as JSON ({error})"
        ) from error
    with _explained(folder), replace_folder(folder) as new:
        (new / WEIGHTS).write_bytes(data)
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")
        if write_more is not None:
            write_more(new)
        config["files"] = sorted({path.name for path in new.iterdir()} | {CONFIG})
        (new / CONFIG).write_text(_to_json(config), encoding="utf-8")
    return folder


def load_checkpoint(folder: str | Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint as a torch model; `melodia.model.stored.read_checkpoint` does without torch.

    Args:
        folder: the checkpoint, or the folder of a training that holds it in `best`.
        device: where the model goes.

    Raises:
        CheckpointError: there is none, or it is damaged, foreign or of a newer format.
    """
    stored = read_checkpoint(folder)
    return Checkpoint(
        stored.network.to_torch().to(device),
        stored.config,
        stored.vocabulary,
        stored.tokenizer_json,
        stored.training,
        stored.corpus_fingerprint,
        stored.path,
    )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Errors of the file system as one that says what to do."""
    try:
        yield
    except OSError as error:
        remedy = (
            "free some space" if error.errno == errno.ENOSPC else "choose another folder or its permissions"
        )
        raise CheckpointError(
            f"cannot write the checkpoint {show_path(folder)}: {error.strerror or error}; {remedy} "
            "(an earlier checkpoint there is unchanged)"
        ) from error


def _pack(model: Model, dtype: torch.dtype) -> bytes:
    """The weights in safetensors form."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensors[name] = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        if not torch.isfinite(tensors[name]).all() and torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} has weights too large for fp16; store them as bf16 or fp32")
    return safetensors.torch.save(tensors)


def _to_json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _refuse_foreign(folder: Path) -> None:
    """Replacing a folder deletes what was in it: refuse if that is anything but a checkpoint."""
    path = stored_folder(folder)
    if not path.exists():
        return
    if not path.is_dir():
        raise CheckpointError(f"{show_path(folder)} is a file; a checkpoint is a folder, choose another name")
    present = {entry.name for entry in path.iterdir()}
    if not present:
        return
    if not is_checkpoint(path):
        raise CheckpointError(
            f"{show_path(folder)} holds something other than a checkpoint; choose another or an empty folder"
        )
    own = {WEIGHTS, CONFIG, VOCABULARY, TOKENIZER, *read_config(path).get("files", [])}
    left = {f"{name}.part" for name in own} | {".DS_Store"}  # by a kill, by a file manager
    others = present - own - left
    if others:
        raise CheckpointError(
            f"{show_path(folder)} holds other files besides its checkpoint ({', '.join(sorted(others))}), which "
            "would be lost; move them, or choose another folder"
        )
