"""What a part of gpu_check.py has begun, so that a process that goes on where another ended leaves it out."""

from __future__ import annotations

import os
from pathlib import Path

PATH, PART = "MELODIA_GPU_CHECK_BEGUN", "MELODIA_GPU_CHECK_PART"  # variables of a part's environment
_BEGUN, _FAILED = "begun", "failed"


class Begun:
    """The tests of a part, or the rows of its table, that have begun.

    Args:
        path: the file, which all parts share: a line for what begins, and one for what turns out to have failed.
        part: its name.
    """

    def __init__(self, path: Path, part: str) -> None:
        self.path = path
        self.part = part

    @staticmethod
    def here() -> Begun | None:
        """That of the part that this process runs; None where it runs none."""
        path = os.environ.get(PATH)
        return Begun(Path(path), os.environ[PART]) if path else None

    def environment(self) -> dict[str, str]:
        """What the part's process has to know."""
        return {PATH: str(self.path), PART: self.part}

    def begin(self, name: str) -> None:
        """Keep a name before anything of it can go wrong."""
        self._add(_BEGUN, name)

    def fail(self, name: str) -> None:
        """It went wrong."""
        self._add(_FAILED, name)

    def names(self) -> list[str]:
        """What has begun, in order."""
        return [name for part, what, name in self._lines() if (part, what) == (self.part, _BEGUN)]

    def failed(self) -> list[str]:
        """What went wrong."""
        return [name for part, what, name in self._lines() if (part, what) == (self.part, _FAILED)]

    def fail_last(self) -> None:
        """What began last took the process with it, or hung."""
        for name in self.names()[-1:]:
            self.fail(name)

    def give_back(self) -> None:
        """What began last was cut off only: it has not begun."""
        last = (self.part, _BEGUN, next(iter(self.names()[-1:]), ""))
        self._write([line for line in self._lines() if line != last])

    def forget(self) -> None:
        """Nothing of the part has begun."""
        self._write([line for line in self._lines() if line[0] != self.part])

    def _add(self, what: str, name: str) -> None:
        with self.path.open("a") as to:
            to.write(f"{self.part}\t{what}\t{name}\n")

    def _lines(self) -> list[tuple[str, str, str]]:
        if not self.path.exists():
            return []
        # The last line may have been cut off.
        cut = [line.split("\t", 2) for line in self.path.read_text().splitlines()]
        return [(words[0], words[1], words[2]) for words in cut if len(words) == 3]

    def _write(self, lines: list[tuple[str, str, str]]) -> None:
        if self.path.exists():
            replace(self.path, "".join("\t".join(line) + "\n" for line in lines))


def replace(path: Path, text: str) -> None:
    """Write a file in one move, so that whatever ends this process leaves the old text or the new one."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.replace(path)
