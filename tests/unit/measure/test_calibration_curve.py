"""Reliability diagrams, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve as sklearn_curve

from orchestrator.measure.accuracy import classification
from orchestrator.measure.calibration_curve import Bin, calibration_curve, confidences, expected_calibration_error


def test_bins_and_error_by_hand() -> None:
    """Two bins: 0.2 and 0.4, one of them right; 0.5, 0.9 and 1, two of them right."""
    curve = calibration_curve(np.array([0.2, 0.5, 0.4, 0.9, 1.0]), np.array([True, True, False, False, True]), 2)
    assert curve == [Bin(0.0, 0.5, 2, pytest.approx(0.3), 0.5), Bin(0.5, 1.0, 3, pytest.approx(0.8), pytest.approx(2 / 3))]
    assert expected_calibration_error(curve) == pytest.approx(2 / 5 * 0.2 + 3 / 5 * (0.8 - 2 / 3))


def test_empty_bins_are_left_out_and_certainty_falls_into_the_last() -> None:
    curve = calibration_curve(np.array([0.1, 1.0]), np.array([False, True]))
    assert [(part.low, part.high, part.num) for part in curve] == [(1 / 15, 2 / 15, 1), (14 / 15, 1.0, 1)]


def test_confidence_is_the_softmax_of_the_predicted_class() -> None:
    logits = np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]], np.float32)) + 1000.0
    assert confidences(logits) == pytest.approx([0.7, 0.5], abs=1e-4)


def test_it_is_scikit_learns_curve_and_the_measured_error() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(500, 4)).astype(np.float32) * 2
    labels = generator.integers(0, 4, 500)
    right, sure = logits.argmax(1) == labels, confidences(logits)
    curve = calibration_curve(sure, right)
    accuracy, confidence = sklearn_curve(right, sure, n_bins=15)
    assert [part.accuracy for part in curve] == pytest.approx(accuracy)
    assert [part.confidence for part in curve] == pytest.approx(confidence)
    assert classification(logits, labels)["calibration_error"] == expected_calibration_error(curve)


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), min_size=1, max_size=60))
def test_every_prediction_lies_in_one_bin(predictions: list[tuple[float, bool]]) -> None:
    sure, right = np.array([one for one, _ in predictions]), np.array([one for _, one in predictions])
    curve = calibration_curve(sure, right)
    assert sum(part.num for part in curve) == len(predictions)
    assert sum(part.num * part.accuracy for part in curve) == pytest.approx(right.sum())
    assert 0.0 <= expected_calibration_error(curve) <= 1.0
