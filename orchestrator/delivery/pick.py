"""Pick a model off the front: test it once, and put it in the registry."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.splits import open_test_split
from orchestrator.errors import NoFeasibleTrialError, UsageError, nearest_name
from orchestrator.measure.accuracy import classification
from orchestrator.measure.runtime import Runtime
from orchestrator.pareto.front import Front, costs_of, weighted_point
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import Recipe
from orchestrator.tracking.mlflow_tracker import MlflowTracker
from orchestrator.tracking.registry import Version, register
from orchestrator.training.process import Process
from orchestrator.trial.stages import StageStore
from orchestrator.trial.workshop import Workshop


@dataclass(frozen=True)
class Wish:
    """How to choose: exactly one of the fields is set."""

    knee: bool = False
    trial: str | None = None
    best: str | None = None
    weights: dict[str, float] | None = None


def choose(front: Front, wish: Wish) -> TrialResult:
    """The trial that a wish leads to.

    Raises:
        NoFeasibleTrialError: the front is empty.
        UsageError: the trial is not complete and feasible, or a metric is no objective.
    """
    if front.knee is None:
        raise NoFeasibleTrialError("no trial is complete and feasible: there is nothing to pick")
    if wish.trial is not None:
        found = {result.id: result for result in front.results}
        if wish.trial not in found:
            near = nearest_name(wish.trial, list(found))
            raise UsageError(f"--trial must name a complete, feasible trial; given {wish.trial!r}; nearest: {near}")
        return found[wish.trial]
    metrics = [objective.metric for objective in front.objectives]
    if wish.best is not None:
        if wish.best not in metrics:
            raise UsageError(f"--best must be one of the objectives {', '.join(metrics)}; given {wish.best!r}")
        costs = costs_of(front.points, front.objectives)
        return front.points[int(np.argmin(costs[:, metrics.index(wish.best)]))]
    if wish.weights is not None:
        return weighted_point(front, wish.weights, "--weights")
    return front.knee


def open_test_once(home: Home, sweep: Sweep, result: TrialResult) -> tuple[dict[str, Any], bool]:
    """What the test split says of a trial's file; from the record when it was opened before, which the flag tells."""
    before = sweep.test_record(result.number)
    if before is not None:
        return before, True
    folder = sweep.trial_folder(result.number)
    recipe = Recipe.model_validate(json.loads((folder / "recipe.json").read_text())["recipe"])
    examples = open_test_split(Workshop(StageStore(home.stages), Process()).split(recipe.data, "test"))
    runtime = Runtime(folder / "model.onnx", recipe.measurement.threads)
    quality = classification(runtime.logits(examples.images), examples.labels)
    record = {
        **quality,
        "trial": result.id,
        "num_test_samples": len(examples),
        "executor": f"{runtime.executor} {runtime.version}",
        "opened": time.time(),
        "opened_before_for": sweep.tested_trials(),
    }
    sweep.record_test(result.number, record)
    return record, False


def register_pick(
    home: Home, sweep: Sweep, job: Job, result: TrialResult, test: dict[str, Any], name: str, alias: str
) -> Version:
    """Register a picked trial with its objectives and where it comes from on the version's tags."""
    folder = sweep.trial_folder(result.number)
    tracker = MlflowTracker(job, home, sweep)
    tracker.open()
    tags = {
        "orchestrator.sweep": sweep.name,
        "orchestrator.trial": result.id,
        "orchestrator.identity": job.identity(),
        "orchestrator.test.accuracy": repr(test["accuracy"]),
        **{f"orchestrator.{o.metric}": repr(result.measurements[o.metric]) for o in job.objectives},
    }
    return register(
        home, job.tracking.uri, tracker.child(result.number), folder / "model.onnx", _shape(folder), name, alias, tags
    )


def _shape(folder: Path) -> tuple[int, int, int]:
    """The shape of one image, as the file declares it."""
    import onnx

    dims = onnx.load(str(folder / "model.onnx")).graph.input[0].type.tensor_type.shape.dim
    channels, height, width = (dim.dim_value for dim in dims[1:])
    return channels, height, width
