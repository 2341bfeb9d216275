"""The front of a sweep: from results and objectives to points, hypervolume and knee."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.pareto.dominance import FloatArray, non_dominated_ranks
from orchestrator.pareto.hypervolume import default_reference, hypervolume, hypervolume_history
from orchestrator.pareto.selection import knee_index
from orchestrator.results.trial_result import STATES, TrialResult
from orchestrator.spec.objective import Objective


@dataclass(frozen=True)
class Front:
    """What the results of a sweep come to.

    Args:
        results: feasible, complete trials in the order they were proposed.
        ranks: non-dominated rank of each of `results`; 0 is the front.
        points: the front, best first by the first objective.
        knee: the point of the front furthest below the plane through its extremes, among those that beat the reference
            where there are any; None for an empty front.
        reference: worst value still worth having, per objective, in the objective's own sign.
        hypervolume: of the front against the reference, with every objective as a cost.
    """

    objectives: tuple[Objective, ...]
    results: tuple[TrialResult, ...]
    ranks: tuple[int, ...]
    points: tuple[TrialResult, ...]
    knee: TrialResult | None
    reference: tuple[float, ...]
    hypervolume: float
    counts: dict[str, int]

    def rank(self, number: int) -> int | None:
        """The rank of a trial, or None when it is not feasible and complete."""
        return next((rank for result, rank in zip(self.results, self.ranks, strict=True) if result.number == number), None)

    def to_json(self, sweep: str) -> dict[str, Any]:
        """The contract of `front -o json`."""
        return {
            "sweep": sweep,
            "objectives": [
                {"metric": o.metric, "direction": "maximize" if o.maximized else "minimize", "reference": reference}
                for o, reference in zip(self.objectives, self.reference, strict=True)
            ],
            "hypervolume": self.hypervolume,
            "trials": {state.lower(): self.counts[state] for state in STATES},
            "points": [
                {
                    "trial": point.id,
                    "knee": self.knee is not None and point.number == self.knee.number,
                    "feasible": point.feasible,
                    "measurements": point.measurements,
                    "choice": point.choice,
                }
                for point in self.points
            ],
        }


def costs_of(results: Sequence[TrialResult], objectives: Sequence[Objective]) -> FloatArray:
    """Objective values (N, M) as costs, from measurements."""
    rows = [[objective.cost(float(result.measurements[objective.metric])) for objective in objectives] for result in results]
    return np.array(rows, dtype=np.float64).reshape(len(results), len(objectives))


def find_front(results: Sequence[TrialResult], objectives: Sequence[Objective]) -> Front:
    """Rank the feasible, complete trials of a sweep."""
    feasible = [result for result in results if result.feasible]
    costs = costs_of(feasible, objectives)
    ranks = [int(rank) for rank in non_dominated_ranks(costs)] if feasible else []
    members = [index for index, rank in enumerate(ranks) if rank == 0]
    members.sort(key=lambda index: (costs[index, 0], feasible[index].number))
    reference = _reference(costs, objectives)
    worth_having = [index for index in members if (costs[index] <= reference).all()] or members
    return Front(
        objectives=tuple(objectives),
        results=tuple(feasible),
        ranks=tuple(ranks),
        points=tuple(feasible[index] for index in members),
        knee=feasible[worth_having[knee_index(costs[worth_having])]] if members else None,
        reference=tuple(objective.cost(cost) for objective, cost in zip(objectives, reference, strict=True)),
        hypervolume=hypervolume(costs, reference) if feasible else 0.0,
        counts={state: sum(result.state == state for result in results) for state in STATES},
    )


def history(results: Sequence[TrialResult], objectives: Sequence[Objective]) -> list[float]:
    """The hypervolume after each trial, in the order in which they ended."""
    front = find_front(results, objectives)
    ended = sorted(results, key=lambda result: (result.ended, result.number))
    reference = np.array([o.cost(value) for o, value in zip(objectives, front.reference, strict=True)])
    feasible = [result for result in ended if result.feasible]
    steps: Iterator[float] = iter(hypervolume_history(costs_of(feasible, objectives), reference) if feasible else [])
    volumes, current = [], 0.0
    for result in ended:
        current = float(next(steps)) if result.feasible else current
        volumes.append(current)
    return volumes


def _reference(costs: FloatArray, objectives: Sequence[Objective]) -> FloatArray:
    """The job's reference, and where it names none, a little beyond the worst value seen."""
    seen = default_reference(costs) if len(costs) else np.zeros(len(objectives))
    given = [objective.reference for objective in objectives]
    return np.array(
        [o.cost(value) if value is not None else fallback for o, value, fallback in zip(objectives, given, seen, strict=True)]
    )
