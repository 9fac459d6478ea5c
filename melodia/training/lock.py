"""One training at a time in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from melodia.errors import show_path
from melodia.files import hold
from melodia.training.distributed import World

FILE = "training.lock"


@contextmanager
def only_training(out: Path, world: World) -> Iterator[None]:
    """Hold the folder of a training, which is made if need be; the kernel lets go of it when the process dies.

    The first process holds it, all know. Where files cannot be locked, nothing is held.

    Raises:
        TrainingError: another training is running there, or the folder cannot be written.
    """
    file: IO[bytes] | None = None
    problem: str | None = None
    made: list[Path] = []
    if world.leads:
        try:
            made = [place for place in (out, *out.parents) if not place.exists()]
            out.mkdir(parents=True, exist_ok=True)
            file = _lock(out / FILE)
        except BlockingIOError:
            problem = (
                f"another training is running in {show_path(out)}; wait for it to end, stop it, or choose another "
                "folder"
            )
        except OSError as error:
            problem = f"cannot write {show_path(out)}: {error.strerror or error}; choose another folder"
    try:
        world.refuse(problem)
        yield
    finally:
        if file is not None:
            # Removed while it is held: whoever opened it in between sees that it is gone, and makes another.
            refused = False
            with file:
                try:
                    (out / FILE).unlink()
                except OSError as error:
                    refused = isinstance(error, PermissionError)
            if refused:  # Windows deletes nothing that is open
                with contextlib.suppress(OSError):
                    (out / FILE).unlink()
        for place in made:  # if nothing came of it
            with contextlib.suppress(OSError):
                place.rmdir()


def _lock(path: Path) -> IO[bytes]:
    """Open the file and hold it.

    Raises:
        BlockingIOError: somebody else does.
        OSError: it cannot be written.
    """
    while True:
        file = path.open("ab")
        try:
            if not hold(file):
                return file
        except BlockingIOError:
            file.close()
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # it was removed between being opened and being held
