"""A bidirectional encoder that does not cheat: it reads the music by blocks, and only finished blocks.

When a block (a bar) is finished the encoder reads it in both directions. Its forward direction carries on
from block to block; its backward direction starts anew at the block's last token. The summary of block k,
s_k = [forward output at its last token ; backward output at its first token], conditions the decoder
throughout block k + 1; s_0, before any block is finished, is learned. So what is said of token t depends on
tokens before t only.

A block is finished when the token that begins the next one arrives. Until then its tokens wait in the state.
The windows of training hold many blocks; all of them are read at once, as a batch of sequences with lengths.
Letters: B lanes, N tokens of a lane (waiting ones first), M finished blocks of all lanes together, S side inputs,
E encoder units, L tokens of the longest block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from melodia import kernels
from melodia.kernels import Recipe
from melodia.model.inputs import TokenInput
from melodia.model.layers import HIDDEN_VARIANCE, NO_DROPOUT, Dropper, Gates, RecurrentLayer
from melodia.model.state import State


@dataclass(frozen=True)
class Blocks:
    """Finished blocks, lane after lane.

    Attributes:
        lane, start, length: [M]; the block's tokens are [lane, start : start + length].
        counts: [B] finished blocks of each lane.
        finished: [B] tokens of each lane that belong to finished blocks.
        row: [B, N] which summary conditions a token: its lane's number for the one carried over, B + m for
            block m's.
    """

    lane: Tensor
    start: Tensor
    length: Tensor
    counts: Tensor
    finished: Tensor
    row: Tensor


def find_starts(tokens: Tensor, lengths: Tensor, opens: Tensor | None, block_max: int) -> Tensor:
    """Which tokens begin a block, given that the first token of every lane does.

    Args:
        tokens: [B, N].
        lengths: [B] how many of them count.
        opens: [V] bool, the tokens that begin a block wherever they stand; None: none does.
        block_max: a block that has this many tokens ends.

    Returns:
        [B, N] bool.

    >>> tokens, opens = torch.tensor([[5, 0, 7, 7, 7, 0]]), torch.arange(8) == 0
    >>> find_starts(tokens, torch.tensor([6]), opens, block_max=3).int().tolist()
    [[1, 1, 0, 0, 1, 1]]
    """
    place = torch.arange(tokens.shape[1], device=tokens.device)
    if opens is None:
        return (place % block_max == 0) & (place < lengths[:, None])
    begun = (
        torch.where(opens[tokens], place, 0).cummax(dim=1).values
    )  # where the block last began, cuts aside
    return ((place - begun) % block_max == 0) & (place < lengths[:, None])


def find_blocks(starts: Tensor) -> Blocks:
    """The finished blocks, from where blocks begin, [B, N] bool; the last one of each lane is unfinished."""
    lane, place = starts.nonzero(as_tuple=True)
    ends = lane[1:] == lane[:-1]  # the block ends where the next one of its lane begins
    counts = (starts.sum(dim=1) - 1).clamp(min=0)
    before = counts.cumsum(0) - counts  # blocks of the lanes above
    ordinal = starts.cumsum(dim=1) - 1  # [B, N], the block that a token is in
    lanes = torch.arange(starts.shape[0], device=starts.device)
    row = torch.where(ordinal > 0, starts.shape[0] + before[:, None] + ordinal - 1, lanes[:, None])
    places = torch.arange(starts.shape[1], device=starts.device)
    finished = torch.where(starts, places, 0).amax(dim=1)
    return Blocks(lane[:-1][ends], place[:-1][ends], (place[1:] - place[:-1])[ends], counts, finished, row)


class BlockEncoder(nn.Module):
    """The encoder: layers that run in both directions over finished blocks.

    Args:
        cell: "lstm" or "gru".
        input_size: D of the token input, which it shares with the decoder.
        hidden_size: E, in each direction; a summary has 2E numbers.
        layers: how many; a layer reads both directions of the one below.
        residual, layer_norm: as in a stack.
    """

    def __init__(
        self, cell: str, input_size: int, hidden_size: int, layers: int, residual: bool, layer_norm: bool
    ) -> None:
        super().__init__()
        widths = [input_size] + [2 * hidden_size] * (layers - 1)
        self.forward_layers = nn.ModuleList(RecurrentLayer(cell, width, hidden_size) for width in widths)
        self.backward_layers = nn.ModuleList(RecurrentLayer(cell, width, hidden_size) for width in widths)
        self.norms = nn.ModuleList(nn.LayerNorm(2 * hidden_size) for _ in widths) if layer_norm else None
        self.start = nn.Parameter(torch.zeros(2 * hidden_size))  # s_0
        self.hidden_size = hidden_size
        self.residual = residual

    @property
    def pairs(self) -> list[tuple[RecurrentLayer, RecurrentLayer]]:
        """Forward and backward layer of each level."""
        pairs = zip(self.forward_layers, self.backward_layers, strict=True)
        return [(f, b) for f, b in pairs if isinstance(f, RecurrentLayer) and isinstance(b, RecurrentLayer)]

    def initialise(self, generator: torch.Generator, input_variance: float) -> None:
        """Draw the weights, the token input having the given variance; s_0 begins at 0."""
        for forward, backward in self.pairs:
            forward.initialise(generator, input_variance)
            backward.initialise(generator, input_variance)
            input_variance = HIDDEN_VARIANCE if self.norms is None else 1.0

    def initial_state(self, batch: int) -> State:
        """Zeros for every forward layer; backward layers keep none."""
        return tuple(forward.initial_state(batch) for forward, _ in self.pairs)

    def forward(
        self,
        source: TokenInput,
        tokens: Tensor,  # [B, N]
        side: Tensor | None,  # [B, N, S]
        blocks: Blocks,
        state: State,
        token_rows: Tensor,  # [V, D]
        dropper: Dropper = NO_DROPOUT,
    ) -> tuple[Tensor, State]:
        """Read finished blocks.

        Args:
            source: the token input.
            tokens: of every lane, the first of them a block's first.
            side: their side inputs.
            blocks: which of the tokens are blocks.
            state: of the forward layers, [B, E] each.
            token_rows: the tokens' embedding to read (see `TokenInput.gates`).
            dropper: this call's dropout.

        Returns:
            Summaries [M, 2E], and the state behind each lane's last finished block.
        """
        B, M = tokens.shape[0], blocks.lane.shape[0]
        if M == 0:
            return self.start.new_zeros(0, 2 * self.hidden_size), state
        N, L = int(blocks.finished.max()), int(blocks.length.max())
        tokens, side = tokens[:, :N].T, None if side is None else side[:, :N].transpose(0, 1)  # [N, B]

        # Flat places [L, M] in [N B] of each block's tokens, last one first; N B stands for "none".
        steps = torch.arange(L, device=tokens.device)[:, None]
        backwards = ((blocks.start + blocks.length - 1 - steps) * B + blocks.lane).where(
            steps < blocks.length, N * B
        )
        places = backwards.clamp(max=N * B - 1)

        x = None
        after = []
        for level, (forward, backward) in enumerate(self.pairs):
            if x is None:
                (gates_f,) = source.gates((forward,), tokens, side, token_rows)
                (gates_b,) = source.gates(
                    (backward,),
                    tokens.flatten()[places],
                    None if side is None else side.flatten(0, 1)[places],
                    token_rows,
                )
            else:
                below = dropper.between(self._norm(level - 1, x))
                gates_f = forward.gates(below)
                gates_b = backward.gates(below).flatten(0, 1)[places]
            out_f, last = forward.scan(
                gates_f, state[level], blocks.finished, dropper.weight(forward.weight_hh)
            )
            out_b, _ = backward.scan(
                gates_b, backward.initial_state(M), blocks.length, dropper.weight(backward.weight_hh)
            )
            rows = out_b.new_zeros(
                N * B + 1, self.hidden_size
            )  # the last row takes what stands behind a block's end
            rows = rows.index_copy(0, backwards.flatten(), out_b.flatten(0, 1))
            y = torch.cat((out_f, rows[:-1].view(N, B, -1)), dim=-1)  # [N, B, 2E]
            x = x + y if x is not None and self.residual else y
            after.append(last)
        assert x is not None
        x = dropper.between(self._norm(-1, x))
        first, final = blocks.start, blocks.start + blocks.length - 1
        summaries = torch.cat(
            (x[final, blocks.lane, : self.hidden_size], x[first, blocks.lane, self.hidden_size :]), dim=-1
        )
        return summaries, tuple(after)

    def _norm(self, index: int, x: Tensor) -> Tensor:
        return x if self.norms is None else self.norms[index](x)


class BlockReader(nn.Module):
    """The encoder with its memory: takes tokens as they come, gives the summary that conditions each.

    Its state is (encoder state, (summary [B, 2E], blocks read [B], waiting tokens, waiting side rows, how
    many wait)). While no block has been read the summary is s_0, so that a state of zeros is the beginning of
    a piece.

    Args:
        encoder: the encoder.
        opens: [V] bool, the tokens that begin a block; None: blocks are `block_max` long.
        block_max: a block that has this many tokens ends.
        sides: S.
    """

    opens: Tensor | None

    def __init__(self, encoder: BlockEncoder, opens: Tensor | None, block_max: int, sides: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.block_max = block_max
        self.sides = sides
        self.register_buffer("opens", opens, persistent=False)  # a constant of the config

    def initial_state(self, batch: int) -> State:
        """Zeros."""
        start = self.encoder.start
        return (
            self.encoder.initial_state(batch),
            (
                start.new_zeros(batch, start.shape[0]),
                torch.zeros(batch, device=start.device, dtype=torch.int64),
                torch.zeros(batch, self.block_max, device=start.device, dtype=torch.int32),
                torch.zeros(batch, self.block_max, self.sides, device=start.device, dtype=torch.int32),
                torch.zeros(batch, device=start.device, dtype=torch.int64),
            ),
        )

    def scan(
        self,
        source: TokenInput,
        tokens: Tensor,  # [B, T]
        side: Tensor | None,  # [B, T, S]
        lengths: Tensor | None,  # [B]
        state: State,
        token_rows: Tensor,  # [V, D]
        dropper: Dropper,
    ) -> tuple[Tensor, Tensor, State]:
        """Take T tokens.

        Returns:
            Summaries [B + M, 2E], which of them conditions each token [B, T], and the state.
        """
        encoder_state, (summary, read, waiting, waiting_side, queue) = state
        B, T = tokens.shape
        if tokens.numel() == 0:
            return summary, tokens, state
        lengths = queue.new_full((B,), T) if lengths is None else lengths.clamp(0, T)
        total = queue + lengths
        place = torch.arange(max(1, int(total.max())), device=tokens.device).expand(B, -1)  # [B, N]
        everything = _join(waiting, tokens, queue, place)
        everything_side = _join(waiting_side, side, queue, place) if side is not None else None
        starts = find_starts(everything, total, self.opens, self.block_max)
        blocks = find_blocks(starts)

        found, encoder_state = self.encoder(
            source, everything, everything_side, blocks, encoder_state, token_rows, dropper
        )
        current = torch.where(read[:, None] > 0, summary, self.encoder.start)
        time = torch.arange(T, device=tokens.device)
        row = blocks.row.gather(1, (queue[:, None] + time).clamp(max=place.shape[1] - 1))  # [B, T]

        lanes = torch.arange(B, device=tokens.device)
        last = torch.where(blocks.counts > 0, B - 1 + blocks.counts.cumsum(0), lanes)
        queue = total - blocks.finished
        slots = torch.arange(self.block_max, device=tokens.device)
        tail = (blocks.finished[:, None] + slots).clamp(max=place.shape[1] - 1)
        live = slots < queue[:, None]
        waiting = everything.gather(1, tail).where(live, 0).int()
        if everything_side is not None:
            index = tail[..., None].expand(-1, -1, self.sides)
            waiting_side = everything_side.gather(1, index).where(live[..., None], 0).int()
        memory = (torch.cat((summary, found))[last], read + blocks.counts, waiting, waiting_side, queue)
        return torch.cat((current, found)), row, (encoder_state, memory)

    def step(
        self, source: TokenInput, tokens: Tensor, side: Tensor | None, state: State
    ) -> tuple[Tensor, State]:
        """Take one token per lane: tokens [B], side [B, S] -> its summary [B, 2E], and the state."""
        encoder_state, (summary, read, waiting, waiting_side, queue) = state
        begins = queue == self.block_max
        if self.opens is not None:
            begins = begins | self.opens[tokens]
        begins = begins & (queue > 0)
        if begins.any():
            lanes = begins.nonzero().squeeze(1)
            M = lanes.shape[0]
            order = torch.arange(M, device=lanes.device)
            zero = torch.zeros_like(order)
            blocks = Blocks(order, zero, queue[lanes], zero + 1, queue[lanes], zero[:, None])
            found, after = self.encoder(
                source,
                waiting[lanes],
                waiting_side[lanes] if self.sides else None,
                blocks,
                tuple(tuple(leaf[lanes] for leaf in layer) for layer in encoder_state),
                source.weight,
            )
            encoder_state = tuple(
                tuple(leaf.index_copy(0, lanes, new) for leaf, new in zip(layer, layer_after, strict=True))
                for layer, layer_after in zip(encoder_state, after, strict=True)
            )
            summary = summary.index_copy(0, lanes, found)
            read = read + begins
            waiting = waiting.masked_fill(begins[:, None], 0)
            waiting_side = waiting_side.masked_fill(begins[:, None, None], 0)
            queue = queue.masked_fill(begins, 0)
        waiting = waiting.scatter(1, queue[:, None], tokens[:, None].int())
        if side is not None:
            index = queue[:, None, None].expand(-1, 1, self.sides)
            waiting_side = waiting_side.scatter(1, index, side[:, None].int())
        current = torch.where(read[:, None] > 0, summary, self.encoder.start)
        return current, (encoder_state, (summary, read, waiting, waiting_side, queue + 1))


def condition(gates_x: Tensor, layer: RecurrentLayer, summaries: Tensor, row: Tensor | None = None) -> Tensor:
    """Add the summaries' share to a layer's gates; the last 2E columns of its W_ih read them.

    Args:
        gates_x: [T, B, G], or [B, G] for one step.
        layer: the layer.
        summaries: [B + M, 2E]; for one step [B, 2E].
        row: [T, B], which of the summaries each step reads; None, for one step: its lane's.
    """
    share = _share(layer, summaries)
    return gates_x + (share if row is None else kernels.lookup(row.unsqueeze(-1), share))


def condition_for_scan(gates_x: Gates, layer: RecurrentLayer, summaries: Tensor, row: Tensor) -> Gates:
    """`condition` over T steps; a recipe gives a recipe."""
    if isinstance(gates_x, Tensor):
        return condition(gates_x, layer, summaries, row)
    make = gates_x.make

    def conditioned(row: Tensor, share: Tensor, *sources: Tensor) -> Tensor:
        return make(*sources) + kernels.lookup(row.unsqueeze(-1), share)

    return Recipe(conditioned, (row, _share(layer, summaries), *gates_x.sources))


def _share(layer: RecurrentLayer, summaries: Tensor) -> Tensor:
    """The summaries' share of the gates: [..., 2E] -> [..., G]."""
    return F.linear(summaries, layer.weight_ih[:, -summaries.shape[1] :])


def _join(waiting: Tensor, tokens: Tensor, queue: Tensor, place: Tensor) -> Tensor:
    """Waiting tokens and new ones as one sequence per lane.

    Args:
        waiting: [B, block_max] or [B, block_max, S].
        tokens: [B, T] or [B, T, S].
        queue: [B], how many wait.
        place: [B, N] 0, 1, 2, ...

    Returns:
        [B, N] or [B, N, S].
    """
    old = place.clamp(max=waiting.shape[1] - 1)
    new = (place - queue[:, None]).clamp(0, tokens.shape[1] - 1)
    from_waiting = place < queue[:, None]
    if tokens.dim() == 3:
        old, new, from_waiting = (
            x[..., None].expand(-1, -1, tokens.shape[2]) for x in (old, new, from_waiting)
        )
    return torch.where(from_waiting, waiting.gather(1, old), tokens.gather(1, new))
