"""Sequences drawn at random under the grammar are music; without it most are not."""

from __future__ import annotations

import numpy as np
import pytest
from grammar_helpers import CONSTRAINTS, content, faults, grammar_of, most_at_once, sample, tokenizer_of

from melodia.grammar import Constraints
from melodia.midi import midi_bytes, read_score
from melodia.tokenizer import SCHEMES


def judge(scheme: str, ids: list[int], limits: Constraints | None) -> list[str]:
    """What is wrong with the music of a sequence, from four sides."""
    tokenizer = tokenizer_of(scheme)
    score = tokenizer.decode(ids)
    wrong = faults(score)
    if wrong:
        return wrong
    encoding = tokenizer.encode(score)
    wrong += [
        f"encoding again: {finding}"
        for finding in encoding.findings
        if finding.kind in ("repaired", "dropped", "quantised") and "after the last note" not in finding.what
    ]
    parts = slice(0, 1) if scheme == "Structured" else slice(None)
    if content(tokenizer.decode(encoding.ids))[parts] != content(score)[parts]:
        wrong.append("encoding again gives other music")
    report = read_score(midi_bytes(score))[1]
    wrong += [f"reading the file: {f}" for f in report.findings if f.kind in ("repaired", "dropped")]
    if limits is not None and limits.max_polyphony and most_at_once(score) > limits.max_polyphony:
        wrong.append("too many notes at once")
    return wrong


@pytest.mark.parametrize("limits", list(CONSTRAINTS))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_music_is_valid(scheme: str, limits: str) -> None:
    grammar = grammar_of(scheme, CONSTRAINTS[limits])
    rng = np.random.default_rng([len(scheme), len(limits)])
    for i in range(12):
        ids = sample(grammar, rng, tokens=60, by_type=i % 2 == 1)
        assert judge(scheme, ids, CONSTRAINTS[limits]) == []


@pytest.mark.slow
@pytest.mark.parametrize("limits", list(CONSTRAINTS))
def test_ten_thousand(limits: str) -> None:
    grammar = grammar_of("REMI", CONSTRAINTS[limits])
    rng = np.random.default_rng(len(limits))
    for i in range(10_000 // len(CONSTRAINTS)):
        ids = sample(grammar, rng, tokens=int(rng.integers(20, 200)), by_type=i % 2 == 1)
        assert judge("REMI", ids, CONSTRAINTS[limits]) == []


FIVE = Constraints(programs=(0, 1, 40, 41, -1), pitch_range=(55, 75))


def share_of_faults(scheme: str, sequences: list[list[int]]) -> float:
    bad = [token_faults(scheme, ids) or bool(faults(tokenizer_of(scheme).decode(ids))) for ids in sequences]
    return sum(bad) / len(bad)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_the_grammar_most_are_not(scheme: str) -> None:
    """Uniform over the vocabulary."""
    size = tokenizer_of(scheme).vocabulary.size
    rng = np.random.default_rng(0)
    assert share_of_faults(scheme, [rng.integers(3, size, 60).tolist() for _ in range(60)]) > 0.95


@pytest.mark.parametrize("scheme", ["REMI", "MIDILike"])
def test_with_the_type_graph_alone_most_are_not(scheme: str) -> None:
    """The registers matter: positions that go back and ends of notes that do not sound are right by type."""
    grammar = grammar_of(scheme, FIVE)
    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(60):
        kind, ids = grammar.types.index("BOS"), []
        while len(ids) < 60:
            after = grammar.allowed & grammar.successors[kind][grammar.type_of]
            after[grammar.vocabulary.eos] = False
            legal = after.nonzero()[0]
            types = grammar.type_of[legal]
            ids.append(int(rng.choice(legal[types == rng.choice(np.unique(types))])))
            kind = int(grammar.type_of[ids[-1]])
        sequences.append(ids)
    assert share_of_faults(scheme, sequences) > 0.9


def token_faults(scheme: str, ids: list[int]) -> bool:
    """Positions that go backwards or behind the bar, notes without their parts, ends of notes that do not sound."""
    vocabulary = tokenizer_of(scheme).vocabulary
    names = [vocabulary.tokens[i].split("_") for i in ids]
    place, bar, program, open_notes = -1, 0, None, set()
    for i, (kind, value) in enumerate(names):
        behind = names[i + 1][0] if i + 1 < len(names) else "Velocity"
        if kind == "Bar":
            place = -1
        elif kind == "TimeSig":
            bar = int(value.split("/")[0]) * vocabulary.positions_per_beat
        elif kind == "Position":
            if int(value) <= place or int(value) >= bar:
                return True
            place = int(value)
        elif kind == "Program":
            program = value
        elif kind in ("Pitch", "PitchDrum", "NoteOn", "DrumOn"):
            if behind not in ("Velocity", "MicroTiming") or program is None:
                return True
            if kind in ("NoteOn", "DrumOn"):
                if (program, value) in open_notes:
                    return True
                open_notes.add((program, value))
        elif kind in ("NoteOff", "DrumOff"):
            if (program, value) not in open_notes:
                return True
            open_notes.discard((program, value))
    return bool(open_notes)
