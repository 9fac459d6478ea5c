"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from melodia.files import whole_file, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("own", [False, True])
def test_a_file_is_written_and_replaced(tmp_path: Path, own: bool) -> None:
    target = tmp_path / "a.json"
    write_whole(target, "é", own=own)
    write_whole(target, b"new", own=own)
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def test_the_longest_name(tmp_path: Path) -> None:
    target = tmp_path / ("曲" * 83 + ".mid")  # 253 bytes
    write_whole(target, b"MThd")
    assert names(tmp_path) == [target.name]


def test_what_is_there_stays_without_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(FileExistsError):
        write_whole(target, "new", force=False)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]
    write_whole(tmp_path / "b.json", "new", force=False)

    def no_links(*names: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    write_whole(tmp_path / "c.json", "new", force=False)
    assert names(tmp_path) == ["a.json", "b.json", "c.json"]


@pytest.mark.parametrize("step", ["inside", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_whatever_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")

    def fail(*arguments: object) -> None:
        raise error

    if step != "inside":
        monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))

    def write() -> None:
        with whole_file(target) as part:
            part.write_text("ne")
            if step == "inside":
                fail()

    with pytest.raises(type(error)):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_what_a_kill_leaves_in_an_own_folder_is_overwritten(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, pathlib; from melodia.files import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1]), own=True) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    target = tmp_path / "a.json"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", script, str(target)]).returncode != 0
        assert names(tmp_path) == ["a.json.part"]
    write_whole(target, "whole", own=True)
    assert names(tmp_path) == ["a.json"]
    assert target.read_text() == "whole"
