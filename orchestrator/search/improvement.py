"""Expected hypervolume improvement: by how much a point that is known uncertainly would extend a front. Arrays in, arrays out.

All objectives are minimised.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Boxes = tuple[FloatArray, FloatArray]
"""Lower and upper corners, (B, M) each; lower ones may be -inf."""


def free_boxes(costs: FloatArray, reference: FloatArray) -> Boxes:
    """Cut what no point dominates, below the reference, into boxes that do not overlap.

    Slice by slice along the last objective, and so on inside each slice. Source: the decomposition of Lacour, Klamroth and
    Fonseca 2017, "A box decomposition algorithm to compute the hypervolume indicator", in its plain form, with more boxes.

    Args:
        costs: (N, M), finite, M >= 1; N may be 0, and dominated points do no harm.
        reference: (M,), finite.
    """
    inside = costs[(costs < reference).all(axis=1)]
    if len(reference) == 1:
        best = min([float(reference[0]), *inside[:, 0]])
        return np.array([[-np.inf]]), np.array([[best]])
    levels = [-np.inf, *np.unique(inside[:, -1]), float(reference[-1])]
    lower, upper = [], []
    for low, high in itertools.pairwise(levels):
        below, above = free_boxes(inside[inside[:, -1] <= low][:, :-1], reference[:-1])
        lower.append(np.column_stack([below, np.full(len(below), low)]))
        upper.append(np.column_stack([above, np.full(len(above), high)]))
    return np.concatenate(lower), np.concatenate(upper)


def improvement(points: FloatArray, boxes: Boxes) -> FloatArray:
    """The hypervolume that each point alone would add: (..., M) costs, finite, to (...)."""
    lower, upper = boxes
    volume = np.ones((*points.shape[:-1], len(lower)))
    for axis in range(points.shape[-1]):
        volume *= np.maximum(0.0, upper[:, axis] - np.maximum(lower[:, axis], points[..., axis, None]))
    added: FloatArray = volume.sum(axis=-1)
    return added


def normal_draws(count: int, dims: int, seed: int) -> FloatArray:
    """(count, dims) of a standard normal distribution, evenly spread: a scrambled Sobol sequence. `count` is a power of two."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    unit = qmc.Sobol(dims, scramble=True, rng=seed).random(count)
    draws: FloatArray = ndtri(np.clip(unit, 1e-3, 1.0 - 1e-3))
    return draws
