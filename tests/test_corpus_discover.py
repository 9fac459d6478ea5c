"""Finding MIDI files: links, the folder's own split, and what is no music to learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from melodia.corpus.discover import find_midi_files


def songs(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"MThd")


def found(root: Path) -> dict[str, str]:
    return {item.relative: item.split for item in find_midi_files(root)}


@pytest.mark.parametrize("name", ["latest", "a/latest", "zz", "train/a/latest"])
@pytest.mark.parametrize("target", ["train", "train/b", "valid"])
def test_a_link_does_not_touch_the_split(name: str, target: str, tmp_path: Path) -> None:
    songs(tmp_path, "train/b/x.mid", "train/y.mid", "valid/z.mid")
    before = found(tmp_path)
    assert before == {"train/b/x.mid": "train", "train/y.mid": "train", "valid/z.mid": "valid"}
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).symlink_to(tmp_path / target, target_is_directory=True)
    assert found(tmp_path) == before


def test_a_link_to_a_split_inside(tmp_path: Path) -> None:
    songs(tmp_path, "set/train/x.mid", "set/valid/y.mid")
    (tmp_path / "a").symlink_to(tmp_path / "set" / "train", target_is_directory=True)
    assert found(tmp_path) == {"set/train/x.mid": "train", "set/valid/y.mid": "valid"}


def test_links_may_be_the_split(tmp_path: Path) -> None:
    """Whether they lead inside the folder or out of it."""
    root = tmp_path / "songs"
    songs(root, "2004/x.mid", "2006/y.mid")
    songs(tmp_path, "elsewhere/z.mid")
    (root / "train").symlink_to(root / "2004", target_is_directory=True)
    (root / "valid").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert found(root) == {"train/x.mid": "train", "valid/z.mid": "valid", "2006/y.mid": "outside"}


def test_links_to_other_folders_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "songs"
    songs(root, "x.mid")
    songs(tmp_path, "elsewhere/train/y.mid", "elsewhere/valid/z.mid")
    for name in ("here", "there"):
        (root / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(root, target_is_directory=True)
    assert found(root) == {"x.mid": "", "here/train/y.mid": "train", "here/valid/z.mid": "valid"}


def test_what_melodia_train_wrote_is_no_music(tmp_path: Path) -> None:
    for name in ("song.mid", "model/samples/1-song.mid", "other/later.mid"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"MThd")
    (tmp_path / "model" / "best").mkdir()
    (tmp_path / "model" / "best" / "config.json").write_text("{}")
    assert [found.relative for found in find_midi_files(tmp_path)] == ["other/later.mid", "song.mid"]
