"""How many gangs fit on a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.capacity import fits_on_one, gangs_wanted, num_gangs, num_that_fit, worker_resources, workers_on
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
    assert num_gangs(settings(**keys), [available], MANY) == gangs


@pytest.mark.parametrize(("asked", "gangs"), [(1, 1), (3, 3), (4, 4)])
def test_no_more_gangs_run_than_the_job_asks_for(asked, gangs):
    assert num_gangs(settings(gangs=asked), [{"CPU": 4.0}], MANY) == gangs


@pytest.mark.parametrize("asked", ["auto", 4])
@pytest.mark.parametrize("trials", [1, 3])
def test_no_more_gangs_run_than_there_are_trials(asked, trials):
    assert num_gangs(settings(gangs=asked), [{"CPU": 4.0}], trials) == trials


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
        num_gangs(settings(**keys), [available], MANY)
    assert [text for text in said if text not in str(caught.value)] == []


def test_a_job_that_does_not_fit_is_refused_even_when_few_trials_are_left():
    with pytest.raises(UsageError):
        num_gangs(settings(gangs=5), [{"CPU": 4.0}], 1)


# Several nodes.

SLOT = {"CPU": 1.0}


@pytest.mark.parametrize(
    ("cpus", "workers", "gangs"),
    [
        ([4, 4], 4, 2),
        ([3, 3], 2, 2),  # one CPU of each is left: no gang spans nodes while one fits whole
        ([3, 5], 4, 1),
        ([2, 2], 4, 1),  # fits nowhere whole
        ([2, 2, 3], 4, 1),
        ([1] * 9, 2, 4),
        ([0, 8], 3, 2),
        ([], 1, 0),
    ],
)
def test_gangs_are_counted_node_by_node(cpus, workers, gangs):
    assert num_that_fit([{"CPU": float(num)} for num in cpus], SLOT, workers) == gangs


@pytest.mark.parametrize(
    ("gpus", "share", "workers"),
    [(3.0, 0.75, 3), (3.0, 0.5, 6), (1.0, 0.3, 3), (8.0, 2.0, 4), (7.0, 2.0, 3), (0.0, 0.5, 0), (2.0, 0.6, 2)],
)
def test_a_part_of_a_gpu_is_a_part_of_one_gpu(gpus, share, workers):
    assert workers_on({"CPU": 64.0, "GPU": gpus}, {"CPU": 1.0, "GPU": share}) == workers


def test_a_node_without_a_gpu_holds_no_worker_that_needs_one():
    nodes = [{"CPU": 64.0}, {"CPU": 2.0, "GPU": 4.0}]
    assert num_that_fit(nodes, {"CPU": 1.0, "GPU": 1.0}, 1) == 2


CLUSTERS = st.lists(st.integers(0, 9), max_size=6)


@given(CLUSTERS, st.integers(1, 6))
def test_the_gangs_that_fit_can_be_placed(cpus, workers):
    """Placed one after the other, each on the first node that can take the whole of it, as Ray would; else over several."""
    nodes = [{"CPU": float(num)} for num in cpus]
    together, free = fits_on_one(nodes, SLOT, workers), list(cpus)
    for _ in range(num_that_fit(nodes, SLOT, workers)):
        whole = [place for place, num in enumerate(free) if num >= workers]
        if together:
            free[whole[0]] -= workers
        else:
            assert whole == []
            for _ in range(workers):
                free[next(place for place, num in enumerate(free) if num)] -= 1
    if together:
        assert all(num < workers for num in free), "and no other would fit whole"
    else:
        assert sum(free) < workers


@given(CLUSTERS, st.integers(1, 6), st.randoms())
def test_the_order_of_nodes_does_not_matter_and_a_bigger_node_never_harms(cpus, workers, random):
    def count(given):
        return num_that_fit([{"CPU": float(num)} for num in given], SLOT, workers)

    other = list(cpus)
    random.shuffle(other)
    assert count(other) == count(cpus)
    assert count([*cpus, workers]) >= max(1, sum(num // workers for num in cpus))
    assert count(cpus) * workers <= sum(cpus)


@pytest.mark.parametrize(
    ("asked", "nodes", "trials", "given_up", "wanted"),
    [
        ("auto", 2, 99, 0, 2),
        ("auto", 3, 99, 0, 3),
        ("auto", 3, 99, 1, 2),
        ("auto", 0, 99, 0, 0),
        ("auto", 1, 99, 3, 0),
        ("auto", 9, 4, 0, 4),
        (4, 1, 99, 0, 4),
        (4, 1, 99, 1, 3),
        (4, 1, 2, 0, 2),
        (4, 0, 0, 0, 0),
    ],
)
def test_how_many_gangs_there_should_be_as_nodes_come_and_go(asked, nodes, trials, given_up, wanted):
    assert gangs_wanted(settings(gangs=asked), [{"CPU": 1.0}] * nodes, trials, given_up) == wanted


def test_on_a_cluster_that_may_grow_as_many_gangs_are_started_as_the_job_says():
    assert num_gangs(settings(gangs=5), [{"CPU": 4.0}], MANY, growing=True) == 5
    assert num_gangs(settings(gangs=5), [], MANY, growing=True) == 5
    with pytest.raises(UsageError):
        num_gangs(settings(), [], MANY, growing=True)
