"""Building a corpus: verdicts, duplicates, splits, limits, cache, interruption."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import symusic

from melodia.corpus import build as build_module
from melodia.corpus.build import build_corpus
from melodia.corpus.discover import find_midi_files
from melodia.corpus.manifest import Row, common_reasons, read_manifest, write_manifest
from melodia.corpus.shards import Corpus
from melodia.errors import ConfigError, CorpusError
from melodia.midi import read_score
from melodia.tokenizer import Tokenizer, TokenizerConfig
from melodia.transpose import transposition_permutation

TPQ = 480


def tune(number, *, shift=0, velocity=None, bars=4, tempo=120.0, tpq=TPQ):
    """A little piece that differs from number to number."""
    rng = np.random.default_rng(number)
    score = symusic.Score(tpq)
    track = symusic.Track(program=0)
    for beat in range(4 * bars):
        drawn = int(rng.integers(30, 110))
        loud = drawn if velocity is None else velocity
        pitch = int(rng.integers(48, 72)) + shift
        track.notes.append(symusic.Note(beat * tpq, tpq // 2, pitch, loud))
    score.tracks.append(track)
    score.tempos.append(symusic.Tempo(0, qpm=tempo))
    score.time_signatures.append(symusic.TimeSignature(0, 4, 4))
    return score


def write(folder: Path, name: str, score) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    score.dump_midi(path)
    return path


def rows_by_path(out: Path) -> dict[str, Row]:
    return {row.path: row for row in read_manifest(out)}


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """A folder such as people have, and what became of it."""
    folder = tmp_path_factory.mktemp("messy")
    for number in range(12):
        write(folder, f"deep/er/tune{number:02d}.mid", tune(number))
    write(folder, "UPPER.MID", tune(20))
    write(folder, "other.midi", tune(21))
    same = (folder / "UPPER.MID").read_bytes()
    (folder / "copy.mid").write_bytes(same)
    write(folder, "same_notes.mid", tune(20, velocity=64, tempo=90.0, tpq=960))
    write(folder, "transposed.mid", tune(0, shift=2))
    write(folder, "flat.mid", tune(22, velocity=80))
    write(folder, "short.mid", tune(23, bars=0))
    (folder / "empty.mid").write_bytes(b"")
    (folder / "text.mid").write_text("this is not MIDI")
    (folder / "._ghost.mid").write_bytes(b"\0\0")
    (folder / "readme.txt").write_text("no MIDI by name")
    (folder / "gone.mid").symlink_to(folder / "nowhere.mid")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    one = tune(24, bars=1)
    one.tracks[0].notes = one.tracks[0].notes[:2]
    write(folder, "two_notes.mid", one)
    out = tmp_path_factory.mktemp("built")
    seen = []
    summary = build_corpus(folder, out, workers=2, progress=lambda *told: seen.append(told))
    return folder, out, summary, seen


def test_a_verdict_for_every_file(messy):
    folder, out, summary, seen = messy
    rows = rows_by_path(out)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "loop" not in path.parts}
    wanted = {name for name in names if name.lower().endswith((".mid", ".midi"))}
    assert set(rows) == wanted, "the folder that links to its parent is not walked twice"
    assert rows["gone.mid"].verdict == "failed"
    assert rows["gone.mid"].reason == "a broken link"
    assert rows["empty.mid"].verdict == "failed"
    assert rows["text.mid"].verdict == "failed"
    assert rows["text.mid"].reason
    assert "text.mid" not in rows["text.mid"].reason
    assert rows["._ghost.mid"].verdict == "skipped"
    assert rows["two_notes.mid"].verdict == "skipped"
    assert "2 notes" in rows["two_notes.mid"].reason
    assert rows["deep/er/tune00.mid"].verdict == "used"
    assert rows["UPPER.MID"].is_used
    assert rows["other.midi"].is_used
    assert sum(summary.verdicts.values()) == len(rows)
    assert seen[-1][:2] == (len(rows), len(rows))
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    assert any("failed" in line for line in summary.lines())


def test_duplicates_by_bytes_and_by_notes(messy):
    rows = rows_by_path(messy[1])
    assert rows["copy.mid"].verdict == "duplicate"
    assert rows["copy.mid"].reason == "same bytes as UPPER.MID"
    assert rows["same_notes.mid"].verdict == "duplicate"
    assert rows["same_notes.mid"].reason == "same notes as UPPER.MID"
    assert rows["transposed.mid"].is_used
    assert rows["transposed.mid"].content != rows["deep/er/tune00.mid"].content
    assert rows["transposed.mid"].tune == rows["deep/er/tune00.mid"].tune
    assert rows["transposed.mid"].split == rows["deep/er/tune00.mid"].split, (
        "a transposition on the other side is a leak"
    )


def test_the_tokens_are_those_of_the_files(messy):
    folder, out, summary, _ = messy
    rows = read_manifest(out)
    corpus = Corpus.open(out)
    corpus.verify()
    tokenizer = Tokenizer(TokenizerConfig())
    count = 0
    for split in ("train", "valid"):
        for piece in corpus.pieces(split):
            row = rows[piece.row]
            assert row.is_used
            assert row.split == split
            ids = tokenizer.encode(read_score(folder / row.path)[0]).ids
            np.testing.assert_array_equal(piece.tokens, ids)
            assert (row.tokens, row.notes, row.bars) == (len(ids), piece.notes, piece.bars)
            assert piece.constant_velocity == (row.path == "flat.mid")
            count += 1
    assert count == sum(row.is_used for row in rows)
    assert summary.train.pieces + summary.valid.pieces == count
    assert summary.valid.pieces >= 1
    assert rows_by_path(out)["flat.mid"].velocity_levels == 1
    assert Tokenizer.load(out / "tokenizer.json").vocabulary.fingerprint == corpus.vocabulary.fingerprint


def test_workers_do_not_change_the_result(messy, tmp_path):
    folder, _, summary, _ = messy
    assert build_corpus(folder, tmp_path / "one", workers=0).fingerprint == summary.fingerprint


def test_split_by_piece_is_stable_and_about_a_tenth():
    """Hash of the tune: independent of the order and of the other files."""
    rows = [Row(f"{i}.mid", verdict="used", content=f"c{i}", tune=f"t{i // 2}") for i in range(2000)]
    build_module._split_by_hash(rows, 0.1, has_valid=False)
    held = {row.path for row in rows if row.split == "valid"}
    assert 140 < len(held) < 260
    assert all((f"{i}.mid" in held) == (f"{i + 1}.mid" in held) for i in range(0, 2000, 2)), (
        "tunes stay together"
    )
    again = [
        Row(f"{i}.mid", verdict="used", content=f"c{i}", tune=f"t{i // 2}") for i in range(1999, 999, -1)
    ]
    build_module._split_by_hash(again, 0.1, has_valid=False)
    assert {row.path for row in again if row.split == "valid"} == held & {row.path for row in again}


@pytest.mark.parametrize(("pieces", "held"), [(1, 0), (2, 1), (3, 1)])
def test_split_of_few_pieces(pieces, held):
    for start in range(0, 60, pieces):
        rows = [
            Row(f"{i}", verdict="used", content=f"c{i}", tune=f"t{i}") for i in range(start, start + pieces)
        ]
        build_module._split_by_hash(rows, 0.01, has_valid=False)
        assert sum(row.split == "valid" for row in rows) == held
    rows = [Row(f"{i}", verdict="used", content=f"c{i}", tune="same") for i in range(2)]
    build_module._split_by_hash(rows, 0.1, has_valid=False)
    assert sorted(row.split for row in rows) == ["train", "valid"]
    rows = [Row(f"{i}", verdict="used", content=f"c{i}", tune=f"t{i}") for i in range(4)]
    build_module._split_by_hash(rows, 0.999, has_valid=False)
    assert any(row.split == "train" for row in rows)
    build_module._split_by_hash(rows, 0.0, has_valid=False)
    assert all(row.split == "train" for row in rows)


def test_train_and_valid_folders_are_respected(tmp_path):
    folder = tmp_path / "songs"
    for number in range(5):
        write(folder, f"set/Train/{number}.mid", tune(number))
    write(folder, "set/Valid/a.mid", tune(10))
    write(folder, "set/Valid/b.mid", tune(3))
    write(folder, "set/Valid/c.mid", tune(4, shift=-3))
    write(folder, "set/test/t.mid", tune(11))
    write(folder, "set/loose.mid", tune(12))
    write(folder, "free/f.mid", tune(13))
    summary = build_corpus(folder, tmp_path / "out", workers=0)
    rows = rows_by_path(tmp_path / "out")
    assert rows["set/Valid/a.mid"].split == "valid"
    assert rows["set/Train/0.mid"].split == "train"
    assert rows["set/test/t.mid"].verdict == "skipped"
    assert rows["set/loose.mid"].verdict == "skipped"
    assert rows["free/f.mid"].split in ("train", "valid")
    # Of two equal pieces it is the training one that goes, so that the held-out one stays unseen.
    assert rows["set/Valid/b.mid"].split == "valid"
    assert rows["set/Train/3.mid"].verdict == "duplicate"
    assert any("transposition" in warning for warning in summary.warnings)


def test_cache_and_what_breaks_it(tmp_path, monkeypatch):
    folder, out = tmp_path / "songs", tmp_path / "out"
    paths = [write(folder, f"{number}.mid", tune(number)) for number in range(3)]
    first = build_corpus(folder, out, workers=0)
    assert not first.cached

    def forbidden(*args, **kwargs):
        raise AssertionError("read the files again")

    with monkeypatch.context() as patched:
        patched.setattr(build_module, "map_files", forbidden)
        again = build_corpus(folder, out, workers=0)
        assert again.cached
        assert (again.fingerprint, again.train, again.valid) == (first.fingerprint, first.train, first.valid)
        os.utime(paths[0], (1, 1))  # touched, not changed
        assert build_corpus(folder, out, workers=0).cached
        for change in (
            {"config": TokenizerConfig(positions_per_beat=24)},
            {"min_notes": 5},
            {"valid_share": 0.3},
            {"rebuild": True},
        ):
            with pytest.raises(AssertionError, match="read the files again"):
                build_corpus(folder, out, workers=0, **change)
    assert Corpus.open(out).fingerprint == first.fingerprint, "a build that fails leaves the corpus alone"
    write(folder, "0.mid", tune(77))
    changed = build_corpus(folder, out, workers=0)
    assert not changed.cached
    assert changed.fingerprint != first.fingerprint
    paths[1].unlink()
    assert build_corpus(folder, out, workers=0).verdicts["used"] == 2
    (out / "train-00000.bin").write_bytes(b"")
    assert not build_corpus(folder, out, workers=0).cached, "a damaged corpus is not taken"


def test_byte_pairs_and_transposed_copies(tmp_path):
    folder = tmp_path / "songs"
    for number in range(6):
        write(folder, f"train/{number}.mid", tune(number, bars=12))
    write(folder, "valid/v.mid", tune(30, bars=12))
    base = build_corpus(folder, tmp_path / "base", workers=0)
    size = Corpus.open(tmp_path / "base").vocabulary.size + 60
    config = TokenizerConfig(bpe_vocab_size=size)
    summary = build_corpus(folder, tmp_path / "bpe", config, transpositions=[-2, 0, 3], workers=0)
    corpus, plain = Corpus.open(tmp_path / "bpe"), Corpus.open(tmp_path / "base")
    assert corpus.vocabulary.size == size
    assert len(corpus.pieces("train")) == 18, (
        "each training piece stands three times, in its key and two others"
    )
    assert corpus.pieces("train").originals.tolist() == [0, 3, 6, 9, 12, 15]
    assert plain.pieces("train").originals.tolist() == list(range(6))
    assert len(corpus.pieces("valid")) == len(corpus.pieces("valid").originals) == 1
    assert summary.train.pieces == 6
    assert summary.train.tokens < base.train.tokens
    tokenizer = Tokenizer.load(tmp_path / "bpe" / "tokenizer.json")
    for copy, shift in enumerate((0, -2, 3)):
        for number, original in enumerate(plain.pieces("train")):
            piece = corpus.pieces("train")[3 * number + copy]
            ids = corpus.vocabulary.expand(piece.tokens)
            move = transposition_permutation(plain.vocabulary, shift)
            np.testing.assert_array_equal(ids, move[original.tokens])
            assert (piece.notes, piece.bars, piece.row) == (original.notes, original.bars, original.row)
    (valid,) = corpus.pieces("valid")
    score, _ = read_score(folder / "valid" / "v.mid")
    np.testing.assert_array_equal(valid.tokens, tokenizer.encode(score).ids)
    assert build_corpus(folder, tmp_path / "bpe", config, transpositions=[3, -2], workers=0).cached


def test_a_trained_tokenizer_is_used_as_it_is(tmp_path):
    for number in range(4):
        write(tmp_path / "first", f"{number}.mid", tune(number, bars=12))
        write(tmp_path / "second", f"{number}.mid", tune(10 + number, bars=12))
    size = Tokenizer().vocabulary.size + 30
    config = TokenizerConfig(bpe_vocab_size=size)
    build_corpus(tmp_path / "first", tmp_path / "learned", config, transpositions=[-2], workers=0)
    trained = Tokenizer.load(tmp_path / "learned" / "tokenizer.json")
    again = build_corpus(
        tmp_path / "first", tmp_path / "again", tokenizer=trained, transpositions=[-2], workers=0
    )
    assert again.fingerprint == Corpus.open(tmp_path / "learned").fingerprint
    other = build_corpus(tmp_path / "second", tmp_path / "other", tokenizer=trained, workers=0)
    corpus = Corpus.open(tmp_path / "other")
    assert corpus.vocabulary.fingerprint == trained.vocabulary.fingerprint
    assert build_corpus(tmp_path / "second", tmp_path / "other", tokenizer=trained, workers=0).cached
    own = build_corpus(tmp_path / "second", tmp_path / "other", config, workers=0)
    assert not own.cached, "byte pairs of its own are others"
    assert own.fingerprint != other.fingerprint


def test_out_inside_the_folder_is_left_out(tmp_path):
    folder = tmp_path / "songs"
    for number in range(3):
        write(folder, f"{number}.mid", tune(number))
    write(folder / "corpus", "samples/x.mid", tune(9))
    assert build_corpus(folder, folder / "corpus", workers=0).verdicts["used"] == 3


def test_errors(tmp_path):
    with pytest.raises(CorpusError, match="does not exist"):
        build_corpus(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "file.mid").write_bytes(b"x")
    with pytest.raises(CorpusError, match="is not a folder"):
        build_corpus(tmp_path / "file.mid", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(CorpusError, match="no MIDI files"):
        build_corpus(tmp_path / "bare", tmp_path / "out")
    with pytest.raises(ConfigError, match="valid_share"):
        build_corpus(tmp_path / "bare", tmp_path / "out", valid_share=1.0)
    with pytest.raises(ConfigError, match="transpositions"):
        build_corpus(tmp_path / "bare", tmp_path / "out", transpositions=[13])
    with pytest.raises(CorpusError, match="cannot create"):
        build_corpus(tmp_path, tmp_path / "file.mid" / "out")


def test_nothing_usable_names_the_commonest_reasons(tmp_path):
    folder = tmp_path / "songs"
    folder.mkdir()
    for number in range(3):
        (folder / f"empty{number}.mid").write_bytes(b"")
    (folder / "text.mid").write_text("hello, I am a text file")
    with pytest.raises(CorpusError, match="none of the 4 MIDI files") as caught:
        build_corpus(folder, tmp_path / "out", workers=0)
    message = str(caught.value)
    assert "3 x failed:" in message
    assert "1 x failed:" in message
    assert "\n" not in message
    assert len(read_manifest(tmp_path / "out" / "rejected.tsv")) == 4
    with pytest.raises(CorpusError, match="no finished corpus"):
        Corpus.open(tmp_path / "out")


def test_killed_in_the_middle_leaves_nothing_half(tmp_path):
    folder, out = tmp_path / "songs", tmp_path / "out"
    for number in range(6):
        write(folder, f"{number}.mid", tune(number))
    first = build_corpus(folder, out, workers=0)
    write(folder, "new.mid", tune(50))
    # Killed after the files have been read and before the shards are in place.
    code = (
        "import os, signal, sys\n"
        "from melodia.corpus import build\n"
        "build._decide = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build.build_corpus(sys.argv[1], sys.argv[2], workers=0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(out)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert Corpus.open(out).fingerprint == first.fingerprint
    assert len(read_manifest(out)) == 6
    second = build_corpus(folder, out, workers=0)
    assert not second.cached
    assert second.verdicts["used"] == 7
    assert not (out / build_module.SPOOL).exists()


def test_the_manifest_is_that_of_the_corpus_wherever_a_build_dies(tmp_path, monkeypatch):
    class Died(BaseException):
        pass

    folder, rename = tmp_path / "songs", Path.replace
    for number in range(3):
        write(folder, f"{number}.mid", tune(number))
    build_corpus(folder, tmp_path / "old", workers=0)
    write(folder, "0 new.mid", tune(50))  # the first of all: the others' rows move
    tokenizer, counts = Tokenizer(TokenizerConfig()), []
    for k in range(20):
        out = shutil.copytree(tmp_path / "old", tmp_path / str(k))
        left = [True] * k

        def dying(path, target, left=left):
            if not left:
                raise Died
            left.pop()
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", dying)
        with contextlib.suppress(Died):
            build_corpus(folder, out, workers=0)
        monkeypatch.undo()
        with contextlib.suppress(CorpusError):
            corpus = Corpus.open(out)
            rows = read_manifest(out)
            for piece in [*corpus.pieces("train"), *corpus.pieces("valid")]:
                ids = tokenizer.encode(read_score(folder / rows[piece.row].path)[0]).ids
                np.testing.assert_array_equal(piece.tokens, ids)
            counts.append(len(rows))
        if left:
            break
    assert set(counts) == {4}, "what can be opened is the new corpus, even where the build died behind it"
    assert len(counts) > 1


def test_a_full_disk_is_named(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no disk that is always full")
    (tmp_path / "spool").symlink_to("/dev/full")
    spool = build_module._Spool(tmp_path / "spool")
    spool.put(0, np.arange(3, dtype=np.int32))
    with pytest.raises(CorpusError, match=r"cannot write .*spool \(No space left on device\)"):
        spool.get(0)
    spool.remove()


def test_a_folder_without_permission_is_named(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    folder = tmp_path / "songs"
    write(folder, "a.mid", tune(1))
    write(folder, "closed/b.mid", tune(2))
    (folder / "closed").chmod(0)
    try:
        problems = [found for found in find_midi_files(folder) if found.problem]
        assert [found.relative for found in problems] == ["closed"]
    finally:
        (folder / "closed").chmod(0o755)


def test_manifest_round_trip_with_odd_names(tmp_path):
    rows = [
        Row("a\tb\\n\nc.mid", verdict="used", notes=3, seconds=1.25),
        Row("ü.mid", verdict="failed", reason="x"),
    ]
    write_manifest(tmp_path / "manifest.tsv", rows)
    assert read_manifest(tmp_path) == rows
    assert (tmp_path / "manifest.tsv").read_text("utf-8").count("\n") == 3
    (tmp_path / "manifest.tsv").write_text("path\tnonsense\n")
    with pytest.raises(CorpusError, match="not a manifest"):
        read_manifest(tmp_path)


def test_undecodable_names_are_kept_apart(tmp_path):
    folder = tmp_path / "songs"
    write(folder, "a.mid", tune(1))
    odd = os.fsencode(folder) + b"/\xff\xfe.mid"
    try:
        Path(os.fsdecode(odd)).write_bytes((folder / "a.mid").read_bytes())
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    write(folder, "b.mid", tune(2))
    summary = build_corpus(folder, tmp_path / "out", workers=0)
    assert summary.verdicts["used"] == 2
    assert summary.verdicts["duplicate"] == 1
    assert build_corpus(folder, tmp_path / "out", workers=0).cached


def test_common_reasons_join_numbers():
    rows = [Row(f"{i}", verdict="failed", reason=f"ends at byte {i}") for i in range(5)]
    rows += [Row("s", verdict="skipped", reason="too short"), Row("u", verdict="repaired", reason="fixed")]
    assert common_reasons(rows) == [("failed: ends at byte 0", 5), ("skipped: too short", 1)]


def test_malformed_files(data_dir, tmp_path):
    """The collection of broken files: nothing dies, everything has a verdict."""
    folder = data_dir / "malformed"
    files = find_midi_files(folder)
    build_corpus(folder, tmp_path / "out", workers=2)
    rows = read_manifest(tmp_path / "out")
    assert len(rows) == len(files)
    assert all(row.verdict for row in rows)
    assert all(row.reason for row in rows if not row.is_used)
    assert not [row for row in rows if "unexpected" in row.reason or "crashed" in row.reason]
