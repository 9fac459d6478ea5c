"""The models: configuration, layers, the hybrid stacks, states and checkpoints."""

from melodia.model.checkpoint import Checkpoint, is_checkpoint, load_checkpoint, save_checkpoint
from melodia.model.config import KINDS, SIZES, ModelConfig
from melodia.model.convert import load_torch_rnn
from melodia.model.model import Model
from melodia.model.sizes import match_parameters, parameter_count, summary
from melodia.model.state import State
from melodia.model.walk import LayerView

__all__ = [
    "KINDS",
    "SIZES",
    "Checkpoint",
    "LayerView",
    "Model",
    "ModelConfig",
    "State",
    "is_checkpoint",
    "load_checkpoint",
    "load_torch_rnn",
    "match_parameters",
    "parameter_count",
    "save_checkpoint",
    "summary",
]
