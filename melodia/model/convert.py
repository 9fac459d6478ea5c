"""Weights from torch's own modules: formulas and gate order are the same, so they are copied as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from melodia.errors import ConfigError
from melodia.model.layers import RecurrentLayer


@torch.no_grad()
def load_torch_rnn(
    layers: Sequence[RecurrentLayer], module: nn.LSTM | nn.GRU, *, backward: bool = False
) -> None:
    """Copy the weights of an `nn.LSTM` or `nn.GRU` into layers of the same sizes.

    Args:
        layers: one per layer of the module, from the input upwards, such as
            `[level.cells[0] for level in model.stack.levels]`, or `model.reader.encoder.forward_layers`.
        module: the module; without biases, they become 0.
        backward: copy the backward direction of a bidirectional module.

    Raises:
        ConfigError: the module's cell, number of layers or sizes are others, or it projects its output.

    >>> layer = RecurrentLayer("gru", 3, 5)
    >>> load_torch_rnn([layer], nn.GRU(3, 5))
    """
    if module.proj_size:
        raise ConfigError(f"layers here have no output projection (received proj_size={module.proj_size})")
    if backward and not module.bidirectional:
        raise ConfigError("the module has no backward direction; leave backward out")
    if len(layers) != module.num_layers:
        raise ConfigError(
            f"the module has {module.num_layers} layers (received {len(layers)} to load them into)"
        )
    cell = module.mode.lower()
    plan = []
    for index, layer in enumerate(layers):
        if layer.cell != cell:
            raise ConfigError(f"layer {index} is a {layer.cell} and the module a {cell}")
        suffix = f"_l{index}_reverse" if backward else f"_l{index}"
        for name, parameter in layer.named_parameters():
            source = getattr(module, name + suffix, None)
            if source is None and not name.startswith("bias"):
                raise ConfigError(f"the module has no {name + suffix}")
            if source is not None and source.shape != parameter.shape:
                raise ConfigError(
                    f"{name} of layer {index} is {tuple(parameter.shape)} and the module's is "
                    f"{tuple(source.shape)}; make the sizes equal"
                )
            plan.append((parameter, source))
    for parameter, source in plan:
        if source is None:
            parameter.zero_()
        else:
            parameter.copy_(source)
