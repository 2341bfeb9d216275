"""The gate's judgement: bounds against what is known of a network before it is trained. A gang measured it; here is no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping

from orchestrator.spec.objective import Constraint

_LATENCY, _LOW, _HIGH = "latency_ms", "latency_ms_low", "latency_ms_high"


def judge(constraints: Mapping[str, Constraint], known: Mapping[str, float]) -> dict[str, float]:
    """How far each known quantity lies outside its bound, in its own unit: <= 0 when satisfied. Others are left out.

    A latency is a measurement, and a shorter one than the final: it breaks a bound as far as all of its interval does, from
    `latency_ms_low` to `latency_ms_high`. A 95th percentile has no interval of its own and never lies below the median, so it
    breaks a "max" as far as the median's low end does.
    """
    return {metric: _amount(bound, *_ends(metric, known)) for metric, bound in constraints.items() if metric in known}


def refusal(constraints: Mapping[str, Constraint], known: Mapping[str, float]) -> str | None:
    """Why a recipe need not be trained: every bound that is broken, what was measured, and by how much; or None."""
    broken = [
        f"{metric} must be {_phrase(constraints[metric])}; it is {known[metric]:.10g} before training, {amount:.10g} beyond"
        for metric, amount in judge(constraints, known).items()
        if amount > 0
    ]
    return "; ".join(broken) or None


def _amount(bound: Constraint, low: float, high: float) -> float:
    """How far the whole of [low, high] lies outside the bound."""
    below = -math.inf if bound.min is None else bound.min - high
    above = -math.inf if bound.max is None else low - bound.max
    return max(below, above)


def _ends(metric: str, known: Mapping[str, float]) -> tuple[float, float]:
    values = [known[metric]]
    if metric.startswith(_LATENCY):
        values += [known[end] for end in (_LOW, _HIGH) if end in known]
    return min(values), max(values)


def _phrase(bound: Constraint) -> str:
    parts = ("at least", bound.min), ("at most", bound.max)
    return " and ".join(f"{word} {limit:.10g}" for word, limit in parts if limit is not None)
