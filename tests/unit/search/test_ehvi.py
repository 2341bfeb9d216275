"""The product's own sampler, from the regression below it to what it proposes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from orchestrator.pareto.hypervolume import hypervolume
from orchestrator.results.trial_result import Proposal, StageRecord, TrialResult
from orchestrator.search.encoding import Scale, unit_vector
from orchestrator.search.gaussian import Surrogate, _cost_and_gradient, _squares, fit
from orchestrator.search.improvement import free_boxes, improvement, normal_draws
from orchestrator.search.points import point_key
from orchestrator.search.prices import Prices
from orchestrator.search.proposer import Proposer
from orchestrator.spec.job import Job
from orchestrator.spec.objective import Objective
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.space import SearchSpace

# Regression.

INPUTS = np.random.default_rng(0).random((30, 3))
VALUES = 5.0 + np.sin(6 * INPUTS[:, 0]) + INPUTS[:, 1] ** 2 + 0.1 * np.random.default_rng(1).standard_normal(30)
HYPER = np.log([0.4, 0.7, 1.5, 1.3, 0.02])


def test_beliefs_are_those_of_another_implementation():
    kernel = ConstantKernel(1.3) * Matern([0.4, 0.7, 1.5], nu=2.5) + WhiteKernel(0.02)
    other = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True, alpha=1e-8).fit(INPUTS, VALUES)
    points = np.random.default_rng(2).random((20, 3))
    mean, spread = Surrogate(INPUTS, VALUES, HYPER).predict(points)
    theirs, deviation = other.predict(points, return_std=True)
    np.testing.assert_allclose(mean, theirs, rtol=1e-6)
    np.testing.assert_allclose(spread, deviation, rtol=1e-5)


def test_the_gradient_is_that_of_the_cost():
    squares, scaled = _squares(INPUTS, INPUTS), (VALUES - VALUES.mean()) / VALUES.std()
    _, gradient = _cost_and_gradient(squares, scaled, HYPER)
    for axis in range(len(HYPER)):
        step = np.eye(len(HYPER))[axis] * 1e-6
        ahead, behind = (_cost_and_gradient(squares, scaled, HYPER + sign * step)[0] for sign in (1, -1))
        assert gradient[axis] == pytest.approx((ahead - behind) / 2e-6, rel=1e-4, abs=1e-5)


def test_fitting_finds_which_input_matters_and_how_much_is_noise():
    lengths, noise = np.exp(found[:3]) if (found := fit(INPUTS, VALUES)) is not None else None, math.exp(found[-1])
    assert lengths[0] < lengths[2]
    assert 0.002 < noise < 0.1  # 0.01 / var(VALUES), which is about 0.5
    assert fit(INPUTS, VALUES).tolist() == found.tolist()


@pytest.mark.parametrize("count", [1, 2])
def test_one_observation_or_equal_ones_are_enough_to_fit(count):
    inputs = np.zeros((count, 2))
    mean, spread = Surrogate(inputs, np.full(count, 3.0), fit(inputs, np.full(count, 3.0))).predict(np.ones((4, 2)))
    np.testing.assert_allclose(mean, 3.0)
    assert (spread > 0).all()


# Improvement.


@st.composite
def fronts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    dims = draw(st.integers(1, 4))
    coordinate = st.integers(0, 6).map(float)
    rows = draw(st.lists(st.tuples(*[coordinate] * dims), max_size=7))
    point = draw(st.tuples(*[coordinate] * dims))
    return np.array(rows).reshape(-1, dims), np.array(point)


@settings(deadline=None)
@given(fronts())
def test_improvement_is_the_difference_of_two_hypervolumes(case):
    costs, point = case
    reference = np.full(len(point), 5.0)
    added = improvement(point, free_boxes(costs, reference))
    both = hypervolume(np.vstack([costs, point]), reference) - hypervolume(costs, reference)
    assert float(added) == pytest.approx(both, abs=1e-9)


def test_draws_have_the_moments_of_a_normal_distribution():
    draws = normal_draws(256, 3, seed=4)
    np.testing.assert_allclose(draws.mean(axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose(np.cov(draws.T), np.eye(3), atol=0.06)


# Numbers for points and values.

SPACE = SearchSpace.model_validate(
    {
        "training.learning_rate": {"float": [0.01, 1.0], "log": True},
        "quantization.method": {"choice": ["none", "ptq", "qat"]},
        "quantization.weight_bits": {"int": [2, 8], "when": {"quantization.method": ["ptq", "qat"]}},
        "pruning.epochs": {"choice": [27, 3, 9]},
    }
)


def test_a_point_in_the_unit_cube():
    point = {"training.learning_rate": 0.1, "quantization.method": "qat", "quantization.weight_bits": 5, "pruning.epochs": 9}
    assert unit_vector(point, SPACE) == pytest.approx([0.5, 0.0, 0.0, 1.0, 0.5, 0.5])
    bare = {"training.learning_rate": 1.0, "quantization.method": "none", "pruning.epochs": 27}
    assert unit_vector(bare, SPACE) == pytest.approx([1.0, 1.0, 0.0, 0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("objective", "better", "worse"),
    [
        (Objective(metric="accuracy"), 0.95, 0.9),
        (Objective(metric="accuracy", direction="minimize"), 0.2, 0.3),
        (Objective(metric="size_bytes"), 100.0, 101.0),
        (Objective(metric="size_bytes", direction="maximize"), 101.0, 100.0),
        (Objective(metric="calibration_error"), 0.01, 0.02),
    ],
)
def test_a_scale_is_smaller_for_what_is_better_and_leads_back(objective, better, worse):
    scale = Scale(objective)
    assert scale.of(better) < scale.of(worse)
    costs = scale.costs(np.array([scale.of(better), scale.of(worse)]))
    np.testing.assert_allclose(costs, [objective.cost(better), objective.cost(worse)])


def test_nothing_is_worse_than_the_reference():
    scale = Scale(Objective(metric="accuracy", reference=0.8))
    assert scale.of(0.1) == scale.of(0.8) > scale.of(0.81)
    assert math.isfinite(Scale(Objective(metric="accuracy")).of(1.0))


# Prices.


def stage(name: str, seconds: float, *, cached: bool = False) -> StageRecord:
    return StageRecord(name, name, seconds, cached, 0.0)


def test_what_others_made_costs_nothing_and_epochs_cost_in_proportion():
    recipe = Recipe.model_validate({"training": {"epochs": 9}, "quantization": {"method": "qat", "epochs": 3}})
    prices = Prices(recipe)
    assert prices.of([prices.parts({"training.learning_rate": 0.1})]) == [1.0]
    known = {"training.learning_rate": 0.1, "quantization.epochs": 3}
    prices.know(known)
    records = [stage("student", 20.0), stage("quantized", 8.0), stage("export", 1.0), stage("measure", 0.5, cached=True)]
    prices.tell(TrialResult(0, "COMPLETE", known, stages=records))
    longer, other = known | {"quantization.epochs": 7}, known | {"training.learning_rate": 0.2}
    pruned = known | {"pruning.ratio": 0.5}
    # A trained quantized epoch takes 8 / (1 + 3) = 2 s, a student's 20 / (1 + 9) = 2 s; what pruning takes nobody has seen.
    assert prices.of([prices.parts(choice) for choice in (known, longer, other, pruned)]) == [9.0, 17.0, 29.0, 9.0]


# Proposals.


def make_job(**keys: Any) -> Job:
    space = {
        "pruning.ratio": {"float": [0.0, 0.8], "step": 0.05},
        "quantization.method": {"choice": ["none", "qat"]},
        "quantization.epochs": {"choice": [1, 16], "when": {"quantization.method": "qat"}},
    }
    objectives = [{"metric": "accuracy", "reference": 0.5}, {"metric": "size_bytes", "reference": 1000.0}]
    search = {"sampler": "ehvi", "num_startup": 6}
    return Job.model_validate(
        {"name": "ehvi", "recipe": {}, "space": space, "objectives": objectives, "search": search, **keys}
    )


def ended(job: Job, proposal: Proposal, *, twist: float = 0.0) -> TrialResult:
    """Accuracy falls with the ratio, size too; quantization helps neither, and takes long."""
    ratio, epochs = proposal.choice["pruning.ratio"], proposal.choice.get("quantization.epochs", 0)
    measured = {"accuracy": 0.9 - 0.5 * (ratio - twist) ** 2 - 0.01 * epochs, "size_bytes": 1000.0 * (1.0 - ratio)}
    stages = [stage("quantized", 0.1 + epochs), stage("export", 0.1)]
    amounts = {metric: bound.amount(measured[metric]) for metric, bound in job.constraints.items()}
    return TrialResult(
        proposal.number, "COMPLETE", proposal.choice, measured, constraints=amounts, stages=stages, ended=float(proposal.number)
    )


def play(job: Job, count: int, **how: float) -> list[dict[str, Any]]:
    sampler, found = Proposer(job), []
    for number in range(count):
        proposal = Proposal(number, sampler.ask(number), {})
        sampler.tell(ended(job, proposal, **how))
        found.append(proposal.choice)
    return found


def test_it_goes_to_what_is_worth_its_price_and_leaves_the_rest():
    found = play(make_job(), 20)
    later = found[6:]
    assert sum(choice["quantization.method"] == "none" for choice in later) >= 12
    assert len({point_key(choice, make_job().space) for choice in found}) == 20


def test_it_covers_the_front_and_not_its_one_end():
    ratios = sorted(choice["pruning.ratio"] for choice in play(make_job(), 22)[6:])
    assert ratios[0] <= 0.2
    assert ratios[-1] >= 0.7
    assert max(b - a for a, b in itertools.pairwise(ratios)) <= 0.25


def test_it_keeps_away_from_what_breaks_a_constraint():
    """Only networks of 400 to 600 bytes hold. One of them is among the first six; the four others come next."""
    job = make_job(constraints={"size_bytes": {"max": 600.0, "min": 400.0}})
    next_four = play(job, 10)[6:]
    assert {choice["quantization.method"] for choice in next_four} == {"none"}
    assert sorted(choice["pruning.ratio"] for choice in next_four) == pytest.approx([0.4, 0.5, 0.55, 0.6])


def test_a_stopped_trial_tells_what_was_known_before_training():
    job = make_job()
    quiet, told = Proposer(job), Proposer(job)
    for sampler in (quiet, told):
        for number in range(7):
            proposal = Proposal(number, sampler.ask(number), {})
            sampler.tell(ended(job, proposal))
    last = Proposal(7, told.ask(7), {})
    assert quiet.ask(7) == last.choice
    told.tell(TrialResult(7, "STOPPED", last.choice, gate={"size_bytes": 999.0}))
    quiet.tell(TrialResult(7, "STOPPED", last.choice))
    assert told._model is not None
    assert [len(one._objectives["size_bytes"].values) for one in (told._model, quiet._model)] == [8, 7]
    assert [len(one._objectives["accuracy"].values) for one in (told._model, quiet._model)] == [7, 7]
