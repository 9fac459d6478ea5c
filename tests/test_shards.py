"""Token shards: what is written is read, damage is refused, nothing is loaded that is not asked for."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_helpers import small_corpus, small_vocabulary

from melodia.corpus.manifest import MANIFEST, Row, manifest_bytes
from melodia.corpus.shards import CONSTANT_VELOCITY, Corpus, ShardWriter
from melodia.errors import CorpusError
from melodia.vocabulary import Vocabulary

PIECES = st.lists(
    st.tuples(
        st.sampled_from(["train", "valid"]),
        st.lists(st.integers(3, small_vocabulary().size - 1), max_size=30),
        st.integers(0, 3),
    ),
    max_size=12,
)


@given(pieces=PIECES, shard_tokens=st.integers(1, 60))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, list[int], int]], shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    vocabulary = small_vocabulary()
    with ShardWriter(folder, vocabulary, shard_tokens=shard_tokens, tokenizer_json='{"a": 1}') as writer:
        for row, (split, ids, flags) in enumerate(pieces):
            writer.add(split, ids, row=row, flags=flags)
    corpus = Corpus.open(folder)
    corpus.verify()
    assert corpus.vocabulary == vocabulary
    assert corpus.tokenizer_json == '{"a": 1}'
    for split in ("train", "valid"):
        expected = [(row, ids, flags) for row, (name, ids, flags) in enumerate(pieces) if name == split]
        read = corpus.pieces(split)
        assert [(piece.row, piece.tokens.tolist(), piece.flags) for piece in read] == expected
        assert read.tokens == sum(len(ids) for _, ids, _ in expected)
        for file in folder.glob(f"{split}-*.bin"):
            longest = max(len(ids) for _, ids, _ in expected)
            assert file.stat().st_size <= 2 * max(shard_tokens, longest)
    assert not list(folder.glob("*.part"))


def test_counts_notes_bars_and_flags(tmp_path: Path) -> None:
    vocabulary = small_vocabulary()
    names = ["Bar_None", "Position_0", "Pitch_60", "Velocity_63", "Duration_0.1.2"]
    ids = [vocabulary.index[name] for name in [*names, *names[1:], "Bar_None"]]
    with ShardWriter(tmp_path, vocabulary) as writer:
        writer.add("train", ids, flags=CONSTANT_VELOCITY)
        writer.add("train", ids, bars=7)
    piece, other = Corpus.open(tmp_path).pieces("train")
    assert (piece.notes, piece.bars, piece.constant_velocity, piece.row) == (2, 2, True, -1)
    assert (other.bars, other.constant_velocity) == (7, False)
    assert piece.tokens.dtype == np.dtype("<u2")
    with pytest.raises(ValueError, match="read-only"):
        piece.tokens[0] = 4


def test_byte_pairs_count_what_they_stand_for(tmp_path: Path) -> None:
    base = small_vocabulary()
    parts = tuple(base.index[name] for name in ("Bar_None", "Position_0", "Pitch_60"))
    vocabulary = Vocabulary("REMI", (*base.tokens, "BPE_0"), base.graph, 2, {base.size: parts})
    with ShardWriter(tmp_path, vocabulary) as writer:
        writer.add("valid", [base.size, base.size])
    (piece,) = Corpus.open(tmp_path).pieces("valid")
    assert (piece.notes, piece.bars) == (2, 2)


def test_little_endian_on_disk(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, small_vocabulary()) as writer:
        writer.add("train", [3, 4])
    assert (tmp_path / "train-00000.bin").read_bytes() == b"\x03\x00\x04\x00"


def test_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    tokens = ("PAD_None", "BOS_None", "EOS_None", *(f"Thing_{i}" for i in range(70_000)))
    with ShardWriter(tmp_path, Vocabulary("REMI", tokens, {}, 2)) as writer:
        writer.add("train", [3, 70_002])
    corpus = Corpus.open(tmp_path)
    corpus.verify()
    assert corpus.pieces("train")[0].tokens.tolist() == [3, 70_002]
    assert (tmp_path / "train-00000.bin").stat().st_size == 8


def test_fingerprint_tells_corpora_apart(tmp_path: Path) -> None:
    def fingerprint(name: str, *pieces: tuple[str, list[int], int], shard_tokens: int = 100) -> str:
        with ShardWriter(tmp_path / name, small_vocabulary(), shard_tokens=shard_tokens) as writer:
            for split, ids, flags in pieces:
                writer.add(split, ids, flags=flags)
        return Corpus.open(tmp_path / name).fingerprint

    first = fingerprint("a", ("train", [3, 4], 0), ("train", [5], 0))
    assert first == fingerprint("b", ("train", [3, 4], 0), ("train", [5], 0), shard_tokens=1)
    others = [
        fingerprint("c", ("train", [3, 4], 0), ("train", [6], 0)),
        fingerprint("d", ("train", [3], 0), ("train", [4, 5], 0)),
        fingerprint("e", ("train", [3, 4], 0), ("valid", [5], 0)),
        fingerprint("f", ("train", [3, 4], 1), ("train", [5], 0)),
    ]
    assert len({first, *others}) == 5


def test_verify_finds_a_changed_token(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    data = bytearray((tmp_path / "train-00000.bin").read_bytes())
    data[10] ^= 1
    (tmp_path / "train-00000.bin").write_bytes(data)
    with pytest.raises(CorpusError, match="differ from those that were written"):
        Corpus.open(corpus.folder).verify()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 4, 10_000], "ids must be between 0 and"),
        ([-1], "ids must be between 0 and"),
        ([1, 3], "not contain PAD, BOS or EOS"),
        ([0.5], "integer ids"),
        ([[3, 4]], "integer ids"),
    ],
)
def test_refuses_what_is_no_piece(tmp_path: Path, ids: list[int], message: str) -> None:
    with pytest.raises(CorpusError, match=message), ShardWriter(tmp_path, small_vocabulary()) as writer:
        writer.add("train", ids)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_old_corpus(tmp_path: Path) -> None:
    before = small_corpus(tmp_path).fingerprint

    def interrupted() -> None:
        with ShardWriter(tmp_path, small_vocabulary()) as writer:
            writer.add("train", [3])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    corpus = Corpus.open(tmp_path)
    corpus.verify()
    assert corpus.fingerprint == before


def test_a_crash_at_any_rename_is_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die at the k-th rename, for every k: the folder holds the old corpus, the new one, or is refused."""
    rename = Path.replace

    class Died(BaseException):
        pass

    seen = set()
    for k in range(20):
        folder = tmp_path / str(k)
        old = small_corpus(folder, pieces=5, shard_tokens=40).fingerprint
        writer = ShardWriter(folder, small_vocabulary(), shard_tokens=30)
        writer.add("train", [3, 4, 5])
        left = k

        def dying(path: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise Died
            left -= 1
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", dying)
        try:
            new = writer.finish()
        except Died:
            new = None
        monkeypatch.setattr(Path, "replace", rename)
        try:
            corpus = Corpus.open(folder)
        except CorpusError:
            seen.add("refused")
            continue
        corpus.verify()
        assert corpus.fingerprint == (old if new is None else new)
        seen.add("new" if new else "old")
        if new:
            files = {path.name for path in folder.glob("*.bin")}
            assert files == {"train-00000.bin"}
            break
    assert seen == {"refused", "new"}


def test_a_power_cut_leaves_no_totals_beside_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on the disk at each sync: no totals, then all but the totals, then all."""
    small_corpus(tmp_path, pieces=5, shard_tokens=40)
    writer = ShardWriter(tmp_path, small_vocabulary(), shard_tokens=30)
    writer.add("train", [3, 4, 5])
    writer.attach("manifest.tsv", b"rows")
    synced: list[tuple[bool, list[str]]] = []

    def look(folder: Path) -> None:
        names = {path.name for path in folder.iterdir()}
        synced.append(("corpus.json" in names, sorted(name for name in names if name.endswith(".part"))))

    monkeypatch.setattr("melodia.corpus.shards.sync_folder", look)
    writer.finish()
    first, *later = synced
    assert first[0] is False
    assert {"corpus.json.part", "manifest.tsv.part", "train-00000.bin.part"} <= set(first[1])
    assert later == [(False, ["corpus.json.part"]), (True, [])]
    assert (tmp_path / "manifest.tsv").read_bytes() == b"rows"


def _cut(folder: Path) -> None:
    path = folder / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])


def _index_outside(folder: Path) -> None:
    path = folder / "train.index.npy"
    index = np.load(path)
    index[0, 0] = 9
    np.save(path, index)


def _summary(folder: Path, **changes: object) -> None:
    path = folder / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "cut": (_cut, "cut short"),
    "no shard": (lambda folder: (folder / "train-00000.bin").unlink(), "is missing"),
    "no index": (lambda folder: (folder / "valid.index.npy").unlink(), "is missing"),
    "empty index": (lambda folder: (folder / "valid.index.npy").write_bytes(b""), "damaged"),
    "pickled index": (lambda folder: (folder / "valid.index.npy").write_bytes(pickle.dumps([1])), "damaged"),
    "index outside": (_index_outside, "outside its files"),
    "index of another": (lambda folder: np.save(folder / "train.index.npy", np.zeros((2, 7))), "not belong"),
    "no JSON": (lambda folder: (folder / "corpus.json").write_text("{"), "damaged"),
    "a list": (lambda folder: (folder / "corpus.json").write_text("[]"), "corpus format 'list'"),
    "newer": (lambda folder: _summary(folder, format_version=99), "corpus format 99"),
    "wide": (lambda folder: _summary(folder, token_bytes=3), "damaged"),
    "no splits": (lambda folder: _summary(folder, splits={}), "damaged"),
    "vocabulary": (lambda folder: (folder / "vocabulary.json").write_text('{"tokens": 3}'), "damaged"),
    "binary": (lambda folder: (folder / "corpus.json").write_bytes(b"\xff\xfe\x00"), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(tmp_path: Path, name: str) -> None:
    small_corpus(tmp_path)
    damage, message = DAMAGES[name]
    damage(tmp_path)
    with pytest.raises(CorpusError, match=message):
        Corpus.open(tmp_path)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    small_corpus(tmp_path)
    data = json.loads((tmp_path / "vocabulary.json").read_text())
    data["tokens"][5], data["tokens"][6] = data["tokens"][6], data["tokens"][5]
    (tmp_path / "vocabulary.json").write_text(json.dumps(data))
    with pytest.raises(CorpusError, match="not the one the tokens were written with"):
        Corpus.open(tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no finished corpus"):
        Corpus.open(tmp_path / "missing")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(CorpusError):
        Corpus.open(file)
    with pytest.raises(CorpusError, match="cannot write the corpus"):
        ShardWriter(file / "corpus", small_vocabulary())


def test_pieces_are_a_sequence(tmp_path: Path) -> None:
    pieces = small_corpus(tmp_path).pieces("train")
    assert len(pieces[2:5]) == 3
    assert pieces[-1].row == pieces[len(pieces) - 1].row
    with pytest.raises(IndexError):
        pieces[len(pieces)]
    with pytest.raises(CorpusError, match="splits train, valid"):
        small_corpus(tmp_path).pieces("test")


def test_a_corpus_that_is_replaced_stays_what_it_was(tmp_path: Path) -> None:
    """Another process builds the cache anew while this one trains."""
    pieces = small_corpus(tmp_path).pieces("train")
    before = pieces[0].tokens.tolist()
    file = tmp_path / "train-00000.bin"
    (tmp_path / "new").write_bytes(bytes(file.stat().st_size))
    (tmp_path / "new").replace(file)
    assert pieces[0].tokens.tolist() == before


@pytest.mark.parametrize("how", ["built anew", "removed"])
def test_the_tokenizer_and_the_names_are_those_of_the_tokens(tmp_path: Path, how: str) -> None:
    """A training saves the one with its checkpoints, and its index of the music has the others."""

    def write(tokenizer: str, names: list[str]) -> None:
        with ShardWriter(tmp_path / "corpus", small_vocabulary(), tokenizer_json=tokenizer) as writer:
            for number in range(len(names)):
                writer.add("train", [4, 5], row=number)
            writer.attach(MANIFEST, manifest_bytes([Row(name, verdict="used") for name in names]))

    write('{"old": 1}', ["a.mid", "b.mid"])
    corpus = Corpus.open(tmp_path / "corpus")
    if how == "removed":
        shutil.rmtree(tmp_path / "corpus")
    else:
        write('{"new": 1}', ["added.mid", "a.mid", "b.mid"])
    assert corpus.tokenizer_json == '{"old": 1}'
    assert [row.path for row in corpus.rows()] == ["a.mid", "b.mid"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count open files")
def test_many_pieces_need_few_files(tmp_path: Path) -> None:
    pieces = small_corpus(tmp_path).pieces("train")
    held = len(list(Path("/proc/self/fd").iterdir()))
    kept = [pieces[0] for _ in range(100)]
    assert len(list(Path("/proc/self/fd").iterdir())) == held
    assert not kept[0].tokens.flags.writeable


def test_a_shard_that_is_cut_short_while_it_is_open(tmp_path: Path) -> None:
    pieces = small_corpus(tmp_path).pieces("train")
    os.truncate(tmp_path / "train-00000.bin", 0)
    with pytest.raises(CorpusError, match=r"cannot read piece 0 from .* \(cut short\); rebuild the corpus"):
        pieces[0]


READER = """
import sys
from melodia.corpus.shards import Corpus

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

corpus = Corpus.open(sys.argv[1])
pieces = corpus.pieces("train")
pieces[0].tokens.sum()
before, total = resident(), 0
for piece in pieces:
    total += piece.tokens.nbytes
    piece.tokens.sum()
print(total, resident() - before, *(name for name in ("torch", "symusic", "miditok") if name in sys.modules))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to measure memory")
def test_memory_stays_flat_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    vocabulary = small_vocabulary()
    ids = np.random.default_rng(0).integers(3, vocabulary.size, 1_000_000, np.uint16)
    with ShardWriter(tmp_path, vocabulary, shard_tokens=8_000_000) as writer:
        for _ in range(40):
            writer.add("train", ids)
    run = [sys.executable, "-c", READER, str(tmp_path)]
    total, growth, *heavy = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert int(total) == 80_000_000
    assert int(growth) < 8_000_000
    assert heavy == []
