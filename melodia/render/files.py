"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from melodia.errors import MelodiaError, show_path


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
        raise MelodiaError(f"{name}: the name has to end in {suffix}")
    if not target.parent.is_dir():
        raise MelodiaError(f"{name}: there is no folder {show_path(target.parent)}; make it first")
    if not force and os.path.lexists(target):
        raise MelodiaError(f"{name}: is there already; choose another name, or give `force` to replace it")
    return target


@contextlib.contextmanager
def fresh_file(target: Path, force: bool) -> Iterator[Path]:
    """Give a temporary name beside the target; afterwards flush that file to the disk and rename it.

    Whatever goes wrong, nothing partial stays behind and an old file stays as it was.

    Raises:
        MelodiaError: the file cannot be written, or the target appeared in the meantime (without `force`).
    """
    name = show_path(target)
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        yield part
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        if force:
            part.replace(target)
            return
        try:
            os.link(part, target)
        except FileExistsError:
            raise MelodiaError(
                f"{name}: is there already; choose another name, or give `force` to replace it"
            ) from None
        except OSError:  # a file system without links
            part.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MelodiaError(
            f"{name}: cannot be written ({reason}); check the folder, its permissions and the space on the disk"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
