"""How sure a front is: what errors of measurement, and trainings with other seeds, leave open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

POSSIBLE = 0.05  # a dominated point this likely to be on the front, or more, is possibly on it


@dataclass(frozen=True)
class Replicated:
    """What the trainings of one recipe with several seeds come to.

    Args:
        num_seeds: trainings, the trial's own included; at least 2.
        mean, low, high: per objective, the mean and the 95 % t-interval of it.
        front_probability: of the mean, among the feasible recipes' means.
    """

    num_seeds: int
    mean: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    front_probability: float


@dataclass(frozen=True)
class Certainty:
    """How sure a front is; everything by the ids of trials.

    Args:
        probability: that a feasible trial's file is on the front, were its measurements free of error.
        ties: groups of two or more points of the front that the measurement cannot tell apart in any objective.
        possible: dominated trials that are on the front with a probability of at least `POSSIBLE`.
        seeds: of the trials that have replicates.
    """

    probability: dict[str, float]
    ties: tuple[tuple[str, ...], ...]
    possible: tuple[str, ...]
    seeds: dict[str, Replicated]

    def of(self, trial: str) -> dict[str, Any]:
        """What a point of the JSON says."""
        seeds = self.seeds.get(trial)
        return {"front_probability": self.probability.get(trial)} | ({"seeds": vars(seeds)} if seeds else {})

    def tied_with(self, trial: str) -> str | None:
        """The first of the other members of a trial's group, or None where it ties with nothing."""
        group = next((group for group in self.ties if trial in group), ())
        return next((other for other in group if other != trial), None)
