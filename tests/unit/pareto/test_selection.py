"""Choices on fronts whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.pareto.dominance import non_dominated_mask
from orchestrator.pareto.selection import knee_index, representatives, weighted_index

L_SHAPE = np.array([[0.0, 10.0], [0.5, 6.0], [1.0, 1.0], [6.0, 0.5], [10.0, 0.0]])
CONCAVE = np.array([[0.0, 10.0], [5.0, 9.0], [9.0, 5.0], [10.0, 0.0]])
LINE = np.array([[0.0, 4.0], [1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
VALUES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.integers(1, 4)),
    elements=st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6),
)


def front_of(values):
    return values[non_dominated_mask(values)]


def test_knee_of_an_l():
    assert knee_index(L_SHAPE) == 2


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3], [0, 2, 1, 4, 3]])
def test_knee_follows_its_point(order):
    assert order[knee_index(L_SHAPE[order])] == 2


def test_knee_does_not_depend_on_units():
    assert knee_index(L_SHAPE * [1e-6, 1e9] + [5.0, -1e9]) == 2


def test_knee_is_below_the_plane_rather_than_close_to_the_ideal():
    """Both inner points lie below the line x + y = 1: the first is nearer to the ideal, the second further below."""
    values = np.array([[0.0, 1.0], [0.40, 0.41], [0.14, 0.66], [1.0, 0.0]])
    assert np.linalg.norm(values, axis=1).argmin() == 1
    assert knee_index(values) == 2
    assert knee_index(np.insert(values, 1, 7.0, axis=1)) == 2  # an objective without a range has no say


def test_knee_in_three_objectives():
    values = np.vstack([np.eye(3), [[0.5, 0.4, 0.3], [0.2, 0.2, 0.2], [0.1, 0.5, 0.2]]])
    assert knee_index(values) == 4


@pytest.mark.parametrize(
    ("values", "index"),
    [
        pytest.param([[3.0, 4.0]], 0, id="one point"),
        pytest.param([[1.0, 0.0], [0.0, 1.0]], 0, id="two points, equally far"),
        pytest.param([[2.0], [1.0], [1.0]], 1, id="one objective"),
        pytest.param([[1.0, 1.0]] * 3, 0, id="all equal"),
        pytest.param(LINE, 2, id="straight: the middle is closest to the ideal"),
        pytest.param(CONCAVE, 0, id="concave: an extreme is closest to the ideal"),
        pytest.param([[0.0, 0.3, 0.3], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.9, 0.05, 0.28]], 0, id="a plane that rises"),
        pytest.param([[0.0, 0.0, 3.0], [3.0, 0.0, 2.0], [1.0, 3.0, 0.0]], 0, id="two extremes coincide"),
    ],
)
def test_without_a_knee_the_closest_to_the_ideal(values, index):
    assert knee_index(np.array(values)) == index


def test_equal_knees_go_to_the_lowest_index():
    values = np.array([[0.0, 1.0], [0.3, 0.1], [0.1, 0.3], [0.3, 0.1], [1.0, 0.0]])
    assert knee_index(values) == 1
    assert knee_index(values[[0, 2, 1, 3, 4]]) == 1


def test_knees_that_differ_by_rounding_are_equal():
    values = np.array([[0.0, 1.0], [0.3, 0.1 + 0.2], [0.1, 0.5], [0.6 - 0.1, 0.1 - 1e-16], [1.0, 0.0]])
    assert values[1].sum() > values[3].sum()
    assert knee_index(values) == 1


@settings(deadline=None, max_examples=40)
@given(VALUES)
def test_knee_is_the_definition_in_two_objectives(values):
    front = front_of(values[:, :1].repeat(2, axis=1) * [1.0, -1.0] if values.shape[1] == 1 else values[:, :2])
    spread = np.ptp(front, axis=0)
    scaled = (front - front.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    sums = scaled.sum(axis=1)
    assume(not 1 - 1e-9 < sums.min() < 1 - 1e-15)  # straight up to rounding: either rule may apply
    knee = knee_index(front)
    if len(front) > 2 and sums.min() < 1 - 1e-9:
        assert sums[knee] == pytest.approx(sums.min(), abs=1e-9)
    else:
        distances = np.linalg.norm(scaled, axis=1)
        assert distances[knee] == pytest.approx(distances.min(), abs=1e-4)


@pytest.mark.parametrize(
    ("weights", "index"), [([1, 1], 2), ([1, 0], 0), ([0, 1], 4), ([9, 1], 1), ([1e-300, 0], 0), ([1e308] * 2, 2)]
)
def test_weights_move_along_the_front(weights, index):
    assert weighted_index(L_SHAPE, np.array(weights)) == index


def test_weights_reach_a_concave_front():
    assert weighted_index(CONCAVE, np.array([1.0, 0.6])) == 1
    assert weighted_index(CONCAVE, np.array([0.6, 1.0])) == 2


def test_augmentation_refuses_the_weakly_dominated():
    values = np.array([[0.5, 1.0, 1.0], [0.5, 1.0, 0.0], [1.0, 0.0, 0.5], [0.0, 1.0, 1.0]])
    assert weighted_index(values, np.array([0.0, 1.0, 0.0])) == 2
    assert weighted_index(values[:2], np.array([1.0, 1.0, 0.0])) == 1


def test_equal_scores_go_to_the_lowest_index():
    assert weighted_index(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([2.0, 2.0])) == 0


@settings(deadline=None, max_examples=40)
@given(VALUES, st.data())
def test_weighted_is_the_definition(values, data):
    front = front_of(values)
    weights = data.draw(hnp.arrays(np.float64, front.shape[1], elements=st.floats(0.01, 10.0)))
    spread = np.ptp(front, axis=0)
    scaled = (front - front.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    scores = [max(weights / weights.sum() * point) + 1e-3 * sum(point) for point in scaled]
    chosen = weighted_index(front, weights)
    assert scores[chosen] == pytest.approx(min(scores), abs=1e-11)
    assert weighted_index(front, weights * 8) == chosen


def test_representatives_start_with_the_extremes():
    assert representatives(L_SHAPE, 1) == [0]
    assert representatives(L_SHAPE, 2) == [0, 4]
    assert representatives(L_SHAPE, 3) == [0, 4, 2]


def test_the_extreme_among_equal_minima_is_the_best_elsewhere():
    values = np.array([[0.0, 1.0, 0.2], [0.0, 0.3, 0.3], [1.0, 0.0, 1.0], [0.5, 0.9, 0.0]])
    assert representatives(values, 3) == [1, 2, 3]


def test_representatives_are_spread_evenly_over_a_line():
    values = np.column_stack([np.arange(9.0), np.arange(9.0)[::-1]])
    assert representatives(values, 5) == [0, 8, 4, 2, 6]


def test_representatives_leave_duplicates_to_the_end():
    values = LINE[[0, 0, 2, 2, 4]]
    assert representatives(values, 5) == [0, 4, 2, 1, 3]


@settings(deadline=None, max_examples=40)
@given(VALUES, st.integers(1, 15))
def test_representatives_are_different_and_nested(values, k):
    front = front_of(values)
    chosen = representatives(front, k)
    assert len(chosen) == len(set(chosen)) == min(k, len(front))
    assert set(chosen) <= set(range(len(front)))
    assert representatives(front, k + 1)[: len(chosen)] == chosen
    assert all(type(index) is int for index in chosen)
    assert representatives(front[:0], k) == []


@pytest.mark.parametrize("k", [0, -1])
def test_representatives_are_at_least_one(k):
    with pytest.raises(ValueError, match=r"k must be >= 1; given"):
        representatives(LINE, k)


@pytest.mark.parametrize(
    "choose", [knee_index, lambda values: weighted_index(values, np.ones(2)), lambda values: representatives(values, 2)]
)
def test_bad_values_are_refused(choose):
    with pytest.raises(ValueError, match=r"shape \(N, M\)"):
        choose(np.zeros(2))
    with pytest.raises(ValueError, match="values must be finite"):
        choose(np.array([[np.nan, 0.0]]))


@pytest.mark.parametrize("choose", [knee_index, lambda values: weighted_index(values, np.ones(2))])
def test_nothing_to_choose_from_is_refused(choose):
    with pytest.raises(ValueError, match="at least one point"):
        choose(np.empty((0, 2)))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_weights_out_of_range_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be finite, >= 0 and not all 0"):
        weighted_index(LINE, np.array(weights))
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\); given \(3,\)"):
        weighted_index(LINE, np.ones(3))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 4), st.data())
def test_knee_has_the_smallest_sum_where_the_plane_is_even(objectives, data):
    """Each objective's minimum is the maximum of the others, so the plane is where scaled values add up to M - 1.

    Whatever the units, the order of the points and that of the objectives.
    """
    inner = data.draw(hnp.arrays(np.float64, st.tuples(st.integers(1, 8), st.just(objectives)), elements=st.floats(0.01, 0.99)))
    scaled = front_of(np.vstack([1.0 - np.eye(objectives), inner]))
    assume(scaled.sum(axis=1).min() < objectives - 1 - 1e-6)
    units = data.draw(hnp.arrays(np.float64, objectives, elements=st.sampled_from([1e-3, 1.0, 1e6])))
    rows, columns = data.draw(st.permutations(range(len(scaled)))), data.draw(st.permutations(range(objectives)))
    values = (scaled * units + units)[rows][:, columns]
    assert scaled[rows[knee_index(values)]].sum() == pytest.approx(scaled.sum(axis=1).min(), abs=1e-9)
