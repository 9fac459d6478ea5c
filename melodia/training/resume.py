"""The state of a training that goes on later: one file, written whole or not at all.

`state.safetensors` holds the tensors (weights, AdamW's moments, averaged weights, the lanes' recurrent
states) and, in its header, everything else as JSON. One file and one rename: at any moment the folder holds
the last state or the one before it, whole. No pickle.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from melodia.errors import ConfigError, TrainingError, show_path
from melodia.files import write_whole
from melodia.model import ModelConfig
from melodia.model.stored import STATE

FORMAT_VERSION = 2
"""Of what is written. In 1 an epoch was one pass over every key in which a corpus stores its pieces, now it is one over
the pieces; where each is stored in one key, both are the same."""
AGAIN = "`resume`"
"""What goes on with a training, where its caller has no other way."""


@dataclass(frozen=True)
class TrainingState:
    """What `write_state` saved.

    Attributes:
        tensors: by name.
        values: JSON values.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def write_state(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any], again: str = AGAIN) -> None:
    """Replace the folder's state.

    Args:
        folder: where it lies.
        tensors: by name.
        values: JSON values.
        again: what goes on from it, for messages.

    Raises:
        TrainingError: the folder cannot be written or the disk is full; the earlier state is intact.
    """
    path = folder / STATE
    header = {"melodia": json.dumps({"format_version": FORMAT_VERSION, **values})}
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_bytes(plain, header), own=True)
    except OSError as error:
        kept = "the earlier state is intact" if path.exists() else "nothing has been saved yet"
        raise TrainingError(
            f"cannot write {show_path(path)}: {error.strerror or error}; {kept}. Free some space or choose another "
            f"folder, then continue with {again}"
        ) from error


def read_bytes(folder: Path) -> bytes | None:
    """The folder's state as it lies on the disk; None if there is none.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        return (folder / STATE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrainingError(f"cannot read {show_path(folder / STATE)}: {error.strerror or error}") from error


def parse_state(folder: Path, data: bytes, device: torch.device) -> TrainingState:
    """The state from its bytes, its tensors on the device.

    Raises:
        TrainingError: it is damaged, or of another format.
    """
    path = folder / STATE
    try:
        size = int.from_bytes(data[:8], "little")
        values = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["melodia"])
        tensors = {name: tensor.to(device) for name, tensor in from_bytes(data).items()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{show_path(path)} is damaged ({error}); start over with `force`") from error
    if values.get("format_version") not in range(1, FORMAT_VERSION + 1):
        raise TrainingError(
            f"{show_path(path)} has format {values.get('format_version')!r}, but this version reads up to "
            f"{FORMAT_VERSION}; start over with `force`"
        )
    return TrainingState(tensors, values)


def saved_model(saved: TrainingState, out: Path) -> ModelConfig:
    """The form of the model that was in training.

    Raises:
        TrainingError: the state does not say.
    """
    try:
        return ModelConfig.from_dict(saved.values["identity"]["model"])
    except (KeyError, TypeError, ConfigError) as error:
        raise TrainingError(
            f"{show_path(out)} holds a damaged state ({error}); start over with `force`"
        ) from error


FREE = ("minutes", "epochs", "iterations", "eval_every", "patience", "save_every", "device", "threads")
"""Training settings that may differ between a run and its resumption."""


def check_same_run(identity: dict[str, Any], saved: TrainingState, out: Path, keys: int) -> None:
    """Refuse to go on with another corpus, another model or other settings, or from epochs that were counted otherwise.

    Args:
        identity: of this run.
        saved: what it is to go on from.
        out: its folder.
        keys: in how many keys, at most, the corpus stores a piece.

    Raises:
        TrainingError: names what differs.
    """
    # through JSON, as the saved one went: tuples become lists
    ours = json.loads(json.dumps(identity))
    theirs = saved.values.get("identity", {})
    if ours["vocabulary"] != theirs.get("vocabulary") or ours["corpus"] != theirs.get("corpus"):
        raise TrainingError(
            f"{show_path(out)} was trained on another corpus; resume with that one, or start over with `force` (or "
            f"`init` {show_path(out)})"
        )
    different = []
    for part in ("model", "training"):
        mine, other = ours[part], theirs.get(part, {})
        for name in sorted(set(mine) | set(other)):
            if mine.get(name) != other.get(name) and (part, name) not in {
                ("training", free) for free in FREE
            }:
                different.append(f"`{name}` {other.get(name)!r} is now {mine.get(name)!r}")
    if different:
        raise TrainingError(
            f"{show_path(out)} was trained with other settings: {'; '.join(different)}; resume with the same, "
            "or start over with `force`"
        )
    if keys > 1 and saved.values.get("format_version") == 1:
        raise TrainingError(
            f"{show_path(out)} was begun by an earlier version, whose epochs read each piece in all its keys (received "
            f"a corpus with up to {keys} a piece); an epoch now reads it in one, so start over with `force`, or "
            f"take its weights into another folder (`init` {show_path(out)})"
        )
