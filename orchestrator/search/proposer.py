"""The sampler of a sweep: what is proposed first, who is asked then, and that no point is proposed twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from orchestrator.errors import SpaceExhausted
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.ehvi import EhviSampler
from orchestrator.search.optuna_sampler import MODELLED, OptunaSampler
from orchestrator.search.points import Key, grid, is_finite, one_at_a_time, point_key, quasi_random
from orchestrator.spec.job import Job
from orchestrator.spec.seeding import completed
from orchestrator.spec.space import Choice, SearchSpace

_SOBOL_POINTS = {True: 2**14, False: 2**20}  # of a finite space, whose last points are found in order; of any other


class Proposer:
    """Seeds, sensitivity pass, the points of the job's sampler, and then, where the space is finite, whatever points are left.

    A point that was proposed before is passed over: its result is known to the sampler already, and telling it again would
    count it twice. Only a sampler that cannot be moved from such a point, in a space with a continuous hole, has it again.

    What is proposed depends on the job, on what was proposed and on what was told, and on nothing that was passed over.
    """

    def __init__(self, job: Job) -> None:
        space, recipe, sampler = job.space, job.recipe, job.search.sampler
        self._space = space
        self._taken: set[Key] = set()
        self._model = EhviSampler(job) if sampler == "ehvi" else OptunaSampler(job) if sampler in MODELLED else None
        finite = is_finite(space)
        points: Iterator[Choice] = iter(())
        if sampler == "grid":
            points = grid(space, recipe, job.search.grid_points)
        elif sampler == "qmc":
            points = quasi_random(space, recipe, job.seed, _SOBOL_POINTS[finite])
        seeds = (completed(seed, space, recipe) for seed in job.search.seeds)
        baseline = space.baseline(recipe) if job.search.one_at_a_time else None
        steps = one_at_a_time(baseline, space, recipe) if baseline is not None else iter(())
        self._first = _New(chain(seeds, steps, points), space, self._taken)
        rest = grid(space, recipe, 2) if finite and sampler != "grid" else iter(())
        self._rest = _New(rest, space, self._taken)
        self._endless = self._model is not None and not finite
        self._whole = self._rest if finite and sampler != "grid" else self._first  # empty when there is nothing left at all

    def has_more(self) -> bool:
        return self._endless or self._whole.head() is not None

    def ask(self, number: int) -> Choice:
        if not self.has_more():
            raise SpaceExhausted(f"a point must be left to propose; all {len(self._taken)} were proposed")
        choice = self._first.head()
        if choice is None:
            choice = self._modelled(number)
        self.know(Proposal(number, choice, {}))
        return choice

    def know(self, proposal: Proposal) -> None:
        self._taken.add(point_key(proposal.choice, self._space))
        if self._model is not None:
            self._model.know(proposal)

    def tell(self, result: TrialResult) -> None:
        if self._model is not None:
            self._model.tell(result)

    def _modelled(self, number: int) -> Choice:
        """The sampler's first draft that is new, else the first point left, else (in an endless space) its last draft."""
        draft = None
        for draft in self._model.drafts(number) if self._model is not None else ():
            if point_key(draft, self._space) not in self._taken:
                return draft
        left = self._rest.head()
        choice = draft if left is None else left
        assert choice is not None, "there is more"
        return choice


class _New:
    """Of a sequence of points the first that was not proposed yet."""

    def __init__(self, points: Iterator[Choice], space: SearchSpace, taken: set[Key]) -> None:
        self._points, self._space, self._taken = points, space, taken
        self._head = next(points, None)

    def head(self) -> Choice | None:
        while self._head is not None and point_key(self._head, self._space) in self._taken:
            self._head = next(self._points, None)
        return self._head
