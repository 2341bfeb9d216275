"""Hypervolume over time, and what it says of two searches, worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.headline import Course, End, compared, course
from orchestrator.spec.objective import Objective

OBJECTIVES = [Objective(metric="accuracy", reference=0.5), Objective(metric="size_bytes", reference=100.0)]


def end(ended: float, accuracy: float, size: float) -> End:
    return End(ended - 1.0, ended, {"accuracy": accuracy, "size_bytes": size})


def test_hypervolume_is_a_fraction_of_the_box_of_a_perfect_network() -> None:
    # Gains of 0.25 of 0.5 and 50 of 100: a quarter of the box. Then 0.4 and 20: 0.8 * 0.2, of which 0.5 * 0.2 was there.
    found = course([end(30.0, 0.9, 80.0), end(10.0, 0.75, 50.0), end(20.0, 0.4, 1.0)], OBJECTIVES, 100.0)
    assert found.steps == [(10.0, pytest.approx(0.25)), (20.0, pytest.approx(0.25)), (30.0, pytest.approx(0.31))]
    assert (found.first_began, found.final) == (9.0, pytest.approx(0.31))
    assert [found.at(seconds) for seconds in (9.9, 10.0, 29.0)] == [0.0, pytest.approx(0.25), pytest.approx(0.25)]
    assert [found.reached(0.2), found.reached(0.3), found.reached(0.9)] == [10.0, 30.0, float("inf")]


def test_what_ends_after_the_limit_does_not_count() -> None:
    assert course([end(10.0, 0.75, 50.0), end(30.0, 0.9, 80.0)], OBJECTIVES, 29.0).steps == [(10.0, pytest.approx(0.25))]
    assert course([end(30.0, 0.9, 80.0)], OBJECTIVES, 29.0) == Course([], float("inf"))


def test_the_peer_is_timed_until_it_had_what_it_ends_with() -> None:
    peer = Course([(100.0, 0.2), (500.0, 0.4), (900.0, 0.4)], 30.0)
    ours = Course([(40.0, 0.3), (50.0, 0.45), (600.0, 0.6)], 26.0)
    assert compared(ours, peer, 1000.0) == {
        "seconds": 50.0,
        "peer_seconds": 500.0,
        "faster": 10.0,
        "faster_than_all": 20.0,
        "apart": pytest.approx(470.0 / 24.0),
        "at_equal_time": pytest.approx(0.2),
    }


def test_a_search_that_never_comes_there_is_no_times_as_fast() -> None:
    assert compared(Course([(40.0, 0.1)], 26.0), Course([(100.0, 0.2)], 30.0), 1000.0)["faster"] == 0.0
