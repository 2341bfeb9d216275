"""Hypervolumes against inclusion-exclusion, which is exact on integers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.pareto.hypervolume import default_reference, hypervolume, hypervolume_history

SIDE = 6  # of the cube whose far corner is the reference; values reach one beyond it
SHAPES = st.tuples(st.integers(0, 7), st.integers(1, 5))
GRID = hnp.arrays(np.float64, SHAPES, elements=st.integers(0, SIDE + 1).map(float))
UNIT = hnp.arrays(np.float64, SHAPES, elements=st.floats(0, 1.1))


def corner(values, side=float(SIDE)):
    return np.full(values.shape[1], side)


def included_and_excluded(values, reference):
    """Sum over all subsets of the volume that its members share, with alternating sign."""
    inside = [point for point in values if (point < reference).all()]
    subsets = (subset for size in range(1, len(inside) + 1) for subset in combinations(inside, size))
    return sum((-1) ** (len(subset) + 1) * float(np.prod(reference - np.max(subset, axis=0))) for subset in subsets)


@settings(deadline=None, max_examples=80)
@given(GRID)
def test_volume_is_exact_on_integers(values):
    assert hypervolume(values, corner(values)) == included_and_excluded(values, corner(values))


@settings(deadline=None, max_examples=40)
@given(UNIT)
def test_volume_of_real_values(values):
    reference = corner(values, 1.0)
    assert hypervolume(values, reference) == pytest.approx(included_and_excluded(values, reference), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(UNIT, st.randoms(use_true_random=False))
def test_order_of_points_and_objectives_does_not_matter(values, random):
    reference = np.linspace(0.8, 1.2, values.shape[1])
    rows = random.sample(range(len(values)), len(values))
    columns = random.sample(range(values.shape[1]), values.shape[1])
    expected = pytest.approx(hypervolume(values, reference), abs=1e-12)
    assert hypervolume(values[rows][:, columns], reference[columns]) == expected


@settings(deadline=None, max_examples=40)
@given(GRID)
def test_history_is_the_volume_of_every_prefix_and_never_falls(values):
    history = hypervolume_history(values, corner(values))
    assert history.shape == (len(values),)
    assert history.dtype == np.float64
    assert history.tolist() == [hypervolume(values[: n + 1], corner(values)) for n in range(len(values))]
    assert (np.diff(history) >= 0).all()


@settings(deadline=None, max_examples=40)
@given(UNIT)
def test_history_of_real_values(values):
    history = hypervolume_history(values, corner(values, 1.0))
    expected = [hypervolume(values[: n + 1], corner(values, 1.0)) for n in range(len(values))]
    assert history == pytest.approx(expected, abs=1e-12)
    assert (np.diff(history) >= 0).all()


@settings(deadline=None, max_examples=40)
@given(GRID)
def test_better_points_and_further_references_never_lose(values):
    volume = hypervolume(values, corner(values))
    assert hypervolume(np.maximum(values - 1, 0), corner(values)) >= volume
    assert hypervolume(values, corner(values) + 1) >= volume
    assert hypervolume(np.vstack([values, values]), corner(values)) == volume


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
def test_one_point_is_a_box_and_the_empty_set_is_nothing(objectives):
    reference = np.full(objectives, 3.0)
    assert hypervolume(np.ones((1, objectives)), reference) == 2.0**objectives
    assert hypervolume(np.empty((0, objectives)), reference) == 0.0
    assert hypervolume_history(np.empty((0, objectives)), reference).shape == (0,)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_points_on_or_beyond_the_reference_are_nothing(objectives):
    values = np.zeros((2, objectives))
    values[0, 0], values[1, 0] = 1.0, 2.0
    assert hypervolume(values, np.ones(objectives)) == 0.0
    assert hypervolume_history(values, np.ones(objectives)).tolist() == [0.0, 0.0]


def test_a_staircase_by_hand():
    values = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [3.0, 3.0]])
    assert hypervolume(values, np.array([4.0, 4.0])) == 6.0
    assert hypervolume_history(values, np.array([4.0, 4.0])).tolist() == [3.0, 5.0, 6.0, 6.0]


@pytest.mark.parametrize(("count", "objectives"), [(1000, 2), (400, 3), (60, 4), (25, 5)])
def test_large_fronts(count, objectives):
    """A sphere's octant seen from outside: all non-dominated, and the two algorithms have to agree."""
    rays = np.abs(np.random.default_rng(1).normal(size=(count, objectives)))
    values = 1.0 - rays / np.linalg.norm(rays, axis=1, keepdims=True)
    reference = np.ones(objectives)
    volume = hypervolume(values, reference)
    assert 0 < volume < 1
    assert hypervolume_history(values, reference)[-1] == pytest.approx(volume, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.floats(-1e100, 1e100)))
def test_default_reference_is_beyond_every_point(values):
    reference = default_reference(values)
    assert reference.shape == (values.shape[1],)
    assert np.isfinite(reference).all()
    assert (values < reference).all()


def test_default_reference_is_a_tenth_of_the_range_away():
    assert default_reference(np.array([[0.0, -5.0], [10.0, 5.0]])).tolist() == [11.0, 6.0]


def test_default_reference_without_a_range():
    assert default_reference(np.array([[3.0, -0.9, 0.0]])).tolist() == [6.0, 0.0, 1.0]


def test_default_reference_survives_a_range_lost_to_rounding():
    values = np.array([[1e9], [np.nextafter(1e9, 2e9)]])
    assert default_reference(values)[0] > values.max()


@pytest.mark.parametrize("function", [hypervolume, hypervolume_history])
def test_bad_arguments_are_refused(function):
    with pytest.raises(ValueError, match=r"shape \(N, M\)"):
        function(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="values must be finite"):
        function(np.array([[np.nan, 0.0]]), np.ones(2))
    with pytest.raises(ValueError, match=r"reference must have shape \(2,\); given \(3,\)"):
        function(np.zeros((1, 2)), np.ones(3))
    with pytest.raises(ValueError, match="reference must be finite"):
        function(np.zeros((1, 2)), np.array([np.inf, 1.0]))


def test_default_reference_needs_finite_points():
    with pytest.raises(ValueError, match="at least one point"):
        default_reference(np.empty((0, 2)))
    with pytest.raises(ValueError, match="values must be finite"):
        default_reference(np.array([[np.inf, 0.0]]))
