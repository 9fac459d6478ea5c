"""Time of a note against notochord, at an equal number of parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.suite.machine import REPOSITORY, thread_counts
from benchmarks.suite.measuring import Way, interleave
from benchmarks.suite.notochord_peer import REMEDY, Notochord
from benchmarks.suite.options import Options
from benchmarks.suite.ours import Ours, need_engine
from benchmarks.suite.page import Section, Table, Target, figure, micros
from melodia.engine.description import WEIGHTS
from melodia.midi import read_score
from melodia.model import Model, ModelConfig, match_parameters
from melodia.tokenizer import Tokenizer

LIMIT = 30
EVENTS = 2
"""Of notochord, for a note: one begins it, one ends it."""
NOTOCHORD_PARAMETERS = 17_744_100
"""Of notochord 0.8.0 at its default size; where it runs, its own count rules."""


def tokens_per_note(tokenizer: Tokenizer, folder: Path) -> float:
    """How many tokens a note costs: all tokens of the folder's files over all their notes."""
    vocabulary = tokenizer.vocabulary
    tokens = notes = 0
    for path in sorted(folder.glob("*.mid")):
        ids = np.asarray(tokenizer.encode(read_score(path)[0]).ids)
        tokens += len(ids)
        notes += int(vocabulary.notes_of_token[ids].sum())
    return tokens / notes


def run(options: Options, section: Section) -> None:
    """Measure notochord's events and melodia's tokens in turns."""
    tokenizer = Tokenizer()
    rate = tokens_per_note(tokenizer, REPOSITORY / "midi_samples")
    section.intro = (
        "notochord at its default size, random weights, `query()` then `feed()`; melodia's sequential kind with as "
        f"many parameters and the vocabulary of its own tokenizer ({tokenizer.vocabulary.size} tokens). A note costs "
        f"melodia {rate:.2f} tokens, measured over the pieces of midi_samples/. A note costs notochord two "
        "events, its beginning and its end (a velocity of 0); the last column counts one only."
    )
    counts = thread_counts()
    need_engine()
    children: dict[int, Notochord] = {}
    missing = "" if options.notochord else f"notochord is not installed ({REMEDY})"
    try:
        if options.notochord is not None:
            try:
                for count in counts:
                    children[count] = Notochord(options.notochord, count)
            except (OSError, RuntimeError) as error:
                missing = str(error)
        parameters = next(iter(children.values())).facts["parameters"] if children else NOTOCHORD_PARAMETERS
        config = ModelConfig("sequential", tokenizer.vocabulary.size, 512)
        config = match_parameters(config, 300_000 if options.quick else parameters)
        model = Model(config).eval()
        ways = {f"notochord {count}": Way(_nothing, timed=child.timed) for count, child in children.items()}
        for weights in WEIGHTS:
            for count in counts:
                ways[f"{weights} {count}"] = Way(Ours(model, tokenizer.vocabulary, weights, 1, count).make)
        options.say(f"per note: {len(ways)} ways, hidden size {config.hidden_size}")
        found = {name: timing.median for name, timing in interleave(ways, options.seconds(20)).items()}
    finally:
        for child in children.values():
            child.close()

    count_names = [f"µs a note, {count} thread{'s' * (count > 1)}" for count in counts]
    table = Table(["way", "parameters", "µs an event or token", *count_names, "× notochord", "× one event"])
    theirs = [found.get(f"notochord {count}") for count in counts]
    measured = [value for value in theirs if value is not None]
    base = min(measured) if measured else None
    if base is None:
        table.rows.append([missing, *[""] * (len(table.columns) - 1)])
    else:
        facts = next(iter(children.values())).facts
        name = f"notochord {facts['notochord']} (torch {facts['torch']})"
        notes = ["" if value is None else micros(EVENTS * value) for value in theirs]
        table.rows.append([name, f"{facts['parameters']:,}", micros(base), *notes, "1", "0.5"])
    for weights in WEIGHTS:
        times = [found[f"{weights} {count}"] for count in counts]
        note = min(times) * rate
        row = [f"melodia {weights}", f"{model.parameter_count():,}", micros(min(times))]
        row += [micros(value * rate) for value in times]
        row += [""] * 2 if base is None else [figure(EVENTS * base / note), figure(base / note)]
        table.rows.append(row)
        what = f"CPU generation, one stream, equal parameter count, per note, {weights}"
        value = None if base is None else EVENTS * base / note
        section.targets.append(Target(what, "notochord query + feed", LIMIT, value, why=missing))
    section.tables.append(table)
    for count, child in children.items():
        query, feed = child.query / child.events, child.feed / child.events
        section.notes.append(
            f"notochord with {count} threads: query {micros(query)} µs, feed {micros(feed)} µs (means)"
        )
    section.figures = {"seconds": found, "tokens per note": rate, "missing": missing}


def _nothing(_: int) -> None:
    """The work is done in the child."""
