"""The front of a sweep: from results and objectives to points, hypervolume and knee, and how sure all of that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from orchestrator.errors import JobError, NoFeasibleTrialError, nearest_name
from orchestrator.pareto.certainty import POSSIBLE, Certainty, Replicated
from orchestrator.pareto.condition import Comparison, Condition, Joined, nearest
from orchestrator.pareto.dominance import FloatArray, constrained_ranks, non_dominated_ranks
from orchestrator.pareto.hypervolume import default_reference, hypervolume, hypervolume_history
from orchestrator.pareto.noise import front_probability, standard_error, tie_groups
from orchestrator.pareto.seeds import seed_front_probability, t_interval
from orchestrator.pareto.selection import knee_index, weighted_index
from orchestrator.results.trial_result import STATES, Proposal, TrialResult
from orchestrator.spec.objective import Constraint, Objective


@dataclass(frozen=True)
class Front:
    """What the results of a sweep come to.

    Args:
        results: feasible, complete trials in the order they were proposed, without replicates.
        ranks: non-dominated rank of each of `results`; 0 is the front.
        points: the front, best first by the first objective.
        knee: the point of the front furthest below the plane through its extremes, among those that beat the reference
            where there are any; None for an empty front.
        reference: worst value still worth having, per objective, in the objective's own sign.
        hypervolume: of the front against the reference, with every objective as a cost.
        counts: how many trials ended in each state, replicates and what `narrowed` left out included.
        infeasible: trials that broke a constraint or could not be built, in the order they were proposed.
        others: trials that were stopped or failed, in the order they were proposed.
        replicates: complete trainings of a trial with other seeds, by the number of that trial. They say how much of its
            values was luck; the file that ships, and so the point, is the trial's own.
    """

    objectives: tuple[Objective, ...]
    results: tuple[TrialResult, ...]
    ranks: tuple[int, ...]
    points: tuple[TrialResult, ...]
    knee: TrialResult | None
    reference: tuple[float, ...]
    hypervolume: float
    counts: dict[str, int]
    infeasible: tuple[TrialResult, ...] = ()
    others: tuple[TrialResult, ...] = ()
    replicates: Mapping[int, tuple[TrialResult, ...]] = field(default_factory=dict)

    def rank(self, number: int) -> int | None:
        """The rank of a trial, or None when it is not feasible and complete."""
        return next((rank for result, rank in zip(self.results, self.ranks, strict=True) if result.number == number), None)

    def to_json(
        self, sweep: str, certainty: Certainty | None = None, shown: Sequence[TrialResult] | None = None
    ) -> dict[str, Any]:
        """The contract of `front -o json`; with ties and probabilities, and with other points than the front's, where given."""
        knee = self.knee.number if self.knee else None
        tree: dict[str, Any] = {
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
                    "knee": point.number == knee,
                    "feasible": point.feasible,
                    "measurements": point.measurements,
                    "choice": point.choice,
                }
                for point in (self.points if shown is None else shown)
            ],
        }
        if certainty is None:
            return tree
        for point in tree["points"]:
            point |= certainty.of(point["trial"])
        return tree | {"ties": [list(group) for group in certainty.ties], "possibly_on_front": list(certainty.possible)}


def costs_of(results: Sequence[TrialResult], objectives: Sequence[Objective]) -> FloatArray:
    """Objective values (N, M) as costs, from measurements."""
    rows = [[objective.cost(float(result.measurements[objective.metric])) for objective in objectives] for result in results]
    return np.array(rows, dtype=np.float64).reshape(len(results), len(objectives))


def originals(proposals: Sequence[Proposal]) -> dict[int, int]:
    """From the number of each replicate to that of the trial that it trains again with another seed."""
    return {proposal.number: proposal.replicate_of for proposal in proposals if proposal.replicate_of is not None}


def find_front(
    results: Sequence[TrialResult], objectives: Sequence[Objective], replicate_of: Mapping[int, int] | None = None
) -> Front:
    """Rank the feasible, complete trials of a sweep.

    Args:
        results: ends of trials, by number.
        objectives: one or more.
        replicate_of: as `originals` gives it. Replicates refine their original, and are no points of their own.
    """
    originally = replicate_of or {}
    feasible = [result for result in results if result.feasible and result.number not in originally]
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
        infeasible=tuple(
            r for r in results if r.state in ("COMPLETE", "INFEASIBLE") and not r.feasible and r.number not in originally
        ),
        others=tuple(result for result in results if result.state in ("STOPPED", "FAILED")),
        replicates=_replicates(results, originally),
    )


def narrowed(front: Front, keep: Callable[[TrialResult], bool]) -> Front:
    """The front of those trials that `keep` lets through: with a hard limit, the best within it.

    A trial that only others outside the limit dominate comes onto it. The reference stays, so that hypervolumes compare.
    """
    fixed = [o.model_copy(update={"reference": value}) for o, value in zip(front.objectives, front.reference, strict=True)]
    kept = find_front([result for result in front.results if keep(result)], fixed)
    infeasible, others = (tuple(filter(keep, trials)) for trials in (front.infeasible, front.others))
    return replace(front, **{name: getattr(kept, name) for name in _OF_POINTS}, infeasible=infeasible, others=others)


_OF_POINTS = ("results", "ranks", "points", "knee", "hypervolume")


def counts_text(front: Front) -> str:
    """`24 complete, 1 failed`."""
    return ", ".join(f"{count} {state.lower()}" for state, count in front.counts.items() if count) or "no trial has ended"


def no_feasible(sweep: str, front: Front, constraints: Mapping[str, Constraint]) -> NoFeasibleTrialError:
    """What to say of a sweep without a feasible trial: how its trials ended, and by how much the nearest misses what it has to
    satisfy. One that was measured comes before one that the gate turned away, of which less is known."""
    told = f"sweep {sweep!r} has no trial that is complete and feasible: {counts_text(front)}"
    broke = {
        trial.id: {**trial.gate, **trial.measurements}
        for trial in front.infeasible
        if any(trial.constraints.get(metric, 0.0) > 0 for metric in constraints)
    }
    if not broke:
        return NoFeasibleTrialError(told)
    trial, missed = nearest(_as_condition(constraints), broke)
    return NoFeasibleTrialError(f"{told}; the nearest is {trial}: {' and '.join(map(str, missed))}")


def _as_condition(constraints: Mapping[str, Constraint]) -> Condition:
    """What satisfies every constraint."""
    ends = [
        (metric, sign, end) for metric, bound in constraints.items() for sign, end in ((">=", bound.min), ("<=", bound.max))
    ]
    return Joined(True, tuple(Comparison(metric, sign, end) for metric, sign, end in ends if end is not None))


def certainty_of(front: Front, draws: int = 1000, seed: int = 0) -> Certainty:
    """What the errors of measurements, and replicates, leave open about a front."""
    metrics = [objective.metric for objective in front.objectives]
    errors = np.array([[standard_error(metric, result.measurements) for metric in metrics] for result in front.results])
    errors = errors.reshape(len(front.results), len(metrics))
    costs = costs_of(front.results, front.objectives)
    chances = [float(chance) for chance in front_probability(costs, errors, draws, seed)]
    rows = {result.number: row for row, result in enumerate(front.results)}
    members = [rows[point.number] for point in front.points]
    groups = tie_groups(costs[members], errors[members]) if members else []
    ranked = zip(front.results, front.ranks, chances, strict=True)
    return Certainty(
        probability={result.id: chance for result, chance in zip(front.results, chances, strict=True)},
        ties=tuple(tuple(front.points[index].id for index in group) for group in groups if len(group) > 1),
        possible=tuple(result.id for result, rank, chance in ranked if rank and chance >= POSSIBLE),
        seeds=_replicated(front, draws, seed),
    )


def ranks_with_infeasible(front: Front) -> dict[int, int]:
    """Ranks by trial's number: the feasible first, then what was measured and broke a constraint, by how much.

    Amounts of different constraints are in different units, so each is taken as a share of the largest one seen.
    """
    metrics = [objective.metric for objective in front.objectives]
    broke = [result for result in front.infeasible if all(metric in result.measurements for metric in metrics)]
    largest: dict[str, float] = {}
    for result in broke:
        for metric, amount in result.constraints.items():
            largest[metric] = max(largest.get(metric, 0.0), amount)
    shares = [sum(amount / largest[m] for m, amount in result.constraints.items() if amount > 0) for result in broke]
    every = [*front.results, *broke]
    violations = np.array([0.0] * len(front.results) + shares)
    ranks = constrained_ranks(costs_of(every, front.objectives), violations)
    return {result.number: int(rank) for result, rank in zip(every, ranks, strict=True)}


def weighted_point(front: Front, weights: Mapping[str, float], where: str = "") -> TrialResult:
    """The point of a front that is not empty that weights of its objectives lead to. JobError for another metric."""
    metrics = [objective.metric for objective in front.objectives]
    for metric in weights:
        if metric not in metrics:
            raise JobError(f"name objectives: {', '.join(metrics)}", metric, where=where, nearest=nearest_name(metric, metrics))
    shares = np.array([weights.get(metric, 0.0) for metric in metrics])
    return front.points[weighted_index(costs_of(front.points, front.objectives), shares)]


def history(
    results: Sequence[TrialResult], objectives: Sequence[Objective], replicate_of: Mapping[int, int] | None = None
) -> list[float]:
    """The hypervolume after each trial, in the order in which they ended. A replicate adds nothing."""
    front = find_front(results, objectives, replicate_of)
    points = {result.number for result in front.results}
    ended = sorted(results, key=lambda result: (result.ended, result.number))
    reference = np.array([o.cost(value) for o, value in zip(objectives, front.reference, strict=True)])
    feasible = [result for result in ended if result.number in points]
    steps: Iterator[float] = iter(hypervolume_history(costs_of(feasible, objectives), reference) if feasible else [])
    volumes, current = [], 0.0
    for result in ended:
        current = float(next(steps)) if result.number in points else current
        volumes.append(current)
    return volumes


def _reference(costs: FloatArray, objectives: Sequence[Objective]) -> FloatArray:
    """The job's reference, and where it names none, a little beyond the worst value seen."""
    seen = default_reference(costs) if len(costs) else np.zeros(len(objectives))
    given = [objective.reference for objective in objectives]
    return np.array(
        [o.cost(value) if value is not None else fallback for o, value, fallback in zip(objectives, given, seen, strict=True)]
    )


def _replicates(results: Sequence[TrialResult], originally: Mapping[int, int]) -> dict[int, tuple[TrialResult, ...]]:
    """The complete replicates of each trial. Whether one breaks a constraint does not matter to the mean."""
    found: dict[int, tuple[TrialResult, ...]] = {}
    for result in results:
        if result.number in originally and result.state == "COMPLETE":
            number = originally[result.number]
            found[number] = (*found.get(number, ()), result)
    return found


def _replicated(front: Front, draws: int, seed: int) -> dict[str, Replicated]:
    """Means, intervals and probabilities of the feasible trials that have replicates."""
    if not any(result.number in front.replicates for result in front.results):
        return {}
    metrics = [objective.metric for objective in front.objectives]
    groups = [[result, *front.replicates.get(result.number, ())] for result in front.results]
    chances = seed_front_probability([costs_of(group, front.objectives) for group in groups], draws, seed)
    found = {}
    for group, chance in zip(groups, chances, strict=True):
        if len(group) > 1:
            samples = np.array([[float(result.measurements[metric]) for metric in metrics] for result in group])
            mean, low, high = (dict(zip(metrics, map(float, ends), strict=True)) for ends in t_interval(samples))
            found[group[0].id] = Replicated(len(group), mean, low, high, float(chance))
    return found
