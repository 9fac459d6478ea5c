"""What a training finds in the folder that it is to write to."""

from __future__ import annotations

from pathlib import Path

from melodia.errors import show_path
from melodia.model.stored import BEST, NOTICES, RESUME, STATE, is_checkpoint
from melodia.training.distributed import World
from melodia.training.logs import BOARD, COLUMNS, EARLIER, LOG
from melodia.training.resume import TrainingState, parse_state, read_bytes

EVENTS = "events.out.tfevents.*"  # what TensorBoard calls its files


def holds_state(out: Path) -> bool:
    """Whether there is something to go on from."""
    return (out / RESUME / STATE).exists()


def obstacle(out: Path, *, resume: bool = False, force: bool = False, resumable: bool = True) -> str | None:
    """Why a training may not begin or go on in this folder: something would be lost. None where it may.

    Args:
        out: the folder.
        resume: it is to go on.
        force: what is there may be replaced.
        resumable: the caller can go on with any training, and replace this one alone.
    """
    if is_checkpoint(out):
        return (
            f"{show_path(out)} is a checkpoint itself, which a training run would replace entirely; choose another "
            "folder"
        )
    foreign = _foreign(out)
    if foreign is not None:
        return f"{show_path(foreign)} already exists, and no training run wrote it; move it or choose another folder"
    if force or (resume and holds_state(out)):
        return None
    if resume and (out / BEST).exists():
        return (
            f"{show_path(out)} holds a checkpoint, but {RESUME}, which a training run resumes from, is missing; "
            f"fine-tune the checkpoint (`init` {show_path(out / BEST)}, another `out`), or retrain (`force`)"
        )
    if (out / BEST).exists() or holds_state(out):
        remedy = "resume it (`resume`), replace it (`force`)" if resumable else "move it"
        remedy += " or choose another folder"
        return f"{show_path(out)} already holds a training run; {remedy}"
    if len(_log_lines(out)) > 1:
        replaced = ", replace it (`force`)" if resumable else ""
        return (
            f"{show_path(out / LOG)} is the log of a training run; move it{replaced} or choose another folder"
        )
    return None


def _log_lines(out: Path) -> list[str]:
    """The first two lines of the log: its header, and a row if it has one."""
    if not (out / LOG).exists():
        return []
    with (out / LOG).open(encoding="utf-8", errors="replace") as file:
        return [line.strip() for line in (file.readline(), file.readline()) if line]


def _foreign(out: Path) -> Path | None:
    """What has the name of a log, but was written by no training; None if nothing has."""
    log, board = out / LOG, out / BOARD
    if log.is_dir() or _log_lines(out)[:1] not in ([], [",".join(COLUMNS)], [",".join(EARLIER)]):
        return log
    trained = log.exists() or is_checkpoint(out / BEST) or holds_state(out)
    if board.exists() and not trained and not (board.is_dir() and not any(board.iterdir())):
        return board
    return None


def check_folder(out: Path, world: World, *, resume: bool = False, force: bool = False) -> None:
    """Refuse to train in a folder where something would be lost. The first process looks, all know.

    Raises:
        TrainingError: says what.
    """
    world.refuse(obstacle(out, resume=resume, force=force) if world.leads else None)


def look(out: Path, world: World, resume: bool, force: bool) -> TrainingState | None:
    """The state to go on from, if there is one to go on from; else what is to be replaced goes.

    Raises:
        TrainingError: something would be lost, or the state cannot be read.
    """
    check_folder(out, world, resume=resume, force=force)
    if resume:
        data = world.share_bytes(read_bytes(out / RESUME) if world.leads else None)
        if data is not None:
            return parse_state(out / RESUME, data, world.device)
    if world.leads:
        if holds_state(out):
            (out / RESUME / STATE).unlink()
        for events in (out / BOARD).glob(EVENTS):  # other files there are not ours
            events.unlink()
    return None


def pass_on_notices(out: Path, checkpoint: Path) -> None:
    """Copy the notices of the model that is fine-tuned, where they are kept beside the state, into a checkpoint."""
    if (kept := out / RESUME / NOTICES).is_file():
        (checkpoint / NOTICES).write_bytes(kept.read_bytes())
