"""Optuna behind the Sampler port, by `study.ask` and `study.tell`.

What differs from handing a study to Ray: stopped trials are told as PRUNED and never as complete, failed ones as FAIL, none is
left running; constraints reach the sampler; and every ask seeds a fresh sampler, so that a search can be replayed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import cast

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.space import Choice, Domain, Value, is_active

_BUILDABLE = "buildable"


class OptunaSampler:
    """One in-memory study; the sweep's folder is its memory.

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
        self._worst: list[float] | None = None

    def ask(self, number: int) -> Choice:
        self._study.sampler = self._fresh_sampler(number)
        trial = self._study.ask()
        # Left alone, Optuna waits for the first parameter that is not fixed, and a known trial has none: NSGA-II would note no
        # generation for it, and never take it for a parent.
        _ = trial.relative_params
        self._trials[number] = trial
        return self._suggest(trial)

    def know(self, proposal: Proposal) -> None:
        if not all(self._inside(path, value) for path, value in proposal.choice.items()):
            return  # a baseline outside the space teaches the sampler nothing
        if proposal.number == 0 and self._job.space.baseline(self._job.recipe) is None:
            return
        self._study.enqueue_trial(dict(proposal.choice))
        self.ask(proposal.number)

    def tell(self, result: TrialResult) -> None:
        trial = self._trials.pop(result.number, None)
        if trial is None:
            return
        match result.state:
            case "COMPLETE":
                self._complete(trial, result)
            case "INFEASIBLE":
                self._infeasible(trial)
            case "STOPPED":
                self._study.tell(trial, state=TrialState.PRUNED)
            case "FAILED":
                self._study.tell(trial, state=TrialState.FAIL)

    def _complete(self, trial: optuna.Trial, result: TrialResult) -> None:
        values = [float(result.measurements[objective.metric]) for objective in self._job.objectives]
        self._constrain(trial, result.constraints, buildable=True)
        self._study.tell(trial, values)
        costs = [objective.cost(value) for objective, value in zip(self._job.objectives, values, strict=True)]
        self._worst = costs if self._worst is None else [max(pair) for pair in zip(self._worst, costs, strict=True)]

    def _infeasible(self, trial: optuna.Trial) -> None:
        """GP and NSGA read complete trials only: told with the worst values seen, and a constraint that is broken."""
        self._constrain(trial, {}, buildable=False)
        worst = self._worst or [0.0] * len(self._job.objectives)
        self._study.tell(trial, [objective.cost(cost) for objective, cost in zip(self._job.objectives, worst, strict=True)])

    def _constrain(self, trial: optuna.Trial, amounts: Mapping[str, float], *, buildable: bool) -> None:
        """Every trial sets every constraint: one that sets none would count as feasible."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial.set_constraint(_BUILDABLE, -1.0 if buildable else 1.0)
            for metric in self._job.constraints:
                trial.set_constraint(metric, amounts.get(metric, 0.0))

    def _suggest(self, trial: optuna.Trial) -> Choice:
        choice: Choice = {}
        for path, domain in self._job.space.items():
            if is_active(domain, choice, self._tree):
                choice[path] = _suggested(trial, path, domain)
        return choice

    def _inside(self, path: str, value: Value) -> bool:
        domain = self._job.space.root.get(path)
        return domain is not None and domain.contains(value)

    def _fresh_sampler(self, number: int) -> BaseSampler:
        seed = (self._job.seed * 1_000_003 + number) % 2**31
        match self._job.search.sampler:
            case "tpe":
                return TPESampler(seed=seed, n_startup_trials=self._job.search.num_startup)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=max(2, self._job.search.num_startup))
            case "random":
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
