"""A pytest plug-in: the CPU stands in for CUDA, so that the Python of the parity tests runs where there is no GPU.

Nothing is proven of the kernels. What is: that the tests import, call, compare and clean up as they should.
"""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from melodia.engine import cuda as cuda_engine
from melodia.engine.engine import Engine
from melodia.kernels import cuda

_tensor_to = torch.Tensor.to


def _to(self: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
    rest = tuple(x for x in arguments if x != "cuda")
    return _tensor_to(self, *rest, **named) if rest or named else self


class CpuEngine(Engine):
    """The CPU's engine under the CUDA engine's name."""

    def __init__(self, ints: Any, floats: Any, *, library: Any = None, options: Any = None) -> None:
        super().__init__(ints, floats, threads=1)

    def fallback(self) -> str:
        """As where no launch fell back."""
        return ""


def _stay(self: Any, *arguments: Any, **named: Any) -> Any:
    return self


def pytest_configure(config: pytest.Config) -> None:
    """Put the CPU in place before anything asks for a GPU."""
    library = types.SimpleNamespace(
        melodia_cuda_configure=lambda *_: None,
        melodia_cuda_rescues=lambda: 0,
        melodia_cuda_allow_tf32=lambda _: None,
    )
    for place, name, value in (
        (torch.Tensor, "cuda", _stay),
        (torch.Tensor, "to", _to),
        (torch.nn.Module, "cuda", _stay),
        (torch.cuda, "synchronize", lambda: None),
        (torch.cuda, "get_device_capability", lambda: (9, 0)),
        (cuda, "reason", lambda: None),
        (cuda, "describe", lambda: "the CPU"),
        (cuda, "_load", lambda: (library, None)),
        (cuda_engine, "CudaEngine", CpuEngine),
        (cuda_engine, "reason", lambda: None),
        (cuda_engine, "_loaded", lambda: (library, None)),
    ):
        setattr(place, name, value)
