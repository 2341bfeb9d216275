"""When a sweep ends, and why: a pure policy over numbers that others read from the facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import BudgetSettings, PlateauSettings, ResourceSettings

Reason = Literal["trials", "plateau", "space", "hours", "device_hours", "failures"]


@dataclass(frozen=True)
class Spent:
    """What a sweep has used and won so far.

    Args:
        fresh: fresh proposals that were made, ended or not.
        seconds: wall clock of this run.
        device_seconds: of all trials of the sweep, those under way too; see `device_seconds`.
        failures: trials that ended FAILED.
        volumes: the hypervolume after each fresh trial that ended otherwise than FAILED, oldest first; read where the budget
            has a plateau.
        exhausted: whether nothing is left to propose.
    """

    fresh: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    failures: int = 0
    volumes: Sequence[float] = ()
    exhausted: bool = False


@dataclass(frozen=True)
class End:
    """Why a sweep proposes nothing fresh any more, in a word and for people."""

    reason: Reason
    text: str


def verdict(budget: BudgetSettings, spent: Spent) -> End | None:
    """Why a sweep proposes nothing fresh any more: a limit before a goal; None while it goes on."""
    return limit(budget, spent) or goal(budget, spent)


def limit(budget: BudgetSettings, spent: Spent) -> End | None:
    """What was set to save something, and is used up. What is under way is given up, and can be resumed.

    Ask only while something is left to run: a sweep whose trials have all ended is done, whatever the clock says.
    """
    hours, device_hours = spent.seconds / 3600, spent.device_seconds / 3600
    if budget.failures is not None and spent.failures >= budget.failures:
        return End("failures", f"{spent.failures} trials failed; budget.failures is {budget.failures}")
    if budget.hours is not None and hours >= budget.hours:
        return End("hours", f"{hours:.3g} hours have passed; budget.hours is {budget.hours:g}")
    if budget.device_hours is not None and device_hours >= budget.device_hours:
        return End("device_hours", f"{device_hours:.3g} device-hours are spent; budget.device_hours is {budget.device_hours:g}")
    return None


def goal(budget: BudgetSettings, spent: Spent) -> End | None:
    """What says that the search is done. What is under way ends by itself."""
    if spent.fresh >= budget.trials:
        return End("trials", f"{spent.fresh} trials are proposed; budget.trials is {budget.trials}")
    if spent.exhausted:
        return End("space", f"all {spent.fresh} points of the space are proposed")
    if budget.plateau is not None and is_flat(budget.plateau, spent.volumes):
        last, gain = budget.plateau.trials, budget.plateau.gain
        text = f"the last {last} trials raised the hypervolume by no more than the fraction {gain:g} (budget.plateau)"
        return End("plateau", text)
    return None


def is_flat(plateau: PlateauSettings, volumes: Sequence[float]) -> bool:
    """Whether the last `plateau.trials` trials gained no more than the fraction `plateau.gain` of the hypervolume as it is.

    Args:
        volumes: hypervolume after each trial, >= 0, oldest first.

    While it is 0 there is no plateau: a search that has found nothing worth having has not converged. Nor is there one before
    a trial has ended that the others can be compared with.
    """
    if len(volumes) <= plateau.trials or volumes[-1] <= 0.0:
        return False
    return volumes[-1] - volumes[-1 - plateau.trials] <= plateau.gain * volumes[-1]


def num_devices(resources: ResourceSettings) -> float:
    """Devices of one gang: its GPUs, fractions as they are; without GPUs its workers, each with all its threads as one."""
    return resources.workers_per_gang * (resources.gpus_per_worker or 1.0)


def device_seconds(results: Iterable[TrialResult], resources: ResourceSettings) -> float:
    """Devices of a gang times the seconds from start to end of each trial.

    The attempt that ended counts: what a killed driver had begun is in no fact, and neither is the time of gangs that wait.
    """
    return num_devices(resources) * sum(max(0.0, result.ended - result.started) for result in results)
