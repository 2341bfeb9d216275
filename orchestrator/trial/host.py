"""How a trial reaches the world around it: a Protocol with two homes, this process alone and a gang."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from orchestrator.measure.quiet import Quiet
from orchestrator.training.process import Process

_STEPS_PER_SHOW = 20


class TrialHost(Protocol):
    """What a trial may ask of whoever runs it."""

    process: Process
    gang: str

    def progress(self, event: dict[str, Any]) -> None:
        """Say how far the trial is, on every rank at the same point of the program.

        Raises:
            TrialStopped: on every rank, when the trial is to end here.
        """

    def progress_alone(self, event: dict[str, Any]) -> None:
        """The same where the other ranks have left the trial already: it concerns rank 0 and nobody else."""

    def step(self, event: dict[str, Any]) -> None:
        """The same before each step of a training: no message is sent for it. `event` has a "step", counted within an epoch.

        Raises:
            TrialStopped: on every rank at the same step; at the latest two steps after this process has heard of it.
        """

    def measuring(self) -> AbstractContextManager[None]:
        """The machine, with no other work of ours on it."""


class LocalHost:
    """A trial on its own, or on several processes under torchrun."""

    gang = "local"

    def __init__(self, process: Process, quiet: Quiet, show: Callable[[dict[str, Any]], None]) -> None:
        self.process, self._quiet, self._show = process, quiet, show

    def progress(self, event: dict[str, Any]) -> None:
        if self.process.first:
            self._show(event)

    progress_alone = progress

    def step(self, event: dict[str, Any]) -> None:
        if event["step"] % _STEPS_PER_SHOW == 0:
            self.progress(event)

    def measuring(self) -> AbstractContextManager[None]:
        return self._quiet.measuring()


@contextlib.contextmanager
def local_process(quiet: Quiet, device: str) -> Iterator[Process]:
    """This process alone, or its place among those that torchrun started."""
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device == "cuda" else torch.device("cpu")
    if world_size == 1:
        yield gang_process(0, 1, place, quiet)
        return
    if device == "cuda":
        torch.cuda.set_device(place)  # else all ranks of a machine would bring their collectives to the first GPU
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=120))
    try:
        yield gang_process(rank, world_size, place, quiet)
    finally:
        dist.destroy_process_group()


def gang_process(rank: int, world_size: int, device: torch.device, quiet: Quiet) -> Process:
    """One process of a gang. Rank 0 alone asks for permission to work, for all.

    Were every rank to ask, one could hold the lock inside an all-reduce while another waits for it outside, behind a
    measurement that waits for the first. The others stop soon enough: in the all-reduce, where they wait for rank 0.
    """
    if rank != 0:
        return Process(rank, world_size, device)
    return Process(rank, world_size, device, quiet.working, quiet.beside)


def machine_quiet() -> Quiet:
    """The lock that all gangs of one user on one machine share: it has to lie on that machine, not on shared storage."""
    return Quiet(Path(tempfile.gettempdir()) / f"orchestrator-{os.getuid()}")
