"""From results to a front: who is on it, its knee, and how it grew."""

from __future__ import annotations

import pytest

from orchestrator.pareto.front import find_front, history
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.objective import Objective

OBJECTIVES = [Objective(metric="accuracy", reference=0.8), Objective(metric="size_bytes", reference=100.0)]


def trial(number: int, accuracy: float, size: float, **more: object) -> TrialResult:
    measured = {"accuracy": accuracy, "size_bytes": size}
    return TrialResult(number, "COMPLETE", {}, **{"measurements": measured, "ended": float(number), **more})


def test_the_front_is_what_no_other_trial_beats_best_first():
    results = [trial(0, 0.9, 90.0), trial(1, 0.95, 99.0), trial(2, 0.89, 95.0), trial(3, 0.85, 20.0)]
    front = find_front(results, OBJECTIVES)
    assert [point.number for point in front.points] == [1, 0, 3]
    assert front.ranks == (0, 0, 1, 0)
    assert front.rank(2) == 1
    assert front.rank(9) is None


def test_only_feasible_and_complete_trials_count():
    broken = trial(1, 0.99, 10.0, constraints={"latency_ms": 0.1})
    stopped = TrialResult(2, "STOPPED", {})
    front = find_front([trial(0, 0.9, 90.0), broken, stopped], OBJECTIVES)
    assert [point.number for point in front.points] == [0]
    assert front.counts == {"COMPLETE": 2, "INFEASIBLE": 0, "STOPPED": 1, "FAILED": 0}


def test_an_empty_front_has_neither_knee_nor_volume():
    front = find_front([TrialResult(0, "FAILED", {})], OBJECTIVES)
    assert (front.points, front.knee, front.hypervolume) == ((), None, 0.0)


def test_the_knee_is_among_the_points_that_beat_the_reference():
    """Trial 3 bulges the most, and nobody wants its accuracy."""
    good = [trial(0, 0.95, 95.0), trial(1, 0.93, 60.0), trial(2, 0.85, 55.0)]
    useless = [trial(3, 0.6, 2.0), trial(4, 0.1, 1.0)]
    front = find_front([*good, *useless], OBJECTIVES)
    assert len(front.points) == 5
    assert front.knee is not None
    assert front.knee.number == 1


def test_where_no_point_beats_the_reference_there_is_a_knee_all_the_same():
    front = find_front([trial(0, 0.5, 300.0), trial(1, 0.4, 200.0)], OBJECTIVES)
    assert front.knee is not None
    assert front.hypervolume == 0.0


def test_the_volume_is_of_boxes_against_the_reference():
    front = find_front([trial(0, 0.9, 90.0), trial(1, 0.85, 40.0)], OBJECTIVES)
    assert front.reference == (0.8, 100.0)
    assert front.hypervolume == pytest.approx(0.1 * 10 + 0.05 * 50)


def test_history_follows_the_order_of_ends_and_never_falls():
    results = [trial(0, 0.9, 90.0, ended=3.0), trial(1, 0.85, 40.0, ended=1.0), TrialResult(2, "FAILED", {}, ended=2.0)]
    assert history(results, OBJECTIVES) == pytest.approx([0.05 * 60, 0.05 * 60, 0.1 * 10 + 0.05 * 50])
