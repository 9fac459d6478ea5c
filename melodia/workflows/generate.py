"""Continue a MIDI file into new files: MIDI, and on request a picture and sound."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from melodia.errors import CheckpointError, ConfigError, MelodiaError, show_path
from melodia.evaluation.collapse import collapse_report
from melodia.sampler import Continuation, PrimeReport, Sampler
from melodia.sampler.request import check_samples
from melodia.workflows.outputs import (
    Listener,
    Piece,
    check_writable,
    folder_for,
    music_file,
    output_paths,
    write_pieces,
)

COPY_TRIES = 8
NO_INDEX = (
    "an index of the training music, but this model has none; build it with "
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
        first_bar: of the new music in the files, counted from 1.
    """

    seed: PrimeReport | None
    continuations: list[Continuation]
    paths: list[Path]
    notes: list[str] = field(default_factory=list)
    first_bar: int = 1

    def lines(self) -> list[str]:
        """The report as lines of text."""
        lines = [] if self.seed is None else self.seed.lines()
        lines += timings(self.continuations)
        for continuation in self.continuations:
            lines += [*continuation.report.lines(timing=False), *doubts(continuation, self.first_bar)]
        return [*lines, *self.notes, *(f"wrote {show_path(path)}" for path in self.paths)]


def timings(continuations: Sequence[Continuation]) -> list[str]:
    """How long it took: a line for all that were made at once."""
    return list(dict.fromkeys(continuation.report.timing for continuation in continuations))


def doubts(continuation: Continuation, first_bar: int) -> list[str]:
    """What new music shares with the training music, and whether it may be stuck, as lines of text.

    What the seed does just as much is no reason for doubt.

    Args:
        continuation: the new music.
        first_bar: the number of its first bar in the file.
    """
    found = continuation.originality
    signs = collapse_report(continuation.score).signs
    if signs and continuation.seed is not None:
        before = collapse_report(continuation.seed)
        signs = tuple(sign for sign in signs if not before.matches(sign))
    stuck = (f"may be stuck: {sign.words(first_bar)}" for sign in signs)
    return [*([] if found is None else found.lines()), *stuck]


def generate_files(
    seed: str | os.PathLike[str] | None,
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
    num_samples = check_samples(num_samples)
    seed = None if seed is None else music_file("seed", seed)
    paths = output_paths(out, f"{seed.stem}-continued.mid" if seed else "melodia.mid", num_samples)
    with folder_for(out):
        check_writable(paths, seed, plot=plot, audio=audio, force=force)
        sampler = Sampler.load(model, device=device, backend=backend, weights=weights)
        notes = originality_notes(sampler, max_copy)
        if progress is not None:
            settings["progress"] = partial(progress, "making music")
        report, first_bar = None, 1
        if seed is not None:
            reading = None if progress is None else partial(progress, "reading the seed")
            report = sampler.prime(seed, seed_bars, seed_seconds, progress=reading)
            if not continuation_only:
                first_bar = report.bars + (not report.completes)
        if max_copy is None:
            continuations = sampler.generate_many(num_samples, **settings)
        else:
            continuations = generate_original(sampler, num_samples, max_copy, **settings)
        joined = seed is not None and not continuation_only
        title = f"{seed.stem}, continued" if seed is not None else "from nothing"
        pieces = [
            Piece(made.joined_score, title, (made.joined_at, None)) if joined else Piece(made.score, title)
            for made in continuations
        ]
        written, sound = write_pieces(paths, pieces, plot=plot, audio=audio, force=force)
    return GeneratedFiles(report, continuations, written, notes + sound, first_bar)


def originality_notes(sampler: Sampler, max_copy: float | None) -> list[str]:
    """A remark where nothing can be said of what new music shares with the training music.

    Raises:
        CheckpointError: and there is a limit on it.
    """
    if sampler.originality_index is not None:
        return []
    if max_copy is not None:
        raise CheckpointError(f"a limit on copying needs {NO_INDEX}")
    return [f"originality not checked: it needs {NO_INDEX}"]


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
        f"(the least: {least.lasting}); raise `max_copy`, or try a higher temperature or another seed"
    )
