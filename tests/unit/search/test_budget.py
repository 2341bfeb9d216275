"""When a sweep ends: every limit and goal, what comes first, and what holds for all budgets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.results.trial_result import TrialResult
from orchestrator.search.budget import Spent, device_seconds, goal, is_flat, limit, num_devices, verdict
from orchestrator.spec.job import BudgetSettings, PlateauSettings, ResourceSettings

HOUR = 3600.0


def reason(budget: dict, **spent) -> str | None:
    end = verdict(BudgetSettings.model_validate(budget), Spent(**spent))
    return None if end is None else end.reason


@pytest.mark.parametrize(
    ("budget", "before", "after", "expected"),
    [
        ({"trials": 5}, {"fresh": 4}, {"fresh": 5}, "trials"),
        ({"hours": 2}, {"seconds": 7199.0}, {"seconds": 7200.0}, "hours"),
        ({"device_hours": 0.5}, {"device_seconds": 1799.0}, {"device_seconds": 1800.0}, "device_hours"),
        ({"failures": 3}, {"failures": 2}, {"failures": 3}, "failures"),
        ({}, {"exhausted": False}, {"exhausted": True}, "space"),
        # 10 -> 11 is a gain of 1/11 of what it is; over the last two trials.
        (
            {"plateau": {"trials": 2, "gain": 0.0909}},
            {"volumes": [10.0, 10.5, 11.0]},
            {"volumes": [10.0, 10.5, 10.99]},
            "plateau",
        ),
    ],
)
def test_each_end_comes_where_it_is_set(budget, before, after, expected):
    assert reason(budget, **before) is None
    assert reason(budget, **after) == expected
    assert reason({}, **{**after, "exhausted": False, "fresh": 0}) is None, "what is not set ends nothing"


def test_what_ends_a_sweep_is_said_with_the_setting_and_what_was_found():
    end = limit(BudgetSettings(failures=3), Spent(failures=4))
    assert end is not None
    assert end.text == "4 trials failed; budget.failures is 3"
    end = limit(BudgetSettings(hours=0.5), Spent(seconds=HOUR))
    assert end is not None
    assert end.text == "1 hours have passed; budget.hours is 0.5"


def test_a_plateau_needs_trials_to_compare_with_and_something_found():
    plateau = PlateauSettings(trials=3, gain=0.0)
    assert not is_flat(plateau, [])
    assert not is_flat(plateau, [1.0, 1.0, 1.0])
    assert is_flat(plateau, [1.0, 1.0, 1.0, 1.0])
    assert not is_flat(plateau, [0.0] * 10), "a search that has found nothing has not converged"
    assert not is_flat(plateau, [0.0, 0.0, 0.0, 0.1])
    assert is_flat(plateau, [0.0, 0.1, 0.1, 0.1, 0.1])
    assert not is_flat(plateau, [1.0, 1.0, 1.0, 1.0, 1.0 + 1e-9])


@pytest.mark.parametrize(
    ("resources", "devices"),
    [
        ({}, 1.0),
        ({"workers_per_gang": 4, "threads_per_worker": 8}, 4.0),
        ({"workers_per_gang": 2, "gpus_per_worker": 1.0}, 2.0),
        ({"gpus_per_worker": 0.25}, 0.25),
        ({"workers_per_gang": 2, "gpus_per_worker": 4.0}, 8.0),
    ],
)
def test_device_time_is_devices_times_seconds(resources, devices):
    settings = ResourceSettings.model_validate(resources)
    results = [
        TrialResult(0, "COMPLETE", {}, started=100.0, ended=110.0),
        TrialResult(1, "STOPPED", {}, started=5.0, ended=8.0),
    ]
    assert num_devices(settings) == devices
    assert device_seconds(results, settings) == 13.0 * devices


def test_a_clock_that_was_set_back_takes_nothing_away():
    assert device_seconds([TrialResult(0, "COMPLETE", {}, started=9.0, ended=1.0)], ResourceSettings()) == 0.0


VOLUMES = st.lists(st.floats(0.0, 1e6), max_size=12).map(sorted)
BUDGETS = st.builds(
    BudgetSettings,
    trials=st.integers(1, 20),
    hours=st.none() | st.floats(0.01, 10.0),
    device_hours=st.none() | st.floats(0.01, 10.0),
    failures=st.none() | st.integers(1, 5),
    plateau=st.none() | st.builds(PlateauSettings, trials=st.integers(1, 6), gain=st.floats(0.0, 0.9)),
)
SPENT = st.builds(
    Spent,
    fresh=st.integers(0, 30),
    seconds=st.floats(0.0, 40_000.0),
    device_seconds=st.floats(0.0, 40_000.0),
    failures=st.integers(0, 8),
    volumes=VOLUMES,
    exhausted=st.booleans(),
)


@given(BUDGETS, SPENT)
def test_a_verdict_is_a_limit_or_else_a_goal(budget, spent):
    end = verdict(budget, spent)
    assert end == (limit(budget, spent) or goal(budget, spent))
    assert end is None or end.text
    assert (end is None) == (limit(budget, spent) is None and goal(budget, spent) is None)


@given(BUDGETS, SPENT, st.integers(0, 5), st.floats(0.0, 1e5), st.floats(0.0, 1e5), st.integers(0, 5))
def test_spending_more_never_takes_an_end_back(budget, spent, fresh, seconds, devices, failures):
    more = replace(
        spent,
        fresh=spent.fresh + fresh,
        seconds=spent.seconds + seconds,
        device_seconds=spent.device_seconds + devices,
        failures=spent.failures + failures,
    )
    if verdict(budget, spent) is not None:
        assert verdict(budget, more) is not None
    if limit(budget, spent) is not None:
        assert limit(budget, more) is not None


@given(BUDGETS, SPENT)
def test_a_budget_without_limits_ends_only_by_goals(budget, spent):
    free = budget.model_copy(update={"hours": None, "device_hours": None, "failures": None})
    assert limit(free, spent) is None
    assert verdict(free, spent) == goal(budget, spent)


@given(VOLUMES, st.integers(1, 6), st.floats(0.0, 0.9), st.integers(-30, 30))
def test_a_plateau_does_not_depend_on_the_unit_of_the_hypervolume(volumes, trials, gain, power):
    plateau = PlateauSettings(trials=trials, gain=gain)
    smallest = min((volume for volume in volumes if volume > 0), default=1.0)
    if smallest > 1e-100:  # a power of two is exact, as long as nothing is denormal
        assert is_flat(plateau, volumes) == is_flat(plateau, [volume * 2.0**power for volume in volumes])


@given(VOLUMES, st.integers(1, 6), st.floats(0.0, 0.9), st.floats(0.0, 0.09))
def test_a_larger_gain_asks_for_more(volumes, trials, gain, extra):
    if is_flat(PlateauSettings(trials=trials, gain=gain), volumes):
        assert is_flat(PlateauSettings(trials=trials, gain=gain + extra), volumes)


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=8).map(sorted), st.integers(1, 6))
def test_nothing_gained_for_long_enough_is_a_plateau(volumes, trials):
    assert is_flat(PlateauSettings(trials=trials, gain=0.0), [*volumes, *[volumes[-1]] * trials])
