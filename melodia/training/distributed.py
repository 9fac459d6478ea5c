"""Several processes that train one model: torchrun's environment, and sums over all of them."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from melodia.errors import TrainingError
from melodia.wording import counted

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: one may be reading a large folder of MIDI files."""


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up the values of all processes, in double precision."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        result: list[float] = total.tolist()
        return result

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        distributed.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def send(self, array: NDArray[Any]) -> Tensor:
        """A tensor of these numbers on this process's device, without waiting for what a GPU is doing."""
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def gather(self, tensor: Tensor) -> Tensor:
        """Join tensors [B / size, …] of all processes to [B, …]."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def share(self, tensor: Tensor) -> Tensor:
        """This process's lanes of a tensor [B, …]: [B / size, …]."""
        return tensor.chunk(self.size)[self.rank] if self.size > 1 else tensor

    def share_bytes(self, data: bytes | None) -> bytes | None:
        """Give the first process's bytes (or None) to all: only it need see the disk."""
        if self.size == 1:
            return data
        told = 0.0
        if self.leads:
            told = -1.0 if data is None else float(len(data))
        length = int(self.sum([told])[0])
        if length < 0:
            return None
        if data is not None:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        else:
            buffer = torch.empty(length, dtype=torch.uint8, device=self.device)
        distributed.broadcast(buffer, 0)
        return buffer.cpu().numpy().tobytes()

    def refuse(self, problem: str | None) -> None:
        """Stop in all processes where the first one has found a problem.

        Raises:
            TrainingError: says which.
        """
        told = self.share_bytes(None if problem is None else problem.encode(errors="surrogateescape"))
        if told is not None:
            raise TrainingError(told.decode(errors="surrogateescape"))

    def check_same(self, what: str, fingerprint: str) -> None:
        """Refuse to train when the processes hold different things.

        Args:
            what: for the message.
            fingerprint: at least 12 hexadecimal digits.

        Raises:
            TrainingError: it is another one than the first process's.
        """
        mine = float(int(fingerprint[:12], 16))
        first = self.sum([mine if self.leads else 0.0])[0]
        if self.sum([float(mine != first)])[0]:
            raise TrainingError(f"the processes do not hold the same {what}; give all of them the same files")

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one.

    Raises:
        TrainingError: a GPU was asked for and there is none of that number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind != "cuda":
        return torch.device(name)
    index = int(number) if number else local_rank
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise TrainingError(
            f"this machine has {counted(count, 'CUDA device')} (received {name}); choose `device` cpu or auto"
        )
    return torch.device(kind, index)


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun, a world of one.

    The group that is made here lasts until the process ends, for later calls to use: torch cannot reliably
    make a second one (the processes may find one another's old addresses, and wait for ever).
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and not (distributed.is_available() and distributed.is_initialized()):
        yield World(device=choose_device(device))
        return
    place = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(_leave)
    yield World(distributed.get_rank(), distributed.get_world_size(), place)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
