"""Whole jobs without what Windows lacks: none can be run there, so what is missing there is taken away here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STAND_IN = Path(__file__).with_name("windows_stand_in.py")
# Text is in the locale's encoding there. The native library, which is not built there, is left in: it saves a minute.
ENVIRONMENT = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "cp1252"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what is open stands in /proc"),
]


def melodia(folder: Path, *commands: list[str]) -> str:
    """What the commands say, one after the other; none may fail."""
    environment = os.environ | ENVIRONMENT | {"XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, str(STAND_IN), json.dumps(commands)],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=300,
        check=False,
    )
    said = done.stdout.decode("cp1252") + done.stderr.decode("cp1252")
    assert done.returncode == 0, said
    return said


def test_training_generating_and_filling(tmp_path: Path, samples_dir: Path) -> None:
    """Twice, since the second time there is something to be replaced."""
    train = ["train", str(samples_dir), "--out", "model", "--size", "tiny", "--threads", "1"]
    seed, short = str(samples_dir / "sakura.mid"), ["--branches", "1", "--force", "--plot", "--audio"]
    generate = ["generate", "--seed", seed, "--model", "model", "--bars", "1", "--out", "new.mid", *short]
    fill = [
        "fill",
        seed,
        "--model",
        "model",
        "--bars",
        "2",
        "--out",
        "filled.mid",
        "--num-samples",
        "1",
        "--force",
    ]
    said = melodia(
        tmp_path,
        [*train, "--minutes", "0.03"],
        [*train, "--minutes", "0.08", "--resume"],
        generate,
        generate,
        fill,
    )
    assert "Traceback" not in said, said
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"new.mid", "new.png", "new.wav", "filled.mid"}
    left = [
        path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.suffix in (".part", ".lock")
    ]
    assert [path for path in left if "cache" not in path.parts] == []
