"""Whole sequences of the engine against the PyTorch reference: random models, schemes and filters, token by token.

`python -m benchmarks.sequences` makes 200 models with 2,000 tokens each and prints every divergence with its cause: the
gap between the scores of the two tokens, or the filter at whose edge one of them lies. In fp32 both make the same
tokens but where two candidates lie within rounding of one another.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from melodia.decode import Noise, SamplingConfig, apply_filters
from melodia.model import Model, ModelConfig
from melodia.sampler import Sampler
from melodia.sampler.lane import Lane
from melodia.sampler.loop import Loop
from melodia.sampler.request import Request
from melodia.side_inputs import NAMES, default_specs
from melodia.tokenizer import SCHEMES, Tokenizer, TokenizerConfig

KINDS = ("lstm", "gru", "sequential", "reversed", "parallel", "bidirectional")
FILTERS = (
    SamplingConfig(temperature=0.8, top_k=12),
    SamplingConfig(top_p=0.9, repetition_penalty=1.2),
    SamplingConfig(temperature=1.2, min_p=0.05),
    SamplingConfig(greedy=True, repetition_penalty=1.3),
    SamplingConfig(temperature=0.9, top_k=40, top_p=0.95, min_p=0.02),
    SamplingConfig(),
)


def samplers(number: int) -> tuple[Sampler, Sampler, str]:
    """Engine and reference of a random model, and what it is."""
    rng = np.random.default_rng(number)
    scheme, kind = SCHEMES[number % len(SCHEMES)], KINDS[number % len(KINDS)]
    tokenizer = Tokenizer(TokenizerConfig(scheme=scheme))
    vocabulary = tokenizer.vocabulary
    sides = tuple(name for name in NAMES if rng.random() < 0.5)
    blocks: dict[str, Any] = {}
    if kind == "bidirectional":
        bars = vocabulary.ids_of("Bar")
        blocks = {"block_starts": bars} if bars else {"block_length": 32}
    config = ModelConfig(
        kind=kind,
        vocab_size=vocabulary.size,
        hidden_size=int(rng.integers(8, 64)),
        side_inputs=default_specs(vocabulary, sides),
        **blocks,
    )
    model = Model(config, random_seed=number)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2.0  # far enough from uniform that the past is heard
        short = [i for i in vocabulary.ids_of("TimeShift") if vocabulary.value(i).startswith(("0.", "1."))]
        model.head.bias[[*vocabulary.ids_of("Bar"), *short]] += 3.0
    what = f"{scheme} {kind} H={config.hidden_size} sides={','.join(sides) or 'none'}"
    return Sampler(model, tokenizer, backend="native"), Sampler(model, tokenizer, backend="reference"), what


def lanes(sampler: Sampler, request: Request, bursts: bool) -> tuple[Loop, Lane]:
    """A lane of a sampler and the loop that drives it."""
    lane = sampler._lane(sampler.state, request)
    return Loop(sampler._runner.stepper([lane.session.model_state]), [lane], bursts=bursts), lane


def tokens_of(sampler: Sampler, request: Request, count: int, bursts: bool) -> list[int]:
    """The first tokens of a request."""
    loop, lane = lanes(sampler, request, bursts)
    while loop.live and lane.count < count:
        loop.step()
    return lane.tokens[:count]


def cause(reference: Sampler, request: Request, place: int, got: int, expected: int) -> dict[str, Any]:
    """Why the engine's token differs at a place: what the reference thinks of both."""
    loop, lane = lanes(reference, request, False)
    while lane.count < place:
        loop.step()
    session, config = lane.session, request.sampling
    legal = lane.plan.restrict(session.grammar, lane.grammar.mask(session.grammar))
    recent = [token for token in lane.recent[-config.repetition_window :] if lane.classes.pitch[token]]
    scores = apply_filters(session.logits, legal, recent, config).astype(np.float64)
    if not config.greedy:
        scores = scores + Noise(request.random_seed, request.session, len(scores)).at(session.fed)
    if not legal[got]:
        return {"cause": "the masks differ", "gap": None}
    if not np.isfinite(scores[got]):
        return {"cause": "at the edge of a filter", "gap": None}
    return {"cause": "two scores within rounding", "gap": float(scores[expected] - scores[got])}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write what was found here")
    options = parser.parse_args()
    began, rows, compared = time.perf_counter(), [], 0
    for number in range(options.models):
        native, reference, what = samplers(number)
        request = Request(tokens=options.tokens, random_seed=number, sampling=FILTERS[number % len(FILTERS)])
        request = replace(request, session=number % 3)
        got = tokens_of(native, request, options.tokens, True)
        expected = tokens_of(reference, request, options.tokens, False)
        compared += min(len(got), len(expected))
        place = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
        if place is None and len(got) == len(expected):
            continue
        row: dict[str, Any] = {"model": number, "what": what, "sampling": request.sampling.to_dict()}
        if place is None:
            row |= {"place": min(len(got), len(expected)), "cause": "one of them ended", "gap": None}
        else:
            row |= {"place": place} | cause(reference, request, place, got[place], expected[place])
        rows.append(row)
        gap = "" if row["gap"] is None else f", gap {row['gap']:.1e}"
        print(f"model {number} ({what}): token {row['place']} differs: {row['cause']}{gap}", flush=True)
    print(
        f"{options.models} models, {compared:,} tokens compared, {len(rows)} divergences, "
        f"{time.perf_counter() - began:.0f} s"
    )
    if options.json:
        options.json.write_text(json.dumps({"tokens": compared, "divergences": rows}, indent=1))


if __name__ == "__main__":
    main()
