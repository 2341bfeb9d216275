"""How much of the objective space a set dominates, exactly. All objectives are minimised.

Inside, a point is the box between itself and the reference, given by its edge lengths ("gains", all > 0): the
hypervolume is the volume of a union of boxes that share one corner.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from orchestrator.pareto.dominance import FloatArray, finite_points, non_dominated_mask


def hypervolume(values: FloatArray, reference: FloatArray) -> float:
    """Return the volume that the points dominate, up to the reference point.

    Points that are not strictly better than the reference in every objective contribute nothing; dominated points and
    duplicates add nothing. One objective needs a maximum, two a sort sweep (O(N log N)), three a dimension sweep over a
    staircase, four and more the WFG recursion on the dimensions below.

    Sources: Zitzler and Thiele 1998, "Multiobjective Optimization Using Evolutionary Algorithms - A Comparative Case
    Study" (PPSN V), section 3, for the measure; Beume, Fonseca, Lopez-Ibanez, Paquete and Vahrenhold 2009, "On the
    Complexity of Computing the Hypervolume Indicator", the dimension-sweep algorithm for three objectives; While,
    Bradstreet and Barone 2012, "A Fast Way of Calculating Exact Hypervolumes", equations (6) and (7), for WFG.

    Args:
        values: (N, M) float64, finite, minimised, M >= 1. N may be 0.
        reference: (M,) float64, finite: the worst corner.

    Returns:
        The volume, >= 0, in the product of the objectives' units; 0.0 for an empty set.

    Raises:
        ValueError: wrong shapes, or a coordinate that is not finite.
    """
    points = finite_points(values)
    gains = _corner(reference, points.shape[1]) - points
    return _union(gains[(gains > 0).all(axis=1)])


def hypervolume_history(values: FloatArray, reference: FloatArray) -> FloatArray:
    """Return the running hypervolume of a sequence: after the first point, after the second, up to the last.

    A point that an earlier one dominates or equals costs a comparison; any other adds its exclusive volume, so that
    nothing is computed from scratch. Entries agree with `hypervolume` of the same prefix up to rounding.

    Source: While, Bradstreet and Barone 2012, equations (6) and (7): exclusive = inclusive - volume of the limit set.

    Args:
        values: (N, M) float64, finite, minimised, M >= 1, in the order of arrival. N may be 0.
        reference: (M,) float64, finite: the worst corner.

    Returns:
        (N,) float64, >= 0, never decreasing.

    Raises:
        ValueError: wrong shapes, or a coordinate that is not finite.
    """
    points = finite_points(values)
    history = np.zeros(len(points), dtype=np.float64)
    front = np.empty((0, points.shape[1]), dtype=np.float64)
    volume = 0.0
    for index, gain in enumerate(_corner(reference, points.shape[1]) - points):
        if (gain > 0).all() and not (front >= gain).all(axis=1).any():
            volume += max(_exclusive(gain, front), 0.0)
            front = np.vstack([front[(front > gain).any(axis=1)], gain])
        history[index] = volume
    return history


def default_reference(values: FloatArray) -> FloatArray:
    """Return a reference point for a set that came with none: a little worse than its worst.

    Per objective, the worst value plus a tenth of the range. Where all values agree there is no range, and the margin
    is the value's own magnitude (a cost of 3 gets 6, a negated accuracy of -0.9 gets 0), or 1.0 where that is 0. The
    result is strictly worse than every point, even where rounding swallows the margin.

    Source: Ishibuchi, Imada, Setoguchi and Nojima 2018, "How to Specify a Reference Point in Hypervolume Calculation
    for Fair Performance Comparison", which shows why it has to lie slightly beyond the nadir; 1.1 is customary.

    Args:
        values: (N, M) float64, finite, minimised, N >= 1, M >= 1.

    Returns:
        (M,) float64, finite unless the range itself overflows.

    Raises:
        ValueError: wrong shape, no point, or a row that is not finite.
    """
    points = finite_points(values)
    if not len(points):
        raise ValueError("values must hold at least one point; given none")
    worst = points.max(axis=0)
    spread = worst - points.min(axis=0)
    lone = np.where(worst == 0, 1.0, np.abs(worst))
    padded: FloatArray = np.maximum(worst + np.where(spread > 0, 0.1 * spread, lone), np.nextafter(worst, np.inf))
    return padded


def _corner(reference: FloatArray, objectives: int) -> FloatArray:
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != (objectives,):
        raise ValueError(f"reference must have shape ({objectives},); given {corner.shape}")
    if not np.isfinite(corner).all():
        raise ValueError(f"reference must be finite; given {corner.tolist()}")
    return corner


def _union(gains: FloatArray) -> float:
    """Volume of the union of boxes [0, gain]; (N, M), all >= 0."""
    if not len(gains):
        return 0.0
    objectives = gains.shape[1]
    if objectives == 1:
        return float(gains.max())
    if objectives == 2:
        return _area(gains)
    return _sweep(gains) if objectives == 3 else _wfg(gains)


def _exclusive(gain: FloatArray, others: FloatArray) -> float:
    """Volume of the box [0, gain] outside the boxes of `others`: WFG's exclhv, over its limitset."""
    return float(np.prod(gain)) - _union(np.minimum(others, gain))


def _area(gains: FloatArray) -> float:
    """Two objectives: from the widest box to the narrowest, each strip is as high as the highest box so far."""
    wide, high = gains[np.argsort(-gains[:, 0])].T
    return float(np.dot(wide - np.append(wide[1:], 0.0), np.maximum.accumulate(high)))


def _sweep(gains: FloatArray) -> float:
    """Three objectives: from the deepest box to the shallowest, each slice is as large as the staircase so far."""
    ordered = gains[np.argsort(-gains[:, 2])].tolist()
    widths: list[float] = []
    heights: list[float] = []
    area = volume = 0.0
    for index, (width, height, depth) in enumerate(ordered):
        area += _step(widths, heights, width, height)
        below = ordered[index + 1][2] if index + 1 < len(ordered) else 0.0
        volume += area * (depth - below)
    return volume


def _step(widths: list[float], heights: list[float], width: float, height: float) -> float:
    """Add a box to the staircase (widths rise, heights fall, both strictly) and return the area that it adds."""
    right = bisect_left(widths, width)
    floor = heights[right] if right < len(heights) else 0.0
    if floor >= height:
        return 0.0
    stop = right + 1 if right < len(widths) and widths[right] == width else right
    added, edge, left = 0.0, width, right
    while left > 0 and heights[left - 1] <= height:
        left -= 1
        added += (edge - widths[left]) * (height - floor)
        edge, floor = widths[left], heights[left]
    added += (edge - (widths[left - 1] if left > 0 else 0.0)) * (height - floor)
    widths[left:stop], heights[left:stop] = [width], [height]
    return added


def _wfg(gains: FloatArray) -> float:
    """Four objectives and more: the sum of what each box holds that no later one does.

    With the last gain rising, a limit set has one last gain, its box's own, and so is a problem of one dimension less.
    """
    front = np.unique(gains[non_dominated_mask(-gains)], axis=0)
    front = front[np.argsort(front[:, -1], kind="stable")]
    return sum(float(row[-1]) * _exclusive(row[:-1], front[index + 1 :, :-1]) for index, row in enumerate(front))
