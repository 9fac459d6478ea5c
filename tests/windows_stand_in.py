"""The command line without what Windows lacks, and with the file system as it is there.

As a program, `python tests/windows_stand_in.py COMMANDS`: a JSON list of the arguments of one `melodia` after the
other, until one fails. Nothing is proven of Windows itself. What is: that melodia asks for nothing that is not there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import stat
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
OF_OS = ("fork", "getloadavg", "pread", "sched_getaffinity", "sched_setaffinity", "statvfs")
OF_SIGNAL = ("ITIMER_PROF", "ITIMER_REAL", "SIGALRM", "SIGHUP", "SIGUSR1", "setitimer")
_open, _fsync, _kill = os.open, os.fsync, os.kill
_rename, _replace, _unlink = os.rename, os.replace, os.unlink


def _held(path: Any) -> bool:
    """Whether this process has a file open that is at `path` or inside it, or mapped into memory."""
    if isinstance(path, int):
        return False
    place = os.path.realpath(os.fsdecode(path))
    held = [entry.split(maxsplit=5)[-1] for entry in Path("/proc/self/maps").read_text().splitlines()]
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            held.append(str(entry.readlink()))
    return any(name == place or name.startswith(place + os.sep) for name in held)


def _refuse_held(*paths: Any) -> None:
    for path in paths:
        if _held(path):
            raise PermissionError(
                errno.EACCES, "the file is being used by another process", os.fsdecode(path)
            )


def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """Directories cannot be opened."""
    if Path(path).is_dir() and flags & os.O_TMPFILE != os.O_TMPFILE:
        raise PermissionError(errno.EACCES, "Permission denied", os.fsdecode(path))
    return _open(path, flags, mode, dir_fd=dir_fd)


def fsync(file: int) -> None:
    """Only what may be written can be flushed."""
    import _melodia_fcntl

    flags = _melodia_fcntl.fcntl(file, _melodia_fcntl.F_GETFL)
    if flags & os.O_ACCMODE == os.O_RDONLY or stat.S_ISDIR(os.fstat(file).st_mode):
        raise OSError(errno.EBADF, "Bad file descriptor")
    _fsync(file)


def kill(process: int, number: int) -> None:
    """Number 0 is Ctrl-C there."""
    assert number != 0, "os.kill(process, 0) would send Ctrl-C"
    _kill(process, number)


def rename(source: Any, target: Any, **named: Any) -> None:
    """Nothing is replaced, and nothing moves that is open."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "File exists", os.fsdecode(target))
    _refuse_held(source)
    _rename(source, target, **named)


def replace(source: Any, target: Any, **named: Any) -> None:
    """No folder is replaced, and no file that is open."""
    if Path(target).is_dir():
        raise PermissionError(errno.EACCES, "Access is denied", os.fsdecode(target))
    _refuse_held(source, target)
    _replace(source, target, **named)


def unlink(path: Any, **named: Any) -> None:
    """Nothing is deleted that is open."""
    _refuse_held(path)
    _unlink(path, **named)


def _names(event: str, arguments: tuple[Any, ...]) -> None:
    """No file has these letters in its name."""
    name = arguments[0] if event == "open" else ""
    if (
        isinstance(name, str) and set(name) & set('<>:"|?*') and not name.startswith("<")
    ):  # <string> is no file
        raise OSError(errno.EINVAL, "Invalid argument", name)


class _Changed:
    """A module with other values for some of its names."""

    def __init__(self, module: ModuleType, **values: str) -> None:
        self._module = module
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def pretend() -> None:
    """Take away what Windows lacks."""
    import fcntl

    sys.modules["_melodia_fcntl"] = fcntl
    for module in MODULES:
        sys.modules[module] = None  # type: ignore[assignment]
    for owner, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)
    for function in (fsync, kill, rename, replace, unlink):
        setattr(os, function.__name__, function)
    os.open, os.remove = open_, unlink  # type: ignore[assignment]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    sys.addaudithook(_names)

    from melodia.model import folders

    folders.os = _Changed(os, name="nt")
    folders.sys = _Changed(sys, platform="win32")


if __name__ == "__main__":
    pretend()
    from melodia.cli.app import run

    sys.exit(next(filter(None, map(run, json.loads(sys.argv[1]))), 0))
