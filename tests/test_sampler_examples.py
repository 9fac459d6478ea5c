"""The examples of the sampler run as they are written."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from sampler_helpers import tiny_sampler

from melodia.model.checkpoint import save_checkpoint

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sampler = tiny_sampler()
    return save_checkpoint(
        tmp_path_factory.mktemp("model") / "model",
        sampler.model,
        vocabulary=sampler.vocabulary,
        tokenizer_json=sampler.tokenizer.to_dict(),
    )


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: Path) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_continue_song(
    model_folder: Path,
    samples_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(monkeypatch, "continue_song.py", model_folder, samples_dir / "greensleeves.mid", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.mid"))) == 3
    assert "nats per token" in capsys.readouterr().out


def test_stream_session(
    model_folder: Path,
    samples_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = tmp_path / "session"
    run(monkeypatch, "stream_session.py", model_folder, samples_dir / "sakura.mid", session)
    first = capsys.readouterr().out
    run(monkeypatch, "stream_session.py", model_folder, samples_dir / "sakura.mid", session)
    second = capsys.readouterr().out
    assert second.startswith("going on from")
    assert first.count(" pitch ") == second.count(" pitch ") == 24
