"""Side inputs: by hand, whole pieces against token by token, causal, in bounds; transposition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grammar_helpers import grammar_of, sample, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st

from melodia.errors import ConfigError
from melodia.grammar import Constraints
from melodia.key_finding import find_key
from melodia.midi import read_score
from melodia.side_inputs import (
    NAMES,
    SideInputSpec,
    SideInputTracker,
    bars_and_positions,
    bars_total,
    default_specs,
    density_bucket,
    side_inputs,
)
from melodia.tokenizer import SCHEMES
from melodia.transpose import transposition_permutation

NOTE = "Velocity_63 Duration_1.0.12"


def ids_of(scheme: str, line: str) -> np.ndarray:
    index = tokenizer_of(scheme).vocabulary.index
    return np.array([index[name if "_" in name else f"{name}_None"] for name in line.split()])


def names_of(scheme: str, values: Any) -> list[str]:
    """Lookback values as token strings, "-" for none."""
    tokens = tokenizer_of(scheme).vocabulary.tokens
    return ["-" if v == 0 else tokens[v - 1].removesuffix("_None") for v in np.asarray(values).tolist()]


def table(scheme: str, line: str, **given: int) -> dict[str, np.ndarray]:
    vocabulary = tokenizer_of(scheme).vocabulary
    rows = side_inputs(vocabulary, ids_of(scheme, line), default_specs(vocabulary), **given)
    return dict(zip(NAMES, rows.T, strict=True))


REMI = (
    f"BOS Bar TimeSig_2/4 Position_0 Program_0 Pitch_60 {NOTE} Position_12 Pitch_62 {NOTE} "
    f"Bar TimeSig_2/4 Position_0 Pitch_64 {NOTE} Position_12 Pitch_65 {NOTE} EOS"
)


def test_remi_by_hand() -> None:
    result = table("REMI", REMI, bars_total=2, density=3)
    assert result["position"].tolist() == [0] * 8 + [12] * 4 + [0] * 6 + [12] * 5
    assert result["bars_left"].tolist() == [2] * 12 + [1] * 11
    assert set(result["density"].tolist()) == {3}
    assert names_of("REMI", result["lookback1"]) == ["-"] * 12 + (
        # behind Bar came TimeSig, behind TimeSig Position_0, behind Position_0 Program_0, then a token late
        ["TimeSig_2/4", "Position_0", "Program_0", "Pitch_60", "Velocity_63", "Duration_1.0.12"]
        + ["Pitch_62", "Velocity_63", "Duration_1.0.12", "Bar", "-"]
    )
    assert set(result["lookback2"].tolist()) == {0}


def test_two_bars_ago() -> None:
    bars = [f"Bar TimeSig_2/4 Position_6 Program_{i} Pitch_6{i} {NOTE}" for i in range(4)]
    result = table("REMI", " ".join(bars))
    at = [7 * bar + 3 for bar in range(4)]  # the step behind Program
    assert names_of("REMI", result["lookback1"][at]) == ["-", "Pitch_60", "Pitch_61", "Pitch_62"]
    assert names_of("REMI", result["lookback2"][at]) == ["-", "-", "Pitch_60", "Pitch_61"]
    assert set(result["bars_left"].tolist()) == {0}, "not given"
    assert set(result["density"].tolist()) == {0}


def test_an_empty_bar_between_gives_nothing() -> None:
    line = f"Bar TimeSig_2/4 Position_6 Program_0 Pitch_60 {NOTE} Bar TimeSig_2/4 Bar TimeSig_2/4 Position_6 Pitch_62"
    result = table("REMI", line)
    assert names_of("REMI", result["lookback1"][-2:]) == ["-", "-"]
    assert names_of("REMI", result["lookback2"][-2:]) == ["Program_0", "Pitch_60"]


def test_time_shifts_by_hand() -> None:
    """TSD has no bars: they follow from 3/4 and then 2/4; the place is counted in grid units of the metre."""
    line = (
        f"TimeSig_3/4 Program_0 Pitch_60 {NOTE} TimeShift_1.0.12 Pitch_62 {NOTE} TimeShift_2.0.12 "
        f"TimeSig_2/4 Pitch_64 {NOTE} TimeShift_3.0.12 Pitch_65 {NOTE}"
    )
    bars, positions = bars_and_positions(tokenizer_of("TSD").vocabulary, ids_of("TSD", line))
    assert bars.tolist() == [0] * 9 + [1] * 5 + [2] * 4
    assert positions.tolist() == [0] * 5 + [12] * 4 + [0] * 5 + [12] * 4
    assert bars_total(ids_of("TSD", line), tokenizer_of("TSD").vocabulary) == 3
    result = table("TSD", line)
    assert names_of("TSD", result["lookback2"][14:]) == [
        "Pitch_62",
        "Velocity_63",
        "Duration_1.0.12",
        "TimeShift_2.0.12",
    ]


def test_compound_time() -> None:
    """In 6/8 a time shift of one beat is an eighth: six of them are a bar."""
    line = "TimeSig_6/8 TimeShift_5.0.4 TimeShift_0.11.12 TimeShift_0.1.12"
    bars, positions = bars_and_positions(tokenizer_of("TSD").vocabulary, ids_of("TSD", line))
    assert (bars.tolist(), positions.tolist()) == ([0, 0, 0, 1], [0, 60, 71, 0])


def test_pertok_by_hand() -> None:
    line = f"Bar TimeSig_6/8 TimeShift_1.0.12 TimeShift_0.1.12 Program_0 Pitch_60 MicroTiming_-1 {NOTE} Bar TimeSig_6/8"
    bars, positions = bars_and_positions(tokenizer_of("PerTok").vocabulary, ids_of("PerTok", line))
    assert positions.tolist() == [0, 0, 12, 13, 13, 13, 13, 13, 13, 0, 0]
    assert bars.tolist() == [0] * 9 + [1] * 2


def test_piece_level_values() -> None:
    vocabulary = tokenizer_of("REMI").vocabulary
    assert bars_total(ids_of("REMI", REMI), vocabulary) == 2
    assert density_bucket(ids_of("REMI", REMI), vocabulary) == 1  # two notes a bar
    chord = " ".join(f"Pitch_{60 + i} {NOTE}" for i in range(8))
    assert density_bucket(ids_of("REMI", f"Bar TimeSig_2/4 Position_0 Program_0 {chord}"), vocabulary) == 3
    many = " ".join(f"Pitch_{i} {NOTE}" for i in range(60))
    assert density_bucket(ids_of("REMI", f"Bar TimeSig_2/4 Position_0 Program_0 {many}"), vocabulary) == 8
    assert bars_total([], vocabulary) == 0
    assert side_inputs(vocabulary, [], default_specs(vocabulary)).shape == (0, len(NAMES))


def both_ways(scheme: str, ids: list[int]) -> np.ndarray:
    """The rows of the whole piece, after checking that a tracker and its copy give the same."""
    vocabulary = tokenizer_of(scheme).vocabulary
    specs = (*default_specs(vocabulary), SideInputSpec("position", 7), SideInputSpec("bars_left", 3))
    total = max(1, bars_total(ids, vocabulary))
    rows = side_inputs(vocabulary, ids, specs, bars_total=total, density=5)
    tracker = SideInputTracker(vocabulary, specs, bars_total=total, density=5)
    half = len(ids) // 2
    first = [tracker.advance(token) for token in ids[:half]]
    copy = tracker.copy()
    one, other = [tracker.advance(t) for t in ids[half:]], [copy.advance(t) for t in ids[half:]]
    assert np.array_equal(np.array(one), np.array(other))
    assert np.array_equal(np.array(first + one).reshape(-1, len(specs)), rows)
    assert rows.dtype == np.int32
    assert (rows >= 0).all()
    assert (rows < [spec.size for spec in specs]).all()
    return rows


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(0, 2**32 - 1), st.booleans())
def test_whole_is_token_by_token_and_causal(scheme: str, random_seed: int, narrow: bool) -> None:
    """On random music: both forms agree, bars and places are the grammar's, and no row knows the future."""
    rng = np.random.default_rng(random_seed)
    limits = (
        Constraints(programs=(0,), pitch_range=(60, 62), time_signatures=("2/4", "3/8")) if narrow else None
    )
    grammar = grammar_of(scheme, limits)
    ids = sample(grammar, rng, tokens=80, by_type=True)
    if rng.random() < 0.5:
        ids = [grammar.vocabulary.bos, *ids]
    rows = both_ways(scheme, ids)
    state, places = grammar.start(), []
    for token in ids:
        grammar.advance(state, token, check=False)
        places.append((state.bar, state.position))
    bars, positions = bars_and_positions(grammar.vocabulary, np.array(ids))
    assert list(zip(bars.tolist(), positions.tolist(), strict=True)) == places
    cut = int(rng.integers(1, len(ids) + 1))
    total = max(1, bars_total(ids, grammar.vocabulary))
    specs = default_specs(grammar.vocabulary)
    part = side_inputs(grammar.vocabulary, ids[:cut], specs, bars_total=total, density=5)
    assert np.array_equal(part, rows[:cut, : len(specs)])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_on_real_files(scheme: str, samples_dir: Path) -> None:
    for path in sorted(samples_dir.glob("*.mid"))[:4]:
        ids = tokenizer_of(scheme).encode(read_score(path)[0], bos=True, eos=True).ids
        both_ways(scheme, ids.tolist())


def test_lookback_is_of_use(samples_dir: Path) -> None:
    """On real music the token a bar ago is the one that comes far more often than by chance."""
    vocabulary = tokenizer_of("REMI").vocabulary
    specs = (SideInputSpec("lookback1", vocabulary.size + 1),)
    hits = steps = 0
    for path in sorted(samples_dir.glob("*.mid")):
        ids = tokenizer_of("REMI").encode(read_score(path)[0]).ids
        guess = side_inputs(vocabulary, ids, specs)[:-1, 0]
        hits += int((guess == ids[1:] + 1).sum())
        steps += len(guess)
    assert hits / steps > 0.3


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("place", 5, "must be one of"), ("position", 1, "at least 2"), ("density", 8, "at least 9")],
)
def test_specs_out_of_their_limits(name: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SideInputSpec(name, size)


def test_calls_out_of_their_limits() -> None:
    vocabulary = tokenizer_of("REMI").vocabulary
    with pytest.raises(ConfigError, match=r"V \+ 1"):
        side_inputs(vocabulary, [3], [SideInputSpec("lookback1", vocabulary.size)])
    with pytest.raises(ConfigError, match="bars_total"):
        side_inputs(vocabulary, [3], default_specs(vocabulary), bars_total=0)
    with pytest.raises(ConfigError, match="density"):
        SideInputTracker(vocabulary, default_specs(vocabulary), density=9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_transposition(scheme: str, samples_dir: Path) -> None:
    """Moved and moved back is the same; only melodic pitches move; the grammar accepts the moved piece."""
    vocabulary = tokenizer_of(scheme).vocabulary
    up, down = transposition_permutation(vocabulary, 5), transposition_permutation(vocabulary, -5)
    melodic = np.array([kind in ("Pitch", "NoteOn", "NoteOff") for kind in vocabulary.types])
    assert np.array_equal(up[~melodic], np.flatnonzero(~melodic))
    assert (up == -1).sum() == 5 * len({k for k in vocabulary.types if k in ("Pitch", "NoteOn", "NoteOff")})
    inside = up >= 0
    assert np.array_equal(down[up[inside]], np.flatnonzero(inside))
    ids = tokenizer_of(scheme).encode(read_score(samples_dir / "joplin_entertainer.mid")[0]).ids
    assert grammar_of(scheme).accepts(up[ids].tolist()) is None
    before = [(n.pitch, n.time) for t in tokenizer_of(scheme).decode(ids).tracks for n in t.notes]
    after = [(n.pitch - 5, n.time) for t in tokenizer_of(scheme).decode(up[ids]).tracks for n in t.notes]
    assert before == after


def bar_of(pitches: tuple[int, ...], program: str) -> str:
    notes = [f"Position_{6 * i} {program * (i == 0)}Pitch_{p} {NOTE}" for i, p in enumerate(pitches)]
    return "Bar TimeSig_4/4 " + " ".join(notes)


INTO_D_MAJOR = " ".join(
    [
        bar_of((60, 62, 64, 65, 67, 60), "Program_0 "),  # C major
        *[bar_of((62, 64, 66, 67, 69, 62), "")] * 4,
        "Bar TimeSig_4/4 Bar TimeSig_4/4",
    ]
)


def test_the_key_of_the_bars_before() -> None:
    keys, ids = table("REMI", INTO_D_MAJOR)["key"], ids_of("REMI", INTO_D_MAJOR)
    bars = np.cumsum(ids == tokenizer_of("REMI").vocabulary.index["Bar_None"]) - 1
    of_bar = [set(keys[bars == bar].tolist()) for bar in range(7)]
    assert of_bar[0] == {0}, "nothing has been heard"
    assert of_bar[1] == {1 + 0}, "C major"
    assert of_bar[4] == of_bar[5] == of_bar[6] == {1 + 2}, (
        "D major has taken over, and silence leaves it there"
    )


def test_the_key_moves_with_the_music() -> None:
    weights = [9, 0, 5, 1, 6, 4, 0, 8, 0, 5, 1, 3]
    found = [find_key([weights[(i - shift) % 12] for i in range(12)]) for shift in range(12)]
    assert found == list(range(12))
    minor = [9, 0, 4, 7, 0, 4, 0, 8, 5, 0, 3, 2]
    assert find_key(minor) == 12


def test_the_tracker_as_an_array() -> None:
    vocabulary = tokenizer_of("REMI").vocabulary
    specs = default_specs(vocabulary)
    for line in (REMI, INTO_D_MAJOR):
        tracker, ids = SideInputTracker(vocabulary, specs, bars_total=7, density=3), ids_of("REMI", line)
        wanted = [tracker.advance(int(token)).tolist() for token in ids]
        for cut in range(len(ids)):
            tracker = SideInputTracker(vocabulary, specs, bars_total=7, density=3)
            for token in ids[:cut]:
                tracker.advance(int(token))
            twin = SideInputTracker.from_array(vocabulary, specs, tracker.to_array())
            assert [twin.advance(int(token)).tolist() for token in ids[cut:]] == wanted[cut:]
    with pytest.raises(ConfigError, match="not the state of side inputs"):
        SideInputTracker.from_array(vocabulary, specs, tracker.to_array()[:-1])
