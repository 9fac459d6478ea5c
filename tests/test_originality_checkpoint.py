"""The index in a checkpoint: built from a corpus, kept beside the model, searched from the command line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import symusic

from melodia.cli import main
from melodia.corpus.manifest import MANIFEST, Row, write_manifest
from melodia.corpus.shards import Corpus, ShardWriter
from melodia.errors import CheckpointError, ConfigError
from melodia.midi import read_score
from melodia.model import Model, ModelConfig, save_checkpoint
from melodia.model.stored import read_checkpoint
from melodia.originality import FILE, Index, build_index, notes_of_score, notes_of_tokens
from melodia.originality.build import attach_index, excerpts, training_pieces
from melodia.originality.lines import lines_of
from melodia.tokenizer import Tokenizer, TokenizerConfig
from melodia.workflows.originality import check_files, index_corpus, open_index


def write_corpus(folder: Path, files: list[Path], held_out: list[Path], scheme: str = "REMI") -> Corpus:
    tokenizer = Tokenizer(TokenizerConfig(scheme=scheme))
    rows = []
    with ShardWriter(folder, tokenizer.vocabulary, tokenizer_json=json.dumps(tokenizer.to_dict())) as writer:
        for number, path in enumerate([*files, *held_out]):
            split = "train" if path in files else "valid"
            rows.append(Row(f"songs/{path.name}", verdict="used", split=split))
            writer.add(split, tokenizer.encode(read_score(path)[0]).ids, row=number)
    write_manifest(folder / MANIFEST, rows)
    return Corpus.open(folder)


def write_model(folder: Path, tokenizer: Tokenizer, fingerprint: str = "") -> Path:
    size = tokenizer.vocabulary.size
    model = Model(ModelConfig(kind="gru", vocab_size=size, hidden_size=8), random_seed=1)
    return save_checkpoint(
        folder,
        model,
        vocabulary=tokenizer.vocabulary,
        tokenizer_json=tokenizer.to_dict(),
        corpus_fingerprint=fingerprint,
    )


@pytest.fixture(scope="module")
def files(samples_dir: Path) -> list[Path]:
    return sorted(samples_dir.glob("*.mid"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, files: list[Path]) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), files[:8], files[8:12])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    folder = write_model(tmp_path_factory.mktemp("model") / "best", Tokenizer(), corpus.fingerprint)
    index_corpus(corpus, folder.parent)
    return folder


def test_the_index_belongs_to_the_checkpoint(model: Path, corpus: Corpus) -> None:
    index = open_index(model)
    assert index.names == tuple(piece.name for piece in training_pieces(corpus))
    assert index.names[0].startswith("songs/")
    assert index.fingerprint == corpus.fingerprint
    assert index.chance is not None
    assert index.chance.excerpts == sum(1 for p in training_pieces(corpus, "valid") for _ in excerpts(p))
    assert index.chance.median <= index.chance.high
    config = json.loads((model / "config.json").read_text())
    assert FILE in config["files"]
    assert read_checkpoint(model).corpus_fingerprint == corpus.fingerprint, "the checkpoint is still one"
    # A later training may replace the checkpoint, index and all.
    again = write_model(model, Tokenizer(), corpus.fingerprint)
    assert Index.open(again) is None
    with pytest.raises(CheckpointError, match=r"has no originality.*--index"):
        open_index(again)
    index_corpus(corpus, again)
    attach_index(again, index)
    assert json.loads((again / "config.json").read_text())["files"].count(FILE) == 1


def test_an_index_that_cannot_be_written_changes_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, either where the index comes or where the list does; and a checkpoint that is none."""
    folder = write_model(tmp_path / "model", Tokenizer())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    index = build_index(corpus)
    whole = Path.write_bytes

    for name in (FILE, "config.json"):

        def write_bytes(path: Path, data: bytes, full: str = f"{name}.part") -> int:
            if path.name == full:
                whole(path, data[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return whole(path, data)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(
            CheckpointError, match=rf"{name}: No space left on device; free some space"
        ) as caught:
            attach_index(folder, index)
        assert "OSError" not in str(caught.value)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"missing or damaged.*name a checkpoint"):
        attach_index(folder, index)


def test_a_file_of_the_corpus_is_found_and_others_are_not(
    model: Path, files: list[Path], tmp_path: Path
) -> None:
    """A training piece, transposed, at another tempo and on another instrument; and pieces of other people."""
    score = read_score(files[1])[0]
    for track in score.tracks:
        track.shift_pitch(3, inplace=True)
        track.program = 40
    score.tempos = type(score.tempos)([symusic.Tempo(0, 47)])
    copy = tmp_path / "copy.mid"
    score.dump_midi(copy)
    (path, found), *others = check_files(model, [copy, *files[12:]])
    assert path == copy
    assert found.longest is not None
    assert found.longest.file == f"songs/{files[1].name}"
    assert found.longest.bar == found.longest.file_bar
    assert found.bars > 4
    for path, other in others:
        assert other.bars < 3, f"{path.name}: {other.lines()}"


def test_every_scheme_gives_the_same_lines(files: list[Path], tmp_path: Path) -> None:
    """The index does not depend on how the model writes music."""
    indices = [
        build_index(write_corpus(tmp_path / scheme, files[:3], [], scheme)) for scheme in ("REMI", "MIDILike")
    ]
    np.testing.assert_array_equal(indices[0].steps, indices[1].steps)
    assert indices[0].chance is None
    lines = lines_of(notes_of_score(read_score(files[0])[0]))
    ids = Tokenizer().encode(read_score(files[0])[0]).ids
    ours = lines_of(notes_of_tokens(ids, Tokenizer().vocabulary)[0])
    for line, other in zip(lines, ours, strict=True):
        np.testing.assert_array_equal(line.steps, other.steps)


def test_fine_tuning_keeps_what_came_before(
    model: Path, corpus: Corpus, files: list[Path], tmp_path: Path
) -> None:
    more = write_corpus(tmp_path / "more", files[12:14], [])
    index_corpus(corpus, model)
    tuned = write_model(tmp_path / "tuned", Tokenizer())
    report = index_corpus(more, tuned, model)  # a folder with the index of what was fine-tuned
    assert report.index.names == (
        *(f"songs/{path.name}" for path in files[12:14]),
        *open_index(model).names,
    )
    assert not report.notes
    bare = write_model(tmp_path / "bare", Tokenizer())
    assert "not covered" in index_corpus(more, tuned, bare).lines()[-2]


def test_the_command(
    model: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_model(tmp_path / "model", Tokenizer(), "other")
    songs = tmp_path / "songs"
    songs.mkdir()
    for path in files[:3]:
        (songs / path.name).write_bytes(path.read_bytes())
    arguments = ["originality", "--model", str(other)]
    kept = ["--cache", str(tmp_path / "cache")]
    assert main([*arguments, str(files[0])]) == 1
    assert "--index FOLDER" in capsys.readouterr().err
    assert main([*arguments, *kept, str(files[0])]) == 2
    assert "--cache needs --index" in capsys.readouterr().err
    assert main(["originality", "--index", str(songs)]) == 2
    assert "--index needs --model" in capsys.readouterr().err
    assert main([*arguments, "--force", str(files[0])]) == 2
    assert "--force needs --index" in capsys.readouterr().err
    right = open_index(model)
    attach_index(other, right)
    assert main([*arguments, *kept, "--index", str(songs)]) == 2
    said = capsys.readouterr().err
    assert "is not what" in said
    assert "or --force to build" in said
    assert open_index(other).names == right.names, "a right index is not lost"
    assert main([*arguments, *kept, "--index", str(songs), "--force"]) == 0
    out = capsys.readouterr().out
    assert "3 pieces" in out or "2 pieces" in out
    assert "fingerprints differ" in out
    assert main([*arguments, str(files[0]), str(files[12])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(str(files[0]))
    assert main([*arguments, "--json", str(files[0])]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(files[0])
    assert main(arguments) == 2
    assert "give MIDI files" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "none.mid"), str(files[0])]) == 1, "the good ones are looked up"
    said = capsys.readouterr()
    assert said.out.startswith(str(files[0]))
    assert said.err.startswith("melodia: ")
    assert "none.mid" in said.err
    changed = json.loads((other / "tokenizer.json").read_text())
    changed["fingerprint"] = "0"
    (other / "tokenizer.json").write_text(json.dumps(changed))
    assert main([*arguments, str(files[0])]) == 1
    assert "tokenizer.json: this version makes another vocabulary" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="give MIDI files"):
        check_files(model, [])
