"""What runs in torch: the reference model, and models on a GPU.

The rest of the sampler imports this only where it is needed. Letters: B live lanes, T time, S side inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray

from melodia.kernels.asked import asked_backend
from melodia.model.model import Model
from melodia.model.network import ModelState
from melodia.model.state import State, from_numpy, leaves, select, stack, to_numpy
from melodia.sampler.steppers import Rows


class TorchStepper:
    """The model itself, with the kernels of a backend; see `melodia.sampler.steppers.Stepper`.

    Args:
        model: on its device.
        first: the states that the lanes begin with.
        backend: "auto", "reference" or "native".
    """

    compiled = False

    def __init__(self, model: Model, first: Sequence[ModelState], backend: str = "auto") -> None:
        self.model = model
        self._backend = backend
        like = model.initial_state(1)
        self._state: State = stack([from_numpy(state, like) for state in first])
        self._device = leaves(self._state)[0].device

    def feed(self, tokens: Sequence[int], sides: Sequence[NDArray[np.int32]]) -> Rows:
        """See `Stepper.feed`."""
        with torch.inference_mode(), self._kernels():
            ids = torch.tensor(tokens, device=self._device)
            side = None
            if self.model.config.side_inputs:
                side = torch.from_numpy(np.stack(sides).astype(np.int64)).to(self._device)
            logits, self._state = self.model.step(ids, side, self._state)
            return logits.float().cpu().numpy()

    def read(self, tokens: NDArray[np.int32], sides: NDArray[np.int32]) -> Rows:
        """See `Stepper.read`."""
        with torch.inference_mode(), self._kernels():
            ids = torch.from_numpy(tokens.astype(np.int64)).T.to(self._device)
            side = None
            if self.model.config.side_inputs:
                side = torch.from_numpy(sides.astype(np.int64)).transpose(0, 1).to(self._device)
            logits, self._state = self.model(ids, side, self._state)
            return logits.transpose(0, 1).float().cpu().numpy()

    def keep(self, lanes: Sequence[int]) -> None:
        """See `Stepper.keep`."""
        self._state = select(self._state, lanes)

    def state(self, lane: int) -> ModelState:
        """See `Stepper.state`."""
        return to_numpy(select(self._state, lane))

    def _kernels(self) -> AbstractContextManager[None]:
        return asked_backend(self._backend)
