"""The sampler: the same music whatever way it is asked for; sessions as values; seeds, reports, errors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sampler_helpers import check_continuation, make_seed, notes_of, scale, tiny_sampler, tokenizer_of

from melodia.errors import BackendError, CheckpointError, ConfigError, MelodiaError
from melodia.midi import midi_bytes, to_pretty_midi
from melodia.model import KINDS
from melodia.sampler import Event, Sampler, Session, feeding
from melodia.sampler.loading import check_device
from melodia.sampler.seed import BEGUN
from melodia.tokenizer import Tokenizer, TokenizerConfig

SCHEMES = ("REMI", "TSD", "MIDILike", "Structured", "PerTok")


pytestmark = pytest.mark.usefixtures("primed")


def tokens_of(sampler: Sampler, **settings: Any) -> list[int]:
    settings = {"bars": 2, "random_seed": 7} | settings
    return sampler.generate(**settings).tokens.tolist()


# -- the same music ---------------------------------------------------------------------------------------------


def test_one_random_seed_gives_one_file(sampler: Sampler) -> None:
    first, again = (sampler.generate(bars=2, random_seed=11) for _ in range(2))
    assert midi_bytes(first.joined_score) == midi_bytes(again.joined_score)
    assert midi_bytes(first.midi) == midi_bytes(again.midi)
    others = {tuple(tokens_of(sampler, random_seed=n)) for n in range(5)}
    others |= {tuple(tokens_of(sampler, session=n)) for n in range(5)}
    assert len(others) >= 9


def test_a_random_seed_that_was_drawn_is_reported(sampler: Sampler) -> None:
    drawn = sampler.generate(bars=1)
    again = sampler.generate(bars=1, random_seed=drawn.report.random_seed)
    assert again.tokens.tolist() == drawn.tokens.tolist()
    assert sampler.generate(bars=1).report.random_seed != drawn.report.random_seed


def test_generating_leaves_the_session_as_it_was(sampler: Sampler) -> None:
    before = tokens_of(sampler)
    list(itertools.islice(sampler.stream(endless=True, random_seed=1), 20))
    sampler.generate_many(2, bars=1)
    assert tokens_of(sampler) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_the_samples_one_by_one(kind: str) -> None:
    sampler = tiny_sampler(kind=kind)
    sampler.prime(make_seed(scale(2, (3, 4)), (3, 4)))
    many = sampler.generate_many(4, bars=2, random_seed=5, session=3)
    for k, made in enumerate(many):
        alone = sampler.generate(bars=2, random_seed=5, session=3 + k)
        assert made.tokens.tolist() == alone.tokens.tolist()
        np.testing.assert_allclose(made.nll, alone.nll, atol=1e-4)
        assert midi_bytes(made.score) == midi_bytes(alone.score)
        check_continuation(sampler, made, bars=2)
    assert len({tuple(made.tokens.tolist()) for made in many}) == 4


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("length", [{"bars": 2}, {"seconds": 5.0}])
def test_a_stream_gives_the_notes_of_generate(scheme: str, length: dict[str, Any]) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(2)[:-1]))
    made = sampler.generate(random_seed=4, **length)
    heard = list(sampler.stream(random_seed=4, **length))
    assert sorted(heard, key=key) == sorted(made.events, key=key)
    assert len(heard) > 0
    notes = sorted((round(e.onset_beats, 6), e.pitch, e.program) for e in heard)
    assert notes == sorted((onset, pitch, program) for program, onset, pitch, _, _ in notes_of(made.score))


def key(event: Event) -> tuple[float, int, int]:
    return event.onset_beats, event.program, event.pitch


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_read_in_chunks_is_the_seed_read_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = tiny_sampler(kind=kind)
    sampler.prime(make_seed(scale(4)))
    whole, report = sampler.state, sampler.prime_report
    made = tokens_of(sampler)
    monkeypatch.setattr(feeding, "CHUNK", 7)
    sampler.prime(make_seed(scale(4)))
    np.testing.assert_allclose(sampler.state.logits, whole.logits, atol=1e-4)
    assert sampler.prime_report is not None
    assert report is not None
    assert sampler.prime_report.nll == pytest.approx(report.nll, abs=1e-4)
    assert tokens_of(sampler) == made


@pytest.mark.parametrize("scheme", ["REMI", "MIDILike"])
def test_a_seed_in_two_parts_is_the_seed_at_once(scheme: str) -> None:
    sampler = tiny_sampler(scheme)
    ids = sampler.tokenizer.encode(make_seed(scale(3))).ids
    sampler.prime(ids)
    made, state = tokens_of(sampler), sampler.state
    cut = next(
        i for i in range(len(ids) // 2, len(ids)) if sampler.vocabulary.types[ids[i]] in ("Bar", "TimeShift")
    )
    sampler.prime(ids[:cut])
    sampler.prime(ids[cut:], append=True)
    assert sampler.state.context == state.context
    assert sampler.state.fed == state.fed
    assert tokens_of(sampler) == made


def test_more_of_a_seed_may_say_another_density_and_is_never_cut() -> None:
    sampler = tiny_sampler(sides=("density",))
    ids = sampler.tokenizer.encode(make_seed(scale(3))).ids
    second, third = np.flatnonzero(np.isin(ids, sampler.vocabulary.ids_of("Bar")))[1:]
    sampler.prime(ids[:second], density=2)
    sampler.prime(ids[second:third], append=True)
    assert sampler.state.side.density == 2
    sampler.prime(ids[third:], append=True, density=7)
    assert sampler.state.side.density == 7
    for cut in ({"seed_bars": 1}, {"seed_seconds": 1.0}):
        with pytest.raises(ConfigError, match="`append` takes no"):
            sampler.prime(ids[third:], append=True, **cut)  # type: ignore[arg-type]


def test_the_reported_nll_is_the_models(sampler: Sampler) -> None:
    """The NLL of a continuation is that of feeding seed and continuation as one seed, whatever the filters."""
    sampler = tiny_sampler(sides=("position", "lookback1"))
    ids = sampler.tokenizer.encode(make_seed(scale(2))).ids
    first = sampler.prime(ids)
    made = sampler.generate(bars=2, random_seed=3, top_k=5, temperature=0.5)
    whole = sampler.prime(np.concatenate([ids, made.tokens]))
    total = first.nll * len(ids) + float(made.nll.sum())
    assert whole.nll * whole.tokens == pytest.approx(total, rel=1e-4)
    assert made.report.entropy < np.log(5)


# -- sessions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_session_is_the_session(kind: str, tmp_path: Path) -> None:
    sampler = tiny_sampler(kind=kind)
    sampler.prime(make_seed([*scale(2), (0, 8, 40, 33)]))
    made = sampler.generate(bars=2, random_seed=2)
    path = sampler.save_state(tmp_path / "session.safetensors")
    other = tiny_sampler(kind=kind)
    other.load_state(path)
    again = other.generate(bars=2, random_seed=2)
    assert again.tokens.tolist() == made.tokens.tolist()
    assert midi_bytes(again.joined_score) == midi_bytes(made.joined_score)


def test_forks_are_independent(sampler: Sampler) -> None:
    made = tokens_of(sampler)
    twin = sampler.fork()
    twin.prime(make_seed(scale(3, (3, 4)), (3, 4)))
    assert tokens_of(twin) != made
    assert tokens_of(sampler) == made


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_endless_stream_goes_on_from_a_saved_snapshot(scheme: str, tmp_path: Path) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(2)))
    stream = sampler.stream(endless=True, random_seed=8)
    heard = list(itertools.islice(stream, 9))
    snapshot = stream.state
    rest = list(itertools.islice(stream, 25))
    snapshot.save(tmp_path / "live.safetensors")
    other = tiny_sampler(scheme)
    loaded = other.load_state(tmp_path / "live.safetensors")
    for state, by in ((snapshot, sampler), (loaded, other)):
        assert list(itertools.islice(by.stream(state=state, endless=True, random_seed=8), 25)) == rest
    assert len(heard) == 9


@pytest.mark.parametrize("scheme", ["REMI", "TSD"])
def test_music_goes_on_behind_a_continuation(scheme: str) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(2, (3, 4)), (3, 4), tempo=77))
    first = sampler.generate(bars=2, random_seed=1)
    second = sampler.generate(bars=3, random_seed=1, state=first.state)
    assert second.report.tempo == pytest.approx(77, abs=0.01)
    joined = second.joined_score
    beginning = [note for note in notes_of(joined) if note[1] < 6 + 6]
    assert [n[:3] for n in beginning] == [n[:3] for n in notes_of(first.joined_score)]
    assert len(notes_of(joined)) == 6 + first.report.notes + second.report.notes
    assert max(note[3] for note in notes_of(joined)) <= 6 + 6 + 9
    sampler.state = first.state
    check_continuation(sampler, second, bars=3)


def test_a_session_shows_where_it_stands_and_not_its_numbers(sampler: Sampler) -> None:
    shown = repr(sampler.state)
    assert len(shown) < 1000
    assert f"fed={sampler.state.fed}, " in shown
    assert "metre=(4, 4)" in shown


def test_a_file_that_appears_while_a_session_is_saved_stays(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("mine")
    monkeypatch.setattr("os.path.lexists", lambda path: False)  # as it was a moment ago
    with pytest.raises(CheckpointError, match="already exists"):
        sampler.save_state(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"


def test_sessions_of_other_models_and_damaged_files_are_refused(sampler: Sampler, tmp_path: Path) -> None:
    path = sampler.save_state(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="already exists"):
        sampler.save_state(path)
    sampler.save_state(path, force=True)
    other = tiny_sampler(kind="gru")
    with pytest.raises(CheckpointError, match="another model"):
        other.load_state(path)
    with pytest.raises(CheckpointError, match="another model"):
        other.state = sampler.state
    with pytest.raises(CheckpointError, match="another model"):
        other.generate(bars=1, state=sampler.state)
    with pytest.raises(CheckpointError, match="nothing: no such file; check the path"):
        sampler.load_state(tmp_path / "nothing")
    data = path.read_bytes()
    (tmp_path / "short").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="not a session"):
        sampler.load_state(tmp_path / "short")
    with pytest.raises(CheckpointError, match="cannot be written"):
        sampler.save_state(tmp_path / "no" / "such" / "folder")
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []
    with pytest.raises(CheckpointError, match="is a directory"):
        sampler.load_state(tmp_path)
    for place in (len(data) // 2, len(data) - 3, data.index(b'fed\\": ') + 7):
        flipped = bytearray(data)
        flipped[place] ^= 1
        (tmp_path / "flipped").write_bytes(flipped)
        with pytest.raises(CheckpointError, match="is damaged"):
            sampler.load_state(tmp_path / "flipped")
    arrays = {"a": np.zeros(3, np.float32)}
    import safetensors.numpy

    safetensors.numpy.save_file(arrays, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="not a saved session"):
        sampler.load_state(tmp_path / "foreign")


# -- seeds of every form, reports, errors -------------------------------------------------------------------------


def test_every_form_of_a_seed_is_the_same_seed(sampler: Sampler, tmp_path: Path) -> None:
    score = make_seed(scale(2, program=3))
    data = midi_bytes(score)
    path = tmp_path / "seed.mid"
    path.write_bytes(data)
    ids = sampler.tokenizer.encode(score).ids
    made = set()
    for form in (score, data, path, str(path), to_pretty_midi(score), ids, ids.tolist()):
        sampler.prime(form)
        made.add(tuple(tokens_of(sampler)))
    assert len(made) == 1


def test_bpe_tokens(sampler: Sampler) -> None:
    base = tokenizer_of("REMI")
    pieces = [base.encode(make_seed(scale(8, program=p))).ids for p in (0, 5)]
    tokenizer = Tokenizer(TokenizerConfig(bpe_vocab_size=base.vocabulary.size + 40)).train_bpe(pieces)
    assert tokenizer.vocabulary.expansions
    sampler = tiny_sampler(tokenizer=tokenizer)
    import torch

    with torch.no_grad():
        sampler.model.head.bias[list(tokenizer.vocabulary.expansions)] += 4
    sampler.prime(make_seed(scale(2)))
    made = sampler.generate(bars=3, random_seed=2)
    check_continuation(sampler, made, bars=3)
    assert any(int(t) in tokenizer.vocabulary.expansions for t in made.tokens)
    assert sorted(sampler.stream(bars=3, random_seed=2), key=key) == sorted(made.events, key=key)


def test_reports_are_text_and_json(sampler: Sampler) -> None:
    import json

    made = sampler.generate(bars=1, random_seed=42)
    text = "\n".join(made.report.lines())
    assert "random seed 42" in text
    assert "1 bar of 4/4 at 96 quarter notes" in text
    assert json.loads(json.dumps(made.report.to_dict()))["bars"] == 1
    assert sampler.prime_report is not None
    assert json.loads(json.dumps(sampler.prime_report.to_dict()))["notes"] == 8
    assert made.report.backend.endswith("on cpu")


def test_bad_seeds_are_refused_and_leave_the_session(sampler: Sampler, tmp_path: Path) -> None:
    before = tokens_of(sampler)
    empty = tmp_path / "empty.mid"
    empty.write_bytes(b"")
    for seed in (empty, tmp_path / "none.mid", b"no midi", [1, 1, 1], [10**6], [], np.zeros(3)):
        with pytest.raises(MelodiaError):
            sampler.prime(seed)
    with pytest.raises(ConfigError, match="not both"):
        sampler.prime(make_seed(scale(1)), seed_bars=1, seed_seconds=1.0)
    with pytest.raises(ConfigError, match="need a seed"):
        sampler.prime(None, seed_bars=1)
    for wrong in (0, 10**30):
        message = "`num_samples` must be a whole number between 1 and 100000 .*another `session`"
        with pytest.raises(ConfigError, match=message):
            sampler.generate_many(wrong)
        with pytest.raises(ConfigError, match=message):
            sampler.fill(make_seed(scale(2)), (1, 1), num_samples=wrong)
    with pytest.raises(
        ConfigError, match=r"`num_samples` count up from `session`, .*received 3 from 4294967294\)"
    ):
        sampler.generate_many(3, bars=1, session=2**32 - 2)
    assert len(sampler.generate_many(2, bars=1, session=2**32 - 2)) == 2
    assert tokens_of(sampler) == before


def test_without_a_model_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Sampler.load(tmp_path)
    for device in ("abacus", "meta", "mps", "auto:1", "cuda:x", "cpu:0"):
        with pytest.raises(ConfigError, match="`device` must be auto, cpu, cuda or cuda:N"):
            check_device(device)
    with pytest.raises(BackendError, match="cuda:9999"):
        check_device("cuda:9999")


def test_a_checkpoint_is_loaded(sampler: Sampler, tmp_path: Path) -> None:
    from melodia.model.checkpoint import save_checkpoint

    folder = save_checkpoint(
        tmp_path / "model",
        sampler.model,
        vocabulary=sampler.vocabulary,
        tokenizer_json=sampler.tokenizer.to_dict(),
    )
    loaded = Sampler.load(folder, device="cpu", backend="reference")
    loaded.prime(make_seed(scale(2)))
    assert tokens_of(loaded) == tokens_of(sampler)
    session = loaded.state
    assert isinstance(session, Session)
    assert loaded.generate(bars=1, random_seed=1).report.backend == "reference on cpu"


def test_ids_that_only_begin_a_note_are_dropped_and_named() -> None:
    """What is begun belongs to what is appended: given again, all of the music is there."""
    sampler = tiny_sampler()
    ids = sampler.tokenizer.encode(make_seed(scale(3))).ids
    tokens = sampler.vocabulary.tokens
    place = next(k for k in range(20, len(ids)) if tokens[ids[k]].startswith("Position"))
    report = sampler.prime(ids[: place + 1])
    assert [(each.kind, each.what, each.count) for each in report.findings] == [("dropped", BEGUN, 1)]
    assert sampler.prime(ids[place:], append=True).findings == []
    appended = sampler.state.ids
    sampler.prime(ids)
    assert appended is not None
    assert appended.tolist() == sampler.state.ids.tolist()
