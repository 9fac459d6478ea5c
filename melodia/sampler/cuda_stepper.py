"""The CUDA engine under the loop. No torch is imported here."""

from __future__ import annotations

from collections.abc import Sequence

from melodia.engine import cuda
from melodia.engine.engine import Lanes
from melodia.engine.loop import Start, TokenLoop
from melodia.engine.rules import Rules
from melodia.model.config import ModelConfig
from melodia.model.network import ModelState
from melodia.sampler.steppers import EngineStepper


class CudaStepper(EngineStepper):
    """The engine on a GPU.

    Args:
        packed: the network.
        config: its configuration.
        first: the states that the lanes begin with.
    """

    def __init__(self, packed: cuda.CudaEngine, config: ModelConfig, first: Sequence[ModelState]) -> None:
        self._cuda = packed
        super().__init__(packed, config, first)

    def sessions(self, count: int) -> Lanes:
        """See `EngineStepper.sessions`."""
        return cuda.CudaLanes(self._cuda, count)

    def loop(self, rules: Sequence[Rules], starts: Sequence[Start]) -> TokenLoop:
        """See `EngineStepper.loop`."""
        assert isinstance(self.lanes, cuda.CudaLanes)
        return cuda.CudaLoop(self._cuda, self.lanes, rules, starts)
