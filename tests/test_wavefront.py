"""Scans side by side (`wave_scan`), and stacks that go as a wavefront: the same numbers as level after level."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import cuda_emulation as emulation
import pytest
import torch
from cuda_emulation import TOLERANCE, Emulator, error
from kernel_helpers import generator
from torch import Tensor

from melodia import kernels
from melodia.kernels import native, reference, shapes
from melodia.model import Model, ModelConfig

needs_native = pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
needs_compiler = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler")

Cell = tuple[str, int, int]
"""Kind, steps T, units H."""
CELLS: list[Cell] = [("gru", 3, 5), ("lstm", 6, 9), ("lstm", 1, 17), ("gru", 4, 9)]
Lists = list[list[Tensor]]


def arguments(cells: Sequence[Cell], B: int, dtype: torch.dtype = torch.float32) -> Lists:
    """gates_x, h, c, weight_hh and bias_hh of a wave."""
    g = generator(B)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    gates = {"lstm": 4, "gru": 3}
    return [
        [random(T, B, gates[kind] * H).to(dtype) for kind, T, H in cells],
        [random(B, H) for _, _, H in cells],
        [random(B, H) for kind, _, H in cells if kind == "lstm"],
        [(random(gates[kind] * H, H) / H**0.5).to(dtype) for kind, _, H in cells],
        [random(gates[kind] * H) * 0.3 for kind, _, H in cells],
    ]


def run(scan: Callable[..., Any], lists: Lists, lengths: Sequence[Tensor] = ()) -> list[Tensor]:
    """Outputs and the gradient of every argument."""
    leaves = [[x.detach().clone().requires_grad_() for x in some] for some in lists]
    outputs = [x for some in scan(*leaves, lengths) for x in some]
    g = generator(1)
    cotangents = [torch.randn(x.shape, generator=g).to(x.dtype) for x in outputs]
    flat = [x for some in leaves for x in some]
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, flat, cotangents)]


def lengths_of(cells: Sequence[Cell], B: int) -> list[Tensor]:
    """Random lengths of each cell, beyond its end too."""
    return [torch.randint(0, T + 3, (B,), generator=generator(T)) for _, T, _ in cells]


def native_wave(*lists: Any) -> Any:
    """The dispatcher's function, native forced."""
    with kernels.use_backend("native"):
        return kernels.wave_scan(*lists)


@needs_native
@pytest.mark.parametrize("B", [1, 7])
@pytest.mark.parametrize("some", [(), (1,)])
def test_native_equals_the_reference(B: int, some: tuple[int, ...]) -> None:
    cells = [CELLS[k] for k in some] or CELLS
    lists = arguments(cells, B)
    for lengths in ([], lengths_of(cells, B)):
        want = run(reference.wave_scan, lists, lengths)
        assert error(run(native_wave, lists, lengths), want) < 5e-6


@needs_native
def test_native_in_bf16() -> None:
    lists = arguments(CELLS, 7, torch.bfloat16)
    wide = [[x.float() for x in some] for some in lists]
    assert error(run(native_wave, lists), run(reference.wave_scan, wide)) < 3e-2


@needs_native
def test_autocast_rounds_gates_and_weights() -> None:
    lists = arguments(CELLS, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, h_n, c_n = native_wave(*lists)
    assert {x.dtype for x in output} == {torch.bfloat16}
    assert {x.dtype for x in (*h_n, *c_n)} == {torch.float32}


@needs_native
def test_operator_follows_torchs_rules() -> None:
    lists = [[x.requires_grad_() for x in some] for some in arguments(CELLS, 2)]
    torch.library.opcheck(torch.ops.melodia.wave_scan, (*lists, [], shapes.GATES))
    torch.library.opcheck(torch.ops.melodia.wave_scan, (*lists, lengths_of(CELLS, 2), shapes.GATES))


@needs_native
def test_missing_gradients_are_zero() -> None:
    """Only one cell's last state is used."""
    lists = arguments(CELLS, 2)

    def gradient(scan: Callable[..., Any]) -> list[Tensor]:
        leaves = [[x.detach().clone().requires_grad_() for x in some] for some in lists]
        _, _, c_n = scan(*leaves, [])
        gates, _, c, *_ = leaves
        return list(torch.autograd.grad(c_n[0].sum(), [gates[1], c[0]]))

    assert error(gradient(native_wave), gradient(reference.wave_scan)) < 5e-6


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: [[], *a[1:]], "needs as many|one cell at least"),
        (lambda a: [a[0], a[1][:1], *a[2:]], "a wave of 4 cells needs as many tensors of each kind"),
        (lambda a: [*a[:2], a[2][:1], *a[3:]], "`c` has 1 tensors and needs more"),
        (lambda a: [*a[:2], a[2] * 2, *a[3:]], r"`c` must have 2 tensors \(received 4\)"),
        (lambda a: [*a[:3], [x.t() for x in a[3]], a[4]], r"\[4H, H\] of an LSTM or \[3H, H\] of a GRU"),
    ],
)
def test_wrong_lists(change: Callable[[Lists], Lists], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.melodia.wave_scan(*change(arguments(CELLS, 2)), [], 0)


@needs_compiler
@pytest.mark.parametrize(
    ("path", "exchange"),
    [("resident", "counter"), ("resident", "in_band"), ("steps", "automatic"), ("rows", "automatic")],
)
def test_one_launch_on_the_emulator(emulator: Emulator, path: str, exchange: str) -> None:
    """Cells of their own steps and lengths in one launch, and more of them than a launch takes."""
    few = path == "rows"  # a fiber switch for every number that a warp sums
    for cells, B in ((CELLS[:2], 2),) if few else ((CELLS, 9), ([*CELLS, *CELLS[1:3]], 2)):
        lists = arguments(cells, B)
        for lengths, schedule in zip(([], lengths_of(cells, B)), (2, 5), strict=True):
            emulator.configure(path=path, exchange=exchange, schedule=schedule, blocks=40)
            want = run(reference.wave_scan, lists, lengths)
            assert error(emulator.wave_values(lists, lengths), want) < TOLERANCE, (path, exchange, schedule)
            assert emulator.chosen() == path


@needs_compiler
def test_cells_that_do_not_fit_side_by_side_go_one_after_the_other(emulator: Emulator) -> None:
    """Three blocks hold the weights of one cell; a cell that nothing holds goes step by step."""
    lists = arguments([("lstm", 3, 20), ("gru", 3, 20)], 2)
    emulator.configure(blocks=3, shared_bytes=12 << 10)
    assert error(emulator.wave_values(lists, []), run(reference.wave_scan, lists)) < TOLERANCE
    assert emulator.chosen() == "resident"
    lists = arguments([("gru", 3, 20), ("lstm", 3, 40)], 2)
    assert error(emulator.wave_values(lists, []), run(reference.wave_scan, lists)) < TOLERANCE
    assert emulator.chosen() == "steps"


@needs_compiler
def test_the_same_bits_in_every_schedule(emulator: Emulator) -> None:
    results = []
    for schedule in range(4):
        emulator.configure(schedule=schedule, blocks=40)
        results.append(emulator.wave_values(arguments(CELLS, 5), []))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_compiler
def test_a_wave_that_gives_up_is_done_in_another_way(emulator: Emulator) -> None:
    lists = arguments(CELLS[:2], 2)
    want = run(reference.wave_scan, lists)
    for exchange in ("counter", "in_band"):
        emulator.configure(path="resident", exchange=exchange, schedule=2, limit_ns=0)
        assert error(emulator.wave_values(lists, []), want) < TOLERANCE


# ---- Stacks


def config(kind: str, **changes: Any) -> ModelConfig:
    """A model of several levels."""
    layers = {"lstm": 3, "gru": 2, "sequential": 1, "reversed": 2, "parallel": 2}[kind]
    names = {"lstm": ("lstm",), "gru": ("gru",)}.get(kind, ("lstm", "gru"))
    counts: dict[str, Any] = {f"{name}_layers": layers for name in names}
    return ModelConfig(kind, vocab_size=11, hidden_size=6, **counts, **changes)


def train_once(model: Model, lengths: Tensor | None) -> list[Tensor]:
    """Loss, state and gradients over 13 steps, masks from a fixed generator."""
    g = generator(5)
    tokens = torch.randint(0, 11, (3, 13), generator=g)
    state = tuple(tuple(torch.randn(x.shape, generator=g) for x in level) for level in model.initial_state(3))
    model.zero_grad()
    logits, after = model(tokens, None, state, lengths, generator=generator(7))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    loss = loss + sum((x**2).mean() for level in after for x in level)
    loss.backward()
    gradients = [x.grad for x in model.parameters()]
    assert all(x is not None for x in gradients)
    return [
        loss.detach(),
        *(x.detach() for level in after for x in level),
        *(x for x in gradients if x is not None),
    ]


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("kind", ["lstm", "gru", "sequential", "reversed", "parallel"])
def test_a_stack_in_waves_is_the_stack(kind: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind, with and without what stands between levels; parts of several sizes, the last one shorter."""
    between: tuple[dict[str, Any], ...] = (
        {},
        {"layer_norm": True, "residual": True, "dropout": 0.3, "weight_drop": 0.2},
    )
    lengths = torch.tensor([13, 4, 0])
    for changes, length in itertools.product(between, (None, lengths)):
        model = Model(config(kind, **changes), random_seed=3).train()
        with kernels.use_backend(backend):
            want = train_once(model, length)
            for steps in (1, 4, 12):
                monkeypatch.setattr(kernels, "wavefront_steps", lambda _, n=steps: n)
                assert error(train_once(model, length), want) < 1e-5, (changes, steps)
            monkeypatch.undo()


def test_a_wave_has_every_level_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three LSTMs over 13 steps in parts of 4: six waves of 1, 2, 3, 3, 2 and 1 cells."""
    seen = []

    def spy(gates_x: list[Tensor], *rest: Any) -> Any:
        seen.append([x.shape[0] for x in gates_x])
        return reference.wave_scan(gates_x, *rest)

    monkeypatch.setattr(kernels, "wavefront_steps", lambda _: 4)
    monkeypatch.setattr(kernels, "wave_scan", spy)
    train_once(Model(config("lstm")), None)
    assert seen == [[4], [4, 4], [4, 4, 4], [1, 4, 4], [1, 4], [1]]


def test_not_on_the_cpu() -> None:
    """One scan after the other fills all threads there."""
    assert kernels.wavefront_steps(torch.zeros(3, 1)) == 0
