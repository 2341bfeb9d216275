"""Masks and ranks against definitions written out in loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.pareto.dominance import FloatArray, constrained_ranks, coverage, non_dominated_mask, non_dominated_ranks

SHAPES = st.tuples(st.integers(0, 14), st.integers(1, 4))
COARSE = hnp.arrays(np.float64, SHAPES, elements=st.integers(-2, 2).map(float))  # ties and duplicates abound
FINE = hnp.arrays(np.float64, SHAPES, elements=st.floats(allow_nan=False, allow_infinity=False))
VALUES = COARSE | FINE


def dominates(one: FloatArray, other: FloatArray) -> bool:
    pairs = list(zip(one.tolist(), other.tolist(), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def peeled(count: int, beats: Callable[[int, int], bool]) -> list[int]:
    """Ranks by taking off one front after the other."""
    ranks: dict[int, int] = {}
    while len(ranks) < count:
        left = [index for index in range(count) if index not in ranks]
        front = [index for index in left if not any(beats(other, index) for other in left)]
        ranks |= dict.fromkeys(front, max(ranks.values(), default=-1) + 1)
    return [ranks[index] for index in range(count)]


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_mask_is_what_the_definition_says(values):
    expected = [not any(dominates(other, point) for other in values) for point in values]
    mask = non_dominated_mask(values)
    assert mask.dtype == np.bool_
    assert mask.tolist() == expected


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_ranks_are_what_peeling_gives(values):
    ranks = non_dominated_ranks(values)
    assert ranks.dtype == np.int64
    assert ranks.tolist() == peeled(len(values), lambda i, j: dominates(values[i], values[j]))
    assert ((ranks == 0) == non_dominated_mask(values)).all()


@settings(deadline=None, max_examples=50)
@given(VALUES, st.data())
def test_constrained_ranks_are_what_peeling_gives(values, data):
    amounts = data.draw(hnp.arrays(np.float64, len(values), elements=st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0])))

    def beats(i, j):
        if amounts[i] == amounts[j] == 0:
            return dominates(values[i], values[j])
        return amounts[i] < amounts[j]

    assert constrained_ranks(values, amounts).tolist() == peeled(len(values), beats)


@settings(deadline=None, max_examples=50)
@given(VALUES, st.randoms(use_true_random=False))
def test_order_of_the_points_does_not_matter(values, random):
    order = random.sample(range(len(values)), len(values))
    assert non_dominated_mask(values[order]).tolist() == non_dominated_mask(values)[order].tolist()
    assert non_dominated_ranks(values[order]).tolist() == non_dominated_ranks(values)[order].tolist()


def test_duplicates_are_kept():
    values = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 2.0]])
    assert non_dominated_mask(values).tolist() == [True, True, True, False]
    assert non_dominated_ranks(values).tolist() == [0, 0, 0, 1]


def test_signed_zeros_are_equal():
    assert non_dominated_mask(np.array([[0.0, -0.0], [-0.0, 0.0]])).tolist() == [True, True]


def test_integers_are_accepted_and_the_argument_is_left_alone():
    values = np.array([[2, 2], [1, 1]])
    assert non_dominated_ranks(values).tolist() == [1, 0]
    assert values.tolist() == [[2, 2], [1, 1]]


def test_infeasible_points_follow_whatever_their_values():
    values = np.array([[9.0, 9.0], [0.0, 0.0], [8.0, 8.0], [1.0, 1.0]])
    assert constrained_ranks(values, np.array([0.0, 0.2, 0.0, 0.1])).tolist() == [1, 3, 0, 2]


def test_all_infeasible_starts_at_zero():
    assert constrained_ranks(np.zeros((3, 2)), np.array([2.0, 1.0, 2.0])).tolist() == [1, 0, 1]


def test_ranks_of_many_points_leave_no_gap():
    ranks = non_dominated_ranks(np.random.default_rng(0).random((2000, 3)))
    assert np.unique(ranks).tolist() == list(range(int(ranks.max()) + 1))


@pytest.mark.parametrize("function", [non_dominated_mask, non_dominated_ranks])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(function, bad):
    with pytest.raises(ValueError, match=r"finite; given .* in row 1"):
        function(np.array([[1.0, 2.0], [bad, 2.0]]))


@pytest.mark.parametrize("function", [non_dominated_mask, non_dominated_ranks])
@pytest.mark.parametrize("shape", [(3,), (3, 0), (1, 2, 3)])
def test_other_shapes_are_refused(function, shape):
    with pytest.raises(ValueError, match=r"shape \(N, M\)"):
        function(np.zeros(shape))


def test_violations_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"violations must have shape \(2,\); given \(3,\)"):
        constrained_ranks(np.zeros((2, 2)), np.zeros(3))


@pytest.mark.parametrize("bad", [-1e-9, np.nan, np.inf])
def test_violations_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="violations must be finite and >= 0"):
        constrained_ranks(np.zeros((2, 2)), np.array([0.0, bad]))


def test_coverage_by_hand():
    """As in the definition: what is equal is covered, and the two ways are apart."""
    one = np.array([[0.0, 2.0], [2.0, 0.0]])
    other = np.array([[0.0, 2.0], [1.0, 1.0], [3.0, 0.0], [2.0, 2.0]])
    assert coverage(one, other) == 0.75
    assert coverage(other, one) == 0.5
    assert coverage(np.empty((0, 2)), other) == 0.0


@settings(deadline=None)
@given(COARSE.filter(len))
def test_coverage_is_the_share_that_someone_weakly_dominates(values):
    half = len(values) // 2
    own, others = values[:half], values[half:]
    covered = [any(all(a <= b for a, b in zip(p, q, strict=True)) for p in own.tolist()) for q in others.tolist()]
    assert coverage(own, others) == pytest.approx(sum(covered) / len(covered))
    assert coverage(values, values) == 1.0
    assert coverage(values[non_dominated_mask(values)], values) == 1.0, "a front covers all that it is the front of"


def test_coverage_of_nothing_is_not_defined():
    with pytest.raises(ValueError, match="K >= 1"):
        coverage(np.zeros((1, 2)), np.empty((0, 2)))
    with pytest.raises(ValueError, match="must have shape"):
        coverage(np.zeros((1, 2)), np.zeros((1, 3)))
