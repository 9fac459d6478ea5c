"""The input of the first layer: a sum of embedding rows, the token's and one of each side input.

The first layer only ever sees W_ih (E[token] + S1[side1] + ...) + b. When there are more steps than rows it
is cheaper to multiply every row by W_ih once and to add up rows of the products, which is what `gates` then
does.
Letters: B batch, T time, V vocabulary, D embedding, S side inputs, G gates, R rows of all tables together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from melodia import kernels
from melodia.kernels import Recipe
from melodia.model.layers import Gates, RecurrentLayer


class TokenInput(nn.Module):
    """The embedding of tokens [V, D] and of side inputs [size, D].

    Args:
        vocab_size: V.
        side_sizes: the number of values of each side input.
        embedding_size: D.
    """

    def __init__(self, vocab_size: int, side_sizes: Sequence[int], embedding_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, embedding_size))
        self.side = nn.ParameterList(torch.empty(size, embedding_size) for size in side_sizes)
        sizes = torch.tensor([vocab_size, *side_sizes])
        # Where each side input's rows begin, the tables one under the other: on the device from the start, since
        # numbers that come from the host would make every forward pass wait for the GPU.
        self.first_rows: Tensor
        self.register_buffer("first_rows", sizes[:-1].cumsum(0), persistent=False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, variance: float) -> None:
        """Draw the rows from a normal distribution such that their sum has the given variance."""
        std = math.sqrt(variance / (1 + len(self.side)))
        for table in (self.weight, *self.side):
            table.normal_(0, std, generator=generator)

    @property
    def rows(self) -> int:
        """R, the rows of all tables."""
        return self.weight.shape[0] + sum(table.shape[0] for table in self.side)

    def embed(self, tokens: Tensor, side: Tensor | None, token_rows: Tensor | None = None) -> Tensor:
        """The sum of embeddings: tokens [...], side [..., S] -> [..., D].

        Args:
            tokens: ids.
            side: the side inputs' values, where there are any.
            token_rows: the tokens' embedding [V, D] to read instead of the weights, some rows dropped.
        """
        x = F.embedding(tokens, self.weight if token_rows is None else token_rows)
        for i, table in enumerate(self.side):
            assert side is not None
            x = x + F.embedding(side[..., i], table)
        return x

    def gates(
        self,
        layers: Sequence[RecurrentLayer],
        tokens: Tensor,  # [T, B]
        side: Tensor | None,  # [T, B, S]
        token_rows: Tensor,  # [V, D]
        recompute: bool = False,
    ) -> tuple[Gates, ...]:
        """The input's share of the gates of every layer that reads this input: [T, B, G] each, bias included.

        A layer that reads more than this input (W_ih wider than D) has it in the first D columns.

        Args:
            layers: the layers, of any cell.
            tokens: ids.
            side: the side inputs' values, where there are any.
            token_rows: the tokens' embedding to read; the weights, or what dropout left of them.
            recompute: give recipes instead.
        """
        D = token_rows.shape[1]
        if tokens.numel() <= self.rows:
            x = self.embed(tokens, side, token_rows)
            recipes = [Recipe(F.linear, (x, layer.weight_ih[:, :D], layer.bias_ih)) for layer in layers]
            return tuple(recipe if recompute else recipe.follow() for recipe in recipes)
        index = self._rows_of(tokens, side)
        results: list[Gates] = []
        for layer in layers:
            weight = layer.weight_ih[:, :D]
            table = F.linear(token_rows, weight, layer.bias_ih)
            if self.side:
                table = torch.cat([table, *(F.linear(t, weight) for t in self.side)])
            recipe = Recipe(kernels.lookup, (index, table))
            results.append(recipe if recompute else recipe.follow())
        return tuple(results)

    def _rows_of(self, tokens: Tensor, side: Tensor | None) -> Tensor:
        """Each step's rows in all tables, one under the other: [T, B], [T, B, S] -> [T, B, 1 + S]."""
        if not self.side:
            return tokens.long().unsqueeze(-1)
        assert side is not None
        return torch.cat([tokens.unsqueeze(-1), side + self.first_rows], dim=-1)
