"""What a sampler is loaded from and onto: the device, the model that comes with melodia."""

from __future__ import annotations

from pathlib import Path

import melodia
from melodia.errors import BackendError, CheckpointError, ConfigError
from melodia.sampler.runner import engine_obstacle


def check_device(device: str, backend: str = "auto") -> str:
    """The device of a name, "auto" included.

    Raises:
        ConfigError: there is no such name.
        BackendError: there is no such device here.
    """
    if not isinstance(device, str):
        raise ConfigError(f"`device` must be auto, cpu or cuda (received {device!r})")
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
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"`device` must be auto, cpu or cuda (received {device!r})") from error
    try:
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
            "this melodia comes without a model; train one with `melodia train FOLDER --out DIR` and name it"
        )
    return folder
