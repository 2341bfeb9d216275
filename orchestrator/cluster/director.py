"""What a sweep runs next, and who is told how a trial ended. Plain Python, without Ray and without threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from orchestrator.cluster.connection import NAMESPACE
from orchestrator.cluster.facts import Facts
from orchestrator.cluster.referee import Referee
from orchestrator.errors import UnbuildableError
from orchestrator.results.store import Sweep
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.budget import End, goal, limit, num_devices
from orchestrator.search.sampler import Sampler, replay
from orchestrator.spec.complaint import demand
from orchestrator.spec.job import Job
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.space import Choice, with_value
from orchestrator.trial.order import Order

_FINISHED = "FINISHED"  # ray.tune.search.Searcher.FINISHED, held to it by a test


class Observer(Protocol):
    """Is told what happens, in the driver, in order. Must return at once and raise nothing."""

    def phase(self, text: str) -> None: ...  # something that takes seconds begins

    def proposed(self, proposal: Proposal) -> None: ...  # a trial was asked for

    def ended(self, result: TrialResult) -> None: ...  # a trial's result is on disk

    def running(self, trials: dict[int, dict[str, Any]]) -> None: ...  # how far they are; about twice a second


@dataclass
class Director:
    """Decides what Tune is given next, from the sampler, the facts and the budget."""

    job: Job
    sweep: Sweep
    sampler: Sampler
    stages: Path
    observers: Sequence[Observer]
    slots: int = 1
    desk: str = ""
    submit: Callable[[Order], None] = lambda order: None
    stopping: bool = False
    watch: Callable[[int, list[tuple[str, int]]], None] = lambda number, rungs: None
    judge: Callable[[int, bool], None] = lambda number, goes_on: None
    _told: list[int] = field(default_factory=list)
    _again: list[Proposal] = field(default_factory=list)
    _in_flight: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.facts = Facts(self.job)
        self.referee = Referee(self.job)

    def recall(self) -> None:
        """Take in the facts: what ended is told to the sampler, what did not is run again."""
        self.facts = Facts(self.job, self.sweep.proposals(), self.sweep.results())
        searched = [proposal for proposal in self.facts.proposals.values() if proposal.replicate_of is None]
        self._told = replay(self.sampler, searched, self.facts.searched)
        self._again = self.facts.unended
        self.referee = Referee(self.job)
        self.referee.recall(self.facts.proposals.values(), self.facts.results.values())

    @property
    def remaining(self) -> int:
        """Trials that are still to be run, as far as is known: the seeds of a front are, once the front is final."""
        if self.goal() is None:
            ahead = self.job.budget.trials - self.facts.spent.fresh
        else:
            wanted = (self.referee.promotable() is not None) + (self.facts.wanted_form() is not None)
            ahead = len(self.facts.missing_seeds()) + wanted
        return sum(proposal.number not in self._in_flight for proposal in self.facts.unended) + ahead

    def goal(self) -> End | None:
        """Why the search is done, or None while it is not."""
        return goal(self.job.budget, replace(self.facts.spent, exhausted=not self.sampler.has_more()))

    def limit(self, seconds: float = 0.0, under_way: float = 0.0) -> End | None:
        """Why what is left is not to be run, or None where it is.

        Args:
            seconds: wall clock of this run.
            under_way: seconds of the trials that run now, summed.
        """
        spent = self.facts.spent
        devices = spent.device_seconds + num_devices(self.job.resources) * under_way
        found = limit(self.job.budget, replace(spent, seconds=seconds, device_seconds=devices))
        return found if found is not None and (self._in_flight or self.remaining) else None

    def ending(self) -> End | None:
        """Why there is nothing to run, or None while there is."""
        return self.limit() or (None if self.remaining else self.goal())

    def next_config(self) -> dict[str, Any] | str | None:
        """Tune's next trial; nothing while every gang has one and one more waits, or while ends decide whether there is one."""
        while not self.stopping and self.limit() is None:
            if len(self._in_flight) > self.slots:
                return None
            proposal = self._choose()
            if proposal is None:
                return None if self._in_flight and self._depends_on_ends() else _FINISHED
            for observer in self.observers:
                observer.proposed(proposal)
            _, wrong = _checked(proposal.recipe)
            if wrong:
                self._refuse(proposal, wrong)
                continue
            self._in_flight.add(proposal.number)
            if rungs := self.referee.rungs(proposal):
                self.watch(proposal.number, rungs)
            self.submit(self._order(proposal))
            return {"number": proposal.number, "desk": self.desk, "namespace": NAMESPACE}
        return _FINISHED

    def _choose(self) -> Proposal | None:
        """What has not ended, forms of the front's networks, fresh points, stopped trials, at the end seeds of the front."""
        if self._again:
            return self._again.pop(0)
        if (form := self.facts.wanted_form()) is not None:
            return self._derive(*form)
        if self.goal() is None:
            return self._propose()
        if (wanted := self.referee.promotable()) is not None:
            return self._promote(wanted)
        missing = self.facts.missing_seeds()
        return self._replicate(missing[0]) if missing else None

    def _depends_on_ends(self) -> bool:
        """Whether what is under way may bring more to run: a plateau that is left, a front that becomes final or has forms."""
        end = self.goal()
        more = self.job.budget.seeds > 1 or self.job.stopping.promote or self.job.search.bit_ladder
        return more or (end is not None and end.reason == "plateau")

    def judged(self, number: int, report: dict[str, Any]) -> None:
        """Say whether a trial that has come to a rung goes on. If not it ends by itself, as STOPPED."""
        self.judge(number, self.referee.goes_on(number, report))

    def ended(self, number: int, outcome: dict[str, Any] | None) -> None:
        """Tell the sampler and the observers what the facts say."""
        self._in_flight.discard(number)
        result = self.sweep.result(number)
        if result is None:
            if outcome is None or outcome["outcome"] != "failed":
                return  # given up, not ended: it will be run again
            failure = {key: str(outcome[key]) for key in ("class", "message", "traceback")}
            proposal, now = self.facts.proposals[number], time.time()
            seed = self.facts.seed(proposal)
            result = TrialResult(number, "FAILED", proposal.choice, failure=failure, seed=seed, started=now, ended=now)
            self.sweep.finish(result)
        self._tell(result)

    def _refuse(self, proposal: Proposal, wrong: str) -> None:
        """End a proposal whose values fit their own limits and not each other, as one whose network cannot be built."""
        failure = {"class": UnbuildableError.__name__, "message": wrong, "traceback": ""}
        number, choice, seed, now = proposal.number, proposal.choice, self.facts.seed(proposal), time.time()
        result = TrialResult(number, "INFEASIBLE", choice, failure=failure, seed=seed, started=now, ended=now)
        self.sweep.finish(result)
        self._tell(result)

    def _tell(self, result: TrialResult) -> None:
        self.facts.ended(result)
        self.referee.ended(result)
        if not self.facts.is_replicate(result.number):
            self.sampler.tell(result)
            self._told.append(result.number)
        for observer in self.observers:
            observer.ended(result)

    def _propose(self) -> Proposal:
        number = self.facts.next_number
        if number == 0:
            baseline = self.job.space.baseline(self.job.recipe)
            proposal = Proposal(0, baseline or {}, self.job.recipe.model_dump(mode="json"), source="baseline")
            self.sampler.know(proposal)
        else:
            choice = self.sampler.ask(number)
            recipe, _ = _checked(_with_holes_filled(self.job.recipe, choice))
            proposal = Proposal(number, choice, recipe, told=self._told)
        self._told = []
        return self._recorded(proposal)

    def _replicate(self, original: int) -> Proposal:
        """A trial of the front once more, with another seed. The sampler hears nothing of it."""
        known, number = self.facts.proposals[original], self.facts.next_number
        return self._recorded(Proposal(number, known.choice, known.recipe, "replicate", replicate_of=original))

    def _derive(self, original: int, choice: Choice) -> Proposal:
        """A network of the front at other bit widths: a trial of its own, whose training is in the stage store."""
        number, told = self.facts.next_number, self._told
        recipe, _ = _checked(_with_holes_filled(self.job.recipe, choice))
        proposal = Proposal(number, choice, recipe, "bit_ladder", told, derived_from=original)
        self.sampler.know(proposal)
        self._told = []
        return self._recorded(proposal)

    def _promote(self, stopped: Proposal) -> Proposal:
        """A stopped trial goes on, as a proposal of its own: the same recipe finds in the store how far it was."""
        number, told = self.facts.next_number, self._told
        proposal = Proposal(number, stopped.choice, stopped.recipe, "promotion", told, continues=stopped.number)
        self.sampler.know(proposal)
        self._told = []
        return self._recorded(proposal)

    def _recorded(self, proposal: Proposal) -> Proposal:
        self.sweep.propose(proposal)
        self.facts.proposed(proposal)
        return proposal

    def _order(self, proposal: Proposal) -> Order:
        resources = self.job.resources
        return Order(
            number=proposal.number,
            choice=proposal.choice,
            recipe=proposal.recipe,
            constraints={metric: bound.model_dump() for metric, bound in self.job.constraints.items()},
            sweep_seed=self.facts.seed(proposal),
            folder=str(self.sweep.trial_folder(proposal.number)),
            stages=str(self.stages),
            threads=resources.threads_per_worker,
            device="cuda" if resources.gpus_per_worker > 0 else "cpu",
            objectives=self.referee.looks_at,
        )


def _with_holes_filled(recipe: Recipe, choice: Choice) -> dict[str, Any]:
    tree = recipe.model_dump(mode="json")
    for path, value in choice.items():
        tree = with_value(tree, path, value)
    return tree


def _checked(tree: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A recipe as plain data, and what is wrong with it ("" when nothing is; else the data comes back as they are)."""
    try:
        return Recipe.model_validate(tree).model_dump(mode="json"), ""
    except ValidationError as error:
        first = error.errors()[0]
        must, given, _ = demand(first)
        return tree, f"{'.'.join(map(str, first['loc']))}: must {must}; given {given}"
