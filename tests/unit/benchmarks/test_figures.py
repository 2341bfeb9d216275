"""The pure parts of the other figures: what a warm trial is, what efficiency is, what a file can hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.epoch import efficiency
from benchmarks.outcome import interval, keep, picture, verdict
from benchmarks.warm_ddp import Warm, job, warm_trials
from orchestrator.results.trial_result import StageRecord, TrialResult
from orchestrator.spec.job import Job


def trial(number: int, started: float, ended: float, export: float, measure: float) -> TrialResult:
    stages = [
        StageRecord("student", "key", 0.25, False, started),
        StageRecord("export", "", export, False, started),
        StageRecord("measure", "", measure, False, started),
    ]
    return TrialResult(number, "COMPLETE", {}, stages=stages, started=started, ended=ended)


def test_a_warm_trial_runs_from_end_to_end_and_the_first_is_none() -> None:
    results = [trial(0, 10.0, 20.0, 2.0, 1.0), trial(2, 21.5, 22.5, 0.25, 0.5), trial(1, 20.25, 21.25, 0.125, 0.5)]
    assert warm_trials(results) == [Warm(1.25, 0.625), Warm(1.25, 0.5)]


def test_a_short_trial_has_ten_steps_for_two_workers() -> None:
    asked = Job.model_validate(job(8))
    assert asked.recipe.data.max_train == 10 * asked.recipe.training.batch_size
    assert asked.resources.workers_per_gang == 2


def test_two_processes_at_the_rate_of_one_each_are_fully_efficient() -> None:
    assert efficiency(200.0, 100.0) == 1.0
    assert efficiency(100.0, 100.0) == 0.5


def test_an_interval_of_one_value_is_that_value_and_infinity_is_borne() -> None:
    assert interval([3.0]) == (3.0, 3.0, 3.0)
    low, middle, high = interval([1.0, 2.0, float("inf")])
    assert (low, middle, high) == (1.0, 2.0, float("inf"))


def test_what_is_not_finite_is_kept_as_null(tmp_path: Path) -> None:
    keep("figure", {"times": [1.0, float("inf")], "of": {"nobody": float("nan")}}, tmp_path)
    assert json.loads((tmp_path / "figure.json").read_text()) == {"times": [1.0, None], "of": {"nobody": None}}


def test_a_picture_is_written_whole(tmp_path: Path) -> None:
    picture("figure", "title", [lambda axes: axes.plot([0, 1], [1, 2]), lambda axes: axes.plot([0, 1], [2, 1])], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_verdict_says_met_or_missed(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict("times", 4.0, 4.0)["met"]
    assert not verdict("seconds", 0.31, 0.3, most=True)["met"]
    assert [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()] == ["met", "MISSED"]


def test_of_an_absolute_path_the_name_alone_is_kept(tmp_path: Path) -> None:
    keep(
        "found",
        {"arguments": {"data": str(tmp_path / "cifar10"), "out": "docs/benchmarks"}, "paths": [str(tmp_path)]},
        tmp_path,
    )
    told = json.loads((tmp_path / "found.json").read_text())
    assert told == {"arguments": {"data": "cifar10", "out": "docs/benchmarks"}, "paths": [tmp_path.name]}
