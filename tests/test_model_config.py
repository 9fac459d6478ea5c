"""Configurations: defaults of every kind, contradictions refused, JSON and back, sizes that match."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from model_zoo import ZOO, make

from melodia.errors import ConfigError
from melodia.model import KINDS, SIZES, ModelConfig
from melodia.model.sizes import match_parameters, parameter_count


def config(kind: str = "sequential", **changes: Any) -> ModelConfig:
    return ModelConfig(**({"kind": kind, "vocab_size": 50, "hidden_size": 16} | changes))


def test_defaults_of_every_kind() -> None:
    got = {kind: config(kind, **({"block_length": 9} if kind == "bidirectional" else {})) for kind in KINDS}
    assert {kind: (c.lstm_layers, c.gru_layers) for kind, c in got.items()} == {
        "lstm": (2, 0),
        "gru": (0, 2),
        "sequential": (1, 1),
        "reversed": (1, 1),
        "parallel": (1, 1),
        "bidirectional": (0, 1),
    }
    assert got["parallel"].combine == "concat"
    bidirectional = got["bidirectional"]
    assert (bidirectional.encoder, bidirectional.encoder_hidden_size, bidirectional.encoder_layers) == (
        "lstm",
        8,
        1,
    )
    assert bidirectional.block_max == 9
    other = config("bidirectional", encoder="gru", block_starts=[3])
    assert (other.lstm_layers, other.gru_layers, other.block_max, other.block_starts) == (1, 0, 256, (3,))
    assert all(c.embedding_size == 16 for c in got.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "transformer"}, "`kind` must be one of lstm, gru"),
        ({"vocab_size": 0}, r"`vocab_size` must be a whole number between 1 and \d+ \(received 0\)"),
        ({"hidden_size": 16.0}, "`hidden_size` must be a whole number"),
        ({"hidden_size": True}, "`hidden_size` must be a whole number"),
        ({"hidden_size": 10**9}, "`hidden_size` must be a whole number"),
        (
            {"kind": "bidirectional", "hidden_size": "8", "block_length": 4},
            "`hidden_size` must be a whole number",
        ),
        ({"embedding_size": -1}, "`embedding_size` must be"),
        ({"dropout": 1.0}, r"`dropout` must be between 0 and 0.999999 \(received 1.0\)"),
        ({"weight_drop": -0.1}, "`weight_drop` must be between"),
        ({"embedding_dropout": float("nan")}, "`embedding_dropout` must be finite"),
        ({"dropout": "0.1"}, "`dropout` must be a number"),
        ({"residual": "no"}, "`residual` must be True or False"),
        ({"lstm_layers": 0}, "`lstm_layers` must be a whole number between 1"),
        ({"kind": "lstm", "gru_layers": 1}, "a lstm model has no GRU layers"),
        ({"kind": "gru", "lstm_layers": 2}, "a gru model has no LSTM layers"),
        (
            {"kind": "parallel", "lstm_layers": 2, "gru_layers": 1},
            r"as many LSTM as GRU layers.*received 2 and 1",
        ),
        ({"kind": "parallel", "combine": "product"}, "`combine` must be one of concat, sum, gated"),
        ({"combine": "sum"}, "`combine` belongs to `kind` parallel"),
        ({"encoder": "lstm"}, "`encoder` belongs to `kind` bidirectional"),
        ({"block_max": 9}, "`block_max` belongs to `kind` bidirectional"),
        ({"block_starts": (1,)}, "block_starts belong to kind='bidirectional'"),
        ({"kind": "bidirectional"}, "needs block_starts"),
        ({"kind": "bidirectional", "block_starts": (1,), "block_length": 4}, "and not both"),
        (
            {"kind": "bidirectional", "block_starts": (50,)},
            r"`block_starts\[0\]` must be .* between 0 and 49",
        ),
        ({"kind": "bidirectional", "block_length": 4, "block_max": 5}, "leave block_max out"),
        ({"kind": "bidirectional", "block_length": 0}, "`block_max` must be"),
        ({"kind": "bidirectional", "block_length": 4, "encoder": "rnn"}, "`encoder` must be lstm or gru"),
        (
            {"kind": "bidirectional", "block_length": 4, "lstm_layers": 1},
            "with encoder='lstm' has no LSTM layers",
        ),
        ({"kind": "bidirectional", "block_length": 4, "encoder_layers": 0}, "`encoder_layers` must be"),
        (
            {"side_inputs": (("position", 3), ("position", 4))},
            "a side input is given twice: position, position",
        ),
        ({"side_inputs": ("position", 3)}, "a side input is a pair of a name and a size"),
        ({"side_inputs": (("position", None),)}, "`size` must be a whole number"),
        ({"side_inputs": (("position", 0),)}, "`size` must be .*, at least 2 for side input position"),
        ({"side_inputs": (("position", 2.5),)}, "`size` must be a whole number"),
        ({"side_inputs": (("weather", 5),)}, "side input must be one of position"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


@pytest.mark.parametrize("name", ZOO)
def test_json_and_back(name: str) -> None:
    original = make(name).config
    assert ModelConfig.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_json_of_another_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown model settings: heads; written by another version"):
        ModelConfig.from_dict(config().to_dict() | {"heads": 8})
    with pytest.raises(ConfigError, match="are missing: hidden_size"):
        ModelConfig.from_dict({"kind": "lstm", "vocab_size": 4})
    with pytest.raises(ConfigError, match="`block_starts` must be a list"):
        ModelConfig.from_dict(config().to_dict() | {"block_starts": 5})


@pytest.mark.parametrize("kind", KINDS)
def test_presets(kind: str) -> None:
    blocks = {"block_starts": (4,)} if kind == "bidirectional" else {}
    presets = [ModelConfig.preset(kind, size, 500, **blocks) for size in SIZES]
    assert [preset.hidden_size for preset in presets] == [128, 256, 512, 1024]
    counts = [parameter_count(preset) for preset in presets]
    assert counts == sorted(counts)
    assert 1e5 < counts[0] < 1e6 < counts[2] < 1e7 < counts[3]


def test_presets_take_changes_and_refuse_other_names() -> None:
    assert ModelConfig.preset("gru", "tiny", 10, gru_layers=4, dropout=0.0).gru_layers == 4
    with pytest.raises(ConfigError, match="`size` must be one of tiny, small, base, large"):
        ModelConfig.preset("gru", "huge", 10)
    with pytest.raises(ConfigError, match="unknown model settings"):
        ModelConfig.preset("gru", "tiny", 10, heads=4)


@pytest.mark.parametrize("name", ZOO)
def test_counting_without_memory_equals_counting(name: str) -> None:
    model = make(name)
    assert (
        parameter_count(model.config) == model.parameter_count() == sum(p.numel() for p in model.parameters())
    )


def test_parameter_count_by_hand() -> None:
    D, H, V = 5, 7, 11
    lstm, gru = 4 * (D * H + H * H + 2 * H), 3 * (H * H + H * H + 2 * H)
    assert (
        parameter_count(ModelConfig("sequential", V, H, embedding_size=D)) == V * D + lstm + gru + V * H + V
    )
    tied = ModelConfig("sequential", V, H, embedding_size=D, tie_weights=True)
    assert parameter_count(tied) == V * D + lstm + gru + H * D + V
    same = ModelConfig("gru", V, H, gru_layers=1, tie_weights=True)
    assert parameter_count(same) == V * H + gru + V


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_all_kinds_reach_the_same_number_of_parameters(size: str) -> None:
    target = parameter_count(ModelConfig.preset("lstm", size, 437))
    for kind in KINDS:
        for tied in (False, True):
            blocks = {"block_starts": (4,)} if kind == "bidirectional" else {}
            preset = ModelConfig.preset(kind, size, 437, tie_weights=tied, **blocks)
            matched = match_parameters(preset, target)
            assert parameter_count(matched) == pytest.approx(target, rel=0.01)
            unchanged = {"hidden_size", "embedding_size", "encoder_hidden_size"}
            for field in dataclasses.fields(preset):
                if field.name not in unchanged:
                    assert getattr(matched, field.name) == getattr(preset, field.name)


def test_sizes_that_nothing_reaches_are_refused() -> None:
    with pytest.raises(ConfigError, match="no lstm model of this shape has 3 parameters"):
        match_parameters(ModelConfig("lstm", 50, 16), 3)
