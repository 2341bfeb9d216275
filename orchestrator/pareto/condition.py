"""Conditions on measurements, as `size_bytes < 1e6 and accuracy >= 0.9`: read without running anything, and weighed."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import JobError, nearest_name

_LONGEST = 500  # characters: longer ones are no condition, and could exhaust the parser
_FORM = "compare metrics with numbers, joined by and, or, not and parentheses, as size_bytes<1e6 and accuracy>=0.9"
_SIGNS: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Comparison:
    """Two sides, each the name of a metric or a number, and the sign between them."""

    left: str | float
    sign: str
    right: str | float

    def __str__(self) -> str:
        left, right = (side if isinstance(side, str) else _plain(side) for side in (self.left, self.right))
        return f"{left} {self.sign} {right}"


@dataclass(frozen=True)
class Joined:
    """Conditions of which all have to hold (`and`), or any (`or`)."""

    every: bool
    parts: tuple[Condition, ...]


Condition = Comparison | Joined


@dataclass(frozen=True)
class Miss:
    """A comparison that does not hold.

    Args:
        by: how far its sides are on the wrong side of one another, >= 0 in the metric's unit; infinite where one of them was
            not measured.
        share: the same as a fraction of the right side's magnitude, so that misses of different metrics can be added.
    """

    comparison: Comparison
    by: float
    share: float

    def __str__(self) -> str:
        return (
            f"{self.comparison} is missed by {_plain(self.by)}" if math.isfinite(self.by) else f"{self.comparison} is unknown"
        )


def parse_condition(text: str, metrics: Sequence[str], where: str = "") -> Condition:
    """Read a condition; `not` is carried inwards to the comparisons, and a chain is cut into its links.

    Args:
        text: comparisons (`<`, `<=`, `>`, `>=`, `==`, `!=`, chained or not) of metric names and finite numbers.
        metrics: the names that may occur.
        where: what an error calls the text, the name of an option for example.

    Raises:
        JobError: anything else, with the nearest name for an unknown metric.
    """
    if len(text) > _LONGEST:
        raise JobError(f"be at most {_LONGEST} characters", str(len(text)), where=where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's about 0.9and and the like
            tree = ast.parse(text.strip(), mode="eval")
        return _Reader(text.strip(), metrics, where).condition(tree.body, negated=False)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise JobError(_FORM, repr(text), where=where) from None


def misses(condition: Condition, measurements: Mapping[str, Any]) -> tuple[Miss, ...]:
    """Return the comparisons that keep a condition from holding; nothing when it holds.

    Where one of several would do, the one that is missed by the least share counts.
    """
    if isinstance(condition, Comparison):
        return _missed(condition, measurements)
    found = [misses(part, measurements) for part in condition.parts]
    if condition.every:
        return tuple(miss for part in found for miss in part)
    return min(found, key=total_share) if all(found) else ()


def total_share(missed: Sequence[Miss]) -> float:
    """How far a set of misses is from holding."""
    return sum(miss.share for miss in missed)


def nearest(condition: Condition, candidates: Mapping[str, Mapping[str, Any]]) -> tuple[str, tuple[Miss, ...]]:
    """Return which candidate comes closest to a condition that none satisfies, and its misses.

    One of which more is known comes before one that was measured less; then the least total share decides, and the order.

    Args:
        candidates: measurements by name; at least one.
    """
    missed = {name: misses(condition, measurements) for name, measurements in candidates.items()}

    def distance(name: str) -> tuple[int, float]:
        known = [miss for miss in missed[name] if math.isfinite(miss.share)]
        return len(missed[name]) - len(known), total_share(known)

    closest = min(missed, key=distance)
    return closest, missed[closest]


def _plain(number: float) -> str:
    """Six significant digits, and no exponent for what is merely large."""
    return f"{number:.0f}" if 1e4 <= abs(number) < 1e15 else f"{number:.6g}"


def _missed(comparison: Comparison, measurements: Mapping[str, Any]) -> tuple[Miss, ...]:
    left, right = (measurements.get(side) if isinstance(side, str) else side for side in (comparison.left, comparison.right))
    if left is None or right is None:
        return (Miss(comparison, math.inf, math.inf),)
    if _HOLDS[comparison.sign](left, right):
        return ()
    by = abs(float(left) - float(right))
    return (Miss(comparison, by, by / (abs(float(right)) or 1.0)),)


class _Reader:
    """Turns Python's syntax tree into a condition, and refuses every node that is not named here."""

    def __init__(self, text: str, metrics: Sequence[str], where: str) -> None:
        self._text, self._metrics, self._where = text, list(metrics), where

    def condition(self, node: ast.expr, *, negated: bool) -> Condition:
        match node:
            case ast.BoolOp(op=op, values=values):
                return Joined(isinstance(op, ast.And) != negated, tuple(self.condition(v, negated=negated) for v in values))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.condition(operand, negated=not negated)
            case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in _SIGNS for op in ops):
                sides = [self._side(side) for side in [left, *rest]]
                signs = [_OPPOSITE[_SIGNS[type(op)]] if negated else _SIGNS[type(op)] for op in ops]
                if all(isinstance(side, float) for side in sides):
                    raise self._refusal(node)
                links = tuple(Comparison(*link) for link in zip(sides, signs, sides[1:], strict=False))
                return links[0] if len(links) == 1 else Joined(not negated, links)
        raise self._refusal(node)

    def _side(self, node: ast.expr) -> str | float:
        match node:
            case ast.Name(id=name) if name in self._metrics:
                return name
            case ast.Name(id=name):
                near = nearest_name(name, self._metrics)
                raise JobError("name metrics that were measured", repr(name), where=self._where, nearest=near)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant() as operand):
                value = self._number(operand)
                return -value if isinstance(sign, ast.USub) else value
            case ast.Constant():
                return self._number(node)
        raise self._refusal(node)

    def _number(self, node: ast.Constant) -> float:
        try:
            value = float(node.value) if isinstance(node.value, int | float) and not isinstance(node.value, bool) else math.nan
        except OverflowError:  # an integer of hundreds of digits
            value = math.inf
        if not math.isfinite(value):
            raise self._refusal(node)
        return value

    def _refusal(self, node: ast.expr) -> JobError:
        return JobError(_FORM, repr(ast.get_source_segment(self._text, node) or self._text), where=self._where)
