"""The model: token input, recurrent stack, head; for every kind, with its state as a value.

Letters: B batch, T time, V vocabulary, D embedding, H hidden, S side inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from melodia.model.bidirectional import BlockEncoder, BlockReader, condition, condition_for_scan
from melodia.model.config import ModelConfig
from melodia.model.inputs import TokenInput
from melodia.model.layers import HIDDEN_VARIANCE, NO_DROPOUT, Dropper, Linear
from melodia.model.stacks import Stack, build_stack
from melodia.model.state import State


class Head(nn.Module):
    """From what the stack says to a logit per token.

    Untied, logits = W x + b with weights of its own. Tied, W is the token embedding, and where the stack is
    not as wide as the embedding a learned projection [H -> D] stands before it.
    """

    def __init__(self, hidden_size: int, embedding_size: int, vocab_size: int, tied: bool) -> None:
        super().__init__()
        self.weight = None if tied else nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(vocab_size))
        projected = tied and hidden_size != embedding_size
        self.projection = Linear(hidden_size, embedding_size, bias=False) if projected else None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, scale: float) -> None:
        """Draw the weights, `scale` times as large as one over the root of H: first predictions differ a little."""
        if self.weight is not None:
            bound = scale * self.weight.shape[1] ** -0.5
            self.weight.uniform_(-bound, bound, generator=generator)
        if self.projection is not None:
            self.projection.initialise(generator)
        self.bias.zero_()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Logits: x [..., H], embedding [V, D] -> [..., V]."""
        if self.projection is not None:
            x = self.projection(x)
        return F.linear(x, embedding if self.weight is None else self.weight, self.bias)


class Model(nn.Module):
    """A recurrent language model over token ids; logits at t depend on tokens up to and including t.

    Args:
        config: the kind and the sizes.
        random_seed: where the first weights come from; torch's own random numbers are not touched. None: the
            weights are left as the memory was found, to be loaded.

    >>> config = ModelConfig(kind="sequential", vocab_size=50, hidden_size=8)
    >>> model = Model(config).eval()
    >>> logits, state = model(torch.tensor([[1, 2, 3]]))
    >>> logits.shape
    torch.Size([1, 3, 50])
    >>> logits, state = model.step(torch.tensor([4]), None, state)
    >>> logits.shape
    torch.Size([1, 50])
    """

    def __init__(self, config: ModelConfig, *, random_seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        sides = [spec.size for spec in config.side_inputs]
        self.input = TokenInput(config.vocab_size, sides, config.embedding_size)
        self.reader: BlockReader | None = None
        summary_size = 0
        if config.kind == "bidirectional":
            assert config.encoder is not None
            assert config.encoder_hidden_size is not None
            assert config.encoder_layers is not None
            assert config.block_max is not None
            encoder = BlockEncoder(
                config.encoder,
                config.embedding_size,
                config.encoder_hidden_size,
                config.encoder_layers,
                config.residual,
                config.layer_norm,
            )
            opens = None
            if config.block_starts:
                opens = torch.zeros(config.vocab_size, dtype=torch.bool)
                opens[list(config.block_starts)] = True
            self.reader = BlockReader(encoder, opens, config.block_max, len(sides))
            summary_size = 2 * config.encoder_hidden_size
        self.stack: Stack = build_stack(config, config.embedding_size + summary_size)
        self.head = Head(config.hidden_size, config.embedding_size, config.vocab_size, config.tie_weights)
        if random_seed is not None and not self.input.weight.is_meta:
            self.initialise(random_seed)

    @torch.no_grad()
    def initialise(self, random_seed: int) -> None:
        """Draw all weights anew.

        Everything is scaled so that gates and logits begin at the same size, whatever the options. Embeddings begin
        small, so that they learn as fast as what reads them, and first layers four times as large make up for a part
        of it: worth 0.1 nats and more (benchmarks/ABLATIONS.md); making up for all of it would cost more than it
        gives. Heads that are three times as large without LayerNorm as with it were worth 0.2.
        """
        generator = torch.Generator(device=self.input.weight.device).manual_seed(random_seed)
        config = self.config
        logit_scale = 1.0 if config.layer_norm else HIDDEN_VARIANCE**-0.5
        embedding_variance = (logit_scale**2 if config.tie_weights else 1.0) / config.embedding_size
        input_variance = 1 / 16
        self.input.initialise(generator, embedding_variance)
        if self.reader is not None:
            self.reader.encoder.initialise(generator, input_variance)
        self.stack.initialise(generator, input_variance)
        if self.reader is not None:  # what it makes of a block does not begin small
            summary_variance = 1.0 if config.layer_norm else HIDDEN_VARIANCE
            columns = self.stack.bottom.cells[0].weight_ih[:, config.embedding_size :]
            columns *= (input_variance / summary_variance) ** 0.5
        self.head.initialise(generator, logit_scale)

    def initial_state(self, batch: int) -> State:
        """The state before the first token: zeros, whatever the kind.

        Of a plain stack it is one tuple per level: (h, c) of an LSTM, (h,) of a GRU, (h_lstm, c_lstm, h_gru)
        of a parallel level, each [B, H]. A bidirectional model adds its reader's state behind: (stack,
        reader).
        """
        stack = self.stack.initial_state(batch)
        return stack if self.reader is None else (stack, self.reader.initial_state(batch))

    def forward(
        self,
        tokens: Tensor,  # [B, T] integers
        side: Tensor | None = None,  # [B, T, S] integers
        state: State | None = None,
        lengths: Tensor | None = None,  # [B] int64
        *,
        generator: torch.Generator | None = None,
        recompute: bool = False,
    ) -> tuple[Tensor, State]:
        """Logits for every step of a window, and the state behind it.

        While training, dropout masks are drawn once per call: a stream that is cut into windows gets new ones
        with every window.

        Args:
            tokens: what was heard, first to last.
            side: the side inputs of each step, where the model has them.
            state: what came before; None: nothing.
            lengths: how many steps of each lane count, more than T being T and less than 0 none; behind them the
                state stays and logits mean nothing.
            generator: where dropout masks come from; None: torch's own random numbers.
            recompute: keep the states of the stack's layers only and make their gates again in the backward
                pass: about half the memory, a quarter more time.

        Returns:
            logits [B, T, V], state.

        Raises:
            ValueError: shapes that do not fit the model, or side inputs missing or not wanted.
        """
        self._check(tokens, side, 2)
        if state is None:
            state = self.initial_state(tokens.shape[0])
        dropper = self._dropper(generator)
        token_rows = dropper.embedding(self.input.weight)
        time_major_side = None if side is None else side.transpose(0, 1)
        gates_x = self.input.gates(self.stack.bottom.cells, tokens.T, time_major_side, token_rows, recompute)
        if self.reader is None:
            x, after = self.stack.scan(gates_x, state, lengths, dropper, recompute)
        else:
            stack_state, reader_state = state
            summaries, row, reader_state = self.reader.scan(
                self.input, tokens, side, lengths, reader_state, token_rows, dropper
            )
            layer = self.stack.bottom.cells[0]
            gates_x = (condition_for_scan(gates_x[0], layer, summaries, row.T),)
            x, stack_state = self.stack.scan(gates_x, stack_state, lengths, dropper, recompute)
            after = (stack_state, reader_state)
        return self.head(x.transpose(0, 1), self.input.weight), after

    def step(
        self,
        tokens: Tensor,  # [B] integers
        side: Tensor | None,  # [B, S] integers
        state: State,
    ) -> tuple[Tensor, State]:
        """One token per lane, without dropout: logits [B, V] for the next token, and the state.

        Raises:
            ValueError: shapes that do not fit the model, or side inputs missing or not wanted.
        """
        self._check(tokens, side, 1)
        cells = self.stack.bottom.cells
        D = self.config.embedding_size
        x = self.input.embed(tokens, side)
        if self.reader is None:
            x, after = self.stack.step(tuple([layer.gates(x) for layer in cells]), state)
        else:
            stack_state, reader_state = state
            summary, reader_state = self.reader.step(self.input, tokens, side, reader_state)
            gates_x = F.linear(x, cells[0].weight_ih[:, :D], cells[0].bias_ih)
            x, stack_state = self.stack.step((condition(gates_x, cells[0], summary),), stack_state)
            after = (stack_state, reader_state)
        return self.head(x, self.input.weight), after

    def parameter_count(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _dropper(self, generator: torch.Generator | None) -> Dropper:
        if not self.training:
            return NO_DROPOUT
        config = self.config
        return Dropper(config.dropout, config.embedding_dropout, config.weight_drop, generator)

    def _check(self, tokens: Tensor, side: Tensor | None, dimensions: int) -> None:
        """Refuse shapes that broadcasting would let through."""
        if tokens.dim() != dimensions:
            wanted = "[B, T]" if dimensions == 2 else "[B]"
            raise ValueError(f"tokens must be {wanted} (received {tuple(tokens.shape)})")
        sides = len(self.config.side_inputs)
        if side is None:
            if sides:
                names = ", ".join(spec.name for spec in self.config.side_inputs)
                raise ValueError(
                    f"the model has side inputs ({names}) and received none; see melodia.side_inputs"
                )
        elif side.shape != (*tokens.shape, sides) or not sides:
            raise ValueError(
                f"side inputs must be {(*tokens.shape, sides)} (received {tuple(side.shape)})"
                if sides
                else "the model has no side inputs and received some; leave them out"
            )
