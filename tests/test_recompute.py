"""Gates made again in the backward pass: the same numbers from half of what is kept."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from kernel_helpers import OUTPUTS, arguments, as_tuple, generator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from melodia import kernels
from melodia.kernels import Recipe, native, recompute
from melodia.model import Model, ModelConfig

BACKENDS = ["reference", *(["native"] if native.reason() is None else [])]
CASES = [("lstm_scan", 4), ("gru_scan", 3), ("pair_scan", 7)]


def run_with(name: str, gates: int, backend: str, again: bool, kind: str, amp: bool = False) -> list[Tensor]:
    """Outputs and all gradients of a scan behind a product or a lookup."""
    T, B, H, D = 6, 3, 20, 7
    inputs = arguments(name, T, B, H)
    first = 2 if name == "pair_scan" else 1
    g = generator(5)
    x = torch.randn(T, B, D, generator=g) if kind == "linear" else torch.randn(9, D, generator=g)
    weights = [torch.randn(n * H, D, generator=g) / 3 for n in ([4, 3] if first == 2 else [gates])]
    biases = [torch.randn(len(w), generator=g) for w in weights]
    index = torch.randint(0, 9, (T, B, 2), generator=g)
    leaves = [y.clone().requires_grad_() for y in (x, *weights, *biases, *inputs[first:])]
    x, weights, biases = leaves[0], leaves[1 : 1 + first], leaves[1 + first : 1 + 2 * first]
    lengths = torch.tensor([6, 0, 4])
    context: Any = torch.autocast("cpu", torch.bfloat16) if amp else contextlib.nullcontext()
    with kernels.use_backend(backend), context:
        if kind == "linear":
            recipes = [Recipe(F.linear, (x, w, b)) for w, b in zip(weights, biases, strict=True)]
        else:
            tables = [F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
            recipes = [Recipe(kernels.lookup, (index, table)) for table in tables]
        made = recipes if again else [recipe.follow() for recipe in recipes]
        outputs = as_tuple(getattr(kernels, name)(*made, *leaves[1 + 2 * first :], lengths))
    with kernels.use_backend(backend):  # outside autocast, as in training
        cotangents = [torch.randn(out.shape, generator=generator(3)).to(out.dtype) for out in outputs]
        grads = torch.autograd.grad(outputs, leaves, cotangents)
    return [*(x.detach() for x in outputs), *grads]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["linear", "lookup"])
@pytest.mark.parametrize(("name", "gates"), CASES)
def test_same_outputs_and_gradients(name: str, gates: int, kind: str, backend: str) -> None:
    want = run_with(name, gates, backend, False, kind)
    got = run_with(name, gates, backend, True, kind)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        if k < OUTPUTS[name]:
            assert torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
@pytest.mark.parametrize(("name", "gates"), CASES[:2])
def test_gates_that_are_a_view(name: str, gates: int) -> None:
    T, B, H, D = 5, 3, 6, 4
    g = generator(5)
    x, weight = torch.randn(B, T, D, generator=g), torch.randn(gates * H, D, generator=g)

    def make_gates(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight).transpose(0, 1)

    found = []
    for again in (False, True):
        leaves = [y.clone().requires_grad_() for y in (x, weight, *arguments(name, T, B, H)[1:])]
        recipe = Recipe(make_gates, (leaves[0], leaves[1]))
        with kernels.use_backend("native"):
            output = getattr(kernels, name)(recipe if again else recipe.follow(), *leaves[2:])[0]
        found.append(torch.autograd.grad(output.square().sum(), leaves, allow_unused=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
@pytest.mark.parametrize(("name", "gates"), CASES)
def test_under_autocast(name: str, gates: int) -> None:
    """Recomputed sums are rounded to bfloat16 before the nonlinearity; 0.02 of the largest number is 5 roundings."""
    want = run_with(name, gates, "native", False, "linear", amp=True)
    got = run_with(name, gates, "native", True, "linear", amp=True)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.dtype == b.dtype
        if k < OUTPUTS[name]:
            assert torch.equal(a, b)
        torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), rtol=0, atol=0.02)


@pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
@pytest.mark.parametrize(("name", "gates"), CASES[:2])
def test_backward_under_autocast_computes_as_outside(name: str, gates: int) -> None:
    T, B, H, D = 5, 3, 6, 4
    g = generator(5)
    x, weight = torch.randn(T, B, D, generator=g), torch.randn(gates * H, D, generator=g)
    found = []
    for low in (False, True):
        leaves = [y.clone().requires_grad_() for y in (x, weight, *arguments(name, T, B, H)[1:])]
        with kernels.use_backend("native"):
            output = getattr(kernels, name)(Recipe(F.linear, (leaves[0], leaves[1])), *leaves[2:])[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            found.append(torch.autograd.grad(output.square().sum(), leaves, allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_autocast_of_the_tensors_device_is_entered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the CPU's, where the tensors are on a GPU."""
    entered = []
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(torch, "autocast", lambda *arguments: entered.append(arguments))
    recompute._autocast("cpu")
    assert entered == []
    recompute._autocast("cuda")
    assert entered == [("cuda", torch.bfloat16)]


def make(kind: str, **more: Any) -> Model:
    options = {"block_length": 4} if kind == "bidirectional" else {}
    return Model(ModelConfig(kind=kind, vocab_size=30, hidden_size=16, **options, **more), random_seed=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "sequential", "reversed", "parallel", "bidirectional"])
@pytest.mark.parametrize("length", [3, 40])  # a product and a lookup for the first layer
def test_models_learn_the_same(kind: str, length: int, backend: str) -> None:
    model = make(kind, dropout=0.2, weight_drop=0.2, layer_norm=True).train()
    tokens = torch.randint(0, 30, (3, length), generator=generator(1))
    results = []
    for again in (False, True):
        with kernels.use_backend(backend):
            logits, _ = model(tokens, generator=generator(2), recompute=again)
            grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()), allow_unused=True)
        results.append([logits.detach(), *(x for x in grads if x is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def kept_bytes(model: Model, tokens: Tensor, recompute: bool) -> int:
    """What the graph holds behind a forward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits, _ = model(tokens, recompute=recompute)
    assert logits.requires_grad
    return sum(kept.values())


@pytest.mark.skipif(native.reason() is not None, reason=f"no native library: {native.reason()}")
@pytest.mark.parametrize("kind", ["sequential", "parallel"])
def test_keeps_less_than_half(kind: str) -> None:
    model = make(kind).train()
    tokens = torch.randint(0, 30, (4, 200), generator=generator(1))
    whole, less = (kept_bytes(model, tokens, recompute) for recompute in (False, True))
    print(f"{kind}: {less / whole:.2f} of {whole} bytes")
    assert less < 0.5 * whole


def test_without_gradients_a_recipe_is_followed() -> None:
    gates, h, c, weight, bias = arguments("lstm_scan", 3, 2, 5)
    with torch.no_grad():
        out = kernels.lstm_scan(Recipe(torch.clone, (gates,)), h, c, weight, bias)
    assert all(
        torch.equal(a, b) for a, b in zip(out, kernels.lstm_scan(gates, h, c, weight, bias), strict=True)
    )


def test_compiles() -> None:
    inputs = arguments("gru_scan", 3, 2, 5)

    def call(gates: Tensor, *rest: Tensor) -> Tensor:
        return kernels.gru_scan(Recipe(torch.mul, (gates, gates)), *rest)[0]

    compiled: Any = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), call(*inputs))


@pytest.mark.parametrize("name", ["lstm_scan", "gru_scan"])
def test_transforms_of_torch_func_follow_recipes(name: str) -> None:
    first, *others = arguments(name, 3, 2, 5)

    def loss(x: Tensor, again: bool) -> Tensor:
        recipe = Recipe(torch.tanh, (x,))
        return getattr(kernels, name)(recipe if again else recipe.follow(), *others)[0].square().sum()

    got, want = (
        torch.func.vmap(torch.func.grad(loss), (0, None))(first[None], again) for again in (True, False)
    )
    torch.testing.assert_close(got, want)
    many = first[None].clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(torch.func.vmap(loss, (0, None))(many, True).sum(), many)[0], want
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("again", [False, True])
def test_a_model_in_a_checkpoint_of_torch(again: bool, backend: str) -> None:
    config = ModelConfig("bidirectional", vocab_size=9, hidden_size=6, block_length=3, side_inputs=())
    model = Model(config, random_seed=1)
    tokens = torch.arange(24).view(2, 12) % 9

    def logits(tokens: Tensor) -> Tensor:
        with kernels.use_backend(backend):
            return model(tokens, recompute=again)[0]

    found = []
    for output in (logits(tokens), checkpoint(logits, tokens, use_reentrant=False)):
        found.append(torch.autograd.grad(output.square().sum(), list(model.parameters())))
    torch.testing.assert_close(*found)
