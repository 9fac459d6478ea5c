"""Arguments of the wrong kind are refused in words, and what a caller holds is the caller's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sampler_helpers import make_seed, notes_of, scale

import melodia
from melodia import Sampler, Tokenizer, compare_kinds, evaluate_folder, train_folder, write_midi
from melodia.errors import ConfigError, MelodiaError
from melodia.evaluation.continuations import Settings
from melodia.midi import midi_bytes, to_pretty_midi
from melodia.model import ModelConfig
from melodia.render import plot_pianoroll
from melodia.workflows.bench import bench
from melodia.workflows.generate import generate_files

FOLDER = "no folder"


pytestmark = pytest.mark.usefixtures("primed")


def plot(**options: Any) -> None:
    plot_pianoroll(to_pretty_midi(make_seed(scale(1))), "y.png", **options)


CALLS: list[tuple[Callable[[Sampler], Any], str]] = [
    (lambda s: Sampler.load(5), r"`path` must be a path \(received 5\)"),  # type: ignore[arg-type]
    (lambda s: Sampler.load(device=5), "`device` must be auto, cpu, cuda or cuda:N"),  # type: ignore[arg-type]
    (lambda s: Sampler.load(device=None), "`device` must be auto, cpu, cuda or cuda:N"),  # type: ignore[arg-type]
    (lambda s: Sampler.load(backend=None), "`backend` must be one of"),  # type: ignore[arg-type]
    (lambda s: Sampler.load(weights=8), "`weights` must be one of"),  # type: ignore[arg-type]
    (lambda s: Sampler("my-model", s.tokenizer), "`model` must be a .*received str.*`Sampler.load` takes"),  # type: ignore[arg-type]
    (lambda s: Sampler(s.model, None), "`tokenizer` must be a melodia.Tokenizer"),  # type: ignore[arg-type]
    (lambda s: s.prime(5), "int is not a source of music"),
    (
        lambda s: s.prime(make_seed(scale(1)).to("second")),
        r'in ticks \(received ScoreSecond\); `to\("tick"\)`',
    ),
    (
        lambda s: s.nll(make_seed(scale(1)).to("quarter")),
        r'in ticks \(received ScoreQuarter\); `to\("tick"\)`',
    ),
    (lambda s: s.prime(["a"]), "token ids must be whole numbers"),
    (lambda s: s.prime(memoryview(b"abc")), "is text, not MIDI"),
    (lambda s: s.prime(None, density="dense"), "`density` must be a whole number between 1 and 8"),  # type: ignore[arg-type]
    (lambda s: s.prime(make_seed(scale(2)), seed_seconds="4"), "`seed_seconds` must be a number"),  # type: ignore[arg-type]
    (lambda s: s.prime(make_seed(scale(2)), progress=5), "`progress` must be callable"),  # type: ignore[arg-type]
    (lambda s: s.generate(state=5), "`state` must be a melodia.Session, such as `Continuation.state`"),  # type: ignore[arg-type]
    (lambda s: s.stream(state="x"), "`state` must be a melodia.Session"),  # type: ignore[arg-type]
    (lambda s: setattr(s, "state", s.generate(bars=1)), "`state` must be .*received Continuation"),
    (lambda s: s.generate_many("2"), "`num_samples` must be a whole number"),  # type: ignore[arg-type]
    (lambda s: s.save_state(None), "`path` must be a path"),  # type: ignore[arg-type]
    (lambda s: s.save_state("."), "is a directory; give a file name"),
    (lambda s: s.load_state(5), "`path` must be a path"),  # type: ignore[arg-type]
    (lambda s: s.save_state("a\0b"), r"'a\\x00b': no file can have this name"),
    (lambda s: s.load_state("x" * 300), "x: no file can have this name"),
    (lambda s: Sampler.load("x" * 300), "x: no file can have this name .*; choose another"),
    (lambda s: train_folder(FOLDER, "a\0b"), "no file can have this name"),
    (lambda s: train_folder(FOLDER, "out", init="x" * 300), "no file can have this name"),
    (lambda s: write_midi(make_seed(scale(1)), None), "`path` must be a path"),  # type: ignore[arg-type]
    (lambda s: write_midi(make_seed(scale(1)), ""), "'': is a directory"),
    (lambda s: write_midi("x", "y.mid"), "from a score in ticks or a PrettyMIDI, not from str"),  # type: ignore[arg-type]
    (
        lambda s: write_midi(make_seed(scale(1)).to("second"), "y.mid"),
        r'not from ScoreSecond; .*`to\("tick"\)`',
    ),
    (lambda s: write_midi(make_seed(scale(1)), "y.mid", force="yes"), "`force` must be True or False"),  # type: ignore[arg-type]
    (lambda s: melodia.read_midi(5), "int is not a source of music"),  # type: ignore[arg-type]
    (lambda s: melodia.read_midi(b"", limits=5), r"`limits` must be a melodia.midi.Limits \(received 5\)"),  # type: ignore[arg-type]
    (lambda s: melodia.read_score(b"", limits={}), r"`limits` must be a melodia.midi.Limits \(received {}\)"),  # type: ignore[arg-type]
    (lambda s: Tokenizer(5), "`config` must be a melodia.TokenizerConfig"),  # type: ignore[arg-type]
    (lambda s: s.tokenizer.encode(None), "`score` must be a symusic score in ticks .*received NoneType"),  # type: ignore[arg-type]
    (lambda s: s.tokenizer.encode("a.mid"), "received str.*`melodia.read_score` makes one"),  # type: ignore[arg-type]
    (lambda s: s.tokenizer.encode(to_pretty_midi(make_seed(scale(1)))), "received PrettyMIDI"),  # type: ignore[arg-type]
    (lambda s: s.tokenizer.encode(make_seed(scale(1)).to("quarter")), r'ScoreQuarter.*`to\("tick"\)`'),
    (lambda s: s.tokenizer.decode(None), r"`ids` must be whole numbers \[N\] \(received None\)"),  # type: ignore[arg-type]
    (lambda s: s.tokenizer.decode("x"), "`ids` must be .*received 'x'"),  # type: ignore[arg-type]
    (lambda s: s.tokenizer.decode([float("nan")]), r"`ids` must be .*received \[nan\]"),  # type: ignore[list-item]
    (lambda s: s.tokenizer.decode([5.5]), r"`ids` must be .*received \[5.5\]"),  # type: ignore[list-item]
    (lambda s: s.tokenizer.decode([[1, 2]]), r"`ids` must be .*received \[\[1, 2\]\]"),  # type: ignore[list-item]
    (lambda s: s.tokenizer.decode([[1], [2, 3]]), "`ids` must be"),  # type: ignore[list-item]
    (lambda s: train_folder(5, "out"), "`folder` must be a path"),  # type: ignore[arg-type]
    (lambda s: train_folder(FOLDER, "out", training={"minutes": "x"}), "`minutes` must be a number"),
    (lambda s: train_folder(FOLDER, "out", training={"window": "x"}), "`window` must be a whole number"),
    (lambda s: compare_kinds(FOLDER, "out", kinds="gru"), "`kinds` must be a list of .*received 'gru'"),
    (lambda s: train_folder(FOLDER, "out", training=5), r"`training` must be a dictionary .*received 5"),  # type: ignore[arg-type]
    (lambda s: train_folder(FOLDER, "out", training={1: 2}), r"`training` must be .*received {1: 2}"),  # type: ignore[dict-item]
    (
        lambda s: train_folder(FOLDER, "out", side_inputs="density"),
        "`side_inputs` must be a list .*'density'",
    ),
    (lambda s: train_folder(FOLDER, "out", side_inputs=5), "`side_inputs` must be a list"),  # type: ignore[arg-type]
    (lambda s: train_folder(FOLDER, "out", side_inputs=("x", 5)), "`side_inputs` must be .*received x, 5"),  # type: ignore[arg-type]
    (lambda s: train_folder(FOLDER, "out", cache=5), "`cache` must be a path"),  # type: ignore[arg-type]
    (lambda s: train_folder(FOLDER, "out", workers="2"), "`workers` must be a whole number"),  # type: ignore[arg-type]
    (lambda s: train_folder(FOLDER, "out", force="no"), "`force` must be True or False"),  # type: ignore[arg-type]
    (lambda s: train_folder(FOLDER, "out", resume="no"), "`resume` must be True or False"),  # type: ignore[arg-type]
    (lambda s: train_folder(FOLDER, "out", progress=print), "`progress` must be a .*Reporter"),  # type: ignore[arg-type]
    (lambda s: compare_kinds(FOLDER, "out", kinds=("gru", 5)), r"`kinds` must be .*received 5"),  # type: ignore[arg-type]
    (lambda s: compare_kinds(FOLDER, "out", training=5), "`training` must be a dictionary"),  # type: ignore[arg-type]
    (lambda s: compare_kinds(FOLDER, "out", cache=5), "`cache` must be a path"),  # type: ignore[arg-type]
    (lambda s: compare_kinds(FOLDER, "out", force="no"), "`force` must be True or False"),  # type: ignore[arg-type]
    (lambda s: compare_kinds(FOLDER, "out", without_side_inputs="no"), "`without_side_inputs` must be"),  # type: ignore[arg-type]
    (lambda s: compare_kinds(FOLDER, "out", progress=print), "`progress` must be a .*Reporter"),  # type: ignore[arg-type]
    (lambda s: evaluate_folder(FOLDER, progress=print), "`progress` must be a .*Reporter"),  # type: ignore[arg-type]
    (lambda s: compare_kinds(FOLDER, "out", training={"x": 1}), "unknown training settings: x"),
    (lambda s: generate_files(None, num_samples=2.5), "`num_samples` must be a whole number"),  # type: ignore[arg-type]
    (
        lambda s: generate_files(None, num_samples=10**30),
        "`num_samples` must be a whole number between 1 and 100000",
    ),
    (lambda s: Settings(bars="4"), "`bars` must be a whole number"),  # type: ignore[arg-type]
    (lambda s: bench(seconds="1"), "`seconds` must be a number"),  # type: ignore[arg-type]
    (lambda s: bench(model=5), r"`model` must be a path \(received 5\)"),  # type: ignore[arg-type]
    (lambda s: bench(threads=["1"]), "`threads` must be a whole number between 1 and .*received '1'"),  # type: ignore[list-item]
    (lambda s: bench(threads=1), r"`threads` must be a list of numbers \(received 1\)"),  # type: ignore[arg-type]
    (lambda s: ModelConfig("gru", 9, 8, block_starts=5), r"`block_starts` must be a list \(received 5\)"),  # type: ignore[arg-type]
    (lambda s: ModelConfig("gru", 9, 8, side_inputs=5), r"`side_inputs` must be a list \(received 5\)"),  # type: ignore[arg-type]
    (lambda s: plot(size=5), r"`size` must be width and height in inches.*received 5"),
    (lambda s: plot(size=("a", 5)), "`size` must be width and height in inches"),
    (lambda s: plot(split_at="a"), r"`split_at` must be a number \(received 'a'\)"),
    (lambda s: plot(split_at=1, split_end="a"), "`split_end` must be a number"),
    (lambda s: evaluate_folder(FOLDER, generate="x"), "`generate` must be a whole number"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message for _, message in CALLS])
def test_what_is_of_the_wrong_kind_is_named(
    call: Callable[[Sampler], Any],
    message: str,
    sampler: Sampler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MelodiaError, match=message):
        call(sampler)
    assert not list(tmp_path.iterdir())


def test_bytes_of_midi_in_any_form(sampler: Sampler, tmp_path: Path) -> None:
    data = midi_bytes(make_seed(scale(2)))
    made = set()
    for form in (data, bytearray(data), memoryview(data)):
        sampler.prime(form)
        made.add(tuple(sampler.generate(bars=1, random_seed=1).tokens.tolist()))
    assert len(made) == 1
    path = write_midi(make_seed(scale(2)), bytes(tmp_path / "new.mid"))  # type: ignore[arg-type]
    assert path == tmp_path / "new.mid"


def test_values_that_hold_arrays_are_compared_by_identity(sampler: Sampler) -> None:
    one, other = (sampler.generate(bars=1, random_seed=1) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other, one}) == 2
    assert sampler.state != sampler.state


def test_editing_what_was_given_or_taken_changes_no_session(sampler: Sampler) -> None:
    score = make_seed(scale(2))
    sampler.prime(score)
    before = notes_of(score)

    def spoil(which: Any) -> None:
        for track in which.tracks:
            track.notes.pop()

    spoil(score)
    taken = sampler.state
    spoil(taken.seed)
    made = sampler.generate(bars=2, random_seed=1)
    joined = notes_of(made.joined_score)
    assert joined[: len(before)] == before
    again = sampler.generate(bars=2, random_seed=1)
    for which in (again.seed, again.score, again.joined_score):
        spoil(which)
    assert notes_of(again.state.seed) == joined  # type: ignore[arg-type]
    spoil(again.state.seed)
    assert sampler.state.seed is not None
    assert notes_of(sampler.state.seed) == before
    onward = sampler.generate(state=made.state, bars=1, random_seed=2)
    spoil(made.state.seed)
    assert notes_of(onward.joined_score)[: len(joined)] == joined


def test_a_session_that_is_set_is_a_copy(sampler: Sampler) -> None:
    session = sampler.state
    sampler.state = session
    session.seed = None
    assert sampler.state.seed is not None
    with pytest.raises(ConfigError):
        sampler.state = None  # type: ignore[assignment]
