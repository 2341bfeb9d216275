"""Pick a model off the front: test it once, and put it in the registry."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.splits import open_test_split
from orchestrator.delivery.card import Subject, lineage, model_card, subject_of, working_commit
from orchestrator.delivery.export import measured_file
from orchestrator.delivery.revisit import recipe_of
from orchestrator.delivery.standing import is_held
from orchestrator.errors import NoFeasibleTrialError, UsageError, nearest_name
from orchestrator.measure.accuracy import classification
from orchestrator.measure.runtime import Runtime
from orchestrator.pareto.front import Front, costs_of, weighted_point
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job
from orchestrator.tracking.mlflow_tracker import MlflowTracker
from orchestrator.tracking.registry import Version, describe, holder, register
from orchestrator.training.process import Process
from orchestrator.trial.stages import StageStore
from orchestrator.trial.workshop import Workshop


@dataclass(frozen=True)
class Wish:
    """How to choose: exactly one of the first four fields is set.

    Args:
        where: the condition that the trials to choose from satisfy.
    """

    knee: bool = False
    trial: str | None = None
    best: str | None = None
    weights: dict[str, float] | None = None
    where: str | None = None

    def phrase(self) -> str:
        """What led to the choice, for the card."""
        if self.trial is not None:
            how = "it was named by hand"
        elif self.best is not None:
            how = f"the best of the front by {self.best}"
        elif self.weights is not None:
            how = f"the point that the weights {', '.join(f'{m}={w:g}' for m, w in self.weights.items())} lead to"
        else:
            how = "the knee: the point of the front furthest below the plane through its extremes"
        return how if self.where is None else f"{how}, among the trials with {self.where}"


@dataclass(frozen=True)
class Holder:
    """The version of a registered model that an alias points at, and its tags."""

    version: Version
    tags: Mapping[str, str]

    def is_of(self, sweep: Sweep, job: Job, result: TrialResult) -> bool:
        """Whether it is this very trial: facts do not change, so neither has its file."""
        wanted = {"sweep": sweep.name, "identity": job.identity(), "trial": result.id}
        return all(self.tags.get(f"orchestrator.{name}") == value for name, value in wanted.items())

    def number(self, name: str) -> float | None:
        """A number on a tag, or None where there is none."""
        try:
            value = float(self.tags[f"orchestrator.{name}"])
        except (KeyError, ValueError):
            return None
        return value if math.isfinite(value) else None


def holder_of(home: Home, job: Job, name: str, alias: str) -> Holder | None:
    """Who holds an alias now; None where nobody does."""
    found = holder(home, job.tracking.uri, name, alias)
    return None if found is None else Holder(*found)


def before_and_after(
    held: Holder, job: Job, result: TrialResult, test: Mapping[str, Any]
) -> dict[str, tuple[float | None, float]]:
    """What the holder of an alias was measured at, and what would replace it: objectives, then the accuracy of the test."""
    pairs: dict[str, tuple[float | None, float]] = {
        o.metric: (held.number(o.metric), float(result.measurements[o.metric])) for o in job.objectives
    }
    return pairs | {"test accuracy": (held.number("test.accuracy"), float(test["accuracy"]))}


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
            near = nearest_name(wish.best, metrics)
            hint = f"; did you mean {near!r}?" if near else ""
            raise UsageError(f"--best must be one of the objectives {', '.join(metrics)}; given {wish.best!r}{hint}")
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
    file = measured_file(sweep, result)
    recipe = recipe_of(file.parent)
    examples = open_test_split(Workshop(StageStore(home.stages), Process()).split(recipe.data, "test"))
    runtime = Runtime(file, recipe.measurement.threads)
    quality = classification(runtime.logits(examples.images), examples.labels)
    record = {
        **quality,
        "trial": result.id,
        "num_test_samples": len(examples),
        "executor": f"{runtime.executor} {runtime.version}",
        "opened": time.time(),
        "opened_before_for": sweep.tested_trials(),
    }
    if not sweep.record_test(result.number, record):  # somebody else picked it meanwhile
        return sweep.test_record(result.number) or record, True
    return record, False


def register_pick(
    home: Home, sweep: Sweep, job: Job, front: Front, result: TrialResult, name: str, alias: str, how: str
) -> Version:
    """Register a picked trial: its objectives, its test and where it comes from on the version's tags, and a model card.

    Args:
        front: of the whole sweep.
        how: it was chosen, as a phrase.
    """
    subject = subject_of(sweep, job, front, result)
    origin = lineage(subject, _data_digest(home, subject), working_commit())
    tracker = MlflowTracker(job, home, sweep)
    tracker.connect()
    if tracker.catch_up() and not is_held(sweep.lock_file):
        tracker.close(front, [])
    file, uri = sweep.trial_folder(result.number) / "model.onnx", job.tracking.uri
    run, tags = tracker.child(result.number), {f"orchestrator.{key}": value for key, value in tags_of(subject, origin).items()}
    version = register(home, uri, run, file, name, alias, tags)
    with tempfile.TemporaryDirectory() as scratch:
        card = Path(scratch) / "card.md"
        card.write_text(model_card(f"{name}, version {version.version}", subject, how, origin), encoding="utf-8")
        describe(home, uri, version, card)
    return version


def tags_of(subject: Subject, origin: Mapping[str, str]) -> dict[str, str]:
    """What a registered version is tagged with, without the prefix: by these it is compared with whatever comes next."""
    measured = subject.result.measurements
    test = {"test.accuracy": repr(subject.test["accuracy"])} if subject.test else {}
    return {
        **origin,
        **{key: str(measured[key]) for key in ("executor", "device") if key in measured},
        **test,
        "test.opened": str(len(subject.opened)),
        **{objective.metric: repr(measured[objective.metric]) for objective in subject.job.objectives},
    }


def _data_digest(home: Home, subject: Subject) -> str:
    """The digest of the training split, as it was decoded or listed."""
    folder = Workshop(StageStore(home.stages), Process()).split(subject.recipe.data, "train")
    return str(json.loads((folder / "meta.json").read_text())["digest"])
