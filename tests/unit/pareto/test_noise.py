"""Errors against the definitions of their intervals, probabilities against the normal distribution, ties by hand."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.pareto.dominance import non_dominated_mask
from orchestrator.pareto.noise import Z, contenders, front_probability, share_on_front, standard_error, tie_groups, wilson_error

SHAPES = st.tuples(st.integers(0, 8), st.integers(1, 4))
COARSE = st.integers(-2, 2).map(float)
ERRORS = st.sampled_from([0.0, 0.0, 0.3, 1.0])
MEASURED = SHAPES.flatmap(
    lambda s: st.tuples(hnp.arrays(np.float64, s, elements=COARSE), hnp.arrays(np.float64, s, elements=ERRORS))
)
SAMPLING = 5 * 0.5 / math.sqrt(4000)  # five standard errors of a share of 4000 draws, which are seeded


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 100_000), st.data())
def test_half_of_wilsons_interval_is_z_errors(samples, data):
    """The ends of Wilson's interval are where the score statistic is Z."""
    p = data.draw(st.integers(0, samples)) / samples
    centre = (p + Z**2 / (2 * samples)) / (1 + Z**2 / samples)
    for end in (centre - Z * wilson_error(p, samples), centre + Z * wilson_error(p, samples)):
        assert (p - end) ** 2 == pytest.approx(Z**2 * end * (1 - end) / samples, rel=1e-6, abs=1e-12)


def test_the_error_of_a_fraction_by_hand():
    """81 of 263 (Newcombe 1998, table I): Wilson's interval is 0.2553 to 0.3662."""
    assert 2 * Z * wilson_error(81 / 263, 263) == pytest.approx(0.3662 - 0.2553, abs=1e-4)
    assert wilson_error(1.0, 100) > 0
    assert wilson_error(0.5, 10_000) == pytest.approx(0.005, rel=1e-3)


@pytest.mark.parametrize(("fraction", "samples"), [(0.5, 0), (1.1, 10), (-0.1, 10), (math.nan, 10)])
def test_what_is_no_fraction_is_refused(fraction, samples):
    with pytest.raises(ValueError, match="must be a fraction"):
        wilson_error(fraction, samples)


def test_errors_come_from_measurements():
    measured = {"accuracy": 0.9, "num_eval_samples": 360, "latency_ms": 2.0, "latency_ms_low": 1.9, "latency_ms_high": 2.2}
    measured |= {"size_bytes": 1000, "macs": 5}
    assert standard_error("accuracy", measured) == wilson_error(0.9, 360)
    assert standard_error("latency_ms", measured) == pytest.approx(0.3 / (2 * Z))
    assert standard_error("size_bytes", measured) == standard_error("macs", measured) == 0.0
    assert standard_error("accuracy", {"accuracy": 0.9}) == 0.0


def test_points_tie_where_no_objective_tells_them_apart():
    values = np.array([[-0.90, 100.0], [-0.91, 100.0], [-0.91, 101.0], [-0.99, 100.0]])
    errors = np.array([[0.01, 0.0]] * 4)
    assert tie_groups(values, errors) == [[0, 1], [2], [3]]


def test_a_chain_of_ties_is_cut():
    values = np.array([[0.0], [2.0], [4.0], [6.0]])
    errors = np.full((4, 1), 2.5 / (Z * math.sqrt(2)))  # a distance of 2.5 is told apart, barely
    assert tie_groups(values, errors) == [[0, 1], [2, 3]]


@settings(deadline=None, max_examples=100)
@given(MEASURED)
def test_groups_are_a_partition_into_mutual_ties(measured):
    values, errors = measured
    groups = tie_groups(values, errors)
    assert sorted(index for group in groups for index in group) == list(range(len(values)))
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)

    def alike(i, j):
        return all(abs(values[i] - values[j]) <= Z * np.sqrt(errors[i] ** 2 + errors[j] ** 2) + 1e-12)

    assert all(alike(i, j) for group in groups for i in group for j in group)
    for place, group in enumerate(groups):
        assert not any(all(alike(group[0], member) for member in other) for other in groups[:place])


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float64, SHAPES, elements=COARSE))
def test_without_errors_everything_is_certain(values):
    exact = np.zeros_like(values)
    assert front_probability(values, exact).tolist() == non_dominated_mask(values).astype(float).tolist()
    equal = [[j for j in range(len(values)) if (values[j] == values[i]).all()] for i in range(len(values))]
    assert tie_groups(values, exact) == [group for index, group in enumerate(equal) if group[0] == index]


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(0, 7), st.integers(1, 4)), elements=COARSE))
def test_the_share_is_counted_draw_by_draw(draws):
    expected = np.mean([non_dominated_mask(draw) for draw in draws], axis=0)
    assert share_on_front(draws) == pytest.approx(expected)


def test_one_uncertain_objective_is_a_normal_distribution():
    """The other objective is exact: the larger point is on the front exactly when it is truly the more accurate one."""
    values, errors = np.array([[-0.90, 10.0], [-0.89, 11.0]]), np.array([[0.012, 0.0], [0.009, 0.0]])
    expected = NormalDist().cdf(-0.01 / 0.015)
    assert front_probability(values, errors, draws=4000) == pytest.approx([1.0, expected], abs=SAMPLING)


def test_two_uncertain_objectives_are_independent():
    values, errors = np.array([[0.0, 0.0], [1.0, 1.0]]), np.full((2, 2), 1.0)
    beaten = NormalDist().cdf(1 / math.sqrt(2)) ** 2
    beats = NormalDist().cdf(-1 / math.sqrt(2)) ** 2
    assert front_probability(values, errors, draws=4000) == pytest.approx([1 - beats, 1 - beaten], abs=SAMPLING)


@settings(deadline=None, max_examples=30)
@given(MEASURED)
def test_leaving_out_the_hopeless_changes_nothing(measured):
    """They are never on the front of a draw, nor does taking them away let another one onto it."""
    values, errors = measured
    hopeful = contenders(values - 6 * errors, values + 6 * errors)
    noise = np.clip(np.random.default_rng(3).standard_normal((20, *values.shape)), -6, 6)
    draws = values + errors * noise
    shares = share_on_front(draws)
    assert (shares[~hopeful] == 0).all()
    assert share_on_front(draws[:, hopeful]).tolist() == shares[hopeful].tolist()


def test_the_seed_decides():
    values, errors = np.array([[0.0, 1.0], [0.1, 1.1], [1.0, 0.0]]), np.full((3, 2), 0.2)
    first = front_probability(values, errors, 200, seed=1)
    assert first.tolist() == front_probability(values, errors, 200, seed=1).tolist()
    assert first.tolist() != front_probability(values, errors, 200, seed=2).tolist()


@pytest.mark.parametrize("function", [tie_groups, front_probability])
def test_bad_arguments_are_refused(function):
    with pytest.raises(ValueError, match=r"errors must have shape \(2, 1\); given \(2,\)"):
        function(np.zeros((2, 1)), np.zeros(2))
    with pytest.raises(ValueError, match="errors must be finite and >= 0"):
        function(np.zeros((1, 1)), np.array([[-1.0]]))
    with pytest.raises(ValueError, match="values must be finite"):
        function(np.array([[np.nan]]), np.zeros((1, 1)))


def test_there_is_at_least_one_draw():
    with pytest.raises(ValueError, match="draws must be >= 1; given 0"):
        front_probability(np.zeros((1, 1)), np.zeros((1, 1)), draws=0)
