"""How many gangs fit on a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.capacity import num_gangs, worker_resources
from orchestrator.errors import UsageError
from orchestrator.spec.job import ResourceSettings

MANY = 1000


def settings(**keys: Any) -> ResourceSettings:
    return ResourceSettings(**keys)


@pytest.mark.parametrize(
    ("keys", "resources"),
    [
        ({}, {"CPU": 1.0}),
        ({"threads_per_worker": 4}, {"CPU": 4.0}),
        ({"gpus_per_worker": 0.5}, {"CPU": 1.0, "GPU": 0.5}),
        ({"threads_per_worker": 2, "gpus_per_worker": 1.0, "workers_per_gang": 8}, {"CPU": 2.0, "GPU": 1.0}),
    ],
)
def test_a_worker_asks_for_its_threads_and_its_share_of_a_gpu(keys, resources):
    assert worker_resources(settings(**keys)) == resources


@pytest.mark.parametrize(
    ("keys", "available", "gangs"),
    [
        ({}, {"CPU": 2.0}, 2),
        ({}, {"CPU": 2.9}, 2),
        ({"workers_per_gang": 2}, {"CPU": 5.0}, 2),
        ({"threads_per_worker": 3}, {"CPU": 8.0}, 2),
        ({"workers_per_gang": 2, "threads_per_worker": 2}, {"CPU": 16.0}, 4),
        ({"gpus_per_worker": 1.0}, {"CPU": 16.0, "GPU": 2.0}, 2),
        ({"gpus_per_worker": 1.0}, {"CPU": 1.0, "GPU": 8.0}, 1),
        ({"gpus_per_worker": 0.5}, {"CPU": 16.0, "GPU": 1.0}, 2),
        ({"gpus_per_worker": 0.1}, {"CPU": 16.0, "GPU": 0.3}, 3),
        ({"gpus_per_worker": 0.1, "workers_per_gang": 3}, {"CPU": 64.0, "GPU": 3.0}, 10),
        ({}, {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}, 4),
    ],
)
def test_as_many_gangs_run_as_fit(keys, available, gangs):
    assert num_gangs(settings(**keys), available, MANY) == gangs


@pytest.mark.parametrize(("asked", "gangs"), [(1, 1), (3, 3), (4, 4)])
def test_no_more_gangs_run_than_the_job_asks_for(asked, gangs):
    assert num_gangs(settings(gangs=asked), {"CPU": 4.0}, MANY) == gangs


@pytest.mark.parametrize("asked", ["auto", 4])
@pytest.mark.parametrize("trials", [1, 3])
def test_no_more_gangs_run_than_there_are_trials(asked, trials):
    assert num_gangs(settings(gangs=asked), {"CPU": 4.0}, trials) == trials


@pytest.mark.parametrize(
    ("keys", "available", "said"),
    [
        ({"threads_per_worker": 4}, {"CPU": 2.0}, ["1 gang(s) of 4 CPU", "2 CPU"]),
        ({"workers_per_gang": 3}, {"CPU": 2.0}, ["3 CPU", "2 CPU"]),
        ({"gpus_per_worker": 1.0}, {"CPU": 8.0}, ["1 GPU", "0 GPU"]),
        ({"gangs": 5}, {"CPU": 4.0}, ["5 gang(s) of 1 CPU", "4 CPU"]),
        ({"gangs": 2, "gpus_per_worker": 0.75}, {"CPU": 8.0, "GPU": 1.0}, ["2 gang(s)", "0.75 GPU", "1 GPU"]),
        ({}, {}, ["1 CPU", "0 CPU"]),
    ],
)
def test_a_job_that_does_not_fit_is_refused_with_what_it_needs_and_what_there_is(keys, available, said):
    with pytest.raises(UsageError) as caught:
        num_gangs(settings(**keys), available, MANY)
    assert [text for text in said if text not in str(caught.value)] == []


def test_a_job_that_does_not_fit_is_refused_even_when_few_trials_are_left():
    with pytest.raises(UsageError):
        num_gangs(settings(gangs=5), {"CPU": 4.0}, 1)
