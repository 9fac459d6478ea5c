"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melodia import files
from melodia.corpus.build import build_corpus
from melodia.corpus.discover import find_midi_files
from melodia.corpus.manifest import read_manifest
from melodia.corpus.shards import Corpus
from melodia.errors import CheckpointError, MelodiaError, MidiError, TokenizerError
from melodia.files import check_target, hold, refuse_folder, whole_file, write_whole
from melodia.midi import read_score, write_midi
from melodia.model import Model, ModelConfig, load_checkpoint, save_checkpoint
from melodia.originality import FILE as INDEX
from melodia.originality import Index
from melodia.tokenizer import Tokenizer
from melodia.workflows.compared import write_file
from melodia.workflows.corpora import check_apart
from melodia.workflows.train import train_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("own", [False, True])
def test_a_file_is_written_and_replaced(tmp_path: Path, own: bool) -> None:
    target = tmp_path / "a.json"
    write_whole(target, "é", own=own)
    write_whole(target, b"new", own=own)
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


class Windows:
    """The locks of a system without fcntl: of one byte, without waiting."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.asked = 0

    def locking(self, file: int, mode: int, size: int) -> None:
        assert (mode, size) == (self.LK_NBLCK, 1)
        self.asked += 1
        if self.asked == 4:
            self.held.clear()  # its holder has died
        place = os.fstat(file).st_ino
        if self.held.setdefault(place, file) != file:
            raise PermissionError(errno.EACCES, "Permission denied")


def test_a_file_is_held_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "x").open("ab") as one, (tmp_path / "x").open("ab") as two:
        if files.fcntl is not None:
            assert hold(one)
            with pytest.raises(BlockingIOError):
                hold(two)
        windows = Windows()
        monkeypatch.setattr(files, "fcntl", None)
        monkeypatch.setattr(files, "msvcrt", windows)
        monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
        assert hold(one)
        with pytest.raises(BlockingIOError):
            hold(two)
        assert hold(two, wait=True)
        assert windows.asked == 4
        monkeypatch.setattr(files, "msvcrt", None)
        assert not hold(one), "nothing can be locked there"


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
    with pytest.raises(FileExistsError):
        write_whole(target, "new", force=False)
    assert target.read_text() == "old"

    def no_room(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Path, "replace", no_room)
    with pytest.raises(OSError, match="no space"):
        write_whole(tmp_path / "d.json", "new", force=False)
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


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 9000, "y" * 300 + "/x"])
def test_a_name_that_no_file_can_have_is_an_error_of_the_promised_kind(
    name: str, samples_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    score, tokenizer = read_score(samples_dir / "sakura.mid")[0], Tokenizer()
    model = Model(ModelConfig("gru", vocab_size=tokenizer.vocabulary.size, hidden_size=4, gru_layers=1))
    words = "no file can have this name .*; choose another"
    with pytest.raises(MidiError, match=words):
        write_midi(score, name)
    with pytest.raises(TokenizerError, match=words):
        tokenizer.save(name)
    with pytest.raises(TokenizerError, match=words):
        Tokenizer.load(name)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(name)
    with pytest.raises(CheckpointError, match=words):
        save_checkpoint(name, model, vocabulary=tokenizer.vocabulary, tokenizer_json=tokenizer.to_dict())
    with pytest.raises(MelodiaError, match=words):
        check_target(name + ".json", ".json", force=False)
    assert not names(tmp_path)


REFUSALS: list[Callable[[Path], Any]] = [
    lambda folder: find_midi_files(folder / "none"),
    lambda folder: build_corpus(folder, folder / "out"),
    lambda folder: read_manifest(folder),
    lambda folder: Corpus.open(folder),
    lambda folder: load_checkpoint(folder),
    lambda folder: Tokenizer.load(folder / "none.json"),
    lambda folder: check_apart(folder, folder),
    lambda folder: train_folder(folder, folder / "out", resume=True),
    lambda folder: ((folder / "a").touch(), write_file(folder / "a" / "b", "")),
    lambda folder: ((folder / INDEX).touch(), Index.open(folder)),
]


@pytest.mark.parametrize("refused", REFUSALS)
def test_a_folder_with_a_line_end_in_its_name_is_named_in_one_line(
    refused: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = tmp_path / "two\nlines"
    folder.mkdir()
    with pytest.raises(MelodiaError, match=r"two\\nlines") as raised:
        refused(folder)
    assert "\n" not in str(raised.value)


def test_a_target_is_tried_before_the_work_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    assert check_target(target, ".json", force=True) == target
    assert (names(tmp_path), target.read_text()) == (["a.json"], "old")

    def read_only(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(
        MelodiaError, match=r"a\.json: cannot be written \(Read-only file system\); check the folder"
    ):
        check_target(target, ".json", force=True)


@pytest.mark.parametrize("name", ["", "new/", "here"])
def test_a_name_that_is_a_folders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(TokenizerError, match="is a directory; give a file name for the tokenizer"):
        Tokenizer().save(name, force=True)
    with pytest.raises(MelodiaError, match=r"is a directory; give a file name that ends in \.png"):
        check_target("new.png/" if name == "new/" else name, ".png", force=True)
    assert names(tmp_path) == ["here"]


def test_a_checkpoint_whose_helpers_have_no_room_for_their_names(tmp_path: Path) -> None:
    """Beside the folder stand, for a moment, others whose names are longer than its own."""
    tokenizer, long = Tokenizer(), tmp_path / ("x" * 253)
    model = Model(ModelConfig("gru", vocab_size=tokenizer.vocabulary.size, hidden_size=4, gru_layers=1))
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*; choose another folder"):
        save_checkpoint(long, model, vocabulary=tokenizer.vocabulary, tokenizer_json=tokenizer.to_dict())
    with pytest.raises(CheckpointError, match=r"cannot read .*check the path"):
        load_checkpoint(long)


def test_a_folder_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for question in ("is_dir", "exists"):  # both raise it before Python 3.14
        monkeypatch.setattr(Path, question, denied)
    with pytest.raises(MidiError, match=r"a\.mid: cannot be written \(Permission denied\); check the folder"):
        refuse_folder(tmp_path / "a.mid", MidiError)
    with pytest.raises(CheckpointError, match=r"cannot read .*: Permission denied; check the path"):
        load_checkpoint(tmp_path / "model")
