"""Two sweeps side by side: what each front is worth against one reference, who owns the joint front, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.delivery.account import settle
from orchestrator.errors import UsageError
from orchestrator.pareto.dominance import FloatArray, coverage, non_dominated_mask
from orchestrator.pareto.front import Front, costs_of, find_front, originals
from orchestrator.pareto.hypervolume import default_reference, hypervolume
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.objective import Objective

_APART = ("name", "budget", "tracking", "gangs", "storage", "resources.gangs")  # what does not make another sweep


@dataclass(frozen=True)
class Told:
    """A sweep as its facts have it."""

    name: str
    job: Job
    proposals: Sequence[Proposal]
    results: Sequence[TrialResult]

    @property
    def front(self) -> Front:
        return find_front(self.results, self.job.objectives, originals(self.proposals))


@dataclass(frozen=True)
class Side:
    """What one of two sweeps comes to.

    Args:
        hypervolume: of its front against the common reference.
        coverage: C metric: the fraction of the other's front that its own covers; None where the other has none.
        owned: its points on the joint front.
    """

    sweep: str
    trials: int
    front_size: int
    hypervolume: float
    coverage: float | None
    owned: int
    device_hours: float


@dataclass(frozen=True)
class Compared:
    """Two sweeps side by side.

    Args:
        reference: per objective, in its own sign.
        joint: the front of both together, best first by the first objective: (name of the sweep, trial). Points that both
            sweeps have are there twice.
        differences: of the jobs, as `path: first -> second`, apart from what does not make another sweep.
        cautions: what makes their figures hard to compare.
    """

    objectives: tuple[Objective, ...]
    reference: tuple[float, ...]
    sides: tuple[Side, Side]
    joint: tuple[tuple[str, TrialResult], ...]
    differences: tuple[str, ...]
    cautions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The contract of `compare -o json`."""
        metrics = [objective.metric for objective in self.objectives]
        return {
            "objectives": [
                {"metric": o.metric, "direction": "maximize" if o.maximized else "minimize", "reference": reference}
                for o, reference in zip(self.objectives, self.reference, strict=True)
            ],
            "sweeps": [vars(side) for side in self.sides],
            "joint_front": [
                {"sweep": name, "trial": trial.id, "measurements": {metric: trial.measurements[metric] for metric in metrics}}
                for name, trial in self.joint
            ],
            "differences": list(self.differences),
            "cautions": list(self.cautions),
        }


def compare(one: Told, other: Told) -> Compared:
    """Hold two sweeps against each other.

    Raises:
        UsageError: their objectives differ; with the difference.
    """
    _agree(one, other)
    objectives = tuple(one.job.objectives)
    fronts = one.front, other.front
    points = [costs_of(front.points, objectives) for front in fronts]
    reference = _common_reference(one, other, np.vstack([costs_of(front.results, objectives) for front in fronts]))
    both = [(told.name, point) for told, front in zip((one, other), fronts, strict=True) for point in front.points]
    alive = non_dominated_mask(np.vstack(points)) if both else np.zeros(0, dtype=np.bool_)
    joint = [owner for owner, stays in zip(both, alive, strict=True) if stays]
    joint.sort(key=lambda owner: objectives[0].cost(float(owner[1].measurements[objectives[0].metric])))
    cut = len(points[0])
    owned = int(np.sum(alive[:cut])), int(np.sum(alive[cut:]))
    sides = [
        Side(
            sweep=told.name,
            trials=len(told.results),
            front_size=len(own),
            hypervolume=hypervolume(own, reference) if len(own) else 0.0,
            coverage=coverage(own, theirs) if len(theirs) else None,
            owned=number,
            device_hours=settle(told.job, told.proposals, told.results).device_hours,
        )
        for told, own, theirs, number in zip((one, other), points, reversed(points), owned, strict=True)
    ]
    return Compared(
        objectives=objectives,
        reference=tuple(o.cost(float(value)) for o, value in zip(objectives, reference, strict=True)),
        sides=(sides[0], sides[1]),
        joint=tuple(joint),
        differences=tuple(differences(one.job.tree(), other.job.tree())),
        cautions=tuple(_cautions(one, other)),
    )


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """`path: before -> after` for every leaf of two jobs' trees that differs, apart from what does not make another sweep."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in dict.fromkeys([*before, *after]) if f"{path}{key}" not in _APART]
        return [line for key in keys for line in differences(before.get(key), after.get(key), f"{path}{key}.")]
    return [] if before == after else [f"{path.removesuffix('.')}: {before} -> {after}"]


def _agree(one: Told, other: Told) -> None:
    """Refuse what cannot be compared: volumes of other quantities, or of quantities that are wanted the other way."""
    ways = [{o.metric: "maximize" if o.maximized else "minimize" for o in told.job.objectives} for told in (one, other)]
    if ways[0] == ways[1]:
        return
    metrics = dict.fromkeys([*ways[0], *ways[1]])
    said = [
        f"{metric}: {ways[0].get(metric, 'none')} -> {ways[1].get(metric, 'none')}"
        for metric in metrics
        if ways[0].get(metric) != ways[1].get(metric)
    ]
    raise UsageError(f"sweeps must have the same objectives to be compared; {one.name!r} and {other.name!r}: {'; '.join(said)}")


def _common_reference(one: Told, other: Told, costs: FloatArray) -> FloatArray:
    """As costs, (M,): the worse of the references that the jobs name; where neither does, a little beyond the worst value."""
    seen = default_reference(costs) if len(costs) else np.zeros(len(one.job.objectives))
    named = {o.metric: o.reference for o in other.job.objectives}
    given = [
        [o.cost(value) for value in (o.reference, named[o.metric]) if value is not None] or [float(fallback)]
        for o, fallback in zip(one.job.objectives, seen, strict=True)
    ]
    return np.array([max(values) for values in given])


def _cautions(one: Told, other: Told) -> list[str]:
    """What makes figures hard to compare: other data, or another way to measure."""
    said = []
    if one.job.recipe.data != other.job.recipe.data:
        said.append("the data differ: accuracies are of other images")
    if one.job.recipe.measurement != other.job.recipe.measurement:
        said.append("the settings of recipe.measurement differ")
    for key in ("executor", "device"):
        values = [_values(told.results, key) for told in (one, other)]
        if values[0] != values[1] and all(values):
            said.append(f"the {key} differs: {', '.join(values[0])} -> {', '.join(values[1])}")
    return said


def _values(results: Iterable[TrialResult], key: str) -> list[str]:
    return sorted({str(result.measurements[key]) for result in results if key in result.measurements})
