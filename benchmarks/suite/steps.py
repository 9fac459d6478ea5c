"""One token by the operators: `Model.step`, which is one `hybrid_step` for the whole stack, against torch's cells."""

from __future__ import annotations

import torch

from benchmarks.suite.machine import torch_threads
from benchmarks.suite.measuring import interleave, repeated
from benchmarks.suite.options import Options
from benchmarks.suite.page import Section, Table, figure, micros
from benchmarks.suite.peers import Cells, Eager, drawn
from melodia.kernels import backend_report
from melodia.model import KINDS, Model, ModelConfig

SIZES = (128, 256, 512)
V = 512


class Operators:
    """A model of melodia that torch's program drives token by token, as a peer does."""

    def __init__(self, model: Model, B: int) -> None:
        self._model = model
        self._state = model.initial_state(B)
        self._token = torch.zeros(B, dtype=torch.long)

    @torch.inference_mode()
    def step(self) -> None:
        """One token for each of the B streams."""
        logits, self._state = self._model.step(self._token, None, self._state)
        self._token = drawn(logits)


def run(options: Options, section: Section) -> None:
    """Measure all kinds that torch's cells can follow, one stream, one thread."""
    torch_threads(1)
    section.intro = (
        f"For programs that stay in torch: embedding, two layers (or a pair), head and draw, one stream, one thread, "
        f"fp32, inference mode, V = {V}. melodia: `Model.step`, whose stack is one call of `hybrid_step` "
        f"({backend_report().why})."
    )
    table = Table(
        ["kind, H", "nn.LSTMCell + nn.GRUCell µs", "nn.LSTM + nn.GRU µs", "melodia µs", "× cells", "spread"]
    )
    section.tables.append(table)
    for H in (32,) if options.quick else SIZES:
        for kind in KINDS:
            if kind == "bidirectional":  # torch's cells know no blocks
                continue
            name = f"{kind}, {H}"
            options.say(f"steps: {name}")
            model = Model(ModelConfig(kind, V, H)).eval()
            peers = {"cells": Cells(model, 1), "modules": Eager(model, 1), "ours": Operators(model, 1)}
            ways = {key: repeated(peer.step) for key, peer in peers.items()}
            found = interleave(ways, options.seconds(2, 0.1))
            ratio = found["cells"].median / found["ours"].median
            cells = [micros(found[key].median) for key in peers]
            table.rows.append([name, *cells, figure(ratio), f"±{max(f.spread for f in found.values()):.0%}"])
            section.figures[name] = {key: list(timing.turns) for key, timing in found.items()}
