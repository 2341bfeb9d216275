"""What a sweep bought, by hand."""

from __future__ import annotations

import pytest

from orchestrator.delivery.account import settle
from orchestrator.results.trial_result import Proposal, StageRecord, TrialResult
from orchestrator.spec.job import Job

JOB = Job.model_validate(
    {
        "name": "a",
        "recipe": {},
        "space": {"pruning.ratio": {"float": [0.0, 0.5]}},
        "objectives": [{"metric": "accuracy", "reference": 0.5}, {"metric": "size_bytes", "reference": 100}],
        "resources": {"workers_per_gang": 2},
    }
)


def stage(key: str, seconds: float, cached: bool = False, saved_s: float = 0.0) -> StageRecord:
    return StageRecord("student", key, seconds, cached, 0.0, saved_s)


def trial(number: int, accuracy: float, size: float, seconds: float, *stages: StageRecord) -> TrialResult:
    measured = {"accuracy": accuracy, "size_bytes": size}
    return TrialResult(number, "COMPLETE", {}, measured, stages=list(stages), started=50.0, ended=50.0 + seconds)


def short(number: int, seconds: float) -> TrialResult:
    return TrialResult(number, "STOPPED", {}, started=50.0, ended=50.0 + seconds)


def test_the_account_of_a_sweep():
    proposals = [Proposal(number, {}, {}) for number in range(5)]
    proposals += [Proposal(5, {}, {}, replicate_of=1), Proposal(6, {}, {}, continues=3)]
    results = [
        trial(0, 0.75, 80.0, 40.0, stage("T", 20.0), stage("a", 10.0)),
        trial(1, 0.75, 40.0, 20.0, stage("T", 0.5, cached=True), stage("b", 11.0)),
        trial(2, 0.625, 20.0, 30.0, stage("T", 19.0, cached=True), stage("c", 0.1, cached=True)),
        short(3, 6.0),
        short(4, 12.0),
        trial(5, 0.99, 1.0, 100.0),
        trial(6, 0.5, 90.0, 1.0),
    ]
    account = settle(JOB, proposals, results)
    assert account.trials == {"complete": 5, "infeasible": 0, "stopped": 2, "failed": 0}
    assert account.replicates == 1
    assert account.baseline_hypervolume == pytest.approx(0.25 * 20)
    # Boxes 0.25 x 60 and 0.125 x 80; their common part 0.125 x 60. The replicate is no point of its own.
    assert account.hypervolume == pytest.approx(0.25 * 60 + 0.125 * 80 - 0.125 * 60)
    assert account.device_hours == pytest.approx(2 * (40 + 20 + 30 + 6 + 12 + 100 + 1) / 3600)
    assert (account.stages, account.served, account.unpriced) == (6, 3, 1)
    assert account.seconds_served == pytest.approx((20 - 0.5) + (20 - 19))
    # The mean fresh trial that completed took 30 s; trial 3 was continued.
    assert account.seconds_stopped == pytest.approx(30 - 12)
    assert account.sentences() == [
        "hypervolume 17.5; the baseline alone has 5",
        "0.116 device-hours for 5 complete, 2 stopped",
        "3 of 6 stages came from the store: about 20 s saved, without 1 of unknown price",
        "stopping trials saved about 18 s of training",
    ]


def test_what_the_store_says_of_a_stage_is_what_it_saved():
    """Also of stages that no trial of this sweep computed; a trial's own record is asked where the store said nothing."""
    results = [
        trial(0, 0.75, 80.0, 40.0, stage("T", 0.5, cached=True, saved_s=150.0), stage("a", 10.0)),
        trial(1, 0.75, 40.0, 20.0, stage("T", 0.5, cached=True, saved_s=149.5), stage("a", 4.0, cached=True)),
    ]
    account = settle(JOB, [Proposal(0, {}, {}), Proposal(1, {}, {})], results)
    assert (account.served, account.unpriced, account.seconds_served) == (3, 0, pytest.approx(150 + 149.5 + 6))
    assert "3 of 4 stages came from the store: about 5.1 min saved" in account.sentences()


def test_the_account_of_nothing():
    account = settle(JOB, [], [])
    assert (account.hypervolume, account.baseline_hypervolume, account.device_hours) == (0.0, 0.0, 0.0)
    assert account.sentences() == ["hypervolume 0; the baseline alone has 0", "0 device-hours for no trial"]


def test_a_baseline_that_failed_is_worth_nothing():
    results = [TrialResult(0, "FAILED", {}), trial(1, 0.75, 40.0, 20.0)]
    account = settle(JOB, [Proposal(0, {}, {}), Proposal(1, {}, {})], results)
    assert account.baseline_hypervolume == 0.0
    assert account.hypervolume == pytest.approx(0.25 * 60)
