"""The corpus of a folder: opened where it is built already, else built in the cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melodia.corpus.build import build_corpus
from melodia.corpus.shards import TOTALS, Corpus
from melodia.errors import ConfigError, show_path
from melodia.files import short_name
from melodia.tokenizer import Tokenizer, TokenizerConfig

if TYPE_CHECKING:
    from melodia.training import World
    from melodia.workflows.train import Reporter


def default_cache() -> Path:
    """Where token shards are kept: melodia's part of the user's cache folder.

    Raises:
        ConfigError: the user has none.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(root) if root else Path.home() / ".cache"
    except RuntimeError:
        raise ConfigError("there is no home folder; set XDG_CACHE_HOME, or give `cache`") from None
    return home / "melodia" / "corpora"


def corpus_folder(
    folder: Path,
    tokens: TokenizerConfig | Tokenizer,
    transpositions: Sequence[int] = (),
    cache: Path | None = None,
) -> Path:
    """The cache folder of a folder of MIDI files read in one way."""
    config = tokens.config if isinstance(tokens, Tokenizer) else tokens
    key: list[Any] = [str(folder.resolve()), config.to_dict()]
    if transpositions:
        key.append(list(transpositions))
    if isinstance(tokens, Tokenizer) and config.bpe_vocab_size is not None:
        key.append(tokens.vocabulary.fingerprint)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return (cache or default_cache()) / f"{short_name(folder.resolve().name)}-{name}"


def check_apart(folder: Path, out: Path) -> None:
    """Refuse to train into the folder of the music: what the model makes would be music to learn from.

    Raises:
        ConfigError: they are the same.
    """
    if out.resolve() == folder.resolve():
        raise ConfigError(
            f"`out` {show_path(out)} is the corpus itself; the samples would become training music; choose another "
            "folder (it may lie inside the corpus)"
        )


def is_built(folder: Path) -> bool:
    """Whether the folder is a corpus that `build_corpus` wrote."""
    return (folder / TOTALS).is_file()


def open_corpus(
    folder: Path,
    tokens: TokenizerConfig | Tokenizer | None = None,
    *,
    transpositions: Sequence[int] = (),
    workers: int | None = None,
    cache: Path | None = None,
    reporter: Reporter | None = None,
    world: World | None = None,
) -> Corpus:
    """The corpus of a folder: a built one is opened, MIDI files are read (once: the shards are cached).

    Args:
        folder: MIDI files, or a folder that `build_corpus` wrote, whose tokens are made already.
        tokens: how to write music; byte pairs are learned from the files, or those of a tokenizer taken as they are.
            None: `TokenizerConfig()`.
        transpositions: for BPE, whose tokens cannot be transposed while training: copies to store.
        workers: processes that read; None: one a processor.
        cache: where shards are kept; None: `default_cache()`.
        reporter: is told what happens (`melodia.workflows.train.Reporter`).
        world: the processes that train together; the first one builds, the others wait.

    Raises:
        CorpusError: the folder has nothing to train on.
        ConfigError: there is no room for byte pairs.
    """
    if is_built(folder):
        return Corpus.open(folder)
    tokens = tokens or TokenizerConfig()
    trained = tokens if isinstance(tokens, Tokenizer) else None
    config = tokens.config if isinstance(tokens, Tokenizer) else tokens
    if config.bpe_vocab_size is None:
        transpositions = ()
    target = corpus_folder(folder, tokens, transpositions, cache)
    if world is None or world.leads:
        summary = build_corpus(
            folder,
            target,
            config,
            tokenizer=trained,
            workers=workers,
            transpositions=transpositions,
            progress=None if reporter is None else reporter.read,
        )
        if reporter is not None:
            for line in summary.lines():
                reporter.say(line)
    if world is not None:
        world.barrier()
    return Corpus.open(target)
