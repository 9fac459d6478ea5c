"""A decoder-only transformer, trained and scored exactly as melodia's models are: the baseline of the model card.

    python benchmarks/transformer.py CORPUS --parameters 5735613 --minutes 20

It reads the same token shards, side inputs, augmentation and batches, with the same optimiser and course of the
learning rate, for the same wall-clock time; only the network differs: pre-norm blocks with rotary positions (Su et al.
2021) and, as in Transformer-XL (Dai et al. 2019), the layers' inputs of the last C steps as memory, so that it reads
on where a window ends, too.
Letters: B lanes, T steps, C steps of memory, L layers, D width, V vocabulary, S side inputs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from melodia.corpus.shards import Corpus
from melodia.errors import MelodiaError
from melodia.side_inputs import DEFAULTS, SideInputSpec, default_specs
from melodia.training import TrainingConfig
from melodia.training.distributed import join
from melodia.training.evaluate import evaluate
from melodia.training.learner import Learner
from melodia.training.memory import keep_freed_memory
from melodia.training.streams import Preparer
from melodia.workflows.corpora import open_corpus

HEAD = 64  # width of an attention head
State = tuple[Tensor, Tensor]


class Transformer(nn.Module):
    """The network, with the interface of `melodia.model.Model` that training and scoring use.

    The state is a pair: the inputs of every layer in the last steps [B, L, C, D], and how many of them count [B].

    Args:
        vocab_size: V.
        side_inputs: further inputs, summed with the token's embedding.
        width: D, a multiple of 64.
        layers: L.
        context: C.
        random_seed: of the weights.
    """

    def __init__(
        self,
        vocab_size: int,
        side_inputs: tuple[SideInputSpec, ...],
        width: int,
        layers: int,
        context: int,
        random_seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = SimpleNamespace(side_inputs=side_inputs)
        self.width, self.context = width, context
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_seed)
            self.embedding = nn.Embedding(vocab_size, width)
            self.side_embeddings = nn.ModuleList(nn.Embedding(spec.size, width) for spec in side_inputs)
            self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocab_size)
            for table in (self.embedding, *self.side_embeddings):
                nn.init.normal_(table.weight, std=0.02)
            for block in self.blocks:  # GPT-2: what is added to the stream shrinks with the depth
                for linear in (block.attention_out, block.feed_out):
                    nn.init.normal_(linear.weight, std=0.02 / (2 * layers) ** 0.5)

    def parameter_count(self) -> int:
        """How many numbers it learns."""
        return sum(p.numel() for p in self.parameters())

    def initial_state(self, batch: int) -> State:
        """No memory yet."""
        like = self.head.weight
        return (
            like.new_zeros(batch, len(self.blocks), self.context, self.width),
            like.new_zeros(batch),
        )

    def forward(
        self,
        tokens: Tensor,  # [B, T]
        side: Tensor | None,  # [B, T, S]
        state: State | None = None,
        lengths: Tensor
        | None = None,  # [B]; only a piece's last window is shorter, and nothing reads on from there
        **_: Any,
    ) -> tuple[Tensor, State]:
        """Logits [B, T, V], and the state behind the window."""
        B, T = tokens.shape
        memory, count = self.initial_state(B) if state is None else state
        C = self.context
        x = self.embedding(tokens)
        for i, table in enumerate(self.side_embeddings):
            assert side is not None
            x = x + table(side[..., i])
        steps = torch.arange(C + T, device=tokens.device)
        reach = steps[None, :] - steps[C:, None]  # of a key as seen from a query: [T, C + T]
        seen = (reach <= 0) & (reach >= -C)
        known = steps[None, :] >= C - count.long()[:, None]  # [B, C + T]
        mask = seen[None, None] & known[:, None, None, :]
        kept = []
        for layer, block in enumerate(self.blocks):
            both = torch.cat([memory[:, layer].to(x.dtype), x], dim=1)
            kept.append(both[:, -C:].float())
            x = block(both, x, mask)
        return self.head(self.norm(x)), (torch.stack(kept, dim=1), (count + T).clamp(max=C))


class Block(nn.Module):
    """Attention over memory and window, then a feed-forward layer of 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_in, self.feed_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, both: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Both [B, C + T, D], x [B, T, D], mask [B, 1, T, C + T] -> [B, T, D]."""
        (B, T, D), N = x.shape, both.shape[1]
        normed = self.attention_norm(both)
        query = self.query(normed[:, N - T :]).view(B, T, D // HEAD, HEAD).transpose(1, 2)
        key, value = self.key_value(normed).view(B, N, 2, D // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        query, key = _rotate(query, N - T), _rotate(key, 0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.attention_out(attended.transpose(1, 2).reshape(B, T, D))
        return x + self.feed_out(F.gelu(self.feed_in(self.feed_norm(x))))


def _rotate(x: Tensor, start: int) -> Tensor:
    """Rotary positions: x [B, heads, T, 64], whose first step stands at `start`."""
    half = HEAD // 2
    angle = torch.outer(
        torch.arange(start, start + x.shape[2], device=x.device, dtype=torch.float32),
        10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half),
    )
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def sized(corpus: Corpus, parameters: int, layers: int, context: int) -> Transformer:
    """The transformer of so many layers whose size comes nearest to so many parameters."""
    specs = default_specs(corpus.vocabulary, DEFAULTS)
    models = []
    for width in range(HEAD, 1024 + 1, HEAD):
        with torch.device("meta"):
            count = Transformer(corpus.vocabulary.size, specs, width, layers, context).parameter_count()
        models.append((abs(count - parameters), width))
    return Transformer(corpus.vocabulary.size, specs, min(models)[1], layers, context)


def run(corpus: Corpus, model: Transformer, config: TrainingConfig) -> dict[str, Any]:
    """Train for the budget of minutes and score the held-out pieces."""
    assert config.minutes is not None
    budget = 60.0 * config.minutes
    with join("cpu") as world:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        learner = Learner(corpus, model, config, world)  # type: ignore[arg-type]
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < budget:
            rate = config.learning_rate_at(spent / budget)
            update = learner.update([], lambda _, rate=rate: rate)
            if learner.iteration % 50 == 0:
                nats = float(update.losses[0]) / update.scored
                print(
                    f"{learner.iteration} iterations, {spent:.0f} s, {nats:.4f} nats/token", file=sys.stderr
                )
        preparer = Preparer(corpus.vocabulary, model.config.side_inputs)
        likelihood = evaluate(learner.average.model, corpus.pieces("valid"), preparer)
    return {
        "parameters": model.parameter_count(),
        "width": model.width,
        "layers": len(model.blocks),
        "context": model.context,
        "minutes": config.minutes,
        "iterations": learner.iteration,
        "epochs": learner.epoch,
        "threads": torch.get_num_threads(),
        **likelihood.to_dict(),
    }


def main() -> int:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="MIDI files, or a built corpus")
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--context", type=int, default=256, help="steps of memory behind the window of 256")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cache", type=Path, default=None)
    arguments = parser.parse_args()
    keep_freed_memory()  # as melodia's own training does
    try:
        corpus = open_corpus(arguments.corpus, cache=arguments.cache)
        config = TrainingConfig(
            minutes=arguments.minutes,
            learning_rate=arguments.learning_rate,
            batch_size=arguments.batch_size,
            precision=arguments.precision,
            threads=arguments.threads,
        )
        model = sized(corpus, arguments.parameters, arguments.layers, arguments.context)
        print(json.dumps(run(corpus, model, config), indent=1))
    except MelodiaError as error:
        print(f"transformer.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
