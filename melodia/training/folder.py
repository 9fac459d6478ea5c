"""What a training finds in the folder that it is to write to."""

from __future__ import annotations

import shutil
from pathlib import Path

from melodia.errors import TrainingError
from melodia.training.distributed import World
from melodia.training.resume import TrainingState, parse_state, read_bytes

BEST, RESUME = "best", "resume"


def holds_training(out: Path) -> bool:
    """Whether a training wrote to this folder."""
    return any((out / name).exists() for name in (BEST, RESUME))


def there_already(out: Path) -> TrainingError:
    """The error where a folder holds a training that would be lost."""
    return TrainingError(
        f"{out} holds a training already; go on with it (--resume), replace it (--force) or choose another folder"
    )


def look(out: Path, world: World, resume: bool, force: bool) -> TrainingState | None:
    """What lies in the folder already: the state to go on from, or what must not be overwritten."""

    def refuses(found: bool) -> bool:
        """The first process looks, all know."""
        return bool(world.sum([float(world.leads and found)])[0]) and not force

    if resume:
        data = world.share_bytes(read_bytes(out / RESUME) if world.leads else None)
        if data is not None:
            return parse_state(out / RESUME, data, world.device)
        if refuses((out / BEST).exists()):
            raise TrainingError(
                f"{out} holds a checkpoint, but {RESUME} is gone, which a training goes on from; fine-tune the "
                f"checkpoint (--init {out / BEST}, another --out), or train anew (--force)"
            )
        return None
    if refuses(holds_training(out)):
        raise there_already(out)
    if world.leads:
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
    return None
