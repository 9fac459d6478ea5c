"""The examples run, and do what they say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mido
import pytest

from melodia import Sampler
from melodia.midi import read_score

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_song_is_continued_in_several_ways(samples_dir: Path, tmp_path: Path) -> None:
    said = run("continue_song.py", samples_dir / "petzold_minuet_g_major.mid", tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 4
    for file in files:
        assert file.name in said
        assert read_score(file)[0].tracks


def test_a_stream_goes_on_where_it_stopped(samples_dir: Path, tmp_path: Path) -> None:
    arguments = samples_dir / "petzold_minuet_g_major.mid", tmp_path / "session"
    first, second = (run("stream_session.py", *arguments).splitlines() for _ in range(2))
    assert second[0] == f"going on from {tmp_path / 'session'}"
    last, following = float(first[-2].split()[0]), float(second[1].split()[0])
    assert following >= last


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


@pytest.mark.parametrize("click", [False, True])
def test_live_turns_are_in_time(click: bool, capsys: pytest.CaptureFixture[str]) -> None:
    live = loaded("answer_live")
    clock, played = FakeClock(), []
    beat, turn = 0.5, 4.0  # two bars of 4/4 at 120
    for start in (3.0, 3.0 + 2 * turn + 1.0):
        for k in range(8):
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
