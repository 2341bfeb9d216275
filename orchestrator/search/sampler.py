"""The port through which a sweep searches, and how a search is brought back from its facts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.spec.space import Choice


class Sampler(Protocol):
    """Proposes points of a search space, and is told how they ended."""

    def has_more(self) -> bool:
        """Whether there is a point left to propose. A grid ends, and so does every search of a space with few points."""

    def ask(self, number: int) -> Choice:
        """The point of proposal `number`. The same facts in the same order give the same point.

        Raises:
            SpaceExhausted: every point was proposed before.
        """

    def tell(self, result: TrialResult) -> None:
        """Take in how a proposal ended."""

    def know(self, proposal: Proposal) -> None:
        """Take in a proposal that was made before, as if it had just been asked for."""


def replay(sampler: Sampler, proposals: Iterable[Proposal], results: Iterable[TrialResult]) -> list[int]:
    """Bring a fresh sampler to where the facts leave it: every proposal by number, each after the ends that came before it.

    Returns the numbers of the ends that no proposal followed; they are told last, by the time they came.
    """
    ends = {result.number: result for result in sorted(results, key=lambda result: (result.ended, result.number))}
    for proposal in sorted(proposals, key=lambda proposal: proposal.number):
        for number in proposal.told:
            if number in ends:
                sampler.tell(ends.pop(number))
        sampler.know(proposal)
    for result in ends.values():
        sampler.tell(result)
    return list(ends)
