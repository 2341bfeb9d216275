"""The product's own sampler: expected hypervolume improvement for what a point would cost.

What Optuna's samplers do not know and a sweep does: which stages of a trial are in the store already, so that two points that
promise the same may differ in price by ten; that sizes and MACs of a trial that was gated or stopped are known all the same;
and in which corner of the objectives a network is not worth having.

Sources: Emmerich, Giannakoglou and Naujoks 2006, "Single- and Multiobjective Evolutionary Optimization Assisted by Gaussian
Random Field Metamodels", for the criterion; Snoek, Larochelle and Adams 2012, "Practical Bayesian Optimization of Machine
Learning Algorithms", section 3.2, for improvement per second (here per square root of a second: prices are estimates, and what
is cheap and of little use should not be preferred for long); Ginsbourger, Le Riche and Carraro 2010, "Kriging is well-suited to
parallelize optimization", section 4, for trials under way, which are believed to end as expected.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from orchestrator.results.trial_result import Proposal, TrialResult
from orchestrator.search.encoding import Scale, unit_vector
from orchestrator.search.gaussian import Surrogate, fit
from orchestrator.search.improvement import free_boxes, improvement, normal_draws
from orchestrator.search.points import Key, fits, from_unit, grid, is_finite, point_key, quasi_random
from orchestrator.search.prices import Parts, Prices
from orchestrator.spec.job import Job
from orchestrator.spec.space import Choice, Domain, is_active

FloatArray = npt.NDArray[np.float64]

_WHOLE = 2048  # of a finite space with no more points than this, all are looked at
_SPREAD, _LOCAL = 256, 128  # of any other: so many points all over it, and so many near the front
_FINALISTS = 64  # of them so many, the best at first sight, are looked at closely
_STARTUP = 2**20  # as many points as a Sobol sequence is ever asked for
_DRAWS = 32  # a power of two
_THRIFT = 0.5  # power of the price
_GROWTH = 1.2  # hyperparameters are fitted again when there are so many times more observations
_FITTED = 150  # to no more than so many: what they say of ten or twenty lengths is enough, and costs a cube
_RESAMPLED, _STEP = 0.3, 0.1  # of a point near the front: share of its holes that differ, and by how much of their range


@dataclass(frozen=True)
class _Candidate:
    choice: Choice
    key: Key
    vector: list[float]
    parts: Parts


@dataclass
class _Observed:
    """What was seen of one quantity, in the order in which it was told."""

    inputs: list[list[float]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    fitted: dict[int, FloatArray] = field(default_factory=dict)  # by how many of the observations it rests on

    def add(self, vector: list[float], value: float) -> None:
        self.inputs.append(vector)
        self.values.append(value)

    def surrogate(self, under_way: FloatArray) -> Surrogate:
        """Fitted to what was seen, and to trials under way as if they had ended as expected.

        Hyperparameters are fitted to the first n observations (evenly chosen from them where they are many), for n of a fixed
        series: facts alone decide, and not when a point was asked for.
        """
        inputs, values = np.array(self.inputs), np.array(self.values)
        count = _last_of_series(len(values))
        if count not in self.fitted:
            chosen = np.linspace(0, count - 1, min(count, _FITTED)).astype(int)
            self.fitted = {count: fit(inputs[chosen], values[chosen])}
        found = Surrogate(inputs, values, self.fitted[count])
        if not len(under_way):
            return found
        expected = found.predict(under_way)[0]
        return Surrogate(np.concatenate([inputs, under_way]), np.concatenate([values, expected]), self.fitted[count])


class EhviSampler:
    """Proposes the points that promise most for their price.

    The first `search.num_startup` trials come from a Sobol sequence. Then each objective has a Gaussian process, and so has
    every constraint; a point's promise is the hypervolume that it is expected to add, times the probability that it holds to
    every constraint and can be built.

    Args:
        job: space, objectives, constraints, search settings and seed.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._scales = [Scale(objective) for objective in job.objectives]
        self._objectives = {objective.metric: _Observed() for objective in job.objectives}
        self._limits = {metric: _Observed() for metric in job.constraints}
        self._buildable = _Observed()
        self._costs_seen: list[list[float]] = []
        self._holding: list[tuple[Choice, list[float]]] = []  # what holds to every constraint, and its costs
        self._under_way: dict[int, Choice] = {}
        self._taken: set[Key] = set()
        self._prices = Prices(job.recipe)

    def drafts(self, number: int) -> Iterator[Choice]:
        """Points that could be proposal `number`, the most promising first. They leave nothing behind."""
        if len(self._costs_seen) < self._job.search.num_startup:
            yield from quasi_random(self._job.space, self._job.recipe, self._job.seed, _STARTUP)
            return
        with _threads().limit(limits=1):  # many small products: threads make them slower, and sums depend on how many there are
            ranked = self._ranked(self._candidates(number), number)
        yield from ranked

    def know(self, proposal: Proposal) -> None:
        if not fits(proposal.choice, self._job.space, self._job.recipe):
            return
        self._taken.add(point_key(proposal.choice, self._job.space))
        self._under_way[proposal.number] = proposal.choice
        self._prices.know(proposal.choice)

    def tell(self, result: TrialResult) -> None:
        """A stopped or an infeasible trial tells what was measured before training; a failed one tells nothing."""
        choice = self._under_way.pop(result.number, None)
        if choice is None or result.state == "FAILED":
            return
        vector = unit_vector(choice, self._job.space)
        complete = result.state == "COMPLETE"
        known = result.measurements if complete else result.gate
        for scale in self._scales:
            if (metric := scale.objective.metric) in known:
                self._objectives[metric].add(vector, scale.of(float(known[metric])))
        for metric, amount in result.constraints.items():
            if metric in self._limits and math.isfinite(amount):
                self._limits[metric].add(vector, amount)
        unbuildable = result.state == "INFEASIBLE" and not any(amount > 0 for amount in result.constraints.values())
        self._buildable.add(vector, -1.0 if unbuildable else 1.0)
        if complete:
            costs = [scale.objective.cost(float(known[scale.objective.metric])) for scale in self._scales]
            self._costs_seen.append(costs)
            if result.feasible:
                self._holding.append((choice, costs))
        self._prices.tell(result)

    def _candidates(self, number: int) -> list[_Candidate]:
        """Points that were not proposed, each once: all there are, or some all over the space and some near the front."""
        points = self._whole
        if not points:
            seed = (self._job.seed * 1_000_003 + number) % 2**31
            spread = quasi_random(self._job.space, self._job.recipe, seed, _SPREAD)
            points = self._looked_at([*spread, *self._near_the_front(np.random.default_rng(seed))])
        return [candidate for candidate in points if candidate.key not in self._taken]

    @functools.cached_property
    def _whole(self) -> list[_Candidate]:
        if not is_finite(self._job.space):
            return []
        points = list(islice(grid(self._job.space, self._job.recipe, 2), _WHOLE + 1))
        return self._looked_at(points) if len(points) <= _WHOLE else []

    def _looked_at(self, points: Sequence[Choice]) -> list[_Candidate]:
        space = self._job.space
        each = {point_key(choice, space): choice for choice in points}
        return [_Candidate(c, key, unit_vector(c, space), self._prices.parts(c)) for key, c in each.items()]

    def _near_the_front(self, random: np.random.Generator) -> Iterator[Choice]:
        if not self._holding:
            return
        costs = np.array([costs for _, costs in self._holding])
        as_good = (costs[None] <= costs[:, None]).all(axis=2)  # (N, N): whether the second is as good as the first
        better = (costs[None] < costs[:, None]).any(axis=2)
        front = [self._holding[index][0] for index in np.flatnonzero(~np.any(as_good & better, axis=1))]
        tree = self._job.recipe.model_dump()
        for index in range(_LOCAL):
            origin, choice = front[index % len(front)], Choice()
            for path, domain in self._job.space.items():
                draws = random.random(2), random.normal(0.0, _STEP)
                if is_active(domain, choice, tree):
                    choice[path] = _moved(domain, origin, path, draws)
            yield choice

    def _ranked(self, candidates: list[_Candidate], number: int) -> list[Choice]:
        """The best of the candidates at first sight, by what they promise for their price, best first."""
        if not candidates:
            return []
        space = self._job.space
        points = np.array([candidate.vector for candidate in candidates]).reshape(len(candidates), -1)
        waiting = np.array([unit_vector(choice, space) for choice in self._under_way.values()]).reshape(-1, points.shape[1])
        beliefs = [self._objectives[scale.objective.metric].surrogate(waiting) for scale in self._scales]
        means, spreads = (np.stack(each, axis=1) for each in zip(*(one.predict(points) for one in beliefs), strict=True))
        boxes = free_boxes(np.array([costs for _, costs in self._holding]).reshape(-1, len(self._scales)), self._reference())
        worth = (
            self._feasibility(points, waiting)
            / np.array(self._prices.of([candidate.parts for candidate in candidates])) ** _THRIFT
        )
        at_first_sight = improvement(self._costs(means - spreads), boxes) * worth
        best = np.argsort(-at_first_sight, kind="stable")[:_FINALISTS]
        draws = normal_draws(_DRAWS, len(self._scales), (self._job.seed * 1_000_003 + number) % 2**31)
        possible = means[best, None, :] + spreads[best, None, :] * draws
        promise = improvement(self._costs(possible), boxes).mean(axis=1) * worth[best]
        return [candidates[best[index]].choice for index in np.argsort(-promise, kind="stable")]

    def _costs(self, scaled: FloatArray) -> FloatArray:
        """(..., M) on the objectives' scales, as costs."""
        return np.stack([scale.costs(scaled[..., axis]) for axis, scale in enumerate(self._scales)], axis=-1)

    def _reference(self) -> FloatArray:
        """The job's, and where it names none, a little beyond the worst that was seen."""
        costs = np.array(self._costs_seen)
        worst, best = costs.max(axis=0), costs.min(axis=0)
        beyond = worst + 0.1 * np.where(worst > best, worst - best, np.abs(worst) + _STEP)
        given = [None if o.reference is None else o.cost(o.reference) for o in self._job.objectives]
        return np.array([fallback if value is None else value for value, fallback in zip(given, beyond, strict=True)])

    def _feasibility(self, points: FloatArray, waiting: FloatArray) -> FloatArray:
        """The probability that each point holds to every constraint and can be built, as far as was ever in doubt."""
        from scipy.special import ndtr

        found = np.ones(len(points))
        for observed, sign in [*((limit, -1.0) for limit in self._limits.values()), (self._buildable, 1.0)]:
            if any(sign * value <= 0.0 for value in observed.values):
                mean, spread = observed.surrogate(waiting).predict(points)
                found *= ndtr(sign * mean / spread)
        return found


@functools.cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


def _last_of_series(count: int) -> int:
    """The last of 1, 2, 3, 4, 5, 6, 8, 10, ... (each a fifth more than the one before) that is no more than `count`."""
    size = 1
    while (larger := max(size + 1, math.ceil(size * _GROWTH))) <= count:
        size = larger
    return size


def _moved(domain: Domain, origin: Choice, path: str, draws: tuple[FloatArray, float]) -> int | float | str | bool:
    """The origin's value in a hole, now and then another: a step away where it is a number, any where it is a word."""
    (lot, anywhere), step = draws
    value = origin.get(path)
    if value is None:
        return from_unit(domain, float(anywhere))
    if lot >= _RESAMPLED:
        return value
    if domain.choices is not None:
        return from_unit(domain, float(anywhere))
    low, high, at = (math.log(x) if domain.log else float(x) for x in (domain.low, domain.high, float(value)))
    unit = (at - low) / (high - low) if high > low else 0.5
    return from_unit(domain, float(np.clip(unit + step, 0.0, 1.0 - 1e-9)))
