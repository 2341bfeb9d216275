"""Points of a search space as such: in a fixed order, from the unit cube, and which of them are the same. No optuna here."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from orchestrator.spec.recipe import Recipe
from orchestrator.spec.seeding import as_proposed
from orchestrator.spec.space import Choice, Domain, SearchSpace, Value, is_active, value_at

Key = tuple[tuple[str, str, Value], ...]

_BLOCK = 64  # Sobol points are drawn in powers of two, which is what balances them


def fits(choice: Mapping[str, Value], space: SearchSpace, recipe: Recipe) -> bool:
    """Whether `choice` is a point of the space: a value for each active hole, inside its domain, and for no other."""
    tree = recipe.model_dump()
    active = {path: domain for path, domain in space.items() if is_active(domain, choice, tree)}
    return choice.keys() == active.keys() and all(domain.contains(choice[path]) for path, domain in active.items())


def point_key(choice: Mapping[str, Value], space: SearchSpace) -> Key:
    """What two choices share exactly when they are the same point.

    Whole numbers may be written as floats, steps are counted (3 * 0.1 is 0.3), True is not 1. Paths outside the space say
    nothing.
    """
    return tuple((path, *_same(domain, choice[path])) for path, domain in space.items() if path in choice)


def is_finite(space: SearchSpace) -> bool:
    """Whether the space has a finite number of points: every float hole has a step, or both ends at one value."""
    return all(domain.kind != "float" or domain.step is not None or domain.low == domain.high for _, domain in space.items())


def grid(space: SearchSpace, recipe: Recipe, per_float: int) -> Iterator[Choice]:
    """Every combination of values, each point once: holes in file order, the last turns fastest, inactive ones are left out.

    Args:
        per_float: how many values a float hole without a step has, >= 2: evenly spaced, both ends included, and evenly spaced
            in the logarithm where the hole has `log`.
    """
    tree, holes = recipe.model_dump(), list(space.items())

    def below(index: int, choice: Choice) -> Iterator[Choice]:
        if index == len(holes):
            yield choice
            return
        path, domain = holes[index]
        if not is_active(domain, choice, tree):
            yield from below(index + 1, choice)
            return
        for value in domain_values(domain, per_float):
            yield from below(index + 1, {**choice, path: value})

    return below(0, {})


def quasi_random(space: SearchSpace, recipe: Recipe, seed: int, count: int) -> Iterator[Choice]:
    """The first `count` points of a scrambled Sobol sequence, one dimension for each hole, in file order.

    A hole that is inactive at a point leaves its coordinate unused, so that the points stay evenly spread in all others.

    Source: Sobol 1967, with the directions of Joe and Kuo 2008 and the scrambling of Matousek 1998, as in scipy.stats.qmc.

    Args:
        seed: of the scrambling, >= 0.
        count: at most 2**30.
    """
    from scipy.stats import qmc  # takes most of a second

    tree, holes = recipe.model_dump(), list(space.items())
    if not holes:
        return
    engine = qmc.Sobol(len(holes), scramble=True, rng=seed)
    for start in range(0, count, _BLOCK):
        for unit in engine.random(_BLOCK)[: count - start]:
            choice = Choice()
            for (path, domain), coordinate in zip(holes, unit, strict=True):
                if is_active(domain, choice, tree):
                    choice[path] = from_unit(domain, float(coordinate))
            yield choice


def from_unit(domain: Domain, unit: float) -> Value:
    """The value at `unit` in [0, 1) of a domain: equal shares of it for equal shares of the values, or of their logarithms."""
    if domain.log:
        # A whole number has the half to each side of it; else the two ends would come half as often as their neighbours.
        half = 0.5 if domain.kind == "int" else 0.0
        low, high = math.log(domain.low - half), math.log(domain.high + half)
        value = math.exp(low + unit * (high - low))
        return as_proposed(domain, min(max(round(value) if half else value, domain.low), domain.high))
    if domain.kind == "float" and domain.step is None:
        return min(domain.low + unit * (domain.high - domain.low), domain.high)
    if domain.choices is not None:
        return domain.choices[int(unit * len(domain.choices))]
    return _at_step(domain, int(unit * _num_steps(domain)))


def domain_values(domain: Domain, per_float: int) -> list[Value]:
    """The values of a domain, ascending or as listed; a float one without a step is cut into `per_float` values."""
    if domain.choices is not None:
        return list(domain.choices)
    if domain.kind == "float" and domain.step is None:
        spaced = np.geomspace if domain.log else np.linspace
        return list(dict.fromkeys(float(value) for value in spaced(domain.low, domain.high, per_float)))
    return [_at_step(domain, index) for index in range(_num_steps(domain))]


def nearest(domain: Domain, value: Any) -> Value | None:
    """The value of the domain closest to a number, `value` itself among choices, or None where there is no such value."""
    if domain.choices is not None:
        return value if domain.contains(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    clipped = min(max(value, domain.low), domain.high)
    if domain.kind == "float" and domain.step is None:
        return float(clipped)
    return _at_step(domain, round((clipped - domain.low) / (domain.step or 1)))


def seeds_from_front(choices: Iterable[Mapping[str, Value]], space: SearchSpace, recipe: Recipe) -> list[Choice]:
    """Points of another sweep's front as points of this space, each once, in order.

    A number outside its domain is moved to the closest value inside. Any other value outside gives way to the recipe's own, as
    in a hole that the other sweep did not search; a point is dropped where that does not fit either.

    Args:
        choices: what the other sweep put into its holes; paths that this space does not search are passed over.
        recipe: of this sweep.
    """
    tree = recipe.model_dump()
    found: dict[Key, Choice] = {}
    for other in choices:
        seed = Choice()
        for path, domain in space.items():
            if not is_active(domain, seed, tree):
                continue
            value = nearest(domain, other.get(path))
            value = nearest(domain, value_at(tree, path)) if value is None else value
            if value is None:
                break
            seed[path] = value
        else:
            found.setdefault(point_key(seed, space), seed)
    return list(found.values())


def one_at_a_time(origin: Choice, space: SearchSpace, recipe: Recipe) -> Iterator[Choice]:
    """The origin with one hole at a time at each end of its domain: which settings matter, and which way, is seen from these.

    Of choices every other one. Holes that come to be asked for by such a step have the recipe's own value, or where their
    domain is without that its last one. In file order; the origin itself is not among them.

    Source: the local method of Saltelli et al. 2008, "Global Sensitivity Analysis. The Primer", section 1.2.

    Args:
        origin: a point of the space.
    """
    tree = recipe.model_dump()
    for moved, around in space.items():
        if moved not in origin:
            continue
        values = around.choices or (domain_values(around, 2)[0], domain_values(around, 2)[-1])
        for value in values:
            if _same(around, value) == _same(around, origin[moved]):
                continue
            point = Choice()
            for path, domain in space.items():
                if is_active(domain, point, tree):
                    own = value if path == moved else origin.get(path, value_at(tree, path))
                    point[path] = own if domain.contains(own) else domain_values(domain, 2)[-1]
            yield point


def _num_steps(domain: Domain) -> int:
    return _count_steps(domain.low, domain.high, domain.step or 1)


def _at_step(domain: Domain, index: int) -> Value:
    return as_proposed(domain, _exact_step(domain.low, domain.step or 1, index))


# Exact, as the numbers are written. A search asks for the same few again and again.


@functools.lru_cache(maxsize=256)
def _count_steps(low: float, high: float, step: float) -> int:
    return (Fraction(str(high)) - Fraction(str(low))) // Fraction(str(step)) + 1


@functools.lru_cache(maxsize=4096)
def _exact_step(low: float, step: float, index: int) -> Fraction:
    return Fraction(str(low)) + index * Fraction(str(step))


def _same(domain: Domain, value: Value) -> tuple[str, Value]:
    if isinstance(value, str | bool) or domain.choices is not None:
        return type(value).__name__, value
    if domain.kind == "int" or domain.step is not None:
        return "step", round((value - domain.low) / (domain.step or 1))
    return "number", float(value)
