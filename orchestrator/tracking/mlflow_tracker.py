"""A sweep in MLflow: one parent run, one child run a trial with the same parameter keys on each.

A child is written from its facts when its trial ends, in one batch, and its run is ended last: a run that was never ended was
cut off, and is written again from its first point. MLflow keeps a point once, however often it is written with the same time,
and the times are the facts' own. So nothing is lost and nothing doubled, whenever this process was killed.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.pareto.front import Front, find_front, originals
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult, trial_id
from orchestrator.spec.job import Job
from orchestrator.spec.load import resolved_text
from orchestrator.spec.space import value_at
from orchestrator.tracking.connection import artifact_root, connect
from orchestrator.tracking.tracker import End

TAG = "orchestrator"
_STANDING = (f"{TAG}.pareto", f"{TAG}.rank", f"{TAG}.knee")


class MlflowTracker:
    """The Tracker port on an MLflow server or its embedded database."""

    def __init__(self, job: Job, home: Home, sweep: Sweep) -> None:
        self._job, self._home, self._sweep = job, home, sweep
        self._identity = job.identity()
        tree = job.recipe.model_dump()
        self._unasked = {path: value_at(tree, path) for path, _ in job.space.items()}
        self._children: dict[int, str] = {}
        self._whole: set[int] = set()
        self._standing: dict[int, dict[str, str]] = {}  # the tags of each child that say where it stands
        self._steps: set[int] = set()  # numbers of ended trials for which the parent has a front
        self._ended = False  # the parent

    def open(self) -> None:
        self._client = connect(self._home, self._job.tracking.uri)
        self._experiment = self._find_experiment()
        self._parent = self._find_parent()
        for run in self._runs(f"tags.`{TAG}.role` = 'trial'"):
            number, tags = int(run.data.tags[f"{TAG}.trial"][1:]), run.data.tags
            self._children[number] = str(run.info.run_id)
            self._standing[number] = {key: tags[key] for key in _STANDING if key in tags}
            if run.info.status != "RUNNING":
                self._whole.add(number)
        self._steps = {point.step for point in self._client.get_metric_history(self._parent, "front/size")}
        gc.freeze()  # what was imported stays: the collections that thousands of points cause need not look at it
        self.trials_ended(self._missing())

    def trials_ended(self, ends: Sequence[End]) -> None:
        from mlflow.entities import Metric

        if ends and self._ended:
            self._client.update_run(self._parent, status="RUNNING")
            self._ended = False
        points = []
        for result, front in ends:
            if result.number not in self._whole:
                self._write_child(result, front)
            step = sum(front.counts.values())
            if step not in self._steps:
                self._steps.add(step)
                shown = {"front/hypervolume": front.hypervolume, "front/size": float(len(front.points))}
                points += [Metric(key, value, _milliseconds(result.ended), step) for key, value in shown.items()]
        self._client.log_batch(self._parent, metrics=points)

    def close(self, front: Front, files: list[Path]) -> None:
        from mlflow.entities import RunTag

        for result in front.results:
            number, standing = result.number, _standing(front, result.number)
            if self._standing[number] != standing:
                self._client.log_batch(self._children[number], tags=[RunTag(*tag) for tag in standing.items()])
                self._standing[number] = standing
        for path in files:
            self._client.log_artifact(self._parent, str(path))
        self._client.set_terminated(self._parent, "FINISHED")
        self._ended = True

    def child(self, number: int) -> str:
        """The run of a trial."""
        return self._children[number]

    def _missing(self) -> list[End]:
        """Ends that are on disk and not, or not wholly, in MLflow, each with the front as it was after it."""
        ends = sorted(self._sweep.results(), key=lambda result: (result.ended, result.number))
        replicate_of, objectives = originals(self._sweep.proposals()), self._job.objectives
        return [
            (result, find_front(ends[:step], objectives, replicate_of))
            for step, result in enumerate(ends, 1)
            if result.number not in self._whole or step not in self._steps
        ]

    def _find_experiment(self) -> str:
        name = self._job.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        embedded = self._job.tracking.uri is None
        place = artifact_root(self._home, name) if embedded else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # or the UI opens its pages for language models
        return str(self._client.create_experiment(name, artifact_location=place, tags=kind))

    def _find_parent(self) -> str:
        """The sweep's run, made where there is none. What belongs on it is written each time: it may have been cut off."""
        from mlflow.entities import Param

        runs = self._runs(f"tags.`{TAG}.role` = 'sweep'")
        if not runs:
            tags = {f"{TAG}.sweep": self._sweep.name, f"{TAG}.identity": self._identity, f"{TAG}.role": "sweep"}
            runs = [self._client.create_run(self._experiment, run_name=self._sweep.name, tags=tags)]
        run_id = str(runs[0].info.run_id)
        self._ended = runs[0].info.status != "RUNNING"
        self._client.log_text(run_id, resolved_text(self._job), "job.yaml")
        directions = {o.metric: "maximize" if o.maximized else "minimize" for o in self._job.objectives}
        self._client.log_batch(run_id, params=[Param(f"objective.{metric}", way) for metric, way in directions.items()])
        return run_id

    def _runs(self, condition: str) -> list[Any]:
        """This sweep's runs; another sweep that had the same name before has another identity."""
        query = f"tags.`{TAG}.sweep` = '{self._sweep.name}' and tags.`{TAG}.identity` = '{self._identity}' and {condition}"
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment], query, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _write_child(self, result: TrialResult, front: Front) -> None:
        """Write a trial whole, into the run that an earlier attempt has left if there is one."""
        from mlflow.entities import Metric, Param

        number, end = result.number, _milliseconds(result.ended)
        if number not in self._children:
            self._standing[number] = _standing(front, number)
            name, start = f"{self._sweep.name}-{result.id}", _milliseconds(result.started)
            tags = {**self._tags(result), **self._standing[number]}
            run = self._client.create_run(self._experiment, start_time=start, run_name=name, tags=tags)
            self._children[number] = str(run.info.run_id)
        run_id = self._children[number]
        filled = {path: result.choice.get(path, value) for path, value in self._unasked.items()}
        # The client cuts this into as many calls as the limits ask for: 1000 points and 100 parameters each.
        self._client.log_batch(
            run_id,
            metrics=[Metric(key, value, end, step) for (key, step), value in points_of(result).items()],
            params=[Param(path, str(value)) for path, value in filled.items()],
        )
        self._client.set_terminated(run_id, "FAILED" if result.state == "FAILED" else "FINISHED", end_time=end)
        self._whole.add(number)

    def _tags(self, result: TrialResult) -> dict[str, str]:
        own: dict[str, str] = {
            "role": "trial",
            "sweep": self._sweep.name,
            "identity": self._identity,
            "trial": result.id,
            "state": result.state,
            "attempt": result.attempt,
            "feasible": str(result.feasible).lower(),
            "failure": (result.failure or {}).get("class", ""),
            **self._origin(result.number),
            **{key: str(result.measurements[key]) for key in ("executor", "device") if key in result.measurements},
        }
        return {"mlflow.parentRunId": self._parent, **{f"{TAG}.{key}": value for key, value in own.items()}}

    def _origin(self, number: int) -> dict[str, str]:
        """Of which trial this one is a replicate, a continuation or another form."""
        proposal = self._sweep.proposal(number)
        origins = ("continues", "replicate_of", "derived_from")
        found = {name: getattr(proposal, name, None) for name in origins}
        return {name: trial_id(origin) for name, origin in found.items() if origin is not None}


def points_of(result: TrialResult) -> dict[tuple[str, int], float]:
    """Every finite number of a trial by key and step; MLflow would store an infinity as a large number.

    Measurements and stages' seconds are at step 0, what was seen in an epoch is at that epoch, under `stage/name`.
    """
    found: dict[tuple[str, int], Any] = {(key, 0): value for key, value in result.measurements.items()}
    for point in result.curve:
        seen = {key: value for key, value in point.items() if key not in ("stage", "epoch")}
        found |= {(f"{point['stage']}/{key}", int(point["epoch"])): value for key, value in seen.items()}
    found |= {(f"seconds/{stage.name}", 0): stage.seconds for stage in result.stages}
    return {
        key: float(value)
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _standing(front: Front, number: int) -> dict[str, str]:
    """Tags that say where a trial stands; of one that is not feasible and complete, that it is not on the front."""
    rank = front.rank(number)
    if rank is None:
        return {f"{TAG}.pareto": "false"}
    knee = front.knee is not None and front.knee.number == number
    values = str(rank == 0).lower(), str(rank), str(knee).lower()
    return dict(zip(_STANDING, values, strict=True))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
