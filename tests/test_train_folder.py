"""Training a folder: what a resumed or fine-tuned training knows by itself, and options that are refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from folder_helpers import SHORT, Crash, Record

from melodia.cli import main
from melodia.corpus import build as build_module
from melodia.corpus.build import build_corpus
from melodia.corpus.shards import Corpus
from melodia.errors import CheckpointError, ConfigError, TrainingError
from melodia.model.checkpoint import load_checkpoint
from melodia.model.stored import read_checkpoint
from melodia.tokenizer import Tokenizer, TokenizerConfig
from melodia.training import Plan, TrainingConfig, World
from melodia.training.lock import only_training
from melodia.workflows import train as train_module
from melodia.workflows.compare import compare_kinds
from melodia.workflows.corpora import open_corpus
from melodia.workflows.originality import index_checkpoint, open_index
from melodia.workflows.train import TUNING_RATE, TrainedFolder, continue_held_out, train_folder

BPE = Tokenizer().vocabulary.size + 20


@pytest.fixture(scope="module", autouse=True)
def _without_samples() -> Iterator[None]:
    """What is generated in the end is tested elsewhere, and takes longest."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_module, "continue_held_out", lambda *given: ([], []))
        yield


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory, samples_dir: Path) -> tuple[Path, Path]:
    """Two folders of music."""
    files = sorted(samples_dir.glob("*.mid"))
    folders = []
    for name, part in (("first", files[:4]), ("second", files[4:8])):
        folders.append(tmp_path_factory.mktemp("songs") / name)
        folders[-1].mkdir()
        for path in part:
            shutil.copy(path, folders[-1])
    return folders[0], folders[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainedFolder]:
    """Train for a moment."""
    cache = tmp_path_factory.mktemp("cache")

    def run(folder: Path, out: Path, **options: Any) -> TrainedFolder:
        training = {**SHORT, **options.pop("training", {})}
        return train_folder(folder, out, training=training, cache=str(cache), workers=0, **options)

    run.cache = cache  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, songs: tuple[Path, Path], run: Callable[..., TrainedFolder]
) -> Callable[..., Path]:
    """Train a small model on the first folder."""

    def trained(**options: Any) -> Path:
        out = tmp_path_factory.mktemp("trained") / "out"
        run(songs[0], out, kind="gru", size="tiny", side_inputs=("position",), **options)
        return out

    return trained


@pytest.fixture(scope="module")
def base(trained: Callable[..., Path]) -> Path:
    """A model of the first folder."""
    return trained()


@pytest.fixture(scope="module")
def paired(trained: Callable[..., Path]) -> Path:
    """The same with byte pairs."""
    return trained(bpe=BPE)


@pytest.fixture
def music(base: Path, songs: tuple[Path, Path], run: Callable[..., TrainedFolder]) -> dict[str, set[str]]:
    """The files of each folder that are trained on."""
    return {
        "first": set(open_index(base / "best").names),
        "second": {path.name for path in songs[1].glob("*.mid")},
    }


def names(out: Path) -> set[str]:
    return set(open_index(out / "best").names)


def test_a_resumed_training_knows_what_it_was_begun_with(
    songs: tuple[Path, Path], run: Callable[..., TrainedFolder], tmp_path: Path
) -> None:
    settings = {"learning_rate": 1e-4, "random_seed": 5, "precision": "auto"}
    form = {"kind": "lstm", "size": "tiny", "side_inputs": (), "scheme": "TSD"}
    with pytest.raises(RuntimeError, match="crash"):
        run(songs[0], tmp_path, training=settings, progress=Crash(), **form)
    cache = run.cache  # type: ignore[attr-defined]

    def resume(**options: Any) -> TrainedFolder:
        return train_folder(songs[0], tmp_path, resume=True, cache=cache, workers=0, **options)

    with pytest.raises(ConfigError, match=r"`kind` of the training in .* is lstm .*received gru.*`force`"):
        resume(kind="gru")
    with pytest.raises(ConfigError, match=r"`scheme` .* is TSD .*received REMI"):
        resume(scheme="REMI")
    with pytest.raises(ConfigError, match=r"`dropout` of the training .* is 0.1 .*received 0.0"):
        resume(dropout=0.0)
    with pytest.raises(TrainingError, match=r"`batch_size` 2 is now 5"):
        resume(training={"batch_size": 5})
    assert resume(size="tiny", training={"precision": "auto"}).training.iterations == 3
    checkpoint = load_checkpoint(tmp_path / "best")
    assert (checkpoint.config.kind, checkpoint.config.hidden_size) == ("lstm", 128)
    assert checkpoint.config.side_inputs == ()
    assert checkpoint.vocabulary.scheme == "TSD"
    given = {
        name: checkpoint.training["settings"][name] for name in ("learning_rate", "random_seed", "threads")
    }
    assert given == {"learning_rate": 1e-4, "random_seed": 5, "threads": 1}
    assert resume(training={"epochs": 0.2}).training.epochs < 0.5, (
        "another budget takes the place of the first"
    )


def test_a_resumed_fine_tuning_keeps_the_music_that_came_before(
    base: Path,
    songs: tuple[Path, Path],
    run: Callable[..., TrainedFolder],
    music: dict[str, set[str]],
    tmp_path: Path,
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    (read_checkpoint(copy).path / "NOTICES.txt").write_text("by Ännchen", encoding="utf-8")
    with pytest.raises(RuntimeError, match="crash"):
        run(songs[1], tmp_path / "out", init=copy, dropout=0.4, progress=Crash())
    shutil.rmtree(copy)  # the training has taken what it needs
    done = run(songs[1], tmp_path / "out", resume=True)
    assert done.training.iterations == 3
    notices = tmp_path / "out" / "best" / "NOTICES.txt"
    assert notices.read_text(encoding="utf-8") == "by Ännchen"
    assert sum("NOTICES.txt credits the music" in line for line in done.lines()) == 1
    assert music["first"] < names(tmp_path / "out") <= music["first"] | music["second"]
    (tmp_path / "out" / "best" / "originality.safetensors").unlink()
    index_checkpoint(tmp_path / "out", songs[1], cache=run.cache, workers=0)  # type: ignore[attr-defined]
    assert music["first"] < names(tmp_path / "out") <= music["first"] | music["second"]
    config = load_checkpoint(tmp_path / "out").config
    assert config == replace(load_checkpoint(base).config, dropout=0.4)
    with pytest.raises(ConfigError, match=r"`init` of the training in .*leave `init` out"):
        run(songs[1], tmp_path / "out", resume=True, init=base)
    # Begun anew, and without a checkpoint, it has nothing of the first music.
    anew = run(songs[1], tmp_path / "out", force=True, kind="gru", size="tiny")
    assert names(tmp_path / "out") <= music["second"]
    assert not notices.exists()
    assert not any("NOTICES" in line for line in anew.lines())
    assert not (tmp_path / "out" / "resume" / "originality.safetensors").exists()


def test_the_model_that_comes_with_melodia_can_be_fine_tuned_by_its_name(
    base: Path,
    songs: tuple[Path, Path],
    run: Callable[..., TrainedFolder],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(train_module, "bundled_model", lambda: base)
    monkeypatch.chdir(tmp_path)
    run(songs[1], tmp_path / "out", init="bundled", training={"learning_rate": 1e-9})
    tuned, before = load_checkpoint(tmp_path / "out"), load_checkpoint(base)
    assert tuned.config == before.config
    for name, tensor in before.model.state_dict().items():
        torch.testing.assert_close(tuned.model.state_dict()[name], tensor, rtol=0, atol=1e-5)
    (tmp_path / "bundled").mkdir()  # a folder of the user's
    with pytest.raises(CheckpointError, match="bundled"):
        run(songs[1], tmp_path / "out", init="bundled", force=True)


def test_fine_tuning_in_place_keeps_the_music_that_came_before(
    base: Path,
    songs: tuple[Path, Path],
    run: Callable[..., TrainedFolder],
    music: dict[str, set[str]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(base, out)
    run(songs[1], out, init=out, force=True)
    assert music["first"] < names(out) <= music["first"] | music["second"]
    (out / "best" / "originality.safetensors").unlink()
    lines = run(songs[1], out, init=out, force=True).lines()
    assert any("music is not covered" in line for line in lines)


def test_fine_tuning_takes_the_tokenizer_of_the_checkpoint(
    paired: Path, songs: tuple[Path, Path], run: Callable[..., TrainedFolder], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"`bpe` of the checkpoint .* is {BPE} .*received {BPE + 1}"):
        run(songs[1], tmp_path / "out", init=paired, bpe=BPE + 1)
    for options in ({}, {"bpe": BPE, "scheme": "REMI", "kind": "gru", "size": "tiny"}):
        run(songs[1], tmp_path / "out", init=paired, force=True, **options)
        tuned, before = read_checkpoint(tmp_path / "out"), read_checkpoint(paired)
        assert tuned.vocabulary.fingerprint == before.vocabulary.fingerprint
        assert tuned.tokenizer_json == before.tokenizer_json
        assert len(Tokenizer.from_dict(tuned.tokenizer_json).pairs) == 20
        assert tuned.corpus_fingerprint != before.corpus_fingerprint
        assert (
            tuned.training["settings"]["learning_rate"]
            == TUNING_RATE
            < TrainingConfig(epochs=1).learning_rate
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lstm"}, "`kind` of the checkpoint .* is gru .*received lstm.*leave `kind` out"),
        ({"size": "large"}, "`size` .* is tiny .*received large"),
        ({"combine": "sum"}, "`combine` .* is none .*received sum"),
        ({"encoder": "gru"}, "`encoder` .* is none .*received gru"),
        ({"side_inputs": ()}, "`side_inputs` .* is position .*received none"),
        ({"dropout": 1.5}, "`dropout` must be between 0 and .*received 1.5"),
        ({"scheme": "TSD"}, "`scheme` .* is REMI .*received TSD"),
        ({"bpe": BPE}, f"`bpe` .* is none .*received {BPE}.*retrain without `init`"),
    ],
)
def test_options_that_a_checkpoint_settles(
    base: Path,
    songs: tuple[Path, Path],
    run: Callable[..., TrainedFolder],
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(songs[1], tmp_path / "out", init=base, **options)
    assert not (tmp_path / "out").exists()


def test_options_on_the_command_line(
    base: Path, songs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(songs[1]), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    arguments += ["--epochs", "0.01"]
    assert main([*arguments, "--init", str(base), "--side-inputs", "none"]) == 2
    assert "--side-inputs of the checkpoint" in capsys.readouterr().err
    assert main([*arguments, "--bpe", "300"]) == 2
    assert "(received 300)" in capsys.readouterr().err


def test_options_that_a_built_corpus_settles(
    base: Path, songs: tuple[Path, Path], run: Callable[..., TrainedFolder], tmp_path: Path
) -> None:
    built = tmp_path / "built"
    build_corpus(songs[1], built, TokenizerConfig("TSD", bpe_vocab_size=680), workers=0)
    for options, message in (
        ({"scheme": "REMI"}, r"`scheme` of the built corpus .* is TSD .*give a folder of MIDI files"),
        ({"bpe": 690}, r"`bpe` of the built corpus .* is 680 .*received 690"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(built, tmp_path / "out", **options)
    with pytest.raises(TrainingError, match=r"other tokens \(TSD, 680\) than the model \(REMI"):
        run(built, tmp_path / "out", init=base)
    assert not (tmp_path / "out").exists()
    record = Record()
    run(built, tmp_path / "out", scheme="TSD", bpe=680, kind="gru", size="tiny", progress=record)
    assert any("transposed copies" in text for text in record.warnings), "this corpus has none"


def test_transposed_copies_are_no_more_music(
    songs: tuple[Path, Path], run: Callable[..., TrainedFolder], tmp_path: Path
) -> None:
    record = Record()
    paired = run(songs[0], tmp_path / "out", kind="gru", size="tiny", bpe=BPE, progress=record)
    assert any(re.match("the corpus is small: [1-4] pieces", text) for text in record.warnings)
    assert read_checkpoint(paired.training.checkpoint).training["train_pieces"] <= 4


def test_byte_pairs_are_refused_before_music_is_read(
    songs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*given: Any, **options: Any) -> None:
        raise AssertionError("read the files")

    monkeypatch.setattr(build_module, "map_files", forbidden)
    with pytest.raises(
        ConfigError, match=rf"of more than the {BPE - 20} tokens .*received {BPE - 20}.*`bpe`"
    ):
        build_corpus(songs[0], tmp_path / "out", TokenizerConfig(bpe_vocab_size=BPE - 20), workers=0)


def test_the_index_of_a_model_with_byte_pairs(
    paired: Path, songs: tuple[Path, Path], run: Callable[..., TrainedFolder], tmp_path: Path
) -> None:
    """Its corpus has transposed copies: they stay, are not counted, and nothing warns of them."""
    cache = run.cache  # type: ignore[attr-defined]
    record = Record()
    run(songs[0], tmp_path / "out", kind="gru", size="tiny", bpe=BPE, progress=record)
    assert not [text for text in record.warnings if "transposed" in text]
    assert read_checkpoint(tmp_path / "out").training["settings"]["transpose_probability"] == 0.0

    def corpora() -> dict[str, str]:
        return {folder.name: Corpus.open(folder).fingerprint for folder in cache.iterdir()}

    before, record = corpora(), Record()
    report = index_checkpoint(paired, songs[0], cache=str(cache), workers=0, progress=record)
    assert not [line for line in report.lines() if "fingerprints differ" in line]
    assert before.items() <= corpora().items(), "no corpus has been built anew in the place of another"
    pieces = report.index.pieces
    assert record.counts[-pieces:] == [(number + 1, pieces) for number in range(pieces)]
    built = tmp_path / "built"
    build_corpus(songs[0], built, workers=0)
    with pytest.raises(ConfigError, match="other music, or other tokens"):
        index_checkpoint(paired, built)
    assert index_checkpoint(paired, built, force=True).index.names == report.index.names


def test_nothing_is_read_where_a_training_would_be_lost(
    base: Path, songs: tuple[Path, Path], run: Callable[..., TrainedFolder], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(base, out)
    record = Record()
    with pytest.raises(TrainingError, match="already holds a training run"):
        train_folder(songs[0], out, cache=tmp_path / "cache", workers=0, progress=record)
    assert not record.counts
    (out / "resume" / "begun.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(TrainingError, match=r"begun\.json is damaged .*start over with `force`"):
        run(songs[0], out, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "foo"}, "`kind` must be one of lstm, .*received 'foo'"),
        ({"size": "huge"}, "`size` must be one of tiny, .*received 'huge'"),
        ({"combine": "foo"}, "`combine` must be one of concat, .*received 'foo'"),
        ({"kind": "lstm", "combine": "sum"}, "`combine` belongs to `kind` parallel"),
        ({"kind": "bidirectional", "encoder": "foo"}, "`encoder` must be lstm or gru"),
        ({"encoder": "gru"}, "`encoder` belongs to `kind` bidirectional"),
        ({"side_inputs": ("foo",)}, "`side_inputs` must be one or more of position, .*received foo"),
        ({"side_inputs": ("density", "density")}, "`side_inputs` must not repeat values"),
        ({"training": {"threads": 1025}}, "`threads` must be a whole number between 1 and 1024"),
        ({"training": {"precision": "foo"}}, "`precision` must be one of auto, fp32, bf16"),
        ({"training": {"batch_size": 0}}, "between 1 and 1048576 "),
    ],
)
def test_wrong_options_are_refused_before_music_is_read(
    options: dict[str, Any],
    message: str,
    songs: tuple[Path, Path],
    run: Callable[..., TrainedFolder],
    tmp_path: Path,
) -> None:
    record = Record()
    with pytest.raises(ConfigError, match=message):
        run(songs[1], tmp_path / "out", progress=record, **options)
    assert not record.counts
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [None, "bidirectional"])
def test_right_options_are_not_refused(
    kind: str | None, songs: tuple[Path, Path], run: Callable[..., TrainedFolder], tmp_path: Path
) -> None:
    options = {"encoder": "gru"} if kind else {"combine": "sum"}
    run(songs[1], tmp_path / "out", kind=kind, size="tiny", **options)
    assert read_checkpoint(tmp_path / "out").config.kind == (kind or "parallel")


def test_a_resumption_without_a_run_is_refused_and_one_of_a_run_that_saved_nothing_begins_again(
    songs: tuple[Path, Path], run: Callable[..., TrainedFolder], tmp_path: Path
) -> None:
    class Stop(Record):
        def started(self, plan: Plan) -> None:
            raise RuntimeError("crash")

    class Said(Record):
        def say(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    out, options = tmp_path / "out", {"kind": "gru", "size": "tiny"}
    record = Record()
    with pytest.raises(
        TrainingError, match="holds no training run to resume; check `out`, or leave `resume` out"
    ):
        run(songs[1], out, resume=True, progress=record, **options)
    assert not record.counts
    assert not out.exists()
    with pytest.raises(RuntimeError, match="crash"):
        run(songs[1], out, progress=Stop(), **options)
    run(songs[1], out, resume=True, progress=Said())
    assert [text for text in said if "interrupted before anything was saved; starting it again" in text]
    assert read_checkpoint(out).config.kind == "gru"
    said.clear()
    run(songs[1], out, resume=True, progress=Said())
    assert not [text for text in said if "starting it again" in text]


def test_a_training_does_not_go_into_its_corpus(
    songs: tuple[Path, Path], run: Callable[..., TrainedFolder]
) -> None:
    with pytest.raises(ConfigError, match=r"`out` .* is the corpus itself.*choose another folder"):
        run(songs[1], songs[1] / ".." / songs[1].name)
    with pytest.raises(ConfigError, match="is the corpus itself"):
        compare_kinds(songs[1], songs[1], kinds=("gru",))


def test_samples_take_the_place_of_those_of_a_former_training_alone(
    songs: tuple[Path, Path], run: Callable[..., TrainedFolder], tmp_path: Path
) -> None:
    summary = run(songs[0], tmp_path, kind="gru", size="tiny", side_inputs=("position",)).training
    made = []
    for folder in songs:
        corpus = open_corpus(folder, workers=0, cache=run.cache)  # type: ignore[attr-defined]
        made.append({path.name for path in continue_held_out(corpus, summary, tmp_path)[0]})
        (tmp_path / "samples" / "1-mine.mid").write_text("mine")
    assert made[0]
    assert not made[0] & made[1]
    assert {path.name for path in (tmp_path / "samples").iterdir()} == made[1] | {"1-mine.mid"}


def test_a_folder_of_music_may_have_any_name(songs: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("x" * 250, "曲" * 83):
        folder = Path(shutil.copytree(songs[0], tmp_path / name))
        first, again = (open_corpus(folder, workers=0, cache=tmp_path / "cache").folder for _ in range(2))
        assert first == again
        assert first.name.startswith(name[:30])


def test_a_user_without_a_home_folder_is_asked_for_a_cache(
    songs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(ConfigError, match="no home folder; set XDG_CACHE_HOME, or give `cache`"):
        train_folder(songs[0], tmp_path / "out", training=SHORT)


def test_a_training_does_not_go_into_a_checkpoint(
    base: Path, songs: tuple[Path, Path], run: Callable[..., TrainedFolder]
) -> None:
    before = {path: path.read_bytes() for path in (base / "best").iterdir()}
    for options in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(TrainingError, match=r"best is a checkpoint itself.*choose another folder"):
            run(songs[0], base / "best", **options)
    assert {path: path.read_bytes() for path in (base / "best").iterdir()} == before


def test_a_folder_where_a_training_runs_is_left_alone(
    songs: tuple[Path, Path], run: Callable[..., TrainedFolder], tmp_path: Path
) -> None:
    pytest.importorskip("fcntl")
    record = Record()
    with only_training(tmp_path, World()):
        for options in ({}, {"force": True}, {"resume": True}):
            with pytest.raises(TrainingError, match="another training is running"):
                run(songs[0], tmp_path, progress=record, **options)
    assert not record.counts
    assert not list(tmp_path.iterdir())


def test_options_that_exclude_each_other(
    songs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(songs[1]), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--resume", "--force"]) == 2
    assert "not both" in capsys.readouterr().err
    assert main([*arguments, "--learning-rate", "0"]) == 2
    assert "must be above 0" in capsys.readouterr().err
