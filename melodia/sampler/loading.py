"""What a sampler is loaded from and onto: the device, the model that comes with melodia."""

from __future__ import annotations

from pathlib import Path

import melodia
from melodia.errors import CheckpointError, ConfigError
from melodia.sampler.runner import engine_obstacle


def check_device(device: str, backend: str = "auto") -> str:
    """The device of a name, "auto" included; raises ConfigError where it is not there."""
    if device == "cpu" or (device == "auto" and engine_obstacle(backend) is None):
        return "cpu"
    try:
        import torch
    except ImportError as error:
        if device == "auto":
            return "cpu"
        raise ConfigError(
            f"`device` {device!r} needs torch, which cannot be imported ({error}); use cpu"
        ) from error
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"`device` {device!r} cannot be used ({reason}); use cpu, cuda or auto") from error
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
