"""What fine-tuning the model that comes with melodia is worth on a small folder: `python -m benchmarks.tuning FOLDER`.

    python -m benchmarks.tuning FOLDER --minutes 3 --out benchmarks/TUNING.md
    python -m benchmarks.tuning --frames nottingham.json.gz --pieces 40 --minutes 3 --out benchmarks/TUNING.md

FOLDER holds train/ and valid/. With --frames, MIDI files are made of a data set of frames (benchmarks/frames.py), two
to a beat; equal pitches that follow each other are tied. All ways get the same time, one after the other, and are
scored on the held-out pieces.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pretty_midi

from benchmarks.bundled_model import likelihood_of
from benchmarks.frames import Frame, load
from benchmarks.suite.machine import facts
from melodia.model.checkpoint import load_checkpoint
from melodia.sampler.loading import bundled_model
from melodia.training.config import TrainingConfig
from melodia.workflows.corpora import open_corpus
from melodia.workflows.train import train_folder

FRAME_S = 0.25  # half a beat at 120 beats a minute
VELOCITY = 80
HELD_OUT = 30
RATES = (6e-3, 2e-3, 6e-4)
WAYS: dict[str, dict[str, Any]] = {
    "from nothing": {},
    **{
        f"fine-tuned, learning rate {rate:g}, dropout {dropout:g}": {
            "init": "bundled",
            "dropout": dropout,
            "training": {"learning_rate": rate},
        }
        for rate in RATES
        for dropout in (0.0, 0.3)
    },
}


def midi_of_frames(frames: Iterable[Frame]) -> pretty_midi.PrettyMIDI:
    """A piece for piano; a pitch that goes on in the next frame is one note.

    >>> [(note.pitch, note.start, note.end) for note in midi_of_frames([(60, 64), (60,), ()]).instruments[0].notes]
    [(64, 0.0, 0.25), (60, 0.0, 0.5)]
    """
    midi, piano = pretty_midi.PrettyMIDI(initial_tempo=120), pretty_midi.Instrument(0)
    begun: dict[int, int] = {}
    for number, frame in enumerate([*frames, ()]):
        for pitch in [pitch for pitch in begun if pitch not in frame]:
            start = begun.pop(pitch)
            piano.notes.append(pretty_midi.Note(VELOCITY, pitch, start * FRAME_S, number * FRAME_S))
        for pitch in frame:
            begun.setdefault(pitch, number)
    midi.instruments.append(piano)
    return midi


def write_frames(file: Path, pieces: int, out: Path) -> None:
    """Folders train/ and valid/ with MIDI files of the first pieces of a data set of frames."""
    data = load(file)
    for part, count in (("train", pieces), ("valid", HELD_OUT)):
        (out / part).mkdir(parents=True)
        for number, frames in enumerate(data[part][:count]):
            midi_of_frames(frames).write(str(out / part / f"{number:03}.mid"))


def compare(folder: Path, minutes: float) -> list[str]:
    """The page's table."""
    lines = ["| way | held-out, nats/token | passes |", "|---|--:|--:|"]
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary) / "cache"
        config = TrainingConfig(minutes=minutes)
        steps = range(config.transpose_down, config.transpose_up + 1)
        corpus = open_corpus(folder, transpositions=steps, cache=cache)
        tokens = corpus.pieces("train").tokens
        untrained = likelihood_of(load_checkpoint(bundled_model()), list(corpus.pieces("valid")))
        lines.append(f"| the model that comes with melodia | {untrained.nats_per_token:.3f} | 0 |")
        for name, options in WAYS.items():
            settings = {"precision": "auto", **options.get("training", {}), "minutes": minutes}
            out = Path(temporary) / name.replace(" ", "-")
            summary = train_folder(folder, out, cache=cache, **options | {"training": settings}).training
            passes = f"{summary.epochs:.1f}"
            lines.append(f"| {name} | {summary.valid_nats_per_token:.3f} | {passes} |")
            print(lines[-1], flush=True)
    pieces = len(corpus.pieces("train")), len(corpus.pieces("valid"))
    return [
        f"{pieces[0]} pieces, {tokens:,} tokens; {pieces[1]} pieces held out; {minutes:g} minutes each.",
        "",
        *lines,
    ]


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER")
    parser.add_argument("--frames", type=Path, metavar="FILE")
    parser.add_argument("--pieces", type=int, default=40, help="with --frames: so many")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each training")
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE")
    given = parser.parse_args()
    if (given.folder is None) == (given.frames is None):
        parser.error("give FOLDER or --frames")
    command = f"python -m benchmarks.tuning {given.folder or '--frames ' + given.frames.name}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "pieces"
        if given.frames is not None:
            write_frames(given.frames, given.pieces, folder)
            command += f" --pieces {given.pieces}"
        command += f" --minutes {given.minutes:g}"
        where = [f"- {name}: {value}" for name, value in facts(command, None).items()]
        table = compare(folder, given.minutes)
    text = "\n".join(
        ["# Fine-tuning on a small folder", "", "Written by `benchmarks/tuning.py`.", "", *where, "", *table]
    )
    given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
