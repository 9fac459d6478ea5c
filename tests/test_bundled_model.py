"""The model that comes with melodia: small, credited, found by itself, and able to continue every sample."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from training_helpers import CONFIG, small_corpus

from benchmarks.bundled_card import contest_table, continuation_means, continuation_tables
from benchmarks.bundled_model import contest
from melodia.errors import CorpusError
from melodia.evaluation.collapse import collapse_report
from melodia.evaluation.statistics import estimate_key, longest_repeated_run, pitch_in_scale
from melodia.model import ModelConfig
from melodia.sampler import Continuation, Sampler
from melodia.sampler.loading import bundled_folder
from melodia.sampler.loop import Loop
from melodia.training import train
from melodia.workflows.originality import check_files

SAMPLES = sorted((Path(__file__).parent.parent / "midi_samples").glob("*.mid"))
LIMIT = 16 << 20  # bytes of the weights


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler.load()


def continued(sampler: Sampler, path: Path, random_seed: int) -> Continuation:
    sampler.prime(path, seed_bars=8)
    return sampler.generate(bars=8, temperature=0.9, top_p=0.95, random_seed=random_seed)


def test_what_is_shipped(sampler: Sampler) -> None:
    folder = bundled_folder()
    assert (folder / "model.safetensors").stat().st_size <= LIMIT
    card = (folder / "README.md").read_text(encoding="utf-8")
    for credit in ("OpenScore", "Mutopia", "polishscores.org", "chopinscores.org", "Freedoom", "Groove MIDI"):
        assert credit in card
    notices = (folder / "NOTICES.txt").read_text(encoding="utf-8")
    assert card.split("## Credits")[1].strip() in notices, "they go with a model that is fine-tuned from it"
    assert "Redistributions in binary form must reproduce" in notices, "Freedoom's licence asks for it"
    assert sampler.originality_index is not None
    names = [path.name for path in folder.rglob("*") if path.suffix in (".mid", ".midi")]
    assert not names, "weights, not music"


def test_files_are_looked_up_in_its_music_by_default() -> None:
    ((_, found),) = check_files(None, SAMPLES[:1])
    assert found == check_files(bundled_folder(), SAMPLES[:1])[0][1]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_continued(sampler: Sampler, path: Path) -> None:
    made = continued(sampler, path, random_seed=1)
    assert made.report.bars == 8
    notes = [note for instrument in made.midi.instruments for note in instrument.notes]
    assert len(notes) >= 8
    assert longest_repeated_run(made.midi) < 16, "it hammers one note"
    assert not any("one note" in finding for finding in collapse_report(made.midi).findings)


@pytest.mark.slow
def test_it_keeps_the_key_of_most(sampler: Sampler) -> None:
    """Notes of the continuations in the seeds' own scales; of twelve pitch classes drawn at random 7/12 would be."""
    shares = []
    for path in SAMPLES:
        made = continued(sampler, path, random_seed=2)
        key = estimate_key(sampler.state.seed)
        if key is not None and estimate_key(made.midi) is not None:
            shares.append(pitch_in_scale(made.midi, key.tonic, key.mode))
    assert len(shares) >= 14
    assert np.mean(shares) > 0.75


def test_it_starts_from_nothing_too(sampler: Sampler) -> None:
    sampler.prime(None)
    made = sampler.generate(bars=8, temperature=0.9, top_p=0.95, random_seed=3)
    assert made.report.bars == 8
    assert sum(len(instrument.notes) for instrument in made.midi.instruments) >= 8


@pytest.mark.parametrize("name", ["drunken_sailor", "yankee_doodle"])
def test_drums_do_not_drown_the_tune(sampler: Sampler, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bar of drums alone the next one holds a note with a pitch; in bursts and token by token."""
    sampler.prime(SAMPLES[0].with_name(f"{name}.mid"), seed_bars=8)
    made = {}
    for bursts in (True, False):
        monkeypatch.setattr("melodia.sampler.sampler.Loop", lambda *them, b=bursts: Loop(*them, bursts=b))
        made[bursts] = sampler.generate(bars=8, temperature=0.9, top_p=0.95, random_seed=1)
    assert made[True].tokens.tolist() == made[False].tokens.tolist()
    midi = made[True].midi
    lines = [*midi.get_downbeats(), midi.get_end_time()]
    pitched = [note for instrument in midi.instruments if not instrument.is_drum for note in instrument.notes]
    heard = [
        any(note.start < end - 1e-6 and note.end > start + 1e-6 for note in pitched)
        for start, end in pairwise(lines[:9])
    ]
    assert not any(not first and not second for first, second in pairwise(heard))


def test_the_contest_of_the_card(tmp_path: Path) -> None:
    """Networks and the transformer in one table, the best first, all on the same pieces."""
    corpus = small_corpus(tmp_path / "corpus")
    pieces = list(corpus.pieces("valid"))
    for kind in ("gru", "lstm"):
        layers = {f"{kind}_layers": 1}
        model = ModelConfig(kind, vocab_size=corpus.vocabulary.size, hidden_size=8, **layers)
        config = dataclasses.replace(CONFIG, iterations=None, minutes=0.02)
        train(corpus, model, config, tmp_path / "runs" / kind)
    ratio = {"value": 9.0, "low": 8.0, "high": 9.5}
    report = {
        "parameters": 1000,
        "minutes": 0.02,
        "epochs": 0.1,
        "pieces": len(pieces),
        "layers": 2,
        "width": 64,
    }
    report |= {"nats_per_token": ratio, "nats_per_note": ratio}
    file = tmp_path / "runs" / "transformer.json"
    file.write_text(json.dumps(report), encoding="utf-8")
    rows = contest(tmp_path / "runs", pieces)
    values = [row["nats_per_token"]["value"] for row in rows]
    assert values == sorted(values)
    assert rows[-1]["name"] == "transformer, 2 layers of 64"
    assert {row["name"] for row in rows[:2]} == {"gru, 8 units", "lstm, 8 units"}
    table = contest_table(rows).splitlines()
    assert len(table) == 5
    assert table[-1].endswith("| 9.000 [8.000, 9.500] | 9.00 |")
    file.write_text(json.dumps(report | {"pieces": 1}), encoding="utf-8")
    with pytest.raises(CorpusError, match="1 pieces"):
        contest(tmp_path / "runs", pieces)


def test_card_shows_means_over_pieces(tmp_path: Path) -> None:
    """A piece without a figure does not count; a figure that no piece has has no row."""
    four, one = tmp_path / "branches 4.json", tmp_path / "branches 1.json"
    real = {"a": {"voices, ratio": 1.5}}
    four.write_text(
        json.dumps(
            {
                "whole": {"w": {"voices, ratio": 0.5, "drums' share": None}},
                "held-out": {"a": {"voices, ratio": 1.0, "seed's key": 0.25}, "b": {"voices, ratio": None}},
                "real": real,
            }
        )
    )
    one.write_text(json.dumps({"whole": {"w": {"voices, ratio": 2.0}}, "held-out": {"a": {}}, "real": real}))
    tables = continuation_tables(continuation_means([four, one]))
    assert tables["pieces"].splitlines() == [
        "| 2 pieces | branches 4 | branches 1 | the pieces themselves |",
        "|---|---|---|---|",
        "| estimated key is the seed's key | 25% |  |  |",
        "| simultaneous voices, relative to the seed | 1.00 |  | 1.50 |",
    ]
    assert tables["whole"].splitlines()[2:] == ["| simultaneous voices, relative to the seed | 0.50 | 2.00 |"]
