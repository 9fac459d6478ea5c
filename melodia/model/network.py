"""A model without torch: its configuration, its weights as arrays, and its state as arrays.

Names and shapes are those of `Model(config).state_dict()` and of `melodia.model.state.to_numpy`, in the same order.
Letters: V vocabulary, D embedding, H hidden, G gates (4H of an LSTM, 3H of a GRU), E units of an encoder in each
direction, S side inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from melodia.errors import need_torch
from melodia.model.config import ModelConfig

if TYPE_CHECKING:
    from melodia.model.model import Model

ModelState: TypeAlias = dict[str, NDArray[Any]]
"""The state of one session, each part [1, ...]; "0.1" is the second part of the first layer."""

GATES = {"lstm": 4, "gru": 3}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A model's configuration and weights.

    Attributes:
        config: what the weights mean.
        tensors: float32, by name; see `tensor_shapes`.
    """

    config: ModelConfig
    tensors: Mapping[str, NDArray[np.float32]] = field(repr=False)

    @classmethod
    def of(cls, model: Model) -> Network:
        """The arrays of a torch model: of one that is float32 and on the CPU views, else copies."""
        state = model.state_dict()
        return cls(model.config, {name: t.detach().float().cpu().numpy() for name, t in state.items()})

    def to_torch(self) -> Model:
        """A torch model in evaluation mode, on the CPU, that shares its memory with the arrays.

        Raises:
            BackendError: torch cannot be imported.
        """
        need_torch("a torch model")
        import torch

        from melodia.model.model import Model

        model = Model(self.config, random_seed=None)
        tensors = {name: torch.from_numpy(array) for name, array in self.tensors.items()}
        model.load_state_dict(tensors, assign=True)
        return model.eval()


def level_cells(config: ModelConfig) -> list[tuple[str, ...]]:
    """The cells of each level of the stack, from the input upwards: one, or an LSTM beside a GRU.

    >>> level_cells(ModelConfig("sequential", vocab_size=10, hidden_size=4))
    [('lstm',), ('gru',)]
    """
    if config.kind == "parallel":
        return [("lstm", "gru")] * config.lstm_layers
    lstm, gru = [("lstm",)] * config.lstm_layers, [("gru",)] * config.gru_layers
    return [*gru, *lstm] if config.kind == "reversed" else [*lstm, *gru]


def cell_prefix(index: int, cells: Sequence[str], cell: str) -> str:
    """Under which name a cell of a level stands in the state dict."""
    return f"stack.levels.{index}.{cell if len(cells) > 1 else 'layer'}"


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of each weight of a model; allocates none of them.

    >>> shapes = tensor_shapes(ModelConfig("gru", vocab_size=10, hidden_size=4, gru_layers=1))
    >>> shapes["stack.levels.0.layer.weight_hh"], shapes["head.bias"]
    ((12, 4), (10,))
    """
    V, D, H = config.vocab_size, config.embedding_size, config.hidden_size
    shapes: dict[str, Shape] = {"input.weight": (V, D)}
    for i, spec in enumerate(config.side_inputs):
        shapes[f"input.side.{i}"] = (spec.size, D)
    width = D
    if config.blocks:
        assert config.encoder is not None
        assert config.encoder_hidden_size is not None
        assert config.encoder_layers is not None
        E = config.encoder_hidden_size
        shapes["reader.encoder.start"] = (2 * E,)
        widths = [D] + [2 * E] * (config.encoder_layers - 1)
        for direction in ("forward", "backward"):
            for level, size in enumerate(widths):
                prefix = f"reader.encoder.{direction}_layers.{level}"
                shapes |= _cell_shapes(prefix, config.encoder, size, E)
        if config.layer_norm:
            for level in range(config.encoder_layers):
                shapes |= _pair(f"reader.encoder.norms.{level}", (2 * E,), 2 * E)
        width += 2 * E
    levels = level_cells(config)
    for index, cells in enumerate(levels):
        for cell in cells:
            shapes |= _cell_shapes(cell_prefix(index, cells, cell), cell, width, H)
        if len(cells) > 1 and config.combine != "sum":
            shapes |= _pair(f"stack.levels.{index}.projection", (H, 2 * H), H)
        width = H
    if config.layer_norm:
        for index in range(len(levels)):
            shapes |= _pair(f"stack.norms.{index}", (H,), H)
    if not config.tie_weights:
        shapes["head.weight"] = (V, H)
    shapes["head.bias"] = (V,)
    if config.tie_weights and H != D:
        shapes["head.projection.weight"] = (D, H)
    return shapes


def _cell_shapes(prefix: str, cell: str, input_size: int, hidden: int) -> dict[str, Shape]:
    G = GATES[cell] * hidden
    parts = {"weight_ih": (G, input_size), "weight_hh": (G, hidden), "bias_ih": (G,), "bias_hh": (G,)}
    return {f"{prefix}.{name}": shape for name, shape in parts.items()}


def _pair(prefix: str, weight: Shape, bias: int) -> dict[str, Shape]:
    return {f"{prefix}.weight": weight, f"{prefix}.bias": (bias,)}


def initial_state(config: ModelConfig) -> ModelState:
    """The state before the first token: zeros, one session.

    >>> [(name, part.shape) for name, part in initial_state(ModelConfig("lstm", 9, 4, lstm_layers=1)).items()]
    [('0.0', (1, 4)), ('0.1', (1, 4))]
    """
    counts = {"lstm": 2, "gru": 1}  # h, c; h
    H = config.hidden_size
    stack = {
        f"{level}.{part}": np.zeros((1, H), np.float32)
        for level, cells in enumerate(level_cells(config))
        for part in range(sum(counts[cell] for cell in cells))
    }
    if not config.blocks:
        return stack
    assert config.encoder is not None
    assert config.encoder_hidden_size is not None
    assert config.encoder_layers is not None
    assert config.block_max is not None
    E, S = config.encoder_hidden_size, len(config.side_inputs)
    state: ModelState = {f"0.{name}": part for name, part in stack.items()}
    for level in range(config.encoder_layers):
        for part in range(counts[config.encoder]):
            state[f"1.0.{level}.{part}"] = np.zeros((1, E), np.float32)
    state["1.1.0"] = np.zeros((1, 2 * E), np.float32)  # the last summary
    state["1.1.1"] = np.zeros(1, np.int64)  # blocks read
    state["1.1.2"] = np.zeros((1, config.block_max), np.int32)  # tokens that wait
    state["1.1.3"] = np.zeros((1, config.block_max, S), np.int32)  # their side inputs
    state["1.1.4"] = np.zeros(1, np.int64)  # how many wait
    return state


def checked_state(config: ModelConfig, arrays: Mapping[str, NDArray[Any]]) -> ModelState:
    """The state of one session from arrays that were stored; in the model's own order.

    Raises:
        ValueError: they are not a state of that model.
    """
    expected = initial_state(config)
    if set(arrays) != set(expected):
        raise ValueError("not a state of this model: its parts differ; load it with the model that saved it")
    state: ModelState = {}
    for name, like in expected.items():
        array = np.asarray(arrays[name])
        if array.shape != like.shape or array.dtype.kind != like.dtype.kind:
            raise ValueError(
                f"not a state of this model: part {name} is {array.dtype} {array.shape} and should be "
                f"{like.dtype} {like.shape}; load it with the model that saved it"
            )
        state[name] = array.copy()
    return state
