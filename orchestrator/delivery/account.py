"""What a sweep cost and what it bought. Pure: facts in, numbers out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orchestrator.pareto.front import costs_of, find_front, originals
from orchestrator.pareto.hypervolume import hypervolume
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.budget import device_seconds
from orchestrator.spec.job import Job


@dataclass(frozen=True)
class Account:
    """What the facts of a sweep come to.

    Args:
        trials: how many ended in each state, by the state's name in small letters.
        replicates: of those, trainings of a front's point with another seed.
        baseline_hypervolume: of trial 0 alone, against the reference of the front; 0 where it is not feasible and complete.
        hypervolume: of the front. What the search bought is the difference.
        device_hours: see `search.budget.device_seconds`.
        stages: stages of all trials that are kept in the store.
        served: those of them that came from the store.
        seconds_served: what computing them took, wherever that was, less what serving them took (waiting included).
        unpriced: served stages of which neither the store said what they took, nor a trial of this sweep. They are not in
            `seconds_served`.
        seconds_stopped: an estimate: how much less the stopped trials took than the mean fresh one that completed. Those that
            were continued later are left out.
    """

    trials: dict[str, int]
    replicates: int
    baseline_hypervolume: float
    hypervolume: float
    device_hours: float
    stages: int
    served: int
    seconds_served: float
    unpriced: int
    seconds_stopped: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def sentences(self) -> list[str]:
        """The same for people, a line each."""
        states = ", ".join(f"{count} {state}" for state, count in self.trials.items() if count)
        lines = [
            f"hypervolume {self.hypervolume:.4g}; the baseline alone has {self.baseline_hypervolume:.4g}",
            f"{self.device_hours:.3g} device-hours for {states or 'no trial'}",
        ]
        if self.served:
            unpriced = f", without {self.unpriced} of unknown price" if self.unpriced else ""
            seconds = self.seconds_served
            saved = f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"
            lines.append(f"{self.served} of {self.stages} stages came from the store: about {saved} saved{unpriced}")
        if self.seconds_stopped:
            lines.append(f"stopping trials saved about {self.seconds_stopped:.0f} s of training")
        return lines


def settle(job: Job, proposals: Sequence[Proposal], results: Sequence[TrialResult]) -> Account:
    """The account of a sweep, finished or not."""
    replicate_of = originals(proposals)
    front = find_front(results, job.objectives, replicate_of)
    reference = np.array([o.cost(value) for o, value in zip(job.objectives, front.reference, strict=True)])
    baseline = [result for result in front.results if result.number == 0]
    stages, served, seconds, unpriced = _served(results)
    return Account(
        trials={state.lower(): count for state, count in front.counts.items()},
        replicates=sum(result.number in replicate_of for result in results),
        baseline_hypervolume=hypervolume(costs_of(baseline, job.objectives), reference),
        hypervolume=front.hypervolume,
        device_hours=device_seconds(results, job.resources) / 3600,
        stages=stages,
        served=served,
        seconds_served=seconds,
        unpriced=unpriced,
        seconds_stopped=_stopped(proposals, results),
    )


def _served(results: Sequence[TrialResult]) -> tuple[int, int, float, int]:
    """(stages kept, stages served, seconds that serving saved, served stages of unknown price).

    What was saved stands in the record; one of before that was so, or of an entry evicted meanwhile, is priced by the trial
    that computed it.
    """
    kept = [stage for result in results for stage in result.stages if stage.key]
    price = {stage.key: stage.seconds for stage in kept if not stage.cached}
    served = [stage for stage in kept if stage.cached]
    priced = [stage for stage in served if stage.saved_s > 0.0 or stage.key in price]
    saved = [stage.saved_s or max(0.0, price[stage.key] - stage.seconds) for stage in priced]
    return len(kept), len(served), sum(saved), len(served) - len(saved)


def _stopped(proposals: Sequence[Proposal], results: Sequence[TrialResult]) -> float:
    """Seconds that stopped trials took less than the mean fresh one that completed."""
    fresh = {proposal.number for proposal in proposals if proposal.fresh}
    continued = {proposal.continues for proposal in proposals}
    full = [result.ended - result.started for result in results if result.state == "COMPLETE" and result.number in fresh]
    short = [
        result.ended - result.started for result in results if result.state == "STOPPED" and result.number not in continued
    ]
    return sum(max(0.0, statistics.fmean(full) - seconds) for seconds in short) if full else 0.0
