"""From results to a front: who is on it, its knee, and how it grew."""

from __future__ import annotations

import pytest

from orchestrator.errors import JobError
from orchestrator.pareto.front import (
    certainty_of,
    find_front,
    history,
    narrowed,
    originals,
    ranks_with_infeasible,
    weighted_point,
)
from orchestrator.results.trial_result import Proposal, TrialResult
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


def test_replicates_are_no_points_and_count_as_trials():
    """The better of two replicates would beat its original, and the worse one lie behind it."""
    results = [trial(0, 0.9, 90.0), trial(1, 0.95, 90.0), trial(2, 0.85, 90.0), trial(3, 0.85, 20.0)]
    front = find_front(results, OBJECTIVES, {1: 0, 2: 0})
    assert [point.number for point in front.points] == [0, 3]
    assert [result.number for result in front.replicates[0]] == [1, 2]
    assert front.counts["COMPLETE"] == 4
    assert history(results, OBJECTIVES, {1: 0, 2: 0}) == pytest.approx([0.1 * 10] * 3 + [0.1 * 10 + 0.05 * 70])


def test_replicates_that_did_not_complete_say_nothing():
    results = [trial(0, 0.9, 90.0), TrialResult(1, "FAILED", {}), trial(2, 0.8, 90.0, constraints={"accuracy": 0.1})]
    front = find_front(results, OBJECTIVES, {1: 0, 2: 0})
    assert [result.number for result in front.replicates[0]] == [2]
    assert front.infeasible == ()


def test_proposals_tell_replicates_from_originals():
    proposals = [Proposal(0, {}, {}), Proposal(1, {}, {}, replicate_of=0), Proposal(2, {}, {}, continues=1)]
    assert originals(proposals) == {1: 0}


def test_a_narrowed_front_is_found_again_against_the_same_reference():
    bare = [Objective(metric="accuracy"), Objective(metric="size_bytes")]
    whole = find_front([trial(0, 0.95, 90.0), trial(1, 0.9, 95.0), trial(2, 0.5, 20.0)], bare)
    small = narrowed(whole, lambda result: result.number > 0)
    assert [point.number for point in small.points] == [1, 2]
    assert small.reference == whole.reference
    assert small.objectives == tuple(bare)
    assert small.counts == whole.counts
    nothing = narrowed(whole, lambda result: False)
    assert (nothing.points, nothing.knee, nothing.hypervolume) == ((), None, 0.0)


def test_the_certainty_of_an_empty_front_is_empty():
    certainty = certainty_of(find_front([], OBJECTIVES))
    assert (certainty.probability, certainty.ties, certainty.possible, certainty.seeds) == ({}, (), (), {})
    assert certainty.of("t0000") == {"front_probability": None}


def test_exact_measurements_leave_no_doubt():
    certainty = certainty_of(find_front([trial(0, 0.9, 90.0), trial(1, 0.9, 90.0), trial(2, 0.8, 95.0)], OBJECTIVES))
    assert certainty.probability == {"t0000": 1.0, "t0001": 1.0, "t0002": 0.0}
    assert certainty.ties == (("t0000", "t0001"),)
    assert certainty.tied_with("t0001") == "t0000"
    assert certainty.tied_with("t0002") is None


def test_a_better_mean_of_seeds_is_on_the_front_though_its_file_is_too():
    """Trial 0 was lucky: its replicates lie behind trial 1's in accuracy, at a larger size."""
    results = [trial(0, 0.95, 90.0), trial(1, 0.92, 80.0)]
    results += [trial(2, 0.85, 90.0), trial(3, 0.84, 90.0), trial(4, 0.93, 80.0), trial(5, 0.92, 80.0)]
    certainty = certainty_of(find_front(results, OBJECTIVES, {2: 0, 3: 0, 4: 1, 5: 1}))
    assert certainty.probability == {"t0000": 1.0, "t0001": 1.0}
    assert certainty.seeds["t0001"].front_probability == 1.0
    assert certainty.seeds["t0000"].front_probability < 0.5
    assert certainty.seeds["t0000"].mean == pytest.approx({"accuracy": 0.88, "size_bytes": 90.0})


def test_infeasible_trials_rank_behind_by_what_they_broke():
    """Amounts count as shares of the largest of their constraint: 0.5 + 0.5 for trial 2, 1 for trial 1, 0.25 for trial 3."""
    results = [
        trial(0, 0.9, 90.0),
        trial(1, 0.99, 10.0, constraints={"latency_ms": 4.0}),
        trial(2, 0.99, 10.0, constraints={"latency_ms": 2.0, "accuracy": 0.1}),
        trial(3, 0.99, 10.0, constraints={"latency_ms": -1.0, "accuracy": 0.05}),
        trial(4, 0.99, 10.0, constraints={"accuracy": 0.2}),
        TrialResult(5, "INFEASIBLE", {}, constraints={"latency_ms": 9.0}),
        trial(6, 0.8, 95.0),
    ]
    assert ranks_with_infeasible(find_front(results, OBJECTIVES)) == {0: 0, 6: 1, 3: 2, 1: 3, 2: 3, 4: 3}


def test_weights_choose_a_point_and_name_objectives():
    front = find_front([trial(0, 0.95, 95.0), trial(1, 0.85, 20.0)], OBJECTIVES)
    assert weighted_point(front, {"accuracy": 1.0}).number == 0
    assert weighted_point(front, {"size_bytes": 1.0}).number == 1
    with pytest.raises(JobError, match=r"must name objectives: .* given acuracy \(did you mean 'accuracy'\?\)"):
        weighted_point(front, {"acuracy": 1.0})


def test_what_was_stopped_or_failed_is_kept_beside_the_front():
    """A condition on what was measured lets through those of them of which it is known."""
    ends = [
        TrialResult(0, "STOPPED", {}, gate={"size_bytes": 5.0}),
        TrialResult(1, "FAILED", {}),
        TrialResult(2, "COMPLETE", {}, {"accuracy": 0.5, "size_bytes": 1.0}),
    ]
    front = find_front(ends, [Objective(metric="accuracy"), Objective(metric="size_bytes")])
    assert [trial.number for trial in front.others] == [0, 1]
    kept = narrowed(front, lambda trial: "size_bytes" in {**trial.gate, **trial.measurements})
    assert ([trial.number for trial in kept.others], len(kept.points)) == ([0], 1)
    assert (kept.counts, kept.reference) == (front.counts, front.reference)
