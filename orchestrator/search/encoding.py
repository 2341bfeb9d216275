"""Points of a space and values of objectives, as numbers that a surrogate can be fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.spec.names import FRACTIONS
from orchestrator.spec.objective import Objective
from orchestrator.spec.space import Choice, Domain, SearchSpace, Value

FloatArray = npt.NDArray[np.float64]

_EDGE = 1e-3  # of a fraction: nearer to 0 or 1 than this nothing is told apart
_TINY = 1e-9


def unit_vector(choice: Choice, space: SearchSpace) -> list[float]:
    """A point in the unit cube: a number by its place in its range (its logarithm's, where the hole has `log`), numbers among
    choices by rank, and an axis for each word. A number that is not asked for lies in the middle, a word on no axis.
    """
    found: list[float] = []
    for path, domain in space.items():
        found += _coordinates(domain, choice.get(path))
    return found


def _coordinates(domain: Domain, value: Value | None) -> list[float]:
    if domain.choices is not None and any(isinstance(each, str | bool) for each in domain.choices):
        return [float(value is not None and type(value) is type(each) and value == each) for each in domain.choices]
    if value is None:
        return [0.5]
    if domain.choices is not None:
        ranked = sorted(float(each) for each in domain.choices)
        return [ranked.index(float(value)) / max(1, len(ranked) - 1)]
    low, high, at = (math.log(x) if domain.log else float(x) for x in (domain.low, domain.high, float(value)))
    return [(at - low) / (high - low) if high > low else 0.5]


@dataclass(frozen=True)
class Scale:
    """An objective on a scale on which equal steps mean about as much: smaller is better.

    A fraction by its log-odds, any other quantity by its logarithm. What is worse than the objective's reference is not worth
    having, and no worse than that: how bad a network is that learned nothing would only blur the differences that count.
    """

    objective: Objective

    def of(self, value: float) -> float:
        """A measured value on the scale."""
        found = self._unbounded(value)
        reference = self.objective.reference
        return found if reference is None else min(found, self._unbounded(reference))

    def costs(self, scaled: FloatArray) -> FloatArray:
        """Back from the scale, as costs to be minimised in the objective's own unit; any shape."""
        signed = -scaled if self.objective.maximized else scaled
        values = 1.0 / (1.0 + np.exp(-signed)) if self._is_fraction else np.exp(signed)
        costs: FloatArray = -values if self.objective.maximized else values
        return costs

    @property
    def _is_fraction(self) -> bool:
        return self.objective.metric in FRACTIONS

    def _unbounded(self, value: float) -> float:
        if self._is_fraction:
            inside = min(max(value, _EDGE), 1.0 - _EDGE)
            found = math.log(inside / (1.0 - inside))
        else:
            found = math.log(max(value, _TINY))
        return -found if self.objective.maximized else found


def scaled_rows(values: Mapping[str, float], scales: list[Scale]) -> list[float | None]:
    """Each objective on its scale, None where it was not measured."""
    return [scale.of(float(values[scale.objective.metric])) if scale.objective.metric in values else None for scale in scales]
