"""Who searches the table in simulated time: the product's own searcher, and Optuna as its users write it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection

from orchestrator.cluster.referee import Referee
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.proposer import Proposer
from orchestrator.spec.job import Job
from orchestrator.spec.space import Choice, Value, fill, is_active


class Ours:
    """The product: baseline first, then its proposer; its referee stops trials, and has them go on when the fresh are used up.

    Args:
        job: with the sampler, the stopping rule and the seed.
        trials: fresh ones.
    """

    def __init__(self, job: Job, trials: int) -> None:
        self._job, self._trials = job, trials
        self._proposer, self._referee = Proposer(job), Referee(job)
        self._rungs: dict[int, dict[int, str]] = {}
        self._gate: dict[int, dict[str, float]] = {}

    def ask(self, number: int) -> Choice | None:
        proposal = self._fresh(number) if number < self._trials else self._promoted(number)
        if proposal is None:
            return None
        self._rungs[number] = {epoch: stage for stage, epoch in self._referee.rungs(proposal)}
        return proposal.choice

    def _fresh(self, number: int) -> Proposal | None:
        if number == 0 and (baseline := self._job.space.baseline(self._job.recipe)) is not None:
            proposal = Proposal(0, baseline, self._recipe(baseline), source="baseline")
            self._proposer.know(proposal)
            return proposal
        if not self._proposer.has_more():
            return None
        choice = self._proposer.ask(number)
        return Proposal(number, choice, self._recipe(choice))

    def _promoted(self, number: int) -> Proposal | None:
        before = self._referee.promotable()
        if before is None:
            return None
        proposal = Proposal(number, before.choice, before.recipe, source="promotion", continues=before.number)
        self._proposer.know(proposal)
        return proposal

    def _recipe(self, choice: Choice) -> dict[str, Any]:
        return fill(self._job.recipe, choice).model_dump(mode="json")

    def begins(self, number: int, gate: dict[str, float]) -> None:
        self._gate[number] = gate

    def stops(self, number: int, epoch: int, accuracy: float) -> bool:
        stage = self._rungs[number].get(epoch - 1)
        if stage is None:
            return False
        report = {"stage": stage, "epoch": epoch - 1, "val_accuracy": accuracy, "gate": self._gate[number]}
        return not self._referee.goes_on(number, report)

    def ended(self, result: TrialResult) -> None:
        self._proposer.tell(result)
        self._referee.ended(result)


class Optuna:
    """A study by ask and tell with default settings: no gate, no stopping, and a point asked for twice is run twice."""

    def __init__(self, job: Job, sampler: BaseSampler) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # GP warns at each conditional hole, for each trial
        self._job, self._tree = job, job.recipe.model_dump()
        directions = [StudyDirection.MAXIMIZE if o.maximized else StudyDirection.MINIMIZE for o in job.objectives]
        self._study = optuna.create_study(directions=directions, sampler=sampler)
        self._trials: dict[int, optuna.Trial] = {}

    def ask(self, number: int) -> Choice | None:
        trial = self._trials[number] = self._study.ask()
        return suggested(trial, self._job, self._tree)

    def begins(self, number: int, gate: dict[str, float]) -> None:
        """Nothing is known before the end."""

    def stops(self, number: int, epoch: int, accuracy: float) -> bool:
        return False

    def ended(self, result: TrialResult) -> None:
        trial = self._trials.pop(result.number)
        if result.state == "COMPLETE":
            self._study.tell(trial, [result.measurements[o.metric] for o in self._job.objectives])
        else:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)


def suggested(trial: optuna.Trial, job: Job, tree: dict[str, Any]) -> Choice:
    """The space, as a user of Optuna writes it: floats with a step, whole numbers with a step, categories, and conditions."""
    choice: Choice = {}
    for path, domain in job.space.items():
        if not is_active(domain, choice, tree):
            continue
        if domain.choices is not None:
            choice[path] = cast(Value, trial.suggest_categorical(path, domain.choices))
        elif domain.kind == "int":
            choice[path] = trial.suggest_int(path, int(domain.low), int(domain.high), step=int(domain.step or 1))
        else:
            choice[path] = round(trial.suggest_float(path, domain.low, domain.high, step=domain.step), 10)
    return choice


def optuna_samplers(seed: int) -> dict[str, Callable[[], BaseSampler]]:
    """How to make Optuna's samplers with their defaults, by the name under which they are reported."""
    return {
        "Optuna random": lambda: RandomSampler(seed=seed),
        "Optuna NSGA-II": lambda: NSGAIISampler(seed=seed),
        "Optuna TPE": lambda: TPESampler(seed=seed),
        "Optuna GP": lambda: _gp(seed),
    }


def _gp(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return GPSampler(seed=seed)


def with_search(job: Job, seed: int, sampler: str, **stopping: Any) -> Job:
    """The job with another seed, sampler and stopping rule."""
    tree = job.tree()
    tree |= {"seed": seed, "search": tree["search"] | {"sampler": sampler}, "stopping": tree.get("stopping", {}) | stopping}
    return Job.model_validate(tree)
