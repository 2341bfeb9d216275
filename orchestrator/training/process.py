"""One process among those that train together: who it is, and the few things they do in common."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Process:
    """Rank and device of this process.

    Args:
        permit: entered around every piece of work that would disturb a latency measurement on the same machine.
        aside: the same for work on another thread; whoever holds a permit must not wait for it.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    permit: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    aside: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    @property
    def first(self) -> bool:
        return self.rank == 0

    def summed(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def share_statistics(self, model: nn.Module) -> None:
        """Give every rank rank 0's buffers: the statistics of batch norms are each rank's own, and rank 0's are what ships."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def agreed(self, value: Any) -> Any:
        """Rank 0's value, on every rank. Returns at once on rank 0's arrival: never to be used to wait for work."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def together(self, model: nn.Module) -> nn.Module:
        """The model as all ranks train it."""
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)


class Agreement:
    """What any rank says before a step, all ranks know before the next one; a rank on its own knows it at once.

    What is said goes round while the step runs, so that nobody waits for it, on a group of its own over gloo: neither the GPU
    nor the order of gradients has anything to do with it. To be made and asked on every rank at the same points of the program.
    """

    def __init__(self, process: Process, timeout: timedelta) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timeout) if process.world_size > 1 else None
        self._said: tuple[Any, Tensor] | None = None

    def next(self, mine: int) -> int:
        """Say a number >= 0; returns the largest that was said at the call before, 0 where there was none."""
        if self._group is None:
            return mine
        known = self._known()
        if known == 0:
            values = torch.tensor([mine], dtype=torch.int32)
            self._said = dist.all_reduce(values, dist.ReduceOp.MAX, self._group, async_op=True), values
        return known

    def forget(self) -> None:
        """Let nothing of what was said be known."""
        self._known()

    def _known(self) -> int:
        if self._said is None:
            return 0
        (work, values), self._said = self._said, None
        work.wait()
        return int(values)


def laid_out(model: nn.Module, *, channels_last: bool) -> nn.Module:
    """The model with its weights in the memory format that its images will have."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def keep_memory() -> None:
    """Let this process keep memory that it frees, where the C library can be told so (glibc).

    Otherwise activations go back to the system after every step and come again page by page: a step of quantization-aware
    training of ResNet-20 (batch 256) took 23,000 page faults, a sixth of its time. The process stays as large as it ever was.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with all of torch's generators seeded, and leave them as they were found."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
