"""The errors that melodia raises on purpose.

Every message says what is wrong, the limit, what was received and the remedy, in a sentence or two;
the command line prints it on standard error and exits with 1, without a traceback.
"""

from __future__ import annotations

import os
import re


class MelodiaError(Exception):
    """Base of all errors that melodia raises on purpose."""


class MidiError(MelodiaError):
    """A MIDI file cannot be read or written."""


class TokenizerError(MelodiaError):
    """A tokenizer cannot be built or loaded, or ids do not belong to it."""


class GrammarError(MelodiaError):
    """A token is not allowed where it stands, or the constraints leave nothing to say."""


class ConfigError(MelodiaError, ValueError):
    """A configuration contradicts itself or lies outside its limits."""


class CheckpointError(MelodiaError):
    """A checkpoint folder cannot be read or written."""


class CorpusError(MelodiaError):
    """A folder of MIDI files cannot be turned into a corpus, or a corpus cannot be opened."""


class TrainingError(MelodiaError):
    """Training cannot start or go on."""


class BackendError(MelodiaError, RuntimeError):
    """The backend that was asked for is not there; the message carries the reason."""


class NoTorchError(BackendError, ImportError):
    """What was asked for needs torch, which cannot be imported: whoever expects an ImportError there gets one.

    It is no AttributeError: `hasattr` and `getattr` with a default raise it, rather than to say that there is no such
    name.
    """


_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|bad_alloc|aten::(new_)?empty\b.*API call failed",
    re.S,
)  # the last: of an operator under torch's stable ABI, which loses the reason


def out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory: Python, numpy, torch's allocators and C++ each have an error of their own for it.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("std::bad_alloc")), out_of_memory(OSError(2, "no"))
    (True, True, False)
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )


def need_torch(what: str, says: str = "{what} needs torch, which cannot be imported") -> None:
    """Import torch, which generating in the engine does without.

    Args:
        what: needs it, for the message.
        says: the message's beginning; the reason and the remedy come behind it.

    Raises:
        BackendError: it cannot be imported; an ImportError, too.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise NoTorchError(f"{says.format(what=what)} ({error}); install it") from error


def show_path(path: object) -> str:
    r"""A path as it can stand in a message of one line.

    >>> show_path("song.mid"), show_path("two\nlines.mid")
    ('song.mid', "'two\\nlines.mid'")
    """
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
    return text if text and text.isprintable() else ascii(text)
