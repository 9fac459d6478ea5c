"""Whole sequences of the engine against the PyTorch reference: random models, schemes and filters, token by token.

`python -m benchmarks.sequences` makes 200 models with 2,000 tokens each, tells every divergence with its cause (the
gap between the scores of the two tokens, or the filter at whose edge one of them lies), and writes SEQUENCES.md beside
this file. In fp32 both make the same tokens but where two candidates lie within rounding of one another. Some random
models are chaotic: what rounding changes grows from token to token, in the reference as in the engine. So both are
set against the same model in float64 behind the same tokens. Every kind meets every scheme and every set of filters in
180 models; sizes, depths, options and side inputs are random.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.suite.machine import facts, other_work
from melodia.decode import Choice, Noise, SamplingConfig, apply_filters
from melodia.model import KINDS, Model, ModelConfig
from melodia.model.config import COMBINES
from melodia.sampler import Sampler
from melodia.sampler.lane import Lane
from melodia.sampler.loop import Loop
from melodia.sampler.request import Request
from melodia.side_inputs import NAMES, default_specs
from melodia.tokenizer import SCHEMES, Tokenizer, TokenizerConfig

OFF = SamplingConfig().to_dict() | dict.fromkeys(("top_k", "top_p", "min_p"))
SIMILAR = 30
"""How many times the reference's error the engine's may be where errors grow from token to token."""
PAGE = Path(__file__).resolve().parent / "SEQUENCES.md"
FILTERS = (
    SamplingConfig(temperature=0.8, top_k=12),
    SamplingConfig(top_p=0.9, repetition_penalty=1.2),
    SamplingConfig(temperature=1.2, min_p=0.05),
    SamplingConfig(greedy=True, repetition_penalty=1.3),
    SamplingConfig(temperature=0.9, top_k=40, top_p=0.95, min_p=0.02),
    SamplingConfig(),
)


def config_of(number: int, scheme: str, kind: str) -> tuple[ModelConfig, Tokenizer]:
    """A random model's sizes and options, and its tokenizer."""
    rng = np.random.default_rng(number)
    tokenizer = Tokenizer(TokenizerConfig(scheme=scheme))
    vocabulary = tokenizer.vocabulary
    sides = tuple(name for name in NAMES if rng.random() < 0.5)
    options: dict[str, Any] = {
        name: bool(rng.random() < 0.5) for name in ("residual", "layer_norm", "tie_weights")
    }
    encoder = str(rng.choice(("lstm", "gru")))
    for cell in ("lstm", "gru"):
        other = "gru" if cell == "lstm" else "lstm"
        if kind in ("parallel", "sequential", "reversed", cell) or (
            kind == "bidirectional" and encoder == other
        ):
            options[f"{cell}_layers"] = int(rng.integers(1, 4))
    if kind == "parallel":
        options |= {"gru_layers": options["lstm_layers"], "combine": str(rng.choice(COMBINES))}
    if kind == "bidirectional":
        bars = vocabulary.ids_of("Bar")
        options |= {"encoder": encoder, "encoder_layers": int(rng.integers(1, 3))}
        options |= {"block_starts": bars} if bars else {"block_length": 32}
    hidden, embedding = (int(size) for size in rng.integers(8, 64, 2))
    config = ModelConfig(
        kind=kind,
        vocab_size=vocabulary.size,
        hidden_size=hidden,
        embedding_size=embedding,
        side_inputs=default_specs(vocabulary, sides),
        **options,
    )
    return config, tokenizer


def samplers(number: int) -> tuple[Sampler, Sampler, str]:
    """Engine and reference of a random model, and what it is."""
    scheme, kind = SCHEMES[number % len(SCHEMES)], KINDS[number % len(KINDS)]
    config, tokenizer = config_of(number, scheme, kind)
    vocabulary = tokenizer.vocabulary
    model = Model(config, random_seed=number)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # far enough from uniform that the past is heard
        short = [i for i in vocabulary.ids_of("TimeShift") if vocabulary.value(i).startswith(("0.", "1."))]
        model.head.bias[[*vocabulary.ids_of("Bar"), *short]] += 3.0
    what = [f"{scheme} {kind} H={config.hidden_size} {config.lstm_layers}+{config.gru_layers} layers"]
    what += [name for name in ("residual", "layer_norm", "tie_weights") if getattr(config, name)]
    what += [spec.name for spec in config.side_inputs]
    return (
        Sampler(model, tokenizer, backend="native"),
        Sampler(model, tokenizer, backend="reference"),
        " ".join(what),
    )


def request_of(number: int, tokens: int) -> Request:
    """The settings that a model is asked with; 180 successive ones meet every kind and scheme."""
    rounds = len(SCHEMES) * len(KINDS)
    filters = FILTERS[(number + number // rounds) % len(FILTERS)]
    return Request(tokens=tokens, random_seed=number, session=number % 3, sampling=filters)


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


def told(sampler: Sampler, request: Request, tokens: list[int]) -> Lane:
    """A lane behind given tokens, fed one by one."""
    lane = sampler._lane(sampler.state, request)
    stepper = sampler._runner.stepper([lane.session.model_state])
    for token in tokens:
        side = lane.take(Choice(token, 0.0, 0.0))
        lane.session.logits = stepper.feed([token], [side])[0]
    return lane


def cause(number: int, request: Request, past: list[int], got: int, expected: int) -> dict[str, Any]:
    """Why the engine's token differs behind a past: what the reference thinks of both, and how far float64 is."""
    native, reference, _ = samplers(number)
    lane, engine = told(reference, request, past), told(native, request, past)
    double = Sampler(reference._runner.model.double(), reference.tokenizer, backend="reference")
    exact = told(double, request, past).session.logits
    session, config = lane.session, request.sampling
    legal = lane.plan.restrict(session.grammar, lane.grammar.mask(session.grammar))
    off = {
        "reference": float(np.abs(session.logits - exact)[legal].max()),
        "engine": float(np.abs(engine.session.logits - exact)[legal].max()),
    }
    recent = [token for token in lane.recent[-config.repetition_window :] if lane.classes.pitch[token]]
    scores = apply_filters(session.logits, legal, recent, config).astype(np.float64)
    if not config.greedy:
        scores = scores + Noise(request.random_seed, request.session, len(scores)).at(session.fed)
    if not legal[got]:
        return {"cause": "the masks differ", "gap": None} | off
    if not np.isfinite(scores[got]):
        return {"cause": "at the edge of a filter", "gap": None} | off
    gap = float(scores[expected] - scores[got])
    strength = (
        config.repetition_penalty / config.temperature
    )  # what a logit's error is multiplied by, at most
    rounding = off["engine"] < SIMILAR * off["reference"] and gap <= 2 * strength * (
        off["engine"] + off["reference"]
    )
    return {"cause": "two scores within rounding" if rounding else "unexplained", "gap": gap} | off


def compare(number: int, count: int) -> tuple[int, dict[str, Any] | None]:
    """How many tokens of a model are the same, and what the first that differs is."""
    native, reference, what = samplers(number)
    request = request_of(number, count)
    got = tokens_of(native, request, count, True)
    expected = tokens_of(reference, request, count, False)
    place = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
    if place is None and len(got) == len(expected):
        return len(got), None
    row: dict[str, Any] = {"model": number, "what": what, "sampling": request.sampling.to_dict()}
    if place is None:
        place = min(len(got), len(expected))
        return place, row | {
            "place": place,
            "cause": "one of them ended",
            "gap": None,
            "reference": None,
            "engine": None,
        }
    return place, row | {"place": place} | cause(number, request, got[:place], got[place], expected[place])


def page(rows: list[dict[str, Any]], lengths: list[int], count: int, machine: dict[str, str]) -> str:
    """The result as Markdown."""
    causes = Counter(row["cause"] for row in rows)
    lines = ["# Sequences: the engine against the reference", ""]
    lines += [
        f"Written by {machine['command']}; do not edit. {len(lengths)} random models and settings in fp32, every "
        "kind with every scheme and every set of filters, token by token against the PyTorch reference.",
        "",
        f"**{sum(lengths):,} tokens compared, {len(rows)} divergences"
        + (": " + ", ".join(f"{count} {name}" for name, count in causes.items()) if causes else "")
        + f".** {sum(length == count for length in lengths)} sequences have all of {count:,} tokens; "
        "the others end before, or are compared up to where they diverge.",
        "",
    ]
    if rows:
        lines += [
            "Off: the largest difference of a legal token's logit from the same model's in float64.",
            "",
        ]
        lines += ["| model | what | filters | token | cause | gap | reference off | engine off |"]
        lines += ["|---|---|---|--:|---|--:|--:|--:|"]
    for row in rows:
        figures = ["" if row[name] is None else f"{row[name]:.1e}" for name in ("gap", "reference", "engine")]
        filters = ", ".join(
            f"{name} {value}" for name, value in row["sampling"].items() if value != OFF[name]
        )
        cells = [str(row["model"]), row["what"], filters, str(row["place"]), row["cause"], *figures]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [""] if rows else []
    lines += ["|  |  |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare, print, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="N", help="these models, to look at a divergence again"
    )
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument(
        "--out", type=Path, default=PAGE, help="the page (default: SEQUENCES.md beside this file)"
    )
    options = parser.parse_args()
    which = f"--only {' '.join(map(str, options.only))}" if options.only else f"--models {options.models}"
    machine = facts(f"python -m benchmarks.sequences {which} --tokens {options.tokens}", other_work())
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    lengths: list[int] = []
    for done, number in enumerate(options.only or range(options.models), start=1):
        length, row = compare(number, options.tokens)
        lengths.append(length)
        if row is not None:
            rows.append(row)
            gap = "" if row["gap"] is None else f", gap {row['gap']:.1e}"
            print(
                f"model {number} ({row['what']}): token {row['place']} differs: {row['cause']}{gap}",
                flush=True,
            )
        if done % 10 == 0:
            print(f"{done} models, {sum(lengths):,} tokens, {len(rows)} divergences", flush=True)
    machine["time taken"] = f"{time.perf_counter() - began:.0f} s"
    options.out.write_text(page(rows, lengths, options.tokens, machine))


if __name__ == "__main__":
    main()
