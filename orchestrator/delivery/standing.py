"""Where a sweep stands: what its facts say, and whether a process holds it. The numbers are those of its front and account."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.delivery.account import settle
from orchestrator.pareto.front import Front, find_front, originals
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.budget import Spent, goal, limit
from orchestrator.search.points import grid, is_finite, point_key
from orchestrator.spec.job import Job

State = Literal["running", "finished", "interrupted"]


@dataclass(frozen=True)
class Standing:
    """Where a sweep stands.

    Args:
        state: `running` while a process holds it; `finished` when its budget is used up, nothing is left to propose, or a
            plateau was reached, and nothing is owed; else `interrupted`: `orchestrator resume` goes on.
        reason: for people, why it is in that state.
        front: as of `orchestrator front`.
        under_way: proposals that have not ended.
        wanted: `budget.trials`.
        seconds: in which at least one trial was under way, pauses left out.
        device_hours: see `search.budget.device_seconds`.
        last: the trial that ended last.
    """

    sweep: str
    state: State
    reason: str
    front: Front
    under_way: int
    wanted: int
    seconds: float
    device_hours: float
    last: TrialResult | None

    def to_json(self) -> dict[str, Any]:
        """The contract of `status -o json`; `trials` and `hypervolume` are those of `front -o json`."""
        front, last = self.front, self.last
        metrics = [objective.metric for objective in front.objectives]
        return {
            "sweep": self.sweep,
            "state": self.state,
            "reason": self.reason,
            "trials": {state.lower(): count for state, count in front.counts.items()},
            "under_way": self.under_way,
            "budget_trials": self.wanted,
            "front_size": len(front.points),
            "knee": None if front.knee is None else front.knee.id,
            "hypervolume": front.hypervolume,
            "seconds": self.seconds,
            "device_hours": self.device_hours,
            "last_ended": None
            if last is None
            else {
                "trial": last.id,
                "state": last.state,
                "feasible": last.feasible,
                "ended": last.ended,
                "measurements": {metric: last.measurements[metric] for metric in metrics if metric in last.measurements},
            },
        }


def standing(
    sweep: str,
    job: Job,
    proposals: Sequence[Proposal],
    results: Sequence[TrialResult],
    spent: Spent,
    *,
    owed: int,
    running: bool,
) -> Standing:
    """Where a sweep stands. Pure.

    Args:
        spent: what its facts come to.
        owed: how many trials are still to be run for what was proposed already: unended ones, seeds, forms.
        running: whether a process holds it.
    """
    account = settle(job, proposals, results)
    ended = {result.number for result in results}
    under_way = sum(proposal.number not in ended for proposal in proposals)
    stopped, reached = limit(job.budget, spent), goal(job.budget, replace(spent, exhausted=_exhausted(job, proposals)))
    state: State = "running" if running else "finished" if reached is not None and not owed else "interrupted"
    so_far = f"{len(results)} trials have ended; budget.trials is {job.budget.trials}"
    return Standing(
        sweep=sweep,
        state=state,
        reason=reached.text if state == "finished" and reached else stopped.text if stopped and not running else so_far,
        front=find_front(results, job.objectives, originals(proposals)),
        under_way=under_way,
        wanted=job.budget.trials,
        seconds=busy_seconds((result.started, result.ended) for result in results),
        device_hours=account.device_hours,
        last=max(results, key=lambda result: (result.ended, result.number), default=None),
    )


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of several spans (start, end) lasted, in seconds: overlaps count once, gaps not at all."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def is_held(lock: Path) -> bool:
    """Whether a process holds a sweep's lock. The lock is looked at for an instant and never created."""
    try:
        with lock.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(handle, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:  # nobody has run it here, or another user's it is
        return False
    return False


def _exhausted(job: Job, proposals: Sequence[Proposal]) -> bool:
    """Whether every point that there is to propose was proposed."""
    if not (is_finite(job.space) or job.search.sampler == "grid"):
        return False
    known = {point_key(proposal.choice, job.space) for proposal in proposals}
    every = grid(job.space, job.recipe, job.search.grid_points)
    return all(point_key(choice, job.space) in known for choice in every)
