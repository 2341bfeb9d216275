"""What the trials of a job will cost, from what others cost. Pure: results in, seconds out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.results.trial_result import TrialResult
from orchestrator.search.budget import num_devices
from orchestrator.spec.job import Job


@dataclass(frozen=True)
class Observed:
    """What trials have cost.

    Args:
        once: seconds of the stages that several trials share (a teacher above all), each counted once.
        each: mean seconds of a trial, without those.
        trials: how many were looked at.
    """

    once: float
    each: float
    trials: int


@dataclass(frozen=True)
class Forecast:
    """What a sweep may cost: `hours` of wall clock on all gangs, from the first trial's start, and `device_hours`.

    An upper figure where stages are shared, trials stopped or a plateau reached; it knows nothing of a busier machine.
    """

    rests_on: str
    seconds_once: float
    seconds_per_trial: float
    hours: float
    device_hours: float


def observe(results: Sequence[TrialResult]) -> Observed | None:
    """What these trials cost; FAILED ones are passed over, and None is returned where none is left."""
    told = [result for result in results if result.state != "FAILED"]
    if not told:
        return None
    users: dict[str, set[int]] = {}
    computed: dict[str, float] = {}
    for result in told:
        for stage in result.stages:
            if stage.key:
                users.setdefault(stage.key, set()).add(result.number)
                if not stage.cached:
                    computed[stage.key] = max(stage.seconds, computed.get(stage.key, 0.0))
    shared = {key for key, numbers in users.items() if len(numbers) > 1}
    own = [
        result.ended - result.started - sum(stage.seconds for stage in result.stages if stage.key in shared) for result in told
    ]
    once = sum(seconds for key, seconds in computed.items() if key in shared)
    return Observed(once, max(0.0, statistics.fmean(own)), len(told))


def forecast(job: Job, gangs: int, observed: Observed, rests_on: str) -> Forecast:
    """What the job's fresh trials will cost on so many gangs, if they cost what those that were observed did.

    While one gang computes what all share, the others wait for it: it counts once in wall clock, and on every gang in devices.
    """
    rows = -(-job.budget.trials // gangs)  # the longest row of trials that one gang has to run
    seconds = observed.once + rows * observed.each
    spent = gangs * observed.once + job.budget.trials * observed.each
    return Forecast(
        rests_on=rests_on,
        seconds_once=observed.once,
        seconds_per_trial=observed.each,
        hours=seconds / 3600,
        device_hours=num_devices(job.resources) * spent / 3600,
    )


def costs_alike(job: Job, other: Job) -> bool:
    """Whether trials of the one say what trials of the other cost: same recipe, space, stopping rule and shape of a gang."""
    return _cost_settings(job) == _cost_settings(other)


def _cost_settings(job: Job) -> tuple[object, ...]:
    resources = job.resources.model_dump(exclude={"gangs"})
    return job.recipe.model_dump(), job.space.model_dump(), job.stopping.model_dump(), resources
