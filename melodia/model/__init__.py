"""The models: configuration, layers, the hybrid stacks, states and checkpoints.

Names are loaded when they are first used: `config`, `network`, `stored` and `folders` need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from melodia.lazy import on_demand

if TYPE_CHECKING:
    from melodia.model.checkpoint import Checkpoint as Checkpoint
    from melodia.model.checkpoint import load_checkpoint as load_checkpoint
    from melodia.model.checkpoint import save_checkpoint as save_checkpoint
    from melodia.model.config import KINDS as KINDS
    from melodia.model.config import SIZES as SIZES
    from melodia.model.config import ModelConfig as ModelConfig
    from melodia.model.convert import load_torch_rnn as load_torch_rnn
    from melodia.model.model import Model as Model
    from melodia.model.network import Network as Network
    from melodia.model.sizes import match_parameters as match_parameters
    from melodia.model.sizes import parameter_count as parameter_count
    from melodia.model.state import State as State
    from melodia.model.stored import StoredCheckpoint as StoredCheckpoint
    from melodia.model.stored import is_checkpoint as is_checkpoint
    from melodia.model.stored import read_checkpoint as read_checkpoint

_HOME = {
    "Checkpoint": "checkpoint",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "KINDS": "config",
    "SIZES": "config",
    "ModelConfig": "config",
    "load_torch_rnn": "convert",
    "Model": "model",
    "Network": "network",
    "match_parameters": "sizes",
    "parameter_count": "sizes",
    "State": "state",
    "StoredCheckpoint": "stored",
    "is_checkpoint": "stored",
    "read_checkpoint": "stored",
}

__all__ = sorted(_HOME)

__getattr__ = on_demand(__name__, _HOME)
