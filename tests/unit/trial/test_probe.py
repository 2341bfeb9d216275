"""What a recipe costs, from one epoch a phase."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import TrialError
from orchestrator.measure import latency
from orchestrator.measure.quiet import Quiet
from orchestrator.results.trial_result import StageRecord, TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import Recipe
from orchestrator.trial import probe
from tests.unit.trial.conftest import recipe_tree


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    quiet = Quiet(tmp_path / "quiet")  # the machine's own would wait for whatever else runs here
    monkeypatch.setattr(probe, "machine_quiet", lambda: quiet)
    monkeypatch.setattr(latency, "_LEAST_S", 0.0)
    monkeypatch.setattr(latency, "_WARM_UP_S", 0.0)
    space = {"pruning.ratio": {"float": [0.0, 0.5]}}
    objectives = [{"metric": "accuracy"}, {"metric": "size_bytes"}]
    yield Job.model_validate({"name": "a", "recipe": {}, "space": space, "objectives": objectives})
    quiet._turnstile.close()  # it has no close of its own, and an open file is a warning
    quiet._room.close()


def recipe(**changed: dict) -> Recipe:
    return Recipe.model_validate(recipe_tree(changed))


def test_phases_are_multiplied_and_the_teacher_is_apart() -> None:
    asked = recipe(
        training={"epochs": 10}, teacher={"training": {"epochs": 20}}, pruning={"epochs": 0}, quantization={"epochs": 3}
    )
    names = [("preflight", 1.0), ("teacher", 2.0), ("student", 4.0), ("pruned", 0.5), ("quantized", 0.25), ("measure", 1.0)]
    stages = [StageRecord(name, "", seconds, False, 0.0) for name, seconds in names]
    result = TrialResult(0, "COMPLETE", {}, stages=stages, started=0.0, ended=9.0)  # 0.25 s outside of any stage
    assert probe._at_length(result, asked) == (40.0, pytest.approx(1.0 + 40.0 + 0.5 + 0.75 + 1.0 + 0.25))


def test_a_short_recipe_has_an_epoch_where_there_were_any() -> None:
    asked = recipe(training={"epochs": 10}, pruning={"epochs": 0, "steps": 4, "ratio": 0.5}, quantization={"epochs": 1})
    short = probe._short(asked)
    assert (short.training.epochs, short.pruning.epochs, short.quantization.epochs) == (1, 0, 1)
    assert short.pruning.steps == 4
    assert short.model == asked.model


def test_a_real_recipe_is_timed(job: Job) -> None:
    once, each = probe.probe(job, [recipe(training={"epochs": 400})])
    assert once == 0.0, "nothing is distilled"
    assert each > 0.0


def test_recipes_that_cannot_run_are_not_timed(job: Job) -> None:
    unbuildable = recipe(quantization={"method": "ptq", "norm_reestimation": True, "num_calibration": 1})
    with pytest.raises(TrialError, match="two images or more"):
        probe.probe(job, [unbuildable])
