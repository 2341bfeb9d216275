"""What is optimised, and what a feasible model has to satisfy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from orchestrator.errors import nearest_name
from orchestrator.spec.names import MAXIMIZED, MEASUREMENTS
from orchestrator.spec.recipe import Strict, violation


def known_metric(metric: str) -> str:
    """Return `metric`, or raise where the product measures nothing of that name."""
    if metric not in MEASUREMENTS:
        raise violation(f"be one of {', '.join(MEASUREMENTS)}", nearest_name(metric, MEASUREMENTS))
    return metric


Metric = Annotated[str, AfterValidator(known_metric)]


class Objective(Strict):
    """One axis of the front. `reference` is the worst value still worth having: the corner of the hypervolume."""

    metric: Metric
    direction: Literal["maximize", "minimize"] | None = None
    reference: float | None = None

    @property
    def maximized(self) -> bool:
        """Whether larger is better: as written, else as the metric's name implies."""
        if self.direction is not None:
            return self.direction == "maximize"
        return self.metric in MAXIMIZED

    def cost(self, value: float) -> float:
        """`value` as a quantity to be minimised."""
        return -value if self.maximized else value


class Constraint(Strict):
    """A bound on one measurement; `amount` is how far a value lies outside it."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise violation("have min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise violation(f"have min <= max; given min {self.min} and max {self.max}")
        return self

    def amount(self, value: float) -> float:
        """How much `value` breaks the bound, in its own unit: <= 0 when satisfied (Optuna's convention)."""
        below = self.min - value if self.min is not None else float("-inf")
        above = value - self.max if self.max is not None else float("-inf")
        return max(below, above)
