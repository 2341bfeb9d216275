"""Points of a space: their order, their spread, which of them are the same, and how another space's points are brought in."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.points import (
    domain_values,
    fits,
    from_unit,
    grid,
    is_finite,
    nearest,
    one_at_a_time,
    point_key,
    seeds_from_front,
)
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.space import Domain, SearchSpace

RECIPE = Recipe()
TENTHS = {"float": [0.1, 0.7], "step": 0.1}


def domain(**keys: Any) -> Domain:
    return Domain.model_validate(keys)


def make_space(**holes: Any) -> SearchSpace:
    return SearchSpace.model_validate({path.replace("__", "."): hole for path, hole in holes.items()})


@st.composite
def domains(draw: st.DrawFn) -> Domain:
    kind = draw(st.sampled_from(["float", "log float", "stepped float", "int", "log int", "choice"]))
    low, span = draw(st.integers(1, 50)), draw(st.integers(0, 60))
    match kind:
        case "float":
            return domain(float=[low / 7, (low + span) / 7])
        case "log float":
            return domain(float=[low / 7, (low + span) / 7], log=True)
        case "stepped float":
            return domain(float=[low / 100, (low + span * 5) / 100], step=0.05)
        case "int":
            return domain(int=[low, low + 3 * span], step=3)
        case "log int":
            return domain(int=[low, low + span], log=True)
        case _:
            return domain(choice=[True, 1, 2.5, "a"][: draw(st.integers(1, 4))])


@given(domains(), st.floats(0.0, 1.0, exclude_max=True))
def test_every_coordinate_of_the_unit_interval_is_a_value_of_the_domain(hole, unit):
    assert hole.contains(from_unit(hole, unit))


@given(domains(), st.integers(2, 9))
def test_values_of_a_grid_lie_in_the_domain_ascend_and_hold_both_ends(hole, per_float):
    values = domain_values(hole, per_float)
    assert all(hole.contains(value) for value in values)
    assert values[0] == hole.ends()[0]
    assert values[-1] == hole.ends()[-1]
    if hole.kind != "choice":
        assert values == sorted(set(values))


@given(domains(), st.floats(-100.0, 100.0))
def test_the_nearest_value_lies_in_the_domain_and_none_lies_nearer(hole, number):
    value = nearest(hole, number)
    if hole.kind == "choice":
        assert value == (number if hole.contains(number) else None)
        return
    assert hole.contains(value)
    assert abs(value - number) <= min(abs(other - number) for other in domain_values(hole, 9)) + 1e-9
    assert nearest(hole, value) == value


def test_whole_numbers_steps_and_choices_have_equal_shares():
    for hole in (domain(int=[2, 5]), domain(float=[0.0, 0.9], step=0.3), domain(choice=["a", "b", "c", "d"])):
        counts = Counter(from_unit(hole, (index + 0.5) / 400) for index in range(400))
        assert list(counts.values()) == [100] * 4


def test_a_logarithmic_whole_number_has_the_share_of_the_half_to_each_side_of_it():
    counts = Counter(from_unit(domain(int=[1, 4], log=True), (index + 0.5) / 10_000) for index in range(10_000))
    whole = math.log(4.5 / 0.5)
    for value in (1, 2, 3, 4):
        assert counts[value] / 10_000 == pytest.approx(math.log((value + 0.5) / (value - 0.5)) / whole, abs=2e-4)


def test_equal_factors_have_equal_shares_of_a_logarithmic_fraction():
    hole = domain(float=[0.001, 0.1], log=True)
    assert [from_unit(hole, unit) for unit in (0.0, 0.25, 0.5)] == pytest.approx([0.001, 0.001 * 10**0.5, 0.01])


@pytest.mark.parametrize(
    ("hole", "one", "other", "same"),
    [
        pytest.param(TENTHS, 0.3, 0.1 + 2 * 0.1, True, id="a step, rounded"),
        pytest.param(TENTHS, 0.3, 0.4, False, id="another step"),
        pytest.param({"int": [8, 32]}, 8, 8.0, True, id="a whole number written as a float"),
        pytest.param({"choice": [True, 1]}, True, 1, False, id="yes and one"),
        pytest.param({"float": [0.0, 1.0]}, 0.3, 0.1 + 2 * 0.1, False, id="fractions, however close"),
    ],
)
def test_what_counts_as_the_same_point(hole, one, other, same):
    space = SearchSpace.model_validate({"some.hole": hole})
    assert (point_key({"some.hole": one}, space) == point_key({"some.hole": other}, space)) is same


def test_a_hole_more_makes_another_point_and_a_path_outside_the_space_does_not():
    space = make_space(model__width={"int": [8, 16]}, pruning__ratio={"float": [0.0, 0.5]})
    assert point_key({"model.width": 8}, space) != point_key({"model.width": 8, "pruning.ratio": 0.1}, space)
    assert point_key({"model.width": 8}, space) == point_key({"model.width": 8, "training.epochs": 3}, space)


def test_a_space_is_finite_when_every_float_has_a_step_or_one_value():
    assert is_finite(make_space(a=TENTHS, b={"int": [1, 9]}, c={"choice": ["x"]}, d={"float": [0.5, 0.5]}))
    assert not is_finite(make_space(a=TENTHS, b={"float": [0.0, 1.0]}))
    assert is_finite(make_space())


QUANTIZED = {
    "quantization__method": {"choice": ["none", "ptq", "qat"]},
    "quantization__weight_bits": {"int": [2, 8], "when": {"quantization.method": ["ptq", "qat"]}},
    "quantization__epochs": {"int": [1, 2], "when": {"quantization.method": "qat"}},
}


def test_a_grid_has_each_point_once_and_all_of_them_fit():
    space = make_space(**QUANTIZED, model__width={"int": [8, 24], "step": 8})
    points = list(grid(space, RECIPE, 2))
    assert len(points) == (1 + 7 + 7 * 2) * 3
    assert len({point_key(point, space) for point in points}) == len(points)
    assert all(fits(point, space, RECIPE) for point in points)


def test_the_first_points_of_a_grid_too_large_to_list_come_at_once():
    space = make_space(**{f"hole{index}": {"int": [1, 1000]} for index in range(12)})
    assert next(grid(space, RECIPE, 2)) == {f"hole{index}": 1 for index in range(12)}


@pytest.mark.parametrize(
    "choice",
    [
        {"quantization.method": "ptq"},
        {"quantization.method": "none", "quantization.weight_bits": 4},
        {"quantization.method": "ptq", "quantization.weight_bits": 9},
        {"quantization.method": "ptq", "quantization.weight_bits": 4, "model.width": 8},
    ],
    ids=["lacks a hole", "fills an inactive one", "outside its domain", "outside the space"],
)
def test_what_is_no_point_of_the_space_does_not_fit(choice):
    assert not fits(choice, make_space(**QUANTIZED), RECIPE)


# From another sweep.


def test_points_of_another_front_are_moved_into_the_space_and_each_is_taken_once():
    space = make_space(pruning__ratio={"float": [0.0, 0.5], "step": 0.25}, model__width={"int": [8, 32], "step": 8})
    front = [
        {"pruning.ratio": 0.8, "model.width": 20.1},  # clipped; moved to a step
        {"pruning.ratio": 0.3, "training.epochs": 7},  # a hole that it did not search; a path that is not searched here
        {"pruning.ratio": 0.2, "model.width": 16},  # the same point as the one before: the recipe is 16 wide
    ]
    assert seeds_from_front(front, space, RECIPE) == [
        {"pruning.ratio": 0.5, "model.width": 24},
        {"pruning.ratio": 0.25, "model.width": 16},
    ]


def test_a_seed_from_another_front_fills_the_holes_that_are_active_here():
    space = make_space(**QUANTIZED)
    front = [
        {"quantization.method": "ptq", "quantization.weight_bits": 1, "quantization.epochs": 2},
        {"quantization.method": "none"},
    ]
    assert seeds_from_front(front, space, RECIPE) == [
        {"quantization.method": "ptq", "quantization.weight_bits": 2},
        {"quantization.method": "none"},
    ]


def test_a_value_that_cannot_be_moved_gives_way_to_the_recipes_own_or_the_point_is_dropped():
    front = [{"pruning.criterion": "taylor", "model.width": 8}]
    kept = make_space(pruning__criterion={"choice": ["l2", RECIPE.pruning.criterion]}, model__width={"int": [8, 16]})
    assert seeds_from_front(front, kept, RECIPE) == [{"pruning.criterion": RECIPE.pruning.criterion, "model.width": 8}]
    other = "l2" if RECIPE.pruning.criterion != "l2" else "l1"
    dropped = make_space(pruning__criterion={"choice": [other]}, model__width={"int": [8, 16]})
    assert seeds_from_front(front, dropped, RECIPE) == []


# The sensitivity pass.


def test_one_hole_at_a_time_goes_to_either_end_and_what_it_brings_is_filled():
    trained = {"quantization.method": ["ptq", "qat"]}
    space = make_space(
        pruning__ratio={"float": [0.0, 0.8]},
        quantization__method={"choice": ["none", "ptq"]},
        quantization__weight_bits={"int": [2, 4], "when": trained},
        model__width={"int": [8, 32], "step": 8},
    )
    origin = {"pruning.ratio": 0.2, "quantization.method": "none", "model.width": 32}
    found = list(one_at_a_time(origin, space, RECIPE))
    assert found == [
        origin | {"pruning.ratio": 0.0},
        origin | {"pruning.ratio": 0.8},
        origin | {"quantization.method": "ptq", "quantization.weight_bits": 4},  # the recipe's own 8 is not in the domain
        origin | {"model.width": 8},
    ]
    assert all(fits(point, space, RECIPE) for point in found)
