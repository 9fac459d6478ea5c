"""Every kind of model: causal; the same in one go, in chunks, in steps, lane by lane; equal to torch.nn."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from model_zoo import BAR, SIDES, ZOO, H, V, make, music
from torch import Tensor, nn

from melodia.errors import ConfigError
from melodia.model import Model, ModelConfig, state
from melodia.model.convert import load_torch_rnn
from melodia.model.layers import RecurrentLayer

EXACT = {"rtol": 0.0, "atol": 1e-12}  # fp64: another order of additions, nothing else


def cut(side: Tensor | None, *index: slice | int) -> Tensor | None:
    return None if side is None else side[index]


def assert_states_equal(one: state.State, other: state.State) -> None:
    for a, b in zip(state.leaves(one), state.leaves(other), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("name", ZOO)
def test_no_logit_moves_before_a_changed_token(name: str) -> None:
    model = make(name)
    tokens, side = music(model, 4, 40)
    with torch.no_grad():
        before, _ = model(tokens, side)
        for t in (0, 1, 7, 20, 38, 39):
            for token in (BAR, 2):  # a change can move the borders of blocks
                changed = tokens.clone()
                changed[:, t] = torch.where(changed[:, t] == token, 3, token)
                changed_side = None if side is None else side.clone()
                if changed_side is not None:
                    changed_side[:, t] = (changed_side[:, t] + 1) % torch.tensor(
                        [spec.size for spec in SIDES]
                    )
                after, _ = model(changed, changed_side)
                torch.testing.assert_close(after[:, :t], before[:, :t], **EXACT)
                moved = (after[:, t] - before[:, t]).abs().amax(dim=-1)
                assert (moved > 1e-6).all(), "the token itself is not heard"


@pytest.mark.parametrize("silent", ["forward_layers", "backward_layers"])
@pytest.mark.parametrize("name", [name for name in ZOO if name.startswith("bi")])
def test_a_block_is_heard_in_the_next_one_in_both_directions(name: str, silent: str) -> None:
    """With a decoder that remembers nothing, a token moves its own logits and those of later blocks."""
    model = make(name, block_starts=(BAR,), block_length=None, block_max=64)
    tokens, side = music(model, 1, 12)
    tokens = torch.where(tokens == BAR, 3, tokens)
    tokens[0, [0, 4, 8]] = BAR
    with torch.no_grad():
        for layer in model.stack.modules():
            if not isinstance(layer, RecurrentLayer):
                continue
            layer.weight_hh.zero_()
            layer.bias_ih[H : 2 * H] = -1e4  # LSTM: forget; GRU: always new
        for layer in getattr(model.reader.encoder, silent):
            layer.weight_ih.zero_()
            layer.weight_hh.zero_()
        before, _ = model(tokens, side)
        tokens[0, 5] = 2 if tokens[0, 5] != 2 else 3
        after, _ = model(tokens, side)
    moved = (after - before).abs().amax(dim=-1)[0] > 1e-9
    assert moved.int().tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("name", ZOO)
def test_whole_equals_chunks_equals_steps(name: str) -> None:
    model = make(name)
    tokens, side = music(model, 5, 60)
    with torch.no_grad():
        whole, end = model(tokens, side)
        for sizes in ([1, 9, 0, 25, 3, 22], [30, 30], [59, 1]):
            now, parts, place = model.initial_state(5), [], 0
            for size in sizes:
                window = slice(place, place + size)
                logits, now = model(tokens[:, window], cut(side, slice(None), window), now)
                parts.append(logits)
                place += size
            torch.testing.assert_close(torch.cat(parts, dim=1), whole, **EXACT)
            assert_states_equal(now, end)
        now, steps = model.initial_state(5), []
        with torch.inference_mode():
            for t in range(60):
                logits, now = model.step(tokens[:, t], cut(side, slice(None), t), now)
                steps.append(logits)
        torch.testing.assert_close(torch.stack(steps, dim=1), whole, **EXACT)
        assert_states_equal(now, end)
        logits, _ = model(
            tokens[:, :20], cut(side, slice(None), slice(0, 20)), now
        )  # and on, from a stepped state
        torch.testing.assert_close(
            logits, model(tokens[:, :20], cut(side, slice(None), slice(0, 20)), end)[0], **EXACT
        )


@pytest.mark.parametrize("name", ZOO)
def test_a_batch_equals_its_lanes_and_lengths_equal_shorter_lanes(name: str) -> None:
    model = make(name)
    tokens, side = music(model, 5, 30)
    lengths = torch.tensor([37, 13, -2, 1, 22])  # beyond the window is all of it, less than 0 is nothing
    with torch.no_grad():
        _, begin = model(tokens, side)  # lanes that are in the middle of something
        batch, end = model(tokens, side, begin, lengths)
        for b, length in enumerate(lengths.clamp(0, 30).tolist()):
            lane, lane_end = model(
                tokens[b : b + 1, :length],
                cut(side, slice(b, b + 1), slice(0, length)),
                state.select(begin, b),
            )
            torch.testing.assert_close(batch[b : b + 1, :length], lane, **EXACT)
            assert_states_equal(state.select(end, b), lane_end)


@pytest.mark.parametrize("name", ZOO)
def test_what_stands_behind_a_length_does_not_matter(name: str) -> None:
    model = make(name)
    tokens, side = music(model, 3, 20)
    lengths = torch.tensor([4, 20, 11])
    other = tokens.clone()
    other[torch.arange(20) >= lengths[:, None]] = BAR
    with torch.no_grad():
        first, second = model(tokens, side, None, lengths), model(other, side, None, lengths)
    live = torch.arange(20) < lengths[:, None]
    assert torch.equal(first[0][live], second[0][live])
    assert_states_equal(first[1], second[1])


@pytest.mark.parametrize("name", ZOO)
def test_a_lane_that_is_reset_begins_anew(name: str) -> None:
    model = make(name)
    tokens, side = music(model, 3, 25)
    with torch.no_grad():
        _, now = model(tokens, side)
        mask = torch.tensor([True, False, True])
        again, _ = model(tokens, side, state.reset(now, mask))
        fresh, _ = model(tokens, side)
        on, _ = model(tokens, side, now)
    torch.testing.assert_close(again[mask], fresh[mask], **EXACT)
    torch.testing.assert_close(again[~mask], on[~mask], **EXACT)
    assert_states_equal(state.reset(now, torch.ones(3, dtype=torch.bool)), model.initial_state(3))


@pytest.mark.parametrize("name", ZOO)
def test_the_table_of_products_equals_the_products(name: str) -> None:
    """With more steps than rows the first layer reads a table; results and gradients are those without it."""
    model = make(name)
    tokens, side = music(model, 4, 60)  # 240 steps, at most 39 rows
    assert tokens.numel() > model.input.rows
    results = []
    for table in (True, False):
        model.zero_grad()
        if not table:
            type(model.input).rows = property(lambda self: 10**9)
        try:
            logits, _ = model(tokens, side)
        finally:
            type(model.input).rows = ROWS
        logits.pow(2).mean().backward()
        results.append([logits, *(parameter.grad.clone() for parameter in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


ROWS = type(make("gru").input).rows


@pytest.mark.parametrize("name", ZOO)
def test_no_numbers_come_from_the_host_in_a_forward_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU they would make it wait, and could not be captured into a graph."""
    model = make(name)
    tokens, side = music(model, 4, 60)
    for maker in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.delattr(torch, maker)
    model(tokens, side)


@pytest.mark.parametrize("name", ZOO)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = make(name, dropout=0.2, embedding_dropout=0.1, weight_drop=0.2).train()
    tokens, side = music(model, 6, 60)
    logits, _ = model(tokens, side)
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.abs().max() > 0, path


def test_a_state_carries_gradients_until_it_is_detached() -> None:
    model = make("bilstm-gru")
    tokens, _ = music(model, 3, 30)
    _, carried = model(tokens)
    weight = model.reader.encoder.backward_layers[0].weight_hh
    (attached,) = torch.autograd.grad(model(tokens[:, :1], None, carried)[0].sum(), weight, allow_unused=True)
    assert attached.abs().max() > 0
    (cut_off,) = torch.autograd.grad(
        model(tokens[:, :1], None, state.detach(carried))[0].sum(), weight, allow_unused=True
    )
    assert cut_off is None or not cut_off.any()


# -- torch.nn as the oracle


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_plain_kinds_equal_torch(kind: str) -> None:
    torch.manual_seed(0)
    module = (nn.LSTM if kind == "lstm" else nn.GRU)(5, 6, num_layers=2, batch_first=True).double()
    model = make(kind, embedding_size=5)
    load_torch_rnn([level.cells[0] for level in model.stack.levels], module)
    tokens, _ = music(model, 3, 41)
    logits, end = model(tokens)
    out, last = module(model.input.weight[tokens])
    expected = out @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(logits, expected, **EXACT)
    for index, layer in enumerate(end):
        for part, whole in zip(layer, last if kind == "lstm" else (last,), strict=True):
            torch.testing.assert_close(part, whole[index], **EXACT)
    cotangent = torch.randn_like(logits)
    ours = torch.autograd.grad(logits, list(model.stack.parameters()), cotangent)
    theirs = torch.autograd.grad(expected, list(module.parameters()), cotangent)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("kind", ["sequential", "reversed", "parallel"])
def test_hybrids_equal_torch_modules_put_together_by_hand(kind: str) -> None:
    torch.manual_seed(0)
    lstm, gru = (module(6, 6, batch_first=True).double() for module in (nn.LSTM, nn.GRU))
    model = make(kind, lstm_layers=1, gru_layers=1, embedding_size=6)
    layers = {cell.cell: cell for level in model.stack.levels for cell in level.cells}
    load_torch_rnn([layers["lstm"]], lstm)
    load_torch_rnn([layers["gru"]], gru)
    tokens, _ = music(model, 2, 19)
    x = model.input.weight[tokens]
    if kind == "sequential":
        x = gru(lstm(x)[0])[0]
    elif kind == "reversed":
        x = lstm(gru(x)[0])[0]
    else:
        x = model.stack.levels[0].projection(torch.cat((lstm(x)[0], gru(x)[0]), dim=-1))
    torch.testing.assert_close(model(tokens)[0], x @ model.head.weight.T + model.head.bias, **EXACT)


@pytest.mark.parametrize("encoder", ["lstm", "gru"])
def test_the_encoder_equals_a_bidirectional_torch_module_block_by_block(encoder: str) -> None:
    torch.manual_seed(0)
    module = (nn.LSTM if encoder == "lstm" else nn.GRU)(
        6, 3, 1, batch_first=True, bidirectional=True
    ).double()
    decoder = (nn.GRU if encoder == "lstm" else nn.LSTM)(6 + 6, 6, batch_first=True).double()
    model = make("bilstm-gru", encoder=encoder, block_max=100)
    load_torch_rnn(model.reader.encoder.forward_layers, module)
    load_torch_rnn(model.reader.encoder.backward_layers, module, backward=True)
    load_torch_rnn([model.stack.levels[0].cells[0]], decoder)
    tokens, _ = music(model, 1, 50)
    tokens[0, [0, 7, 8, 30]] = BAR
    tokens[0, 31:] = 1
    starts = [t for t in range(50) if tokens[0, t] in (BAR, 9)]
    x = model.input.weight[tokens]
    summary, forward, inputs = model.reader.encoder.start[None, None], None, []
    for begin, end in zip([0, *starts[starts[0] == 0 :]], [*starts[starts[0] == 0 :], 50], strict=True):
        block = x[:, begin:end]
        inputs.append(torch.cat((block, summary.expand(-1, end - begin, -1)), dim=-1))
        zero = torch.zeros(1, 1, 3, dtype=torch.float64)  # backward begins anew, forward goes on
        if encoder == "lstm":
            h, c = forward or (zero, zero)
            out, (h, c) = module(block, (torch.cat((h, zero)), torch.cat((c, zero))))
            forward = (h[:1], c[:1])
        else:
            out, h = module(block, torch.cat((zero if forward is None else forward, zero)))
            forward = h[:1]
        summary = torch.cat((out[:, -1:, :3], out[:, :1, 3:]), dim=-1)
    expected = decoder(torch.cat(inputs, dim=1))[0] @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(tokens)[0], expected, **EXACT)


def test_loading_torch_weights_refuses_what_does_not_fit() -> None:
    model = make("lstm")
    layers = [level.cells[0] for level in model.stack.levels]
    with pytest.raises(ConfigError, match="is a lstm and the module a gru"):
        load_torch_rnn(layers, nn.GRU(6, 6, 2))
    with pytest.raises(ConfigError, match="the module has 3 layers"):
        load_torch_rnn(layers, nn.LSTM(6, 6, 3))
    with pytest.raises(ConfigError, match="weight_ih of layer 0 is"):
        load_torch_rnn(layers, nn.LSTM(6, 7, 2))
    with pytest.raises(ConfigError, match="proj_size=2"):
        load_torch_rnn(layers, nn.LSTM(6, 6, 2, proj_size=2))
    with pytest.raises(ConfigError, match="no backward direction"):
        load_torch_rnn(layers, nn.LSTM(6, 6, 2), backward=True)
    load_torch_rnn(layers, nn.LSTM(6, 6, 2, bias=False))
    assert not layers[0].bias_ih.any()
    assert not layers[1].bias_hh.any()


# -- edges


def test_inputs_that_do_not_fit_are_refused() -> None:
    plain, sided = make("gru"), make("gru-deep")
    tokens, side = music(sided, 2, 5)
    with pytest.raises(ValueError, match=r"tokens must be \[B, T\]"):
        plain(tokens[0])
    with pytest.raises(ValueError, match=r"tokens must be \[B\]"):
        plain.step(tokens, None, plain.initial_state(2))
    with pytest.raises(ValueError, match="position, density"):
        sided(tokens)
    with pytest.raises(ValueError, match="has no side inputs"):
        plain(tokens, side)
    with pytest.raises(ValueError, match=r"must be \(2, 5, 2\)"):
        sided(tokens, side[:, :3])
    with pytest.raises(IndexError):
        plain(tokens + V)


def test_int32_tokens_and_no_steps() -> None:
    model = make("bilstm-gru-deep")
    tokens, side = music(model, 2, 8)
    torch.testing.assert_close(model(tokens.int(), side.int())[0], model(tokens, side)[0], **EXACT)
    logits, end = model(tokens[:, :0], side[:, :0])
    assert logits.shape == (2, 0, V)
    assert_states_equal(end, model.initial_state(2))


def test_first_weights_depend_on_the_random_seed_alone() -> None:
    config = ModelConfig("parallel", V, 8, side_inputs=SIDES)
    before = torch.get_rng_state()
    first, again, other = (
        Model(config, random_seed=1),
        Model(config, random_seed=1),
        Model(config, random_seed=2),
    )
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.input.weight, other.input.weight)


def test_first_predictions_are_nearly_uniform_and_gates_begin_open() -> None:
    model = Model(ModelConfig.preset("sequential", "tiny", 300)).eval()
    tokens, _ = music(model, 4, 50)
    with torch.no_grad():
        nll = nn.functional.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten())
    assert abs(nll.item() - torch.tensor(300.0).log().item()) < 0.5
    lstm = model.stack.levels[0].cells[0]
    assert (lstm.bias_ih + lstm.bias_hh).view(4, -1).mean(dim=1).tolist() == [0, 1, 0, 0]
    gate = lstm.weight_hh.view(4, 128, 128)[2]
    torch.testing.assert_close(gate @ gate.T, torch.eye(128), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_what_an_encoder_hands_on_begins_at_the_size_of_what_it_joins(layer_norm: bool) -> None:
    """The embeddings' share of the gates begins small, and first layers are larger for it; a summary's does not."""
    config = ModelConfig.preset("bidirectional", "tiny", 300, layer_norm=layer_norm, block_length=8)
    stack = Model(config).stack
    columns = stack.bottom.cells[0].weight_ih[:, config.embedding_size :]
    summary_variance = 1.0 if layer_norm else 1 / 9
    inputs = stack.bottom.cells[0].input_size
    assert inputs * columns.var().item() * summary_variance == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("name", ZOO)
def test_a_copy_is_a_model_of_its_own(name: str) -> None:
    model = make(name)
    tokens, side = music(model, 2, 30)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        before, _ = model(tokens, side)
        assert torch.equal(copied(tokens, side)[0], before)
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(model(tokens, side)[0], before)
        assert not copied(tokens, side)[0].any()


@pytest.mark.parametrize("name", ZOO)
def test_autocast_to_bfloat16_trains(name: str) -> None:
    model = make(name, dtype=torch.float32, dropout=0.1, weight_drop=0.1).train()
    tokens, side = music(model, 3, 60)
    for length in (4, 60):  # both ways through the first layer
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits, end = model(tokens[:, :length], cut(side, slice(None), slice(0, length)))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, :length].flatten())
        loss.backward()
        assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())
    now = model.initial_state(3)
    end = state.unflatten(
        now, [a.to(b.dtype) for a, b in zip(state.leaves(end), state.leaves(now), strict=True)]
    )
    model.eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rough, _ = model.step(tokens[:, 0], cut(side, slice(None), 0), end)
    with torch.no_grad():
        exact, _ = model.step(tokens[:, 0], cut(side, slice(None), 0), end)
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["parallel-gated", "bilstm-gru-deep", "bigru-lstm-deep"])
def test_gradients_equal_finite_differences(name: str) -> None:
    model = make(name)
    tokens, side = music(model, 3, 40)
    lengths = torch.tensor([40, 11, 25])
    with torch.no_grad():
        _, begin = model(tokens, side)
    parameters = list(model.parameters())

    def loss() -> Tensor:
        logits, end = model(tokens, side, begin, lengths)
        return logits[torch.arange(40) < lengths[:, None]].tanh().sum() + state.leaves(end)[0].sum()

    torch.manual_seed(0)
    direction = [torch.randn_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad(loss(), parameters)
    expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    with torch.no_grad():
        values = []
        for epsilon in (1e-5, -1e-5):
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(epsilon * d)
            values.append(loss())
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.sub_(epsilon * d)
    torch.testing.assert_close((values[0] - values[1]) / 2e-5, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ZOO)
def test_cuda_equals_the_cpu(name: str) -> None:
    model = make(name)
    tokens, side = music(model, 3, 40)
    lengths = torch.tensor([40, 11, 25])
    results = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad()
        inputs = [None if x is None else x.to(device) for x in (tokens, side)]
        logits, end = model(*inputs, None, lengths.to(device))
        after, _ = model.step(inputs[0][:, 0], cut(inputs[1], slice(None), 0), end)
        (logits.tanh().sum() + after.tanh().sum()).backward()
        results.append([logits, after, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-9, atol=1e-9)


def test_float32_steps_follow_the_scan_for_a_long_time() -> None:
    model = make("bilstm-gru", dtype=torch.float32)
    tokens, _ = music(model, 2, 1000)
    with torch.inference_mode():
        whole, _ = model(tokens)
        now = model.initial_state(2)
        worst = 0.0
        for t in range(1000):
            logits, now = model.step(tokens[:, t], None, now)
            worst = max(worst, (logits - whole[:, t]).abs().max().item())
    assert worst < 2e-5


def test_a_step_costs_the_same_after_many_steps() -> None:
    """The state does not grow, whatever has been heard."""
    model = make("bilstm-gru-deep", dtype=torch.float32)
    with torch.inference_mode():
        now = model.initial_state(1)
        sizes = [leaf.shape for leaf in state.leaves(now)]
        tokens, side = music(model, 1, 300)
        for t in range(300):
            _, now = model.step(tokens[:, t], side[:, t], now)
        assert [leaf.shape for leaf in state.leaves(now)] == sizes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequential", "parallel", "bidirectional"])
def test_a_step_is_light(kind: str) -> None:
    extra = {"block_starts": (BAR,)} if kind == "bidirectional" else {}
    model = Model(ModelConfig.preset(kind, "small", 500, **extra)).eval()
    tokens = torch.randint(0, 500, (300, 1))
    now, times = model.initial_state(1), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a thread that waits for another one is busy as well
    try:
        with torch.inference_mode():
            for token in tokens:
                begin = time.thread_time()
                _, now = model.step(token, None, now)
                times.append(time.thread_time() - begin)
    finally:
        torch.set_num_threads(threads)
    assert sorted(times)[150] < 2e-3  # measured 0.2 ms of a core
