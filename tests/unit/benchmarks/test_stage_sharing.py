"""The account of a shared grid, added up by hand."""

from __future__ import annotations

import pytest

from benchmarks.stage_sharing import account, computed, predicted
from orchestrator.results.trial_result import StageRecord, TrialResult


def trial(number: int, started: float, ended: float, *stages: tuple[str, str, float, bool]) -> TrialResult:
    records = [StageRecord(name, key, seconds, cached, 0.0) for name, key, seconds, cached in stages]
    return TrialResult(number, "COMPLETE", {}, stages=records, started=started, ended=ended)


RESULTS = [
    trial(0, 100.0, 118.0, ("preflight", "", 0.5, False), ("teacher", "t", 8.0, False), ("student", "d", 4.0, False),
          ("pruned", "p", 2.0, False), ("quantized", "q2", 1.0, False), ("export", "", 0.25, False)),
    trial(1, 118.5, 121.0, ("preflight", "", 0.25, False), ("teacher", "t", 0.0, True), ("student", "d", 0.25, True),
          ("pruned", "p", 0.25, True), ("quantized", "q4", 1.0, False), ("export", "", 0.25, False)),
]  # fmt: skip


def test_an_account_of_two_trials_that_share_all_but_their_last_stage() -> None:
    found = account(RESULTS)
    assert found.scratch == 2 * (8.0 + 4.0 + 2.0 + 1.0)
    assert found.base == 8.0 + 4.0 + 2 * (2.0 + 1.0)
    assert found.distinct == 8.0 + 4.0 + 2.0 + 1.0 + 1.0
    assert found.spent == 15.0 + 1.5
    assert found.unshared == 1.25
    assert found.wall == 21.0
    assert found.stages == {"teacher": 1, "student": 1, "pruned": 1, "quantized": 2}
    figures = found.figures()
    assert figures["limit of compute"] == 30.0 / 16.0
    assert figures["share of the limit, compute"] == 16.0 / 16.5
    assert figures["times less compute"] / figures["limit of compute"] == pytest.approx(16.0 / 16.5)
    assert figures["share of the limit, wall time"] == 17.25 / 21.0
    assert figures["times faster"] / figures["limit of wall time"] == pytest.approx(17.25 / 21.0)


def test_a_trial_from_scratch_takes_what_its_stages_took_when_they_were_computed() -> None:
    costs = computed(RESULTS)
    assert costs == {"t": 8.0, "d": 4.0, "p": 2.0, "q2": 1.0, "q4": 1.0}
    assert predicted(RESULTS[1], costs) == 15.0
