"""Objectives as costs, and how far a value lies outside a constraint."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.spec.names import MAXIMIZED, MEASUREMENTS
from orchestrator.spec.objective import Constraint, Objective

FINITE = st.floats(-1e12, 1e12)


@pytest.mark.parametrize(
    ("metric", "direction", "maximized"),
    [
        ("accuracy", None, True),
        ("worst_class_accuracy", None, True),
        ("size_bytes", None, False),
        ("latency_ms", None, False),
        ("calibration_error", None, False),
        ("accuracy", "minimize", False),
        ("size_bytes", "maximize", True),
    ],
)
def test_direction_is_as_written_and_else_what_the_metric_implies(metric, direction, maximized):
    objective = Objective(metric=metric, direction=direction)
    assert objective.maximized is maximized
    assert objective.cost(3.0) == (-3.0 if maximized else 3.0)


@settings(deadline=None)
@given(FINITE, FINITE)
def test_a_better_value_costs_less(one, other):
    low, high = sorted([one, other])
    assert Objective(metric="accuracy").cost(high) <= Objective(metric="accuracy").cost(low)
    assert Objective(metric="latency_ms").cost(low) <= Objective(metric="latency_ms").cost(high)


@settings(deadline=None)
@given(st.sampled_from(MEASUREMENTS), FINITE)
def test_the_cost_of_a_cost_is_the_value(metric, value):
    objective = Objective(metric=metric)
    assert objective.cost(objective.cost(value)) == value


def test_what_is_maximized_is_measured():
    assert set(MEASUREMENTS) >= MAXIMIZED


@pytest.mark.parametrize(
    "keys", [{"metric": "acuracy"}, {"metric": "accuracy", "direction": "up"}, {}, {"metric": "macs", "x": 1}]
)
def test_an_unknown_objective_is_refused(keys):
    with pytest.raises(ValidationError):
        Objective.model_validate(keys)


@pytest.mark.parametrize(
    ("bounds", "value", "amount"),
    [
        ({"max": 10.0}, 12.5, 2.5),
        ({"max": 10.0}, 10.0, 0.0),
        ({"max": 10.0}, 4.0, -6.0),
        ({"min": 0.75}, 0.5, 0.25),
        ({"min": 0.75}, 0.75, 0.0),
        ({"min": 0.75}, 1.0, -0.25),
        ({"min": 1.0, "max": 3.0}, 2.0, -1.0),
        ({"min": 1.0, "max": 3.0}, 2.5, -0.5),
        ({"min": 1.0, "max": 3.0}, 1.0, 0.0),
        ({"min": 1.0, "max": 3.0}, 4.0, 1.0),
        ({"min": 1.0, "max": 3.0}, -1.0, 2.0),
        ({"min": 2.0, "max": 2.0}, 2.0, 0.0),
        ({"max": 0}, 1, 1),
    ],
)
def test_how_far_a_value_lies_outside(bounds, value, amount):
    assert Constraint.model_validate(bounds).amount(value) == amount


@settings(deadline=None)
@given(FINITE, FINITE, FINITE)
def test_nothing_is_broken_exactly_within_the_bounds(one, other, value):
    low, high = sorted([one, other])
    assert (Constraint(min=low, max=high).amount(value) <= 0) == (low <= value <= high)


@pytest.mark.parametrize("bounds", [{}, {"min": 2.0, "max": 1.0}, {"max": "1"}, {"max": float("inf")}, {"maximum": 1.0}])
def test_an_impossible_constraint_is_refused(bounds):
    with pytest.raises(ValidationError):
        Constraint.model_validate(bounds)
