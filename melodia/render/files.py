"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from melodia.errors import MelodiaError, show_path
from melodia.files import taken, whole_file


def check_target(path: str | os.PathLike[str], suffix: str, force: bool) -> Path:
    """Refuse a target that cannot be meant.

    Args:
        path: where a file shall be written.
        suffix: how its name has to end, ``".png"``.
        force: a file that is there may be replaced.

    Returns:
        the path.

    Raises:
        MelodiaError: the name ends otherwise, is a directory, lies in no directory, or is taken.
    """
    target, name = Path(path), show_path(path)
    if target.is_dir():
        raise MelodiaError(f"{name}: is a directory; give a file name that ends in {suffix}")
    if target.suffix.lower() != suffix:
        raise MelodiaError(f"{name}: the name must end in {suffix}")
    if not target.parent.is_dir():
        raise MelodiaError(f"{name}: there is no folder {show_path(target.parent)}; create it first")
    if not force and os.path.lexists(target):
        raise MelodiaError(taken(target))
    return target


@contextlib.contextmanager
def fresh_file(target: Path, force: bool) -> Iterator[Path]:
    """Give a temporary name beside the target; see `melodia.files.whole_file`.

    Raises:
        MelodiaError: the file cannot be written, or the target appeared in the meantime (without `force`).
    """
    name = show_path(target)
    try:
        with whole_file(target, force=force) as part:
            yield part
    except FileExistsError:
        raise MelodiaError(taken(target)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise MelodiaError(
            f"{name}: cannot be written ({reason}); check the folder, its permissions and the space on the disk"
        ) from None
