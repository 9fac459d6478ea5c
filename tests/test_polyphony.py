"""The polyphony benchmark: examples by hand, probabilities that are probabilities, and a small run of it all."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import polyphony
from benchmarks.frame_heads import IGNORED, MOTION, Bernoulli, Notes, build, hidden_for
from benchmarks.frames import LOWEST, Match, load, matches, transposed
from melodia.model import KINDS

SEQUENCE = [(60, 64, 67), (), (60, 65), (59, 65, 67)]


def write_set(path: Path, **parts: object) -> Path:
    with gzip.open(path, "wt") as file:
        json.dump(parts, file)
    return path


def test_notes_by_hand() -> None:
    example = Notes([]).example(SEQUENCE)
    c, e, f, g, b = (pitch - LOWEST + 1 for pitch in (60, 64, 65, 67, 59))
    said = [c, e, g, 0, 0, c, f, 0, b, f, g, 0]
    assert example.passage.targets.tolist() == said
    assert example.passage.inputs.tolist() == [0, *said[:-1]]
    assert example.frame.tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 3, 3, 3, 3]
    assert example.passage.side is not None
    place, one, two, motion, match, length = example.passage.side.T.tolist()
    assert place == [0, 1, 2, 3, 0, 0, 1, 2, 0, 1, 2, 3]
    assert one == [0, 0, 0, 0, 1 + c, 1, 0, 0, 1 + c, 1 + f, 1, 0], "what came next here a frame ago"
    assert two == [0, 0, 0, 0, 0, 1 + c, 1 + e, 1 + g, 1, 0, 0, 0]
    assert motion == [0] * 9 + [1 + MOTION - 1, 1 + MOTION, 0], "b is below c, f stays"
    assert not any(match + length), "no frame came twice"


def test_what_came_before_is_found_again() -> None:
    """A frame that stood already is followed by what followed it there, as far as this one goes the same way."""
    c, e = 60 - LOWEST + 1, 64 - LOWEST + 1
    side = Notes([]).example([(60,), (60, 64), (60,), (60, 64), (60,), (60,)]).passage.side
    assert side is not None
    match, length = side[:, 4].tolist(), side[:, 5].tolist()
    assert match == [0, 0, 0, 0, 0, 0, 0, 1 + c, 1 + e, 1, 1 + c, 1, 1 + c, 1 + e]
    assert length == [0] * 7 + [1] * 3 + [2] * 2 + [3] * 2


@given(st.lists(st.integers(0, 2), max_size=40))
def test_matches_are_the_longest(numbers: list[int]) -> None:
    sequence = [(60 + number,) for number in numbers]
    for t, found in enumerate(matches(sequence)):
        runs = {
            i: next((n for n in range(i) if sequence[i - 1 - n] != sequence[t - 1 - n]), i)
            for i in range(1, t)
        }
        longest = max(runs.values(), default=0)
        if not longest:
            assert found is None
        else:
            assert found == Match(max(i for i in runs if runs[i] == longest), longest)


def test_intervals_move_with_the_music() -> None:
    """With the weights of pitches at zero the notes' probabilities are the same in another key."""
    head = Notes([])
    model = build(head, {"kind": "gru"}, 8, 1)
    with torch.no_grad():
        for parameter in (model.head.weight[: head.size], model.input.weight, *model.input.side[1:3]):
            parameter.zero_()
        model.input.side[4].zero_()
    nats = []
    for sequence in (SEQUENCE, transposed(SEQUENCE, 3)):
        passage = head.example(sequence).passage
        tokens = torch.from_numpy(passage.inputs)[None]
        assert passage.side is not None
        with torch.no_grad():
            logits, _ = model(tokens, torch.from_numpy(passage.side.astype(np.int64))[None])
        middle = logits[..., 1 + 20 : 1 + 60] - logits[..., :1]  # far from the ends of the keyboard
        nats.append(middle)
    torch.testing.assert_close(nats[0][..., :-3], nats[1][..., 3:])


def test_frames_by_hand() -> None:
    head = Bernoulli([SEQUENCE, [(70,)]])
    example = head.example(SEQUENCE)
    assert example.passage.inputs.tolist() == [1, 2, 3, 4]
    assert example.passage.targets.tolist() == [2, 3, 4, 5]
    assert head.rolls[2].nonzero().flatten().tolist() == [60 - LOWEST, 64 - LOWEST, 67 - LOWEST]
    targets = torch.tensor([[2, 3, IGNORED]])
    nats = head.nll(torch.zeros(1, 3, 88), targets, targets)
    assert example.passage.side.tolist() == [[0, 0]] * 4, "nothing came back yet"
    again = head.example([*SEQUENCE, *SEQUENCE[:2]])
    assert again.passage.side[-1].tolist() == [3, 1], "behind the first frame came the second"
    assert nats.tolist() == [[pytest.approx(88 * math.log(2)), pytest.approx(88 * math.log(2)), 0.0]]


def test_a_frame_note_by_note_has_a_probability() -> None:
    """Over three pitches, all eight frames together have probability one."""
    head = Notes([])
    logits = torch.full((1, 4, head.size), -torch.inf)
    logits[..., :4] = torch.tensor([0.3, 1.0, -0.5, 0.2])
    total = 0.0
    for frame in [[p + 1 for p in range(3) if mask >> p & 1] for mask in range(8)]:
        targets = torch.tensor([[*frame, 0] + [IGNORED] * (3 - len(frame))])
        tokens = torch.tensor([[0, *frame] + [0] * (3 - len(frame))])
        total += math.exp(-head.nll(logits, tokens, targets).sum().item())
    assert total == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_class", [Bernoulli, Notes])
def test_kinds_are_causal_and_equally_large(kind: str, head_class: type) -> None:
    sequence = SEQUENCE * 6
    head = head_class([sequence])
    options = {"kind": kind, "layer_norm": True}
    hidden = hidden_for(head, options, 40_000)
    model = build(head, options, hidden, 1).eval()
    assert abs(model.parameter_count() / 40_000 - 1) < 0.1
    passage = head.example(sequence).passage
    tokens = torch.from_numpy(passage.inputs)[None]
    side = None if passage.side is None else torch.from_numpy(passage.side.astype(np.int64))[None]
    other = tokens.clone()
    other[0, 20] = 5 if tokens[0, 20] != 5 else 4
    with torch.no_grad():
        before, after = model(tokens, side)[0], model(other, side)[0]
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert (before[:, 20:] != after[:, 20:]).any()


@pytest.mark.parametrize("head_class", [Bernoulli, Notes])
def test_scores_do_not_depend_on_how_they_are_computed(head_class: type) -> None:
    sequences = [SEQUENCE, SEQUENCE * 3, SEQUENCE[:1], SEQUENCE * 2]
    head = head_class(sequences)
    model = build(head, {"kind": "parallel"}, 8, 1)
    examples = [head.example(sequence) for sequence in sequences]
    first = polyphony.score(model, head, examples)
    assert polyphony.score(model, head, examples, lanes=1, window=5) == pytest.approx(first, rel=1e-5)
    alone = [polyphony.score(model, head, [example]) for example in examples]
    weights = [len(sequence) for sequence in sequences]
    each = [score["frame"] for score in alone]
    assert first["frame"] == pytest.approx(np.average(each, weights=weights), rel=1e-5)
    assert first["sequence"] == pytest.approx(np.mean(each), rel=1e-5)


def test_the_whole_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "jsb_chorales.json.gz", train=[SEQUENCE * 4] * 3, valid=[SEQUENCE * 2])
    test_part = write_set(tmp_path / "test.json.gz", test=[SEQUENCE[1:]])
    runs = tmp_path / "runs"
    command = ["polyphony.py", "train", str(tmp_path), "--out", str(runs), "--sets", "jsb_chorales"]
    command += ["--kinds", "sequential", "--random-seeds", "0", "--epochs", "3", "--parameters", "20000"]
    for extra in ([], ["--transpose"]):
        monkeypatch.setattr("sys.argv", command + extra)
        assert polyphony.main() == 0
    assert len(list(runs.glob("*.json"))) == 4
    monkeypatch.setattr(
        "sys.argv", ["polyphony.py", "score", str(runs), "--test", f"jsb_chorales={test_part}"]
    )
    assert polyphony.main() == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["polyphony.py", "table", str(runs)])
    assert polyphony.main() == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| jsb")]
    assert len(table) == 8
    assert sum("| test |" in line for line in table) == 4


def test_runs_of_another_day_stay_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def facts(random_seed: int, frame: float, **settings: float) -> dict[str, object]:
        of_today = asdict(polyphony.SETTINGS["jsb_chorales", "notes"])
        return {
            "set": "jsb_chorales",
            "head": "notes",
            "kind": "gru",
            "random_seed": random_seed,
            "valid": dict.fromkeys(polyphony.COLUMNS, frame),
            "parameters": 1,
            "settings": of_today | settings,
            "transposed": False,
            "processor_seconds": 1.0,
        }

    runs, page = tmp_path / "runs", tmp_path / "PAGE.md"
    runs.mkdir()
    kept = {"a-0": facts(0, 4.0), "a-1": facts(1, 5.0), "a-2": facts(2, 9.0, dropout=0.9)}
    page.with_suffix(".json").write_text(json.dumps(kept))
    (runs / "a-0.json").write_text(json.dumps(facts(0, 6.0)))  # made again
    (runs / "a-3.json").write_text(json.dumps(facts(3, 7.0)))
    monkeypatch.setattr("sys.argv", ["polyphony.py", "table", str(runs), "--write", str(page)])
    for _ in range(2):  # what it wrote it reads again
        assert polyphony.main() == 0
        (row,) = [line for line in page.read_text().splitlines() if line.startswith("| jsb")]
        assert row.startswith("| jsb_chorales | notes | no | valid | gru | 3 | 1 | 0.0 | 6.000 ± 1.000 |")
        assert sorted(json.loads(page.with_suffix(".json").read_text())) == ["a-0", "a-1", "a-3"]


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="not a set of frames"):
        load(tmp_path / "a.json.gz")
    with pytest.raises(ValueError, match="ascending"):
        load(write_set(tmp_path / "b.json.gz", train=[[[64, 60]]]))
    with pytest.raises(ValueError, match="within 21 and 108"):
        load(write_set(tmp_path / "c.json.gz", train=[[[5]]]))
    assert transposed([(108,)], 1) == [(108,)]
    assert transposed([(60, 64), ()], -2) == [(58, 62), ()]
