"""The gate's judgement, against amounts computed by hand, and that it needs nothing of Optuna."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.gate import judge, refusal
from orchestrator.spec.objective import Constraint

FINITE = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("bound", "value", "amount"),
    [
        (Constraint(max=100.0), 130, 30.0),
        (Constraint(max=100.0), 100, 0.0),
        (Constraint(max=100.0), 60, -40.0),
        (Constraint(min=0.5), 0.25, 0.25),
        (Constraint(min=0.5), 0.75, -0.25),
        (Constraint(min=10.0, max=20.0), 5, 5.0),
        (Constraint(min=10.0, max=20.0), 26, 6.0),
        (Constraint(min=10.0, max=20.0), 14, -4.0),
    ],
)
def test_a_count_breaks_a_bound_by_what_lies_beyond(bound, value, amount):
    assert judge({"size_bytes": bound}, {"size_bytes": value}) == {"size_bytes": amount}
    assert (refusal({"size_bytes": bound}, {"size_bytes": value}) is None) == (amount <= 0)


def test_what_is_not_known_or_not_asked_is_left_out():
    constraints = {"size_bytes": Constraint(max=100.0), "accuracy": Constraint(min=0.9)}
    assert judge(constraints, {"size_bytes": 90, "macs": 5}) == {"size_bytes": -10.0}
    assert judge(constraints, {}) == {}
    assert refusal(constraints, {}) is None


LATENCY = {"latency_ms": 5.0, "latency_ms_low": 4.75, "latency_ms_high": 5.5, "latency_ms_p95": 8.0}


@pytest.mark.parametrize(
    ("metric", "bound", "amount"),
    [
        ("latency_ms", Constraint(max=4.0), 0.75),
        ("latency_ms", Constraint(max=4.875), -0.125),
        ("latency_ms", Constraint(max=6.0), -1.25),
        ("latency_ms", Constraint(min=5.25), -0.25),
        ("latency_ms", Constraint(min=6.0), 0.5),
        ("latency_ms_p95", Constraint(max=4.0), 0.75),
        ("latency_ms_p95", Constraint(max=6.0), -1.25),
        ("latency_ms_high", Constraint(max=4.0), 0.75),
        ("latency_ms_low", Constraint(max=4.0), 0.75),
    ],
)
def test_a_latency_breaks_a_bound_as_far_as_all_of_its_interval_does(metric, bound, amount):
    assert judge({metric: bound}, LATENCY) == {metric: amount}


@given(value=FINITE, bounds=st.tuples(st.none() | FINITE, st.none() | FINITE))
def test_without_an_interval_the_amount_is_the_constraints_own(value, bounds):
    low, high = bounds
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        return
    bound = Constraint(min=low, max=high)
    assert judge({"macs": bound}, {"macs": value}) == {"macs": bound.amount(value)}


@given(low=FINITE, width=st.floats(0, 1e3), share=st.floats(0, 1), limit=FINITE)
def test_no_latency_within_the_interval_would_be_told_a_smaller_amount(low, width, share, limit):
    known = {"latency_ms": low + share * width, "latency_ms_low": low, "latency_ms_high": low + width}
    bound = Constraint(max=limit)
    assert judge({"latency_ms": bound}, known)["latency_ms"] <= min(bound.amount(value) for value in known.values())


def test_a_refusal_says_which_bound_what_was_measured_and_by_how_much():
    constraints = {
        "size_bytes": Constraint(max=20000.0),
        "macs": Constraint(max=1e9),
        "latency_ms": Constraint(max=4.0),
        "sparsity": Constraint(min=0.5, max=0.75),
    }
    assert refusal(constraints, {"size_bytes": 81804, "macs": 193344, "sparsity": 0.25, **LATENCY}) == (
        "size_bytes must be at most 20000; it is 81804 before training, 61804 beyond; "
        "latency_ms must be at most 4; it is 5 before training, 0.75 beyond; "
        "sparsity must be at least 0.5 and at most 0.75; it is 0.25 before training, 0.25 beyond"
    )


def test_importing_the_judgement_brings_in_no_optuna_and_no_torch():
    source = "import sys, orchestrator.search.gate; print([name for name in ('optuna', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
