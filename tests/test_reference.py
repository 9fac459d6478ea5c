"""The reference kernels against torch.nn, against finite differences, and against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from melodia.kernels import reference

# (T, B, H): nothing is a multiple of anything, single steps, single sequences, a single unit, a long one.
SHAPES = [(1, 1, 1), (1, 3, 5), (7, 1, 4), (13, 3, 7), (33, 2, 33), (200, 2, 6)]
# fp64 leaves only the order of additions; fp32 adds one rounding per step and product.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def _module(kind: str, D: int, H: int, dtype: torch.dtype) -> nn.RNNBase:
    torch.manual_seed(D * 100 + H)
    return (nn.LSTM if kind == "lstm" else nn.GRU)(D, H).to(dtype)


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def _gates(module: nn.RNNBase, x: Tensor) -> Tensor:
    return x @ module.weight_ih_l0.T + module.bias_ih_l0


def _close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("T", "B", "H"), SHAPES)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_scan_equals_torch_in_outputs_and_gradients(
    kind: str, T: int, B: int, H: int, dtype: torch.dtype
) -> None:
    module = _module(kind, 3, H, dtype)
    weights = list(module.parameters())
    x = torch.randn(T, B, 3, dtype=dtype, requires_grad=True)
    states = [torch.randn(B, H, dtype=dtype, requires_grad=True) for _ in range(2 if kind == "lstm" else 1)]
    inputs = [x, *states, *weights]
    if kind == "lstm":
        out, (h_n, c_n) = module(x, (states[0][None], states[1][None]))
        expected = [out, h_n[0], c_n[0]]
        actual = list(reference.lstm_scan(_gates(module, x), *states, weights[1], weights[3], None))
    else:
        out, h_n = module(x, states[0][None])
        expected = [out, h_n[0]]
        actual = list(reference.gru_scan(_gates(module, x), *states, weights[1], weights[3], None))
    cotangents = [torch.randn_like(value) for value in expected]
    want = torch.autograd.grad(expected, inputs, cotangents)
    got = torch.autograd.grad(actual, inputs, cotangents)
    for one, other in zip([*actual, *got], [*expected, *want], strict=True):
        scale = max(1.0, other.abs().max().item())
        _close(one / scale, other / scale, dtype)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_step_equals_torch_cell(kind: str) -> None:
    torch.manual_seed(1)
    x, h, c = (torch.randn(4, n, dtype=torch.float64) for n in (3, 5, 5))
    if kind == "lstm":
        cell = nn.LSTMCell(3, 5).double()
        gates = x @ cell.weight_ih.T + cell.bias_ih
        for one, other in zip(
            reference.lstm_step(gates, h, c, cell.weight_hh, cell.bias_hh), cell(x, (h, c)), strict=True
        ):
            _close(one, other, torch.float64)
    else:
        gru = nn.GRUCell(3, 5).double()
        gates = x @ gru.weight_ih.T + gru.bias_ih
        _close(reference.gru_step(gates, h, gru.weight_hh, gru.bias_hh), gru(x, h), torch.float64)


def test_steps_by_hand() -> None:
    h, c = reference.lstm_step(
        torch.tensor([[0.5, -1.0, 2.0, 0.25]], dtype=torch.float64),
        torch.tensor([[0.3]], dtype=torch.float64),
        torch.tensor([[-0.7]], dtype=torch.float64),
        torch.tensor([[1.0], [2.0], [-1.0], [0.5]], dtype=torch.float64),
        torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64),
    )
    c_hand = sigmoid(-1.0 + 0.6 + 0.2) * -0.7 + sigmoid(0.5 + 0.3 + 0.1) * math.tanh(2.0 - 0.3 + 0.3)
    assert c.item() == pytest.approx(c_hand, abs=1e-15)
    assert h.item() == pytest.approx(sigmoid(0.25 + 0.15 + 0.4) * math.tanh(c_hand), abs=1e-15)
    h = reference.gru_step(
        torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64),
        torch.tensor([[0.3]], dtype=torch.float64),
        torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64),
        torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
    )
    r, z = sigmoid(0.5 + 0.3 + 0.1), sigmoid(-1.0 + 0.6 + 0.2)
    n = math.tanh(2.0 + r * (-0.3 + 0.3))  # the reset gate multiplies the product with its bias
    assert h.item() == pytest.approx((1 - z) * n + z * 0.3, abs=1e-15)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_lengths_equal_packed_sequences(kind: str) -> None:
    lengths = torch.tensor([5, 9, 1, 4])
    module = _module(kind, 3, 6, torch.float64)
    weights = list(module.parameters())
    x = torch.randn(9, 4, 3, dtype=torch.float64)
    h, c = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    if kind == "lstm":
        out, (h_n, c_n) = module(packed, (h[None], c[None]))
        actual = reference.lstm_scan(_gates(module, x), h, c, weights[1], weights[3], lengths)
        _close(actual[2], c_n[0], torch.float64)
    else:
        out, h_n = module(packed, h[None])
        actual = reference.gru_scan(_gates(module, x), h, weights[1], weights[3], lengths)
    _close(actual[0], nn.utils.rnn.pad_packed_sequence(out)[0], torch.float64)
    _close(actual[1], h_n[0], torch.float64)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_zero_lengths_leave_the_state_alone(kind: str) -> None:
    lengths = torch.tensor([0, 2])
    h, c = torch.randn(2, 3), torch.randn(2, 3)
    if kind == "lstm":
        out, h_n, c_n = reference.lstm_scan(
            torch.randn(4, 2, 12), h, c, torch.randn(12, 3), torch.randn(12), lengths
        )
        assert torch.equal(c_n[0], c[0])
    else:
        out, h_n = reference.gru_scan(torch.randn(4, 2, 9), h, torch.randn(9, 3), torch.randn(9), lengths)
    assert torch.equal(h_n[0], h[0])
    assert not out[:, 0].any()
    assert not out[2:, 1].any()
    assert out[:2, 1].all()


def test_no_steps() -> None:
    h, c = torch.randn(2, 3), torch.randn(2, 3)
    out, h_n, c_n = reference.lstm_scan(torch.zeros(0, 2, 12), h, c, torch.zeros(12, 3), torch.zeros(12))
    assert out.shape == (0, 2, 3)
    assert torch.equal(h_n, h)
    assert torch.equal(c_n, c)
    assert reference.gru_scan(torch.zeros(0, 2, 9), h, torch.zeros(9, 3), torch.zeros(9))[0].shape == (
        0,
        2,
        3,
    )


def _double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 3, 0])])
def test_gradcheck(lengths: Tensor | None) -> None:
    torch.manual_seed(0)
    T, B, H = 3, 3, 2
    lstm = (_double(T, B, 4 * H), _double(B, H), _double(B, H), _double(4 * H, H), _double(4 * H))
    gru = (_double(T, B, 3 * H), _double(B, H), _double(3 * H, H), _double(3 * H))
    assert torch.autograd.gradcheck(lambda *args: reference.lstm_scan(*args, lengths), lstm)
    assert torch.autograd.gradcheck(lambda *args: reference.gru_scan(*args, lengths), gru)
    assert torch.autograd.gradgradcheck(lambda *args: reference.gru_scan(*args, lengths), gru)
    pair = (lstm[0], gru[0], lstm[1], lstm[2], gru[1], lstm[3], lstm[4], gru[2], gru[3])
    assert torch.autograd.gradcheck(lambda *args: reference.pair_scan(*args, lengths), pair)


def test_pair_is_its_two_halves_and_strides_do_not_matter() -> None:
    torch.manual_seed(0)
    T, B, H = 6, 3, 5
    wide = torch.randn(B, T, 9 * H)
    lstm_gates, gru_gates = wide[..., : 4 * H].transpose(0, 1), wide[..., 5 * H : 8 * H].transpose(0, 1)
    assert not lstm_gates.is_contiguous()
    h, c, g = torch.randn(3, B, 2 * H)[..., ::2].unbind(0)
    w_l, b_l, w_g, b_g = torch.randn(4 * H, H), torch.randn(4 * H), torch.randn(3 * H, H), torch.randn(3 * H)
    lengths = torch.tensor([6, 2, 4])
    pair = reference.pair_scan(lstm_gates, gru_gates, h, c, g, w_l, b_l, w_g, b_g, lengths)
    lstm = reference.lstm_scan(lstm_gates.contiguous(), h.contiguous(), c.contiguous(), w_l, b_l, lengths)
    gru = reference.gru_scan(gru_gates.contiguous(), g.contiguous(), w_g, b_g, lengths)
    for one, other in zip(pair, (lstm[0], gru[0], lstm[1], lstm[2], gru[1]), strict=True):
        _close(one, other, torch.float32)


def test_chunks_equal_the_whole() -> None:
    torch.manual_seed(0)
    gates, w, b = torch.randn(10, 2, 12, dtype=torch.float64), _double(12, 3), _double(12)
    h, c = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    whole = reference.lstm_scan(gates, h, c, w, b)
    parts = []
    for chunk in gates.split([1, 4, 5]):
        out, h, c = reference.lstm_scan(chunk, h, c, w, b)
        parts.append(out)
    assert torch.equal(torch.cat(parts), whole[0])
    assert torch.equal(h, whole[1])
    assert torch.equal(c, whole[2])
