"""What torch.autocast does to the native operators on the CPU.

The products of a scan go to bfloat16, and gates_x and what is kept with them; the states and the biases stay as
they are, so that a float32 state is carried from window to window unrounded. Under autocast to float16, which no
native kernel has, and in single steps everything is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_KEY = torch._C.DispatchKey.AutocastCPU

LOW_PRECISION: dict[str, tuple[int, ...]] = {
    "lstm_scan": (0, 3),
    "gru_scan": (0, 2),
    "pair_scan": (0, 1, 5, 7),
    "wave_scan": (0, 3),
    "lookup": (1,),
}
"""Of every operator the arguments (by position) that are cast to bfloat16."""


def register(names: tuple[str, ...]) -> None:
    """Tell torch the rule of every operator named."""
    for name in names:
        _register(name)


def cast(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of the operator as it runs under the autocast of now."""
    dtype = torch.get_autocast_dtype("cpu")
    low = LOW_PRECISION.get(name, ()) if dtype == torch.bfloat16 else ()
    return tuple(
        _to(x, torch.bfloat16 if k in low else None if low else torch.float32)
        for k, x in enumerate(arguments)
    )


def _to(x: Any, dtype: torch.dtype | None) -> Any:
    """Cast a floating tensor; None leaves it as it is, unless no kernel takes its type."""
    if isinstance(x, (list, tuple)):
        return [_to(y, dtype) for y in x]
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return x
    if dtype is None:
        dtype = x.dtype if x.dtype in (torch.float32, torch.bfloat16) else torch.float32
    return x.to(dtype)


def _register(name: str) -> None:
    """As `torch.library.register_autocast`, which knows one type for all arguments only."""
    op = getattr(torch.ops.melodia, name).default

    def below(*arguments: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
            return op(*cast(name, arguments))

    traced: Callable[..., Any] = op.py_impl(_KEY)(below)
    _LIBRARY.impl(name, lambda _, *arguments: traced(*arguments), "AutocastCPU", with_keyset=True)


_LIBRARY = torch.library.Library("melodia", "FRAGMENT")
