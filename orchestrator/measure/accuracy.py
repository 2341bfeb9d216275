"""What a model's logits say about its predictions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.measure.calibration_curve import calibration_curve, confidences, expected_calibration_error


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
        "calibration_error": expected_calibration_error(calibration_curve(confidences(logits_NC), right)),
    }
