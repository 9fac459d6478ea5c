"""The files that generating and filling write: MIDI, and on request a picture and sound."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from melodia.checks import file_path
from melodia.errors import ConfigError, MelodiaError, MidiError, show_path
from melodia.files import refuse_folder, refuse_taken
from melodia.midi import write_midi

if TYPE_CHECKING:
    import pretty_midi
    from symusic.core import ScoreTick

Listener = Callable[[str, int, int, str], None]
"""Is called with what is being done, how much is done of how much, and of what ("bars", "tokens")."""


@dataclass(frozen=True)
class Piece:
    """What is written of a piece.

    Attributes:
        score: its notes.
        title: of the picture.
        new: where new notes begin and end in it, in seconds, or go on to its end (None); None where all are new.
        programs: whose notes there are new, -1 for the drums; None: all.
    """

    score: ScoreTick
    title: str
    new: tuple[float, float | None] | None = None
    programs: tuple[int, ...] | None = None


def music_file(name: str, value: object) -> Path:
    """The path of a MIDI file that is there: without it, nothing need be said of what would be written.

    Raises:
        ConfigError: it is no path.
        MidiError: nothing is there.
    """
    from melodia.midi.reading import missing

    path = file_path(name, value)
    if not path.exists():
        raise missing(show_path(path))
    return path


def names_folder(out: str | os.PathLike[str]) -> bool:
    """Whether a name can only be a folder's: it ends in a slash, or there is such a folder.

    >>> names_folder("new/"), names_folder("new"), names_folder(".")
    (True, False, True)
    """
    return os.fspath(out).endswith(("/", os.sep)) or Path(out).is_dir()


def output_paths(out: str | os.PathLike[str] | None, name: str, num_samples: int) -> list[Path]:
    """The MIDI file of each sample, numbered from 1 when there are several: `out`, or in it one of that name.

    >>> [str(path) for path in output_paths("new.mid", "melodia.mid", 2)]
    ['new-1.mid', 'new-2.mid']
    >>> output_paths("new/", "a-continued.mid", 1)[0].as_posix()
    'new/a-continued.mid'

    Raises:
        ConfigError: `out` is empty.
    """
    base = Path(name)
    if out is not None:
        if not os.fspath(out):
            raise ConfigError("`out` is empty; give the name of a file or a folder, or leave it out")
        base = Path(out) / base if names_folder(out) else Path(out)
    if base.suffix.lower() not in (".mid", ".midi"):
        base = base.with_name(base.name + ".mid")
    if num_samples == 1:
        return [base]
    return [base.with_name(f"{base.stem}-{k + 1}{base.suffix}") for k in range(num_samples)]


@contextmanager
def folder_for(out: str | os.PathLike[str] | None) -> Iterator[None]:
    """Make the folder that a name with a slash at its end asks for; if nothing comes of it, it goes again.

    Raises:
        MidiError: it cannot be made.
    """
    folder = Path(out) if out is not None and names_folder(out) else Path()
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise MidiError(f"{show_path(folder)}: cannot be created ({reason}); choose another `out`") from error
    try:
        yield
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


def check_writable(paths: Sequence[Path], seed: Path | None, *, plot: bool, audio: bool, force: bool) -> None:
    """Refuse before the work what could not be written after it: MIDI files, and what stands beside them.

    Raises:
        MidiError: a file is the seed itself, is there already (without `force`), or its folder is not there.
    """
    beside = [".png"] * plot + [".wav"] * audio
    for path in (*paths, *(path.with_suffix(suffix) for path in paths for suffix in beside)):
        name = show_path(path)
        refuse_folder(path, MidiError)
        if seed is not None and path.exists() and seed.samefile(path):
            raise MidiError(f"{name}: is the input file, which is never overwritten; choose another `out`")
        refuse_taken(path, MidiError, force=force, other="`out`")
        if not path.parent.is_dir():
            raise MidiError(f"{name}: there is no folder {show_path(path.parent)}; create it first")


def write_pieces(
    paths: Sequence[Path], pieces: Sequence[Piece], *, plot: bool, audio: bool, force: bool
) -> tuple[list[Path], list[str]]:
    """Write pieces: the files, and what made the sound.

    Raises:
        MelodiaError: one cannot be written; the message names the files that were written before.
    """
    from melodia.midi import to_pretty_midi

    written: list[Path] = []
    notes: list[str] = []
    try:
        for path, piece in zip(paths, pieces, strict=True):
            written.append(write_midi(piece.score, path, force=force))
            if not (plot or audio):
                continue
            midi = to_pretty_midi(piece.score)
            if plot:
                written.append(_plot(midi, path.with_suffix(".png"), piece, force))
            if audio:
                note, file = _sound(midi, path.with_suffix(".wav"), force)
                written.append(file)
                if note not in notes:
                    notes.append(note)
    except MelodiaError as error:
        if not written:
            raise
        raise type(error)(f"{error}; already written: {', '.join(map(show_path, written))}") from error
    return written, notes


def _plot(midi: pretty_midi.PrettyMIDI, path: Path, piece: Piece, force: bool) -> Path:
    from melodia.render import plot_pianoroll

    begin, end = piece.new or (None, None)
    plot_pianoroll(
        midi,
        path,
        split_at=begin,
        split_end=end,
        new_programs=piece.programs,
        title=piece.title,
        force=force,
    )
    return path


def _sound(midi: pretty_midi.PrettyMIDI, path: Path, force: bool) -> tuple[str, Path]:
    from melodia.render import render_audio

    report = render_audio(midi, path, force=force)
    return report.line(), path
