"""A sweep in MLflow: one parent run, one child run a trial with the same parameter keys on each.

A child is written from its facts when its trial ends, in one batch, and its run is ended last: a run that was never ended was
cut off, and is written again from its first point. MLflow keeps a point once, however often it is written with the same time,
and the times are the facts' own. So nothing is lost and nothing doubled, whenever this process was killed, and what is there
already is not written again: `orchestrator sync` makes the same pages out of an empty server.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.pareto.front import Front, find_front, originals
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.space import value_at
from orchestrator.tracking.connection import artifact_root, connect
from orchestrator.tracking.datasets import dataset_inputs
from orchestrator.tracking.load import MachineLoad
from orchestrator.tracking.models import Models
from orchestrator.tracking.projection import (
    STANDING,
    TAG,
    front_points,
    fronts_by_step,
    milliseconds,
    parameters_of,
    points_of,
    standing_of,
    tags_of,
)
from orchestrator.tracking.sweep_run import SweepRun, condition, contexts_of, find_runs
from orchestrator.tracking.tracker import End

Told = Callable[[int, int], object]
"""Is told how many of how many are done."""


class MlflowTracker:
    """The Tracker port on an MLflow server or its embedded database.

    Args:
        uri: of a server, instead of the job's.
    """

    def __init__(self, job: Job, home: Home, sweep: Sweep, uri: str | None = None) -> None:
        self._job, self._home, self._sweep = job, home, sweep
        self._uri = uri or job.tracking.uri
        self._identity = job.identity()
        tree = job.recipe.model_dump()
        self._unasked = {path: value_at(tree, path) for path, _ in job.space.items()}
        self._children: dict[int, str] = {}
        self._whole: set[int] = set()
        self._standing: dict[int, dict[str, str]] = {}  # the tags of each child that say where it stands
        self._contexts: dict[str, set[str]] = {}  # by run, the splits that are its inputs
        self._data: dict[str, Any] | None = None
        self._load: MachineLoad | None = None

    def open(self) -> None:
        self.connect()
        self.catch_up()
        self._load = MachineLoad()

    def connect(self) -> None:
        """Find what the server has of the sweep, and make its run where there is none.

        Raises:
            UnreachableError: the server does not answer.
        """
        self._client = connect(self._home, self._uri)
        self._experiment = self._find_experiment()
        self._parent = SweepRun(self._client, self._experiment, self._job, self._sweep)
        self._contexts[self._parent.id] = self._parent.contexts
        mine = condition(self._sweep, self._identity)
        for run in find_runs(self._client, self._experiment, mine, "trial"):
            number, tags = int(run.data.tags[f"{TAG}.trial"][1:]), run.data.tags
            self._children[number] = str(run.info.run_id)
            self._standing[number] = {key: tags[key] for key in STANDING if key in tags}
            self._contexts[run.info.run_id] = contexts_of(run)
            if run.info.status != "RUNNING":
                self._whole.add(number)
        self.models = Models(self._client, self._experiment, mine)
        gc.freeze()  # what was imported stays: the collections that thousands of points cause need not look at it

    def catch_up(self, told: Told | None = None) -> int:
        """Show what the facts have and the server has not; returns how many trials that were."""
        ends = sorted(self._sweep.results(), key=lambda result: (result.ended, result.number))
        late = [result for result in ends if result.number not in self._whole]
        replicate_of, objectives = originals(self._sweep.proposals()), self._job.objectives
        if late:
            self._go_on()
            front = find_front(ends, objectives, replicate_of)
            for done, result in enumerate(late, 1):
                self._write_child(result, front)
                if told is not None:
                    told(done, len(late))
        if self._parent.lacks(len(ends)):
            fronts = fronts_by_step(ends, objectives, replicate_of)
            self._parent.write_fronts((step, end, shown) for step, (end, shown) in enumerate(zip(ends, fronts, strict=True), 1))
        for trial in self._sweep.tested_trials():
            self._show_data(self._children[int(trial[1:])], "test")
        return len(late)

    def trials_ended(self, ends: Sequence[End]) -> None:
        if ends:
            self._go_on()
        for result, front in ends:
            if result.number not in self._whole:
                self._write_child(result, front)
        self._parent.write_fronts((sum(front.counts.values()), result, front_points(front)) for result, front in ends)

    def tick(self) -> None:
        shown = self._load.sample() if self._load else {}
        if shown:
            self._parent.write_load(shown)

    def close(self, front: Front, files: list[Path]) -> None:
        self.show_standing(front)
        self._parent.attach({path.name: path.read_bytes() for path in files})
        self.show_models(front)
        self._parent.end()

    def show_standing(self, front: Front) -> int:
        """Have every trial's run say where it stands; returns on how many that changed."""
        from mlflow.entities import RunTag

        now = {result.number: standing_of(front, result.number) for result in front.results}
        changed = [number for number, standing in now.items() if self._standing[number] != standing]
        for number in changed:
            self._client.log_batch(self._children[number], tags=[RunTag(*tag) for tag in now[number].items()])
            self._standing[number] = now[number]
        return len(changed)

    def show_models(self, front: Front, told: Told | None = None) -> int:
        """Make the front's files models in MLflow, as far as they are on this machine; returns how many those were."""
        metrics = {*(o.metric for o in self._job.objectives), *self._job.constraints}
        files = {point.number: self._sweep.trial_folder(point.number) / "model.onnx" for point in front.points}
        late = self.models.missing([point for point in front.points if files[point.number].is_file()])
        for done, point in enumerate(late, 1):
            standing = standing_of(front, point.number)
            self.models.log(self._children[point.number], files[point.number], standing, metrics)
            if told is not None:
                told(done, len(late))
        self.models.show_standing(front)
        return len(late)

    def add(self, number: int, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Put more figures and files on an ended trial's run. Their time is the trial's end: those put twice are one point."""
        from mlflow.entities import Metric

        result = self._sweep.result(number)
        assert result is not None, "only an ended trial has a run"
        run_id, end = self.child(number), milliseconds(result.ended)
        self._client.log_batch(run_id, metrics=[Metric(key, value, end, 0) for key, value in metrics.items()])
        for path in files:
            self._client.log_artifact(run_id, str(path))

    def child(self, number: int) -> str:
        """The run of a trial."""
        return self._children[number]

    def _go_on(self) -> None:
        """Before something is written of a trial."""
        self._parent.go_on()
        self._show_data(self._parent.id, "train", "val")

    def _show_data(self, run_id: str, *contexts: str) -> None:
        """Make splits inputs of a run, unless they are."""
        shown = self._contexts.setdefault(run_id, set())
        missing = [context for context in contexts if context not in shown]
        if not missing:
            return
        if self._data is None:
            self._data = dataset_inputs(self._home, self._sweep, self._job.recipe.data)
        self._client.log_inputs(run_id, [self._data[context] for context in missing])
        shown.update(missing)

    def _find_experiment(self) -> str:
        name = self._job.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        place = artifact_root(self._home, self._uri, name)
        kind = {"mlflow.experimentKind": "custom_model_development"}  # or the UI opens its pages for language models
        return str(self._client.create_experiment(name, artifact_location=place, tags=kind))

    def _write_child(self, result: TrialResult, front: Front) -> None:
        """Write a trial whole, into the run that an earlier attempt has left if there is one."""
        from mlflow.entities import Metric, Param

        number, end = result.number, milliseconds(result.ended)
        if number not in self._children:
            self._standing[number] = standing_of(front, number)
            name, start = f"{self._sweep.name}-{result.id}", milliseconds(result.started)
            mine = {"sweep": self._sweep.name, "identity": self._identity}
            tags = {
                "mlflow.parentRunId": self._parent.id,
                **{f"{TAG}.{key}": value for key, value in mine.items()},
                **tags_of(result, self._sweep.proposal(number)),
                **self._standing[number],
            }
            run = self._client.create_run(self._experiment, start_time=start, run_name=name, tags=tags)
            self._children[number] = str(run.info.run_id)
        run_id = self._children[number]
        # The client cuts this into as many calls as the limits ask for: 1000 points and 100 parameters each.
        self._client.log_batch(
            run_id,
            metrics=[Metric(key, value, end, step) for (key, step), value in points_of(result).items()],
            params=[Param(*param) for param in parameters_of(result, self._unasked).items()],
        )
        self._show_data(run_id, "train", "val")
        self._client.set_terminated(run_id, "FAILED" if result.state == "FAILED" else "FINISHED", end_time=end)
        self._whole.add(number)
