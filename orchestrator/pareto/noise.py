"""What the measurement can tell apart: standard errors, ties, and how likely a point is to be non-dominated.

Errors of different points and objectives are taken to be independent and normal. Files that are judged on the same images
share some of the luck of that draw, so their true difference is known better than is said here: rather too many points tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.pareto.dominance import BoolArray, FloatArray, finite_points

Z = 1.959963984540054  # a normal variable lies within +-Z standard errors with probability 0.95
_BEYOND = 6.0  # standard errors that no draw reaches, for what it matters
_CELLS = 4_000_000  # pairs of points that are compared at once: some megabytes

# Fractions of the `num_eval_samples` images. For `worst_class_accuracy` (one class) and `robust_accuracy` (those attacked) it
# is at most so many, and the error at least the one given here.
COUNTED = frozenset({"accuracy", "worst_class_accuracy", "robust_accuracy", "flip_rate", "agreement"})


def wilson_error(fraction: float, samples: int) -> float:
    """Return a standard error of a fraction that was counted over `samples` independent images.

    It is half the width of Wilson's 95 % interval, in units of `Z`: close to sqrt(p (1 - p) / n) in the middle, and above 0
    where no image, or every image, was right. Two fractions differ when their distance is above Z times the root of the
    summed squares: Newcombe's interval of a difference, with the two halves of each Wilson interval taken as equal.

    Sources: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference"; Newcombe 1998, "Interval
    estimation for the difference between independent proportions" (Statistics in Medicine 17), method 10.

    Args:
        fraction: in [0, 1].
        samples: >= 1.
    """
    if samples < 1 or not 0.0 <= fraction <= 1.0:
        raise ValueError(f"must be a fraction in [0, 1] of at least one sample; given {fraction} of {samples}")
    variance = fraction * (1.0 - fraction) / samples + Z**2 / (4.0 * samples**2)
    return float(np.sqrt(variance) / (1.0 + Z**2 / samples))


def standard_error(metric: str, measurements: Mapping[str, Any]) -> float:
    """Return the standard error of one measurement, in its own unit; 0 where it is exact, or where nothing is known.

    A fraction of images has Wilson's, a metric with `<metric>_low` and `<metric>_high` (95 % ends, as of `latency_ms`) the
    one that a normal variable with that interval has.
    """
    samples = measurements.get("num_eval_samples")
    if metric in COUNTED and samples:
        return wilson_error(float(measurements[metric]), int(samples))
    low, high = measurements.get(f"{metric}_low"), measurements.get(f"{metric}_high")
    return 0.0 if low is None or high is None else max(0.0, float(high) - float(low)) / (2.0 * Z)


def tie_groups(values: FloatArray, errors: FloatArray) -> list[list[int]]:
    """Put together points of which no two can be told apart in any objective, at 95 % confidence a pair and objective.

    Being alike is not transitive: a chain may lead from one end of the front to the other. So a point joins the first group
    with whose every member it ties, and begins one of its own where there is none: the order of the points decides.

    Args:
        values: (N, M) float64, finite, M >= 1. N may be 0.
        errors: (N, M) float64, finite, >= 0: standard errors. Two exact values tie when they are equal.

    Returns:
        Every index in [0, N) in exactly one group; groups by their first member, members rising.

    Raises:
        ValueError: wrong shapes, or a value out of range.
    """
    points, spread = _measured(values, errors)
    groups: list[list[int]] = []
    for index, point in enumerate(points):
        alike = (np.abs(points - point) <= Z * np.hypot(spread, spread[index])).all(axis=1)
        home = next((group for group in groups if alike[group].all()), None)
        if home is None:
            groups.append([index])
        else:
            home.append(index)
    return groups


def front_probability(values: FloatArray, errors: FloatArray, draws: int = 1000, seed: int = 0) -> FloatArray:
    """Return how likely each point is to be non-dominated, were the true values known.

    Monte Carlo: the share of `draws` in which a point is non-dominated after every value was moved by a normal error of its
    own. It errs by up to about 0.5 / sqrt(draws). Points that another one dominates beyond any doubt are left out of the
    draws: they are never on the front, and whom they dominate the other one dominates too.

    Args:
        values: (N, M) float64, finite, minimised, M >= 1. N may be 0.
        errors: (N, M) float64, finite, >= 0: standard errors.
        draws: >= 1.
        seed: the same seed, the same answer.

    Returns:
        (N,) float64 in [0, 1]; 0 or 1 as `non_dominated_mask` says where all errors are 0.

    Raises:
        ValueError: wrong shapes, a value out of range, or draws < 1.
    """
    points, spread = _measured(values, errors)
    if draws < 1:
        raise ValueError(f"draws must be >= 1; given {draws}")
    alive = contenders(points - _BEYOND * spread, points + _BEYOND * spread)
    noise = np.random.default_rng(seed).standard_normal(
        (draws if spread[alive].any() else 1, int(alive.sum()), points.shape[1])
    )
    probability = np.zeros(len(points))
    probability[alive] = share_on_front(points[alive] + spread[alive] * noise)
    return probability


def contenders(low: FloatArray, high: FloatArray) -> BoolArray:
    """Tell which boxes [low, high] no other box dominates whatever point each of them stands for; (N, M) each, gives (N,)."""
    alive = np.ones(len(low), dtype=np.bool_)
    for index in range(len(low)):
        alive[index] = not ((high <= low[index]).all(axis=1) & (high < low[index]).any(axis=1)).any()
    return alive


def share_on_front(draws_DNM: FloatArray) -> FloatArray:
    """Return (N,) the share of D draws in which each of N points of M minimised objectives is non-dominated."""
    draws, count, objectives = draws_DNM.shape
    step = max(1, _CELLS // max(1, count**2))
    on_front = np.zeros(count)
    for start in range(0, draws, step):
        part = draws_DNM[start : start + step]
        no_worse = np.ones((len(part), count, count), dtype=np.bool_)
        for column in range(objectives):
            no_worse &= part[:, :, None, column] <= part[:, None, :, column]
        dominates = no_worse & ~no_worse.transpose(0, 2, 1)
        on_front += (~dominates.any(axis=1)).sum(axis=0)
    return np.asarray(on_front / draws)


def _measured(values: FloatArray, errors: FloatArray) -> tuple[FloatArray, FloatArray]:
    points, spread = finite_points(values), np.asarray(errors, dtype=np.float64)
    if spread.shape != points.shape:
        raise ValueError(f"errors must have shape {points.shape}; given {spread.shape}")
    if not (np.isfinite(spread) & (spread >= 0)).all():
        raise ValueError("errors must be finite and >= 0")
    return points, spread
