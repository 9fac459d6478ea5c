"""Comparisons: what is refused before music is read, what goes on, what is left alone."""

from __future__ import annotations

import errno
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from folder_helpers import SHORT, Crash, Record

from melodia import __version__, engine, kernels
from melodia.cli import main
from melodia.corpus.build import build_corpus
from melodia.corpus.shards import Corpus
from melodia.errors import ConfigError, TrainingError
from melodia.originality import FILE as INDEX
from melodia.originality import build_index
from melodia.training import Plan, TrainingSummary, World, train
from melodia.training.lock import only_training
from melodia.training.logs import COLUMNS
from melodia.workflows import bench
from melodia.workflows.compare import compare_kinds
from melodia.workflows.compared import Row
from melodia.workflows.originality import open_index
from melodia.workflows.train import Reporter


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
        ({"kinds": ("gru", "foo")}, "`kinds` must be one or more of lstm, .*received foo"),
        ({"kinds": ("gru", "lstm", "gru")}, "`kinds` must not repeat values .*received gru twice"),
        ({"trainings": 0}, r"`trainings` must be a whole number between 1 and 100 \(received 0\)"),
        (
            {"trainings": 3, "training": {"random_seed": 2**63 - 2}},
            r"`trainings` count up from `random_seed`, .*received 3 from 9223372036854775806\); give a smaller",
        ),
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

    def compare(out: str, progress: Reporter, backend: str = "auto", **changes: Any) -> dict[str, float]:
        rows = compare_kinds(
            songs,
            tmp_path / out,
            kinds=("gru",),
            size="tiny",
            training={**SHORT, "iterations": 4, "save_every": 0.0, **changes},
            backend=backend,
            cache=tmp_path / "cache",
            progress=progress,
        ).rows
        return {row.name: row.nats_per_token for row in rows}

    begun_at: list[int] = []
    whole = compare("whole", Watch())
    with pytest.raises(RuntimeError, match="crash"):
        compare("broken", Crash())
    if kernels.backend_report().runs == "native":
        with pytest.raises(ConfigError, match=r"another comparison \(different backend\b"):
            compare("broken", Watch(), backend="reference")
    with pytest.raises(ConfigError, match=r"another comparison \(different threads\)"):
        compare("broken", Watch(), threads=2)
    assert compare("broken", Watch(), save_every=9.0) == whole, "how often is saved changes no figure"
    assert begun_at == [0, 1]


def test_a_comparison_looks_at_all_folders_before_it_trains(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("melodia.workflows.compare.train", lambda *given, **named: pytest.fail("trained"))
    record = tmp_path / "out" / "gru" / "row.json"
    record.parent.mkdir(parents=True)
    for text, message in (
        ('{"setting": {}, "row": null}', "holds gru of another comparison"),
        (
            '{"setting": {"corpus": 1}, "row": null}',
            r"holds gru .* \(different backend, batch_size, .*corpus, ",
        ),
        (
            '{"setting": {}, "row": {"name": "gru"}}',
            "damaged .*; remove .*gru, and only gru is retrained",
        ),
        ('{"setting": 3, "row": null}', "damaged .*; remove .*gru, and only gru is retrained"),
        ("[", "damaged .*; remove .*gru, and only gru is retrained"),
    ):
        record.write_text(text)
        with pytest.raises((ConfigError, TrainingError), match=message):
            compare_kinds(
                songs, tmp_path / "out", kinds=("lstm", "gru"), size="tiny", cache=tmp_path / "cache"
            )


def test_advice_names_what_a_comparison_has(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(songs), "--out", str(tmp_path), "--kinds", "gru", "--size", "tiny"]
    arguments += ["--cache", str(tmp_path / "cache"), "--epochs", "0.1", "--threads", "1"]
    for option, value in (("--learning-rate", "0"), ("--batch-size", "0"), ("--window", "-1")):
        assert main([*arguments, option, value]) == 2
        assert f"{option} must be " in capsys.readouterr().err
    log = tmp_path / "gru" / "training.csv"
    log.parent.mkdir()
    log.write_text(",".join(COLUMNS) + "\n1\n")
    assert main(arguments) == 1
    assert "is the log of a training run; move it or choose another folder" in capsys.readouterr().err
    log.unlink()
    (tmp_path / "gru" / "best").mkdir()
    assert main(arguments) == 1
    assert "already holds a training run; move it or choose another folder" in capsys.readouterr().err
    (tmp_path / "gru" / "best").rmdir()

    def fails(*given: Any, **named: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("melodia.training.loop.make_model", fails)
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert "out of memory" in message
    assert "--resume" not in message
    assert "with a smaller --batch-size, --window or --size" in message

    def full(*given: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setattr("melodia.training.resume.write_whole", full)
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert "so add more music" in message
    assert "init" not in message
    assert "No space left on device; nothing has been saved yet" in message
    assert message.rstrip().endswith("or choose another folder, then continue with the same call")


def test_options_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wishes: dict[str, Any] = {}

    def taken(*given: Any, training: dict[str, Any], **named: Any) -> None:
        wishes.update(training, trainings=named["trainings"])
        raise TrainingError("taken")

    monkeypatch.setattr("melodia.workflows.compare.compare_kinds", taken)
    words = "--minutes 2 --batch-size 3 --window 64 --learning-rate 0.004 --random-seed 5 --threads 1 --trainings 3"
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "out"), *words.split()]) == 1
    assert wishes == {
        "minutes": 2.0,
        "batch_size": 3,
        "window": 64,
        "learning_rate": 0.004,
        "random_seed": 5,
        "threads": 1,
        "device": "auto",
        "trainings": 3,
    }


def test_a_comparison_has_its_folder_for_itself(songs: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    record = Record()
    with only_training(tmp_path, World()), pytest.raises(TrainingError, match="another training is running"):
        compare_kinds(songs, tmp_path, kinds=("gru",), progress=record)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TrainingError, match=r"cannot write .*file: .*choose another folder"):
        compare_kinds(songs, tmp_path / "file", kinds=("gru",), progress=record)
    assert not record.counts


def test_a_comparison_is_refused_under_torchrun(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(World):
        def share_bytes(self, data: bytes | None) -> bytes | None:
            return data

    monkeypatch.setattr("melodia.workflows.compare.join", lambda device: nullcontext(Two(size=2)))
    record = Record()
    with pytest.raises(TrainingError, match=r"in one process \(received 2, .*without torchrun"):
        compare_kinds(songs, tmp_path / "out", kinds=("gru",), cache=tmp_path / "cache", progress=record)
    assert not record.counts
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["comparison.md", "comparison.json", "gru/row.json"])
def test_what_a_comparison_cannot_write_is_named(
    name: str, songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder stands in the way of the file that is to get the name."""
    row = Row("gru", 1, 1, *[1.0] * 7)
    monkeypatch.setattr("melodia.workflows.compare._row_of", lambda run, *_: (run.keep(None), row)[1])
    monkeypatch.setattr("melodia.workflows.compare._ngram_row", lambda corpus: row)
    (tmp_path / "out" / f"{name}.part").mkdir(parents=True)
    with pytest.raises(TrainingError, match=rf"cannot write .*{name}: .*choose another folder"):
        compare_kinds(songs, tmp_path / "out", kinds=("gru",), size="tiny", cache=tmp_path / "cache")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comparison.md", "my notes"),
        ("comparison.md", None),
        ("comparison.json", '{"setting": {}, "rows": [{"name": "mine"}]}'),
        ("comparison.json", '{"setting": {}, "rows": []}'),
        ("comparison.json", "[1]"),
        ("comparison.json", ""),
        ("comparison.json", None),
    ],
)
def test_what_no_comparison_wrote_is_left_alone(
    name: str, content: str | None, force: bool, songs: Path, tmp_path: Path
) -> None:
    record, path = Record(), tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(
        TrainingError, match=rf"{name} already exists, and no comparison wrote it; move it or"
    ):
        compare_kinds(songs, tmp_path, kinds=("gru",), force=force, progress=record)
    assert not record.counts
    assert content is None or path.read_text() == content


def test_a_table_is_added_to_and_not_replaced(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that no call wishes for stay, with their folder or without; those of other terms do not mix."""
    monkeypatch.setattr(bench, "TOKEN_SECONDS", 0.01)
    out, trained = tmp_path / "out", []

    class Watch(Record):
        def say(self, text: str) -> None:
            trained.append(text)

    def compare(*kinds: str, size: str = "tiny", force: bool = False, **changes: Any) -> dict[str, Row]:
        training = {**SHORT, "iterations": 1, **changes}
        rest: dict[str, Any] = {
            "size": size,
            "force": force,
            "cache": tmp_path / "cache",
            "progress": Watch(),
        }
        rows = compare_kinds(songs, out, kinds=kinds, training=training, **rest).rows
        written = json.loads((out / "comparison.json").read_text())["rows"]
        assert [row.to_dict() for row in rows] == written
        table = (out / "comparison.md").read_text()
        assert all(f"| {row.name} |" in table for row in rows)
        return {row.name: row for row in rows}

    first = compare("lstm", "gru")
    shutil.rmtree(out / "lstm")
    trained.clear()
    second = compare("gru", "sequential")
    assert list(second) == [*first, "sequential"]
    assert all(second[name].to_dict() == first[name].to_dict() for name in ("lstm", "gru"))
    assert not any(text.startswith("lstm") for text in trained)
    before = (out / "comparison.md").read_text()
    for other, named in (({"iterations": 2}, "iterations"), ({"size": "small"}, "size")):
        with pytest.raises(
            ConfigError, match=rf"another comparison \(different {named}\); choose another `out`, or"
        ):
            compare("lstm", **other)
    assert (out / "comparison.md").read_text() == before
    assert list(compare("lstm", iterations=2, force=True)) == [next(iter(first)), "lstm"]
    data = out / "comparison.json"
    values = json.loads(data.read_text())
    del values["terms"]  # as an earlier version wrote it
    data.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"comparison \(an earlier version wrote it\); .*replace the table"):
        compare("lstm", iterations=2)
    assert "terms" not in json.loads(data.read_text())
    assert list(compare("lstm", iterations=2, force=True)) == [next(iter(first)), "lstm"]


def test_an_interrupted_comparison_has_the_rows_that_it_reached(songs: Path, tmp_path: Path) -> None:
    class Stop(Record):
        def say(self, text: str) -> None:
            if text.startswith("gru"):
                raise RuntimeError("stop")

    wishes: dict[str, Any] = {
        "size": "tiny",
        "training": {**SHORT, "iterations": 1},
        "cache": tmp_path / "cache",
    }
    with pytest.raises(RuntimeError, match="stop"):
        compare_kinds(songs, tmp_path / "out", kinds=("lstm", "gru"), progress=Stop(), **wishes)
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert [row["name"] for row in rows][1:] == ["lstm"]


def test_trainings_with_other_random_seeds_are_added(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "TOKEN_SECONDS", 0.01)
    out, told = tmp_path / "out", []
    record = Record()
    record.say = told.append  # type: ignore[method-assign]

    def compare(trainings: int, random_seed: int = 0) -> list[tuple[str, int]]:
        told.clear()
        table = compare_kinds(
            songs, out, kinds=("gru", "lstm"), size="tiny", trainings=trainings, cache=str(tmp_path / "cache"),
            training={**SHORT, "iterations": 1, "random_seed": random_seed}, progress=record,
        )  # fmt: skip
        return [(row.name, row.random_seed) for row in table.rows[1:]]

    first = [("gru", 0), ("lstm", 0)]
    assert compare(1) == first
    data = out / "comparison.json"
    once = data.read_text()
    assert compare(2) == [*first, ("gru", 1), ("lstm", 1)]
    begun = [text.split(":")[0] for text in told if "hidden size" in text]
    assert begun == ["gru, random seed 1", "lstm, random seed 1"]
    assert {path.name for path in out.iterdir() if path.is_dir()} == {
        "gru", "lstm", "gru-random-seed-1", "lstm-random-seed-1",
    }  # fmt: skip
    rows = {(row["name"], row["random_seed"]): row for row in json.loads(data.read_text())["rows"]}
    assert rows["gru", 0]["nats_per_token"] != rows["gru", 1]["nats_per_token"]
    both = data.read_text()
    assert compare(1, random_seed=1) == [*first, ("gru", 1), ("lstm", 1)], "the others stay"
    assert not any("hidden size" in text for text in told)
    assert data.read_text() == both
    values = json.loads(once)  # as an earlier version wrote it: one random seed for all
    values["terms"]["random_seed"] = 7
    for row in values["rows"]:
        del row["random_seed"]
    data.write_text(json.dumps(values))
    assert compare(1) == [("gru", 7), ("lstm", 7), *first]


def test_a_row_says_what_trained_it(songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what prints it."""
    monkeypatch.setattr(bench, "TOKEN_SECONDS", 0.01)
    wishes: dict[str, Any] = {"size": "tiny", "training": {**SHORT, "iterations": 1, "threads": None}}
    wishes |= {"cache": tmp_path / "cache"}

    def footer(*kinds: str) -> str:
        text = compare_kinds(songs, tmp_path / "out", kinds=kinds, **wishes).markdown()
        return next(line for line in text.splitlines() if line.startswith("budget: "))

    threads = torch.get_num_threads()
    first = footer("gru")
    assert first.startswith("budget: 1 iterations; size: tiny; batch_size: 2; window: 32; training pieces: ")
    assert f"; threads: {threads}; torch: {torch.__version__}; melodia: {__version__}" in first
    monkeypatch.setattr("melodia.workflows.compare.__version__", "9.9")
    other = SimpleNamespace(__version__=torch.__version__, get_num_threads=lambda: threads + 1)
    monkeypatch.setattr("melodia.workflows.compare.torch", other)
    assert footer("gru") == first
    both = footer("gru", "lstm")
    assert f"melodia: {__version__} (gru), 9.9 (lstm)" in both or f"9.9 (lstm), {__version__} (gru)" in both
    assert f"{threads + 1} (lstm)" in both


def test_the_models_know_their_training_music(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of `train` do; the index is made once for all."""
    built: list[Corpus] = []
    monkeypatch.setattr(
        "melodia.workflows.compare.build_index", lambda corpus: (built.append(corpus), build_index(corpus))[1]
    )
    monkeypatch.setattr(bench, "TOKEN_SECONDS", 0.01)
    wishes: dict[str, Any] = {"size": "tiny", "training": {**SHORT, "iterations": 1}}
    for _ in range(2):
        compare_kinds(
            songs, tmp_path / "out", kinds=("gru", "lstm"), cache=tmp_path / "cache", **wishes, force=True
        )
    (first, second) = built
    shown = [open_index(tmp_path / "out" / kind / "best") for kind in ("gru", "lstm")]
    assert [index.fingerprint for index in shown] == [first.fingerprint, second.fingerprint]
    assert shown[0].pieces == len(first.pieces("train"))
    (tmp_path / "out" / "gru" / "best" / INDEX).unlink()
    compare_kinds(songs, tmp_path / "out", kinds=("gru", "lstm"), cache=tmp_path / "cache", **wishes)
    assert open_index(tmp_path / "out" / "gru" / "best").names == shown[0].names, "one that has none gets it"
    assert len(built) == 3


def test_transposed_copies_are_no_more_music(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "TOKEN_SECONDS", 0.01)
    summaries: list[TrainingSummary] = []

    def trained(*given: Any, **named: Any) -> TrainingSummary:
        summaries.append(train(*given, **named))
        return summaries[-1]

    monkeypatch.setattr("melodia.workflows.compare.train", trained)
    build_corpus(songs, tmp_path / "corpus", transpositions=[-1, 1], workers=0)
    wishes: dict[str, Any] = {"kinds": ("gru",), "size": "tiny", "training": {**SHORT, "iterations": 1}}
    table = compare_kinds(tmp_path / "corpus", tmp_path / "out", **wishes)
    pieces = Corpus.open(tmp_path / "corpus").pieces("train")
    assert table.setting["training pieces"] * 3 == len(pieces)
    tokens = sum(len(pieces[number].tokens) for number in range(0, len(pieces), 3))
    (summary,), row = summaries, table.rows[1]
    assert row.training_tokens_per_second * summary.seconds == pytest.approx(summary.epochs * tokens)


def test_the_table_times_what_generates_and_says_so(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    for name in ("Streams", "_PyTorch"):
        way = getattr(bench, name)
        monkeypatch.setattr(bench, name, lambda *a, n=name, w=way, **k: (made.append(n), w(*a, **k))[1])
    monkeypatch.setattr(bench, "TOKEN_SECONDS", 0.01)
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (3.14, 0.0, 0.0), raising=False)
    for backend in ("auto", "reference"):
        told: list[str] = []
        record = Record()
        record.say = told.append  # type: ignore[method-assign]
        table = compare_kinds(
            songs,
            tmp_path / backend,
            kinds=("gru",),
            size="tiny",
            training={**SHORT, "iterations": 1},
            backend=backend,
            cache=tmp_path / "cache",
            progress=record,
        )
        runs_engine = backend == "auto" and engine.reason() is None
        assert made.pop() == ("Streams" if runs_engine else "_PyTorch")
        assert not made
        assert table.setting["time per token"].startswith("engine (" if runs_engine else "PyTorch, fp32")
        assert "time per token: " + table.setting["time per token"] in table.markdown()
        assert "training tokens/s: of the whole run, validations and saving included" in table.markdown()
        note = "note: the machine is busy (load 3.1): figures may be better when it is idle"
        assert note in told
        assert table.markdown().count(note) == 1
        assert table.rows[1].step_microseconds > 0


def test_what_a_table_cannot_know_is_null_in_its_json(songs: Path, tmp_path: Path) -> None:
    """Of the n-grams no time is measured, and one held-out piece has no interval."""

    def compare() -> str:
        wishes: dict[str, Any] = {"kinds": ("gru",), "size": "tiny", "training": {**SHORT, "iterations": 1}}
        return compare_kinds(songs, tmp_path / "out", **wishes, cache=tmp_path / "cache").markdown()

    def no_json(word: str) -> None:
        pytest.fail(f"{word} is not JSON")

    first = compare()
    for path in (tmp_path / "out" / "comparison.json", tmp_path / "out" / "gru" / "row.json"):
        json.loads(path.read_text(), parse_constant=no_json)
    ngram, gru = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert ngram["step_microseconds"] is None
    assert (gru["low"], gru["high"]) == (None, None)
    assert ngram["piece_tokens"] == gru["piece_tokens"], "both judge the same"
    assert ngram["piece_notes"] == gru["piece_notes"]
    assert sum(gru["piece_nats"]) / sum(gru["piece_tokens"]) == pytest.approx(gru["nats_per_token"])
    assert compare() == first, "the rows that were kept are read again"
