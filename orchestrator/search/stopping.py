"""When a trial is not worth going on with: asynchronous successive halving for several objectives. A pure policy.

A trial that reaches a rung (so many epochs of its last training) is ranked among all that have reached it so far, and goes on
when nothing there dominates it, or when it is among the best 1/eta by non-dominated rank. Where a front does not fit whole, its
members are taken in the order of an epsilon-net. Source: Schmucker, Donini, Zafar, Salinas, Archambeau 2021, "Multi-objective
Asynchronous Successive Halving" (arXiv 2106.12639), section 4; the single-objective rule, in the variant that stops at once:
Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", section 3.

What differs: objectives that are known before training are compared at their final values, and a trial that nothing dominates
always goes on, whether or not its front fits. So a small, fast network is never stopped for being less accurate than a large
one: only for being less accurate than one that is no larger and no slower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from orchestrator.results.trial_result import TrialResult
from orchestrator.spec.job import StoppingSettings
from orchestrator.spec.objective import Objective
from orchestrator.spec.recipe import Recipe

FloatArray = npt.NDArray[np.float64]
Costs = tuple[float, ...]
Rung = tuple[str, int]
"""(stage, epochs of its last training that are done): trials whose last training is not of the same stage do not compare."""

Ranks = Callable[[FloatArray], npt.NDArray[np.int64]]
"""(N, M) costs to (N,) ranks, 0 for the front."""
Spread = Callable[[FloatArray, int], list[int]]
"""(N, M) costs of one front and k to min(k, N) of its members, the first ones of an epsilon-net."""


@dataclass(frozen=True)
class Phase:
    """The last training of a recipe: its stage, the stage's epoch that it begins with, and how many epochs it has."""

    stage: str
    first: int
    epochs: int


def last_training(recipe: Recipe) -> Phase:
    """The training after which no weight is learned any more; before it networks change shape and do not compare."""
    pruning, quantization = recipe.pruning, recipe.quantization
    if quantization.method == "qat" and quantization.epochs > 0:
        return Phase("quantized", 0, quantization.epochs)
    if pruning.ratio > 0.0 and pruning.epochs > 0:
        first = pruning.epochs * (pruning.steps - 1) // pruning.steps  # where the last cut is made
        return Phase("pruned", first, pruning.epochs - first)
    return Phase("student", 0, recipe.training.epochs)


def rung_epochs(epochs: int, settings: StoppingSettings) -> list[int]:
    """After how many of a phase's epochs a trial is judged: min_epochs * eta^k, as long as something is left to save."""
    found, epoch = [], settings.min_epochs
    while settings.method != "none" and epoch < epochs:
        found.append(epoch)
        epoch *= settings.reduction_factor
    return found


def partial_costs(objectives: Sequence[Objective], gate: Mapping[str, float], val_accuracy: float) -> Costs | None:
    """The objectives of a trial under way, to be minimised; None where one of them cannot be known yet.

    Args:
        gate: metric to value, of what was measured before training; it is final.
        val_accuracy: of the training graph, in [0, 1]; it stands for "accuracy".
    """
    known = {**gate, "accuracy": val_accuracy}
    if any(objective.metric not in known for objective in objectives):
        return None
    return tuple(objective.cost(float(known[objective.metric])) for objective in objectives)


def rungs_passed(
    recipe: Recipe, result: TrialResult, objectives: Sequence[Objective], settings: StoppingSettings
) -> list[tuple[Rung, Costs]]:
    """The rungs at which an ended trial was compared, by its facts; none where its last training came from the store."""
    phase = last_training(recipe)
    if any(stage.name == phase.stage and stage.cached for stage in result.stages):
        return []
    seen = {point["epoch"] + 1 - phase.first: point for point in result.curve if point["stage"] == phase.stage}
    found = []
    for epoch in rung_epochs(phase.epochs, settings):
        costs = partial_costs(objectives, result.gate, seen[epoch]["val_accuracy"]) if epoch in seen else None
        if costs is not None:
            found.append(((phase.stage, epoch), costs))
    return found


def is_control(number: int, seed: int, fraction: float) -> bool:
    """Whether a trial is never stopped, so that what stopping costs can be seen. The baseline is not one of them.

    Args:
        seed: of the sweep; with the number it decides, whatever else is proposed.
        fraction: of trials that are controls, in [0, 1].
    """
    digest = hashlib.sha256(f"control/{seed}/{number}".encode()).digest()
    return number > 0 and int.from_bytes(digest[:8], "big") < fraction * 2**64


def kept(costs: FloatArray, reduction_factor: int, ranks: Ranks, spread: Spread) -> npt.NDArray[np.bool_]:
    """Which of the trials at a rung are worth going on with.

    Args:
        costs: (N, M) float64, finite, minimised, in the order in which the rung was reached; N >= 1, M >= 1.
        reduction_factor: eta, >= 2.

    Returns:
        (N,) bool: the non-dominated ones and at least ceil(N / eta) in all.
    """
    room = -(-len(costs) // reduction_factor)
    fronts = ranks(costs)
    keep: npt.NDArray[np.bool_] = fronts == 0
    front = 1
    while (left := room - int(keep.sum())) > 0:
        members = np.flatnonzero(fronts == front)
        keep[members[spread(costs[members], left)]] = True
        front += 1
    return keep


@dataclass
class StoppingRule:
    """Who has reached which rung with what, and so who goes on. The same reports in the same order give the same answers.

    Args:
        reduction_factor: eta, >= 2: about one in so many goes on.
        ranks, spread: what `kept` ranks by.
        spared: tells of a trial's number whether it is never stopped. It is compared with all the same.
    """

    reduction_factor: int
    ranks: Ranks
    spread: Spread
    spared: Callable[[int], bool] = lambda number: number == 0
    _rungs: dict[Rung, dict[int, Costs]] = field(default_factory=dict)

    def report(self, number: int, rung: Rung, costs: Costs) -> bool:
        """A trial has reached a rung; returns whether it goes on. Only its first report there counts.

        The first at a rung goes on, for there is nothing to compare it with, and while few have come little is asked: of n
        trials ceil(n / eta) go on, and the front. A trial that came early may so go on where a later, equal one does not.
        """
        there = self._rungs.setdefault(rung, {})
        if number in there:
            return True
        there[number] = costs
        return self.spared(number) or number in self._kept(rung)

    def promotable(self, stopped: Collection[int]) -> int | None:
        """Of the trials that were stopped, one that its rung would let go on by now: the one that came furthest.

        Among equals the lowest number. None where the rungs still want none of them.
        """
        last = {number: rung for rung in sorted(self._rungs, key=lambda rung: rung[1]) for number in self._rungs[rung]}
        kept_at = {rung: self._kept(rung) for rung in {last[number] for number in stopped if number in last}}
        wanted = [number for number in stopped if number in last and number in kept_at[last[number]]]
        return min(wanted, key=lambda number: (-last[number][1], number), default=None)

    def _kept(self, rung: Rung) -> set[int]:
        there = self._rungs[rung]
        keep = kept(np.array(list(there.values()), dtype=np.float64), self.reduction_factor, self.ranks, self.spread)
        return {number for number, stays in zip(there, keep, strict=True) if stays}


def would_stop(rule: StoppingRule, trials: Iterable[tuple[int, Sequence[tuple[Rung, Costs]]]]) -> list[int]:
    """Which trials a fresh rule would have stopped, had they reached their rungs one after the other in this order.

    Args:
        trials: number, and the rungs with what the trial had there, as `rungs_passed` gives them.
    """
    return [number for number, rungs in trials if not all(rule.report(number, rung, costs) for rung, costs in rungs)]
