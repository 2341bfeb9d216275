"""Who dominates whom. All objectives are minimised; the caller negates what is to be maximised."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


def finite_points(values: FloatArray) -> FloatArray:
    """Return `values` as points that can be compared.

    Args:
        values: (N, M) float64 (other real types are converted): N >= 0 points in M >= 1 objectives.

    Returns:
        (N, M) float64, a new array; -0.0 becomes 0.0, so that equal coordinates are equal bit by bit.

    Raises:
        ValueError: not two-dimensional, no objective, or a coordinate that is NaN or infinite.
    """
    points = np.asarray(values, dtype=np.float64) + 0.0
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(f"values must have shape (N, M) with M >= 1; given {points.shape}")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise ValueError(f"values must be finite; given {points[bad[0]].tolist()} in row {bad[0]}")
    return points


def non_dominated_mask(values: FloatArray) -> BoolArray:
    """Tell which points no other point dominates.

    A point dominates another when it is nowhere worse and somewhere better, so equal points do not dominate each
    other: duplicates share their fate. O(N F M) time with F distinct points on the front, O(N M) memory.

    Source: Deb, Pratap, Agarwal and Meyarivan 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II",
    section III-A, for the relation. Distinct points are visited in lexicographic order, in which whoever dominates
    comes first (the idea of Kung, Luccio and Preparata 1975, "On Finding the Maxima of a Set of Vectors").

    Args:
        values: (N, M) float64, finite, minimised, M >= 1. N may be 0.

    Returns:
        (N,) bool, True where non-dominated; at least one True when N > 0.

    Raises:
        ValueError: wrong shape, or a row that is not finite.
    """
    distinct, inverse = _distinct(finite_points(values))
    alive = np.ones(len(distinct), dtype=np.bool_)
    for index, point in enumerate(distinct):
        if alive[index]:
            alive[index + 1 :] &= (distinct[index + 1 :] < point).any(axis=1)
    return alive[inverse]


def non_dominated_ranks(values: FloatArray) -> IntArray:
    """Number the fronts: 0 for the non-dominated points, 1 for those that only front 0 dominates, and so on.

    The ranks are those of the fast non-dominated sort, computed without its N x N lists: a point's rank is the length
    of the longest chain of points above it, which is pushed forward in lexicographic order. O(N^2 M) time in N numpy
    calls, O(N M) memory; with two objectives O(N log N).

    Source: Deb et al. 2002 (NSGA-II), section III-A, "Fast Nondominated Sorting Approach"; for two objectives Jensen 2003,
    "Reducing the Run-Time Complexity of Multiobjective EAs", section III-A.

    Args:
        values: (N, M) float64, finite, minimised, M >= 1. N may be 0.

    Returns:
        (N,) int64, in [0, N); every number up to the largest occurs; equal points have equal ranks.

    Raises:
        ValueError: wrong shape, or a row that is not finite.
    """
    distinct, inverse = _distinct(finite_points(values))
    if distinct.shape[1] == 2:
        return _ranks_of_two(distinct)[inverse]
    ranks = np.zeros(len(distinct), dtype=np.int64)
    for index, point in enumerate(distinct):
        later = ranks[index + 1 :]
        dominated = (distinct[index + 1 :] >= point).all(axis=1)
        later[dominated] = np.maximum(later[dominated], ranks[index] + 1)
    return ranks[inverse]


def _ranks_of_two(distinct: FloatArray) -> IntArray:
    """Ranks of distinct points (N, 2) in lexicographic order.

    Whoever comes first is no worse in the first objective, so a front dominates a point where its lowest second value so far is
    no higher. These lowest values grow from front to front.
    """
    lowest: list[float] = []
    ranks = np.zeros(len(distinct), dtype=np.int64)
    for index, second in enumerate(distinct[:, 1].tolist()):
        rank = bisect_right(lowest, second)
        lowest[rank : rank + 1] = [second]
        ranks[index] = rank
    return ranks


def constrained_ranks(values: FloatArray, violations: FloatArray) -> IntArray:
    """Number the fronts under constraints: a feasible point beats an infeasible one, a smaller violation a larger.

    Feasible points are ranked among themselves as in `non_dominated_ranks`. Infeasible ones follow, ranked by total
    violation alone; two that violate by the same amount share a rank.

    Source: Deb et al. 2002 (NSGA-II), section VI-A, definition 1 ("constrained-dominate").

    Args:
        values: (N, M) float64, finite, minimised, M >= 1. N may be 0.
        violations: (N,) float64, finite, >= 0: the summed violation of each point, 0 where feasible.

    Returns:
        (N,) int64, in [0, N); every number up to the largest occurs. Rank 0 is feasible if any point is.

    Raises:
        ValueError: wrong shapes, a row that is not finite, or a violation that is negative or not finite.
    """
    points = finite_points(values)
    amounts = np.asarray(violations, dtype=np.float64)
    if amounts.shape != (len(points),):
        raise ValueError(f"violations must have shape ({len(points)},); given {amounts.shape}")
    if not (np.isfinite(amounts) & (amounts >= 0)).all():
        raise ValueError("violations must be finite and >= 0")
    feasible = amounts == 0
    ranks = np.empty(len(points), dtype=np.int64)
    ranks[feasible] = non_dominated_ranks(points[feasible])
    fronts = int(ranks[feasible].max()) + 1 if feasible.any() else 0
    ranks[~feasible] = fronts + np.unique(amounts[~feasible], return_inverse=True)[1]
    return ranks


def coverage(values: FloatArray, others: FloatArray) -> float:
    """Return the fraction of `others` that some point of `values` covers: is nowhere worse than.

    Equal points cover each other, so a set covers itself wholly. The two ways do not add up to 1; both have to be looked at.

    Source: Zitzler and Thiele 1999, "Multiobjective Evolutionary Algorithms: A Comparative Case Study and the Strength Pareto
    Approach" (IEEE Transactions on Evolutionary Computation 3), section IV-C: C(values, others).

    Args:
        values: (N, M) float64, finite, minimised, M >= 1. N may be 0: nothing covers nothing.
        others: (K, M) float64, finite, K >= 1.

    Returns:
        In [0, 1].

    Raises:
        ValueError: wrong shapes, no other point, or a row that is not finite.
    """
    own, theirs = finite_points(values), finite_points(others)
    if not len(theirs) or own.shape[1] != theirs.shape[1]:
        raise ValueError(f"others must have shape (K, {own.shape[1]}) with K >= 1; given {theirs.shape}")
    return float(np.mean([(own <= point).all(axis=1).any() for point in theirs]))


def _distinct(points: FloatArray) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """The distinct rows in lexicographic order, and for every row of `points` where it is among them."""
    distinct, inverse = np.unique(points, axis=0, return_inverse=True)
    return distinct, inverse.reshape(-1)
