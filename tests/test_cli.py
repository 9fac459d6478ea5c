"""The command line as a user meets it: exit codes, messages, files. One tiny model is trained for all tests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sampler_helpers import make_seed, scale

import melodia
from melodia import engine, kernels
from melodia.cli import main
from melodia.errors import MelodiaError
from melodia.evaluation.collapse import Sign, collapse_report
from melodia.files import check_target
from melodia.midi import read_score, write_midi
from melodia.model.checkpoint import load_checkpoint
from melodia.workflows.fill import fill_files
from melodia.workflows.generate import generate_files


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def some_pieces(tmp_path_factory: pytest.TempPathFactory, samples_dir: Path) -> Path:
    """A folder with a few pieces, a duplicate, and a file that is no MIDI."""
    folder = tmp_path_factory.mktemp("pieces")
    files = sorted(samples_dir.glob("*.mid"))
    assert len(files) >= 8
    for path in files[:6]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "again.mid").write_bytes(files[0].read_bytes())
    (folder / "text.mid").write_text("not MIDI")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, some_pieces: Path) -> Path:
    """A model trained for a moment by the command itself."""
    out = tmp_path_factory.mktemp("model") / "out"
    cache = tmp_path_factory.mktemp("cache")
    arguments = [
        "--size",
        "tiny",
        "--epochs",
        "0.2",
        "--threads",
        "1",
        "--batch-size",
        "4",
        "--cache",
        str(cache),
    ]
    assert main(["train", str(some_pieces), "--out", str(out), *arguments]) == 0
    return out / "best"


@pytest.fixture
def seed(samples_dir: Path) -> Path:
    return sorted(samples_dir.glob("*prelude*.mid"))[0]


def test_train_leaves_checkpoint_logs_and_three_samples(model: Path) -> None:
    out = model.parent
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in model.iterdir()}
    settings = load_checkpoint(model).training["settings"]
    assert settings["precision"] == kernels.fast_precision(torch.device("cpu"))
    assert (out / "training.csv").stat().st_size > 0
    assert len(list((out / "samples").glob("*.mid"))) == 3
    assert len(list((out / "samples").glob("*.png"))) == 3


def test_generate_writes_the_same_bytes_for_the_same_random_seed(
    model: Path, seed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, random_seed: int) -> Path:
        out = tmp_path / name
        arguments = ["--seed", str(seed), "--seed-bars", "2", "--bars", "2", "--model", str(model)]
        assert main(["generate", *arguments, "--out", str(out), "--random-seed", str(random_seed)]) == 0
        return out

    first, again, other = run("a.mid", 7), run("b.mid", 7), run("c.mid", 8)
    assert digest(first) == digest(again) != digest(other)
    said = capsys.readouterr().out
    assert "random seed 7" in said
    assert "tokens/s" in said
    assert "times faster than real time" in said
    assert f"wrote {first}" in said


@pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")
def test_generate_with_smaller_weights(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--bars", "1", "--model", str(model), "--device", "cpu"]
    arguments += ["--out", str(tmp_path / "a.mid"), "--weights"]
    assert main([*arguments, "int8"]) == 0
    assert "int8 weights" in capsys.readouterr().out
    assert main([*arguments, "int3", "--force"]) == 2
    assert "fp32, bf16, int8" in capsys.readouterr().err
    assert main([*arguments, "bf16", "--force", "--backend", "reference"]) == 1
    assert "bf16 weights need the engine" in capsys.readouterr().err


def test_generate_makes_picture_sound_and_several_samples(model: Path, seed: Path, tmp_path: Path) -> None:
    arguments = [
        "--seed",
        str(seed),
        "--seed-bars",
        "1",
        "--bars",
        "1",
        "--model",
        str(model),
        "--num-samples",
        "2",
    ]
    assert main(["generate", *arguments, "--out", str(tmp_path / "x.mid"), "--plot", "--audio"]) == 0
    names = {"x-1.mid", "x-1.png", "x-1.wav", "x-2.mid", "x-2.png", "x-2.wav"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "x-1.png").read_bytes().startswith(b"\x89PNG")
    assert digest(tmp_path / "x-1.mid") != digest(tmp_path / "x-2.mid")


def test_generate_from_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.mid"
    assert (
        main(["generate", "--model", str(model), "--bars", "2", "--out", str(out), "--random-seed", "1"]) == 0
    )
    assert main(["inspect", str(out)]) == 0


@pytest.mark.parametrize(("beats", "first"), [(8, 3), (6, 2)])
def test_music_that_looks_stuck_is_named_unless_its_seed_is(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    beats: int,
    first: int,
) -> None:
    """By the bar of the file, whether the new music begins with a bar of its own or completes one of the seed's."""
    path = write_midi(make_seed(scale(2)[:beats]), tmp_path / "seed.mid")
    arguments = ["generate", "--seed", str(path), "--model", str(model), "--bars", "4", "--random-seed", "1"]
    arguments += ["--out", str(tmp_path / "new.mid"), "--force"]
    shown = {True: 9, False: 9}  # how many times in a row, by whether it is the seed

    def report(score: Any) -> Any:
        made = collapse_report(score)
        times = shown[score.end() == read_score(path)[0].end()]
        return replace(made, signs=(Sign("note", times, f"one note {times} times", 1),))

    monkeypatch.setattr("melodia.workflows.generate.collapse_report", report)
    for times, bar in ((9, None), (8, first + 1)):
        shown[True] = times
        assert main(arguments) == 0
        said = capsys.readouterr().out
        assert ("may be stuck" in said) == (bar is not None)
        assert bar is None or f"may be stuck: one note 9 times from bar {bar}\n" in said
    assert main([*arguments, "--continuation-only"]) == 0
    assert "may be stuck: one note 9 times from bar 2\n" in capsys.readouterr().out
    joined = read_score(tmp_path / "new.mid")[0]
    assert joined.note_num() > 0


def test_what_several_samples_took_is_said_once(
    model: Path, seed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--seed", str(seed), "--seed-bars", "2", "--model", str(model), "--bars", "1"]
    assert main([*arguments, "--num-samples", "3", "--out", f"{tmp_path}/"]) == 0
    said = capsys.readouterr().out
    assert said.count("3 samples made in ") == said.count("tokens/s") == 1
    assert said.count("1 bar of ") == 3


def test_a_tempo_that_is_asked_for_is_the_one_that_is_named(
    model: Path, samples_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = samples_dir / "petzold_minuet_g_major.mid"
    arguments = ["generate", "--seed", str(seed), "--model", str(model), "--bars", "1", "--tempo", "90"]
    assert main([*arguments, "--out", str(tmp_path / "new.mid")]) == 0
    said = capsys.readouterr().out
    assert "3/4 at 126 quarter notes per minute (96 at the end)" in said
    assert "1 bar of 3/4 at 90 quarter notes per minute" in said
    assert "join" not in said


def test_programs_metre_and_tempo_on_the_command_line(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.mid"
    arguments = ["generate", "--model", str(model), "--bars", "2", "--out", str(out), "--random-seed", "1"]
    assert main([*arguments, "--programs", "Violin, drums", "--metre", "3/4", "--tempo", "90"]) == 0
    score = read_score(out)[0]
    assert {-1 if track.is_drum else track.program for track in score.tracks} <= {40, -1}
    assert [(m.numerator, m.denominator) for m in score.time_signatures] == [(3, 4)]
    assert [round(tempo.qpm) for tempo in score.tempos] == [90]
    for wrong in ("--programs=synth", "--programs=128", "--metre=5", "--tempo=2"):
        assert main([*arguments, "--force", wrong]) == 2
    assert read_score(out)[0] == score


def test_a_seed_that_is_missing_is_named_before_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.mid").write_bytes(b"mine")
    for command in (["generate", "--seed", "none.mid"], ["fill", "none.mid", "--bars", "1"]):
        assert main([*command, "--out", "there.mid"]) == 1
        assert capsys.readouterr().err == "melodia: none.mid: no such file; check the path\n"


def test_a_file_that_is_there_is_kept_unless_forced(
    model: Path, seed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kept.mid"
    out.write_bytes(b"mine")
    arguments = ["generate", "--seed", str(seed), "--bars", "1", "--model", str(model), "--out", str(out)]
    assert main(arguments) == 1
    assert out.read_bytes() == b"mine"
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert out.read_bytes().startswith(b"MThd")


def test_options_that_may_have_no_effect_are_no_error_by_default(model: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--model", str(model), "--random-seed", "1", "--out"]
    for number, options in enumerate((["--tokens", "9"], ["--bars", "1", "--pitch-bias", "0"])):
        assert main([*arguments, str(tmp_path / f"{number}.mid"), *options]) == 0


def test_a_link_to_nothing_is_there_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found before the work, not behind it."""
    monkeypatch.setattr("melodia.workflows.generate.Sampler.load", lambda *a, **b: pytest.fail("loaded"))
    out = tmp_path / "new.mid"
    out.symlink_to(tmp_path / "gone.mid")
    assert main(["generate", "--bars", "1", "--out", str(out)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert out.is_symlink()


def test_python_names_arguments_and_the_command_line_options(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kept.mid"
    out.write_bytes(b"mine")
    with pytest.raises(MelodiaError, match="choose another `out`, or give `force`"):
        generate_files(None, out, model=model)
    for make in (generate_files, partial(fill_files, bars=(1, 1))):
        with pytest.raises(MelodiaError, match="is the input file"):
            make(str(out), out=str(out), model=model)
    assert main(["generate", "--model", str(model), "--out", str(out)]) == 1
    assert "choose another --out, or give --force" in capsys.readouterr().err
    page = tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(MelodiaError, match="give `force` to replace it"):
        check_target(page, ".html", force=False)
    assert main(["evaluate", str(tmp_path), "--html", str(page)]) == 1
    assert "give --force to replace it" in capsys.readouterr().err
    assert main(["train", str(tmp_path), "--out", str(tmp_path / "m"), "--batch-size", "0"]) == 2
    assert "--batch-size must be a whole number between 1" in capsys.readouterr().err


def test_no_folder_and_no_seed_is_written_over(
    seed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("o").mkdir()
    Path("seed.mid").write_bytes(seed.read_bytes())
    Path("link.mid").symlink_to("seed.mid")
    for out in ("seed.mid", "o/../seed", "link.mid", str(tmp_path / "seed.mid")):
        assert main(["generate", "--seed", "seed.mid", "--out", out, "--force"]) == 1
        assert "is the input file" in capsys.readouterr().err
    assert Path("seed.mid").read_bytes() == seed.read_bytes()


def test_a_folder_takes_the_default_name(
    model: Path,
    seed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").write_text("mine")

    def run(*more: str) -> int:
        return main(["generate", "--model", str(model), "--bars", "1", *more])

    for out in ("there", "new/", "a/b/"):
        assert run("--out", out) == 0
        assert [path.name for path in Path(out).iterdir()] == ["melodia.mid"]
    assert run("--out", ".", "--seed", str(seed), "--num-samples", "2") == 0
    assert {path.name for path in tmp_path.glob("*.mid")} == {
        f"{seed.stem}-continued-{k}.mid" for k in (1, 2)
    }
    capsys.readouterr()
    for out, reason in (
        ("new/", "melodia.mid: already exists; choose another --out, or give --force"),
        ("nowhere/new.mid", "there is no folder nowhere; create it first"),
        ("nowhere/..", "there is no folder nowhere"),
        ("file/", "file: cannot be created"),
    ):
        assert run("--out", out) == 1
        assert reason in capsys.readouterr().err
    assert run("--out", "") == 2
    assert "--out is empty; give a value" in capsys.readouterr().err
    assert run("--out", "c/d/", "--tempo", "1") == 2
    assert not Path("c").exists(), "nothing came of it"
    assert not Path("nowhere").exists()
    assert Path("file").read_text() == "mine"


def test_a_generation_that_fails_halfway_names_what_it_wrote(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        raise MelodiaError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("melodia.render.plot_pianoroll", full)
    out = tmp_path / "new.mid"
    assert main(["generate", "--model", str(model), "--bars", "1", "--out", str(out), "--plot"]) == 1
    assert f"No space left on device); already written: {out}" in capsys.readouterr().err
    assert out.is_file()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["generate", "--top-k", "9" * 20], "--top-k"),
        (["generate", "--bars", "2", "--seconds", "3"], "--bars"),
        (["generate", "--seed-bars", "2"], "--seed"),
        (["generate", "--temperature", "0"], "--temperature"),
        (["generate", "--top-p", "1.5"], "--top-p"),
        (["generate", "--bars", "nine"], "bars"),
        (["generate", "--unknown"], "--unknown"),
        (["train", "x", "--out", "y", "--minutes", "1", "--epochs", "1"], "--minutes"),
        (["train"], "CORPUS"),
        (["train", "x", "--out="], "--out is empty"),
        (["train", "", "--out", "y"], "an argument is empty"),
        (["train", "x", "--out", "y", "--cache", ""], "--cache is empty"),
        (["train", "x", "--out", "y", "--tokenizer", "foo"], "--tokenizer must be one of REMI"),
        (["train", "x", "--out", "y", "--minutes", "inf"], "--minutes must be finite"),
        (
            ["train", "x", "--out", "y", "--threads", "100000"],
            "--threads must be a whole number between 1 and 1024",
        ),
        (["evaluate", "x", "--bars", "16"], "--bars needs --generate"),
        (["evaluate", "x", "--top-k", "3"], "--top-k needs --generate"),
        (["evaluate", "x", "--generate", "3", "--pitch-bias", "3"], "--pitch-bias must be between 0 and 1"),
        (["originality", "x.mid", "--model", "y", "--cache", "z"], "--cache needs --index"),
        (["bench", "--weights", "fp32,fp32"], "--weights must not repeat values"),
        (["bench", "--threads", "1,1"], "--threads must not repeat values"),
        (["compare", "x", "--out", "y", "--kinds", "gru, gru"], "--kinds must not repeat values"),
        (["generate", "--continuation-only"], "needs --seed"),
        (["generate", "--pitch-bias", "0.3"], "--pitch-bias needs --seed"),
        (["generate", "--tokens", "9", "--branches", "4"], "--branches needs --seed"),
        (["generate", "--metre", "x"], "such as 3/4"),
        (["generate", "--device", "foo"], "--device must be auto, cpu, cuda or cuda:N"),
        (["generate", "--num-samples", "100000"], "1<=x<=1000"),
        (["sing"], "sing"),
    ],
)
def test_wrong_usage_exits_with_two(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert word in captured.err
    assert "Traceback" not in captured.err


def test_failures_exit_with_one_and_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "empty.mid"
    nothing.write_bytes(b"")
    empty_folder = tmp_path / "folder"
    empty_folder.mkdir()
    out = str(tmp_path / "out.mid")
    for arguments in (
        ["inspect", str(nothing)],
        ["inspect", str(tmp_path / "missing.mid")],
        ["inspect", str(tmp_path)],
        ["generate", "--seed", str(nothing), "--model", str(model), "--out", out],
        ["generate", "--model", str(tmp_path / "no-model"), "--out", out],
        ["train", str(empty_folder), "--out", str(tmp_path / "m"), "--cache", str(tmp_path / "c")],
        ["train", str(tmp_path / "nowhere"), "--out", str(tmp_path / "m"), "--cache", str(tmp_path / "c")],
    ):
        assert main(arguments) == 1, arguments
        message = capsys.readouterr().err
        assert message.startswith("melodia: "), arguments
        assert message.count("\n") == 1, message
    assert not Path(out).exists()


def test_inspect_as_json(seed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", str(seed)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["notes"] > 100
    assert report["time_signatures"]
    assert report["findings"] == []
    assert set(report["unseen"][0]) == {"kind", "what", "count", "detail"}
    assert main(["inspect", str(seed)]) == 0
    said = capsys.readouterr().out
    assert (
        "\n  changed only for the model (the file itself stays as it is):\n    quantised: velocity (" in said
    )


def test_info_says_what_runs_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "backend: " in text
    assert "torch " in text


def test_compare_prints_a_table_and_goes_on_where_it_was(
    some_pieces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(some_pieces), "--out", str(tmp_path / "table"), "--kinds", "gru,parallel"]
    arguments += ["--size", "tiny", "--epochs", "0.1", "--threads", "1", "--cache", str(tmp_path / "cache")]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    for word in ("| gru |", "| parallel |", "Kneser-Ney", "nats/token"):
        assert word in table
    rows = json.loads((tmp_path / "table" / "comparison.json").read_text())["rows"]
    sizes = [row["parameters"] for row in rows if row["hidden_size"]]
    assert max(sizes) / min(sizes) < 1.03
    assert main(arguments) == 0
    assert "already trained" in capsys.readouterr().err
    assert main([*arguments, "--window", "5"]) == 2  # rows of two comparisons in one table
    assert "holds gru of another comparison" in capsys.readouterr().err


def test_compare_replaces_no_training(
    some_pieces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = tmp_path / "models" / "gru" / "best"
    best.mkdir(parents=True)
    (best / "config.json").write_text("mine")
    arguments = ["compare", str(some_pieces), "--out", str(tmp_path / "models"), "--kinds", "gru"]
    arguments += ["--size", "tiny", "--epochs", "0.1", "--threads", "1", "--cache", str(tmp_path / "cache")]
    assert main(arguments) == 1
    assert "already holds a training run" in capsys.readouterr().err
    assert (best / "config.json").read_text() == "mine"
    log = tmp_path / "models" / "gru" / "training.csv"
    log.write_text("mine")
    assert main([*arguments, "--force"]) == 1
    assert "no training run wrote it" in capsys.readouterr().err
    assert log.read_text() == "mine"


def test_inspect_goes_on_behind_a_file_without_notes(
    seed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "odd.mid"
    track = b"\x00\x99\x01\x40\x60\x89\x01\x00\x00\xff\x2f\x00"  # a drum that no token has
    header = b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x00\x60"
    odd.write_bytes(header + b"MTrk" + len(track).to_bytes(4, "big") + track)
    assert main(["inspect", str(odd), str(seed)]) == 1
    printed = capsys.readouterr()
    assert f"melodia: {odd}: the score has no notes" in printed.err
    assert str(seed) in printed.out


def test_importing_melodia_is_cheap() -> None:
    code = (
        "import sys, melodia; print(sorted({'torch', 'miditok', 'matplotlib', 'symusic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_the_recommended_settings_are_the_defaults(command: str) -> None:
    from typer.main import get_command

    from melodia.cli.app import app_of

    parameters = {p.name: p.default for p in get_command(app_of()).commands[command].params}
    assert {name: parameters[name] for name in melodia.RECOMMENDED} == dict(melodia.RECOMMENDED)
