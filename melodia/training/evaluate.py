"""Held-out likelihood of whole pieces: every token once, the state carried on, nothing augmented."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from melodia.corpus.shards import Pieces
from melodia.measure import Likelihood
from melodia.model import Model
from melodia.model import state as states
from melodia.training.loss import nll_each
from melodia.training.streams import IGNORED, Passage, Preparer, stack_windows


@torch.no_grad()
def evaluate(
    model: Model,
    pieces: Pieces,
    preparer: Preparer,
    *,
    numbers: Sequence[int] | None = None,
    lanes: int = 32,
    window: int = 512,
) -> Likelihood:
    """Score pieces exactly, several side by side; the result does not depend on `lanes` and `window`.

    Args:
        model: in any mode; scored without dropout, left in the mode it came in.
        pieces: of a split.
        preparer: made without a training config, so that pieces are read as they are.
        numbers: which pieces; None: all. Their order is the order of the result.
        lanes: pieces side by side.
        window: steps at a time.

    Returns:
        nats, scored tokens (EOS counts, velocities of constant velocity do not) and notes of each piece.
    """
    wanted = np.arange(len(pieces)) if numbers is None else np.asarray(numbers, np.int64)
    nats = np.zeros(len(wanted), np.float64)
    tokens = np.zeros(len(wanted), np.int64)
    waiting = np.argsort(pieces.lengths[wanted], kind="stable").tolist()  # popped from the end: longest first
    device = next(model.parameters()).device
    mode = model.training
    model.eval()
    slots: list[int] = []
    passages: list[Passage] = []
    offsets: NDArray[np.int64] = np.zeros(0, np.int64)
    state: states.State | None = None
    try:
        while waiting or slots:
            fresh = [waiting.pop() for _ in range(min(lanes - len(slots), len(waiting)))]
            if fresh:
                slots += fresh
                passages += [preparer(pieces[int(wanted[slot])]) for slot in fresh]
                offsets = np.concatenate([offsets, np.zeros(len(fresh), np.int64)])
                begun = model.initial_state(len(fresh))
                state = begun if state is None else states.stack([state, begun])
            remaining = np.array([p.inputs.size for p in passages]) - offsets
            batch = stack_windows(passages, offsets, np.minimum(remaining, window), preparer.vocabulary)
            side = None if batch.side is None else torch.from_numpy(batch.side).to(device)
            logits, state = model(
                torch.from_numpy(batch.tokens).to(device),
                side,
                state,
                torch.from_numpy(batch.lengths).to(device),
            )
            losses = nll_each(logits, torch.from_numpy(batch.targets).to(device))
            nats[slots] += losses.double().sum(1).cpu().numpy()
            tokens[slots] += (batch.targets != IGNORED).sum(1)
            offsets = offsets + batch.lengths
            going = np.flatnonzero(remaining > batch.lengths).tolist()
            if not going:
                slots, passages, offsets, state = [], [], offsets[:0], None
            elif len(going) < len(slots):
                slots, passages = [slots[i] for i in going], [passages[i] for i in going]
                offsets, state = offsets[going], states.select(state, going)
    finally:
        model.train(mode)
    return Likelihood(nats, tokens, np.array(pieces.notes[wanted]), _bars(pieces, wanted))


def _bars(pieces: Pieces, numbers: NDArray[np.int64]) -> NDArray[np.int64] | None:
    bars = np.array(pieces.bars[numbers])
    return bars if bars.any() else None
