"""The exhaustive table as simulations read it: every point of job.yaml's space, what it measured and what it cost.

Needs numpy, pyarrow, and the packages of the project without torch: peers read it in environments of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.pareto.dominance import FloatArray
from orchestrator.pareto.hypervolume import hypervolume, hypervolume_history
from orchestrator.results.trial_result import State
from orchestrator.search.points import grid, point_key
from orchestrator.spec.job import Job
from orchestrator.spec.load import load_job
from orchestrator.spec.space import Choice, Value, with_value

HERE = Path(__file__).parent
STAGES = ("teacher", "student", "pruned", "quantized")  # in order; each makes a network, and is shared
METHODS = ("none", "ptq", "qat")
KNOWN = ("size_bytes", "macs", "num_parameters", "latency_ms")  # of a network before it is trained
EPOCHS = "quantization.epochs"  # of the last phase, where it trains


def table_job() -> Job:
    """The job whose space the table covers."""
    return load_job(HERE / "job.yaml")


def all_points(job: Job) -> list[Choice]:
    """Every point of the space, conditions respected, in the order of the file's domains."""
    return list(grid(job.space, job.recipe, 2))


def structure_of(choice: Mapping[str, Value]) -> str:
    """What decides a network's size, MACs and latency, whatever its weights."""
    return f"ratio {choice['pruning.ratio']}, {choice.get('quantization.weight_bits', 32)} bits"


@dataclass(frozen=True)
class Stage:
    """A stage that makes a network.

    Args:
        key: equal for trials that share it.
        seconds: that it took whoever computed it, alone on a core.
        accuracies: on the validation split after each of its epochs; empty where nothing is trained.
        ends: when each epoch had been judged, in seconds from the stage's start.
    """

    name: str
    key: str
    seconds: float
    accuracies: tuple[float, ...]
    ends: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """One recipe: how it ended, what was measured (latency as the median of its structure), what it cost.

    Args:
        known: what was measured of its network before it was trained. A point that failed has that of its structure.
        before, after: seconds of preflight, and of export and measuring: nobody shares them.
    """

    choice: Choice
    state: State
    measurements: dict[str, float]
    known: dict[str, float]
    stages: tuple[Stage, ...]
    before: float
    after: float

    @property
    def last(self) -> Stage:
        """The last phase that trains the trial's own network: the one that a stopping rule looks at."""
        return [stage for stage in self.stages if stage.accuracies and stage.name != "teacher"][-1]

    @property
    def seconds(self) -> float:
        """What the trial takes alone, with nothing shared."""
        return self.before + sum(stage.seconds for stage in self.stages) + self.after


class Table:
    """All points, and the truth about them.

    Args:
        job: space and objectives, each with a reference.
        points: one for every point of the space.
    """

    def __init__(self, job: Job, points: Sequence[Point]) -> None:
        self.job = job
        self.points = {point_key(point.choice, job.space): point for point in points}
        self.reference: FloatArray = np.array([o.cost(o.reference) for o in job.objectives if o.reference is not None])
        complete = [self.costs(point) for point in points if point.state == "COMPLETE"]
        self._best = hypervolume(np.array(complete) / self._scale, self.reference / self._scale)

    def at(self, choice: Mapping[str, Value]) -> Point:
        """The point of a choice; KeyError where the table has none."""
        return self.points[point_key(choice, self.job.space)]

    def pinned(self, path: str, value: Value) -> Table:
        """The part of the table where a hole, where it is active, has one value; the hole is filled for good."""
        kept = [point for point in self.points.values() if point.choice.get(path, value) == value]
        tree = self.job.tree()
        tree["space"].pop(path)
        tree["recipe"] = with_value(tree["recipe"], path, value)
        points = [replace(point, choice={key: v for key, v in point.choice.items() if key != path}) for point in kept]
        return Table(Job.model_validate(tree), points)

    def hurried(self) -> Table:
        """As if every last phase were over after its first epoch, and its network as good as after all of them."""
        found = []
        for point in self.points.values():
            first = {name: getattr(point.last, name)[:1] for name in ("accuracies", "ends")}
            short = replace(point.last, seconds=point.last.ends[0], **first)
            found.append(replace(point, stages=tuple(short if stage is point.last else stage for stage in point.stages)))
        return Table(self.job, found)

    def scaled(self, costs: Sequence[float]) -> FloatArray:
        """Costs in units in which they are of one size."""
        return np.array(costs, dtype=np.float64) / self._scale

    def costs(self, point: Point) -> tuple[float, ...]:
        """The objectives of a complete point, all to be minimised."""
        return tuple(o.cost(point.measurements[o.metric]) for o in self.job.objectives)

    def volumes(self, costs: Sequence[Sequence[float]]) -> list[float]:
        """Hypervolume after each point, as a fraction of what all points together have."""
        values = np.array(costs, dtype=np.float64).reshape(len(costs), len(self.reference))
        found = hypervolume_history(values / self._scale, self.reference / self._scale) / self._best
        return [float(volume) for volume in found]

    @functools.cached_property
    def _scale(self) -> FloatArray:
        """Units in which numbers are of one size: from the reference to 1 for what is maximised, to 0 for what is not."""
        return np.array([1.0 - abs(r) if r < 0 else r for r in self.reference])


def read_table(path: Path = HERE / "table.parquet") -> Table:
    """The table as make_table.py wrote it."""
    import pyarrow.parquet as pq

    job = table_job()
    rows = pq.read_table(path).to_pylist()
    known = {row["structure"]: _measured(row, KNOWN) for row in rows if row["state"] == "COMPLETE"}
    return Table(job, [_point(row, job, known[row["structure"]]) for row in rows])


def _measured(row: dict[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    columns = {metric: "latency_structure_ms" if metric == "latency_ms" else metric for metric in metrics}
    return {metric: float(row[column]) for metric, column in columns.items() if row.get(column) is not None}


def _point(row: dict[str, Any], job: Job, known: dict[str, float]) -> Point:
    choice = {path: row[path] for path, _ in job.space.items() if row.get(path) is not None}
    measured = _measured(row, ("accuracy", *KNOWN))
    stages = tuple(_stage(row, name) for name in STAGES if row.get(f"{name}_key"))
    alone = [row.get(f"{name}_s") or 0.0 for name in ("preflight", "export", "measure")]
    return Point(choice, row["state"], measured, known, stages, alone[0], alone[1] + alone[2])


def _stage(row: dict[str, Any], name: str) -> Stage:
    return Stage(
        name,
        row[f"{name}_key"],
        row[f"{name}_s"],
        tuple(row[f"{name}_accuracy"] or ()),
        tuple(row[f"{name}_ends_s"] or ()),
    )
