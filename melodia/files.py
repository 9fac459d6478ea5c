"""Files that appear whole or not at all, whatever ends the program in between."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from melodia.checks import file_path, truth_value
from melodia.errors import MelodiaError, show_path

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None
try:
    import msvcrt
except ImportError:  # only Windows has it
    msvcrt = None


@contextlib.contextmanager
def whole_file(target: Path, *, force: bool = True, own: bool = False) -> Iterator[Path]:
    """Give a temporary name beside the target; then flush that file to the disk and rename it.

    Args:
        target: the file that is to appear.
        force: replace one that is there.
        own: the folder is melodia's, and nobody else writes there: the name is TARGET.part, so that the next time
            overwrites what a kill leaves. Otherwise it is a new hidden one.

    Raises:
        FileExistsError: there is a file already (without `force`), even if it came a moment ago.
        OSError: it cannot be written. Nothing partial stays behind, and an old file stays as it was.
    """
    part = target.with_name(f"{target.name}.part") if own else _hidden_beside(target)
    try:
        yield part
        sync_file(part)
        if force:
            part.replace(target)
        else:
            _rename_to_new(part, target)
        sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_whole(target: Path, content: bytes | str, *, force: bool = True, own: bool = False) -> None:
    """Write a file, text as UTF-8; arguments and errors as in `whole_file`."""
    with whole_file(target, force=force, own=own) as part:
        part.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


@contextlib.contextmanager
def asked_file(target: Path, error: type[MelodiaError] = MelodiaError, *, force: bool) -> Iterator[Path]:
    """`whole_file` where a caller says what to write: what goes wrong is an `error` that says what to do."""
    try:
        with whole_file(target, force=force) as part:
            yield part
    except FileExistsError:  # it came a moment ago
        raise error(taken(target)) from None
    except OSError as problem:
        raise error(_unwritable(target, problem)) from None


def asked_target(path: str | os.PathLike[str], error: type[MelodiaError], what: str, *, force: bool) -> Path:
    """The path of a file that `asked_file` can write, refused before the work where it cannot.

    Args:
        path: as a caller gave it.
        error: what is raised.
        what: is to be written, "the session".
        force: a file that is there may be replaced.

    Raises:
        ConfigError: it is no path, or `force` no truth value.
        error: it is a directory, or there is a file already (without `force`).
    """
    target, form = file_path("path", path, error), f" for {what}"
    refuse_folder(path, error, form=form)
    refuse_taken(target, error, force=force)
    return target


def refuse_folder(
    path: str | os.PathLike[str], error: type[MelodiaError] = MelodiaError, *, form: str = ""
) -> None:
    """Raise `error` where a directory is there, or meant by a slash at the end; form: what name to give instead."""
    try:
        name = os.fsdecode(path)  # a Path forgets the slash
        folder = not name or name.endswith(("/", os.sep)) or Path(name).is_dir()
    except OSError as problem:  # such as a folder that may not be searched
        raise error(_unwritable(path, problem)) from None
    if folder:
        raise error(_is_folder(path, form))


def refuse_taken(
    path: str | os.PathLike[str],
    error: type[MelodiaError] = MelodiaError,
    *,
    force: bool,
    other: str = "name",
) -> None:
    """Raise `error` where a file is there already, without `force`; other: what has to be another one then."""
    if not truth_value("force", force) and os.path.lexists(path):
        raise error(taken(path, other))


def check_target(path: str | os.PathLike[str], suffix: str, force: bool) -> Path:
    """Refuse a target that cannot be meant.

    Args:
        path: where a file shall be written.
        suffix: how its name has to end, ``".png"``.
        force: a file that is there may be replaced.

    Returns:
        the path.

    Raises:
        MelodiaError: the name ends otherwise, is a directory, lies in no directory or in one that takes no files, or is
            taken.
    """
    target, name = file_path("path", path, MelodiaError), show_path(path)
    refuse_folder(path, form=f" that ends in {suffix}")
    if target.suffix.lower() != suffix:
        raise MelodiaError(f"{name}: the name must end in {suffix}")
    if not target.parent.is_dir():
        raise MelodiaError(f"{name}: there is no folder {show_path(target.parent)}; create it first")
    refuse_taken(path, force=force)
    trial = _hidden_beside(target)
    try:
        trial.touch()
        trial.unlink()
    except OSError as problem:
        raise MelodiaError(_unwritable(target, problem)) from None
    return target


def taken(target: str | os.PathLike[str], other: str = "name") -> str:
    """The message that a file is there already; `other`: what has to be another one then.

    >>> taken("new.mid")
    'new.mid: already exists; choose another name, or give `force` to replace it'
    """
    return f"{show_path(target)}: already exists; choose another {other}, or give `force` to replace it"


NAME_BYTES = 100


def short_name(name: str) -> str:
    """The beginning of a name, as a part of a file's name: at most 100 of the 255 bytes that systems allow.

    >>> len(short_name("曲" * 80))
    33
    """
    return os.fsencode(name)[:NAME_BYTES].decode(errors="ignore")


def sync_file(path: Path) -> None:
    """Wait until a file that was written is on the disk."""
    with path.open("rb+") as stream:  # Windows flushes only what may be written
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def hold(file: IO[bytes], *, wait: bool = False) -> bool:
    """Lock an open, empty file until it is closed; the system lets go of it when its holder dies.

    Args:
        file: open for writing.
        wait: for another process that holds it.

    Returns:
        whether it is held; not where the system or the disk has no locks.

    Raises:
        BlockingIOError: another holds it, without `wait`.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        while msvcrt is not None:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return True
            except PermissionError as error:  # another holds it
                if not wait:
                    raise BlockingIOError(*error.args) from None
                time.sleep(0.1)
    except BlockingIOError:
        raise
    except OSError:  # such as a network disk without locks
        return False
    return False


def _hidden_beside(target: Path) -> Path:
    """A fresh name in its folder, without the target's, which may be as long as the system allows."""
    return target.with_name(f".melodia-{secrets.token_hex(8)}.tmp")


def _is_folder(path: str | os.PathLike[str], form: str) -> str:
    return f"{show_path(path)}: is a directory; give a file name{form}"


def _unwritable(path: str | os.PathLike[str], problem: OSError) -> str:
    return (
        f"{show_path(path)}: cannot be written ({problem.strerror or problem}); check the folder, its permissions and "
        "the free space"
    )


def _rename_to_new(part: Path, target: Path) -> None:
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: the name is claimed first, as a link would
        target.open("xb").close()
        try:
            part.replace(target)
        except BaseException:
            target.unlink()
            raise
