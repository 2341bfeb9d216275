"""Whether a model is right as often as it says: accuracy by confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_BINS = 15


@dataclass(frozen=True)
class Bin:
    """The predictions whose confidence lies in [low, high), or [low, 1] in the last bin.

    Args:
        num: how many there are, at least one.
        confidence: their mean confidence, a fraction.
        accuracy: the fraction of them that is right.
    """

    low: float
    high: float
    num: int
    confidence: float
    accuracy: float


def confidences(logits_NC: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The probability (softmax) of the class that is predicted, float64 (N,), in [1 / classes, 1]."""
    shifted = np.exp(logits_NC.astype(np.float64) - logits_NC.max(1, keepdims=True))
    largest: npt.NDArray[np.float64] = (shifted / shifted.sum(1, keepdims=True)).max(1)
    return largest


def calibration_curve(
    confidence_N: npt.NDArray[np.float64], right_N: npt.NDArray[np.bool_], num_bins: int = NUM_BINS
) -> list[Bin]:
    """The bins, of equal width, that hold any prediction (Guo et al. 2017, section 2, "reliability diagrams").

    Args:
        confidence_N: in [0, 1].
        right_N: whether each prediction was right.
    """
    places = np.minimum((confidence_N * num_bins).astype(int), num_bins - 1)
    found = []
    for place in np.unique(places):
        inside = places == place
        ends = float(place / num_bins), float((place + 1) / num_bins)
        found.append(Bin(*ends, int(inside.sum()), float(confidence_N[inside].mean()), float(right_N[inside].mean())))
    return found


def expected_calibration_error(curve: Sequence[Bin]) -> float:
    """The mean distance between confidence and accuracy over all predictions, in [0, 1] (Guo et al. 2017, equation 3)."""
    total = sum(part.num for part in curve)
    return float(sum(abs(part.confidence - part.accuracy) * (part.num / total) for part in curve))
