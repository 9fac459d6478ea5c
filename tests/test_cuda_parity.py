"""Parity of the CUDA kernels with the reference on a GPU: every output and every gradient, on every path.

Skipped where no CUDA kernel can run; the reason is shown. What runs without a GPU is in test_cuda_scans.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_emulation import EXCHANGES, PATHS, arguments, error, wanted
from kernel_helpers import stack_arguments
from torch import Tensor

from melodia import kernels
from melodia.kernels import cuda, reference
from melodia.model import Model, ModelConfig

pytestmark = pytest.mark.skipif(cuda.reason() is not None, reason=cuda.describe())

SCANS = ("lstm_scan", "gru_scan", "pair_scan")
WAYS = [("automatic", "automatic"), ("resident", "counter"), ("resident", "in_band")]
WAYS += [("steps", "automatic"), ("rows", "automatic")]

# Relative to the largest magnitude of a tensor. float32 as in test_kernels_native.py; half precision against the
# reference in float32 on the same rounded inputs.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Each path and exchange."""
    library = cuda._load()[0]
    assert library is not None
    path, exchange = request.param
    library.melodia_cuda_configure(PATHS[path], EXCHANGES[exchange], cuda.SPIN_LIMIT_NS)
    yield request.param
    library.melodia_cuda_configure(0, 0, cuda.SPIN_LIMIT_NS)


def on_gpu(name: str, inputs: list[Tensor], cotangents: list[Tensor], lengths: Tensor | None) -> list[Tensor]:
    """Outputs and gradients of the dispatcher's function on the GPU, native forced, as CPU tensors."""
    leaves = [x.cuda().requires_grad_() for x in inputs]
    with kernels.use_backend("native"):
        outputs = getattr(kernels, name)(*leaves, None if lengths is None else lengths.cuda())
    there = [c.to("cuda", out.dtype) for c, out in zip(cotangents, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, leaves, there)
    return [x.detach().cpu() for x in (*outputs, *gradients)]


def compare(name: str, T: int, B: int, H: int, lengths: Tensor | None, dtype: torch.dtype) -> None:
    """One scan on the GPU against the reference on the CPU."""
    rounded = [x.to(dtype) for x in arguments(name, T, B, H, seed=H)]
    cotangents, want = wanted(name, [x.float() for x in rounded], lengths)
    assert error(on_gpu(name, rounded, cotangents, lengths), want) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SCANS)
def test_parity(name: str, dtype: torch.dtype, way: tuple[str, str]) -> None:
    for (B, H), T in itertools.product(((1, 1), (3, 17), (8, 64), (33, 100)), (1, 2, 9)):
        lengths = torch.randint(0, T + 1, (B,), generator=torch.Generator().manual_seed(T))
        compare(name, T, B, H, lengths if H == 17 else None, dtype)


def gradients_of(waves: Any, lists: list[list[Tensor]], lengths: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients of `wave_scan`, on the CPU."""
    leaves = [[x.detach().clone().requires_grad_() for x in some] for some in lists]
    outputs = [x for some in waves(*leaves, lengths) for x in some]
    loss = sum((x.float() ** 2).sum() for x in outputs)
    assert isinstance(loss, Tensor)
    flat = [x for some in leaves for x in some]
    return [x.detach().float().cpu() for x in (*outputs, *torch.autograd.grad(loss, flat))]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_waves(dtype: torch.dtype, way: tuple[str, str]) -> None:
    """Cells of their own steps and units in one launch."""
    lists: list[list[Tensor]] = [[], [], [], [], []]
    for kind, T, H in (("gru", 3, 17), ("lstm", 9, 64), ("lstm", 1, 100), ("gru", 2, 64), ("gru", 9, 5)):
        gates_x, h, *c, weight, bias = arguments(f"{kind}_scan", T, 5, H, seed=H)
        for some, own in zip(lists, ([gates_x], [h], c, [weight], [bias]), strict=True):
            some += [x.to(dtype) for x in own]
    lengths = [torch.randint(0, 11, (5,), generator=torch.Generator().manual_seed(k)) for k in range(5)]
    want = gradients_of(reference.wave_scan, [[x.float() for x in some] for some in lists], lengths)
    there = [[x.cuda() for x in some] for some in lists]
    with kernels.use_backend("native"):
        got = gradients_of(kernels.wave_scan, there, [x.cuda() for x in lengths])
    assert error(got, want) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["lstm", "sequential", "reversed", "parallel"])
def test_stacks_as_wavefronts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of two levels and its gradients, level after level and in waves."""
    layers: dict[str, Any] = {"lstm_layers": 2, "gru_layers": 2} if kind == "parallel" else {}
    config = ModelConfig(kind, vocab_size=20, hidden_size=32, layer_norm=True, residual=True, **layers)
    model = Model(config).cuda()
    tokens = torch.randint(0, 20, (3, 40), generator=torch.Generator().manual_seed(0)).cuda()

    def values(steps: int) -> list[Tensor]:
        monkeypatch.setattr(kernels, "wavefront_steps", lambda _: steps)
        with kernels.use_backend("native"):
            logits, _ = model(tokens)
        return [logits.detach(), *torch.autograd.grad((logits**2).mean(), list(model.parameters()))]

    want = values(0)
    for steps in (7, 16):
        assert error(values(steps), want) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lstm", "sequential", "parallel"])
def test_gates_made_again_under_autocast(kind: str, dtype: torch.dtype) -> None:
    """As in training: the backward pass is called outside autocast."""
    model = Model(ModelConfig(kind, vocab_size=20, hidden_size=32)).cuda()
    tokens = torch.randint(0, 20, (3, 40), generator=torch.Generator().manual_seed(0)).cuda()
    found = []
    for again in (False, True):
        with kernels.use_backend("native"), torch.autocast("cuda", dtype):
            logits, _ = model(tokens, recompute=again)
            loss = (logits.float() ** 2).mean()
        found.append([logits.detach().float(), *torch.autograd.grad(loss, list(model.parameters()))])
    assert error(found[1], found[0]) < TOLERANCE[dtype]


@pytest.fixture
def tf32() -> Iterator[None]:
    """Allowed for a while; monkeypatch cannot set back what torch keeps outside the object."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("name", SCANS)
def test_tf32_where_torch_allows_it(name: str) -> None:
    inputs = arguments(name, 5, 9, 64)
    cotangents, want = wanted(name, inputs)
    off = error(on_gpu(name, inputs, cotangents, None), want)
    assert TOLERANCE[torch.float32] < off < 4e-3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SCANS)
def test_parity_large(name: str, dtype: torch.dtype) -> None:
    for T, B, H in ((129, 7, 100), (16, 64, 512), (16, 64, 1024), (4, 1, 1024), (3, 2, 2048)):
        compare(name, T, B, H, None, dtype)


def test_the_same_bits_every_time(way: tuple[str, str]) -> None:
    inputs = arguments("pair_scan", 20, 17, 256)
    cotangents, _ = wanted("pair_scan", inputs)
    first, *others = (on_gpu("pair_scan", inputs, cotangents, None) for _ in range(5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("B", [1, 3, 64])
def test_steps(B: int) -> None:
    for H in (1, 17, 512):
        gates_x, h, c, weight, bias = (x.cuda() for x in arguments("lstm_scan", 1, B, H))
        with kernels.use_backend("native"):
            got = kernels.lstm_step(gates_x[0], h, c, weight, bias)
        assert error(list(got), list(reference.lstm_step(gates_x[0], h, c, weight, bias))) < 2e-5


@pytest.mark.parametrize("name", SCANS)
def test_captured_into_a_graph(name: str) -> None:
    """The forward pass in a CUDA graph, replayed on other numbers."""
    inputs = [x.cuda() for x in arguments(name, 8, 4, 64)]
    with kernels.use_backend("native"), torch.no_grad():
        getattr(kernels, name)(*inputs)  # loads and allocates
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = getattr(kernels, name)(*inputs)
        inputs[0].copy_(torch.randn_like(inputs[0]))
        graph.replay()
        torch.cuda.synchronize()
        want = getattr(kernels, name)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(captured, want, strict=True))


def test_a_step_of_a_stack_captured_into_a_graph() -> None:
    """Replayed on other numbers, by the path that is taken where blocks wait for one another."""
    levels = ["gated", "gru", "sum"]
    made = [[x.cuda() for x in part] for part in stack_arguments(levels, 4, 64, True)]
    with kernels.use_backend("native"), torch.no_grad():
        kernels.hybrid_step(*made, levels, True, True)  # loads and allocates
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured, after = kernels.hybrid_step(*made, levels, True, True)
        made[0][0].copy_(torch.randn_like(made[0][0]))
        graph.replay()
        torch.cuda.synchronize()
        want, states = kernels.hybrid_step(*made, levels, True, True)
    assert all(torch.equal(a, b) for a, b in zip([captured, *after], [want, *states], strict=True))


def test_lookup() -> None:
    index = torch.randint(0, 50, (7, 9, 3)).cuda()
    table = torch.randn(50, 300).cuda().requires_grad_()
    with kernels.use_backend("native"):
        got = kernels.lookup(index, table)
    grad = torch.randn_like(got)
    want = reference.lookup(index, table)
    values = [got, torch.autograd.grad(got, table, grad)[0]]
    assert error(values, [want, torch.autograd.grad(want, table, grad)[0]]) < 2e-5
