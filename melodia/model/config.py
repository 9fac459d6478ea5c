"""What a model is: its kind and its sizes, as one small frozen value that is saved with the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from melodia.checks import real_number, truth_value, whole_number
from melodia.errors import ConfigError
from melodia.side_inputs import SideInputSpec

KINDS = ("lstm", "gru", "sequential", "reversed", "parallel", "bidirectional")
COMBINES = ("concat", "sum", "gated")
SIZES = {"tiny": 128, "small": 256, "base": 512, "large": 1024}  # hidden units of the presets
DROPOUT_FIELDS = ("dropout", "embedding_dropout", "weight_drop")  # no tensor depends on them
DROPOUTS = {"tiny": 0.1, "small": 0.2, "base": 0.3, "large": 0.4}
BLOCK_MAX = 256  # tokens, where the config names none; few bars are longer, and longer ones are cut

MAX_VOCABULARY, MAX_HIDDEN, MAX_LAYERS, MAX_SIDE_INPUTS, MAX_BLOCK = 1 << 20, 1 << 14, 64, 16, 1 << 14
MAX_DROPOUT = 0.999999


@dataclass(frozen=True)
class ModelConfig:
    """The kind and the sizes of a model; fields left at None take their kind's default.

    Attributes:
        kind: "lstm", "gru": plain; "sequential": LSTM layers, then GRU layers; "reversed": GRU, then LSTM;
            "parallel": an LSTM beside a GRU at every level; "bidirectional": a block-causal bidirectional
            encoder followed by a decoder of the other cell.
        vocab_size: V, the number of tokens.
        hidden_size: H, the units of every layer (of each half, in a parallel level; of the decoder, when
            bidirectional).
        embedding_size: D; None: H.
        lstm_layers, gru_layers: how many layers of each cell. None: 2 of a plain kind, else 1. Zero where the
            kind has none. A parallel stack has as many of one as of the other: its levels. Of a bidirectional
            model: the decoder's layers.
        combine: how a parallel level joins its halves. "concat" (default): a projection [2H -> H] of both;
            "sum"; "gated": a learned gate in (0, 1) per unit mixes them.
        encoder: the encoder's cell, "lstm" (default; the decoder is a GRU) or "gru" (the decoder is an LSTM).
        encoder_hidden_size: units of the encoder in each direction; None: H / 2.
        encoder_layers: its layers; None: 1.
        dropout: between layers and before the head, in [0, 1); one mask per sequence and call.
        embedding_dropout: the share of token types whose embedding is zero during one call.
        weight_drop: dropout on the recurrent weights W_hh, one mask per call.
        tie_weights: the head uses the embedding's weights; where H != D a learned projection [H -> D] comes
            before it.
        residual: every layer but the first adds its input to its output.
        layer_norm: LayerNorm on the input of every layer but the first, and of the head.
        side_inputs: the extra inputs of the first layer, one more embedding each (`melodia.side_inputs`).
        block_starts: bidirectional: the ids of the tokens that begin a block (bars). Empty: `block_length`
            rules.
        block_length: bidirectional: tokens of a block, instead of `block_starts`.
        block_max: bidirectional: a block that would grow longer is cut; None: 256 (or `block_length`).

    Raises:
        ConfigError: a value lies outside its limits or contradicts another.

    >>> ModelConfig(kind="sequential", vocab_size=500, hidden_size=128).lstm_layers
    1
    """

    kind: str
    vocab_size: int
    hidden_size: int
    embedding_size: int = None  # type: ignore[assignment]  # filled by __post_init__
    lstm_layers: int = None  # type: ignore[assignment]  # filled by __post_init__
    gru_layers: int = None  # type: ignore[assignment]  # filled by __post_init__
    combine: str | None = None
    encoder: str | None = None
    encoder_hidden_size: int | None = None
    encoder_layers: int | None = None
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    weight_drop: float = 0.0
    tie_weights: bool = False
    residual: bool = False
    layer_norm: bool = False
    side_inputs: tuple[SideInputSpec, ...] = ()
    block_starts: tuple[int, ...] = ()
    block_length: int | None = None
    block_max: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"`kind` must be one of {', '.join(KINDS)} (received {self.kind!r})")
        self._fill()
        self._check_sizes()
        self._check_layers()
        self._check_encoder()

    def _fill(self) -> None:
        """Put the kind's defaults where None stands, and lists from JSON into tuples."""

        def default(name: str, value: Any) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        default("embedding_size", self.hidden_size)
        has_lstm, has_gru = self._cells()
        count = 2 if self.kind in ("lstm", "gru") else 1
        default("lstm_layers", count if has_lstm else 0)
        default("gru_layers", count if has_gru else 0)
        if self.kind == "parallel":
            default("combine", "concat")
        if self.kind == "bidirectional":
            default("encoder", "lstm")
            default("encoder_hidden_size", max(1, whole_number("hidden_size", self.hidden_size, 1) // 2))
            default("encoder_layers", 1)
            default("block_max", BLOCK_MAX if self.block_length is None else self.block_length)
        for name in ("side_inputs", "block_starts"):
            if not isinstance(getattr(self, name), Iterable):
                raise ConfigError(f"`{name}` must be a list (received {getattr(self, name)!r})")
        object.__setattr__(self, "side_inputs", tuple(_side_input(value) for value in self.side_inputs))
        object.__setattr__(self, "block_starts", tuple(self.block_starts))

    def _cells(self) -> tuple[bool, bool]:
        """Whether the stack has LSTM layers, and whether it has GRU layers."""
        if self.kind == "bidirectional":
            return self.encoder == "gru", self.encoder != "gru"
        return self.kind != "gru", self.kind != "lstm"

    def _check_sizes(self) -> None:
        self._whole("vocab_size", 1, MAX_VOCABULARY)
        self._whole("hidden_size", 1, MAX_HIDDEN)
        self._whole("embedding_size", 1, MAX_HIDDEN)
        for name in DROPOUT_FIELDS:
            object.__setattr__(self, name, real_number(name, getattr(self, name), 0, MAX_DROPOUT))
        for name in ("tie_weights", "residual", "layer_norm"):
            object.__setattr__(self, name, truth_value(name, getattr(self, name)))
        if len(self.side_inputs) > MAX_SIDE_INPUTS:
            raise ConfigError(f"at most {MAX_SIDE_INPUTS} side inputs (received {len(self.side_inputs)})")
        for spec in self.side_inputs:
            whole_number("size", spec.size, 1, MAX_VOCABULARY)
        names = [spec.name for spec in self.side_inputs]
        if len(set(names)) < len(names):
            raise ConfigError(f"a side input is given twice: {', '.join(names)}")

    def _check_layers(self) -> None:
        for cell, present in zip(("lstm", "gru"), self._cells(), strict=True):
            layers = getattr(self, f"{cell}_layers")
            if present:
                self._whole(f"{cell}_layers", 1, MAX_LAYERS)
            elif layers != 0:
                encoder = f" with encoder={self.encoder!r}" if self.encoder else ""
                raise ConfigError(
                    f"a {self.kind} model{encoder} has no {cell.upper()} layers in its stack "
                    f"(received {cell}_layers={layers!r}); leave {cell}_layers out"
                )
        if self.kind == "parallel":
            if self.lstm_layers != self.gru_layers:
                raise ConfigError(
                    "a parallel model has as many LSTM as GRU layers, one of each per level "
                    f"(received {self.lstm_layers} and {self.gru_layers})"
                )
            if self.combine not in COMBINES:
                raise ConfigError(
                    f"`combine` must be one of {', '.join(COMBINES)} (received {self.combine!r})"
                )
        elif self.combine is not None:
            raise ConfigError(
                f"`combine` belongs to `kind` parallel (received {self.combine!r} with {self.kind!r}); leave it out"
            )

    def _check_encoder(self) -> None:
        if self.kind != "bidirectional":
            for name in ("encoder", "encoder_hidden_size", "encoder_layers", "block_length", "block_max"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"`{name}` belongs to `kind` bidirectional (received it with {self.kind!r}); leave it out"
                    )
            if self.block_starts:
                raise ConfigError(
                    f"block_starts belong to kind='bidirectional' (received them with {self.kind!r})"
                )
            return
        if self.encoder not in ("lstm", "gru"):
            raise ConfigError(f"`encoder` must be lstm or gru (received {self.encoder!r})")
        self._whole("encoder_hidden_size", 1, MAX_HIDDEN)
        self._whole("encoder_layers", 1, MAX_LAYERS)
        self._whole("block_max", 1, MAX_BLOCK)
        if bool(self.block_starts) == (self.block_length is not None):
            raise ConfigError(
                "a bidirectional model needs block_starts (the tokens that begin a block, such as bars) "
                f"or block_length, and not both (received {self.block_starts!r} and {self.block_length!r})"
            )
        if self.block_length is not None:
            self._whole("block_length", 1, MAX_BLOCK)
            if self.block_max != self.block_length:
                raise ConfigError(
                    "with block_length every block has that length; leave block_max out "
                    f"(received {self.block_length} and {self.block_max})"
                )
        starts = [
            whole_number(f"block_starts[{place}]", token, 0, self.vocab_size - 1)
            for place, token in enumerate(self.block_starts)
        ]
        object.__setattr__(self, "block_starts", tuple(starts))

    def _whole(self, name: str, low: int, high: int) -> None:
        object.__setattr__(self, name, whole_number(name, getattr(self, name), low, high))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy; fields that are None are left out."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["side_inputs"] = [[spec.name, spec.size] for spec in self.side_inputs]
        data["block_starts"] = list(self.block_starts)
        return {name: value for name, value in data.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: unknown or missing fields, or values that contradict each other.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ConfigError(f"unknown model settings: {', '.join(unknown)}; written by another version?")
        missing = sorted({"kind", "vocab_size", "hidden_size"} - set(data))
        if missing:
            raise ConfigError(f"model settings are missing: {', '.join(missing)}")
        try:
            return cls(**data)
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"model settings have the wrong form ({error})") from error

    @classmethod
    def preset(cls, kind: str, size: str, vocab_size: int, **changes: Any) -> ModelConfig:
        """A model of a ready size: tiny, small, base or large have 128, 256, 512 or 1024 hidden units.

        Plain kinds have two layers, the others one LSTM and one GRU layer. LayerNorm stands between levels above
        one another: kinds of a single level, parallel and bidirectional, do better without it
        (benchmarks/ABLATIONS.md). `changes` replace any field.

        >>> ModelConfig.preset("parallel", "small", vocab_size=500).hidden_size
        256
        """
        if size not in SIZES:
            raise ConfigError(f"`size` must be one of {', '.join(SIZES)} (received {size!r})")
        settings: dict[str, Any] = {
            "hidden_size": SIZES[size],
            "dropout": DROPOUTS[size],
            "layer_norm": kind not in ("parallel", "bidirectional"),
        }
        try:
            return cls(kind=kind, vocab_size=vocab_size, **(settings | changes))
        except TypeError as error:
            raise ConfigError(f"unknown model settings ({error})") from error

    @property
    def blocks(self) -> bool:
        """Whether the model cuts the music into blocks."""
        return self.kind == "bidirectional"


def _side_input(value: SideInputSpec | tuple[str, int]) -> SideInputSpec:
    """A SideInputSpec from itself or from a pair (name, size)."""
    if isinstance(value, SideInputSpec):
        return value
    try:
        name, size = value
        return SideInputSpec(name, size)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a side input is a pair of a name and a size (received {value!r})") from error
