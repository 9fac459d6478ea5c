"""Options that choose what is settled already: by a corpus, a checkpoint, or a training that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from melodia.corpus.shards import TOKENIZER, Corpus
from melodia.errors import ConfigError, TrainingError, show_path
from melodia.model.config import SIZES, ModelConfig
from melodia.tokenizer import Tokenizer, TokenizerConfig
from melodia.workflows.begun import Begun
from melodia.workflows.corpora import is_built


def refuse_others(asked: Mapping[str, Any], settled: Mapping[str, Any], owner: str, remedy: str) -> None:
    """Refuse what was asked for if it cannot be had.

    Args:
        asked: arguments by name; None for those that were not given.
        settled: what they are.
        owner: what settles them.
        remedy: where others can be had.

    Raises:
        ConfigError: an option asks for something else than there is.
    """
    for name, value in asked.items():
        if value is not None and value != settled[name]:
            raise ConfigError(
                f"`{name}` of {owner} is {_shown(settled[name])} and cannot change (received {_shown(value)}); "
                f"leave `{name}` out, or {remedy}"
            )


def _shown(value: Any) -> str:
    return (",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)) or "none"


def model_options(config: ModelConfig) -> dict[str, Any]:
    """The options that make a model of this form."""
    sizes = {units: name for name, units in SIZES.items()}
    return {
        "kind": config.kind,
        "size": sizes.get(config.hidden_size, f"{config.hidden_size} hidden units"),
        "combine": config.combine,
        "encoder": config.encoder,
        "side_inputs": tuple(spec.name for spec in config.side_inputs),
        "dropout": config.dropout,
    }


def check_model(asked: Mapping[str, Any], before: Begun) -> None:
    """Refuse options of a model, and of what it begins with, that are not those of the one that is there.

    Raises:
        ConfigError: names the first.
    """
    refuse_others(asked, {**model_options(before.model), "init": before.init}, before.owner, before.remedy)


def choose_tokens(
    folder: Path, asked: Mapping[str, Any], before: Begun | None
) -> TokenizerConfig | Tokenizer | None:
    """How the music of a folder is to be written: what `open_corpus` takes.

    Args:
        folder: MIDI files, or a built corpus, whose tokens are made already.
        asked: the arguments "scheme" and "bpe"; None for those that were not given.
        before: the checkpoint or the training that goes on, if there is one.

    Raises:
        ConfigError: an option asks for something else than there is.
        TrainingError: the corpus has other tokens than the model.
        TokenizerError: the corpus does not say what its tokens are.
    """
    settled = None if before is None else before.tokens
    if is_built(folder):
        vocabulary = Corpus.open(folder).vocabulary
        there: dict[str, Any] = {"scheme": vocabulary.scheme}
        if asked["bpe"] is not None:
            there["bpe"] = Tokenizer.load(folder / TOKENIZER).config.bpe_vocab_size
        refuse_others(asked, there, f"the built corpus {show_path(folder)}", "give a folder of MIDI files")
        if isinstance(settled, Tokenizer) and settled.vocabulary.fingerprint != vocabulary.fingerprint:
            raise TrainingError(
                f"the built corpus {show_path(folder)} has other tokens ({vocabulary.scheme}, {vocabulary.size}) "
                f"than the model ({settled.vocabulary.scheme}, {settled.vocabulary.size}); give the folder of MIDI "
                "files, which will be encoded with the model's tokenizer"
            )
        return None
    if before is None or settled is None:
        return TokenizerConfig(scheme=asked["scheme"] or "REMI", bpe_vocab_size=asked["bpe"])
    config = settled.config if isinstance(settled, Tokenizer) else settled
    refuse_others(
        asked,
        {"scheme": config.scheme, "bpe": config.bpe_vocab_size},
        before.owner,
        before.remedy,
    )
    return settled
