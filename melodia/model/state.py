"""The state of a model as a value: nested tuples of tensors, batch first, and what is done with them.

A state holds everything that a model remembers; a model keeps nothing. A state of zeros is the beginning of a
piece, for every kind of model. Letters: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

State: TypeAlias = tuple[Any, ...]
"""Nested tuples of tensors [B, ...]; of a plain stack one tuple per layer, hidden first, then cell."""


def leaves(state: State) -> list[Tensor]:
    """The tensors of a state, in order.

    >>> [leaf.item() for leaf in leaves(((torch.tensor(1), torch.tensor(2)), (torch.tensor(3),)))]
    [1, 2, 3]
    """
    found: list[Tensor] = []
    for part in state:
        if isinstance(part, Tensor):
            found.append(part)
        else:
            found.extend(leaves(part))
    return found


def map(function: Callable[[Tensor], Tensor], state: State) -> State:
    """The state with the function applied to each tensor."""
    return tuple(function(part) if isinstance(part, Tensor) else map(function, part) for part in state)


def detach(state: State) -> State:
    """The state without its history: truncated backpropagation cuts here."""
    return map(torch.Tensor.detach, state)


def batch_size(state: State) -> int:
    """B of a state."""
    return leaves(state)[0].shape[0]


def select(state: State, index: int | slice | Sequence[int] | Tensor) -> State:
    """The lanes that `index` names, in its order; an int keeps the batch dimension: [B, ...] -> [1, ...]."""
    if isinstance(index, int):
        size = batch_size(state)
        if not -size <= index < size:
            raise IndexError(f"lane {index} of a state with {size} lanes")
        index = [index]
    if isinstance(index, slice):
        return map(lambda leaf: leaf[index], state)
    return map(lambda leaf: leaf[torch.as_tensor(index, device=leaf.device)], state)


def stack(states: Sequence[State]) -> State:
    """States of one model side by side: [B1, ...], [B2, ...] -> [B1 + B2, ...].

    Raises:
        ValueError: no states, or states of different models.
    """
    if not states:
        raise ValueError("nothing to stack: give at least one state")
    first = [leaf.shape[1:] for leaf in leaves(states[0])]
    if any([leaf.shape[1:] for leaf in leaves(state)] != first for state in states):
        raise ValueError("states of different models cannot be stacked: their shapes differ")
    columns = zip(*(leaves(state) for state in states), strict=True)
    return unflatten(states[0], [torch.cat(column) for column in columns])


def reset(state: State, mask: Tensor) -> State:
    """Send the lanes where `mask` [B] (bool) is true back to the beginning; the others stay."""

    def zero(leaf: Tensor) -> Tensor:
        return leaf.masked_fill(mask.view(-1, *[1] * (leaf.dim() - 1)), 0)

    return map(zero, state)


def unflatten(like: State, tensors: Sequence[Tensor]) -> State:
    """The tensors in the nesting of `like`: the inverse of `leaves`."""
    supply = iter(tensors)
    result = map(lambda _: next(supply), like)
    if next(supply, None) is not None:
        raise ValueError("more tensors than the state has places")
    return result


def to_numpy(state: State) -> dict[str, NDArray[Any]]:
    """The state as named arrays ("0.1" = second tensor of the first layer), to be saved without pickle."""
    named: dict[str, NDArray[Any]] = {}

    def walk(part: State | Tensor, name: str) -> None:
        if isinstance(part, Tensor):
            plain = part.detach().cpu()
            named[name] = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy().copy()
        else:
            for i, inner in enumerate(part):
                walk(inner, f"{name}.{i}" if name else str(i))

    walk(state, "")
    return named


def from_numpy(arrays: Mapping[str, NDArray[Any]], like: State) -> State:
    """The inverse of `to_numpy`, for a model whose states look `like` (such as `model.initial_state(1)`).

    Raises:
        ValueError: the arrays are not a state of that model.
    """
    expected = to_numpy(map(lambda leaf: leaf[:0], like))
    if set(arrays) != set(expected):
        raise ValueError("not a state of this model: its parts differ; load it with the model that saved it")
    tensors = []
    for (name, empty), leaf in zip(expected.items(), leaves(like), strict=True):
        array = np.asarray(arrays[name])
        if array.shape[1:] != empty.shape[1:] or array.dtype.kind != empty.dtype.kind:
            raise ValueError(
                f"not a state of this model: part {name} is {array.dtype} {array.shape} and should be "
                f"{empty.dtype} {('B', *empty.shape[1:])}; load it with the model that saved it"
            )
        tensors.append(torch.from_numpy(array.copy()).to(dtype=leaf.dtype, device=leaf.device))
    if len({tensor.shape[0] for tensor in tensors}) > 1:
        raise ValueError("not a state of this model: its parts disagree about the batch size")
    return unflatten(like, tensors)
