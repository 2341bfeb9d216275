"""`plan`, `run` and `resume` on sweeps whose trials have all ended: no Ray is started, only facts are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, StageRecord, TrialResult
from orchestrator.spec.load import load_job, read_resolved, resolved_text
from tests.conftest import REPOSITORY, orchestrator

JOB = "jobs/quickstart.yaml"
MEASURED = [(0.95, 300_000, 0.5), (0.9, 60_000, 0.2), (0.85, 100_000, 0.3)]  # the last is dominated


def made(home: Path, name: str, *, trials: int = 3, ended: int = 3) -> Sweep:
    """A sweep of the quickstart, as a run would have left it: a teacher of 20 s, and 10 s a trial besides."""
    job = load_job(REPOSITORY / JOB, [f"name={name}", f"budget.trials={trials}"])
    sweep = Home(home).sweep(name)
    sweep.create(resolved_text(job))
    for number in range(trials):
        choice = {**(job.space.baseline(job.recipe) or {}), "pruning.ratio": 0.125 * number}
        sweep.propose(Proposal(number, choice, job.recipe.model_dump(mode="json")))
    for number, (accuracy, size, latency) in enumerate(MEASURED[:ended]):
        stages = [
            StageRecord("teacher", "T", 0.5 if number else 20.0, bool(number), 0.0),
            StageRecord("student", "", 9, False, 0),
        ]
        measured = {"accuracy": accuracy, "size_bytes": size, "latency_ms": latency}
        choice, seconds = sweep.proposals()[number].choice, 10.5 if number else 30.0
        sweep.finish(TrialResult(number, "COMPLETE", choice, measured, stages=stages, started=100.0, ended=100.0 + seconds))
    return sweep


def content(sweep: Sweep) -> dict[str, bytes]:
    return {str(path.relative_to(sweep.path)): path.read_bytes() for path in sweep.path.rglob("*") if path.suffix == ".json"}


def test_resume_shows_a_finished_sweep_and_what_it_bought(tmp_path: Path) -> None:
    before = content(made(tmp_path, "done"))
    told = orchestrator("resume", "done", "-o", "json", home=tmp_path)
    assert told.returncode == 0, told.stderr
    shown = json.loads(told.stdout)
    assert [point["trial"] for point in shown["points"]] == ["t0000", "t0001"]
    bought = shown["bought"]
    # As costs, against accuracy 0.8, 400 kB and 1 ms.
    baseline, second = 0.15 * 100_000 * 0.5, 0.1 * 340_000 * 0.8
    assert bought["baseline_hypervolume"] == pytest.approx(baseline)
    assert bought["hypervolume"] == pytest.approx(baseline + second - 0.1 * 100_000 * 0.5)
    assert bought["device_hours"] == pytest.approx(51 / 3600)
    assert bought["seconds_served"] == pytest.approx(2 * 19.5)
    assert "sweep 'done' has finished already (3 trials are proposed; budget.trials is 3)" in told.stderr
    assert "sweep done: 2 of 3 stages came from the store: about 39 s saved" in told.stderr
    assert content(Home(tmp_path).sweep("done")) == before
    again = orchestrator("run", JOB, "--name", "done", "--trials", "3", "-o", "json", home=tmp_path)
    assert json.loads(again.stdout) == shown


def test_resume_refuses_to_change_anything_but_the_budget(tmp_path: Path) -> None:
    sweep = made(tmp_path, "done")
    text = sweep.job_file.read_text()
    told = orchestrator("resume", "done", "--trials", "9", "--set", "recipe.training.epochs=9", home=tmp_path)
    assert told.returncode == 2
    assert "recipe.training.epochs: 5 -> 9" in told.stderr
    assert sweep.job_file.read_text() == text


def test_a_sweep_at_its_limit_ends_with_5_and_says_what_to_raise(tmp_path: Path) -> None:
    sweep = made(tmp_path, "cut", trials=3, ended=2)
    told = orchestrator("resume", "cut", "--set", "budget.device_hours=0.01", "-o", "json", home=tmp_path)
    assert told.returncode == 5, told.stderr
    assert "0.0112 device-hours are spent; budget.device_hours is 0.01" in told.stderr
    assert "orchestrator resume cut --set budget.device_hours=" in told.stderr
    assert len(json.loads(told.stdout)["points"]) == 2
    assert read_resolved(sweep.job_file).budget.device_hours == 0.01
    assert len(sweep.results()) == 2


def test_a_broken_fact_does_not_make_a_sweep_unreadable(tmp_path: Path) -> None:
    sweep = made(tmp_path, "cut")
    (sweep.trial_folder(2) / "result.json").write_bytes(b"")
    shown = orchestrator("front", "cut", "-o", "json", home=tmp_path)
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["trials"]["complete"] == 2


def test_plan_tells_what_an_earlier_sweep_cost_and_where_it_has_that_from(tmp_path: Path) -> None:
    made(tmp_path, "few", trials=2, ended=2)
    made(tmp_path, "done")
    one = ["--set", "resources.gangs=1", "-o", "json"]
    plan = json.loads(orchestrator("plan", JOB, *one, home=tmp_path).stdout)
    assert plan["estimate"] == {
        "rests_on": "3 trials of sweep done, wherever they ran",
        "seconds_once": 20.0,
        "seconds_per_trial": 10.0,
        "hours": pytest.approx((20 + 24 * 10) / 3600),
        "device_hours": pytest.approx((20 + 24 * 10) / 3600),
    }
    other = orchestrator("plan", JOB, "--set", "recipe.training.epochs=9", home=tmp_path).stdout
    assert "cost: not known" in other
    assert "--probe" in other


def test_a_warm_start_puts_another_front_first_and_keeps_it(tmp_path: Path) -> None:
    """The sweep is there already, so that nothing has to run: what was put first when it began stays."""
    made(tmp_path, "source")
    seeds = [{"pruning.ratio": 0.5}]
    job = load_job(REPOSITORY / JOB, ["name=next", "budget.trials=1"])
    job = job.model_copy(update={"search": job.search.model_copy(update={"seeds": seeds})})
    sweep = Home(tmp_path).sweep("next")
    sweep.create(resolved_text(job))
    sweep.propose(Proposal(0, {}, {}))
    sweep.finish(TrialResult(0, "COMPLETE", {}, {"accuracy": 0.9, "size_bytes": 9.0, "latency_ms": 0.1}))
    told = orchestrator("run", JOB, "--name", "next", "--trials", "1", "--warm-start", "source", home=tmp_path)
    assert told.returncode == 0, told.stderr
    assert read_resolved(sweep.job_file).search.seeds == seeds


def test_a_warm_start_takes_the_points_of_the_front(tmp_path: Path) -> None:
    from orchestrator.cli.run import _seeded

    source = made(tmp_path, "source")
    job = load_job(REPOSITORY / JOB, ["search.seeds=[{pruning.ratio: 0.5}]"])
    found = _seeded(job, Home(tmp_path).sweep("next"), "source", str(tmp_path)).search.seeds
    assert found == [{"pruning.ratio": 0.5}, source.proposals()[0].choice, source.proposals()[1].choice]
    nobody = orchestrator("run", JOB, "--name", "next", "--warm-start", "sorce", home=tmp_path)
    assert nobody.returncode == 2
    assert "did you mean 'source'" in nobody.stderr
