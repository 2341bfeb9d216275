"""A sweep in MLflow: one parent run, one child run a trial with the same parameter keys on each.

A child is written from its facts when its trial ends, whole; what is there already is found by its tags and not written again.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from orchestrator.pareto.front import Front
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult, trial_id
from orchestrator.spec.job import Job
from orchestrator.spec.load import resolved_text
from orchestrator.spec.space import value_at
from orchestrator.tracking.connection import artifact_root, connect

TAG = "orchestrator"
_BATCH = 900


class MlflowTracker:
    """The Tracker port on an MLflow server or its embedded database."""

    def __init__(self, job: Job, home: Home, sweep: Sweep) -> None:
        self._job, self._home, self._sweep = job, home, sweep
        self._children: dict[int, str] = {}

    def open(self) -> None:
        self._client = connect(self._home, self._job.tracking.uri)
        self._experiment = self._find_experiment()
        self._parent = self._find_parent()
        for run in self._runs(f"tags.`{TAG}.role` = 'trial'"):
            self._children[int(run.data.tags[f"{TAG}.trial"][1:])] = run.info.run_id
        for result in self._sweep.results():
            self._write_child(result)

    def trial_ended(self, result: TrialResult, front: Front) -> None:
        from mlflow.entities import Metric

        self._write_child(result)
        now, step = int(time.time() * 1000), sum(front.counts.values())
        shown = {"front/hypervolume": front.hypervolume, "front/size": float(len(front.points))}
        self._client.log_batch(self._parent, metrics=[Metric(key, value, now, step) for key, value in shown.items()])

    def close(self, front: Front, files: list[Path]) -> None:
        from mlflow.entities import RunTag

        for result in front.results:
            rank = front.rank(result.number)
            knee = front.knee is not None and front.knee.number == result.number
            tags = {"pareto": str(rank == 0).lower(), "rank": str(rank), "knee": str(knee).lower()}
            self._client.log_batch(
                self._children[result.number], tags=[RunTag(f"{TAG}.{key}", value) for key, value in tags.items()]
            )
        for path in files:
            self._client.log_artifact(self._parent, str(path))
        self._client.set_terminated(self._parent, "FINISHED")

    def child(self, number: int) -> str:
        """The run of a trial."""
        return self._children[number]

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
        runs = self._runs(f"tags.`{TAG}.role` = 'sweep'")
        if runs:
            run_id = str(runs[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {f"{TAG}.sweep": self._sweep.name, f"{TAG}.identity": self._job.identity(), f"{TAG}.role": "sweep"}
        run = self._client.create_run(self._experiment, run_name=self._sweep.name, tags=tags)
        self._client.log_text(run.info.run_id, resolved_text(self._job), "job.yaml")
        for objective in self._job.objectives:
            direction = "maximize" if objective.maximized else "minimize"
            self._client.log_param(run.info.run_id, f"objective.{objective.metric}", direction)
        return str(run.info.run_id)

    def _runs(self, condition: str) -> list[Any]:
        """This sweep's runs; another sweep that had the same name before has another identity."""
        identity = self._job.identity()
        query = f"tags.`{TAG}.sweep` = '{self._sweep.name}' and tags.`{TAG}.identity` = '{identity}' and {condition}"
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment], query, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _write_child(self, result: TrialResult) -> None:
        from mlflow.entities import Metric, Param, RunTag

        if result.number in self._children:
            return
        start, end = int(result.started * 1000), int(result.ended * 1000)
        tags = {
            "mlflow.parentRunId": self._parent,
            f"{TAG}.role": "trial",
            f"{TAG}.sweep": self._sweep.name,
            f"{TAG}.identity": self._job.identity(),
            f"{TAG}.trial": result.id,
            f"{TAG}.state": result.state,
            f"{TAG}.feasible": str(result.feasible).lower(),
            f"{TAG}.pareto": "false",
            f"{TAG}.failure": (result.failure or {}).get("class", ""),
            **self._origin(result.number),
            **{f"{TAG}.{key}": str(result.measurements[key]) for key in ("executor", "device") if key in result.measurements},
        }
        run = self._client.create_run(self._experiment, start_time=start, run_name=f"{self._sweep.name}-{result.id}", tags=tags)
        run_id = str(run.info.run_id)
        metrics = [Metric(key, float(value), end, 0) for key, value in _numbers(result.measurements)]
        for point in result.curve:
            values = {key: value for key, value in point.items() if key not in ("stage", "epoch")}
            metrics += [Metric(f"{point['stage']}/{key}", float(v), end, point["epoch"]) for key, v in _numbers(values)]
        metrics += [Metric(f"seconds/{stage.name}", stage.seconds, end, 0) for stage in result.stages]
        params = [Param(path, str(value)) for path, value in self._filled(result).items()]
        self._client.log_batch(run_id, metrics=metrics[:_BATCH], params=params, tags=[RunTag(f"{TAG}.attempt", result.attempt)])
        for first in range(_BATCH, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[first : first + _BATCH])
        self._client.set_terminated(run_id, "FAILED" if result.state == "FAILED" else "FINISHED", end_time=end)
        self._children[result.number] = run_id

    def _origin(self, number: int) -> dict[str, str]:
        """Of which trial this one is a replicate, a continuation or another form."""
        proposal = self._sweep.proposal(number)
        origins = ("continues", "replicate_of", "derived_from")
        found = {name: getattr(proposal, name, None) for name in origins}
        return {f"{TAG}.{name}": trial_id(origin) for name, origin in found.items() if origin is not None}

    def _filled(self, result: TrialResult) -> dict[str, Any]:
        """Every hole of the space: as chosen, or as the recipe has it where it was not asked."""
        tree = self._job.recipe.model_dump()
        return {path: result.choice.get(path, value_at(tree, path)) for path, _ in self._job.space.items()}


def _numbers(values: dict[str, Any]) -> list[tuple[str, float]]:
    """The finite numbers among some values; MLflow would store an infinity as a large number."""
    return [
        (key, float(value))
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]
