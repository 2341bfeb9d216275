"""The world of a trial without Ray: which device a process takes under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from orchestrator.measure.quiet import Quiet
from orchestrator.trial.host import local_process


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would be done to a machine with GPUs, in order."""
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append(("device", device)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: seen.append(("group", backend)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: seen.append(("end",)))
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    return seen


@pytest.fixture
def quiet(tmp_path: Path) -> Any:
    lock = Quiet(tmp_path / "lock")
    yield lock
    lock._turnstile.close()
    lock._room.close()


def test_every_rank_takes_its_own_gpu_before_it_joins_the_others(done: list[tuple[Any, ...]], quiet: Quiet) -> None:
    with local_process(quiet, "cuda") as process:
        assert (process.rank, process.world_size, process.device) == (3, 4, torch.device("cuda", 1))
    assert done == [("device", torch.device("cuda", 1)), ("group", "nccl"), ("end",)]


def test_no_gpu_is_taken_on_cpu(done: list[tuple[Any, ...]], quiet: Quiet) -> None:
    with local_process(quiet, "cpu") as process:
        assert process.device == torch.device("cpu")
    assert done == [("group", "gloo"), ("end",)]
