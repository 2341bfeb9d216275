"""What trials will cost, by hand."""

from __future__ import annotations

import pytest

from orchestrator.results.trial_result import StageRecord, TrialResult
from orchestrator.search.forecast import Observed, costs_alike, forecast, observe
from orchestrator.spec.job import Job


def stage(name: str, key: str, seconds: float, cached: bool = False) -> StageRecord:
    return StageRecord(name, key, seconds, cached, 0.0)


def trial(number: int, seconds: float, *stages: StageRecord, state: str = "COMPLETE") -> TrialResult:
    return TrialResult(number, state, {}, stages=list(stages), started=1000.0, ended=1000.0 + seconds)


def make_job(**keys) -> Job:
    return Job.model_validate(
        {
            "name": "a",
            "recipe": {},
            "space": {"pruning.ratio": {"float": [0.0, 0.5]}},
            "objectives": [{"metric": "accuracy"}, {"metric": "size_bytes"}],
            "budget": {"trials": 10},
            **keys,
        }
    )


def test_what_is_shared_counts_once_and_waiting_for_it_not_at_all():
    results = [
        trial(0, 30.0, stage("teacher", "T", 20.0), stage("student", "a", 8.0), stage("measure", "", 1.0)),
        trial(1, 27.0, stage("teacher", "T", 19.0, cached=True), stage("student", "b", 6.0)),
        trial(2, 9.0, stage("teacher", "T", 0.5, cached=True), stage("student", "c", 7.0)),
        trial(3, 500.0, state="FAILED"),
    ]
    observed = observe(results)
    assert observed == Observed(once=20.0, each=pytest.approx((10.0 + 8.0 + 8.5) / 3), trials=3)


def test_nothing_is_learned_from_trials_that_failed():
    assert observe([]) is None
    assert observe([trial(0, 5.0, state="FAILED")]) is None


def test_the_longest_row_decides_the_clock_and_all_gangs_the_devices():
    told = forecast(make_job(resources={"workers_per_gang": 2}), 3, Observed(60.0, 30.0, 4), "a sweep")
    assert told.hours == pytest.approx((60 + 4 * 30) / 3600)  # 10 trials on 3 gangs: one has 4
    assert told.device_hours == pytest.approx(2 * (3 * 60 + 10 * 30) / 3600)
    assert told.rests_on == "a sweep"


def test_jobs_that_differ_in_what_costs_nothing_cost_alike():
    job = make_job()
    same = {"name": "b", "seed": 7, "budget": {"trials": 99}, "resources": {"gangs": 1}, "objectives": job.objectives[::-1]}
    assert costs_alike(job, make_job(**same))
    assert not costs_alike(job, make_job(recipe={"training": {"epochs": 3}}))
    assert not costs_alike(job, make_job(resources={"threads_per_worker": 2}))
    assert not costs_alike(job, make_job(stopping={"method": "successive_halving"}))
    assert not costs_alike(job, make_job(space={"pruning.ratio": {"float": [0.0, 0.4]}}))
