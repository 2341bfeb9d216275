"""What a model's logits say about its predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_BINS = 15


def classification(logits_NC: npt.NDArray[np.float32], labels_N: npt.NDArray[np.int64]) -> dict[str, float]:
    """`accuracy`, `worst_class_accuracy` (over the classes present) and `calibration_error`, fractions in [0, 1].

    The calibration error is the expected one over 15 equal bins of confidence (Guo et al. 2017, section 2).
    """
    predicted = logits_NC.argmax(1)
    right = predicted == labels_N
    by_class = [float(right[labels_N == label].mean()) for label in np.unique(labels_N)]
    return {
        "accuracy": float(right.mean()),
        "worst_class_accuracy": min(by_class),
        "calibration_error": _calibration_error(logits_NC, right),
    }


def _calibration_error(logits_NC: npt.NDArray[np.float32], right_N: npt.NDArray[Any]) -> float:
    shifted = np.exp(logits_NC.astype(np.float64) - logits_NC.max(1, keepdims=True))
    confidence = (shifted / shifted.sum(1, keepdims=True)).max(1)
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [
        abs(confidence[bins == index].mean() - right_N[bins == index].mean()) * float((bins == index).mean())
        for index in np.unique(bins)
    ]
    return float(sum(gaps))
