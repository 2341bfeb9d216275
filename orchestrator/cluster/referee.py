"""Who goes on, from a sweep's facts and reports: the stopping rule joined to fronts. Plain Python, without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.pareto.dominance import non_dominated_ranks
from orchestrator.pareto.front import costs_of, find_front, originals
from orchestrator.pareto.hypervolume import hypervolume
from orchestrator.pareto.selection import representatives
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.stopping import (
    Costs,
    Rung,
    StoppingRule,
    is_control,
    last_training,
    partial_costs,
    rung_epochs,
    rungs_passed,
    would_stop,
)
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import Recipe


class Referee:
    """Judges the trials of one sweep. A trial that goes on as a new proposal is still the same trial to it.

    `looks_at` names the metrics that it judges by.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.looks_at = [objective.metric for objective in job.objectives] if job.stopping.method != "none" else []
        self._rule = _rule(job, controls=True)
        self._proposals: dict[int, Proposal] = {}
        self._first: dict[int, int] = {}  # of every proposal: the one that it continues, or itself
        self._latest: dict[int, int] = {}  # of every such first one: the last that continues it
        self._stopped: set[int] = set()

    def recall(self, proposals: Iterable[Proposal], results: Iterable[TrialResult]) -> None:
        """Take in the facts: who has been at which rung, and who was stopped."""
        for proposal in sorted(proposals, key=lambda proposal: proposal.number):
            self._meet(proposal)
        for result in sorted(results, key=lambda result: (result.ended, result.number)):
            self.ended(result)

    def rungs(self, proposal: Proposal) -> list[tuple[str, int]]:
        """Where a trial is to be judged: stage, and the stage's epoch as its reports count it."""
        self._meet(proposal)
        if not _is_judged(proposal):
            return []
        phase = last_training(Recipe.model_validate(proposal.recipe))
        return [(phase.stage, phase.first + epochs - 1) for epochs in rung_epochs(phase.epochs, self._job.stopping)]

    def goes_on(self, number: int, report: dict[str, Any]) -> bool:
        """Judge a trial by its report at a rung: `stage`, `epoch`, `val_accuracy` and what the `gate` measured.

        It goes on unjudged where not every objective can be told yet.
        """
        phase = last_training(Recipe.model_validate(self._proposals[number].recipe))
        costs = partial_costs(self._job.objectives, report["gate"], report["val_accuracy"])
        if costs is None:
            return True
        return self._rule.report(self._first[number], (phase.stage, report["epoch"] + 1 - phase.first), costs)

    def ended(self, result: TrialResult) -> None:
        """Note how a trial ended. It is compared with also at rungs where nobody judged it in time."""
        if result.state == "STOPPED":
            self._stopped.add(result.number)
        for rung, costs in _passed(self._job, self._proposals.get(result.number), result):
            self._rule.report(self._first[result.number], rung, costs)

    def promotable(self) -> Proposal | None:
        """The stopped trial that is wanted most by now, or None where none is or the job promotes none."""
        if not self._job.stopping.promote:
            return None
        stopped = [first for first, latest in self._latest.items() if latest in self._stopped]
        found = self._rule.promotable(stopped)
        return None if found is None else self._proposals[self._latest[found]]

    def _meet(self, proposal: Proposal) -> None:
        number, before = proposal.number, proposal.continues
        self._proposals[number] = proposal
        self._first[number] = number if before is None else self._first[before]
        self._latest[self._first[number]] = number


@dataclass(frozen=True)
class Regret:
    """What stopping would have cost, seen on the trials that it was kept away from.

    Args:
        controls: trials that were judged and never stopped.
        stopped: those of them that the rule would have stopped.
        on_front: those of `stopped` that ended on the sweep's front.
        volume_lost: the fraction of the sweep's hypervolume that would be missing without `stopped`, in [0, 1].
    """

    controls: tuple[int, ...]
    stopped: tuple[int, ...]
    on_front: tuple[int, ...]
    volume_lost: float

    def sentence(self) -> str:
        """The same in words."""
        if not self.controls:
            return "what stopping cost is not known: no control was judged"
        return (
            f"of {len(self.controls)} controls {len(self.stopped)} would have been stopped, {len(self.on_front)} of them from "
            f"the front; without them {self.volume_lost:.3f} of the hypervolume would be missing"
        )


def regret(job: Job, proposals: Iterable[Proposal], results: Sequence[TrialResult]) -> Regret:
    """Judge a sweep's trials again, in the order in which they ended, with no trial spared but the baseline."""
    known = list(proposals)
    asked = {proposal.number: proposal for proposal in known if proposal.fresh}
    ended = sorted(results, key=lambda result: (result.ended, result.number))
    passed = [(result.number, _passed(job, asked.get(result.number), result)) for result in ended]
    controls = [n for n, rungs in passed if rungs and is_control(n, job.seed, job.stopping.control_fraction)]
    stopped = sorted(set(controls) & set(would_stop(_rule(job, controls=False), passed)))
    front = find_front(results, job.objectives, originals(known))
    left = [result for result in front.results if result.number not in stopped]
    reference = np.array([o.cost(value) for o, value in zip(job.objectives, front.reference, strict=True)])
    volume = hypervolume(costs_of(left, job.objectives), reference)
    return Regret(
        controls=tuple(sorted(controls)),
        stopped=tuple(stopped),
        on_front=tuple(number for number in stopped if front.rank(number) == 0),
        volume_lost=max(0.0, 1.0 - volume / front.hypervolume) if front.hypervolume > 0 else 0.0,
    )


def _rule(job: Job, *, controls: bool) -> StoppingRule:
    """The job's rule; without `controls` no trial is spared but the baseline."""
    fraction = job.stopping.control_fraction if controls else 0.0
    return StoppingRule(
        job.stopping.reduction_factor,
        non_dominated_ranks,
        representatives,
        lambda number: number == 0 or is_control(number, job.seed, fraction),
    )


def _is_judged(proposal: Proposal) -> bool:
    """Another seed of a finalist, or another form of a network, was asked for to be finished."""
    return proposal.replicate_of is None and proposal.derived_from is None


def _passed(job: Job, proposal: Proposal | None, result: TrialResult) -> list[tuple[Rung, Costs]]:
    """The rungs at which a trial was compared; none for one that never trained."""
    if proposal is None or not _is_judged(proposal) or not result.curve:
        return []
    return rungs_passed(Recipe.model_validate(proposal.recipe), result, job.objectives, job.stopping)
