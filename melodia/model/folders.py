"""Folders that are written whole or not at all.

A folder is written under another name, synced to the disk, and put in its place by renaming; the one that
stood there is deleted last. Whatever happens, `stored_folder` finds the old one or the new one.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from melodia.files import sync_file, sync_folder

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # <linux/fs.h>


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Write a folder anew: yields an empty folder to write into; on leaving, it takes the place of `folder`.

    If the body raises, or the process dies, `folder` is as it was.

    Raises:
        OSError: the disk is full, a folder may not be written, ...
    """
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _tidy(folder)
    new = folder.parent / f".{folder.name}.new-{os.getpid()}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        for path in sorted(new.rglob("*")):
            (sync_folder if path.is_dir() else sync_file)(path)
        sync_folder(new)
        _swap(new, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)  # what is left of a failure, or the folder that was replaced
        if folder.exists():
            shutil.rmtree(_aside(folder), ignore_errors=True)


def stored_folder(folder: Path) -> Path:
    """Where the folder's content is: in `folder`, or beside it if a write was cut short."""
    folder = Path(folder).resolve()
    return _aside(folder) if not folder.exists() and _aside(folder).is_dir() else folder


def _aside(folder: Path) -> Path:
    """Where the old folder waits while the new one takes its place, where two names cannot be exchanged."""
    return folder.parent / f".{folder.name}.old"


def _tidy(folder: Path) -> None:
    """Clear away what a process that died has left: put an old folder back, delete half-written ones."""
    if _aside(folder).is_dir():
        if folder.exists():
            shutil.rmtree(_aside(folder), ignore_errors=True)
        else:
            _aside(folder).rename(folder)
    for path in folder.parent.glob(f".{folder.name}.new-*"):
        process = path.name.rpartition("-")[2]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    if os.name == "nt":
        return True  # nobody knows: there os.kill(process, 0) sends Ctrl-C
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`; the old one, if there was one, ends up at `new` or aside."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        folder.rename(_aside(folder))
        new.rename(folder)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders swap names in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0
