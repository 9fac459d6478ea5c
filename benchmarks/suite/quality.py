"""What bf16 and int8 weights cost: held-out likelihood under the engine, against fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.options import Options
from benchmarks.suite.page import Section, Table, Target
from melodia import engine
from melodia.corpus.shards import Corpus, Pieces
from melodia.engine.description import WEIGHTS, describe
from melodia.errors import MelodiaError
from melodia.evaluation.likelihood import PiecesInMemory, encode_files
from melodia.model import Checkpoint, load_checkpoint
from melodia.sampler.loading import bundled_model
from melodia.tokenizer import Tokenizer
from melodia.training.streams import IGNORED, Passage, Preparer, stack_windows

LIMITS = {"bf16": 0.002, "int8": 0.01}
LANES, WINDOW = 32, 256
TOKENS = 60_000
"""Enough pieces for so many tokens are scored, the first ones of a fixed random order."""


def held_out(corpus: Path, checkpoint: Checkpoint) -> Pieces:
    """The pieces of a folder: of token shards the validation split, of MIDI files all."""
    if not (corpus / "corpus.json").exists():
        tokenizer = Tokenizer.from_dict(checkpoint.tokenizer_json)
        encoded = encode_files(corpus, tokenizer)
        return PiecesInMemory(encoded.tokens, checkpoint.vocabulary, encoded.constant_velocity)
    shards = Corpus.open(corpus)
    if shards.vocabulary.fingerprint != checkpoint.vocabulary.fingerprint:
        raise ValueError(f"{corpus}: these shards were made with another tokenizer than the model's")
    return shards.pieces("valid")


def passages(pieces: Pieces, preparer: Preparer, tokens: int) -> list[Passage]:
    """Pieces for at least so many tokens, shortest first; all where there are fewer."""
    chosen: list[int] = []
    count = 0
    for number in np.random.default_rng(1).permutation(len(pieces)).tolist():
        if count >= tokens:
            break
        chosen.append(number)
        count += int(pieces.lengths[number])
    return [preparer(pieces[number]) for number in sorted(chosen, key=lambda n: int(pieces.lengths[n]))]


def engine_nats(
    checkpoint: Checkpoint, weights: str, chosen: list[Passage]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Nats and scored tokens of each passage, under the engine."""
    packed = engine.Engine(*describe(checkpoint.model, weights))
    nats, scored = np.zeros(len(chosen)), np.zeros(len(chosen), np.int64)
    for start in range(0, len(chosen), LANES):
        group = chosen[start : start + LANES]
        lanes = engine.Lanes(packed, len(group))
        left = np.array([passage.inputs.size for passage in group])
        for offset in range(0, int(left.max()), WINDOW):
            # Lanes that are over go on with padding, which is not scored.
            lengths = np.clip(left - offset, 0, WINDOW)
            batch = stack_windows(group, np.full(len(group), offset), lengths, checkpoint.vocabulary)
            side = None if batch.side is None else batch.side.swapaxes(0, 1)
            logits = lanes.advance(batch.tokens.T, side)  # [T, B, V]
            targets = batch.targets.T
            live = targets != IGNORED
            wide = logits[live].astype(np.float64)
            top = wide.max(axis=1)
            losses = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
            losses -= wide[np.arange(len(wide)), targets[live]]
            rows = np.broadcast_to(np.arange(len(group)), targets.shape)[live]
            np.add.at(nats, start + rows, losses)
            np.add.at(scored, start + rows, 1)
    return nats, scored


def run(options: Options, section: Section) -> None:
    """Score held-out pieces with every kind of weights."""
    why = _obstacle(options)
    if why:
        for weights, limit in LIMITS.items():
            section.targets.append(_target(weights, limit, None, why))
        section.notes.append(f"Not measured: {why}.")
        return
    assert options.corpus is not None
    checkpoint = load_checkpoint(options.model or bundled_model())
    pieces = held_out(options.corpus, checkpoint)
    preparer = Preparer(checkpoint.vocabulary, checkpoint.config.side_inputs)
    chosen = passages(pieces, preparer, 2_000 if options.quick else TOKENS)
    found: dict[str, NDArray[np.float64]] = {}
    for weights in WEIGHTS:
        options.say(f"quality: {weights}, {len(chosen)} pieces")
        found[weights], scored = engine_nats(checkpoint, weights, chosen)
    config = checkpoint.config
    section.intro = (
        f"{int(scored.sum()):,} tokens of {len(chosen)} held-out pieces, scored by the engine; the model is "
        f"{config.kind}, H = {config.hidden_size}, V = {config.vocab_size}. The difference is over all tokens; ± is "
        "the half-width of its 95 % interval over resampled pieces."
    )
    table = Table(["weights", "nats per token", "worse than fp32", "±"])
    base = found["fp32"].sum() / scored.sum()
    for weights, nats in found.items():
        per_token = nats.sum() / scored.sum()
        difference = per_token - base
        if weights == "fp32":
            table.rows.append([weights, f"{per_token:.4f}", "", ""])
            continue
        half = half_width(nats - found["fp32"], scored)
        table.rows.append([weights, f"{per_token:.4f}", f"{difference:+.5f}", f"{half:.5f}"])
        section.targets.append(_target(weights, LIMITS[weights], float(difference), ""))
    section.tables.append(table)
    section.figures = {weights: float(nats.sum() / scored.sum()) for weights, nats in found.items()}


def half_width(differences: NDArray[Any], scored: NDArray[np.int64]) -> float:
    """Half the 95 % interval of the total difference per token, over 1,000 resamplings of the pieces."""
    drawn = np.random.default_rng(1).integers(len(scored), size=(1_000, len(scored)))
    ratios = differences[drawn].sum(axis=1) / scored[drawn].sum(axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(high - low) / 2


def _obstacle(options: Options) -> str:
    """Why nothing can be scored; "" if it can."""
    if options.corpus is None:
        return "no held-out music was given (--corpus FOLDER)"
    if options.model is None:
        try:
            bundled_model()
        except MelodiaError as error:
            return f"no model was given (--model DIR), and {error}"
    reason = engine.reason()
    return f"the engine cannot run here: {reason}" if reason else ""


def _target(weights: str, limit: float, value: float | None, why: str) -> Target:
    what = f"held-out NLL with {weights} weights, worse by"
    return Target(what, "fp32", limit, value, unit=" nats/token", at_most=True, why=why)
