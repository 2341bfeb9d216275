"""A search space: dotted paths into a Recipe, each with the domain that may fill it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Literal, Self

from pydantic import Field, RootModel, model_validator

from orchestrator.spec.recipe import Recipe, Strict, violation

Value = bool | int | float | str
Choice = dict[str, Value]

# Multiples of a step are rounded: 3 * 0.1 is not 0.3. As a fraction of the step; the tolerance is Optuna's own.
_STEP_TOLERANCE = 1e-8


class Domain(Strict):
    """The values that one hole may take: exactly one of `float: [low, high]`, `int: [low, high]`, `choice: [a, b, ...]`.

    `when: {other.path: value}` (or a list of values) makes the hole conditional on what fills another hole.
    """

    float_range: list[float] | None = Field(default=None, alias="float", min_length=2, max_length=2)
    int_range: list[int] | None = Field(default=None, alias="int", min_length=2, max_length=2)
    choices: list[Value] | None = Field(default=None, alias="choice", min_length=1)
    log: bool = False
    step: float | int | None = Field(default=None, gt=0)
    when: dict[str, Value | list[Value]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in (self.float_range, self.int_range, self.choices) if kind is not None]
        if len(given) != 1:
            raise violation("have exactly one of float, int, choice")
        if self.choices is None and self.low > self.high:
            raise violation(f"have low <= high; given [{self.low}, {self.high}]")
        if self.log and (self.choices is not None or self.low <= 0):
            raise violation("have a low bound above 0 when log is true")
        if [] in self.when.values():
            raise violation("wait for at least one value in each condition")
        return self

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.step is None:
            return self
        if self.choices is not None:
            raise violation("have a step only with float or int")
        if self.log:
            raise violation("have either log or step, not both")
        if self.int_range is not None and not isinstance(self.step, int):
            raise violation("have a whole step for an int range")
        low, high, step = (Fraction(str(number)) for number in (self.low, self.high, self.step))  # exact, as written
        if rest := (high - low) % step:
            last = float(high - rest) if self.float_range is not None else int(high - rest)
            raise violation(f"have a step that divides the range: from {self.low} in steps of {self.step} it ends at {last}")
        return self

    @property
    def kind(self) -> Literal["float", "int", "choice"]:
        return "float" if self.float_range is not None else "int" if self.int_range is not None else "choice"

    @property
    def low(self) -> float:
        return (self.float_range or self.int_range or [0])[0]

    @property
    def high(self) -> float:
        return (self.float_range or self.int_range or [0, 0])[1]

    def ends(self) -> list[Value]:
        """The values that prove the whole domain lies within limits: both bounds, or every choice."""
        if self.choices is not None:
            return list(self.choices)
        return list(self.float_range or self.int_range or [])

    def probes(self) -> list[Value]:
        """The ends, and for whole numbers the value above the low one: if all are multiples of a number, so is the domain."""
        if self.int_range is None:
            return self.ends()
        low, high = self.int_range
        return [*self.ends(), *range(low, high + 1, int(self.step or 1))[1:2]]

    def contains(self, value: Any) -> bool:
        """Whether `value` could have been proposed from this domain; a whole number may be written as a float."""
        if self.choices is not None:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.int_range is not None:
            return (value - self.low) % (self.step or 1) == 0
        return self.step is None or abs(math.remainder(value - self.low, self.step)) < _STEP_TOLERANCE * self.step


class SearchSpace(RootModel[dict[str, Domain]]):
    """Dotted paths of a Recipe and their domains, in file order."""

    def items(self) -> Iterator[tuple[str, Domain]]:
        yield from self.root.items()

    def __len__(self) -> int:
        return len(self.root)

    def without(self, path: str) -> SearchSpace:
        """The space with one hole pinned."""
        return SearchSpace({key: domain for key, domain in self.root.items() if key != path})

    def baseline(self, recipe: Recipe) -> Choice | None:
        """The recipe as written, as a point of this space; None when some value lies outside its domain."""
        tree, choice = recipe.model_dump(), Choice()
        for path, domain in self.items():
            if not is_active(domain, choice, tree):
                continue
            value = value_at(tree, path)
            if not domain.contains(value):
                return None
            choice[path] = value
        return choice

    def may_hold(self, path: str, value: Value, recipe: Recipe) -> bool:
        """Whether some trial has `value` at a searched path: as proposed, or as written where the hole may be inactive."""
        domain = self.root[path]
        written = bool(domain.when) and value_at(recipe.model_dump(), path) == value
        return written or domain.contains(value) or value in (domain.choices or [])


def is_active(domain: Domain, choice: Mapping[str, Value], tree: Mapping[str, Any]) -> bool:
    """Whether the domain's condition holds, given what was chosen so far and the recipe around it."""
    for path, wanted in domain.when.items():
        value = choice[path] if path in choice else value_at(tree, path)
        if value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def value_at(tree: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a nested mapping; KeyError where a part is missing."""
    node: Any = tree
    for part in path.split("."):
        if not isinstance(node, Mapping):
            raise KeyError(path)
        node = node[part]
    return node


def with_value(tree: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a nested mapping with one value replaced or added."""
    first, _, rest = path.partition(".")
    copy = dict(tree)
    if not rest:
        copy[first] = value
        return copy
    child = copy.get(first)
    copy[first] = with_value(child if isinstance(child, Mapping) else {}, rest, value)
    return copy


def fill(recipe: Recipe, choice: Mapping[str, Value]) -> Recipe:
    """The recipe with its holes filled; pydantic's ValidationError where a value is outside the recipe's own limits."""
    tree = recipe.model_dump()
    for path, value in choice.items():
        tree = with_value(tree, path, value)
    return Recipe.model_validate(tree)
