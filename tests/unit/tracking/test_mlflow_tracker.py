"""A sweep in MLflow: what is on a trial's run, and that a killed process loses and doubles nothing."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.pareto.front import find_front
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, StageRecord, TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.load import resolved_text
from orchestrator.tracking.projection import origin_of, points_of
from tests.conftest import REPOSITORY

EPOCHS = 400  # with three numbers an epoch, more than MLflow takes in one call


def a_job(name: str = "killed") -> Job:
    space = {"pruning.ratio": {"float": [0.0, 0.5]}, "training.learning_rate": {"float": [0.01, 0.1]}}
    objectives = [{"metric": "accuracy"}, {"metric": "size_bytes"}]
    return Job.model_validate({"name": name, "recipe": {}, "space": space, "objectives": objectives})


def curve(number: int, epochs: int) -> list[dict[str, Any]]:
    """Values that no two points of a sweep share."""
    return [
        {"stage": "student", "epoch": epoch, **{name: number + epoch / 1000 + i / 10 for i, name in enumerate("abc")}}
        for epoch in range(1, epochs + 1)
    ]


def facts(home: Home) -> Sweep:
    """Two ends, not in the order of their numbers: one with a long curve, one that failed before it."""
    sweep = home.sweep("killed")
    sweep.create(resolved_text(a_job()))
    stages = [StageRecord("student", "k", 1.5, False, 10.0)]
    measured = {"accuracy": 0.9, "size_bytes": 2000, "executor": "x"}
    choices = [{"pruning.ratio": 0.25}, {"pruning.ratio": 0.5}]
    for number, choice in enumerate(choices):
        sweep.propose(Proposal(number, choice, {}))
    seen = curve(0, EPOCHS)
    sweep.finish(TrialResult(0, "COMPLETE", choices[0], measured, curve=seen, stages=stages, started=1.0, ended=30.0))
    failure = {"class": "E", "message": "", "traceback": ""}
    sweep.finish(TrialResult(1, "FAILED", choices[1], failure=failure, curve=curve(1, 2), started=5.0, ended=25.0))
    return sweep


def rows(home: Home, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(home.path / "mlflow.db")) as database:
        return database.execute(query).fetchall()


def assert_shows_the_facts(home: Home) -> None:
    """Every point and parameter of the facts, and where each trial stands, is there once, and no other point is."""
    sweep, job = home.sweep("killed"), a_job()
    results = sweep.results()
    runs = rows(home, "select tags.value, runs.run_uuid, runs.status from runs join tags using (run_uuid) "
                      "where tags.key = 'orchestrator.trial'")  # fmt: skip
    assert sorted((trial, status) for trial, _, status in runs) == [
        ("t0000", "FINISHED"),
        ("t0001", "FAILED"),
    ]
    run_of = {trial: run for trial, run, _ in runs}
    sweeps = "select run_uuid, status from runs join tags using (run_uuid) where key = 'orchestrator.role' and value = 'sweep'"
    ((parent, status),) = rows(home, sweeps)
    assert status == "FINISHED"
    ends = sorted(results, key=lambda result: result.ended)
    shown = [(run_of[result.id], key, step, value, int(result.ended * 1000))
             for result in results for (key, step), value in points_of(result).items()]  # fmt: skip
    for step, result in enumerate(ends, 1):
        front = find_front(ends[:step], job.objectives)
        sides = {"front/hypervolume": front.hypervolume, "front/size": float(len(front.points))}
        shown += [(parent, key, step, value, int(result.ended * 1000)) for key, value in sides.items()]
    assert sorted(rows(home, "select run_uuid, key, step, value, timestamp from metrics")) == sorted(shown)
    unasked = {"pruning.ratio": job.recipe.pruning.ratio, "training.learning_rate": job.recipe.training.learning_rate}
    params = {(run_of[r.id], path, str(r.choice.get(path, value))) for r in results for path, value in unasked.items()}
    params |= {(parent, "objective.accuracy", "maximize"), (parent, "objective.size_bytes", "minimize")}
    assert set(rows(home, "select run_uuid, key, value from params")) == params
    tags = set(rows(home, "select run_uuid, key, value from tags where key in ('orchestrator.rank', 'orchestrator.pareto')"))
    assert {(trial, *tag[1:]) for trial, run in run_of.items() for tag in tags if tag[0] == run} == {
        ("t0000", "orchestrator.rank", "0"),
        ("t0000", "orchestrator.pareto", "true"),
        ("t0001", "orchestrator.pareto", "false"),
    }


@pytest.mark.faults
def test_a_process_killed_before_any_of_its_commits_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """SIGKILL at each commit to a real SQLite database in turn, then the work again: as many homes as there are commits."""
    home = Home(tmp_path / "home")
    facts(home)
    command = [sys.executable, "-m", "tests.unit.tracking.killed_projection", str(home.path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    killed = int(done.stdout)
    assert killed >= 2 * 4 + 3  # a run, its parameters, its points, its end; parent, objectives, fronts
    for commit in range(1, killed + 2):
        assert_shows_the_facts(Home(f"{home.path}-{commit}"))


def test_points_are_the_finite_numbers_by_key_and_step() -> None:
    result = TrialResult(
        0,
        "COMPLETE",
        {},
        {"accuracy": 0.5, "size_bytes": 10, "executor": "onnxruntime", "quiet": True},
        curve=[
            {"stage": "student", "epoch": 1, "loss": 2.5, "val_accuracy": float("nan")},
            {"stage": "student", "epoch": 2, "loss": float("inf"), "val_accuracy": 0.25},
        ],
        stages=[StageRecord("student", "key", 3.5, False, 0.0)],
    )
    assert points_of(result) == {
        ("accuracy", 0): 0.5,
        ("size_bytes", 0): 10.0,
        ("student/loss", 1): 2.5,
        ("student/val_accuracy", 2): 0.25,
        ("seconds/student", 0): 3.5,
    }


def test_a_trial_names_the_one_that_it_comes_from() -> None:
    proposals = [None, Proposal(0, {}, {}), Proposal(1, {}, {}, replicate_of=0), Proposal(2, {}, {}, continues=1)]
    assert [origin_of(proposal) for proposal in proposals] == [{}, {}, {"replicate_of": "t0000"}, {"continues": "t0001"}]
