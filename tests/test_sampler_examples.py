"""The examples of the sampler run as they are written."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mido
import pytest
from sampler_helpers import tiny_sampler

from melodia import Sampler
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


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_continue_song(
    model_folder: Path,
    samples_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed, out = samples_dir / "greensleeves.mid", tmp_path / "out"
    run(monkeypatch, "continue_song.py", seed, out, "--model", model_folder)
    assert len(list(out.glob("*.mid"))) == 4
    assert "nats per token" in capsys.readouterr().out


def test_stream_session(
    model_folder: Path,
    samples_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = tmp_path / "session"
    arguments = samples_dir / "sakura.mid", session, "--model", model_folder
    run(monkeypatch, "stream_session.py", *arguments)
    first = capsys.readouterr().out
    run(monkeypatch, "stream_session.py", *arguments)
    second = capsys.readouterr().out
    assert second.startswith("going on from")
    assert first.count(" pitch ") == second.count(" pitch ") == 24


class FakeClock:
    """Time that passes only where somebody waits."""

    time = 0.0

    def now(self) -> float:
        return self.time

    def wait_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


class FakePorts:
    """What is played by the clock, and what was heard when."""

    def __init__(self, clock: FakeClock, played: list[tuple[float, mido.Message]]) -> None:
        self.clock = clock
        self.played = sorted(played, key=lambda each: each[0])
        self.heard: list[tuple[float, mido.Message]] = []

    def iter_pending(self) -> Any:
        while self.played and self.played[0][0] <= self.clock.now():
            yield self.played.pop(0)[1]

    def send(self, message: mido.Message) -> None:
        self.heard.append((self.clock.now(), message))


@pytest.mark.parametrize(("click", "beats"), [(False, 8), (True, 8), (False, 6)])
def test_live_turns_are_in_time(click: bool, beats: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the player falls silent before the end of the last bar."""
    live = SimpleNamespace(**runpy.run_path(str(EXAMPLES / "answer_live.py")))
    clock, played = FakeClock(), []
    beat, turn = 0.5, 4.0  # two bars of 4/4 at 120
    for start in (3.0, 3.0 + 2 * turn + 1.0):
        for k in range(beats):
            played.append((start + k * beat, mido.Message("note_on", note=60 + k, velocity=80)))
            played.append((start + k * beat + 0.4, mido.Message("note_off", note=60 + k)))
    ports = FakePorts(clock, played)
    sampler = Sampler.load(weights="int8")
    live.take_turns(
        sampler, ports, ports, bars=2, tempo=120.0, beats=4, program=0, click=click, rounds=iter([1, 2]), clock=clock
    )  # fmt: skip
    assert capsys.readouterr().out.count("answering") == 2
    assert not ports.played
    clicks = [at for at, message in ports.heard if message.channel == live.DRUM_CHANNEL]
    assert len(clicks) == (16 if click else 0)
    heard = [(at, message) for at, message in ports.heard if message.channel == 0]
    answers = [(3.0 + turn, 3.0 + 2 * turn), (3.0 + 3 * turn + 1.0, 3.0 + 4 * turn + 1.0)]
    held: dict[int, int] = {}
    for at, message in heard:
        assert any(begin - 0.01 <= at <= end + 0.01 for begin, end in answers), at
        held[message.note] = held.get(message.note, 0) + (1 if message.type == "note_on" else -1)
    assert not any(held.values())
    for begin, end in answers:
        assert sum(begin - 0.01 <= at < end and message.type == "note_on" for at, message in heard) > 2
    assert sampler.prime_report is not None
    assert sampler.prime_report.bars == 6  # the first turn of both, and the second of the player
