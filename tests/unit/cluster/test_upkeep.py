"""When the processes of a gang are started anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.cluster.upkeep import answers, must_recycle, resident_bytes
from orchestrator.spec.job import GangSettings

GB = 10**9


@pytest.mark.parametrize(
    ("keys", "served", "first_gb", "now_gb", "recycled"),
    [
        ({}, 10_000, 2.0, 6.0, False),
        ({}, 2, 2.0, 6.1, True),
        ({"memory_growth_gb": None}, 2, 2.0, 600.0, False),
        ({"memory_growth_gb": 0.5}, 2, 2.0, 2.4, False),
        ({"memory_growth_gb": 0.5}, 2, 2.0, 2.6, True),
        ({"memory_growth_gb": 0.5}, 2, 2.0, 1.0, False),
        ({"recycle_after": 3}, 2, 0.0, 0.0, False),
        ({"recycle_after": 3}, 3, 0.0, 0.0, True),
        ({"recycle_after": 1}, 1, 0.0, 0.0, True),
    ],
)
def test_processes_are_started_anew_after_so_many_trials_or_so_much_growth(keys, served, first_gb, now_gb, recycled):
    settings = GangSettings(**keys)
    assert bool(must_recycle(served, int(first_gb * GB), int(now_gb * GB), settings=settings)) is recycled


def test_the_memory_of_this_process_grows_by_what_it_touches():
    before = resident_bytes()
    held = np.ones(50_000_000, dtype=np.uint8)
    assert 30_000_000 < resident_bytes() - before < 100_000_000
    assert held[0] == 1


def test_a_processor_always_answers():
    assert answers(torch.device("cpu"))


def test_a_gpu_that_refuses_this_process_does_not_answer(monkeypatch):
    def refuses(*given, **named):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch, "ones", refuses)
    assert not answers(torch.device("cuda"))
