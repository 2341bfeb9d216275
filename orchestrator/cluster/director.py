"""What a sweep runs next, and who is told how a trial ended. Plain Python, without Ray and without threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from orchestrator.cluster.connection import NAMESPACE
from orchestrator.errors import UnbuildableError
from orchestrator.results.store import Sweep
from orchestrator.results.trial_result import Proposal, TrialResult
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
    _next: int = 0
    _num_proposed: int = 0
    _told: list[int] = field(default_factory=list)
    _again: list[Proposal] = field(default_factory=list)
    _in_flight: set[int] = field(default_factory=set)

    def recall(self) -> None:
        """Take in the facts: what ended is told to the sampler, what did not is run again."""
        proposals, results = self.sweep.proposals(), self.sweep.results()
        self._told = replay(self.sampler, proposals, results)
        ended = {result.number for result in results}
        self._again = [proposal for proposal in proposals if proposal.number not in ended]
        self._num_proposed = len(proposals)
        # After the last: a number whose proposal was lost is not used again.
        self._next = max([-1, *(proposal.number for proposal in proposals), *ended]) + 1

    @property
    def remaining(self) -> int:
        """Trials that are still to be run."""
        return len(self._again) + max(0, self.job.budget.trials - self._num_proposed)

    def next_config(self) -> dict[str, Any] | str | None:
        """Tune's next trial; nothing while every gang has one and one more waits."""
        while not self.stopping and self.remaining > 0:
            if len(self._in_flight) > self.slots:
                return None
            proposal = self._again.pop(0) if self._again else self._propose()
            for observer in self.observers:
                observer.proposed(proposal)
            _, wrong = _checked(proposal.recipe)
            if wrong:
                self._refuse(proposal, wrong)
                continue
            self._in_flight.add(proposal.number)
            self.submit(self._order(proposal))
            return {"number": proposal.number, "desk": self.desk, "namespace": NAMESPACE}
        return _FINISHED

    def ended(self, number: int, outcome: dict[str, Any] | None) -> None:
        """Tell the sampler and the observers what the facts say."""
        self._in_flight.discard(number)
        result = self.sweep.result(number)
        if result is None:
            if outcome is None or outcome["outcome"] != "failed":
                return  # given up, not ended: it will be run again
            failure = {key: str(outcome[key]) for key in ("class", "message", "traceback")}
            proposal = next(known for known in self.sweep.proposals() if known.number == number)
            now = time.time()
            result = TrialResult(number, "FAILED", proposal.choice, failure=failure, seed=self.job.seed, started=now, ended=now)
            self.sweep.finish(result)
        self._tell(result)

    def _refuse(self, proposal: Proposal, wrong: str) -> None:
        """End a proposal whose values fit their own limits and not each other, as one whose network cannot be built."""
        failure = {"class": UnbuildableError.__name__, "message": wrong, "traceback": ""}
        number, choice, now = proposal.number, proposal.choice, time.time()
        result = TrialResult(number, "INFEASIBLE", choice, failure=failure, seed=self.job.seed, started=now, ended=now)
        self.sweep.finish(result)
        self._tell(result)

    def _tell(self, result: TrialResult) -> None:
        self.sampler.tell(result)
        self._told.append(result.number)
        for observer in self.observers:
            observer.ended(result)

    def _propose(self) -> Proposal:
        number = self._next
        if number == 0:
            baseline = self.job.space.baseline(self.job.recipe)
            proposal = Proposal(0, baseline or {}, self.job.recipe.model_dump(mode="json"), source="baseline")
            self.sampler.know(proposal)
        else:
            choice = self.sampler.ask(number)
            recipe, _ = _checked(_with_holes_filled(self.job.recipe, choice))
            proposal = Proposal(number, choice, recipe, told=self._told)
        self.sweep.propose(proposal)
        self._next, self._num_proposed, self._told = number + 1, self._num_proposed + 1, []
        return proposal

    def _order(self, proposal: Proposal) -> Order:
        resources = self.job.resources
        return Order(
            number=proposal.number,
            choice=proposal.choice,
            recipe=proposal.recipe,
            constraints={metric: bound.model_dump() for metric, bound in self.job.constraints.items()},
            sweep_seed=self.job.seed,
            folder=str(self.sweep.trial_folder(proposal.number)),
            stages=str(self.stages),
            threads=resources.threads_per_worker,
            device="cuda" if resources.gpus_per_worker > 0 else "cpu",
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
