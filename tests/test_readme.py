"""The commands and the Python of the README and of `docs/` run as they stand, but for the minutes they take."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY

from melodia.cli import main

PIECES = ("frere_jacques", "greensleeves", "petzold_minuet_g_major", "sakura")
SHORTER = {
    "melodia bench": "melodia bench --seconds 1",
    "--minutes 20": "--minutes 0.05 --size tiny",
    "--minutes 10": "--minutes 0.05",
    "--generate 20": "--generate 2 --seed-bars 2 --bars 2",
    "--minutes 5": "--minutes 0.02 --size tiny",
}


def blocks(language: str, page: str = "README.md") -> list[str]:
    """The code blocks of a page in a language ("" for commands)."""
    text = (REPOSITORY / page).read_text("utf-8")
    return [body for name, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if name == language]


@pytest.mark.slow
def test_the_commands_and_the_python_of_the_readme_run(
    tmp_path: Path, samples_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("my-midi-folder", "my-few-songs", "held-out"):
        (tmp_path / folder).mkdir()
    for name in PIECES:
        for folder in ("my-midi-folder", "my-few-songs"):
            shutil.copy(samples_dir / f"{name}.mid", tmp_path / folder)
    for path in sorted(samples_dir.glob("b*.mid")):
        shutil.copy(path, tmp_path / "held-out")
    shutil.copy(samples_dir / "greensleeves.mid", tmp_path / "song.mid")
    commands = [line for block in blocks("") for line in block.splitlines() if line.startswith("melodia ")]
    assert len(commands) >= 5
    for command in commands:
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        assert main(shlex.split(command)[1:]) == 0, command
    assert {"song-continued.mid", "song-continued.png", "song-continued.wav"} <= {
        p.name for p in tmp_path.iterdir()
    }
    (program,) = blocks("python")
    exec(compile(program, "README.md", "exec"), {})
    assert (tmp_path / "song-from-python.mid").read_bytes().startswith(b"MThd")


@pytest.mark.slow
def test_the_guide_to_python_runs(tmp_path: Path, samples_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, piece in (("song", "greensleeves"), ("tune", "soldiers_joy"), ("other", "sakura")):
        shutil.copy(samples_dir / f"{piece}.mid", tmp_path / f"{name}.mid")
    for folder, pieces in (("my-midi", PIECES), ("held-out", ("brahms_waltz_a_flat",))):
        (tmp_path / folder).mkdir()
        for piece in pieces:
            shutil.copy(samples_dir / f"{piece}.mid", tmp_path / folder)
    names: dict[str, object] = {}
    programs = blocks("python", "docs/python.md")
    assert len(programs) > 8
    for program in programs:
        exec(
            compile(re.sub(r'"minutes": [\d.]+', '"minutes": 0.03', program), "docs/python.md", "exec"), names
        )
    assert {"continued.mid", "filled.mid", "my-model", "session.melodia"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    targets = {word for block in blocks("") for word in re.findall(r"^make ([\w-]+)", block, re.M)}
    assert targets >= {"demo", "test", "lint"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_make_demo_runs_in_a_new_folder(
    tmp_path: Path, samples_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands as they stand in the Makefile, where nothing has been made yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "midi_samples").symlink_to(samples_dir)
    makefile = (REPOSITORY / "Makefile").read_text("utf-8").replace("\\\n", " ")
    (recipe,) = re.findall(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.M)
    for line in recipe.splitlines():
        words = shlex.split(line)
        if words[0] == "$(BIN)/melodia":
            assert main(words[1:]) == 0, line
        else:
            subprocess.run(words, check=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"demo.mid", "demo.png", "demo.wav"}
