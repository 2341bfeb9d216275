"""Which point of a front to take: the knee, the best for given weights, or a few that stand for all.

Distances are measured after each objective is scaled to [0, 1] between the set's ideal (its best values) and its nadir
(its worst). Scores that differ by no more than rounding count as equal, and the lowest index wins.
"""

from __future__ import annotations

import numpy as np

from orchestrator.pareto.dominance import FloatArray, finite_points

RHO = 1e-3  # weight of the augmentation: small enough not to reorder, large enough to break ties
TIE = 1e-12  # scores are of order one


def knee_index(values: FloatArray) -> int:
    """Return the point that bulges furthest below the hyperplane through the extreme points.

    The extreme points are the individual minima, one per objective. Objectives in which all points agree are left out.
    The point with the smallest Euclidean distance to the ideal is returned instead where there is no knee to speak of:
    at most two points, a hyperplane that is singular or not everywhere downhill (a weight <= 0), or nothing below it
    (a straight or concave front).

    Source: Das 1999, "On characterizing the 'knee' of the Pareto curve based on Normal-Boundary Intersection"
    (Structural Optimization 18), the maximum-bulge point over the convex hull of individual minima.

    Args:
        values: (N, M) float64, finite, minimised, mutually non-dominated (not checked), N >= 1, M >= 1.

    Returns:
        An index in [0, N).

    Raises:
        ValueError: wrong shape, no point, or a row that is not finite.
    """
    points = _normalised(values)
    if not len(points):
        raise ValueError("values must hold at least one point; given none")
    varying = points[:, points.max(axis=0) > 0]
    normal = _hyperplane(varying[_extremes(varying)]) if len(points) > 2 else None
    if normal is not None:
        below = (1.0 - varying @ normal) / np.linalg.norm(normal)
        if below.max() > TIE:
            return _lowest(-below)
    return _lowest(_distances(points, np.zeros(points.shape[1])))


def weighted_index(values: FloatArray, weights: FloatArray) -> int:
    """Return the point closest to the ideal in the augmented weighted Chebyshev metric.

    The score is max_m(w_m z_m) + rho * sum_m(z_m), with z in [0, 1] and rho = 1e-3. Unlike a weighted sum it can reach
    every point of a concave front, and unlike a plain maximum it never prefers a weakly dominated one.

    Source: Steuer and Choo 1983, "An interactive weighted Tchebycheff procedure for multiple objective programming"
    (Mathematical Programming 26), the augmented weighted Tchebycheff program.

    Args:
        values: (N, M) float64, finite, minimised, mutually non-dominated (not checked), N >= 1, M >= 1.
        weights: (M,) float64, finite, >= 0, with a sum > 0; only their proportions matter.

    Returns:
        An index in [0, N).

    Raises:
        ValueError: wrong shapes, no point, a row that is not finite, or weights that are out of range.
    """
    points = _normalised(values)
    if not len(points):
        raise ValueError("values must hold at least one point; given none")
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != (points.shape[1],):
        raise ValueError(f"weights must have shape ({points.shape[1]},); given {shares.shape}")
    if not (np.isfinite(shares) & (shares >= 0)).all() or not shares.any():
        raise ValueError(f"weights must be finite, >= 0 and not all 0; given {shares.tolist()}")
    shares = shares / shares.max()
    shares = shares / shares.sum()
    return _lowest((shares * points).max(axis=1) + RHO * points.sum(axis=1))


def representatives(values: FloatArray, k: int) -> list[int]:
    """Return points that are spread out over the set: its extremes first, then always the one furthest from all taken.

    Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance" (Theoretical Computer Science 38),
    the farthest-point greedy, which is within a factor of two of the best covering radius; here it starts from the
    individual minima, in the order of the objectives.

    Args:
        values: (N, M) float64, finite, minimised, mutually non-dominated (not checked), M >= 1. N may be 0.
        k: how many are wanted, >= 1.

    Returns:
        min(k, N) different indices in [0, N), in the order in which they were taken.

    Raises:
        ValueError: wrong shape, a row that is not finite, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be >= 1; given {k}")
    points = _normalised(values)
    if not len(points):
        return []
    taken = list(dict.fromkeys(_extremes(points)))[:k]
    nearest = np.min([_distances(points, points[index]) for index in taken], axis=0)
    nearest[taken] = -1.0
    while len(taken) < min(k, len(points)):
        taken.append(_lowest(-nearest))
        nearest = np.minimum(nearest, _distances(points, points[taken[-1]]))
        nearest[taken[-1]] = -1.0
    return taken


def _normalised(values: FloatArray) -> FloatArray:
    """(N, M) in [0, 1]: 0 at the ideal, 1 at the nadir, and 0 throughout where an objective does not vary."""
    points = finite_points(values)
    if not len(points):
        return points
    ideal = points.min(axis=0)
    spread = points.max(axis=0) - ideal
    scaled: FloatArray = (points - ideal) / np.where(spread > 0, spread, 1.0)
    return scaled


def _distances(points: FloatArray, centre: FloatArray) -> FloatArray:
    distances: FloatArray = np.sqrt(np.square(points - centre).sum(axis=1))
    return distances


def _extremes(points: FloatArray) -> list[int]:
    """For each objective the index of its minimum; among equals the smallest sum, then the lowest index."""
    sums = points.sum(axis=1)
    return [int(np.lexsort((sums, column))[0]) for column in points.T]


def _hyperplane(corners: FloatArray) -> FloatArray | None:
    """The normal w with w @ corner = 1 for all (M, M) corners; None where it is not unique or not positive."""
    size = len(corners)
    if size == 0 or np.linalg.matrix_rank(corners) < size:
        return None
    normal = np.asarray(np.linalg.solve(corners, np.ones(size)), dtype=np.float64)
    return normal if (normal > TIE).all() else None


def _lowest(scores: FloatArray) -> int:
    """The first index whose score is the smallest, up to rounding."""
    return int(np.flatnonzero(scores <= scores.min() + TIE)[0])
