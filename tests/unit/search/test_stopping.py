"""The stopping rule: hand-computed rungs, plain successive halving where there is one objective, and properties for more."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pareto.dominance import non_dominated_ranks
from orchestrator.pareto.selection import representatives
from orchestrator.results.trial_result import StageRecord, TrialResult
from orchestrator.search.stopping import (
    Phase,
    StoppingRule,
    is_control,
    kept,
    last_training,
    partial_costs,
    rung_epochs,
    rungs_passed,
    would_stop,
)
from orchestrator.spec.job import StoppingSettings
from orchestrator.spec.objective import Objective
from orchestrator.spec.recipe import Recipe

RUNG = ("student", 1)
ACCURACY, SIZE, LATENCY = Objective(metric="accuracy"), Objective(metric="size_bytes"), Objective(metric="latency_ms")

values = st.integers(0, 6).map(float)  # few values, so that ties come up
etas = st.integers(2, 5)


def points(objectives: int) -> st.SearchStrategy[list[tuple[float, ...]]]:
    return st.lists(st.tuples(*[values] * objectives), min_size=1, max_size=25)


anything = st.integers(1, 4).flatmap(points)


def keep(costs: list[tuple[float, ...]], eta: int = 3) -> list[bool]:
    return kept(np.array(costs), eta, non_dominated_ranks, representatives).tolist()


def rule(eta: int = 3, **keys: object) -> StoppingRule:
    return StoppingRule(eta, non_dominated_ranks, representatives, **{"spared": lambda number: False, **keys})


def answers(costs: list[tuple[float, ...]], eta: int = 3) -> list[bool]:
    """What trials are told that reach a rung one after the other."""
    fresh = rule(eta)
    return [fresh.report(number, RUNG, cost) for number, cost in enumerate(costs)]


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


# Where a trial is judged.


@pytest.mark.parametrize(
    ("epochs", "keys", "rungs"),
    [
        (27, {}, [1, 3, 9]),
        (28, {}, [1, 3, 9, 27]),
        (10, {"min_epochs": 2, "reduction_factor": 2}, [2, 4, 8]),
        (2, {}, [1]),
        (1, {}, []),
        (0, {}, []),
        (3, {"min_epochs": 5}, []),
        (27, {"method": "none"}, []),
    ],
)
def test_rungs_are_spaced_by_the_factor_and_the_end_is_none(epochs, keys, rungs):
    assert rung_epochs(epochs, StoppingSettings.model_validate({"method": "successive_halving", **keys})) == rungs


@pytest.mark.parametrize(
    ("tree", "phase"),
    [
        ({}, Phase("student", 0, 10)),
        ({"training": {"epochs": 0}}, Phase("student", 0, 0)),
        ({"pruning": {"ratio": 0.5}}, Phase("pruned", 0, 3)),
        ({"pruning": {"ratio": 0.5, "epochs": 0}}, Phase("student", 0, 10)),
        ({"pruning": {"ratio": 0.5, "epochs": 10, "steps": 4}}, Phase("pruned", 7, 3)),
        ({"pruning": {"ratio": 0.5, "epochs": 2, "steps": 4}}, Phase("pruned", 1, 1)),
        ({"quantization": {"method": "ptq"}}, Phase("student", 0, 10)),
        ({"quantization": {"method": "qat"}, "pruning": {"ratio": 0.5}}, Phase("quantized", 0, 2)),
        ({"quantization": {"method": "qat", "epochs": 0}, "pruning": {"ratio": 0.5}}, Phase("pruned", 0, 3)),
    ],
)
def test_the_last_training_is_the_one_after_which_no_weight_is_learned(tree, phase):
    assert last_training(Recipe.model_validate(tree)) == phase


def test_a_trial_is_compared_by_its_accuracy_so_far_and_what_was_final_before():
    gate = {"size_bytes": 500.0, "latency_ms": 2.0, "macs": 9.0}
    assert partial_costs([ACCURACY, SIZE, LATENCY], gate, 0.75) == (-0.75, 500.0, 2.0)
    assert partial_costs([ACCURACY, SIZE], {"latency_ms": 2.0}, 0.75) is None, "its plan is not known yet"
    upside_down = Objective(metric="size_bytes", direction="maximize")
    assert partial_costs([upside_down], gate, 0.75) == (-500.0,)


RECIPE = Recipe.model_validate({"training": {"epochs": 5}, "pruning": {"ratio": 0.5, "epochs": 6, "steps": 2}})
SETTINGS = StoppingSettings(method="successive_halving", reduction_factor=2)


def result_of(stages: list[tuple[str, bool]], epochs: int) -> TrialResult:
    """A trial whose recovery got as far as `epochs`."""
    dense = [{"stage": "student", "epoch": epoch, "val_accuracy": 0.1} for epoch in range(5)]
    recovery = [{"stage": "pruned", "epoch": epoch, "val_accuracy": epoch / 10} for epoch in range(epochs)]
    records = [StageRecord(name, "k", 1.0, cached, 0.0) for name, cached in stages]
    return TrialResult(4, "STOPPED", {}, gate={"size_bytes": 7.0}, curve=[*dense, *recovery], stages=records)


def test_the_rungs_that_a_trial_passed_are_read_from_its_curve():
    """The last cut comes after 3 of 6 epochs, so that the phase has 3 and is judged after 1 and 2 of them."""
    passed = [(("pruned", 1), (-0.3, 7.0)), (("pruned", 2), (-0.4, 7.0))]
    objectives = [ACCURACY, SIZE]
    assert rungs_passed(RECIPE, result_of([("student", True), ("pruned", False)], 6), objectives, SETTINGS) == passed
    assert rungs_passed(RECIPE, result_of([("student", False)], 4), objectives, SETTINGS) == passed[:1]
    assert rungs_passed(RECIPE, result_of([("student", False)], 3), objectives, SETTINGS) == []
    assert rungs_passed(RECIPE, result_of([("student", False), ("pruned", True)], 6), objectives, SETTINGS) == [], "replayed"
    assert rungs_passed(RECIPE, result_of([("pruned", False)], 6), [ACCURACY, LATENCY], SETTINGS) == []


# Who goes on.


@given(points(1), etas)
def test_one_objective_is_plain_successive_halving(costs, eta):
    """Li et al. 2020: in the best 1/eta of the rung so far, earlier arrivals first among equals; whoever is best is in."""
    for number, told in enumerate(answers(costs, eta)):
        ahead = sorted(costs[: number + 1]).index(costs[number])
        earlier = costs[:number].count(costs[number])
        assert told == (ahead == 0 or ahead + earlier < math.ceil((number + 1) / eta))


def test_plain_successive_halving_by_hand():
    """Of 1, 2, 3 trials one goes on, of 4 two, so that the second best of four may, and the third may not."""
    assert answers([(5.0,), (6.0,), (4.0,), (4.5,), (4.7,), (3.0,)]) == [True, False, True, True, False, True]


@given(anything, etas)
def test_whoever_nothing_at_the_rung_dominates_goes_on(costs, eta):
    for number, told in enumerate(answers(costs, eta)):
        if not any(dominates(other, costs[number]) for other in costs[: number + 1]):
            assert told


@given(anything, etas)
def test_a_share_of_the_rung_is_kept_and_no_more_where_the_front_fits(costs, eta):
    stays, room = keep(costs, eta), math.ceil(len(costs) / eta)
    front = sum(not any(dominates(other, cost) for other in costs) for cost in costs)
    assert sum(stays) == max(front, room)


@given(anything, etas)
def test_no_front_is_begun_before_the_one_above_it_is_in_whole(costs, eta):
    stays, ranks = np.array(keep(costs, eta)), non_dominated_ranks(np.array(costs))
    last = ranks[stays].max()
    assert stays[ranks < last].all()


@given(st.integers(2, 4).flatmap(points), etas)
def test_what_is_final_before_training_protects(costs, eta):
    """A stopped trial always has a rival that is no worse in any final objective and at least as accurate already."""
    for number, told in enumerate(answers(costs, eta)):
        rivals = [other for other in costs[:number] if all(a <= b for a, b in zip(other[1:], costs[number][1:], strict=True))]
        if not rivals or costs[number][0] < min(rival[0] for rival in rivals):
            assert told


def test_a_small_network_is_not_stopped_for_being_less_accurate_than_a_large_one():
    large, small, small_and_worse = (-0.9, 1000.0), (-0.5, 100.0), (-0.4, 100.0)
    assert answers([large, small, small_and_worse]) == [True, True, False]


@given(st.tuples(values, values, values), etas)
def test_a_trial_that_is_alone_goes_on(cost, eta):
    assert answers([cost], eta) == [True]


@given(anything, etas)
def test_the_same_reports_in_the_same_order_give_the_same_answers(costs, eta):
    assert answers(costs, eta) == answers(costs, eta)


def test_of_a_front_that_does_not_fit_the_first_of_an_epsilon_net_are_taken():
    """Nine trials, three places: one on the front, then the extremes of the second front, of which the middle is left out."""
    front = [(0.0, 0.0)]
    second = [(2.0, 2.0), (1.0, 9.0), (3.0, 1.0)]
    rest = [(9.0, 9.0)] * 5
    assert keep([*front, *second, *rest]) == [True, False, True, True, *[False] * 5]
    assert keep([*front, *second]) == [True, False, True, False], "the best in the first objective comes first"


def test_a_rung_knows_only_those_whose_last_training_is_of_the_same_stage():
    judge = rule()
    assert judge.report(1, ("quantized", 1), (-0.9, 5.0))
    assert judge.report(2, ("student", 1), (-0.3, 5.0))
    assert not judge.report(3, ("quantized", 1), (-0.8, 5.0))


def test_only_the_first_report_at_a_rung_counts():
    judge = rule()
    assert judge.report(1, RUNG, (1.0,))
    assert judge.report(1, RUNG, (9.0,))
    assert not judge.report(2, RUNG, (2.0,)), "1 still has what it came with"


def test_who_is_spared_goes_on_and_is_compared_with():
    judge = rule(spared=lambda number: number == 2)
    assert [judge.report(number, RUNG, (cost,)) for number, cost in [(1, 1.0), (2, 2.0), (3, 3.0)]] == [True, True, False]
    assert not judge.report(4, RUNG, (2.5,)), "two are better, and two of four go on"
    assert StoppingRule(3, non_dominated_ranks, representatives).spared(0), "the baseline"


# Controls.


def test_controls_are_a_share_that_number_and_seed_decide():
    controls = [number for number in range(4000) if is_control(number, 7, 0.1)]
    assert 340 <= len(controls) <= 460  # 400, standard deviation 19
    assert controls == [number for number in range(4000) if is_control(number, 7, 0.1)]
    assert controls != [number for number in range(4000) if is_control(number, 8, 0.1)]
    assert set(controls) < {number for number in range(4000) if is_control(number, 7, 0.2)}


def test_none_and_all_are_shares_too_and_the_baseline_is_never_a_control():
    assert not any(is_control(number, 0, 0.0) for number in range(100))
    assert [number for number in range(100) if not is_control(number, 0, 1.0)] == [0]


def test_who_would_have_been_stopped_is_found_by_going_through_the_trials_again():
    """Trial 5 would have ended at the first rung, so that its second report is not there to compare trial 6 with."""
    first, second = ("student", 1), ("student", 3)
    trials = [
        (4, [(first, (1.0,)), (second, (1.0,))]),
        (5, [(first, (2.0,)), (second, (0.0,))]),
        (6, [(first, (0.5,)), (second, (0.5,))]),
    ]
    assert would_stop(rule(), trials) == [5]


# Going on later.


def test_a_stopped_trial_is_wanted_once_its_rung_has_room_for_it():
    judge = rule()
    told = [judge.report(number, RUNG, (cost,)) for number, cost in enumerate([1.0, 2.0, 3.0])]
    assert told == [True, False, False]
    assert judge.promotable([1, 2]) is None
    judge.report(3, RUNG, (9.0,))
    assert judge.promotable([1, 2]) == 1, "two of four go on by now"
    assert judge.promotable([2]) is None


def test_who_came_furthest_is_wanted_first():
    judge, higher = rule(), ("student", 3)
    for number, cost in enumerate([1.0, 2.0, 9.0, 9.0]):
        judge.report(number, RUNG, (cost,))
    for number, cost in [(5, 1.0), (6, 2.0), (7, 9.0), (8, 9.0)]:
        judge.report(number, higher, (cost,))
    assert judge.promotable([1, 6]) == 6
    assert judge.promotable([1]) == 1
    assert judge.promotable([42]) is None, "a trial that was never at a rung"


@given(anything, etas)
def test_whoever_is_wanted_was_stopped_and_is_within_the_share(costs, eta):
    judge = rule(eta)
    stopped = [number for number, cost in enumerate(costs) if not judge.report(number, RUNG, cost)]
    wanted, stays = judge.promotable(stopped), keep(costs, eta)
    assert wanted == next((number for number in stopped if stays[number]), None)
