"""What runs in torch: the reference model, models on a GPU, and the encoder of a bidirectional model.

The rest of the sampler imports this only where it is needed. Letters: B live lanes, T time, S side inputs, E units of
a block encoder in each direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from melodia import kernels
from melodia.model.layers import NO_DROPOUT
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
            ids = torch.from_numpy(tokens.astype(np.int64))[None].to(self._device)
            side = None
            if self.model.config.side_inputs:
                side = torch.from_numpy(sides.astype(np.int64))[None].to(self._device)
            logits, self._state = self.model(ids, side, self._state)
            return logits[0].float().cpu().numpy()

    def keep(self, lanes: Sequence[int]) -> None:
        """See `Stepper.keep`."""
        self._state = select(self._state, lanes)

    def state(self, lane: int) -> ModelState:
        """See `Stepper.state`."""
        return to_numpy(select(self._state, lane))

    def _kernels(self) -> AbstractContextManager[None]:
        return nullcontext() if self._backend == "auto" else kernels.use_backend(self._backend)


class TorchEncoder:
    """The reader of a bidirectional model, which takes every token and tells when a summary [2E] changes.

    Args:
        model: a bidirectional one, on the CPU.
        first: the states of the lanes, the decoder's share included.
    """

    def __init__(self, model: Model, first: Sequence[ModelState]) -> None:
        assert model.reader is not None
        self._input = model.input
        self._reader = model.reader
        like = model.initial_state(1)
        self._state: State = stack([from_numpy(state, like)[1] for state in first])
        self._summaries: list[torch.Tensor | None] = [None] * len(first)

    def feed(self, tokens: Sequence[int], sides: NDArray[np.int32] | None) -> Iterator[tuple[int, Rows]]:
        """One token for each lane, [B], and side inputs [B, S] -> lanes with a new summary, and it."""
        with torch.inference_mode():
            rows = None if sides is None else torch.from_numpy(sides.astype(np.int64))
            summaries, self._state = self._reader.step(self._input, torch.tensor(tokens), rows, self._state)
        for lane, summary in enumerate(summaries):
            before = self._summaries[lane]
            if before is None or not torch.equal(before, summary):
                self._summaries[lane] = summary
                yield lane, summary.numpy()

    def read(
        self, tokens: NDArray[np.int32], sides: NDArray[np.int32] | None
    ) -> Iterator[tuple[int, int, Rows]]:
        """Tokens [T] of the only lane, side inputs [T, S] -> from where to where each summary holds, and it."""
        with torch.inference_mode():
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            rows = None if sides is None else torch.from_numpy(sides.astype(np.int64))[None]
            weight = self._input.weight
            summaries, place, self._state = self._reader.scan(
                self._input, ids, rows, None, self._state, weight, NO_DROPOUT
            )
        self._summaries = [None]
        places = place[0].numpy()
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
            yield int(start), int(stop), summaries[places[start]].numpy()

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes only; all of them get their summaries again."""
        self._state = select(self._state, lanes)
        self._summaries = [None] * len(lanes)

    def state(self, lane: int) -> ModelState:
        """The encoder's share of the state of one lane."""
        return {f"1.{name}": part for name, part in to_numpy(select(self._state, lane)).items()}
