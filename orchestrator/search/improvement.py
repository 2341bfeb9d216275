"""Expected hypervolume improvement: by how much a point that is known uncertainly would extend a front. Arrays in, arrays out.

All objectives are minimised.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Corner = tuple[float, ...]
Boxes = tuple[FloatArray, FloatArray]
"""Lower and upper corners, (B, M) each; lower ones may be -inf."""

_BLOCK = 256  # points at a time: what is computed for them stays in the caches


def free_boxes(costs: FloatArray, reference: FloatArray) -> Boxes:
    """Cut what no point dominates, below the reference, into boxes that do not overlap.

    Slice by slice along the last objective, and so on inside each slice; a box that goes on unchanged from one slice to the
    next is one box. That leaves N + 1 of them for two objectives, and about 2 N for three. Source: the idea of Lacour, Klamroth
    and Fonseca 2017, "A box decomposition algorithm to compute the hypervolume indicator", section 3.

    Args:
        costs: (N, M), finite, M >= 1; N may be 0, and dominated points do no harm.
        reference: (M,), finite.
    """
    inside = costs[(costs < reference).all(axis=1)]
    boxes = _boxes([tuple(row) for row in inside.tolist()], tuple(reference.tolist()))
    lower, upper = (np.array(corners).reshape(-1, len(reference)) for corners in zip(*boxes, strict=True))
    return lower, upper


def _boxes(points: list[Corner], reference: Corner) -> list[tuple[Corner, Corner]]:
    if len(reference) == 1:
        return [((-math.inf,), min([reference, *points]))]
    if len(reference) == 2:
        steps = _non_dominated(points)  # the first coordinate rises, the second falls
        edges = [-math.inf, *(step[0] for step in steps), reference[0]]
        heights = [reference[1], *(step[1] for step in steps)]
        return [
            ((left, -math.inf), (right, height))
            for (left, right), height in zip(itertools.pairwise(edges), heights, strict=True)
        ]
    slices = sorted({point[-1] for point in points})
    found: list[tuple[Corner, Corner]] = []
    open_since: dict[tuple[Corner, Corner], float] = {}
    below: list[Corner] = []  # without their last coordinate, and without those that others dominate
    for start in [-math.inf, *slices]:
        below = _non_dominated([*below, *(point[:-1] for point in points if point[-1] == start)])
        here = dict.fromkeys(_boxes(below, reference[:-1]))
        for box in [box for box in open_since if box not in here]:
            found.append(_tall(box, open_since.pop(box), start))
        for box in here:
            open_since.setdefault(box, start)
    return found + [_tall(box, start, reference[-1]) for box, start in open_since.items()]


def _tall(box: tuple[Corner, Corner], low: float, high: float) -> tuple[Corner, Corner]:
    return (*box[0], low), (*box[1], high)


def _non_dominated(points: list[Corner]) -> list[Corner]:
    """In order; of equal ones one stays."""
    kept: list[Corner] = []
    for point in sorted(set(points)):
        if len(point) == 2:  # the last one kept is the lowest so far
            if not kept or point[1] < kept[-1][1]:
                kept.append(point)
        elif not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in kept):
            kept.append(point)
    return kept


def improvement(points: FloatArray, boxes: Boxes) -> FloatArray:
    """The hypervolume that each point alone would add: (..., M) costs, finite, to (...)."""
    lower, upper = boxes
    flat = points.reshape(-1, points.shape[-1])
    parts = [_added(flat[first : first + _BLOCK], lower, upper) for first in range(0, len(flat), _BLOCK)]
    added: FloatArray = np.concatenate([np.zeros(0), *parts]).reshape(points.shape[:-1])
    return added


def _added(points: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    volume = np.ones((len(points), len(lower)))
    for axis in range(points.shape[-1]):
        volume *= np.maximum(0.0, upper[:, axis] - np.maximum(lower[:, axis], points[:, axis, None]))
    total: FloatArray = volume.sum(axis=1)
    return total


def normal_draws(count: int, dims: int, seed: int) -> FloatArray:
    """(count, dims) of a standard normal distribution, evenly spread: a scrambled Sobol sequence. `count` is a power of two."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    unit = qmc.Sobol(dims, scramble=True, rng=seed).random(count)
    draws: FloatArray = ndtri(np.clip(unit, 1e-3, 1.0 - 1e-3))
    return draws
