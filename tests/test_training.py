"""The loop: it learns, validates exactly, keeps the best, says what worries it, and starts from a checkpoint."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from training_helpers import ENVIRONMENT, small_corpus, small_vocabulary

from melodia.corpus.shards import Corpus, ShardWriter
from melodia.errors import ConfigError, TrainingError
from melodia.model import Model, ModelConfig
from melodia.model import state as states
from melodia.model.checkpoint import load_checkpoint, save_checkpoint
from melodia.training import (
    Plan,
    Preparer,
    Progress,
    Step,
    TrainingConfig,
    TrainingSummary,
    Validation,
    World,
    evaluate,
    train,
)
from melodia.training.learner import Learner
from melodia.training.loss import nll_sum
from melodia.training.optimiser import AveragedWeights, make_optimiser
from melodia.training.streams import IGNORED

SMALL = {"batch_size": 4, "window": 32, "learning_rate": 1e-2, "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), pieces=40, valid=6)


def model_config(corpus: Corpus, kind: str = "gru", **changes: object) -> ModelConfig:
    size = corpus.vocabulary.size
    return ModelConfig(kind=kind, vocab_size=size, hidden_size=24, lstm_layers=None, **changes)  # type: ignore[arg-type]


class Record(Progress):
    """Everything that was told."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.steps: list[Step] = []
        self.validations: list[Validation] = []
        self.warnings: list[str] = []
        self.saves: list[int] = []
        self.summary: TrainingSummary | None = None

    def started(self, plan: Plan) -> None:
        self.plan = plan

    def stepped(self, step: Step) -> None:
        self.steps.append(step)

    def validated(self, validation: Validation) -> None:
        self.validations.append(validation)

    def warned(self, text: str) -> None:
        self.warnings.append(text)

    def saved(self, iteration: int) -> None:
        self.saves.append(iteration)

    def finished(self, summary: TrainingSummary) -> None:
        self.summary = summary


# -- configuration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one budget.*received none"),
        ({"epochs": 1, "minutes": 2}, "received epochs, minutes"),
        ({"minutes": 0}, "`minutes` must be above 0"),
        ({"minutes": math.inf}, "`minutes` must be finite"),
        ({"minutes": 1e308}, "`minutes` must be above 0 and at most 1000000000"),
        ({"epochs": 1e308}, "`epochs` must be above 0 and at most 1000000000"),
        ({"iterations": 10**400}, "`iterations` must be a whole number between 1 and"),
        ({"iterations": 1, "batch_size": 0}, "`batch_size` must be a whole number between 1"),
        ({"iterations": 1, "learning_rate": 0}, "`learning_rate` must be above 0 and at most 10"),
        ({"iterations": 1, "learning_rate": math.nan}, "`learning_rate` must be finite"),
        ({"iterations": 1, "transpose_down": 3}, "`transpose_down` must be a whole number between -24 and 0"),
        ({"iterations": 1, "precision": "fp8"}, "`precision` must be one of"),
        ({"iterations": 1, "device": "tpu"}, "`device` must be"),
        ({"iterations": 1, "device": "auto:1"}, "`device` must be"),
        ({"iterations": 1, "batch_size": 16.5}, "`batch_size` must be a whole number"),
        ({"minutes": True}, "`minutes` must be a number"),
        ({"iterations": 2.5}, "`iterations` must be a whole number"),
        ({"iterations": 1, "random_seed": 1.5}, "`random_seed` must be a whole number"),
        ({"iterations": 1, "recompute": "no"}, "`recompute` must be True or False"),
        ({"iterations": 1, "precision": ["fp32"]}, "`precision` must be one of"),
        ({"iterations": 1, "ema": 1.0}, "`ema` must be between"),
    ],
)
def test_configs_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**settings)


def test_config_through_json() -> None:
    config = TrainingConfig(minutes=20, patience=None)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="unknown training settings: speed"):
        TrainingConfig.from_dict({"epochs": 1, "speed": 3})


# -- loss and update -------------------------------------------------------------------------------------------


def test_nll_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]]))
    objective, nats = nll_sum(logits, torch.tensor([[0, IGNORED, 2]]))
    assert nats.item() == pytest.approx(-math.log(0.5) - math.log(0.6), abs=1e-6)
    assert objective.item() == nats.item()
    smooth, plain = nll_sum(logits, torch.tensor([[0, IGNORED, 2]]), label_smoothing=0.3)
    uniform = -(math.log(0.5 * 0.25 * 0.25) + math.log(0.2 * 0.2 * 0.6)) / 3
    assert plain.item() == pytest.approx(nats.item(), abs=1e-6)
    assert smooth.item() == pytest.approx(0.7 * nats.item() + 0.3 * uniform, abs=1e-5)


def test_an_update_is_adamw_on_the_mean_over_scored_targets(corpus: Corpus) -> None:
    """The same update written out by hand, over three windows with carried and reset states."""
    config = TrainingConfig(iterations=9, **(SMALL | {"window": 8}), ema=0.0, transpose_probability=0.0)  # type: ignore[arg-type]
    learner = Learner(corpus, Model(model_config(corpus), random_seed=3), config, World())
    twin = Model(model_config(corpus), random_seed=3).train()
    optimiser = make_optimiser(twin, config)
    batches = Learner(corpus, Model(model_config(corpus)), config, World()).stream
    state = twin.initial_state(4)
    resets = 0
    for i in range(12):
        update = learner.update([2.0], lambda signals: 0.01 * signals[0])
        batch = batches.next()
        resets += int(batch.starts.sum())
        goes_on = torch.from_numpy(~batch.starts)[:, None]
        state = states.map(goes_on.mul, state)
        logits, state = twin(torch.from_numpy(batch.tokens), None, state, torch.from_numpy(batch.lengths))
        targets = torch.from_numpy(batch.targets)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 0.02
        optimiser.step()
        optimiser.zero_grad()
        state = states.detach(state)
        assert update.losses[0].item() / update.scored == pytest.approx(loss.item(), rel=1e-4), i
        assert update.rate == 0.02
    assert resets > 4
    for ours, theirs in zip(learner.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def test_weight_decay_spares_embeddings_biases_and_gains(corpus: Corpus) -> None:
    model = Model(model_config(corpus, layer_norm=True, side_inputs=(("position", 8),)))
    optimiser = make_optimiser(model, TrainingConfig(iterations=1, weight_decay=0.5))
    decayed = {id(p) for group in optimiser.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert names
    assert all("weight" in name and not name.startswith("input") and "norm" not in name for name in names)
    assert "head.weight" in names
    assert any("weight_hh" in name for name in names)


def test_averaged_weights_by_hand(corpus: Corpus) -> None:
    model = Model(model_config(corpus))
    average = AveragedWeights(model, 0.5)
    (live, mean) = (next(iter(m.parameters())) for m in (model, average.model))
    expected = live.detach().clone()
    for iteration in range(1, 8):
        with torch.no_grad():
            live.add_(1.0)
        average.update(iteration)
        decay = min(0.5, (1 + iteration) / (10 + iteration))
        expected = decay * expected + (1 - decay) * live.detach()
        torch.testing.assert_close(mean, expected)
    assert not mean.requires_grad
    assert AveragedWeights(model, 0.0).model is model


# -- validation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lstm", "bidirectional"])
def test_validation_is_exact(corpus: Corpus, kind: str) -> None:
    """Against one forward of each whole piece on its own, however many lanes and whatever the window."""
    blocks = {"block_starts": corpus.vocabulary.ids_of("Bar")} if kind == "bidirectional" else {}
    model = Model(model_config(corpus, kind, dropout=0.5, **blocks), random_seed=1).train()
    pieces, v = corpus.pieces("train"), corpus.vocabulary
    nats, tokens = [], []
    model.eval()
    for piece in pieces:
        ids = torch.tensor(piece.tokens.astype(np.int64))[None]
        logits, _ = model(F.pad(ids, (1, 0), value=v.bos))
        targets = F.pad(ids, (0, 1), value=v.eos)
        losses = F.cross_entropy(logits[0], targets[0], reduction="none").double()
        scored = torch.ones(len(losses), dtype=torch.bool)
        if piece.constant_velocity:
            scored = torch.tensor([v.types[token] != "Velocity" for token in targets[0].tolist()])
        nats.append(losses[scored].sum().item())
        tokens.append(int(scored.sum()))
    assert min(tokens) < max(tokens)
    model.train()
    plain = Preparer(v, ())
    for lanes, window in [(1, 1000), (7, 13), (64, 50)]:
        result = evaluate(model, pieces, plain, lanes=lanes, window=window)
        np.testing.assert_allclose(result.nats, nats, rtol=1e-5)
        assert result.tokens.tolist() == tokens
        assert result.notes.tolist() == pieces.notes.tolist()
        assert result.bars is not None
        assert result.bars.tolist() == pieces.bars.tolist()
    assert model.training
    some = evaluate(model, pieces, plain, numbers=[5, 2])
    np.testing.assert_allclose(some.nats, [nats[5], nats[2]], rtol=1e-5)
    assert len(evaluate(model, pieces, plain, numbers=[]).nats) == 0


# -- whole runs ------------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_everything_behind(corpus: Corpus, tmp_path: Path) -> None:
    record = Record()
    specs = (("position", 8), ("lookback1", corpus.vocabulary.size + 1), ("bars_left", 17), ("density", 9))
    form = model_config(corpus, "sequential", dropout=0.1, side_inputs=specs)
    config = TrainingConfig(epochs=12, **SMALL, eval_every=20)  # type: ignore[arg-type]
    summary = train(corpus, form, config, tmp_path / "out", progress=record)
    # uniform over the vocabulary: log 66 = 4.19; the metre alone, pitches unknown: about log(24) / 4 + ... = 0.9
    assert record.validations[0].nats_per_token > 1.5
    assert summary.valid_nats_per_token < 0.75
    assert summary == record.summary
    assert summary.stopped == "budget"
    assert summary.iterations == record.steps[-1].iteration == record.plan.iterations
    assert summary.epochs == pytest.approx(12, abs=0.1)
    assert record.steps[-1].fraction == 1.0
    assert record.steps[-1].eta == 0.0
    assert [step.iteration for step in record.steps] == list(range(1, summary.iterations + 1))
    best = min(record.validations, key=lambda validation: validation.nats_per_token)
    assert best.best
    assert summary.best_iteration == best.iteration
    assert summary.valid_nats_per_token == best.nats_per_token

    checkpoint = load_checkpoint(tmp_path / "out" / "best")
    assert checkpoint.config == form
    assert checkpoint.vocabulary == corpus.vocabulary
    assert checkpoint.corpus_fingerprint == corpus.fingerprint
    assert checkpoint.training["valid_nats_per_token"] == best.nats_per_token
    assert TrainingConfig.from_dict(checkpoint.training["settings"]) == config
    plain = Preparer(corpus.vocabulary, form.side_inputs)
    scores = evaluate(checkpoint.model, corpus.pieces("valid"), plain)
    assert scores.nats_per_token == pytest.approx(best.nats_per_token, rel=1e-6)
    assert scores.nats_per_note == pytest.approx(best.nats_per_note, rel=1e-6)

    with (tmp_path / "out" / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    validated = [row for row in rows if row["valid_nats_per_token"]]
    assert [int(row["iteration"]) for row in validated] == [v.iteration for v in record.validations]
    assert float(validated[-1]["valid_nats_per_token"]) == pytest.approx(
        record.validations[-1].nats_per_token
    )
    assert list((tmp_path / "out" / "tensorboard").glob("events.*"))


def test_same_seed_same_weights(corpus: Corpus, tmp_path: Path) -> None:
    form = model_config(corpus, dropout=0.3, weight_drop=0.2, embedding_dropout=0.1)
    config = TrainingConfig(iterations=12, **SMALL)  # type: ignore[arg-type]

    def weights(name: str, config: TrainingConfig, noise: int) -> bytes:
        torch.manual_seed(noise)  # torch's own random numbers are of no consequence
        train(corpus, form, config, tmp_path / name)
        return (tmp_path / name / "best" / "model.safetensors").read_bytes()

    first = weights("a", config, 1)
    assert weights("b", config, 2) == first
    assert weights("c", dataclasses.replace(config, random_seed=1), 1) != first


def test_minutes(corpus: Corpus, tmp_path: Path) -> None:
    record = Record()
    config = TrainingConfig(minutes=0.03, **SMALL)  # type: ignore[arg-type]
    summary = train(corpus, model_config(corpus), config, tmp_path, progress=record)
    assert 0.9 < summary.seconds < 6
    assert summary.iterations > 10
    assert record.plan.seconds == pytest.approx(1.8)
    assert record.steps[0].learning_rate <= 1e-2 / 20  # warming up, however slow the machine
    assert record.steps[-1].learning_rate < 2e-3
    assert len(record.validations) >= 2
    assert record.steps[3].eta < 1.8


def test_patience_stops_early(corpus: Corpus, tmp_path: Path) -> None:
    record = Record()
    settings = SMALL | {"learning_rate": 1e-30}
    config = TrainingConfig(iterations=500, **settings, eval_every=2, patience=3)  # type: ignore[arg-type]
    summary = train(corpus, model_config(corpus), config, tmp_path, progress=record)
    assert summary.stopped == "patience"
    assert [validation.best for validation in record.validations] == [True, False, False, False]
    assert summary.best_iteration == 2
    again = train(corpus, model_config(corpus), config, tmp_path, resume=True)
    assert (again.stopped, again.iterations) == ("patience", 8)


def test_overfitting_is_told_once(tmp_path: Path) -> None:
    """Random tokens cannot be generalised, only learned by heart."""
    vocabulary, rng = small_vocabulary(), np.random.default_rng(0)
    with ShardWriter(tmp_path / "corpus", vocabulary) as writer:
        for split in ("train", "train", "valid"):
            writer.add(split, rng.integers(20, 50, 60))
    record = Record()
    settings = SMALL | {"batch_size": 2, "window": 100}
    config = TrainingConfig(
        iterations=150, **settings, transpose_probability=0.0, eval_every=10, patience=None, ema=0.0
    )  # type: ignore[arg-type]
    corpus = Corpus.open(tmp_path / "corpus")
    summary = train(corpus, model_config(corpus), config, tmp_path / "out", progress=record)
    told = [text for text in record.warnings if "overfitting has begun" in text]
    assert len(told) == 1
    assert f"iteration {summary.best_iteration})" in told[0]
    assert summary.best_iteration < 150
    assert set(record.warnings) == set(summary.warnings)
    assert any("the corpus is small: 2 pieces with 120 tokens" in text for text in record.warnings)


def test_without_validation_pieces_the_last_weights_are_kept(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "corpus", pieces=4, valid=0)
    record = Record()
    config = TrainingConfig(iterations=6, **SMALL, eval_every=3, patience=1)  # type: ignore[arg-type]
    summary = train(corpus, model_config(corpus), config, tmp_path / "out", progress=record)
    assert summary.best_iteration == 6
    assert math.isnan(summary.valid_nats_per_token)
    assert load_checkpoint(tmp_path / "out" / "best").training["iterations"] == 6
    assert any("no piece is held out" in text for text in record.warnings)


def test_fine_tuning_begins_where_the_checkpoint_ends(corpus: Corpus, tmp_path: Path) -> None:
    config = TrainingConfig(iterations=80, **SMALL)  # type: ignore[arg-type]
    first = train(corpus, model_config(corpus), config, tmp_path / "a")
    record = Record()
    short = TrainingConfig(iterations=2, **SMALL | {"learning_rate": 1e-5}, eval_every=1)  # type: ignore[arg-type]
    train(corpus, None, short, tmp_path / "b", init=tmp_path / "a" / "best", progress=record)
    assert record.validations[0].nats_per_token == pytest.approx(first.valid_nats_per_token, abs=0.01)

    with pytest.raises(ConfigError, match="model of another shape"):
        train(corpus, model_config(corpus, "lstm"), short, tmp_path / "c", init=tmp_path / "a" / "best")
    v = corpus.vocabulary
    other = dataclasses.replace(v, tokens=(*v.tokens[:-2], v.tokens[-1], v.tokens[-2]))
    save_checkpoint(tmp_path / "other", Model(model_config(corpus)), vocabulary=other, tokenizer_json="{}")
    with pytest.raises(TrainingError, match="another vocabulary"):
        train(corpus, None, short, tmp_path / "c", init=tmp_path / "other")
    assert not (tmp_path / "c").exists()


def test_refusals(corpus: Corpus, tmp_path: Path) -> None:
    config = TrainingConfig(iterations=1, **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nothing says what to train"):
        train(corpus, None, config, tmp_path / "out")
    with pytest.raises(ConfigError, match="the model has 9 tokens, the corpus 66"):
        train(corpus, ModelConfig(kind="gru", vocab_size=9, hidden_size=4), config, tmp_path / "out")
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="0 CUDA devices"):
            train(corpus, model_config(corpus), dataclasses.replace(config, device="cuda"), tmp_path / "out")
    train(corpus, model_config(corpus), config, tmp_path / "out")
    with pytest.raises(TrainingError, match="already holds a training run"):
        train(corpus, model_config(corpus), config, tmp_path / "out")
    longer = dataclasses.replace(config, iterations=2)
    assert train(corpus, model_config(corpus), longer, tmp_path / "out", force=True).iterations == 2


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(corpus: Corpus, tmp_path: Path) -> None:
    class Poison(Record):
        def __init__(self, model: list[Model]) -> None:
            super().__init__()
            self.model = model

        def stepped(self, step: Step) -> None:
            if step.iteration == 7:
                with torch.no_grad():
                    next(iter(self.model[0].parameters())).fill_(math.nan)

    made: list[Model] = []
    original = Learner.__init__

    def remember(self: Learner, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        made.append(self.model)

    config = TrainingConfig(iterations=20, **SMALL, eval_every=5, save_every=1e6)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "__init__", remember)
        with pytest.raises(TrainingError, match=r"stopped being finite at iteration 8 .*lower learning rate"):
            train(corpus, model_config(corpus), config, tmp_path / "out", progress=Poison(made))
    kept = load_checkpoint(tmp_path / "out" / "best")
    assert kept.training["iterations"] == 5
    assert all(bool(p.isfinite().all()) for p in kept.model.parameters())
    train(corpus, model_config(corpus), config, tmp_path / "whole")
    resumed = train(corpus, model_config(corpus), config, tmp_path / "out", resume=True)
    assert resumed.iterations == 20
    weights = [(tmp_path / name / "best" / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]


def test_bfloat16_and_label_smoothing_train(corpus: Corpus, tmp_path: Path) -> None:
    config = TrainingConfig(iterations=40, **SMALL, precision="bf16", label_smoothing=0.05)  # type: ignore[arg-type]
    summary = train(corpus, model_config(corpus, "parallel"), config, tmp_path)
    assert summary.valid_nats_per_token < 2.5


IMPORTS = """
import sys
FORBIDDEN = ("miditok", "symusic", "pretty_midi", "mido", "matplotlib")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse())
import melodia.training, melodia.corpus, melodia.kernels, melodia.model.checkpoint
from melodia.training.logs import Logs
from pathlib import Path
from typing import Any
from training_helpers import ENVIRONMENT, small_corpus
from melodia.model import ModelConfig

out = Path(sys.argv[1])
corpus = small_corpus(out / "corpus")
form = ModelConfig(kind="gru", vocab_size=corpus.vocabulary.size, hidden_size=8, side_inputs=(("position", 8),))
config = melodia.training.TrainingConfig(iterations=2, batch_size=2, window=16)
melodia.training.train(corpus, form, config, out / "out")
print([name for name in FORBIDDEN if name in sys.modules])
"""


def test_training_imports_no_midi_library(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env=ENVIRONMENT,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_freed_memory_is_used_again() -> None:
    """Touching what was just freed clears no pages anew."""
    code = """
import resource
import torch
from melodia.training.memory import keep_freed_memory
assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, *rest = [faults() for _ in range(5)]  # where the heap has no room, one more piece is added to it
assert first > 1000 and rest[-1] < first / 10, (first, rest)
"""
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        pytest.skip("needs glibc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
