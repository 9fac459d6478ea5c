"""Finding the MIDI files of a folder, and what its own train and valid sub-folders say about them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from melodia.errors import CorpusError, show_path
from melodia.model.stored import BEST, CONFIG

SUFFIXES = (".mid", ".midi", ".rmi", ".kar")
TRAIN_NAMES = ("train", "training")
VALID_NAMES = ("valid", "validation", "val", "dev")


@dataclass(frozen=True)
class Found:
    """A file that looks like MIDI by its name.

    Attributes:
        relative: path inside the folder, with forward slashes.
        path: where it is.
        size: bytes; -1 where it cannot be told.
        changed: time of the last change in nanoseconds.
        split: what the folder says: "train", "valid", "outside" (beside train and valid) or "".
        problem: why it cannot be read; "" for a file.
    """

    relative: str
    path: Path
    size: int
    changed: int
    split: str
    problem: str = ""


def find_midi_files(folder: Path, exclude: Path | None = None) -> list[Found]:
    """All MIDI files below a folder, by path; links are followed, a folder that is met again is not.

    A folder that can be met in two ways goes by its own name, unless the link to it is named `train` or the like.
    A folder that holds both a `train` and a `valid` sub-folder (also `training`, `validation`, `val`, `dev`)
    decides the split of what lies in them; what lies beside them is left out. Folders that `melodia train` wrote are
    left out, too.

    Args:
        folder: where to look.
        exclude: a folder below it to leave out, such as the corpus that is being built.

    Raises:
        CorpusError: the folder is not there or may not be read.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise CorpusError(f"{show_path(folder)} {what}; give a folder of MIDI files")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise CorpusError(
            f"{show_path(folder)} cannot be read (permission denied); change its permissions or copy it"
        )
    found: list[Found] = []
    root = folder.stat()
    seen: set[tuple[int, int]] = {(root.st_dev, root.st_ino)}
    hidden = exclude.resolve() if exclude is not None else None

    def wanted(inside: Path) -> bool:
        """Whether to look into a folder that is met."""
        try:
            status = inside.stat()
        except OSError:
            return False
        if (status.st_dev, status.st_ino) in seen or inside.resolve() == hidden or _is_training(inside):
            return False
        seen.add((status.st_dev, status.st_ino))
        return True

    def unreadable(error: OSError) -> None:
        name = Path(error.filename)
        found.append(
            Found(_relative(name, folder), name, -1, 0, "", f"folder cannot be read ({error.strerror})")
        )

    decides: dict[Path, bool] = {}
    starts = [folder]
    for start in starts:  # grows by the links that are met: their turn comes when all else has been seen
        if start is not folder and not wanted(start):
            continue
        for here, folders, files in os.walk(start, followlinks=True, onerror=unreadable):
            place = Path(here)
            links = {name for name in folders if (place / name).is_symlink()}
            named = {name for name in folders if name.lower() in TRAIN_NAMES + VALID_NAMES}
            starts += sorted(place / name for name in links - named)
            names = sorted(named - links) + sorted(named & links) + sorted(set(folders) - named - links)
            folders[:] = [name for name in names if wanted(place / name)]
            lower = {name.lower() for name in folders}
            decides[place] = bool(lower.intersection(TRAIN_NAMES)) and bool(lower.intersection(VALID_NAMES))
            for name in files:
                if name.lower().endswith(SUFFIXES):
                    found.append(_look(place / name, folder, decides))
    return sorted(found, key=lambda item: os.fsencode(item.relative))


def _is_training(folder: Path) -> bool:
    """Whether `melodia train` wrote this folder: its samples are no music to learn from."""
    return (folder / BEST / CONFIG).is_file()


def _look(path: Path, folder: Path, decides: dict[Path, bool]) -> Found:
    relative = _relative(path, folder)
    try:
        status = path.stat()
    except OSError as error:
        problem = "a broken link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        return Found(relative, path, -1, 0, "", problem)
    return Found(relative, path, status.st_size, status.st_mtime_ns, _split_of(path, folder, decides))


def _split_of(path: Path, folder: Path, decides: dict[Path, bool]) -> str:
    place = folder
    for part in path.relative_to(folder).parts:
        if decides.get(place):
            name = part.lower()
            inside = place / part != path
            if inside and name in TRAIN_NAMES:
                return "train"
            return "valid" if inside and name in VALID_NAMES else "outside"
        place = place / part
    return ""


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
