"""Rewrite some bars of a MIDI file: new MIDI files, and on request a picture and sound."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from melodia.errors import show_path
from melodia.sampler import Filling, Sampler
from melodia.sampler.request import check_samples
from melodia.workflows.generate import doubts, originality_notes, timings
from melodia.workflows.outputs import (
    Listener,
    Piece,
    check_writable,
    folder_for,
    music_file,
    output_paths,
    write_pieces,
)


@dataclass(frozen=True)
class FilledFiles:
    """What `fill_files` wrote.

    Attributes:
        fillings: the piece with its new bars, one a sample.
        paths: every file written, in the order written.
        notes: remarks, such as which synthesiser made the sound.
    """

    fillings: list[Filling]
    paths: list[Path]
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        lines = timings([filling.continuation for filling in self.fillings])
        for filling in self.fillings:
            lines += [*filling.lines(timing=False), *doubts(filling.continuation, filling.bars[0])]
        return [*lines, *self.notes, *(f"wrote {show_path(path)}" for path in self.paths)]


def fill_files(
    music: str | os.PathLike[str],
    bars: tuple[int, int],
    out: str | os.PathLike[str] | None = None,
    *,
    model: Path | None = None,
    num_samples: int = 1,
    plot: bool = False,
    audio: bool = False,
    device: str = "auto",
    backend: str = "auto",
    weights: str = "fp32",
    force: bool = False,
    progress: Listener | None = None,
    **settings: Any,
) -> FilledFiles:
    """Make some bars of `music` anew and write the result.

    Args:
        music: a MIDI file.
        bars: the first and the last bar, counted from 1.
        out: as in `generate_files`.
        model: a checkpoint folder; None: the model that comes with melodia.
        num_samples: in how many ways.
        plot, audio, device, backend, weights, force: as in `generate_files`.
        progress: is told how far it is.
        settings: of `Sampler.fill`.

    Raises:
        MelodiaError: whatever cannot be read, generated or written; no file that was there is lost.
    """
    num_samples = check_samples(num_samples)
    music = music_file("music", music)
    paths = output_paths(out, f"{music.stem}-filled.mid", num_samples)
    with folder_for(out):
        check_writable(paths, music, plot=plot, audio=audio, force=force)
        sampler = Sampler.load(model, device=device, backend=backend, weights=weights)
        if progress is not None:
            settings["progress"] = partial(progress, "making music")
        fillings = sampler.fill(music, bars, num_samples=num_samples, **settings)
        title = f"{music.stem}, {fillings[0].where} rewritten"
        pieces = [Piece(filling.score, title, filling.span, filling.programs) for filling in fillings]
        written, sound = write_pieces(paths, pieces, plot=plot, audio=audio, force=force)
    return FilledFiles(fillings, written, originality_notes(sampler, None) + sound)
