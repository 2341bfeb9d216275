"""`--where`: the part of a front that satisfies a condition, for every command that has it."""

from __future__ import annotations

from typing import TypeGuard

from orchestrator.cli.tables import shown
from orchestrator.errors import NoFeasibleTrialError
from orchestrator.pareto.condition import Condition, misses, nearest
from orchestrator.pareto.front import Front, narrowed
from orchestrator.spec.names import MEASUREMENTS


def metrics_of(front: Front) -> list[str]:
    """What may be named: every number that a trial of the sweep was measured by; before there is one, all that exist."""
    trials = [*front.results, *front.infeasible]
    found = dict.fromkeys(name for trial in trials for name, value in trial.measurements.items() if is_number(value))
    return [*found] or list(MEASUREMENTS)


def satisfying(front: Front, condition: Condition) -> Front:
    """The front of the trials that satisfy a condition."""
    return narrowed(front, lambda trial: not misses(condition, {**trial.gate, **trial.measurements}))


def none_satisfies(sweep: str, front: Front, condition: Condition) -> NoFeasibleTrialError:
    """What to say when no feasible trial satisfies a condition: the nearest one, and by how much it misses."""
    return NoFeasibleTrialError(f"no feasible trial of {sweep!r} satisfies --where: {_nearest(front, condition)}")


def _nearest(front: Front, condition: Condition) -> str:
    """Which feasible trial comes closest to a condition that none satisfies, and by how much it misses."""
    measured = {trial.id: trial.measurements for trial in front.results}
    trial, missed = nearest(condition, measured)
    sides = (side for miss in missed for side in (miss.comparison.left, miss.comparison.right))
    names = dict.fromkeys(side for side in sides if isinstance(side, str))
    has = ", ".join(f"{name} {shown(measured[trial][name])}" for name in names if name in measured[trial])
    return f"the nearest is {trial}{f' with {has}' if has else ''}: {' and '.join(map(str, missed))}"


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a measurement is a number, and not a word or a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)
