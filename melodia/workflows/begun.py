"""What a training was begun with, kept beside its state, so that whoever goes on with it need not say it again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melodia.errors import MelodiaError, TrainingError, show_path
from melodia.files import write_whole
from melodia.model.config import ModelConfig
from melodia.model.stored import NOTICES, TOKENIZER, read_checkpoint
from melodia.originality import FILE as INDEX
from melodia.originality import Index
from melodia.tokenizer import Tokenizer, TokenizerConfig
from melodia.training import World
from melodia.training.folder import RESUME

FILE = "begun.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Begun:
    """What the folder of a training holds in `resume/begun.json`.

    Attributes:
        model: its form.
        training: fields of `TrainingConfig`.
        tokens: how the music was to be written; None where the corpus was built already.
        init: the checkpoint that is fine-tuned, if one is. Its originality index and its notices lie in `resume`, too:
            the checkpoint may be replaced before they are needed.
        owner, remedy: for errors: what has all this, and where something else can be had; not in the file.
    """

    model: ModelConfig
    training: dict[str, Any]
    tokens: TokenizerConfig | Tokenizer | None
    init: str | None
    owner: str = ""
    remedy: str = ""

    @classmethod
    def from_checkpoint(cls, init: str) -> Begun:
        """What fine-tuning a checkpoint begins with.

        Raises:
            CheckpointError, TokenizerError: it cannot be read.
        """
        stored = read_checkpoint(init)
        tokenizer = Tokenizer.from_dict(stored.tokenizer_json, stored.path / TOKENIZER)
        return cls(
            stored.config, {}, tokenizer, init, f"the checkpoint {show_path(init)}", "retrain without `init`"
        )

    def write(self, out: Path) -> None:
        """Keep it in the folder of a training, with the index and the notices of the checkpoint that is fine-tuned.

        Raises:
            TrainingError, CheckpointError: the folder cannot be written, or the index is damaged.
        """
        folder = out / RESUME
        base = None if self.init is None else read_checkpoint(self.init).path
        index = None if base is None else Index.open(base)
        data = {
            "format_version": FORMAT_VERSION,
            "model": self.model.to_dict(),
            "training": {name: value for name, value in self.training.items() if name != "device"},
            "tokenizer_config": self.tokens.to_dict() if isinstance(self.tokens, TokenizerConfig) else None,
            "tokenizer": self.tokens.to_dict() if isinstance(self.tokens, Tokenizer) else None,
            "init": self.init,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (INDEX, NOTICES):
                (folder / name).unlink(missing_ok=True)
            if index is not None:
                index.save(folder)
            if base is not None and (base / NOTICES).is_file():
                write_whole(folder / NOTICES, (base / NOTICES).read_bytes(), own=True)
            write_whole(folder / FILE, json.dumps(data), own=True)
        except OSError as error:
            raise TrainingError(
                f"cannot write {show_path(folder / FILE)}: {error.strerror or error}; free some space or choose "
                "another folder"
            ) from error

    @classmethod
    def read(cls, out: Path, world: World) -> Begun | None:
        """What a training in this folder was begun with; None where it does not say. One process looks, all know.

        Raises:
            TrainingError: the file is damaged.
        """
        path = out / RESUME / FILE
        data = world.share_bytes(path.read_bytes() if world.leads and path.exists() else None)
        if data is None:
            return None
        try:
            values = json.loads(data)
            if values["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {values['format_version']!r}")
            tokens: TokenizerConfig | Tokenizer | None = None
            if values["tokenizer"] is not None:
                tokens = Tokenizer.from_dict(values["tokenizer"])
            elif values["tokenizer_config"] is not None:
                tokens = TokenizerConfig.from_dict(values["tokenizer_config"])
            return cls(
                ModelConfig.from_dict(values["model"]),
                dict(values["training"]),
                tokens,
                values["init"],
                f"the training in {show_path(out)}",
                "start over with `force`",
            )
        except (MelodiaError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{show_path(path)} is damaged ({error!r}); start over with `force`"
            ) from error
