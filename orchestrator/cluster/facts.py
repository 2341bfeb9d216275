"""What the facts of a sweep come to: what was spent and won, and which seeds of its front are missing. Plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.pareto.front import find_front, history
from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.budget import End, Spent, device_seconds, goal, limit
from orchestrator.search.ladder import wanted
from orchestrator.search.points import Key, point_key
from orchestrator.spec.job import Job
from orchestrator.spec.space import Choice
from orchestrator.trial.order import derived_seed


class Facts:
    """Proposals and ends in memory, as they are on disk."""

    def __init__(self, job: Job, proposals: Sequence[Proposal] = (), results: Sequence[TrialResult] = ()) -> None:
        self._job = job
        self.proposals = {proposal.number: proposal for proposal in proposals}
        self.results = {result.number: result for result in results}
        self.points: set[Key] = {point_key(proposal.choice, job.space) for proposal in proposals}
        self.spent = self._count()
        self._front: list[int] | None = None

    def proposed(self, proposal: Proposal) -> None:
        self.proposals[proposal.number] = proposal
        self.points.add(point_key(proposal.choice, self._job.space))
        self.spent = replace(self.spent, fresh=self.spent.fresh + proposal.fresh)

    def ended(self, result: TrialResult) -> None:
        self.results[result.number] = result
        self.spent = self._count()
        if not self.is_replicate(result.number):
            self._front = None

    @property
    def next_number(self) -> int:
        """After the last: a number whose proposal was lost is not used again."""
        return max([-1, *self.proposals, *self.results]) + 1

    @property
    def unended(self) -> list[Proposal]:
        return [proposal for number, proposal in list(self.proposals.items()) if number not in self.results]

    @property
    def searched(self) -> list[TrialResult]:
        """Ends of what the search asked for: all but replicates."""
        return [result for number, result in self.results.items() if not self.is_replicate(number)]

    def is_replicate(self, number: int) -> bool:
        proposal = self.proposals.get(number)
        return proposal is not None and proposal.replicate_of is not None

    def seed(self, proposal: Proposal) -> int:
        """The sweep's; for the n-th replicate of a trial the n-th other one, the same for every trial."""
        if proposal.replicate_of is None:
            return self._job.seed
        siblings = [known.number for known in self.proposals.values() if known.replicate_of == proposal.replicate_of]
        return derived_seed(self._job.seed, "replicate", 1 + sum(number < proposal.number for number in siblings))

    def missing_seeds(self) -> list[int]:
        """Trials of the front that want another seed, each as often as it does; none before the front is final.

        Seed by seed over the whole front, so that its points share what they can share, a teacher above all.
        """
        if self._job.budget.seeds == 1 or not all(self.is_replicate(proposal.number) for proposal in self.unended):
            return []
        had = Counter(proposal.replicate_of for proposal in self.proposals.values())
        return [number for nth in range(1, self._job.budget.seeds) for number in self.front() if had[number] < nth]

    def front(self) -> list[int]:
        """The trials on the front as it is, replicates left out."""
        if self._front is None:
            self._front = [point.number for point in find_front(self.searched, self._job.objectives).points]
        return self._front

    def wanted_form(self) -> tuple[int, Choice] | None:
        """The next form of a network of the front that is worth having, and whose; None where the job asks for none."""
        if not self._job.search.bit_ladder:
            return None
        worth = [number for number in self.front() if self._is_worth_having(self.results[number])]
        return wanted(self._job, [(number, self.results[number].choice) for number in worth], self.points)

    def _is_worth_having(self, result: TrialResult) -> bool:
        """Whether no objective is worse than the reference that the job names for it."""
        named = [(o, o.reference) for o in self._job.objectives if o.reference is not None]
        return all(o.cost(float(result.measurements[o.metric])) <= o.cost(reference) for o, reference in named)

    def end(self) -> End | None:
        """Why nothing is to be run, as far as facts tell: not that a space has no more points, nor what rules want."""
        budget, done = self._job.budget, goal(self._job.budget, self.spent)
        more = self._job.stopping.promote or self._job.search.bit_ladder
        if done is not None and not (self.unended or self.missing_seeds() or more):
            return done
        return limit(budget, self.spent)

    def _count(self) -> Spent:
        return Spent(
            fresh=sum(proposal.fresh for proposal in self.proposals.values()),
            device_seconds=device_seconds(self.results.values(), self._job.resources),
            failures=sum(result.state == "FAILED" for result in self.results.values()),
            volumes=self._volumes() if self._job.budget.plateau is not None else (),
        )

    def _volumes(self) -> list[float]:
        """The hypervolume after each fresh trial that ended otherwise than FAILED, in the order in which they ended."""
        ended = [result for result in self.searched if result.state != "FAILED"]
        ended.sort(key=lambda result: (result.ended, result.number))
        volumes = history(ended, self._job.objectives)
        proposals = [self.proposals.get(result.number) for result in ended]
        return [volume for known, volume in zip(proposals, volumes, strict=True) if known is None or known.fresh]
