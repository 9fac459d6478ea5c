"""Comparisons: what is refused before music is read, what goes on, what is left alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from folder_helpers import SHORT, Crash, Record

from melodia.errors import ConfigError, TrainingError
from melodia.training import Plan, World
from melodia.training.lock import only_training
from melodia.workflows.compare import compare_kinds
from melodia.workflows.train import QuietReporter


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory, samples_dir: Path) -> Path:
    """A folder of music."""
    folder = tmp_path_factory.mktemp("songs")
    for path in sorted(samples_dir.glob("*.mid"))[4:8]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("gru", "foo")}, "`kinds` must be some of lstm, .*received foo"),
        ({"kinds": ("gru", "lstm", "gru")}, "`kinds` must be different .*received gru twice"),
        ({"size": "foo"}, "`size` must be one of tiny, .*received 'foo'"),
        ({"training": {"epochs": 1, "device": "cuda:99"}}, "choose `device` cpu or auto"),
        ({"training": {"epochs": -1}}, "`epochs` must be above 0"),
    ],
)
def test_a_wrong_comparison_is_refused_before_music_is_read(
    options: dict[str, Any], message: str, songs: Path, tmp_path: Path
) -> None:
    record = Record()
    with pytest.raises((ConfigError, TrainingError), match=message):
        compare_kinds(songs, tmp_path / "out", progress=record, cache=tmp_path / "cache", **options)
    assert not record.counts
    assert not (tmp_path / "out").exists()


def test_an_interrupted_comparison_goes_on_where_it_was(songs: Path, tmp_path: Path) -> None:
    class Watch(Record):
        def started(self, plan: Plan) -> None:
            begun_at.append(plan.resumed_at)

    def compare(out: str, progress: QuietReporter) -> dict[str, float]:
        rows = compare_kinds(
            songs,
            tmp_path / out,
            kinds=("gru",),
            size="tiny",
            training={**SHORT, "iterations": 4, "save_every": 0.0},
            cache=tmp_path / "cache",
            progress=progress,
        ).rows
        return {row.name: row.nats_per_token for row in rows}

    begun_at: list[int] = []
    whole = compare("whole", Watch())
    with pytest.raises(RuntimeError, match="crash"):
        compare("broken", Crash())
    assert compare("broken", Watch()) == whole
    assert begun_at == [0, 1]


def test_a_comparison_looks_at_all_folders_before_it_trains(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("melodia.workflows.compare.train", lambda *given, **named: pytest.fail("trained"))
    record = tmp_path / "out" / "gru" / "row.json"
    record.parent.mkdir(parents=True)
    for text, message in (
        ('{"setting": {}, "row": null}', "holds gru of another comparison"),
        ('{"setting": {}, "row": {"name": "gru"}}', "damaged .*`force`"),
        ("[", "damaged .*`force`"),
    ):
        record.write_text(text)
        with pytest.raises((ConfigError, TrainingError), match=message):
            compare_kinds(
                songs, tmp_path / "out", kinds=("lstm", "gru"), size="tiny", cache=tmp_path / "cache"
            )


def test_a_comparison_has_its_folder_for_itself(songs: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    record = Record()
    with only_training(tmp_path, World()), pytest.raises(TrainingError, match="another training is running"):
        compare_kinds(songs, tmp_path, kinds=("gru",), progress=record)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TrainingError, match=r"cannot write .*file: .*choose another folder"):
        compare_kinds(songs, tmp_path / "file", kinds=("gru",), progress=record)
    assert not record.counts
