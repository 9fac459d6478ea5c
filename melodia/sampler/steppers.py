"""What runs the model under the loop: torch (the reference), or the engine with its own choice of tokens.

Letters: B live lanes, V vocabulary, S side inputs, E units of a block encoder in each direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from melodia import engine, kernels
from melodia.engine.description import WEIGHTS, describe
from melodia.errors import BackendError, ConfigError
from melodia.model import Model, State
from melodia.model import state as states

Backend = Callable[[], AbstractContextManager[None]]
Rows = NDArray[np.float32]


class Stepper(Protocol):
    """The states of B lanes, and what advances them."""

    compiled: bool
    """Whether tokens are chosen in compiled code as well."""

    def feed(self, tokens: Sequence[int], sides: Sequence[NDArray[np.int32]]) -> Rows:
        """One token for each lane, [B], and its side inputs, [B] of [S] -> logits [B, V]."""
        ...

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes only."""
        ...

    def state(self, lane: int) -> State:
        """The state of one lane."""
        ...


class TorchStepper:
    """The model itself, with the kernels of a backend."""

    compiled = False

    def __init__(self, model: Model, first: Sequence[State], backend: Backend) -> None:
        self.model = model
        self._backend = backend
        self._state: State = states.stack(first)
        self._device = states.leaves(self._state)[0].device

    def feed(self, tokens: Sequence[int], sides: Sequence[NDArray[np.int32]]) -> Rows:
        """See `Stepper.feed`."""
        with torch.inference_mode(), self._backend():
            ids = torch.tensor(tokens, device=self._device)
            side = None
            if self.model.config.side_inputs:
                side = torch.from_numpy(np.stack(sides).astype(np.int64)).to(self._device)
            logits, self._state = self.model.step(ids, side, self._state)
            return logits.float().cpu().numpy()

    def keep(self, lanes: Sequence[int]) -> None:
        """See `Stepper.keep`."""
        self._state = states.select(self._state, lanes)

    def state(self, lane: int) -> State:
        """See `Stepper.state`."""
        return states.select(self._state, lane)


class EngineStepper:
    """The engine; a bidirectional model's encoder, which reads a block now and then, stays with torch."""

    compiled = True

    def __init__(self, model: Model, first: Sequence[State], packed: engine.Engine) -> None:
        self.model = model
        self._packed = packed
        self._lanes = engine.Lanes(packed, len(first))
        stacks = first
        self._reader: State | None = None
        self._summaries: list[torch.Tensor | None] = [None] * len(first)
        if model.reader is not None:
            stacks = [state[0] for state in first]
            self._reader = states.stack([state[1] for state in first])
        for lane, state in enumerate(stacks):
            self._lanes.write(lane, np.concatenate([leaf[0].numpy() for leaf in states.leaves(state)]))

    def feed(self, tokens: Sequence[int], sides: Sequence[NDArray[np.int32]]) -> Rows:
        """See `Stepper.feed`."""
        side = np.stack(sides) if self.model.config.side_inputs else None
        if self.model.reader is not None:
            self._read(tokens, side)
        return self._lanes.step(tokens, side)

    def keep(self, lanes: Sequence[int]) -> None:
        """See `Stepper.keep`."""
        kept = engine.Lanes(self._packed, len(lanes))
        for new, old in enumerate(lanes):
            kept.write(new, self._lanes.read(old))
        self._lanes = kept
        if self._reader is not None:
            self._reader = states.select(self._reader, lanes)
            self._summaries = [None] * len(lanes)

    def state(self, lane: int) -> State:
        """See `Stepper.state`."""
        like = self.model.stack.initial_state(1)
        flat = torch.from_numpy(self._lanes.read(lane))
        leaves = states.leaves(like)
        parts = flat.split([leaf.numel() for leaf in leaves])
        stack = states.unflatten(like, [part.view_as(leaf) for part, leaf in zip(parts, leaves, strict=True)])
        return stack if self._reader is None else (stack, states.select(self._reader, lane))

    def _read(self, tokens: Sequence[int], side: NDArray[np.int32] | None) -> None:
        """Let the encoder take the tokens, and tell the engine where a summary changed."""
        assert self.model.reader is not None
        with torch.inference_mode():
            ids = torch.tensor(tokens)
            rows = None if side is None else torch.from_numpy(side.astype(np.int64))
            assert self._reader is not None
            summaries, self._reader = self.model.reader.step(self.model.input, ids, rows, self._reader)
            for lane, summary in enumerate(summaries):
                before = self._summaries[lane]
                if before is None or not torch.equal(before, summary):
                    self._lanes.condition(lane, summary.numpy())
                    self._summaries[lane] = summary


class Runner:
    """Chooses what runs a model, makes it, and says why.

    Args:
        model: in evaluation mode, on its device.
        backend: "auto", "reference" or "native" as the caller asked.
        context: gives the context in which torch's kernels run.
        weights: of the engine: "fp32", "bf16" or "int8".

    Attributes:
        runs: "native" or "reference".
        why: a sentence.

    Raises:
        BackendError: "native", or weights other than fp32, were asked for and the engine cannot run here.
        ConfigError: there are no such weights.
    """

    def __init__(self, model: Model, backend: str, context: Backend, weights: str = "fp32") -> None:
        if weights not in WEIGHTS:
            raise ConfigError(f"`weights` must be one of {', '.join(WEIGHTS)} (received {weights!r})")
        self._model = model
        self._context = context
        self._weights = weights
        self._packed: engine.Engine | None = None
        with context():
            report = kernels.backend_report()
        obstacle = self._obstacle(report.chosen)
        if obstacle is not None and weights != "fp32":
            raise BackendError(f"{weights} weights need the engine, but {obstacle}; use fp32")
        if obstacle is not None and backend == "native" and model.input.weight.device.type == "cpu":
            raise BackendError(f"the native backend was asked for, but {obstacle}; use auto or reference")
        self._runs_engine = obstacle is None
        self.runs = "native" if obstacle is None else report.runs
        self.why = (
            f"the engine is loaded ({engine.instruction_set()}, {weights} weights)"
            if obstacle is None
            else report.why
            if report.runs == "reference"
            else f"{obstacle}; {report.why}"
        )

    def _obstacle(self, chosen: str) -> str | None:
        """Why the engine does not run; None if it does."""
        weight = self._model.input.weight
        if chosen == "reference":
            return "the reference backend was asked for"
        if weight.device.type != "cpu":
            return f"the engine runs on the CPU (the model is on {weight.device})"
        if weight.dtype != torch.float32:
            return f"the engine takes float32 models (this one is {weight.dtype})"
        return engine.reason()

    def stepper(self, first: Sequence[State]) -> Stepper:
        """What advances lanes that begin at these states, one lane each."""
        if not self._runs_engine:
            return TorchStepper(self._model, first, self._context)
        if self._packed is None:
            self._packed = engine.Engine(*describe(self._model, self._weights))
        return EngineStepper(self._model, first, self._packed)
