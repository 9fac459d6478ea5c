"""Reading MIDI files, against pretty_midi alone; `benchmarks/midi_reading.py` measures whole folders."""

from __future__ import annotations

import warnings

from benchmarks.midi_reading import measure
from benchmarks.suite.machine import REPOSITORY
from benchmarks.suite.options import Options
from benchmarks.suite.page import Section, Table, Target, figure
from melodia.corpus.discover import find_midi_files

LIMIT, FILES = 10, 60


def run(options: Options, section: Section) -> None:
    """Read files with each reader in turns."""
    folder = options.corpus or REPOSITORY / "midi_samples"
    paths = [found.path for found in find_midi_files(folder)]
    if not paths:  # token shards
        folder = REPOSITORY / "midi_samples"
        paths = [found.path for found in find_midi_files(folder)]
    where = "midi_samples/" if folder == REPOSITORY / "midi_samples" else "the folder given as --corpus"
    few = 4 if options.quick else FILES
    paths = paths[:: -(-len(paths) // few)]
    options.say(f"reading: {len(paths)} files")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files, notes, totals = measure(paths, 2 if options.quick else 5)
    section.intro = (
        f"{files} files of {where}, {notes / files:,.0f} notes each on average. Every file is read by each reader in "
        "turns, the fastest processor time of each counts; melodia's includes repair, report and hash."
    )
    table = Table(["reader", "files/s", "× pretty_midi"])
    for name, seconds in totals.items():
        table.rows.append([name, figure(files / seconds), figure(totals["pretty_midi"] / seconds)])
    section.tables.append(table)
    section.targets.append(
        Target(
            "corpus reading, files/s", "pretty_midi alone", LIMIT, totals["pretty_midi"] / totals["melodia"]
        )
    )
    section.figures = {"seconds": totals, "files": files, "notes": notes}
