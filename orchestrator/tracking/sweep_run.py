"""The run of a sweep as a whole: its job and space, its data, its front by trial, the load of the machine, and its files."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from orchestrator.results.store import Sweep
from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.load import resolved_text
from orchestrator.tracking.datasets import CONTEXT
from orchestrator.tracking.projection import TAG, milliseconds

_HASH = f"{TAG}.sha256."
_LOAD = "system/cpu_utilization_percentage"


def condition(sweep: Sweep, identity: str) -> str:
    """What a sweep's runs and models satisfy; another sweep that had the same name before has another identity."""
    return f"tags.`{TAG}.sweep` = '{sweep.name}' AND tags.`{TAG}.identity` = '{identity}'"


def find_runs(client: Any, experiment: str, mine: str, role: str) -> list[Any]:
    """A sweep's runs in one role: `sweep` or `trial`."""
    runs: list[Any] = []
    token = None
    while True:
        query = f"{mine} AND tags.`{TAG}.role` = '{role}'"
        page = client.search_runs([experiment], query, max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def contexts_of(run: Any) -> set[str]:
    """The splits that are inputs of a run."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return {tag.value for each in inputs for tag in each.tags if tag.key == CONTEXT}


class SweepRun:
    """A sweep's own run, made where there is none.

    What belongs on it is written where it is missing: it may have been cut off. A file is written when its hash is not the
    one on the run's tags.
    """

    def __init__(self, client: Any, experiment: str, job: Job, sweep: Sweep) -> None:
        self._client = client
        identity = job.identity()
        runs = find_runs(client, experiment, condition(sweep, identity), "sweep")
        if not runs:
            first = sweep.result(0)
            start = milliseconds(first.started) if first and first.started else None
            tags = {f"{TAG}.sweep": sweep.name, f"{TAG}.identity": identity, f"{TAG}.role": "sweep"}
            runs = [client.create_run(experiment, start_time=start, run_name=sweep.name, tags=tags)]
        run = runs[0]
        self.id = str(run.info.run_id)
        self.contexts = contexts_of(run)
        self._ended = run.info.status != "RUNNING"
        self._last: float | None = None  # when the last trial ended
        self._steps = {point.step for point in client.get_metric_history(self.id, "front/size")}
        self._num_samples: int | None = None  # of the machine's load
        present = {file.path for file in client.list_artifacts(self.id)}
        hashes = {key.removeprefix(_HASH): value for key, value in run.data.tags.items() if key.startswith(_HASH)}
        self._hashes = {name: value for name, value in hashes.items() if name in present}
        self._describe(job, set(run.data.params))

    def _describe(self, job: Job, params: set[str]) -> None:
        from mlflow.entities import Param

        space = yaml.safe_dump(job.tree()["space"], sort_keys=False, allow_unicode=True)
        self.attach({"job.yaml": resolved_text(job).encode(), "space.yaml": space.encode()})
        ways = {f"objective.{o.metric}": "maximize" if o.maximized else "minimize" for o in job.objectives}
        self._client.log_batch(self.id, params=[Param(key, way) for key, way in ways.items() if key not in params])

    def go_on(self) -> None:
        """Say that the sweep is under way, after it had ended."""
        if self._ended:
            self._client.update_run(self.id, status="RUNNING")
            self._ended = False

    def end(self) -> None:
        """Say that the sweep has ended, when its last trial did."""
        if not self._ended:
            last = None if self._last is None else milliseconds(self._last)
            self._client.set_terminated(self.id, "FINISHED", end_time=last)
            self._ended = True

    def lacks(self, num_ends: int) -> bool:
        """Whether there is a number of trials, up to this one, after which it is not told how the front stood."""
        return not self._steps.issuperset(range(1, num_ends + 1))

    def write_fronts(self, fronts: Iterable[tuple[int, TrialResult, Mapping[str, float]]]) -> None:
        """Show how the front stood: after how many ends, after which, and what there is to show of it."""
        from mlflow.entities import Metric

        points = []
        for step, end, shown in fronts:
            self._last = max(end.ended, self._last or 0.0)
            if step not in self._steps:
                self._steps.add(step)
                points += [Metric(key, value, milliseconds(end.ended), step) for key, value in shown.items()]
        self._client.log_batch(self.id, metrics=points)

    def write_load(self, shown: Mapping[str, float]) -> None:
        """Show how busy the machine is. Of the moment: it is no fact, and is not there again when the server is lost."""
        from mlflow.entities import Metric

        if self._num_samples is None:
            before = self._client.get_metric_history(self.id, _LOAD)
            self._num_samples = max((point.step + 1 for point in before), default=0)
        now = milliseconds(time.time())
        self._client.log_batch(self.id, metrics=[Metric(key, value, now, self._num_samples) for key, value in shown.items()])
        self._num_samples += 1

    def attach(self, files: Mapping[str, bytes]) -> int:
        """Write artefacts that are not there as they are; returns how many those were."""
        from mlflow.entities import RunTag

        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        changed = [name for name, found in hashes.items() if self._hashes.get(name) != found]
        with tempfile.TemporaryDirectory() as folder:
            for name in changed:
                path = Path(folder) / name
                path.write_bytes(files[name])
                self._client.log_artifact(self.id, str(path))
        self._client.log_batch(self.id, tags=[RunTag(f"{_HASH}{name}", hashes[name]) for name in changed])
        self._hashes |= {name: hashes[name] for name in changed}
        return len(changed)
