"""Continue a MIDI file into new files: MIDI, and on request a picture and sound."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melodia.errors import CheckpointError, ConfigError, MelodiaError, MidiError, show_path
from melodia.evaluation.collapse import collapse_report
from melodia.files import taken
from melodia.midi import write_midi
from melodia.sampler import Continuation, PrimeReport, Sampler

if TYPE_CHECKING:
    import pretty_midi

Listener = Callable[[str, int, int, str], None]
"""Is called with what is being done, how much is done of how much, and of what ("bars", "tokens")."""

COPY_TRIES = 8
NO_INDEX = (
    "an index of the training music, and this model has none; build it with "
    "`melodia originality --model DIR --index FOLDER`"
)


@dataclass(frozen=True)
class GeneratedFiles:
    """What `generate_files` wrote.

    Attributes:
        seed: what was read of the seed; None without one.
        continuations: the new music, one a sample.
        paths: every file written, in the order written.
        notes: remarks, such as which synthesiser made the sound.
    """

    seed: PrimeReport | None
    continuations: list[Continuation]
    paths: list[Path]
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        lines = [] if self.seed is None else self.seed.lines()
        for continuation in self.continuations:
            lines.extend(continuation.report.lines())
            if continuation.originality is not None:
                lines.extend(continuation.originality.lines())
            lines.extend(
                f"may be stuck: {finding}" for finding in collapse_report(continuation.score).findings
            )
        return [*lines, *self.notes, *(f"wrote {show_path(path)}" for path in self.paths)]


def names_folder(out: str | os.PathLike[str]) -> bool:
    """Whether a name can only be a folder's: it ends in a slash, or there is such a folder.

    >>> names_folder("new/"), names_folder("new"), names_folder(".")
    (True, False, True)
    """
    return os.fspath(out).endswith(("/", os.sep)) or Path(out).is_dir()


def output_paths(out: str | os.PathLike[str] | None, seed: Path | None, num_samples: int) -> list[Path]:
    """The MIDI file of each sample, numbered from 1 when there are several: `out`, or named after the seed in it.

    >>> [str(path) for path in output_paths("new.mid", None, 2)]
    ['new-1.mid', 'new-2.mid']
    >>> output_paths("new/", Path("songs/a.mid"), 1)[0].as_posix()
    'new/a-continued.mid'

    Raises:
        ConfigError: `out` is empty.
    """
    base = Path(f"{seed.stem}-continued.mid" if seed else "melodia.mid")
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
        raise MidiError(f"{show_path(folder)}: cannot be made ({reason}); choose another `out`") from error
    try:
        yield
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


def check_writable(paths: list[Path], seed: Path | None = None, *, force: bool) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        MidiError: a file is the seed itself, is there already (without `force`), or its folder is not there.
    """
    for path in paths:
        name = show_path(path)
        if path.is_dir():
            raise MidiError(f"{name}: is a directory; give a file name")
        if seed is not None and seed.exists() and path.exists() and seed.samefile(path):
            raise MidiError(f"{name}: is the seed itself, which is not replaced; choose another `out`")
        if os.path.lexists(path) and not force:
            raise MidiError(taken(path, "`out`"))
        if not path.parent.is_dir():
            raise MidiError(f"{name}: there is no folder {show_path(path.parent)}; make it first")


def generate_files(
    seed: Path | None,
    out: str | os.PathLike[str] | None = None,
    *,
    model: Path | None = None,
    seed_bars: int | None = None,
    seed_seconds: float | None = None,
    num_samples: int = 1,
    continuation_only: bool = False,
    plot: bool = False,
    audio: bool = False,
    device: str = "auto",
    backend: str = "auto",
    weights: str = "fp32",
    force: bool = False,
    max_copy: float | None = None,
    progress: Listener | None = None,
    **settings: Any,
) -> GeneratedFiles:
    """Continue `seed` and write the result.

    Args:
        seed: a MIDI file, or None for music from nothing.
        out: the MIDI file to write, or a folder for one that is named after the seed; it is made where the name ends in
            a slash. None: the working folder. Several samples are numbered.
        model: a checkpoint folder; None: the model that comes with melodia.
        seed_bars, seed_seconds: use only the beginning of the seed.
        num_samples: how many continuations.
        continuation_only: leave the seed out of the files.
        plot: also write a piano roll, as PNG beside the MIDI file.
        audio: also write sound, as WAV beside the MIDI file.
        device, backend, weights: where and with what to compute; see `Sampler.load`.
        force: replace files.
        max_copy: refuse music that shares a passage of more bars with the training music; see `generate_original`.
        progress: is told how far it is.
        settings: of `Sampler.generate`: length, filters, random seed.

    Raises:
        MelodiaError: whatever cannot be read, generated or written; no file that was there is lost, and the message
            names the files that were written before.
    """
    paths = output_paths(out, seed, num_samples)
    suffixes = [".png"] * plot + [".wav"] * audio
    with folder_for(out):
        check_writable(
            [*paths, *(path.with_suffix(suffix) for path in paths for suffix in suffixes)],
            seed,
            force=force,
        )
        sampler = Sampler.load(model, device=device, backend=backend, weights=weights)
        if sampler.originality_index is None:
            if max_copy is not None:
                raise CheckpointError(f"a limit on copying needs {NO_INDEX}")
            notes = [f"originality not checked: it needs {NO_INDEX}"]
        else:
            notes = []
        if progress is not None:
            settings["progress"] = partial(progress, "making music")
        report = None
        if seed is not None:
            reading = None if progress is None else partial(progress, "reading the seed")
            report = sampler.prime(seed, seed_bars, seed_seconds, progress=reading)
        if max_copy is None:
            continuations = sampler.generate_many(num_samples, **settings)
        else:
            continuations = generate_original(sampler, num_samples, max_copy, **settings)
        joined = seed is not None and not continuation_only
        written, sound = _write(
            paths, continuations, seed, joined=joined, plot=plot, audio=audio, force=force
        )
    return GeneratedFiles(report, continuations, written, notes + sound)


def _write(
    paths: list[Path],
    continuations: list[Continuation],
    seed: Path | None,
    *,
    joined: bool,
    plot: bool,
    audio: bool,
    force: bool,
) -> tuple[list[Path], list[str]]:
    """Write each continuation, behind its seed if `joined`: the files, and what made the sound."""
    written: list[Path] = []
    notes: list[str] = []
    try:
        for path, continuation in zip(paths, continuations, strict=True):
            score = continuation.joined_score if joined else continuation.score
            written.append(write_midi(score, path, force=force))
            if not (plot or audio):
                continue
            midi = continuation.joined if joined else continuation.midi
            if plot:
                split_at = continuation.joined_at if joined else None
                written.append(_plot(midi, path.with_suffix(".png"), split_at, seed, force))
            if audio:
                note, file = _sound(midi, path.with_suffix(".wav"), force)
                written.append(file)
                if note not in notes:
                    notes.append(note)
    except MelodiaError as error:
        if not written:
            raise
        raise type(error)(f"{error}; written before: {', '.join(map(show_path, written))}") from error
    return written, notes


def generate_original(
    sampler: Sampler, num_samples: int, max_copy: float, **settings: Any
) -> list[Continuation]:
    """Continue the sampler's session with music that does not share too long a passage with the training music.

    What shares more is drawn again, as further streams (`session`) of the same random seed, up to 8 times.

    Args:
        sampler: of a checkpoint with an originality index.
        num_samples: how many continuations.
        max_copy: bars, at least 0; a passage may last so long.
        settings: of `Sampler.generate`.

    Raises:
        ConfigError: `max_copy` is below 0.
        MelodiaError: music that shares less was not found.
    """
    if not max_copy >= 0:
        raise ConfigError(f"`max_copy` must be at least 0 bars (received {max_copy})")
    first = settings.pop("session", 0)
    made: list[Continuation] = []
    refused: list[Continuation] = []
    for attempt in range(COPY_TRIES):
        missing = num_samples - len(made)
        session = first + len(made) + len(refused)
        for continuation in sampler.generate_many(missing, session=session, **settings):
            found = continuation.originality
            (made if found is None or found.bars <= max_copy else refused).append(continuation)
        if len(made) == num_samples:
            return made
        if not attempt:
            settings["random_seed"] = refused[
                0
            ].report.random_seed  # where none was given, the one that was drawn
    least = min(
        (found for c in refused if (found := c.originality) is not None), key=lambda found: found.bars
    )
    raise MelodiaError(
        f"{len(refused)} of {len(refused) + len(made)} tries share more than {max_copy:g} bars with the training music "
        f"(the least: {least.lasting}); allow more with `max_copy`, or take a higher temperature or another seed"
    )


def _plot(
    midi: pretty_midi.PrettyMIDI, path: Path, split_at: float | None, seed: Path | None, force: bool
) -> Path:
    from melodia.render import plot_pianoroll

    title = f"{seed.stem}, continued" if seed is not None else "from nothing"
    plot_pianoroll(midi, path, split_at=split_at, title=title, force=force)
    return path


def _sound(midi: pretty_midi.PrettyMIDI, path: Path, force: bool) -> tuple[str, Path]:
    from melodia.render import render_audio

    report = render_audio(midi, path, force=force)
    return report.line(), path
