"""The models: configuration, layers, the hybrid stacks, states and checkpoints."""

from melodia.model.config import KINDS, SIZES, ModelConfig
from melodia.model.model import Model
from melodia.model.state import State
from melodia.model.walk import LayerView

__all__ = ["KINDS", "SIZES", "LayerView", "Model", "ModelConfig", "State"]
