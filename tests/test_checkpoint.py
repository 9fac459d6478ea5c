"""Checkpoints: there and back, whole or not at all, and nothing believed of a file."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from model_zoo import ZOO, V, make, music

from melodia.errors import CheckpointError
from melodia.model import Model, checkpoint, folders, is_checkpoint, load_checkpoint, save_checkpoint, stored
from melodia.vocabulary import Vocabulary

TOKENS = ("PAD_None", "BOS_None", "EOS_None", "Bar_None", *(f"Pitch_{i}" for i in range(V - 4)))
VOCABULARY = Vocabulary("REMI", TOKENS, {"Bar": ("Pitch",), "Pitch": ("Pitch", "Bar")}, 12, {V - 1: (4, 5)})
SAVE = {"vocabulary": VOCABULARY, "tokenizer_json": {"scheme": "REMI", "ä": [1, 2]}}


def save(folder: Path, model: Model, **changes: object) -> Path:
    return save_checkpoint(folder, model, **(SAVE | changes))  # type: ignore[arg-type]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same_weights(one: Model, other: Model) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ZOO)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    model = make(name, dtype=torch.float32)
    folder = save(tmp_path / "a" / "model", model, training={"nll": 1.5}, corpus_fingerprint="abc")
    assert names(folder) == {"model.safetensors", "config.json", "vocabulary.json", "tokenizer.json"}
    assert names(tmp_path / "a") == {"model"}, "nothing is left beside it"
    loaded = load_checkpoint(folder)
    assert same_weights(model, loaded.model)
    assert loaded.config == model.config
    assert loaded.vocabulary == VOCABULARY
    assert loaded.tokenizer_json == SAVE["tokenizer_json"]
    assert (loaded.training, loaded.corpus_fingerprint, loaded.path) == ({"nll": 1.5}, "abc", folder)
    assert not loaded.model.training
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    tokens, side = music(model, 2, 20)
    assert torch.equal(loaded.model(tokens, side)[0], model(tokens, side)[0])


def test_the_folder_of_a_training_stands_for_its_best_checkpoint(tmp_path: Path) -> None:
    model = make("gru", dtype=torch.float32)
    best = save(tmp_path / "out" / "best", model)
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.path == best
    assert same_weights(model, loaded.model)


@pytest.mark.parametrize(
    ("weights", "tolerance", "factor"), [("fp32", 0.0, 1), ("bf16", 2**-8, 2), ("fp16", 2**-10, 2)]
)
def test_weights_in_every_precision(weights: str, tolerance: float, factor: int, tmp_path: Path) -> None:
    model = make("sequential", dtype=torch.float32, hidden_size=32)
    folder = save(tmp_path / "model", model, weights=weights)
    for tensor in safetensors.torch.load_file(folder / "model.safetensors").values():
        assert tensor.dtype == checkpoint.DTYPES[weights]
    assert (folder / "model.safetensors").stat().st_size == pytest.approx(
        4 * model.parameter_count() / factor, rel=0.1
    )
    for a, b in zip(load_checkpoint(folder).model.parameters(), model.parameters(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=tolerance, atol=1e-7)


def test_the_same_model_makes_the_same_bytes(tmp_path: Path) -> None:
    model = make("parallel")
    one, other = save(tmp_path / "one", model), save(tmp_path / "other", model)
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model = make("lstm-tied", dtype=torch.float32)
    loaded = load_checkpoint(save(tmp_path / "model", model)).model
    assert loaded.head.weight is None
    with torch.no_grad():
        loaded.input.weight.zero_()
        logits, _ = loaded(torch.tensor([[1]]))
    assert torch.equal(logits[0, 0], loaded.head.bias)


def test_a_tokenizer_given_as_text_is_stored_as_it_is(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", make("gru"), tokenizer_json='{"b":1,  "a":2}')
    assert (folder / "tokenizer.json").read_text() == '{"b":1,  "a":2}'
    assert load_checkpoint(folder).tokenizer_json == {"b": 1, "a": 2}


def test_more_files_become_part_of_it_and_are_replaced_with_it(tmp_path: Path) -> None:
    def more(folder: Path) -> None:
        (folder / "optimiser.bin").write_bytes(b"123")

    folder = save(tmp_path / "model", make("gru"), write_more=more)
    assert (load_checkpoint(folder).path / "optimiser.bin").read_bytes() == b"123"
    save(folder, make("lstm"))
    assert "optimiser.bin" not in names(folder)


# -- replacing

SWAPS: list[Callable[[Path, Path], bool]] = [folders._exchange, lambda first, second: False]


@pytest.mark.parametrize("platform", [sys.platform, "darwin", "win32"])
def test_an_earlier_checkpoint_is_replaced(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    save(tmp_path / "model", make("gru"))
    new = make("lstm", dtype=torch.float32)
    save(tmp_path / "model", new)
    assert same_weights(load_checkpoint(tmp_path / "model").model, new)
    assert names(tmp_path) == {"model"}


@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged on Linux only")
def test_linux_exchanges_names_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert folders._exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == {"b"}
    assert not folders._exchange(tmp_path / "a", tmp_path / "nothing")


class Died(BaseException):
    """Stands for SIGKILL: from here on nothing that the process does reaches the disk."""


def die_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call that changes the disk, from the given one on, raise instead, those of the clean-up too."""
    left = [step]

    def count(owner: object, name: str) -> None:
        function = getattr(owner, name)

        def counted(*args: object, **keywords: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Died
            return function(*args, **keywords)

        monkeypatch.setattr(owner, name, counted)

    count(os, "fsync")
    for name in ("rename", "write_bytes", "write_text", "mkdir"):
        count(Path, name)
    count(shutil, "rmtree")
    count(folders, "_exchange")


def test_what_the_dead_left_is_cleared_away_and_the_living_are_left_alone(tmp_path: Path) -> None:
    """Half-written folders carry the numbers of the processes that write them."""
    with (
        subprocess.Popen([sys.executable, "-c", ""]) as dead,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living,
    ):
        dead.wait()
        left = {process: tmp_path / f".model.new-{process.pid}" for process in (dead, living)}
        for folder in left.values():
            (folder / "deep").mkdir(parents=True)
        with folders.replace_folder(tmp_path / "model") as new:
            (new / "file").touch()
        assert names(tmp_path) == {"model", left[living].name}
        assert living.stdin is not None
        living.stdin.close()


@pytest.mark.parametrize("exchange", SWAPS, ids=["exchange", "two renames"])
def test_death_at_any_step_leaves_the_old_or_the_new(
    exchange: Callable[[Path, Path], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_exchange", exchange)
    monkeypatch.setattr(folders, "_alive", lambda process: False)
    old, new = make("gru", dtype=torch.float32), make("lstm", dtype=torch.float32)
    save(tmp_path / "old", old)
    kinds = []
    for step in range(100):
        folder = tmp_path / str(step) / "model"
        shutil.copytree(tmp_path / "old", folder)
        with monkeypatch.context() as patch:
            die_at(step, patch)
            try:
                save(folder, new)
                died = False
            except Died:
                died = True
        loaded = load_checkpoint(folder)
        kinds.append(loaded.config.kind)
        assert same_weights(loaded.model, old if loaded.config.kind == "gru" else new)
        save(folder, new)  # and the next writer clears away what was left
        assert same_weights(load_checkpoint(folder).model, new)
        assert names(folder.parent) == {"model"}
        if not died:
            break
    assert step > 10
    assert kinds == sorted(kinds), "first the old one, from some step on the new one"
    assert (kinds[0], kinds[-1]) == ("gru", "lstm")


@pytest.mark.parametrize("limit", [200, 5000])
def test_a_full_disk_leaves_the_earlier_checkpoint(limit: int, tmp_path: Path) -> None:
    old = make("gru", dtype=torch.float32)
    folder = save(tmp_path / "model", old)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*is unchanged") as caught:
            save(folder, make("lstm", dtype=torch.float32, hidden_size=40))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert isinstance(caught.value.__cause__, OSError)
    assert same_weights(load_checkpoint(folder).model, old)
    assert names(tmp_path) == {"model"}


def test_no_space_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="No space left on device; free some space"):
        save(tmp_path / "model", make("gru"))
    assert names(tmp_path) == set()


def test_an_error_of_the_caller_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise KeyboardInterrupt

    old = make("gru", dtype=torch.float32)
    folder = save(tmp_path / "model", old)
    with pytest.raises(KeyboardInterrupt):
        save(folder, make("lstm"), write_more=fail)
    assert same_weights(load_checkpoint(folder).model, old)
    assert names(tmp_path) == {"model"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_says_so(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save(tmp_path / "closed" / "model", make("gru"))


def test_other_peoples_folders_are_not_replaced(tmp_path: Path) -> None:
    model = make("gru")
    music_folder = tmp_path / "music"
    music_folder.mkdir()
    save(music_folder, model)  # empty: welcome
    for left in ("config.json.part", ".DS_Store"):  # by a kill, by a file manager
        (music_folder / left).write_bytes(b"")
    save(music_folder, model)
    for own in (".git", "song.part"):
        (music_folder / own).write_bytes(b"")
        with pytest.raises(CheckpointError, match=rf"holds other files besides its checkpoint \({own}\)"):
            save(music_folder, model)
        (music_folder / own).unlink()
    (music_folder / "song.mid").write_bytes(b"MThd")
    with pytest.raises(CheckpointError, match=r"holds other files besides its checkpoint \(song.mid\)"):
        save(music_folder, model)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="something other than a checkpoint"):
        save(other, model)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        save(tmp_path / "file", model)
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        save(tmp_path / "file" / "model", model)
    assert (music_folder / "song.mid").exists()


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    model = make("gru", dtype=torch.float32)
    with pytest.raises(CheckpointError, match=r"the vocabulary has 23 tokens and the model 9"):
        save(tmp_path / "model", make("gru", vocab_size=9))
    with pytest.raises(CheckpointError, match=r"`weights` can be stored as fp32, bf16, fp16 .*int8"):
        save(tmp_path / "model", model, weights="int8")
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        save(tmp_path / "model", model, training={"nll": float("nan")})
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        save(tmp_path / "model", model, training={"path": Path()})
    with torch.no_grad():
        model.head.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"head.bias has weights too large for fp16"):
        save(tmp_path / "model", model, weights="fp16")
    assert names(tmp_path) == set()


def test_a_checkpoint_that_is_replaced_while_it_is_read_loads_as_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "model", make("gru"))
    new, read = make("lstm", dtype=torch.float32), stored._read_bytes

    def replace_first(path: Path) -> bytes:
        if path.name == "model.safetensors":
            monkeypatch.setattr(stored, "_read_bytes", read)
            save(folder, new)
        return read(path)

    monkeypatch.setattr(stored, "_read_bytes", replace_first)
    assert same_weights(load_checkpoint(folder).model, new)


# -- reading what is not as it should be


def edit(folder: Path, name: str, change: Callable[[dict], None]) -> None:
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    for other in (tmp_path, tmp_path / "file"):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            load_checkpoint(other)
    assert not is_checkpoint(tmp_path)


def test_a_training_without_a_checkpoint_yet_is_called_unfinished(tmp_path: Path) -> None:
    from melodia.model.stored import RESUME, STATE

    (tmp_path / RESUME).mkdir()
    (tmp_path / RESUME / STATE).write_bytes(b"")
    for folder in (tmp_path, tmp_path / "best"):
        with pytest.raises(CheckpointError, match=r"unfinished training.*melodia train --resume"):
            load_checkpoint(folder)
    save(tmp_path / "best", make("gru"))
    load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocabulary.json", "tokenizer.json"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", make("gru"))
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{name} is missing")):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocabulary.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["empty", "half", "noise", "pickle", "list", "deep", "folder"])
def test_a_damaged_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", make("gru"))
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "half": data[: len(data) // 2],
                "noise": bytes(range(256)) * 8,
                "pickle": pickle.dumps({"a": 1}),
                "list": b"[1, 2]",
                "deep": b"[" * 100_000,
            }[damage]
        )
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_checkpoint(folder)


def test_a_flipped_bit_in_the_weights_is_seen(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", make("gru"))
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged .*: its checksum differs"):
        load_checkpoint(folder)


def test_files_of_two_checkpoints_are_not_mixed(tmp_path: Path) -> None:
    one = save(tmp_path / "one", make("gru"))
    other = save(
        tmp_path / "other",
        make("gru", vocab_size=24),
        vocabulary=Vocabulary("REMI", (*TOKENS, "X_1"), {}, 12),
    )
    (other / "vocabulary.json").write_bytes((one / "vocabulary.json").read_bytes())
    with pytest.raises(CheckpointError, match="its files come from different checkpoints"):
        load_checkpoint(other)


def test_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", make("gru"))
    edit(folder, "config.json", lambda config: config.update(format_version=2, model={"heads": 4}))
    with pytest.raises(CheckpointError, match=r"has format version 2, .* reads up to 1; update melodia"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("format"), "does not belong to a melodia checkpoint"),
        (lambda config: config.update(format_version="1"), "format_version '1'"),
        (lambda config: config.pop("model"), "is damaged"),
        (lambda config: config.update(model=[1]), "is damaged|does not describe a model"),
        (lambda config: config.update(training=3), "is damaged"),
        (lambda config: config["weights"].pop("crc32"), "is damaged"),
        (
            lambda config: config["model"].update(heads=2),
            "does not describe a model: unknown model settings: heads",
        ),
        (
            lambda config: config["model"].update(hidden_size=7),
            r"does not fit .*: stack.levels.0.layer.weight_ih",
        ),
        (
            lambda config: config["model"].update(gru_layers=1),
            r"stack\.levels\.1\.layer\.\w+ should be nothing",
        ),
        (
            lambda config: config["model"].update(gru_layers=3),
            r"stack\.levels\.2\.layer\.weight_ih should be .* is nothing",
        ),
        (lambda config: config["model"].update(hidden_size=16384, gru_layers=64), "does not fit"),
    ],
)
def test_settings_that_do_not_fit(change: Callable[[dict], None], message: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", make("gru"))
    edit(folder, "config.json", change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", make("gru"))
    path = folder / "model.safetensors"
    tensors = {name: tensor.int() for name, tensor in safetensors.torch.load_file(path).items()}
    path.write_bytes(safetensors.torch.save(tensors))
    data = path.read_bytes()
    edit(
        folder,
        "config.json",
        lambda config: config["weights"].update(bytes=len(data), crc32=checkpoint.zlib.crc32(data)),
    )
    with pytest.raises(CheckpointError, match="weights as I32"):
        load_checkpoint(folder)
