"""Optuna behind the Sampler port, by `study.ask` and `study.tell`.

What differs from handing a study to Ray: stopped trials are told as PRUNED and never as complete, failed ones as FAIL, none is
left running; constraints reach the sampler by how much they are broken; and every ask seeds a fresh sampler, so that a search
can be replayed. A point is drafted and then known, as a point from elsewhere is: a search that goes on and one that is brought
back from its facts take the same path.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import cast

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState
from threadpoolctl import threadpool_limits

from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.points import fits
from orchestrator.spec.job import Job
from orchestrator.spec.objective import Objective
from orchestrator.spec.space import Choice, Domain, Value, is_active

MODELLED = ("random", "tpe", "nsga2", "nsga3", "gp")  # the samplers that are Optuna's

_BUILDABLE = "buildable"
_TRIES = 8  # drafts by the sampler itself; as many at random follow, for a sampler that has settled on a point


class OptunaSampler:
    """One in-memory study; the sweep's folder is its memory. It may propose a point twice: `Proposer` sees to that.

    Args:
        job: space, objectives, constraints, search settings and seed.
        seed: with a proposal's number it decides the proposal.
    """

    def __init__(self, job: Job) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._job = job
        self._tree = job.recipe.model_dump()
        directions = [StudyDirection.MAXIMIZE if o.maximized else StudyDirection.MINIMIZE for o in job.objectives]
        self._study = optuna.create_study(directions=directions, sampler=RandomSampler(seed=0))
        self._trials: dict[int, optuna.Trial] = {}
        self._worst: dict[str, float] = {}  # by metric, as costs

    def has_more(self) -> bool:
        return True

    def ask(self, number: int) -> Choice:
        choice = next(self.drafts(number))
        self.know(Proposal(number, choice, {}))
        return choice

    def drafts(self, number: int) -> Iterator[Choice]:
        """Points that could be proposal `number`, the sampler's first choice first. They leave nothing behind.

        A draft is a trial that failed: all of Optuna's samplers pass those over. Left open it would keep what the sampler noted
        on it, which no fact could bring back.
        """
        for attempt in range(2 * _TRIES):
            self._study.sampler = self._seeded(number, attempt, self._job.search.sampler if attempt < _TRIES else "random")
            trial = self._study.ask()
            # A Gaussian process is many small products: threads make it slower, and sums that depend on how many there are.
            with threadpool_limits(1) if self._job.search.sampler == "gp" else nullcontext():
                choice = self._suggest(trial)
            self._study.tell(trial, state=TrialState.FAIL)
            yield choice

    def know(self, proposal: Proposal) -> None:
        if not fits(proposal.choice, self._job.space, self._job.recipe):
            return  # a point outside the space teaches the sampler nothing
        self._study.sampler = self._seeded(proposal.number, 0, self._job.search.sampler)
        self._study.enqueue_trial(dict(proposal.choice))
        trial = self._study.ask()
        if self._job.search.sampler in ("nsga2", "nsga3"):
            # Left alone, Optuna waits for the first parameter that is not fixed, and a known trial has none: it would be noted
            # in no generation, and never taken for a parent.
            _ = trial.relative_params
        self._trials[proposal.number] = trial
        self._suggest(trial)

    def tell(self, result: TrialResult) -> None:
        trial = self._trials.pop(result.number, None)
        if trial is None:
            return
        match result.state:
            case "COMPLETE":
                values = {objective.metric: float(result.measurements[objective.metric]) for objective in self._job.objectives}
                self._answer(trial, result, values)
                for objective in self._job.objectives:
                    cost = objective.cost(values[objective.metric])
                    self._worst[objective.metric] = max(cost, self._worst.get(objective.metric, cost))
            case "INFEASIBLE":
                self._answer(
                    trial, result, {o.metric: result.gate.get(o.metric, self._placeholder(o)) for o in self._job.objectives}
                )
            case "STOPPED":
                self._study.tell(trial, state=TrialState.PRUNED)
            case "FAILED":
                self._study.tell(trial, state=TrialState.FAIL)

    def _answer(self, trial: optuna.Trial, result: TrialResult, values: dict[str, float]) -> None:
        """Every trial sets every constraint: one that sets none would count as feasible.

        GP and NSGA read complete trials only, and so an infeasible one is told as complete, with a constraint that is broken:
        by how much, where that was measured before training, and `buildable` where there was nothing to measure.
        """
        unbuildable = result.state == "INFEASIBLE" and not any(amount > 0 for amount in result.constraints.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial.set_constraint(_BUILDABLE, 1.0 if unbuildable else -1.0)
            for metric in self._job.constraints:
                trial.set_constraint(metric, result.constraints.get(metric, 0.0))
        self._study.tell(trial, list(values.values()))

    def _placeholder(self, objective: Objective) -> float:
        """For an objective that was not measured: the worst value seen so far, else the worst still worth having."""
        if objective.metric in self._worst:
            return objective.cost(self._worst[objective.metric])
        return objective.reference or 0.0

    def _suggest(self, trial: optuna.Trial) -> Choice:
        choice: Choice = {}
        for path, domain in self._job.space.items():
            if is_active(domain, choice, self._tree):
                choice[path] = _suggested(trial, path, domain)
        return choice

    def _seeded(self, number: int, attempt: int, sampler: str) -> BaseSampler:
        """A fresh sampler that knows nothing but the study."""
        seed = (self._job.seed * 1_000_003 + number + attempt * 10_000_019) % 2**31
        startup = self._job.search.num_startup
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match sampler:
                case "tpe":
                    return TPESampler(seed=seed, n_startup_trials=startup)
                case "nsga2":
                    return NSGAIISampler(seed=seed, population_size=max(2, startup))
                case "nsga3":
                    return NSGAIIISampler(seed=seed, population_size=max(2, startup))
                case "gp":
                    return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
                case _:
                    return RandomSampler(seed=seed)


def _suggested(trial: optuna.Trial, path: str, domain: Domain) -> Value:
    match domain.kind:
        case "float":
            step = None if domain.step is None else float(domain.step)
            return trial.suggest_float(path, domain.low, domain.high, log=domain.log, step=step)
        case "int":
            return trial.suggest_int(path, int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
        case "choice":
            return cast(Value, trial.suggest_categorical(path, domain.choices or []))
