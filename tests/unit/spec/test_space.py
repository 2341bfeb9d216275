"""Domains, conditions, and the two functions that reach into a tree by a dotted path."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.spec.recipe import Recipe
from orchestrator.spec.space import Domain, SearchSpace, fill, is_active, value_at, with_value

NAMES = st.text("abcxyz_", min_size=1, max_size=3)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(".".join)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=2), max_size=2))
few = settings(deadline=None, max_examples=50)


def domain(**keys) -> Domain:
    return Domain.model_validate(keys)


def space(**holes) -> SearchSpace:
    return SearchSpace.model_validate({path.replace("__", "."): keys for path, keys in holes.items()})


# Reaching into trees.


@few
@given(TREES, PATHS, VALUES)
def test_what_is_put_at_a_path_is_found_there(tree, path, value):
    assert value_at(with_value(tree, path, value), path) == value


@few
@given(TREES, PATHS, VALUES)
def test_putting_a_value_leaves_the_tree_it_was_given(tree, path, value):
    before = copy.deepcopy(tree)
    with_value(tree, path, value)
    assert tree == before


@few
@given(TREES, PATHS, VALUES, VALUES)
def test_the_later_value_of_a_path_holds(tree, path, first, second):
    assert with_value(with_value(tree, path, first), path, second) == with_value(tree, path, second)


@few
@given(TREES, PATHS, VALUES)
def test_putting_back_what_was_there_changes_nothing(tree, path, value):
    filled = with_value(tree, path, value)
    assert with_value(filled, path, value_at(filled, path)) == filled


def test_a_value_leaves_its_neighbours():
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    assert with_value(tree, "a.b", 9) == {"a": {"b": 9, "c": 2}, "d": 3}
    assert with_value(tree, "a.e.f", 9) == {"a": {"b": 1, "c": 2, "e": {"f": 9}}, "d": 3}
    assert with_value(tree, "d.e", 9) == {"a": {"b": 1, "c": 2}, "d": {"e": 9}}


@pytest.mark.parametrize("path", ["x", "a.x", "a.b.x", "d.x", ""])
def test_a_missing_path_is_a_key_error(path):
    with pytest.raises(KeyError):
        value_at({"a": {"b": 1}, "d": 3}, path)


# Domains.


@pytest.mark.parametrize(
    ("keys", "kind", "ends"),
    [
        ({"float": [0.0, 0.5]}, "float", [0.0, 0.5]),
        ({"float": [0, 1]}, "float", [0.0, 1.0]),
        ({"int": [2, 8]}, "int", [2, 8]),
        ({"choice": ["a", "b", "c"]}, "choice", ["a", "b", "c"]),
        ({"choice": [1, 2.5, True, "x"]}, "choice", [1, 2.5, True, "x"]),
        ({"float": [0.25, 0.25]}, "float", [0.25, 0.25]),
    ],
)
def test_a_domain_knows_its_kind_and_its_ends(keys, kind, ends):
    assert domain(**keys).kind == kind
    assert domain(**keys).ends() == ends
    assert [type(end) for end in domain(**keys).ends()] == [type(end) for end in ends]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"log": True},
        {"float": [0.0, 1.0], "int": [0, 1]},
        {"float": [0.0]},
        {"float": [0.0, 0.5, 1.0]},
        {"float": [1.0, 0.0]},
        {"int": [8, 2]},
        {"int": [2.0, 8.0]},
        {"float": ["0", "1"]},
        {"float": [0.0, float("nan")]},
        {"float": [0.0, float("inf")]},
        {"choice": []},
        {"choice": [None]},
        {"float": [0.0, 1.0], "log": True},
        {"float": [-1.0, 1.0], "log": True},
        {"choice": ["a"], "log": True},
        {"float": [0.1, 1.0], "log": True, "step": 0.1},
        {"float": [0.0, 1.0], "step": 0},
        {"float": [0.0, 1.0], "step": -0.1},
        {"int": [2, 8], "step": 0.5},
        {"int": [8, 30], "step": 8},
        {"int": [8, 12], "step": 8},
        {"float": [0.0, 0.5], "step": 0.2},
        {"float": [0.0, 0.5], "step": 1},
        {"float": [0.0, 1.0], "step": 0.3},
        {"choice": [8, 16], "step": 8},
        {"float": [0.0, 1.0], "when": {"a": []}},
        {"float": [0.0, 1.0], "steps": 0.1},
        {"float": [0.0, 1.0], "when": "a"},
    ],
)
def test_an_impossible_domain_is_refused(keys):
    with pytest.raises(ValidationError):
        domain(**keys)


@pytest.mark.parametrize(
    ("keys", "inside", "outside"),
    [
        ({"float": [0.0, 0.5]}, [0.0, 0.25, 0.5, 0], [-1e-9, 0.5000001, "0.1", None, True, float("nan")]),
        ({"int": [2, 8]}, [2, 5, 8, 5.0], [1, 9, "2", None, True, 2.5, float("nan")]),
        ({"int": [10, 30], "step": 10}, [10, 20, 30], [15, 16, 20.5, 40, 0]),
        ({"int": [1, 16], "log": True}, [1, 3, 16], [0, 1.5, 17]),
        ({"float": [0.0, 0.75], "step": 0.25}, [0.0, 0.25, 0.75, 0], [0.1, 0.251, 1.0]),
        ({"float": [0.1, 0.7], "step": 0.1}, [0.1, 0.1 + 0.2, 6 * 0.1, 0.7], [0.15, 0.3001, 0.0]),
        ({"choice": ["none", "ptq"]}, ["none", "ptq"], ["qat", None, 0]),
        ({"choice": [1, 2]}, [1, 2], [1.0, True, "1", 3]),
        ({"choice": [True, False]}, [True, False], [1, 0]),
    ],
)
def test_what_a_domain_contains(keys, inside, outside):
    assert [value for value in inside if not domain(**keys).contains(value)] == []
    assert [value for value in outside if domain(**keys).contains(value)] == []


def test_a_whole_number_domain_contains_no_fraction():
    assert not domain(int=[2, 8]).contains(2.5)


@settings(deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_both_ends_of_a_range_lie_in_it(one, other):
    made = domain(float=sorted([one, other]))
    assert all(made.contains(end) for end in made.ends())


@settings(deadline=None)
@given(st.integers(-99, 99), st.integers(1, 99), st.integers(0, 99), st.integers(0, 3), st.integers(1, 9))
def test_a_step_divides_its_range_as_written(low, step, count, digits, rest):
    def written(number):
        return float(f"{number}e-{digits}")

    made = domain(float=[written(low), written(low + count * step)], step=written(step))
    assert all(made.contains(written(low + position * step)) for position in range(count + 1))
    if rest % step:
        assert not any(made.contains(written(low + position * step + rest)) for position in range(count + 1))
        with pytest.raises(ValidationError, match="divides the range"):
            domain(float=[written(low), written(low + count * step + rest)], step=written(step))


@pytest.mark.parametrize(
    ("keys", "probes"),
    [
        ({"int": [2, 8]}, [2, 8, 3]),
        ({"int": [8, 32], "step": 8}, [8, 32, 16]),
        ({"int": [8, 8]}, [8, 8]),
        ({"float": [0.0, 0.5], "step": 0.25}, [0.0, 0.5]),
        ({"choice": [1, 2]}, [1, 2]),
    ],
)
def test_probes_are_the_ends_and_the_second_whole_number(keys, probes):
    assert domain(**keys).probes() == probes


# Conditions.


@pytest.mark.parametrize(
    ("when", "choice", "active"),
    [
        ({}, {}, True),
        ({"a.b": "x"}, {"a.b": "x"}, True),
        ({"a.b": "x"}, {"a.b": "y"}, False),
        ({"a.b": ["x", "y"]}, {"a.b": "y"}, True),
        ({"a.b": ["x", "y"]}, {"a.b": "z"}, False),
        ({"a.b": "tree"}, {}, True),
        ({"a.b": "x"}, {}, False),
        ({"a.b": "x", "c": 1}, {"a.b": "x"}, True),
        ({"a.b": "x", "c": 2}, {"a.b": "x"}, False),
    ],
)
def test_a_condition_reads_what_was_chosen_and_else_the_recipe(when, choice, active):
    tree = {"a": {"b": "tree"}, "c": 1}
    assert is_active(domain(float=[0.0, 1.0], when=when), choice, tree) is active


# Spaces.


def test_a_space_keeps_the_order_of_its_file():
    made = space(pruning__ratio={"float": [0.0, 0.5]}, model__width={"int": [8, 16]}, training__schedule={"choice": ["step"]})
    assert [path for path, _ in made.items()] == ["pruning.ratio", "model.width", "training.schedule"]
    assert len(made) == 3


def test_a_pinned_hole_is_gone_and_the_space_it_was_in_is_not():
    made = space(pruning__ratio={"float": [0.0, 0.5]}, model__width={"int": [8, 16]})
    assert [path for path, _ in made.without("pruning.ratio").items()] == ["model.width"]
    assert len(made.without("nowhere")) == len(made) == 2


def test_the_baseline_is_the_recipe_as_a_point_of_the_space():
    recipe = Recipe.model_validate({"pruning": {"ratio": 0.25}})
    made = space(pruning__ratio={"float": [0.0, 0.5]}, quantization__method={"choice": ["none", "ptq"]})
    assert made.baseline(recipe) == {"pruning.ratio": 0.25, "quantization.method": "none"}


def test_the_baseline_leaves_out_what_does_not_apply_to_it():
    bits = {"int": [2, 4], "when": {"quantization.method": "ptq"}}
    made = space(quantization__method={"choice": ["none", "ptq"]}, quantization__weight_bits=bits)
    assert made.baseline(Recipe()) == {"quantization.method": "none"}


@pytest.mark.parametrize(
    "hole",
    [
        {"pruning__ratio": {"float": [0.1, 0.5]}},
        {"quantization__method": {"choice": ["ptq"]}},
        {"training__batch_size": {"int": [100, 200], "step": 50}},
        {"training__momentum": {"float": [0.0, 0.75], "step": 0.25}},
    ],
)
def test_there_is_no_baseline_when_the_recipe_lies_outside(hole):
    assert space(model__width={"int": [8, 16]}, **hole).baseline(Recipe()) is None


def test_an_empty_space_has_the_recipe_as_its_only_point():
    assert SearchSpace({}).baseline(Recipe()) == {}


# Filling holes.


def test_filling_sets_the_holes_and_nothing_else():
    recipe = Recipe()
    filled = fill(recipe, {"pruning.ratio": 0.5, "teacher.training.epochs": 3})
    assert (filled.pruning.ratio, filled.teacher.training.epochs) == (0.5, 3)
    assert fill(filled, {"pruning.ratio": 0.0, "teacher.training.epochs": 10}) == recipe


def test_filling_with_the_baseline_gives_the_recipe():
    recipe = Recipe.model_validate({"pruning": {"ratio": 0.25}})
    made = space(pruning__ratio={"float": [0.0, 0.5]}, model__width={"int": [8, 16]})
    assert fill(recipe, made.baseline(recipe)) == recipe


@pytest.mark.parametrize(
    "choice",
    [
        {"pruning.ratio": 0.99},
        {"pruning.ratio": "0.5"},
        {"pruning.ration": 0.5},
        {"training.epochs": 1.5},
        {"pruning": 1},
    ],
)
def test_filling_with_what_the_recipe_forbids_is_refused(choice):
    with pytest.raises(ValidationError):
        fill(Recipe(), choice)
