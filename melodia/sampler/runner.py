"""The choice of what runs a model, and the model in the form that it wants. No torch where the engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from melodia import backends, engine
from melodia.engine.description import WEIGHTS, describe
from melodia.errors import BackendError, ConfigError, need_torch
from melodia.model.config import ModelConfig
from melodia.model.network import ModelState, Network
from melodia.sampler.steppers import EngineStepper, Stepper

if TYPE_CHECKING:
    from melodia.model.model import Model


class Runner:
    """Chooses what runs a model, makes it, and says why.

    Args:
        source: a torch model in evaluation mode, on its device; or arrays, which run on the CPU.
        backend: "auto", "reference" or "native" as the caller asked.
        weights: of the engine: "fp32", "bf16" or "int8".

    Attributes:
        config: of the model.
        device: where it is: "cpu", "cuda:0".
        runs: "native" or "reference".
        why: a sentence.

    Raises:
        BackendError: "native", or weights other than fp32, were asked for and the engine cannot run here; or torch is
            needed and cannot be imported.
        ConfigError: there is no such backend, or there are no such weights.
    """

    def __init__(self, source: Model | Network, backend: str = "auto", weights: str = "fp32") -> None:
        backends.validated(backend, "`backend`")
        if weights not in WEIGHTS:
            raise ConfigError(f"`weights` must be one of {', '.join(WEIGHTS)} (received {weights!r})")
        self._source = source
        self._backend = backend
        self._weights = weights
        self.config: ModelConfig = source.config
        self.device = "cpu" if isinstance(source, Network) else str(source.input.weight.device)
        self._on_gpu = self.device in ("cuda", "cuda:0")
        obstacle = self._obstacle()
        if obstacle is not None and weights != "fp32":
            raise BackendError(f"{weights} weights need the engine, but {obstacle}; use fp32")
        if obstacle is not None and backend == "native" and self.device == "cpu":
            raise BackendError(f"the native backend was asked for, but {obstacle}; use auto or reference")
        self._runs_engine = obstacle is None
        if obstacle is None:
            self.runs = "native"
            kind = "on CUDA" if self._on_gpu else engine.instruction_set()
            self.why = f"the engine is loaded ({kind}, {weights} weights)"
        else:
            self.runs, self.why = self._torch_runs(obstacle)

    def __reduce__(self) -> tuple[Any, ...]:
        """What is pickled and copied: the model and the wishes; what runs it is chosen where it arrives."""
        return Runner, (self._source, self._backend, self._weights)

    @cached_property
    def network(self) -> Network:
        """The model as arrays."""
        return self._source if isinstance(self._source, Network) else Network.of(self._source)

    @cached_property
    def model(self) -> Model:
        """The model in torch; made of the arrays, whose memory it shares, when first asked for."""
        return self._source.to_torch() if isinstance(self._source, Network) else self._source

    def stepper(self, first: Sequence[ModelState]) -> Stepper:
        """What advances lanes that begin at these states, one lane each."""
        if not self._runs_engine:
            from melodia.sampler.torch_stepper import TorchStepper

            return TorchStepper(self.model, first, self._backend)
        return EngineStepper(self._packed, self.config, first)

    @cached_property
    def _packed(self) -> engine.Engine:
        if self._on_gpu:
            from melodia.engine.cuda import CudaEngine

            return CudaEngine(*describe(self.network, self._weights))
        return engine.Engine(*describe(self.network, self._weights))

    def _obstacle(self) -> str | None:
        """Why the engine does not run; None if it does."""
        if not isinstance(self._source, Network):
            weight = self._source.input.weight
            if self._on_gpu:
                from melodia.engine import cuda

                why = cuda.reason()
                if why is not None:
                    return f"the engine runs on the CPU (the model is on {weight.device}, and {why})"
            elif weight.device.type != "cpu":
                return f"the engines run on the CPU and the first GPU (the model is on {weight.device})"
            if str(weight.dtype) != "torch.float32":
                return f"the engine takes float32 models (this one is {weight.dtype})"
        return engine_obstacle(self._backend)

    def _torch_runs(self, obstacle: str) -> tuple[str, str]:
        """What torch runs, and why."""
        need_torch(
            obstacle, "without the engine models run in torch, and {what}, but torch cannot be imported"
        )
        from melodia import kernels
        from melodia.kernels.asked import asked_backend

        with asked_backend(self._backend):
            report = kernels.backend_report()
        return report.runs, report.why if report.runs == "reference" else f"{obstacle}; {report.why}"


def engine_obstacle(backend: str) -> str | None:
    """Why no model on the CPU runs in the engine under a backend that was asked for; None if they do."""
    if backends.meant(backend) == "reference":
        return "the reference backend was asked for"
    return engine.reason()
